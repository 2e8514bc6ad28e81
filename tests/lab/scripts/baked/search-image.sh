#!/bin/sh
# Mounts the image $1 at $2 where nobody else sees it, and lists what must not be in it: by name, then by content.
# $3 is a file with what to search for.
set -eu
mount -o ro,loop "$1" "$2"
cd "$2"
find etc/ssh -name 'ssh_host_*'
find root home -name authorized_keys -o -name '.*_history'
find var/lib/apt/lists var/cache/apt var/log -type f ! -name lock
find var/log/journal var/lib/docker/containers var/lib/docker/swarm -mindepth 1
for path in etc/docker/key.json var/lib/docker/engine-id var/lib/dbus/machine-id var/lib/openclaw-init/data*; do
  [ ! -e "$path" ] || echo "$path"
done
[ ! -s etc/machine-id ] || echo etc/machine-id
grep --recursive --text --files-with-matches --fixed-strings --file "$3" . || [ $? = 1 ]
