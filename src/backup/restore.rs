//! Restoring: a backup takes the place of the current state, which is put aside and stays.
//!
//! The backup is read as a whole before anything is touched, unpacked beside the current state while the gateway goes
//! on running, and switched to by renames ([`switch`]). The next run boots into it. A cut leaves the old state or the
//! new one.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use jiff::Timestamp;

use super::{Header, Size, Unpacked};
use crate::config;
use crate::docker::Engine;
use crate::error::{Classify as _, Code, RUN_AGAIN, code_of};
use crate::failpoint;
use crate::gateway::{self, RunState};
use crate::host::Host;
use crate::lock::RunLock;
use crate::metadata::Client;
use crate::paths::{BOOT_UNIT, LOCK};
use crate::stage::{Stage, within};
use crate::state::{self, DataDir, Owner, Prepared, Purpose, Record, room, switch};
use crate::text;
use crate::version::GatewayVersion;
use crate::{disk, docker, systemd};

/// How long the metadata server may keep an operator waiting.
const METADATA_DEADLINE: Duration = Duration::from_secs(30);

/// The options of `openclaw-init restore`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// A file that `openclaw-init backup` made
    file: PathBuf,
    /// Also when the current state was used after the backup was made, or belongs to a newer gateway
    #[arg(long)]
    replace_newer: bool,
}

/// Puts the state of a backup in the place of the current one; the next run boots into it.
///
/// An error leaves the gateway running, or has the unit start it on whichever state there is.
pub async fn run(host: &Host, metadata: &Client, options: &Options) -> Result<()> {
    let lock = RunLock::acquire(&host.path(LOCK)).await?;
    let (stopped, doing) = (Cell::new(false), || format!("restoring {}", options.file.display()));
    let restored = within(Stage::Disk, replace(host, metadata, options, &lock, &stopped)).await.with_context(doing);
    if restored.is_err() && stopped.get() {
        systemd::restart_without_waiting(host, BOOT_UNIT).await?;
    }
    restored
}

/// `stopped` becomes true when the gateway may have been stopped.
async fn replace(
    host: &Host,
    metadata: &Client,
    options: &Options,
    lock: &RunLock,
    stopped: &Cell<bool>,
) -> Result<()> {
    let file = std::path::absolute(&options.file).context("finding the file")?;
    let read = super::verify(host, &file, largest_disk(host).await?).await;
    let (header, size) = match read.context("reading it, nothing was changed") {
        Err(error) if code_of(&error) == Code::NoSpace => return Err(error),
        read => read.classify(Code::ConfigInvalid, "Name a file that `sudo openclaw-init backup` made, unchanged.")?,
    };
    let instance = metadata.instance(METADATA_DEADLINE).await.context("asking for the data disk")?;
    let (config, _) = config::read(host, &instance.attributes.values).await?;
    let engine = docker::find(host).await?;
    let stop = async || {
        stopped.set(true);
        match &engine {
            Some(engine) => gateway::remove(host, engine).await,
            None => Ok(()),
        }
    };
    let volume = disk::ensure(host, &config.disk, &instance, tokio::sync::oneshot::channel().0).await?;
    let data = state::open(host, &volume, &instance, lock, &stop).await?;
    let record = Record::read(host, &data).await?;
    if record.owner != Owner::Nobody && !options.replace_newer {
        refuse_newer(&record, last_used(host, &data, engine.as_ref()).await?, &header)?;
    }

    let beside = Unpacked::beside(&data)?;
    beside.discard(host).await?;
    require_room(host, &data, size).await?;
    let unpacked = super::unpack(host, &file, &beside).await.context("unpacking it");
    let unpacked = unpacked.and_then(|read| {
        if read == (header.clone(), size) { Ok(()) } else { Err(anyhow!("it was changed while it was read")) }
    });
    if let Err(error) = unpacked {
        beside.discard(host).await?;
        return Err(error);
    }
    host.changed(format!("unpacked the backup of {}", text::seconds(header.created)));
    failpoint::hit("restore.unpacked");
    stop().await?;
    let Unpacked { state, config } = beside;
    let prepared = Prepared { state, config: Some(config), record: restored_record(&header, record) };
    for aside in switch::replace(host, &data, Purpose::Restore, &prepared, lock).await? {
        host.changed(format!("kept what was there before as {}", aside.display()));
    }
    Ok(())
}

