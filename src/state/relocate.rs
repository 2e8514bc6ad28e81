//! Relocation: the state that began on the boot disk goes to a data disk that was attached later.
//!
//! A journal on the boot disk names the disk and is removed at the very end; only after that does a gateway run
//! from the data disk, so until then the original is what counts. It is staged under another name while it is
//! copied: no container can be started on it. The copies take the names of the state by a [`switch`], once they
//! are verified. The original stays, under a name that tells where it went.
//!
//! | cut | the next run |
//! | --- | --- |
//! | while copying | goes on, with what is there |
//! | while switching | completes the switch, then the relocation |
//! | and the disk is not chosen any more | takes the original back |
//! | and the disk has been used elsewhere | refuses: two states |

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;

use super::operation::{self, Action, Found, Operation, Purpose, Relocation, decide};
use super::switch;
use super::{DataDir, Record, copy, room, unpublish};
use crate::disk::{LastDisk, Volume};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::failpoint;
use crate::host::{Host, blocking, sync_dir};
use crate::lock::RunLock;
use crate::metadata::Instance;
use crate::paths::{BOOT_DISK_DATA, BOOT_DISK_DIR, STAGING};
use crate::text::{file_time, minutes};

/// Looks at both disks before the volume is used: completes switches, refuses two states, and takes the original of
/// a relocation back that cannot be completed. True when [`relocate`] has something to do.
pub(super) async fn prepare(host: &Host, data: &DataDir, volume: &Volume, lock: &RunLock) -> Result<bool> {
    switch::complete_pending(host, data, lock).await?;
    let Some(disk) = &volume.disk else {
        take_back(host, lock).await?;
        return Ok(false);
    };
    switch::complete_pending(host, &DataDir::boot_disk(), lock).await?;
    loop {
        let relocation = operation::relocation(host).await?.filter(|relocation| relocation.is_to(disk));
        let found = Found {
            staged: host.path(STAGING).exists(),
            on_boot_disk: DataDir::boot_disk().holds_state(host).await?,
            on_data_disk: data.holds_state(host).await?,
            ..Found::default()
        };
        match decide(relocation.map(Operation::Relocate).as_ref(), found) {
            Action::Relocate => return Ok(true),
            Action::FinishRelocation => finish(host, data, &disk.device_name, lock).await?,
            Action::TakeBack => take_back(host, lock).await?,
            Action::Refuse => return refuse(host, data).await.map(|()| false),
            _ => {
                Operation::forget_on_boot_disk(host, lock).await?;
                return Ok(false);
            }
        }
    }
}

impl Relocation {
    fn to(disk: &LastDisk) -> Self {
        Self { device_name: disk.device_name.clone(), uuid: disk.uuid.clone(), verified: false }
    }

    fn is_to(&self, disk: &LastDisk) -> bool {
        self.device_name == disk.device_name && self.uuid == disk.uuid
    }
}

async fn refuse(host: &Host, data: &DataDir) -> Result<()> {
    let boot = DataDir::boot_disk();
    let used = (last_used(host, &boot).await?, last_used(host, data).await?);
    let (boot, disk) = (boot.state.display(), data.state.display());
    Err(anyhow!(
        "both the boot disk ({boot}, last used {}) and the data disk ({disk}, last used {}) hold a gateway's state",
        used.0,
        used.1
    ))
    .classify(
        Code::TwoStates,
        format!(
            "Keep one: to use the data disk's, run `mv {BOOT_DISK_DATA} {BOOT_DISK_DATA}.old`; to use the boot disk's, \
             run `mv {disk} {disk}.old`, and it is moved to the data disk; then run `{RUN_AGAIN}`."
        ),
    )
}

/// When a state was last used, for a sentence.
async fn last_used(host: &Host, data: &DataDir) -> Result<String> {
    Ok(data.last_used(host).await?.map_or_else(|| "at an unknown time".to_owned(), minutes))
}

