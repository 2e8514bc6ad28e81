//! The boot disk of a new machine: a root file system, and what the machine's way in needs there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::qemu::image;
use super::rootfs::{self, Flavour};
use super::{cloud_init, control_group, nspawn};
use crate::cache::Cache;
use crate::cloud::content::Content;
use crate::files::put;
use crate::host;
use crate::product::{BINARY, DOCKER_KEY, INSTALLED};
use crate::program::run;
use crate::size::Size;
use crate::sources::Sources;
use crate::state::{Lab, Os, Spec};

/// How the binary gets to run in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Boot {
    /// `startup-script-url` names the binary itself
    ScriptUrl,
    /// `startup-script` is the loader, which fetches it from Cloud Storage
    Script,
    /// `user-data` has the loader, for an image with cloud-init
    CloudInit,
    /// It is installed on the boot disk, nothing in the metadata
    Unit,
    /// It is part of a baked and sealed image, made first; the machine has no way to the internet
    Baked,
    /// It does not
    Nothing,
    /// It does not, and the boot disk has a kernel, a boot loader and an SSH server: for machines in QEMU
    #[value(hide = true)]
    Bootable,
}

/// Makes a boot disk that was never booted, in the directory of a new lab.
pub fn make_unbooted(lab: &Lab, os: Os, boot: Boot, size: Size) -> Result<()> {
    lab.create()?;
    lab.save(&Spec { os, memory: None, disks: Vec::new() })?;
    make(lab, os, boot, size)
}

/// Makes the boot disk of `lab`, with what the way in `boot` needs on it.
pub fn make(lab: &Lab, os: Os, boot: Boot, size: Size) -> Result<()> {
    let flavour = match boot {
        Boot::CloudInit => Flavour::CloudInit,
        Boot::Bootable => Flavour::Bootable,
        _ => Flavour::Bare,
    };
    let archive = rootfs::archive(&Cache::from_env()?, &Sources::of_this_machine()?, os.suite(), flavour)?;
    rootfs::format(&lab.boot_disk(), size)?;
    prepare(lab, &archive, boot)
}

/// Fills the boot disk, in a process with mounts of its own.
fn prepare(lab: &Lab, archive: &Path, boot: Boot) -> Result<()> {
    let mut command = Command::new(host::own_program());
    command.args(["prepare", "--name", lab.name()]).arg("--archive").arg(archive);
    let boot = boot.to_possible_value().context("a hidden way in")?;
    run(command.args(["--boot", boot.get_name()])).map(drop)
}

/// The hidden command behind it: mounts the boot disk and fills it with what the way in expects there.
pub fn fill(lab: &Lab, archive: &Path, boot: Boot) -> Result<()> {
    nspawn::leave_mounts()?;
    control_group::enter(lab, None)?;
    nspawn::mount_root(lab)?;
    let sources = Sources::of_this_machine()?;
    let content = Content::prepare(&Cache::from_env()?)?;
    let authority = ("openclaw-lab.crt".to_owned(), content.ca_pem().to_owned());
    let certificates: Vec<_> = sources.certificates().iter().cloned().chain([authority]).collect();
    rootfs::populate(lab, archive, &sources, &certificates)?;
    put(&lab.root(), DOCKER_KEY, &format!("{}\n", content.docker_key_fingerprint()))?;
    let root = lab.root();
    match boot {
        Boot::ScriptUrl | Boot::Script | Boot::Baked | Boot::Nothing => Ok(()),
        Boot::CloudInit => cloud_init::configure(&root),
        Boot::Bootable => image::configure(&root),
        Boot::Unit => {
            fs::copy(lab.files().join(BINARY), root.join(INSTALLED)).context("copying the binary to the boot disk")?;
            let install = [&format!("/{INSTALLED}"), "install"];
            rootfs::run_inside(&root, &install).context("installing the product's units").map(drop)
        }
    }
}
