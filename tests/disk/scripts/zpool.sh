#!/bin/sh
# Makes the file $1 a pool of ZFS. zfs-fuse is ZFS in user space: the kernel needs no driver. Run in a mount namespace
# of its own.
set -eu
mount -t tmpfs tmpfs /run
mkdir /run/lock
zfs-fuse --no-daemon &
daemon=$!
trap 'kill "$daemon"; wait "$daemon" || true' EXIT
for _ in $(seq 100); do
  [ -S /run/zfs/zfs_socket ] && break
  sleep 0.1
done
zpool create -f -m none -o cachefile=none tank "$1"
zpool export tank
