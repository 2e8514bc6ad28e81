//! Where one lab keeps its files, and what is remembered about it between two commands.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::size::Size;
use crate::sources::Suite;

/// One named lab: a cloud and a machine. Everything that belongs to it lies below one directory or carries its name.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
    directory: PathBuf,
}

impl Lab {
    /// The lab called `name`, whether it exists or not, below `$OPENCLAW_LAB_STATE`, else `/var/lib/openclaw-lab`.
    ///
    /// The name also becomes the instance's name, so the rule for those holds (the REST reference of `instances`):
    /// a letter, then letters, digits and dashes; here at most 30. It may not end in `-cloud`, which would be
    /// another lab's cloud.
    pub fn named(name: &str) -> Result<Self> {
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
        ensure!(
            plain && starts && name.len() <= 30 && !name.ends_with('-') && !name.ends_with("-cloud"),
            "`{name}` cannot name a lab: lower-case letters, digits and dashes, at most 30, not ending in `-cloud`"
        );
        let state = env::var_os("OPENCLAW_LAB_STATE").map_or_else(|| "/var/lib/openclaw-lab".into(), PathBuf::from);
        Ok(Self { name: name.to_owned(), directory: state.join(name) })
    }

    /// Makes the directory of a new lab; refused when the lab exists.
    pub fn create(&self) -> Result<()> {
        if self.exists() {
            bail!("lab `{0}` exists; `cargo lab down --name {0}` removes it", self.name);
        }
        for directory in [self.files(), self.device_links(), self.root(), self.path("run")] {
            fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        Ok(())
    }

    /// Whether its directory exists.
    pub fn exists(&self) -> bool {
        self.directory.exists()
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file of the lab.
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// Name of the machine's network namespace, of its control groups and of the machine itself.
    pub fn machine(&self) -> String {
        format!("ocl-{}", self.name)
    }

    /// Name of the cloud's network namespace.
    pub fn cloud(&self) -> String {
        format!("ocl-{}-cloud", self.name)
    }

    /// Where the boot disk is mounted, in the private mount namespace of the machine's supervisor only.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The file that holds the boot disk.
    pub fn boot_disk(&self) -> PathBuf {
        self.path("boot.img")
    }

    /// The metadata server's control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.path("run/control.sock")
    }

    /// What the machine wrote to its console since `up`, all boots.
    pub fn console(&self) -> PathBuf {
        self.path("console.log")
    }

    /// What the cloud's web server hands out, the carrier's binary among it.
    pub fn files(&self) -> PathBuf {
        self.path("files")
    }

    /// What Secret Manager has.
    pub fn secrets(&self) -> PathBuf {
        self.path("secrets")
    }

    /// Logs and settings of the registry and of Docker's package repository.
    pub fn content(&self) -> PathBuf {
        self.path("content")
    }

    /// Becomes `/dev/disk` in the machine.
    pub fn device_links(&self) -> PathBuf {
        self.path("disk")
    }

    /// Where the long-lived process called `what` is remembered.
    pub fn process_file(&self, what: &str) -> PathBuf {
        self.path("run").join(format!("{what}.pid"))
    }

    /// Remembers the machine's description.
    pub fn save(&self, spec: &Spec) -> Result<()> {
        let file = self.path("spec.json");
        let text = serde_json::to_vec_pretty(spec).context("writing the lab's description as JSON")?;
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// Reads it back; an error names the lab that is not there.
    pub fn load(&self) -> Result<Spec> {
        let file = self.path("spec.json");
        let text =
            fs::read(&file).with_context(|| format!("there is no lab `{}` (`cargo lab up` makes one)", self.name))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", file.display()))
    }
}

/// What the machine is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Operating system on the boot disk.
    pub os: Os,
    /// Limit of the machine's memory; none: all that the development machine has.
    pub memory: Option<Size>,
    /// Data disks in the order of their attachment.
    pub disks: Vec<AttachedDisk>,
}

/// A data disk of the machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttachedDisk {
    /// Device name as in `gcloud compute instances create --disk=device-name=…`.
    pub device_name: String,
    /// The file that holds its content.
    pub file: PathBuf,
    /// Attached read-only.
    pub read_only: bool,
}

/// The operating systems that a machine can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Os {
    /// Debian 12.
    #[value(name = "debian-12")]
    #[serde(rename = "debian-12")]
    Debian12,
    /// Debian 13.
    #[value(name = "debian-13")]
    #[serde(rename = "debian-13")]
    Debian13,
}

impl Os {
    /// The release as package sources name it.
    pub fn suite(self) -> Suite {
        match self {
            Self::Debian12 => Suite::Bookworm,
            Self::Debian13 => Suite::Trixie,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_instance_names_name_a_lab() {
        for name in ["lab", "a", "two-disks-1"] {
            assert!(Lab::named(name).is_ok(), "{name}");
        }
        for name in ["", "1a", "Lab", "a/b", "..", "a-", "x-cloud", "a23456789012345678901234567890x"] {
            assert!(Lab::named(name).is_err(), "{name}");
        }
    }
}
