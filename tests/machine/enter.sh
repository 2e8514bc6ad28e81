#!/bin/sh
# Makes the directory $1 the root and runs the program $2 there, with the arguments $3: with this machine's programs,
# which nothing here can change, and the fakes before them. $4 is what else is done to the machine.
set -e
cd "$1"
mount --bind "$2" openclaw-init
for directory in usr proc dev; do mount --rbind /$directory $directory; done
mount -o remount,bind,ro usr
for directory in bin sbin lib lib64; do
  if [ -L /$directory ]; then
    ln -sfn usr/$directory $directory
  elif [ -d /$directory ]; then
    mkdir -p $directory
    mount --rbind /$directory $directory
  fi
done
mount --bind programs usr/local/sbin
eval "${4:-}"
# shellcheck disable=SC2086 # These are several arguments, or none.
exec chroot . /openclaw-init $3
