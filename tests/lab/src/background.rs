//! This program's own hidden commands, running on after the command that started them.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::host;
use crate::state::Lab;

/// Starts a hidden command for the lab in a session of its own; its output goes to a log of the command's name.
pub fn start(lab: &Lab, command: &str, arguments: &[&str]) -> Result<Child> {
    let log = append(&lab.path(&format!("{command}.log")))?;
    let errors = log.try_clone().context("sharing a log")?;
    let mut child = Command::new("setsid");
    child.arg(host::own_program()).args([command, "--name", lab.name()]).args(arguments);
    child.stdin(Stdio::null()).stdout(log).stderr(errors).current_dir("/");
    child.spawn().with_context(|| format!("starting `lab {command}`"))
}

/// Opens a log to be continued.
pub fn append(file: &Path) -> Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(file);
    opened.with_context(|| format!("opening {}", file.display()))
}
