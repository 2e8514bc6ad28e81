//! What an operator asked for by hand, carried from the command line to the one place that does the work.
//!
//! The command may end with its terminal, an update must not: so the command leaves its wish in a file of this
//! boot, starts the unit and follows it, like a carrier.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::carrier::{self, Followed};
use crate::host::{Access, Host};
use crate::report::RUN_DIR;
use crate::units::BOOT_UNIT;
use crate::{bootstrap, systemd};

/// The file in [`RUN_DIR`].
const FILE: &str = "request.json";

/// What `openclaw-init update` and `openclaw-init rollback` ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Another version, with a way back.
    Update {
        /// The version; `None`: what the attributes ask for, else the program's default.
        to: Option<String>,
    },
    /// The version before, with the state that it had.
    Rollback {
        /// The operator knows that what was written since then goes out of use.
        set_newer_state_aside: bool,
    },
}

impl Request {
    /// Takes the request that waits for this run, if there is one. It is carried out once, whatever becomes of it.
    pub(crate) async fn take(host: &Host) -> Result<Option<Self>> {
        let path = format!("{RUN_DIR}/{FILE}");
        let Some(bytes) = host.read(&path).await? else { return Ok(None) };
        tokio::fs::remove_file(host.path(&path)).await.with_context(|| format!("taking the request {path}"))?;
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading the request {path}"))
    }

    /// Has the unit carry it out, once the run in progress has ended, and follows it to the result.
    pub async fn carry_out(&self, host: &Host) -> Result<Followed> {
        {
            let _no_run = bootstrap::only_run(host).await?;
            let path = format!("{RUN_DIR}/{FILE}");
            let bytes = serde_json::to_vec(self).context("writing the request as JSON")?;
            host.ensure_file(path, bytes, Access::root(0o600)).await?;
        }
        systemd::restart_without_waiting(host, BOOT_UNIT).await?;
        carrier::follow(host).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_taken_once() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        assert_eq!(Request::take(&host).await?, None);
        std::fs::create_dir_all(host.path(RUN_DIR))?;
        let request = Request::Update { to: Some("2026.9.6".into()) };
        std::fs::write(host.path(RUN_DIR).join(FILE), serde_json::to_vec(&request)?)?;
        assert_eq!(Request::take(&host).await?, Some(request));
        assert_eq!(Request::take(&host).await?, None);
        Ok(())
    }
}
