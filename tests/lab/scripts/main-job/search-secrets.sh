#!/bin/sh
# Prints every place at which one of the gateway's secrets can be seen: its token, its keyring's password, and the
# variable SECRET_X, which docker may know. It leaves the three in the file $1, which only root can read.
set -eu
umask 077
sed -n 's/^OPENCLAW_GATEWAY_TOKEN=//p; s/^GOG_KEYRING_PASSWORD=//p' /home/node/.openclaw/.env > "$1.env"
docker inspect --format '{{range .Config.Env}}{{println .}}{{end}}' openclaw-gateway | sed -n 's/^SECRET_X=//p' |
  cat "$1.env" - > "$1"
[ "$(awk 'length > 20' "$1" | sort -u | wc -l)" = 3 ] || echo "not three secrets"

# WHERE PATTERNS: names a place that has one of them on the standard input.
in_stream() { if grep --quiet --text --fixed-strings --file "$2"; then echo "$1"; fi; }

grep --recursive --text --files-with-matches --fixed-strings --devices=skip --file "$1" \
  /run/openclaw-init /run/openclaw-shield /etc /var/log /var/lib/openclaw-init /usr/local /tmp \
  /mnt/disks/openclaw-data/openclaw-init 2> /dev/null || true
journalctl --no-pager | in_stream "the journal" "$1"
openclaw-init status | in_stream "status" "$1"
openclaw-init status --json | in_stream "status --json" "$1"
docker logs openclaw-gateway 2>&1 | in_stream "docker logs" "$1"
cat /proc/[0-9]*/cmdline 2> /dev/null | in_stream "a command line" "$1"
find / -xdev | in_stream "the name of a file" "$1"
find /mnt/disks/openclaw-data/backups | in_stream "the name of a backup" "$1"
for process in /proc/[0-9]*; do
  # The container's own have what it was given.
  grep --quiet docker "$process/cgroup" 2> /dev/null ||
    in_stream "the environment of $(cat "$process/comm" 2> /dev/null)" "$1" 2> /dev/null < "$process/environ" || true
done
docker ps --all --quiet | xargs docker inspect | in_stream "docker inspect" "$1.env"
docker images --quiet | sort -u | xargs --max-args=1 docker history --no-trunc | in_stream "docker history" "$1"
grep --recursive --text --files-with-matches --fixed-strings --file "$1.env" /var/lib/docker/containers || true
rm "$1.env"
