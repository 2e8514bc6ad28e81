//! Moving in: the state that began on the boot disk goes to a data disk that was attached later.
//!
//! An intent on the boot disk names the disk and is removed at the very end; only after that does a gateway run
//! from the data disk, so until then the original is what counts. It is parked under another name while it is
//! copied: no container can be started on it. The copies take the names of the state by [`switch`], once they
//! are verified. The original stays, under a name that tells where it went.
//!
//! | cut | the next run |
//! | --- | --- |
//! | while copying | goes on, with what is there |
//! | while switching | completes the switch, in the disk stage, and then the move |
//! | and the disk is not chosen any more | takes the original back |
//! | and the disk has been used elsewhere | refuses: two states |

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::history::Last;
use super::{BOOT_DISK_DATA, BOOT_DISK_DIR, DataDir, blocking, hide, layout, show};
use crate::failure::{Blame as _, Code};
use crate::host::{Access, Host, sync_dir};
use crate::metadata::Instance;
use crate::record::Record;
use crate::{cut, replica, switch};

/// The durable intent.
pub(super) const FILE: &str = "/var/lib/openclaw-init/moving.json";

/// Where the original is while it is moved.
const PARKED: &str = "/var/lib/openclaw-init/data.moving";

/// A move that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Intent {
    device_name: String,
    /// The file system's UUID.
    uuid: String,
    /// The copies are verified: what the disk holds from here on came from here.
    switching: bool,
}

/// What is known of a move to the present disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    No,
    Copying,
    Switching,
}

/// What must be done before a gateway may run from the data disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Copy and switch, from the beginning or from where it was cut.
    Move,
    /// The disk has the state; the original must still get its last name.
    Finish,
    /// A move that cannot be completed: take the original back, then decide anew.
    TakeBack,
    /// Nobody but the operator knows which one is wanted.
    Refuse,
}

/// `parked`: the original is under its name for moving. `boot` and `disk`: a state is where a gateway would use it.
fn decide(begun: Begun, parked: bool, boot: bool, disk: bool) -> Action {
    match (begun, parked, boot, disk) {
        (Begun::Switching, _, _, true) => Action::Finish,
        (_, true, true, _) | (Begun::Copying, _, _, true) | (Begun::No, true, ..) => Action::TakeBack,
        (_, false, false, _) => Action::Nothing,
        (_, false, true, true) => Action::Refuse,
        (_, _, _, false) => Action::Move,
    }
}

impl Intent {
    async fn read(host: &Host) -> Result<Option<Self>> {
        let Some(bytes) = host.read(FILE).await? else { return Ok(None) };
        let read = serde_json::from_slice(&bytes)
            .map_err(|error| host.warn(format!("{FILE} cannot be read ({error}): going on without it")));
        Ok(read.ok())
    }

    async fn write(&self, host: &Host) -> Result<()> {
        host.ensure_file(FILE, serde_json::to_vec(self)?, Access::root(0o600)).await.map(drop)
    }
}

fn boot_data() -> DataDir {
    layout::data_dir(Path::new(BOOT_DISK_DATA), true)
}

/// Looks at both disks before the data disk is used: refuses two states, and takes the original of a move that
/// cannot be completed back. True when [`move_in`] has something to do.
pub(super) async fn is_due(host: &Host, data: &DataDir, device_name: &str, uuid: &str) -> Result<bool> {
    switch::complete(host, &boot_data()).await?;
    loop {
        let intent = Intent::read(host).await?;
        let begun = match intent.filter(|intent| intent.device_name == device_name && intent.uuid == uuid) {
            None => Begun::No,
            Some(intent) if intent.switching => Begun::Switching,
            Some(_) => Begun::Copying,
        };
        let (boot, disk) = (boot_data().holds_state(host).await?, data.holds_state(host).await?);
        match decide(begun, host.path(PARKED).exists(), boot, disk) {
            Action::Nothing => {
                host.remove_file(FILE).await?;
                return Ok(false);
            }
            Action::Move => return Ok(true),
            Action::Finish => finish(host, data, device_name).await?,
            Action::TakeBack => take_back(host).await?,
            Action::Refuse => return refuse(host, data).await.map(|()| false),
        }
    }
}

async fn refuse(host: &Host, data: &DataDir) -> Result<()> {
    let boot = boot_data().state;
    let used = (last_used(host, &boot).await?, last_used(host, &data.state).await?);
    let (boot, disk) = (boot.display(), data.state.display());
    Err(anyhow!(
        "both the boot disk ({boot}, last used {}) and the data disk ({disk}, last used {}) hold a gateway's state",
        used.0,
        used.1
    ))
    .blame(
        Code::TwoStates,
        format!(
            "Keep one: to use the data disk's, run `mv {BOOT_DISK_DATA} {BOOT_DISK_DATA}.old`; to use the boot disk's, \
             run `mv {disk} {disk}.old`, and it is moved to the data disk; then run `openclaw-init boot`."
        ),
    )
}

/// When a state was last written to, as its upper entries tell it (its databases are among them).
async fn last_used(host: &Host, state: &Path) -> Result<String> {
    let (upper, databases) = (host.path(state), host.path(state).join("state"));
    let newest = blocking(move || {
        let entries = [upper, databases].into_iter().filter_map(|path| std::fs::read_dir(path).ok()).flatten();
        let times = entries.take(1000).filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok());
        Ok(times.max().and_then(|time| jiff::Timestamp::try_from(time).ok()))
    });
    Ok(newest.await?.map_or("at an unknown time".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string()))
}

