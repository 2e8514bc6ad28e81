#!/bin/sh
# Runs that change nothing, by turns with and without 200,000 files in the state directory; each run's milliseconds.
cd /mnt/disks/openclaw-data || exit
mkdir aside && (cd aside && seq 200000 | xargs touch) && chown 1000:1000 aside
for _ in $(seq 15); do
  for at in aside openclaw/aside; do
    [ -d "$at" ] || mv "$(ls -d aside openclaw/aside 2> /dev/null)" "$at"
    start=$(date +%s%N)
    if ! openclaw-init boot --foreground > /tmp/run 2>&1 || ! grep -q changes=0 /tmp/run; then
      cat /tmp/run
      exit 1
    fi
    echo "$at $((($(date +%s%N) - start) / 1000000))"
  done
done
