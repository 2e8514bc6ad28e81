//! Restoring: a backup takes the place of the present state, which is put aside and stays.
//!
//! The backup is read as a whole before anything is touched, unpacked beside the present state while the
//! gateway goes on running, and switched to by renames ([`crate::switch`]); then the machine is booted into it
//! as at every boot. A cut leaves the old state or the new one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use jiff::Timestamp;

use crate::backup::{self, Label, Size, Unpacked};
use crate::bootstrap::only_run;
use crate::carrier::{self, Followed};
use crate::cut;
use crate::disk::DataDir;
use crate::docker::Engine;
use crate::failure::{Blame as _, Code};
use crate::gateway::{self, Life};
use crate::host::Host;
use crate::metadata::Client;
use crate::record::Record;
use crate::replica::{self, tree::Dir};
use crate::stage::{Stage, within};
use crate::units::BOOT_UNIT;
use crate::update::version::numbers;
use crate::{bake, disk, docker, switch, systemd, units};

/// How long the metadata server may keep an operator waiting.
const METADATA_DEADLINE: Duration = Duration::from_secs(30);

/// A file takes a block at least.
const BLOCK: u64 = 4096;

/// What `openclaw-init restore` can be told.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// A file that `openclaw-init backup` made
    file: PathBuf,
    /// Also when the present state was used after the backup was made, or belongs to a newer gateway
    #[arg(long)]
    replace_newer: bool,
}

/// Puts the state of a backup in the place of the present one and boots into it; how that went is returned.
///
/// An error before the switch leaves the gateway running on the present state.
pub async fn run(host: &Host, metadata: &Client, options: &Options) -> Result<Followed> {
    {
        let _only_run = only_run(host).await?;
        let doing = || format!("restoring {}", options.file.display());
        within(Stage::Disk, replace(host, metadata, options)).await.with_context(doing)?;
    }
    if systemd::property(host, BOOT_UNIT, "LoadState").await? != "loaded" {
        units::install(host).await?;
    }
    systemd::restart_without_waiting(host, BOOT_UNIT).await?;
    carrier::follow(host).await
}

async fn replace(host: &Host, metadata: &Client, options: &Options) -> Result<()> {
    let file = std::path::absolute(&options.file).context("finding the file")?;
    let (label, size) = backup::verify(host, &file).await.context("reading it, nothing was changed")?;
    let instance = metadata.instance(METADATA_DEADLINE).await.context("asking for the data disk")?;
    let (config, _) = bake::configure(host, &instance.attributes).await?;
    let data = disk::ensure(host, &config.disk, &instance).await?;
    let record = Record::read(host, &data).await?;
    let engine = docker::present(host).await?;
    if record.state_exists && !options.replace_newer {
        let last_used = last_used(host, &data, engine.as_ref()).await?;
        is_not_newer(&record, last_used, &label)?;
    }

    let beside = Unpacked::beside(&data)?;
    beside.discard(host).await?;
    room(host, &data, size).await?;
    let unpacked = backup::unpack(host, &file, &beside).await.context("unpacking it");
    let unpacked = unpacked.and_then(|read| {
        if read == (label.clone(), size) { Ok(()) } else { Err(anyhow!("it was changed while it was read")) }
    });
    if let Err(error) = unpacked {
        beside.discard(host).await?;
        return Err(error);
    }
    host.changed(format!("unpacked the backup of {}", second(label.created)));
    cut::point("restore.unpacked");
    if let Some(engine) = &engine {
        gateway::halt(host, engine).await?;
    }
    let Unpacked { state, config } = beside;
    let prepared = switch::Prepared { state, config: Some(config), record: belongs_to(&label, record) };
    let switched = switch::replace(host, &data, "restore", &prepared).await;
    if switched.is_err() {
        // Nobody else would start the gateway again, on whichever state there is.
        systemd::restart_without_waiting(host, BOOT_UNIT).await?;
    }
    for aside in switched? {
        host.changed(format!("kept what was there before as {}", aside.display()));
    }
    Ok(())
}

/// The record of the restored state: the version and image of the backup, and what this machine last chose, so
/// that the next boot does not take an old choice for a new one.
fn belongs_to(label: &Label, present: Record) -> Record {
    let Record { version, choice, image, .. } = label.record.clone();
    if present.version.is_some() {
        Record { version, image, ..present }
    } else {
        Record { version, choice, image, ..Record::default() }
    }
}