/// Takes the original of a move that was begun back to its place. It is whole: no gateway ran on the copy.
pub(super) async fn take_back(host: &Host) -> Result<()> {
    if host.path(PARKED).exists() {
        if boot_data().holds_state(host).await? {
            return Err(anyhow!("{BOOT_DISK_DATA} holds a gateway's state, and {PARKED} one that was being moved"))
                .blame(Code::TwoStates, "Keep one: rename the other one and run `openclaw-init boot`.");
        }
        if host.path(BOOT_DISK_DATA).exists() {
            rename(host, BOOT_DISK_DATA, &format!("{BOOT_DISK_DATA}.before-{}", now())).await?;
        }
        rename(host, PARKED, BOOT_DISK_DATA).await?;
    }
    host.remove_file(FILE).await.map(drop)
}

/// Moves the state of the boot disk to `data`, if it is there, and shows it to people; `stop` stops the gateway.
///
/// Cut anywhere and run again, it completes. The state is neither merged nor deleted: the original is kept as
/// `data.moved-to-<device name>-<time>` in this program's directory on the boot disk.
pub async fn move_in(
    host: &Host,
    data: &DataDir,
    instance: &Instance,
    stop: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let parked = host.path(PARKED).exists();
    if data.on_boot_disk || !parked && !boot_data().holds_state(host).await? {
        return Ok(());
    }
    let Last { device_name, uuid, .. } =
        Last::read(host, instance.id).await?.context("it is not known which data disk is in use")?;
    let disk = data.root()?;
    let present = copies(host, Path::new(if parked { PARKED } else { BOOT_DISK_DATA }), disk).await?;
    has_room(host, &present, disk, &device_name, instance).await?;

    let intent = Intent { device_name, uuid, switching: false };
    if Intent::read(host).await?.is_none_or(|begun| begun.uuid != intent.uuid) {
        set_aside(host, &present).await?;
    }
    intent.write(host).await?;
    cut::point("move.intended");
    stop().await.context("stopping the gateway before its state is moved")?;
    hide(host).await?;
    if !parked {
        rename(host, BOOT_DISK_DATA, PARKED).await?;
    }
    cut::point("move.parked");
    copy(host, &copies(host, Path::new(PARKED), disk).await?).await?;
    let record = Record::read(host, &layout::data_dir(Path::new(PARKED), true)).await?;
    Intent { switching: true, ..intent.clone() }.write(host).await?;
    cut::point("move.verified");
    let prepared =
        switch::Prepared { state: named(&data.state, COPY), config: Some(named(&data.config, COPY)), record };
    let aside = switch::replace(host, data, "move", &prepared).await?;
    for path in aside {
        // The directories that the disk stage had made are empty; any other one stays.
        drop(tokio::fs::remove_dir(host.path(path)).await);
    }
    cut::point("move.switched");
    finish(host, data, &intent.device_name).await?;
    show(host, data).await
}

/// What the name of a copy ends in until the whole of it is there.
const COPY: &str = ".moving";

fn named(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The directories of the original, and of the copies on the data disk.
async fn copies(host: &Host, original: &Path, disk: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let names = directories(host, original).await?;
    Ok(names.iter().map(|name| (original.join(name), named(&disk.join(name), COPY))).collect())
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
        let former = named(copy, &format!(".before-{}", now()));
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
    let (mut needed, mut room) = (replica::Size::default(), replica::free(host, disk).await?);
    for (original, copy) in copies {
        needed += replica::size(host, original).await?;
        room += replica::size(host, copy).await?;
    }
    if room.has_room_for(needed) {
        return Ok(());
    }
    Err(anyhow!(
        "the state on the boot disk takes {needed}, and the data disk {device_name} has room for {room}"
    ))
    .blame(
        Code::NoSpace,
        format!(
            "Enlarge the disk with `gcloud compute disks resize {device_name} --zone={} --size=SIZE` (its own name, if \
             that is not its device name) and run `sudo systemctl restart openclaw-init`; or set openclaw-data-disk=none \
             to stay on the boot disk.",
            instance.zone
        ),
    )
}

async fn copy(host: &Host, copies: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (original, copy) in copies {
        replica::level(host, original, copy).await?;
    }
    cut::point("move.copied");
    for (original, copy) in copies {
        if let Err(error) = replica::verify(host, original, copy).await {
            // The original is untouched, so the next try can begin anew.
            let copy = host.path(copy);
            blocking(move || Ok(std::fs::remove_dir_all(copy)?)).await?;
            return Err(error);
        }
    }
    Ok(())
}

/// The last steps, once the disk has the state.
async fn finish(host: &Host, data: &DataDir, device_name: &str) -> Result<()> {
    let (disk, time) = (data.root()?, now());
    for name in directories(host, disk).await? {
        let name = name.to_string_lossy();
        let Some(path) = name.strip_suffix(COPY).map(|name| disk.join(name)) else { continue };
        let (from, to) = (host.path(named(&path, COPY)), host.path(&path));
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
    if host.path(PARKED).exists() {
        let kept = format!("{BOOT_DISK_DATA}.moved-to-{device_name}-{time}");
        rename(host, PARKED, &kept).await?;
        host.changed(format!(
            "moved the state from the boot disk to {}; the former copy is {kept}",
            data.state.display()
        ));
    }
    cut::point("move.kept");
    host.remove_file(FILE).await.map(drop)
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

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string()
}

#[cfg(test)]
mod tests;
