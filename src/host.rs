//! The machine as the stages see it: files below a root, programs on a fixed path, and a ledger of what changed.
//!
//! Only [`command`] starts programs. Every change that a stage makes goes through here or is noted with
//! [`Host::changed`], so "the second run changes nothing" is one number.

mod command;
mod files;
pub(crate) mod json_file;
mod ledger;
pub(crate) mod untrusted;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

pub use command::{Command, Endings, Output};
pub use files::{Access, sync_dir};
pub(crate) use files::{if_exists, remove_if_exists, remove_tree_if_exists, set_access, write_in_memory};
pub use ledger::Ledger;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A handle on the machine; clones share the ledger.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    proxy: Vec<(String, String)>,
    ledger: Arc<watch::Sender<Ledger>>,
}

impl Host {
    /// The machine whose file system is below `root` (`/` but in tests).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), proxy: Vec::new(), ledger: Arc::new(watch::Sender::new(Ledger::default())) }
    }

    /// Gives every program these variables, which name the proxy to the internet.
    #[must_use]
    pub fn with_proxy(self, proxy: Vec<(String, String)>) -> Self {
        Self { proxy, ..self }
    }

    /// The variables of [`Host::with_proxy`].
    pub fn proxy(&self) -> &[(String, String)] {
        &self.proxy
    }

    /// Where the absolute `path` lies below this host's root.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The kernel's name for this boot.
    pub async fn boot_id(&self) -> Result<String> {
        let id = self.read(BOOT_ID).await?.with_context(|| format!("there is no {BOOT_ID}"))?;
        Ok(String::from_utf8_lossy(&id).trim().to_owned())
    }
}

/// How long the machine runs, suspended or not: a clock that nobody sets.
pub(crate) fn uptime() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

/// Runs `work`, which waits for the disk, where it does not hold up the other stages.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("waiting for a thread")?
}
