#!/bin/sh
# The same with this program, fetched from $1.
set -e
curl -fsS -o /root/openclaw-init "$1"
chmod 0755 /root/openclaw-init
/root/openclaw-init
