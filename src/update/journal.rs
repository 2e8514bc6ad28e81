//! The durable journal of an update under way, `update.json` beside the record: it tells a run that finds it
//! what is only half done.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::disk::DataDir;
use crate::failure::{Blame as _, Code};
use crate::host::{Access, Host, sync_dir};
use crate::record::Copy;

/// How far the update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// The copy is being made; the present version owns the state.
    Copying,
    /// The copy is exact; from now on the new version may change the state.
    Starting,
}

/// One update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Journal {
    pub(super) phase: Phase,
    /// The version that owns the state before it.
    pub(super) from: Option<String>,
    /// The version that it is about.
    pub(super) to: String,
    /// The attribute's value that led to it; nothing when it was asked for by hand.
    pub(super) choice: Option<String>,
    /// Where the state is copied to.
    pub(super) copy: Copy,
    /// An older copy, which is removed once this update has succeeded.
    pub(super) superseded: Option<Copy>,
    /// When it began.
    pub(super) since: jiff::Timestamp,
}

impl Journal {
    /// What an earlier run left, if it was cut.
    pub(super) async fn read(host: &Host, data: &DataDir) -> Result<Option<Self>> {
        let path = path(data);
        let Some(bytes) = host.read(&path).await? else { return Ok(None) };
        let shown = path.display();
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading {shown}")).blame(
            Code::DiskDamaged,
            format!(
                "An update was under way and nothing tells how far it came. See which of the directories beside it is \
                 the wanted state, give it the name openclaw, remove {shown} and run `openclaw-init boot`."
            ),
        )
    }

    /// Makes it durable.
    pub(super) async fn write(&self, host: &Host, data: &DataDir) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).context("writing the journal as JSON")?;
        host.ensure_file(path(data), bytes, Access::root(0o600)).await.map(drop)
    }

    /// Makes its end durable.
    pub(super) async fn forget(host: &Host, data: &DataDir) -> Result<()> {
        host.remove_file(path(data)).await?;
        let records = host.path(&data.records);
        tokio::task::spawn_blocking(move || sync_dir(&records)).await?
    }
}

fn path(data: &DataDir) -> PathBuf {
    data.records.join("update.json")
}
