//! What an operator asked for by hand, carried from the command line to the one place that does the work.
//!
//! A command may end with its terminal, a run must not. So the command leaves its request in a file of this boot,
//! starts the unit and follows it, like a launcher.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::host::{Access, Host};
use crate::lock::RunLock;
use crate::paths::{LOCK, REQUEST};
use crate::version::VersionChoice;

/// What `sudo openclaw-init boot`, `update` and `rollback` ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Another run, as at every boot.
    Boot,
    /// The same; the watcher has seen why.
    Repair {
        /// For the report.
        reason: String,
    },
    /// Another version, with a way back.
    Update {
        /// The version; `None`: what the attributes ask for, else the program's default.
        to: Option<VersionChoice>,
    },
    /// The version before, with the state that it had.
    Rollback {
        /// The operator knows that what was written since then goes out of use.
        set_newer_state_aside: bool,
    },
}

impl Request {
    /// Takes the request that waits for this run, if there is one. It is carried out at most once.
    pub(crate) async fn take(host: &Host) -> Result<Option<Self>> {
        let Some(bytes) = host.read(REQUEST).await? else { return Ok(None) };
        tokio::fs::remove_file(host.path(REQUEST)).await.with_context(|| format!("taking the request {REQUEST}"))?;
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading the request {REQUEST}"))
    }

    /// Leaves it for the next run, unless something else waits for that one, too. False while a run is in progress.
    pub(crate) async fn leave_if_idle(&self, host: &Host) -> Result<bool> {
        let Some(_lock) = RunLock::try_acquire(&host.path(LOCK))? else { return Ok(false) };
        // Whoever left it may have been cut before the start of the run.
        if host.read(REQUEST).await?.is_none() {
            self.write(host).await?;
        }
        Ok(true)
    }

    /// Leaves it for the next run, after the run in progress has ended.
    pub(crate) async fn leave(&self, host: &Host) -> Result<()> {
        let _lock = RunLock::acquire(&host.path(LOCK)).await?;
        self.write(host).await
    }

    async fn write(&self, host: &Host) -> Result<()> {
        let bytes = serde_json::to_vec(self).context("writing the request as JSON")?;
        host.ensure_file(REQUEST, bytes, Access::root(0o600)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::PRIVATE_RUN_DIR;

    #[tokio::test]
    async fn a_request_is_taken_once() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        assert_eq!(Request::take(&host).await?, None);
        std::fs::create_dir_all(host.path(PRIVATE_RUN_DIR))?;
        for request in [Request::Boot, Request::Update { to: Some(VersionChoice::Exact("2026.9.6".into())) }] {
            std::fs::write(host.path(REQUEST), serde_json::to_vec(&request)?)?;
            assert_eq!(Request::take(&host).await?, Some(request));
            assert_eq!(Request::take(&host).await?, None);
        }
        Ok(())
    }

    #[tokio::test]
    async fn what_waits_already_is_not_replaced_and_its_run_may_be_started() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(host.path(PRIVATE_RUN_DIR))?;
        let (boot, repair) = (Request::Boot, Request::Repair { reason: "it is gone".into() });
        for (left, expected) in [(&boot, &boot), (&repair, &boot)] {
            assert!(left.leave_if_idle(&host).await?);
            let waits = host.read(REQUEST).await?.unwrap_or_default();
            assert_eq!(serde_json::from_slice::<Request>(&waits)?, *expected);
        }
        let run = RunLock::acquire(&host.path(LOCK)).await?;
        assert!(!repair.leave_if_idle(&host).await?);
        drop(run);
        Ok(())
    }
}
