//! The one journal: what is being done to a state, durable before the first change.
//!
//! A run that finds an operation was preceded by one that was cut. [`decide`] says what becomes of it, from the
//! operation and from what exists; [`super::recover()`] and [`super::relocate`] carry it out. A journal that cannot
//! be understood stops the run, and nothing is touched. Formatting a disk is apart: there is no state yet.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DataDir, Record, SafetyCopy};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Host, blocking, json_file, sync_dir};
use crate::lock::RunLock;
use crate::paths::{BOOT_DISK_DIR, BOOT_DISK_OPERATION, BOOT_DISK_OPERATION_0_1};
use crate::version::GatewayVersion;

/// The journal of a volume, beside the record.
const FILE: &str = "operation.json";

/// The same as version 0.1.0 wrote it, each kind in a file of its own.
const SWITCH_0_1: &str = "switch.json";
const UPDATE_0_1: &str = "update.json";

/// What is being done to a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum Operation {
    /// Another version of the gateway. Undone unless that version became ready.
    Update(Update),
    /// The state of the boot disk goes to a data disk. Undone until the copy on the disk is verified.
    Relocate(Relocation),
    /// Prepared directories take the place of the current ones. Only ever completed.
    Switch(Switch),
}

/// How far an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// The safety copy is being made; the current version owns the state.
    Copying,
    /// The safety copy is exact; from now on the new version may change the state.
    Starting,
}

/// An update to another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Update {
    pub(crate) phase: Phase,
    /// The version that owns the state before it.
    pub(crate) from: Option<GatewayVersion>,
    /// The version that it is about.
    pub(crate) to: GatewayVersion,
    /// The attribute's value that led to it; nothing when it was asked for by hand.
    pub(crate) choice: Option<String>,
    /// Where the state is copied to.
    pub(crate) copy: SafetyCopy,
    /// An older copy, which is removed once this update has succeeded.
    pub(crate) superseded: Option<SafetyCopy>,
    /// When it began.
    pub(crate) since: Timestamp,
}

/// A move from the boot disk to a data disk. It is noted on the boot disk, whose state it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Relocation {
    pub(super) device_name: String,
    /// The file system's UUID.
    pub(super) uuid: String,
    /// The copy is verified: what the disk holds from here on came from here.
    #[serde(alias = "switching")]
    pub(super) verified: bool,
}

/// What a switch is made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Purpose {
    /// Back to the version before, asked for or because an update failed.
    #[default]
    Rollback,
    /// A backup.
    Restore,
    /// The state of the boot disk.
    #[serde(alias = "move")]
    Relocate,
}

impl Purpose {
    /// In the names of directories and in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Restore => "restore",
            Self::Relocate => "relocate",
        }
    }
}

/// What is being done, by the names of directories beside each other: the disk may be on another machine when
/// it is completed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Switch {
    #[serde(alias = "what")]
    pub(super) purpose: Purpose,
    pub(super) moves: Vec<Move>,
    pub(super) record: Record,
}

/// First `current` becomes `aside`, then `prepared` becomes `current`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Move {
    #[serde(alias = "present")]
    pub(super) current: String,
    pub(super) aside: String,
    pub(super) prepared: String,
}

/// An operation that was found, and the file that it is in.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) operation: Operation,
    path: PathBuf,
}

impl Operation {
    /// Makes it durable as the one operation on the state in `data`.
    pub(crate) async fn write(&self, host: &Host, data: &DataDir, _lock: &RunLock) -> Result<()> {
        json_file::write(host, data.records.join(FILE), self).await.map(drop)
    }

    /// Makes the end of the operation on the state in `data` durable.
    pub(crate) async fn forget(host: &Host, data: &DataDir, _lock: &RunLock) -> Result<()> {
        remove(host, &data.records.join(FILE)).await
    }

    /// Makes it durable as the one operation on the state of the boot disk.
    pub(super) async fn write_on_boot_disk(&self, host: &Host, _lock: &RunLock) -> Result<()> {
        json_file::write(host, BOOT_DISK_OPERATION, self).await?;
        host.remove_file(BOOT_DISK_OPERATION_0_1).await.map(drop)
    }