/// The size of the machine's largest disk: no backup of more can be restored. Without an answer there is no limit.
async fn largest_disk(host: &Host) -> Result<u64> {
    let table = host.read("/proc/partitions").await?.unwrap_or_default();
    let table = String::from_utf8_lossy(&table);
    // major, minor, blocks of 1 KiB, name
    let blocks = table.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    Ok(blocks.max().map_or(u64::MAX, |blocks| blocks.saturating_mul(1024)))
}

/// The record of the restored state: version, image and settings of the backup, and this machine's last choice, which
/// the next boot would otherwise take for a new one.
fn restored_record(header: &Header, current: Record) -> Record {
    let Record { owner, choice, image, settings, .. } = header.record.clone();
    if current.owner.version().is_some() {
        Record { owner, image, settings, ..current }
    } else {
        Record { owner, choice, image, settings, ..Record::default() }
    }
}

/// Refuses to put a state aside that is newer than the backup.
fn refuse_newer(current: &Record, last_used: Timestamp, backup: &Header) -> Result<()> {
    let (current, backed_up) = (&current.owner, &backup.record.owner);
    // An unknown version is older than any other.
    let numbers = |owner: &Owner| owner.version().and_then(GatewayVersion::numbers);
    let why = if numbers(backed_up) < numbers(current) {
        "belongs to a newer gateway"
    } else if last_used > backup.created {
        "was used after the backup was made"
    } else {
        return Ok(());
    };
    Err(anyhow!(
        "the current state {why}: it was last used at {} by OpenClaw {current}, the backup was made at {} of OpenClaw \
         {backed_up}",
        text::seconds(last_used),
        text::seconds(backup.created),
    ))
    .classify(
        Code::UpdateFailed,
        "Nothing was changed. If the backup is wanted all the same, run it again with --replace-newer: the current state \
         is then put aside, not deleted.",
    )
}

/// When the state was last used: now, if its gateway is alive; else when it was last written to.
async fn last_used(host: &Host, data: &DataDir, engine: Option<&Engine>) -> Result<Timestamp> {
    if let Some(engine) = engine
        && gateway::run_state(engine).await? != RunState::Stopped
    {
        return Ok(Timestamp::now());
    }
    Ok(data.last_used(host).await?.unwrap_or(Timestamp::UNIX_EPOCH))
}

