#!/bin/sh
set -eu
pid=$(docker inspect --format '{{.State.Pid}}' openclaw-gateway)
# shellcheck disable=SC2046 # Several processes, each a word.
kill -9 $(cat "/proc/$pid/task/$pid/children") "$pid"
for _ in $(seq 120); do
    sleep 0.5
    curl -fsS http://127.0.0.1:18789/startupz 2>/dev/null | grep -q started && exit 0
done
echo "the gateway did not come back"
exit 1