    /// Makes the end of the operation on the state of the boot disk durable.
    pub(super) async fn forget_on_boot_disk(host: &Host, _lock: &RunLock) -> Result<()> {
        for path in [BOOT_DISK_OPERATION, BOOT_DISK_OPERATION_0_1] {
            remove(host, Path::new(path)).await?;
        }
        Ok(())
    }
}

impl Pending {
    /// What an earlier run left half done on the state in `data`, also one of version 0.1.0. That version had an
    /// update and a switch in two files: the switch comes first.
    pub(super) async fn read(host: &Host, data: &DataDir) -> Result<Option<Self>> {
        let [path, switch, update] = [FILE, SWITCH_0_1, UPDATE_0_1].map(|name| data.records.join(name));
        match read(host, &path).await? {
            Some(Operation::Relocate(_)) => return misplaced(&path),
            Some(operation) => return Ok(Some(Self { operation, path })),
            None => {}
        }
        if let Some(found) = read::<Switch>(host, &switch).await? {
            return Ok(Some(Self { operation: Operation::Switch(found), path: switch }));
        }
        let found = read::<Update>(host, &update).await?;
        Ok(found.map(|found| Self { operation: Operation::Update(found), path: update }))
    }

    /// Makes its end durable. Found again, it would be carried out again.
    pub(super) async fn forget(&self, host: &Host, _lock: &RunLock) -> Result<()> {
        remove(host, &self.path).await
    }
}

/// What an earlier run left half done on the state of the boot disk: a move to a data disk.
pub(super) async fn relocation(host: &Host) -> Result<Option<Relocation>> {
    let path = Path::new(BOOT_DISK_OPERATION);
    match read::<Operation>(host, path).await? {
        Some(Operation::Relocate(relocation)) => Ok(Some(relocation)),
        Some(_) => misplaced(path),
        None => read(host, Path::new(BOOT_DISK_OPERATION_0_1)).await,
    }
}

async fn read<T: serde::de::DeserializeOwned>(host: &Host, path: &Path) -> Result<Option<T>> {
    or_stop(json_file::read(host, path).await, path)
}

/// The refusal of an operation that is in the journal of a state that it cannot be about.
fn misplaced<T>(path: &Path) -> Result<T> {
    or_stop(Err(anyhow!("{} holds an operation that is not about the state beside it", path.display())), path)
}

/// An operation that is not understood stops the run: nothing is touched.
fn or_stop<T>(result: Result<T>, path: &Path) -> Result<T> {
    let path = path.display();
    result.classify(
        Code::DiskDamaged,
        format!(
            "The state was being changed, and nothing tells how far that came; nothing was touched. See which of the \
             directories beside {path} is the wanted state, give it the name openclaw, remove {path} and run \
             `{RUN_AGAIN}`."
        ),
    )
}

async fn remove(host: &Host, path: &Path) -> Result<()> {
    if host.remove_file(path).await? {
        let directory = host.path(path.parent().unwrap_or(Path::new(BOOT_DISK_DIR)));
        blocking(move || sync_dir(&directory)).await?;
    }
    Ok(())
}

/// What exists on the machine, as far as an operation is judged by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "five independent facts, by name")]
pub(super) struct Found {
    /// The record says that the update's version became ready.
    pub(super) is_accepted: bool,
    /// The safety copy of the update.
    pub(super) safety_copy: bool,
    /// The boot disk's state under the name that it has while it is moved.
    pub(super) staged: bool,
    /// A state where a gateway would use it on the boot disk.
    pub(super) on_boot_disk: bool,
    /// A state where a gateway would use it on the data disk.
    pub(super) on_data_disk: bool,
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// There is none, and nothing to do.
    Nothing,
    /// Switch: rename what is not yet renamed.
    CompleteSwitch,
    /// Update: the new version owns the state.
    AcceptUpdate,
    /// Update: the current version still owns the state; the safety copy goes.
    DiscardCopy,
    /// Update: the new version may have changed the state and never became ready; the safety copy takes its place.
    UndoUpdate,
    /// Update: the safety copy is the state again.
    Forget,
    /// Relocation: copy and switch, from the beginning or from where it was cut.
    Relocate,
    /// Relocation: the disk has the state; the original must still get its last name.
    FinishRelocation,
    /// Relocation: it cannot be completed; the original goes back to its place, then decide anew.
    TakeBack,
    /// Two states, and only the operator knows which one is wanted.
    Refuse,
}