async fn require_room(host: &Host, data: &DataDir, size: Size) -> Result<()> {
    let root = data.root()?;
    let needed = super::room_to_restore(size);
    let remedy = format!("Enlarge the disk with `gcloud compute disks resize`, run `{RUN_AGAIN}`, then restore again.");
    room::require(needed, room::free(host, root).await?, "the backup", &root.display().to_string(), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::one_line;
    use crate::reference::PinnedImage;
    use crate::state::{Owned, OwnedSettings};

    fn owner(version: Option<&str>) -> Owner {
        version.map_or(Owner::Nobody, |version| Owner::Version(version.into()))
    }

    fn record(version: Option<&str>, choice: Option<&str>) -> Record {
        Record { owner: owner(version), choice: choice.map(str::to_owned), ..Record::default() }
    }

    fn backup(version: Option<&str>, created: &str) -> Result<Header> {
        let record = record(version, Some("2026.9.5"));
        let header = serde_json::json!({"format": 1, "created": created, "machine": "m", "how": "stopped", "program": "0", "record": record});
        Ok(serde_json::from_value(header)?)
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
        for (current, used, backed_up, created, why) in cases {
            let outcome = refuse_newer(&record(current, None), used.parse()?, &backup(backed_up, created)?);
            let sentence = outcome.as_ref().err().map(one_line).unwrap_or_default();
            assert_eq!(outcome.is_err(), why.is_some(), "{current:?} {used} {backed_up:?} {created}: {sentence}");
            assert!(sentence.contains(why.unwrap_or_default()), "{sentence}");
            if why.is_some() {
                let words = [used, created, "--replace-newer"];
                assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
                assert_eq!(outcome.as_ref().err().map(code_of), Some(Code::UpdateFailed));
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_file_that_is_no_backup_is_a_wrong_argument() -> Result<()> {
        let (root, lock) = (tempfile::tempdir()?, RunLock::of_a_test());
        let (host, metadata) = (Host::new(root.path()), Client::new(Some("127.0.0.1:1"))?);
        let text = root.path().join("text");
        std::fs::write(&text, "x")?;
        let fifo = root.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
        for (file, why) in [
            (root.path().join("missing"), "No such file"),
            (root.path().to_owned(), "not a regular file"),
            (fifo, "not a regular file"),
            (text, "no tar archive"),
        ] {
            let options = Options { file, replace_newer: false };
            let Err(error) = replace(&host, &metadata, &options, &lock, &Cell::new(false)).await else {
                panic!("{options:?}")
            };
            assert_eq!(code_of(&error), Code::ConfigInvalid, "{options:?}");
            let sentence = one_line(&error);
            assert!(sentence.contains(why) && sentence.contains("nothing was changed"), "{sentence}");
        }
        Ok(())
    }

    /// A terabyte of zeros is a gigabyte in the file, and hours under the lock.
    #[tokio::test]
    async fn a_backup_of_more_than_the_largest_disk_holds_is_not_read_to_its_end() -> Result<()> {
        let (root, lock) = (tempfile::tempdir()?, RunLock::of_a_test());
        let (host, metadata) = (Host::new(root.path()), Client::new(Some("127.0.0.1:1"))?);
        std::fs::create_dir(root.path().join("proc"))?;
        let table = "major minor  #blocks  name\n\n   8        0       1024 sda\n   8       16       3072 sdb\n";
        std::fs::write(root.path().join("proc/partitions"), table)?;
        let file = root.path().join("zeros");
        let mut writer =
            super::super::Writer::new(std::fs::File::create(&file)?, &backup(None, "2026-11-23T15:00:00Z")?)?;
        for (name, bytes) in [("small", 2 << 20), ("vast", 4 << 20)] {
            let (path, kind) = (PathBuf::from("state").join(name), super::super::Kind::File(bytes));
            let member = super::super::plan::Member { path, kind, mode: 0o600, owner: (0, 0), modified: 0 };
            writer.add(&member, std::io::repeat(0))?;
        }
        writer.finish()?;
        let options = Options { file, replace_newer: false };
        let refused = replace(&host, &metadata, &options, &lock, &Cell::new(false)).await;
        let error = refused.err().context("it was read")?;
        assert_eq!(code_of(&error), Code::NoSpace, "{error:#}");
        let sentence = one_line(&error);
        assert!(sentence.contains("state/vast") && sentence.contains("more than 3.0 MiB"), "{sentence}");
        Ok(())
    }

    #[test]
    fn the_restored_record_has_the_image_of_the_backup_with_its_digest() -> Result<()> {
        let image = |version: &str, digit: &str| -> Result<Option<PinnedImage>> {
            let digest = format!("sha256:{}", digit.repeat(64)).parse()?;
            Ok(Some(PinnedImage { reference: format!("x/y:{version}").parse()?, digest: Some(digest) }))
        };
        let mut header = backup(Some("2026.9.5"), "2026-11-23T15:00:00Z")?;
        header.record.image = image("2026.9.5", "5")?;
        let header = serde_json::from_str::<Header>(&serde_json::to_string(&header)?)?;
        for current in [Record::default(), Record { image: image("2026.9.6", "6")?, ..record(Some("2026.9.6"), None) }]
        {
            assert_eq!(restored_record(&header, current).image, image("2026.9.5", "5")?);
        }
        Ok(())
    }

    #[test]
    fn the_restored_record_knows_what_the_operator_owns_in_the_restored_file() -> Result<()> {
        let owned = |key: &str| Owned { path: vec![key.to_owned()], depth: 1, value: None, is_object: false };
        let settings = |key| OwnedSettings { owned: vec![owned(key)], refused: None };
        let mut header = backup(Some("2026.9.5"), "2026-11-23T15:00:00Z")?;
        header.record.settings = settings("ui");
        let header = serde_json::from_str::<Header>(&serde_json::to_string(&header)?)?;
        for current in [Record::default(), Record { settings: settings("logging"), ..record(Some("2026.9.6"), None) }] {
            assert_eq!(restored_record(&header, current).settings, settings("ui"));
        }
        Ok(())
    }

    #[test]
    fn the_restored_record_keeps_what_this_machine_last_chose() -> Result<()> {
        let header = backup(Some("2026.9.5"), "2026-11-23T15:00:00Z")?;
        let cases = [
            (record(Some("2026.9.6"), Some("2026.9.6")), Some("2026.9.6")),
            (record(Some("2026.9.6"), None), None),
            (record(None, None), Some("2026.9.5")),
        ];
        for (current, choice) in cases {
            let restored = restored_record(&header, current);
            assert_eq!((&restored.owner, restored.choice.as_deref()), (&owner(Some("2026.9.5")), choice));
        }
        Ok(())
    }
}
