//! The data disk: find, observe, decide, format if provably blank, mount, verify. Returns a [`Volume`].
//!
//! State is never lost. Only a disk that is proven to be blank is formatted, only the device of the attribute's device
//! name is used, and where two answers are possible the run stops and asks. This stage alone mounts the disk, at every
//! boot and by verified device: fstab and mount units go by UUID, which a disk shares with its snapshot.

mod filesystem;
mod find;
mod format_intent;
#[cfg(fuzzing)]
pub mod fuzzing;
mod growth;
mod last_disk;
mod marker;
pub(crate) mod mount;
mod probe;
mod proof;
mod undo;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use tokio::sync::oneshot;

use crate::config::{DiskConfig, ProofChoice};
use crate::error::{Classify as _, Code, Diagnosis, RUN_AGAIN, io_kind};
use crate::host::{Access, Host, if_exists};
use crate::metadata::Instance;
use crate::paths::{BOOT_DISK_DATA, BOOT_DISK_DIR, LAST_DISK, MOUNT_DIR, VOLUME_DIRS};
use filesystem::Preparation;
use find::{Device, Place};
pub(crate) use last_disk::LastDisk;
pub(crate) use marker::MARKER;
use mount::{Mount, Mounts};
use probe::Superblock;
use proof::Written;

/// Whose directories a run makes on a volume: root's and the gateway's.
const OWNERS: [u32; 2] = [Access::root(0).uid, Access::gateway(0).uid];

/// A mounted and checked file system that is ours to use, or becomes ours with [`Volume::claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its top directory, as a path on the host.
    pub root: PathBuf,
    /// Which disk it is; `None` for the boot disk's own directory.
    pub(crate) disk: Option<LastDisk>,
    /// Somebody else made its file system: only our directories are ours.
    pub(crate) is_adopted: bool,
}

impl Volume {
    /// The directory on the boot disk that stands in for a data disk.
    pub(crate) fn boot_disk() -> Self {
        Self { root: BOOT_DISK_DATA.into(), disk: None, is_adopted: false }
    }

    /// What `work` makes on the volume. When it cannot be made there, the error says why, and no disk is left mounted.
    pub(crate) async fn furnish(&self, host: &Host, work: impl Future<Output = Result<()>>) -> Result<()> {
        let Err(error) = work.await else { return Ok(()) };
        if self.disk.is_some() {
            give_up(host, &self.root).await;
        }
        classify_write(error, &self.root)
    }

    /// Classifies what kept something from being read or written on the volume.
    pub(crate) fn classify<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.or_else(|error| classify_io(error, &self.root))
    }

    /// Marks the disk as ours and remembers it as the one in use. From now on this machine does not start afresh
    /// elsewhere when the disk is missing.
    pub(crate) async fn claim(&self, host: &Host) -> Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        marker::write(host, &self.root, disk, self.is_adopted).await?;
        disk.write(host).await
    }
}

/// Makes the volume available: the chosen disk, formatted if it is provably blank, checked and mounted at
/// [`MOUNT_DIR`]`/<device name>`; else the boot disk's directory.
///
/// Takes constant time, except for an e2fsck after an accident. On a machine where all is well it changes nothing and
/// runs no program. A disk without any content is read before it is formatted, which takes minutes; `blank` hears of it
/// at the beginning. A refusal leaves the disk untouched and is one of [`Code`]'s disk-missing, disk-foreign,
/// disk-damaged, disk-readonly, disk-unproven or config-invalid.
pub async fn ensure(
    host: &Host,
    config: &DiskConfig,
    instance: &Instance,
    blank: oneshot::Sender<()>,
) -> Result<Volume> {
    let last = LastDisk::read(host, instance.id).await?;
    match find::select(&config.choice, instance, last.as_ref())? {
        Place::BootDisk { warning } => {
            if let Some(warning) = warning {
                host.warn(warning);
            }
            warn_of_unused(host, last.as_ref(), None);
            host.ensure_dir(BOOT_DISK_DIR, Access::root(0o700)).await?;
            Ok(Volume::boot_disk())
        }
        Place::Disk(name) => {
            warn_of_unused(host, last.as_ref(), Some(&name));
            let device = find::device(host, &name).await.with_context(|| format!("finding the data disk {name}"))?;
            let volume = open(host, &device, instance, last.as_ref(), config.proof, blank).await;
            volume.with_context(|| format!("preparing the data disk {name}"))
        }
    }
}