/// The recovery table. `operation` is about this very state: a relocation to another disk counts as none.
pub(super) fn decide(operation: Option<&Operation>, found: Found) -> Action {
    match operation {
        Some(Operation::Switch(_)) => Action::CompleteSwitch,
        Some(Operation::Update(update)) => match update.phase {
            _ if found.is_accepted => Action::AcceptUpdate,
            Phase::Copying => Action::DiscardCopy,
            Phase::Starting if found.safety_copy => Action::UndoUpdate,
            Phase::Starting => Action::Forget,
        },
        Some(Operation::Relocate(relocation)) => decide_relocation(Some(relocation.verified), found),
        None => decide_relocation(None, found),
    }
}

/// `verified`: whether the copy on the data disk is, when a relocation has begun.
fn decide_relocation(verified: Option<bool>, found: Found) -> Action {
    let Found { staged, on_boot_disk, on_data_disk, .. } = found;
    match verified {
        Some(true) if on_data_disk => Action::FinishRelocation,
        _ if staged && on_boot_disk => Action::TakeBack,
        Some(false) if on_data_disk => Action::TakeBack,
        None if staged => Action::TakeBack,
        _ if !staged && !on_boot_disk => Action::Nothing,
        _ if !staged && on_data_disk => Action::Refuse,
        _ => Action::Relocate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(phase: Phase) -> Operation {
        let copy = SafetyCopy { state: "openclaw.new".to_owned(), config: "config-openclaw.new".to_owned() };
        let (from, to) = (Some("1.0.0".into()), "2.0.0".into());
        let since = Timestamp::UNIX_EPOCH;
        Operation::Update(Update { phase, from, to, choice: None, copy, superseded: None, since })
    }

    fn relocation(verified: bool) -> Operation {
        Operation::Relocate(Relocation { device_name: "d".to_owned(), uuid: "u".to_owned(), verified })
    }

    #[test]
    fn the_recovery_table() {
        use Action::{
            AcceptUpdate, CompleteSwitch, DiscardCopy, FinishRelocation, Forget, Nothing, Refuse, Relocate, TakeBack,
            UndoUpdate,
        };
        let update_of = |phase, is_accepted, safety_copy| {
            (Some(update(phase)), Found { is_accepted, safety_copy, ..Found::default() })
        };
        let moved = |verified: Option<bool>, staged, on_boot_disk, on_data_disk| {
            (verified.map(relocation), Found { staged, on_boot_disk, on_data_disk, ..Found::default() })
        };
        #[rustfmt::skip]
        let cases = [
            ((Some(Operation::Switch(Switch::default())), Found::default()), CompleteSwitch, "a switch was cut"),
            // phase, accepted, safety copy
            (update_of(Phase::Copying, false, false), DiscardCopy, "cut before anything was copied"),
            (update_of(Phase::Copying, false, true), DiscardCopy, "cut while copying"),
            (update_of(Phase::Starting, false, true), UndoUpdate, "cut before the new version was ready"),
            (update_of(Phase::Starting, false, false), Forget, "cut after the copy took the state's place (0.1.0)"),
            (update_of(Phase::Starting, true, true), AcceptUpdate, "cut after the new version was ready"),
            (update_of(Phase::Copying, true, true), AcceptUpdate, "the record is what counts"),
            // verified, staged, boot disk, data disk
            (moved(None, false, false, false), Nothing, "two new disks"),
            (moved(None, false, false, true), Nothing, "an ordinary boot"),
            (moved(None, false, true, false), Relocate, "a disk was attached"),
            (moved(None, false, true, true), Refuse, "two states"),
            (moved(None, true, false, false), TakeBack, "a move to another disk was cut"),
            (moved(None, true, false, true), TakeBack, "the same, and this one has a state"),
            (moved(None, true, true, false), TakeBack, "two states on the boot disk"),
            (moved(Some(false), false, true, false), Relocate, "cut before it was staged"),
            (moved(Some(false), true, false, false), Relocate, "cut while copying"),
            (moved(Some(false), true, false, true), TakeBack, "cut while copying, and the disk was used elsewhere"),
            (moved(Some(false), false, false, false), Nothing, "cut, and the operator has taken the state away"),
            (moved(Some(true), true, false, false), Relocate, "cut before the switch"),
            (moved(Some(true), true, false, true), FinishRelocation, "cut after the switch"),
            (moved(Some(true), false, false, true), FinishRelocation, "cut before the journal was removed"),
        ];
        for ((operation, found), expected, case) in cases {
            assert_eq!(decide(operation.as_ref(), found), expected, "{case}");
        }
    }

    #[tokio::test]
    async fn a_journal_is_understood_or_stops_the_run_and_is_left_alone() -> Result<()> {
        let (root, lock) = (tempfile::tempdir()?, RunLock::of_a_test());
        let (host, data) = (Host::new(root.path()), DataDir::at("/data", false));
        std::fs::create_dir_all(host.path(&data.records))?;
        let path = host.path(data.records.join(FILE));
        for operation in [update(Phase::Starting), Operation::Switch(Switch::default())] {
            if nix::unistd::geteuid().is_root() {
                operation.write(&host, &data, &lock).await?;
                let pending = Pending::read(&host, &data).await?;
                assert_eq!(pending.map(|pending| pending.operation), Some(operation));
            }
        }
        let elsewhere = serde_json::to_string(&relocation(true))?;
        for text in ["", "{", "{}", r#"{"operation":"later"}"#, r#"{"operation":"switch","format":2}"#, &elsewhere] {
            std::fs::write(&path, text)?;
            let Err(error) = Pending::read(&host, &data).await else { panic!("{text:?} was understood") };
            assert_eq!(crate::error::code_of(&error), Code::DiskDamaged, "{text:?}");
            assert!(crate::error::one_line(&error).contains("operation.json"), "{text:?}");
            assert_eq!(std::fs::read_to_string(&path)?, text);
        }
        Ok(())
    }

    #[tokio::test]
    async fn the_boot_disks_journal_is_about_a_relocation_alone() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(host.path(BOOT_DISK_DIR))?;
        std::fs::write(host.path(BOOT_DISK_OPERATION), serde_json::to_string(&relocation(true))?)?;
        assert!(self::super::relocation(&host).await?.is_some_and(|found| found.verified));
        let elsewhere = serde_json::to_string(&update(Phase::Copying))?;
        std::fs::write(host.path(BOOT_DISK_OPERATION), &elsewhere)?;
        let error = self::super::relocation(&host).await.expect_err("an update was taken for a relocation");
        assert_eq!(crate::error::code_of(&error), Code::DiskDamaged);
        assert_eq!(std::fs::read_to_string(host.path(BOOT_DISK_OPERATION))?, elsewhere);
        Ok(())
    }

    #[tokio::test]
    async fn journals_of_version_0_1_0_are_understood() -> Result<()> {
        let update = r#"{"phase":"starting","from":"2026.9.6","to":"2026.9.7","choice":null,"copy":{"state":
            "openclaw.before-update-T","config":"config-openclaw.before-update-T"},"superseded":null,
            "since":"2026-11-26T14:00:00Z"}"#;
        let switch = r#"{"what":"rollback","moves":[{"present":"openclaw","aside":"openclaw.before-rollback-T",
            "prepared":"openclaw.before-update-T"}],"record":{"version":"2026.9.6","choice":null,"image":"a/b:1"}}"#;
        let is_update = |found: &Operation| matches!(found, Operation::Update(Update { phase: Phase::Starting, .. }));
        let is_switch = |found: &Operation| match found {
            Operation::Switch(Switch { purpose: Purpose::Rollback, moves, .. }) => moves[0].current == "openclaw",
            _ => false,
        };
        let root = tempfile::tempdir()?;
        let (host, data) = (Host::new(root.path()), DataDir::at("/data", false));
        std::fs::create_dir_all(host.path(&data.records))?;
        std::fs::write(host.path(data.records.join(UPDATE_0_1)), update)?;
        assert!(Pending::read(&host, &data).await?.is_some_and(|found| is_update(&found.operation)));
        std::fs::write(host.path(data.records.join(SWITCH_0_1)), switch)?;
        let pending = Pending::read(&host, &data).await?.filter(|found| is_switch(&found.operation));
        pending.expect("the switch comes first").forget(&host, &RunLock::of_a_test()).await?;
        assert!(Pending::read(&host, &data).await?.is_some_and(|found| is_update(&found.operation)));
        Ok(())
    }
}
