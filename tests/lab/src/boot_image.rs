//! A boot disk from a baked image: made on a machine of its own, as Packer does it, then given to a new one.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cli::{Boot, DataDisk, Up};
use crate::network::STORAGE;
use crate::state::Lab;
use crate::up::{self, BINARY, Keep};

/// Bakes and seals on a builder machine beside `lab`, with the same system and binary; the boot disk that the
/// builder leaves becomes that of `lab`.
pub fn make(lab: &Lab, options: &Up, binary: &Path) -> Result<()> {
    let builder = Lab::named(&format!("{}-image", lab.name()))?;
    up::up(&builder_options(&builder, options, binary))?;
    let baked = inside(&builder, &recipe()).context("baking the image");
    let keep = Keep { data_disk: None, boot_disk: baked.is_ok().then(|| lab.boot_disk()) };
    up::down(&builder, &keep).context("removing the machine that made the image")?;
    baked
}

/// A machine that nothing starts the product on, and without a data disk.
fn builder_options(builder: &Lab, options: &Up, binary: &Path) -> Up {
    let mut up = Up {
        boot: if options.cloud_init { Boot::CloudInit } else { Boot::Nothing },
        attributes: Vec::new(),
        only_attr: true,
        project_attributes: Vec::new(),
        disk: DataDisk::None,
        binary: Some(binary.to_owned()),
        faults: Vec::new(),
        ..options.clone()
    };
    builder.name().clone_into(&mut up.lab.name);
    up
}

/// What Packer's provisioners do. A machine is baked when it has come up, not while it does.
fn recipe() -> String {
    format!(
        "for try in $(seq 300); do systemctl --quiet is-active multi-user.target && break; sleep 0.2; done 2> /dev/null
         if command -v cloud-init > /dev/null; then cloud-init status --wait > /dev/null || true; fi
         set -eu
         curl --fail --silent --show-error --output /tmp/{BINARY} http://{STORAGE}/{BINARY}
         chmod 0755 /tmp/{BINARY}
         /tmp/{BINARY} bake
         {BINARY} seal"
    )
}

/// Runs a shell script inside a machine, its output to ours.
fn inside(lab: &Lab, script: &str) -> Result<()> {
    let me = std::env::current_exe().context("finding this program's own file")?;
    let mut command = Command::new(me);
    command.args(["exec", "--name", lab.name(), "--", "sh", "-c", script]).stdin(Stdio::null());
    let status = command.status().context("entering the machine")?;
    ensure!(status.success(), "the script ended with {status}");
    Ok(())
}
