#!/bin/sh
# Follows the gateway's log and ends it by SIGINT once it has printed a line, as a script would. Its exit code is the
# log's.
set -u
printed=$(mktemp)
# A shell's background jobs ignore the signal unless told otherwise.
env --default-signal=INT openclaw logs --follow > "$printed" 2>&1 &
tries=0
until grep -q line "$printed" || [ $((tries += 1)) -gt 600 ]; do sleep 0.2; done
kill -INT $!
wait $!
code=$?
cat "$printed"
exit $code
