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

/// The packages that such a root file system has in addition to cloud-init's.
pub const PACKAGES: [&str; 5] =
    ["linux-image-cloud-amd64", "initramfs-tools", "openssh-server", "qemu-guest-agent", "zstd"];

/// The network card is QEMU's; a machine that shares this machine's kernel finds its own set up.
const NETWORK: &str =
    "[Match]\nDriver=virtio_net\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n[DHCPv4]\nUseDNS=no\nUseHostname=no\n";

/// What the lab has set up itself stays as it is.
const CLOUD_INIT: &str =
    "network: {config: disabled}\napt: {preserve_sources_list: true}\nmanage_etc_hosts: false\nlocale: C.UTF-8\n";

/// Makes the mounted boot disk bootable. It is a file system without a partition table.
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
const MARKERS: &str = include_str!("../../../scripts/qemu/lab-markers.sh");
const MARKERS_UNIT: &str = include_str!("../../../scripts/qemu/lab-markers.service");
const MAKE_IMAGE: &str = include_str!("../../../scripts/qemu/make-image.sh");

/// The command that makes a machine that was started with `Boot::Bootable` a sealed image with the fake gateway.
pub fn recipe() -> Vec<String> {
    let address = format!("http://{STORAGE}");
    let arguments = [address.as_str(), BINARY, FIRST, MARKERS, MARKERS_UNIT];
    ["sh", "-c", MAKE_IMAGE, "make-image"].into_iter().chain(arguments).map(str::to_owned).collect()
}
