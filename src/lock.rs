//! One run at a time, whoever starts it, and only as root.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Classify as _, Code};

/// Proof that this process is the one run at work. Every function that writes a record takes it as an argument.
#[derive(Debug)]
pub struct RunLock {
    _file: Option<Flock<File>>,
}

impl RunLock {
    /// Takes the lock at `path`, waiting for the run in progress. Its directory is made if need be.
    ///
    /// Fails with [`Code::UnsupportedSystem`] for a user other than root.
    pub async fn acquire(path: &Path) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(anyhow!("this user is not root"))
                .classify(Code::UnsupportedSystem, "Run the same command as root, with sudo.");
        }
        let directory = path.parent().context("the lock has no directory")?;
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let file = File::create(path).with_context(|| format!("opening {}", path.display()))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(Self { _file: Some(held) }),
            Err((file, _)) => file,
        };
        tracing::info!("another run is in progress (openclaw-init status --wait follows it), waiting for its end");
        let held = tokio::task::spawn_blocking(|| Flock::lock(file, FlockArg::LockExclusive)).await?;
        held.map(|held| Self { _file: Some(held) }).map_err(|(_, errno)| errno).context("waiting for the other run")
    }

    /// For tests, whose machine is a directory of their own.
    #[cfg(test)]
    pub(crate) fn of_a_test() -> Self {
        Self { _file: None }
    }
}