/// Takes the original of a move that was begun back to its place. It is whole: no gateway ran on the copy.
async fn take_back(host: &Host, lock: &RunLock) -> Result<()> {
    if host.path(STAGING).exists() {
        if DataDir::boot_disk().holds_state(host).await? {
            return Err(anyhow!("{BOOT_DISK_DATA} holds a gateway's state, and {STAGING} one that was being moved"))
                .classify(Code::TwoStates, format!("Keep one: rename the other one and run `{RUN_AGAIN}`."));
        }
        if host.path(BOOT_DISK_DATA).exists() {
            rename(host, BOOT_DISK_DATA, &format!("{BOOT_DISK_DATA}.before-{}", file_time(Timestamp::now()))).await?;
        }
        rename(host, STAGING, BOOT_DISK_DATA).await?;
    }
    Operation::forget_on_boot_disk(host, lock).await
}

/// Moves the state of the boot disk to `data`; `stop` stops the gateway.
///
/// Cut anywhere and run again, it completes. The state is neither merged nor deleted: the original is kept as
/// `data.moved-to-<device name>-<time>` in this program's directory on the boot disk.
pub(super) async fn relocate(
    host: &Host,
    data: &DataDir,
    volume: &Volume,
    instance: &Instance,
    lock: &RunLock,
    stop: &impl AsyncFn() -> Result<()>,
) -> Result<()> {
    let disk = volume.disk.as_ref().context("the boot disk's state is at its place")?;
    let staged = host.path(STAGING).exists();
    let root = data.root()?;
    let current = copies(host, Path::new(if staged { STAGING } else { BOOT_DISK_DATA }), root).await?;
    has_room(host, &current, root, &disk.device_name, instance).await?;

    let begun = operation::relocation(host).await?;
    if begun.is_none_or(|begun| !begun.is_to(disk)) {
        set_aside(host, &current).await?;
    }
    Operation::Relocate(Relocation::to(disk)).write_on_boot_disk(host, lock).await?;
    failpoint::hit("state.relocate.begun");
    stop().await.context("stopping the gateway before its state is moved")?;
    unpublish(host).await?;
    if !staged {
        rename(host, BOOT_DISK_DATA, STAGING).await?;
    }
    failpoint::hit("state.relocate.staged");
    volume.classify(copy_all(host, &copies(host, Path::new(STAGING), root).await?).await)?;
    let record = Record::read(host, &DataDir::at(STAGING, true)).await?;
    let verified = Relocation { verified: true, ..Relocation::to(disk) };
    Operation::Relocate(verified).write_on_boot_disk(host, lock).await?;
    failpoint::hit("state.relocate.verified");
    let (state, config) = (named(&data.state, UNFINISHED), Some(named(&data.config, UNFINISHED)));
    let prepared = switch::Prepared { state, config, record };
    let aside = switch::replace(host, data, Purpose::Relocate, &prepared, lock).await?;
    for path in aside {
        // The directories that were made on the disk before are empty; any other one stays.
        drop(tokio::fs::remove_dir(host.path(path)).await);
    }
    failpoint::hit("state.relocate.switched");
    finish(host, data, &disk.device_name, lock).await
}

/// What the name of a copy ends in until the whole of it is there.
const UNFINISHED: &str = ".moving";

fn named(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The directories of the original, and of the copies on the data disk.
async fn copies(host: &Host, original: &Path, disk: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let names = directories(host, original).await?;
    Ok(names.iter().map(|name| (original.join(name), named(&disk.join(name), UNFINISHED))).collect())
}

async fn directories(host: &Host, path: &Path) -> Result<Vec<OsString>> {
    let listed = host.path(path);
    let names = blocking(move || {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(listed)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.push(entry.file_name());
            }
        }
        Ok(names)
    });
    names.await.with_context(|| format!("listing {}", path.display()))
}