/// Refuses to put a state aside that is newer than the backup.
fn is_not_newer(present: &Record, last_used: Timestamp, backup: &Label) -> Result<()> {
    let version = |record: &Record| record.version.clone().unwrap_or_else(|| "unknown".to_owned());
    let (present, backed_up) = (version(present), version(&backup.record));
    // An unknown version is older than any other.
    let why = if numbers(&backed_up) < numbers(&present) {
        "belongs to a newer gateway"
    } else if last_used > backup.created {
        "was used after the backup was made"
    } else {
        return Ok(());
    };
    Err(anyhow!(
        "the present state {why}: it was last used at {} by OpenClaw {present}, the backup was made at {} of OpenClaw \
         {backed_up}. Nothing was changed; if the backup is wanted all the same, run it again with --replace-newer: \
         the present state is then put aside, not deleted",
        second(last_used),
        second(backup.created),
    ))
}

fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// When the state was last used: now, if its gateway is alive; else when one of the files changed that every
/// gateway writes to. Looks at a few directories, whatever the size of the state.
async fn last_used(host: &Host, data: &DataDir, engine: Option<&Engine>) -> Result<Timestamp> {
    if let Some(engine) = engine
        && gateway::life(engine).await? != Life::Stopped
    {
        return Ok(Timestamp::now());
    }
    let state = host.path(&data.state);
    let newest = tokio::task::spawn_blocking(move || {
        let top = Dir::open(&state)?;
        let databases = Dir::open(&top.at("state")).ok();
        let mut newest = std::time::SystemTime::UNIX_EPOCH;
        for directory in [Some(top), databases].into_iter().flatten() {
            for name in directory.names()? {
                if let Some(found) = directory.look(&name)? {
                    newest = newest.max(found.modified()?);
                }
            }
        }
        anyhow::Ok(newest)
    });
    let newest = newest.await?.with_context(|| format!("finding when {} was last used", data.state.display()))?;
    Ok(Timestamp::try_from(newest)?)
}

async fn room(host: &Host, data: &DataDir, size: Size) -> Result<()> {
    let root = data.root()?;
    let free = replica::free(host, root).await?;
    let needed = size.bytes + size.members * BLOCK;
    if free.bytes > needed && free.inodes > size.members {
        return Ok(());
    }
    Err(anyhow!("{} has {} MiB left, the backup needs {} MiB", root.display(), free.bytes >> 20, needed >> 20))
        .blame(Code::NoSpace, "Enlarge the disk with `gcloud compute disks resize`, run `sudo systemctl restart openclaw-init`, then restore again.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: Option<&str>, choice: Option<&str>) -> Record {
        Record { version: version.map(str::to_owned), choice: choice.map(str::to_owned), ..Record::default() }
    }

    fn backup(version: Option<&str>, created: &str) -> Result<Label> {
        let record = record(version, Some("2026.9.5"));
        let label = serde_json::json!({"format": 1, "created": created, "machine": "m", "how": "stopped", "program": "0", "record": record});
        Ok(serde_json::from_value(label)?)
    }

    #[test]
    fn a_newer_state_is_not_replaced_unasked() -> Result<()> {
        let (early, late) = ("2026-11-23T15:00:00Z", "2026-11-23T16:00:00Z");
        let cases = [
            (Some("2026.9.6"), early, Some("2026.9.6"), late, None),
            (Some("2026.9.6"), late, Some("2026.9.6"), early, Some("was used after")),
            (Some("2026.9.6"), late, Some("2026.9.6"), late, None),
            (Some("2026.9.6"), early, Some("2026.9.5"), late, Some("newer gateway")),
            (Some("2026.10.1"), early, Some("2026.9.5-slim"), late, Some("newer gateway")),
            (Some("2026.9.5"), early, Some("2026.9.6"), late, None),
            (Some("2026.9.6"), early, None, late, Some("newer gateway")),
            (None, early, Some("2026.9.6"), late, None),
        ];
        for (present, used, backed_up, created, why) in cases {
            let judged = is_not_newer(&record(present, None), used.parse()?, &backup(backed_up, created)?);
            let said = judged.as_ref().err().map(crate::failure::one_line).unwrap_or_default();
            assert_eq!(judged.is_err(), why.is_some(), "{present:?} {used} {backed_up:?} {created}: {said}");
            assert!(said.contains(why.unwrap_or_default()), "{said}");
            if why.is_some() {
                assert!(said.contains(used) && said.contains(created) && said.contains("--replace-newer"), "{said}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_restored_record_keeps_what_this_machine_last_chose() -> Result<()> {
        let label = backup(Some("2026.9.5"), "2026-11-23T15:00:00Z")?;
        let cases = [
            (record(Some("2026.9.6"), Some("2026.9.6")), Some("2026.9.6")),
            (record(Some("2026.9.6"), None), None),
            (record(None, None), Some("2026.9.5")),
        ];
        for (present, choice) in cases {
            let restored = belongs_to(&label, present);
            assert_eq!((restored.version.as_deref(), restored.choice.as_deref()), (Some("2026.9.5"), choice));
        }
        Ok(())
    }
}
