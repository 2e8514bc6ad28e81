//! Boot disks for machines in QEMU: a Debian with kernel and boot loader, and the baked image of one.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cloud::fake_gateway::FIRST;
use crate::cloud::network::STORAGE;
use crate::files::put;
use crate::product::BINARY;
use crate::program::run;

/// What such a root file system has beside the one with cloud-init.
pub const PACKAGES: [&str; 5] =
    ["linux-image-cloud-amd64", "initramfs-tools", "openssh-server", "qemu-guest-agent", "zstd"];

/// The network card is QEMU's; a machine that shares this machine's kernel finds its own set up.
const NETWORK: &str =
    "[Match]\nDriver=virtio_net\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n[DHCPv4]\nUseDNS=no\nUseHostname=no\n";

/// What the lab has set up itself stays as it is.
const CLOUD_INIT: &str =
    "network: {config: disabled}\napt: {preserve_sources_list: true}\nmanage_etc_hosts: false\nlocale: C.UTF-8\n";

/// Makes the mounted boot disk, a file system without a partition table, start by itself.
pub fn configure(root: &Path) -> Result<()> {
    put(root, "etc/systemd/network/80-qemu.network", NETWORK)?;
    put(root, "etc/cloud/cloud.cfg.d/95-lab.cfg", CLOUD_INIT)?;
    let wanted = root.join("etc/systemd/system/multi-user.target.wants/systemd-networkd.service");
    if !wanted.is_symlink() {
        std::os::unix::fs::symlink("/usr/lib/systemd/system/systemd-networkd.service", &wanted)
            .with_context(|| format!("linking {}", wanted.display()))?;
    }
    let names: Vec<String> = fs::read_dir(root.join("boot"))
        .context("listing /boot")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let find =
        |prefix: &str| names.iter().find(|name| name.starts_with(prefix)).with_context(|| format!("no {prefix}"));
    let (kernel, initrd) = (find("vmlinuz-")?, find("initrd.img-")?);
    let menu = format!(
        "DEFAULT debian\nLABEL debian\nLINUX /boot/{kernel}\nINITRD /boot/{initrd}\n\
         APPEND root=LABEL=boot rw console=ttyS0,115200\n"
    );
    put(root, "boot/extlinux/extlinux.conf", &menu)?;
    let loader = root.join("boot/extlinux");
    run(Command::new("extlinux").arg("--install").arg(&loader)).context("installing the boot loader").map(drop)
}

/// Runs at every boot; see [`second_port`](super::vm::second_port).
const MARKERS: &str = "\
#!/bin/sh
# Brings a file to the disk of the gateway's state every second, and then tells its name on the second serial port.
exec > /dev/ttyS1
boot=$(cat /proc/sys/kernel/random/boot_id)
echo \"boot $boot\"
state=/home/node/.openclaw number=0
while sleep 1; do
  mountpoint --quiet $state || continue
  number=$((number + 1))
  mkdir -p $state/markers
  echo kept > $state/markers/$boot.$number
  sync $state/markers/$boot.$number $state/markers && echo \"marker $boot.$number\"
done
";
const MARKERS_UNIT: &str = "\
[Unit]
Description=Files that a power cut must not take away

[Service]
ExecStart=/usr/local/sbin/lab-markers

[Install]
WantedBy=sysinit.target
";

/// Turns a machine that was started with `Boot::Bootable` into a sealed image with the fake gateway:
/// what is run in it by a shell. Services that are of no use in QEMU only cost time there.
pub fn recipe() -> String {
    format!(
        "for try in $(seq 300); do systemctl --quiet is-active multi-user.target && break; sleep 0.2; done 2> /dev/null
         set -eu
         cat > /usr/local/sbin/lab-markers <<'END'
{MARKERS}END
         cat > /etc/systemd/system/lab-markers.service <<'END'
{MARKERS_UNIT}END
         chmod 0755 /usr/local/sbin/lab-markers
         systemctl --quiet enable lab-markers.service
         systemctl --quiet disable ssh.service
         touch /etc/cloud/cloud-init.disabled
         curl --fail --silent --show-error --output /tmp/{BINARY} http://{STORAGE}/{BINARY}
         chmod 0755 /tmp/{BINARY}
         /tmp/{BINARY} bake --version {FIRST}
         rm /tmp/{BINARY}
         {BINARY} seal"
    )
}