/// What another machine's move has left on the disk is not ours to write to.
async fn set_aside(host: &Host, copies: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (_, copy) in copies {
        let former = named(copy, &format!(".before-{}", file_time(Timestamp::now())));
        let (from, to) = (host.path(copy), host.path(&former));
        if from.exists() {
            blocking(move || Ok(std::fs::rename(from, to)?)).await?;
            host.warn(format!(
                "the disk had an unfinished copy from another machine's move: it is {} now",
                former.display()
            ));
        }
    }
    Ok(())
}

/// Refuses a disk that is too small before anything is stopped. What an earlier try has copied counts as room.
async fn has_room(
    host: &Host,
    copies: &[(PathBuf, PathBuf)],
    disk: &Path,
    device_name: &str,
    instance: &Instance,
) -> Result<()> {
    let (mut needed, mut free) = (room::Size::default(), room::free(host, disk).await?);
    for (original, copy) in copies {
        needed += room::of(host, original).await?;
        free += room::of(host, copy).await?;
    }
    let remedy = format!(
        "Enlarge the disk with `gcloud compute disks resize {device_name} --zone={} --size=SIZE` (its own name, if that \
         is not its device name) and run `{RUN_AGAIN}`; or set openclaw-data-disk=none to stay on the boot disk.",
        instance.zone
    );
    room::require(needed, free, "the state on the boot disk", &format!("the data disk {device_name}"), remedy)
}

async fn copy_all(host: &Host, copies: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (original, target) in copies {
        copy::sync(host, original, target, copy::Original::AtRest).await?;
    }
    failpoint::hit("state.relocate.copied");
    for (original, copy) in copies {
        if let Err(error) = copy::verify(host, original, copy).await {
            // The original is untouched, so the next try can begin anew.
            let copy = host.path(copy);
            blocking(move || Ok(std::fs::remove_dir_all(copy)?)).await?;
            return Err(error);
        }
    }
    Ok(())
}

/// The last steps, once the disk has the state.
async fn finish(host: &Host, data: &DataDir, device_name: &str, lock: &RunLock) -> Result<()> {
    let (disk, time) = (data.root()?, file_time(Timestamp::now()));
    // Whatever else on the disk has such a name is somebody's.
    let names = if host.path(STAGING).exists() { directories(host, Path::new(STAGING)).await? } else { Vec::new() };
    for path in names.iter().map(|name| disk.join(name)) {
        let (from, to) = (host.path(named(&path, UNFINISHED)), host.path(&path));
        if !from.exists() {
            continue;
        }
        let (is_records, beside) = (path == data.records, named(&to, &format!(".moved-{time}")));
        let put = blocking(move || {
            if is_records {
                return put_records(&from, &to);
            }
            // Onto an empty directory; what is in another one stays.
            Ok(std::fs::rename(&from, &to).or_else(|_| std::fs::rename(&from, beside))?)
        });
        put.await.with_context(|| format!("putting {} in its place", path.display()))?;
    }
    if host.path(STAGING).exists() {
        let kept = format!("{BOOT_DISK_DATA}.moved-to-{device_name}-{time}");
        rename(host, STAGING, &kept).await?;
        host.changed(format!(
            "moved the state from the boot disk to {}; the former copy is {kept}",
            data.state.display()
        ));
    }
    failpoint::hit("state.relocate.kept");
    Operation::forget_on_boot_disk(host, lock).await
}

/// Our records besides the one that came with the switch. Those that tell of the disk itself stay.
fn put_records(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if !place.exists() {
            std::fs::rename(entry.path(), place)?;
        }
    }
    sync_dir(to)?;
    Ok(std::fs::remove_dir_all(from)?)
}

/// Renames a directory in this program's directory on the boot disk, durably.
async fn rename(host: &Host, from: &str, to: &str) -> Result<()> {
    let (old, new, directory) = (host.path(from), host.path(to), host.path(BOOT_DISK_DIR));
    let renamed = blocking(move || {
        std::fs::rename(old, new)?;
        sync_dir(&directory)
    });
    renamed.await.with_context(|| format!("renaming {from} to {to}"))?;
    host.changed(format!("renamed {from} to {to}"));
    Ok(())
}

#[cfg(test)]
mod tests;
