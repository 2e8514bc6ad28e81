#!/bin/sh
# The schema of the fake gateway's state, the product's record of it, and the names of half-done changes.
cd /mnt/disks/openclaw-data || exit
cat openclaw/state/fake-gateway.json openclaw-init/record.json
ls openclaw-init/operation.json 2> /dev/null || true
