#!/bin/sh
# Opens the Control UI with the commands $1 and visits the link that they print with the command $2..., whose last argument
# it is. In a network of its own, so that no other tunnel can listen on the port. The commands end with their input, as
# with a session that is closed.
ip link set lo up
directory=$(mktemp -d)
mkfifo "$directory/input"
sh -c "$1" < "$directory/input" > "$directory/said" 2>&1 &
shift
exec 3> "$directory/input"
for _ in $(seq 60); do
  grep -q '^gateway: ready' "$directory/said" && break
  sleep 1
done
"$@" "$(grep '#token=' "$directory/said")"
visited=$?
exec 3>&-
wait
cat "$directory/said"
rm -r "$directory"
exit "$visited"
