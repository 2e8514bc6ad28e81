#!/bin/sh
# Makes the file $1 a physical volume with $2 copies of the metadata of its volume group. LVM sees no other device, and
# needs no daemon and no device mapper for it. Run in a mount namespace of its own.
set -eu
mount -t tmpfs tmpfs /run
node=$(losetup --find --show "$1")
trap 'losetup --detach "$node"' EXIT
config="devices { filter=[\"a|^$node\$|\", \"r|.*|\"] use_devicesfile=0 obtain_device_list_from_udev=0 }
backup { backup=0 archive=0 }"
pvcreate --quiet --config "$config" --yes --pvmetadatacopies "$2" "$node"
vgcreate --quiet --config "$config" --yes group "$node"
sync "$node"
