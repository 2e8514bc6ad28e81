#!/bin/sh
# Brings a file to the disk of the gateway's state every second, and then tells its name on the second serial port.
exec > /dev/ttyS1
boot=$(cat /proc/sys/kernel/random/boot_id)
echo "boot $boot"
state=/home/node/.openclaw number=0
while sleep 1; do
  mountpoint --quiet $state || continue
  number=$((number + 1))
  mkdir -p $state/markers
  echo kept > "$state/markers/$boot.$number"
  sync "$state/markers/$boot.$number" $state/markers && echo "marker $boot.$number"
done