/// A warning when another disk than `used` was used before.
fn warn_of_unused(host: &Host, last: Option<&LastDisk>, used: Option<&str>) {
    if let Some(last) = last.filter(|last| Some(last.device_name.as_str()) != used) {
        host.warn(format!("the state on the data disk {} is not used any more", last.device_name));
    }
}

/// Mounts the disk, unless it is mounted already, and verifies what is mounted.
async fn open(
    host: &Host,
    device: &Device,
    instance: &Instance,
    last: Option<&LastDisk>,
    proof: ProofChoice,
    blank: oneshot::Sender<()>,
) -> Result<Volume> {
    let root = Path::new(MOUNT_DIR).join(&device.name);
    let mounted = find_or_check_point(host, &root).await?;
    device.check(&Mounts::read(host).await?, mounted.as_ref())?;
    let was_mounted = is_mounted(device, mounted.as_ref())?;
    if !was_mounted {
        let (node, preparation) = filesystem::inspect(host, device).await?;
        if let Preparation::Format | Preparation::FormatAgain = preparation {
            refuse_if_used_before(device, last)?;
        }
        mount::ensure_point(host, &root).await?;
        match preparation {
            Preparation::Format | Preparation::FormatAgain => {
                undo::check_room(host, &node).await?;
                // Who does not listen has nothing to do meanwhile.
                let _ = blank.send(());
                format(host, &node, proof, preparation == Preparation::FormatAgain).await?;
            }
            Preparation::Check => filesystem::check(host, &node).await?,
            Preparation::Adopt => {
                filesystem::check_foreign(host, &node).await?;
                adopt(host, device, &node, &root, instance).await?;
            }
        }
        mount::ext4(host, &node, &root, undo::is_kept(host).await?).await?;
    }
    let contents = match look(host, device, &root).await {
        Err(error) => {
            if !was_mounted {
                give_up(host, &root).await;
            }
            return classify_io(error, &root);
        }
        Ok(contents) => contents,
    };
    format_intent::forget(host).await?;
    let Contents { node, superblock, is_marked, is_adopted } = contents;
    let (device_name, uuid) = (device.name.clone(), superblock.uuid.clone());
    let disk = LastDisk { device_name, uuid, instance_id: instance.id };
    let volume = Volume { root, disk: Some(disk.clone()), is_adopted };
    if is_adopted && !is_marked {
        warn_of_adoption(host, device);
        // First of all: without it a run that is cut would not know our directories again.
        volume.furnish(host, marker::write(host, &volume.root, &disk, true)).await?;
    }
    growth::ensure(host, device, &node, superblock.spare, !is_adopted).await;
    warn_of_copies(host, device, &superblock, instance).await;
    Ok(volume)
}

/// What is mounted at `root`, to which a link may lead. Without a mount there must be a place for one.
async fn find_or_check_point(host: &Host, root: &Path) -> Result<Option<Mount>> {
    let mounted = mount::find(host, root).await;
    if !matches!(mounted, Ok(Some(_))) {
        mount::check_point(host, root).await?;
    }
    mounted
}

/// Makes the file system on a disk that is proven to be blank. `is_cut`: but for a format of ours that was cut.
async fn format(host: &Host, node: &Path, proof: ProofChoice, is_cut: bool) -> Result<()> {
    let written = if is_cut { filesystem::written_by_mkfs(host, node).await? } else { Written::default() };
    let mut grounds = filesystem::prove(host, node, proof, written).await?;
    if is_cut {
        undo::take_back(host, node).await;
        grounds = format!("a format was cut before; apart from it {grounds}");
    }
    let undo = undo::begin(host, node).await?;
    let made = async {
        if !is_cut {
            format_intent::declare(host, node).await?;
        }
        filesystem::format(host, node, undo.as_deref(), &grounds).await
    };
    filesystem::classify_format(made.await)
}

/// What is on a mounted disk that may be used.
struct Contents {
    node: PathBuf,
    superblock: Superblock,
    is_marked: bool,
    is_adopted: bool,
}

