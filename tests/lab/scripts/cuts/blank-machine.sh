#!/bin/sh
# Takes everything away that the product made, but not Docker; the disk is blank afterwards.
set -e
openclaw-init uninstall 2>&1
docker image ls --quiet | xargs -r docker image rm --force
rm -rf /var/lib/openclaw-init
blkdiscard --force /dev/disk/by-id/google-openclaw-data 2>&1
