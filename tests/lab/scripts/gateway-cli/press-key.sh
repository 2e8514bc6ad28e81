#!/bin/sh
# The same on a terminal, where a key ends it.
set -u
printed=$(mktemp)
tries=0
{
    until grep -q line "$printed" || [ $((tries += 1)) -gt 600 ]; do sleep 0.2; done
    printf '\003'
} | script --quiet --return --flush --command 'openclaw logs --follow' "$printed"