/// Looks at the mounted disk, and refuses one that is not ours to use.
async fn look(host: &Host, device: &Device, root: &Path) -> Result<Contents> {
    let (node, superblock) = mounted_file_system(host, device, root).await?;
    let is_marked = check_names(host, root, superblock.label == filesystem::LABEL).await?;
    let marked = marker::is_adopted(host, root).await;
    let is_adopted = growth::is_adopted(marked, &superblock);
    // A label alone is no proof, and what mkfs makes is root's.
    if is_adopted || marked.is_none() {
        check_top(host, root).await?;
    }
    Ok(Contents { node, superblock, is_marked, is_adopted })
}

/// Refuses a file system of somebody else in whose top directory others than root could exchange our directories.
async fn check_top(host: &Host, root: &Path) -> Result<()> {
    let found = tokio::fs::symlink_metadata(host.path(root)).await?;
    if found.uid() == Access::root(0).uid && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let (root, owner, mode) = (root.display(), found.uid(), found.mode() & 0o7777);
    Err(anyhow!(
        "others than root can write in {root}, the top directory of somebody else's (uid {owner}, mode {mode:o})"
    ))
    .classify(
        Code::DiskForeign,
        format!(
            "Mount it, run `sudo chown root: DIR; sudo chmod go-w DIR` for its top directory DIR, unmount it and run \
             `{RUN_AGAIN}`; or attach another disk."
        ),
    )
}

/// Whether the disk is `mounted` where it belongs; an error when something else is, or the disk is read-only.
fn is_mounted(device: &Device, mounted: Option<&Mount>) -> Result<bool> {
    let Some(mounted) = mounted else { return Ok(false) };
    let point = mounted.point.display();
    if !device.numbers().contains(&mounted.device) || mounted.kind != "ext4" {
        return Err(anyhow!("device {} ({}) is mounted on {point}", mounted.device, mounted.kind)).classify(
            Code::DiskForeign,
            format!("Run `umount {point}`, take it out of /etc/fstab and run `{RUN_AGAIN}`."),
        );
    }
    if mounted.read_only {
        return Err(anyhow!("{point} has become read-only: the kernel found its file system damaged")).classify(
            Code::DiskDamaged,
            "Look at `dmesg`, take a snapshot of the disk, then reboot the VM to have it checked.",
        );
    }
    Ok(true)
}

/// Takes a clean file system of somebody else into use. After a power cut the marker must be found without replaying
/// the journal, so the file system is unmounted once: that writes the journal back in place.
async fn adopt(host: &Host, device: &Device, node: &Path, root: &Path, instance: &Instance) -> Result<()> {
    warn_of_adoption(host, device);
    mount::ext4(host, node, root, false).await?;
    let disk = LastDisk { device_name: device.name.clone(), uuid: String::new(), instance_id: instance.id };
    let volume = Volume { root: root.to_owned(), disk: Some(disk.clone()), is_adopted: true };
    let marked = async {
        check_names(host, root, false).await?;
        check_top(host, root).await?;
        marker::write(host, root, &disk, true).await
    };
    volume.furnish(host, marked).await?;
    mount::unmount(host, root).await
}

fn warn_of_adoption(host: &Host, device: &Device) {
    let name = &device.name;
    host.warn(format!("the disk {name} came with an ext4 file system: used as it is, only our directories are added"));
}

/// Unmounts a disk that cannot be used after all, unless somebody uses it.
async fn give_up(host: &Host, root: &Path) {
    if let Err(error) = mount::unmount(host, root).await {
        tracing::debug!("{error:#}");
    }
}

/// Whether our marker is on a mounted disk. Without it a name of ours is somebody else's, unless it is a directory that
/// a run left empty when it was cut before the marker: on a file system that is not `labelled` ours that can only be
/// the marker's own. With it, too, what is no directory is refused.
async fn check_names(host: &Host, root: &Path, labelled: bool) -> Result<bool> {
    let look = async |path: PathBuf| if_exists(tokio::fs::symlink_metadata(host.path(path)).await);
    let is_marked = match look(root.join(MARKER)).await {
        // Its directory's name is taken, as is said below.
        Err(error) if error.kind() == ErrorKind::NotADirectory => false,
        found => found?.is_some(),
    };
    let mut taken = Vec::new();
    for name in VOLUME_DIRS {
        let path = root.join(name);
        let Some(found) = look(path.clone()).await? else { continue };
        if !found.is_dir() {
            return classify_write(anyhow!("{} is not a directory", path.display()), root);
        }
        let may_be_left = OWNERS.contains(&found.uid()) && (labelled || holds_marker(&path));
        let is_ours = is_marked || (may_be_left && is_left_by_cut(host, &path).await?);
        if !is_ours {
            taken.push(name);
        }
    }
    if taken.is_empty() { Ok(is_marked) } else { filesystem::refuse_names(root, &taken.join(", ")) }
}

