//! A baked and sealed boot disk, made inside a machine as Packer's provisioners do it.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cloud::network::STORAGE;
use crate::host;
use crate::product::BINARY;
use crate::state::Lab;

/// Bakes and seals the machine of `lab`, which runs.
pub fn bake_and_seal(lab: &Lab) -> Result<()> {
    inside(lab, &recipe()).context("baking the image")
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
    let mut command = Command::new(host::own_program());
    command.args(["exec", "--name", lab.name(), "--", "sh", "-c", script]).stdin(Stdio::null());
    let status = command.status().context("entering the machine")?;
    ensure!(status.success(), "the script ended with {status}");
    Ok(())
}
