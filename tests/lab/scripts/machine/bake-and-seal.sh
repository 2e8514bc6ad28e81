#!/bin/sh
# What Packer's provisioners do, with the program at the URL $1/$2. A machine is baked when it has come up, not while it
# does.
for _ in $(seq 300); do systemctl --quiet is-active multi-user.target && break; sleep 0.2; done 2> /dev/null
if command -v cloud-init > /dev/null; then cloud-init status --wait > /dev/null || true; fi
set -eu
curl --fail --silent --show-error --output "/tmp/$2" "$1/$2"
chmod 0755 "/tmp/$2"
"/tmp/$2" bake
"$2" seal