/// Whether a run that was cut before it had written the marker may have left the directory: it is empty, but for what
/// was to become the marker.
async fn is_left_by_cut(host: &Host, path: &Path) -> Result<bool> {
    let holds_marker = holds_marker(path);
    let mut entries = tokio::fs::read_dir(host.path(path)).await?;
    while let Some(entry) = entries.next_entry().await? {
        if !(holds_marker && entry.file_name().as_encoded_bytes().starts_with(b".tmp")) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn holds_marker(directory: &Path) -> bool {
    directory.file_name().is_some_and(|name| Path::new(MARKER).starts_with(name))
}

/// Classifies what kept us from making our directories and records below `root`.
fn classify_write<T>(error: anyhow::Error, root: &Path) -> Result<T> {
    let root = root.display();
    let (code, remedy) = match io_kind(error.root_cause()) {
        _ if error.is::<Diagnosis>() => return Err(error),
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            (Code::NoSpace, format!("Make room on the disk of {root}, in bytes (`df`) and files (`df -i`)"))
        }
        Some(ErrorKind::ReadOnlyFilesystem) => (Code::DiskReadonly, mount::READ_ONLY.into()),
        Some(ErrorKind::PermissionDenied) => {
            let what = "the top directory, or one of ours, is immutable";
            (
                Code::DiskForeign,
                format!("Mount the disk elsewhere: `lsattr -d` says if {what}; `chattr -i` takes that away"),
            )
        }
        None | Some(ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::AlreadyExists) => {
            (Code::DiskForeign, format!("Mount the disk elsewhere and rename what has our name in {root}"))
        }
        Some(_) => (Code::DiskDamaged, "Look at `dmesg` and take a snapshot of the disk".into()),
    };
    Err(error).classify(code, format!("{remedy}; then run `{RUN_AGAIN}`."))
}

/// The same of what failed for a reason of the system's; any other error stays as it is.
fn classify_io<T>(error: anyhow::Error, root: &Path) -> Result<T> {
    if io_kind(error.root_cause()).is_some() { classify_write(error, root) } else { Err(error) }
}

/// A blank disk that held our file system before is no new disk.
fn refuse_if_used_before(device: &Device, last: Option<&LastDisk>) -> Result<()> {
    let Some(last) = last.filter(|last| last.device_name == device.name) else { return Ok(()) };
    Err(anyhow!("the disk is blank, but this machine used a file system ({}) on it before", last.uuid)).classify(
        Code::DiskForeign,
        format!("If the disk was replaced on purpose, run `sudo rm {LAST_DISK}` and `{RUN_AGAIN}`."),
    )
}

/// The node of the disk, or of its partition, that is mounted at `root`, and the file system's superblock.
async fn mounted_file_system(host: &Host, device: &Device, root: &Path) -> Result<(PathBuf, Superblock)> {
    let mounted =
        mount::find(host, root).await?.with_context(|| format!("nothing is mounted on {}", root.display()))?;
    let node = if mounted.device == device.number { device.node.clone() } else { device.only_partition(host)? };
    let superblock = probe::superblock(&node).await?;
    let superblock = superblock.with_context(|| format!("{} is mounted but has no ext4 superblock", node.display()))?;
    Ok((node, superblock))
}

/// A disk made from a snapshot has the UUID of its original. That confuses people and other programs; this one goes by
/// the device name.
async fn warn_of_copies(host: &Host, device: &Device, ours: &Superblock, instance: &Instance) {
    for other in instance.disks.iter().filter(|disk| disk.device_name != device.name) {
        for node in find::nodes(host, &other.device_name).await {
            // A disk that cannot be read is none of our business here.
            if probe::superblock(&node).await.is_ok_and(|found| found.is_some_and(|found| found.uuid == ours.uuid)) {
                host.warn(format!(
                    "the disk {} has the same file system UUID as {}, as after a snapshot: {} is the one in use",
                    other.device_name,
                    device.name,
                    device.node.display()
                ));
            }
        }
    }
}
