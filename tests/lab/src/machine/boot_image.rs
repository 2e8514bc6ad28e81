//! A baked and sealed boot disk, made inside a machine as Packer's provisioners do it.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cloud::network::STORAGE;
use crate::host;
use crate::product::BINARY;
use crate::state::Lab;

const BAKE_AND_SEAL: &str = include_str!("../../scripts/machine/bake-and-seal.sh");

/// Bakes and seals the machine of `lab`, which runs.
pub fn bake_and_seal(lab: &Lab) -> Result<()> {
    let mut command = Command::new(host::own_program());
    command.args(["exec", "--name", lab.name(), "--", "sh", "-c", BAKE_AND_SEAL, "bake-and-seal"]);
    command.arg(format!("http://{STORAGE}")).arg(BINARY).stdin(Stdio::null());
    let status = command.status().context("entering the machine to bake the image")?;
    ensure!(status.success(), "baking the image ended with {status}");
    Ok(())
}
