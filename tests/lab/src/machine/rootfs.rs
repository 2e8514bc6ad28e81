//! The boot disk: a bare Debian as Compute Engine's image has it, no Docker, nothing of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::qemu::image;
use super::{cloud_init, disks};
use crate::cache::Cache;
use crate::cloud::network::METADATA;
use crate::files::put;
use crate::program::run;
use crate::size::Size;
use crate::sources::{Sources, Suite};
use crate::state::Lab;

/// What Compute Engine's Debian images contain of the things that matter here. `nftables` is in them by its
/// priority (important), `iptables` is not.
const PACKAGES: [&str; 13] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "ca-certificates",
    "iproute2",
    "nftables",
    "curl",
    "e2fsprogs",
    "procps",
    "kmod",
    "gnupg",
    "google-guest-agent",
];

/// What a root file system is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// A machine without anything more.
    Bare,
    /// One with cloud-init.
    CloudInit,
    /// One in QEMU, or for Packer: with cloud-init and what a machine with its own kernel has.
    Bootable,
    /// None of a machine: the system that a user's browser runs in.
    Workstation,
}

impl Flavour {
    /// The end of the archive's name, and its packages in addition to [`PACKAGES`].
    fn contents(self) -> (&'static str, Vec<&'static str>) {
        match self {
            Self::Bare => ("", Vec::new()),
            Self::CloudInit => ("-cloud-init", cloud_init::PACKAGES.to_vec()),
            Self::Workstation => ("-workstation", vec!["chromium", "chromium-driver", "jq", "libnss3-tools"]),
            Self::Bootable => ("-bootable", [&cloud_init::PACKAGES[..], &image::PACKAGES].concat()),
        }
    }
}

/// The archive of a root file system, from the cache or made now (20 s to 2 min).
pub fn archive(cache: &Cache, sources: &Sources, suite: Suite, flavour: Flavour) -> Result<PathBuf> {
    let (suffix, more) = flavour.contents();
    let (list, packages) = (sources.list(suite), [&PACKAGES, &more[..]].concat().join(","));
    let name = format!("debian-{}{suffix}", suite.number());
    let entry = cache.entry(&name, &["1", &list, sources.settings(), &packages], |directory| {
        let (lists, settings) = (directory.join("sources.list"), directory.join("apt.conf"));
        fs::write(&lists, &list).with_context(|| format!("writing {}", lists.display()))?;
        fs::write(&settings, sources.settings()).with_context(|| format!("writing {}", settings.display()))?;
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--variant=minbase"]).arg(format!("--include={packages}"));
        command.arg(format!("--aptopt={}", settings.display()));
        command.arg(suite.codename()).arg(directory.join("root.tar")).arg(&lists);
        run(&mut command).map(drop)
    });
    Ok(entry?.join("root.tar"))
}

/// Makes the boot disk: an ext4 file system of `size` in `disk`, sparse.
pub fn format(disk: &Path, size: Size) -> Result<()> {
    disks::create(disk, size)?;
    run(Command::new("mkfs.ext4").args(["-q", "-L", "boot"]).arg(disk)).map(drop)
}

/// Fills the mounted boot disk from the archive and makes it this machine's own.
///
/// `certificates` go to its trust store: file name (`….crt`) and PEM text.
pub fn populate(lab: &Lab, archive: &Path, sources: &Sources, certificates: &[(String, String)]) -> Result<()> {
    let root = &lab.root();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"]).arg(archive);
    run(tar.arg("--directory").arg(root)).context("unpacking the root file system")?;
    let name = lab.name();
    put(root, "etc/machine-id", "")?;
    put(root, "etc/hostname", &format!("{name}\n"))?;
    put(
        root,
        "etc/hosts",
        &format!("127.0.0.1 localhost\n127.0.1.1 {name}\n{METADATA} metadata.google.internal metadata\n"),
    )?;
    put(root, "etc/resolv.conf", &format!("nameserver {METADATA}\n"))?;
    put(root, "etc/apt/apt.conf.d/90lab", sources.settings())?;
    trust(root, certificates).context("adding certificates to the machine's trust store")
}

/// Runs a program in the root file system of a machine that does not run.
pub fn run_inside(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("systemd-nspawn");
    command.args(["--quiet", "--pipe", "--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off"]);
    command.arg("--directory").arg(root);
    run(command.arg("--").args(arguments))
}

/// Adds what the development machine trusts beyond a bare Debian, and the lab's own authorities.
fn trust(root: &Path, certificates: &[(String, String)]) -> Result<()> {
    let directory = root.join("usr/local/share/ca-certificates");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    for (name, pem) in certificates {
        let file = directory.join(name);
        fs::write(&file, pem).with_context(|| format!("writing {}", file.display()))?;
    }
    run_inside(root, &["update-ca-certificates"]).map(drop)
}
