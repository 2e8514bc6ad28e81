//! Swap for a small machine: a file on the boot disk, which each run activates.
//!
//! A gateway with agents needs 1.4 - 1.7 GB, an npm build or an update beside it 0.6 GB more, and each command of its
//! own 0.3 GB: with less than 4 GiB a short peak would be the end of the gateway. `/etc/fstab` has no line of it, since
//! each run looks anew at what the machine has. A machine that cannot have swap goes on with a warning.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::posix_fallocate;
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC, statfs};

use crate::config::SwapChoice;
use crate::host::{Access, Host, blocking, if_exists, set_access, sync_dir};
use crate::memory;
use crate::paths::{BOOT_DISK_DIR, SWAP, UNFINISHED_SWAP};
use crate::text::MIB;

/// A machine with this much memory needs no swap (see above).
const ENOUGH_MEMORY_BYTES: u64 = 4096 * MIB;

/// Sizes that nobody chose: a gateway on 2 GB was seen to need no more than the maximum, and less than the minimum does
/// not help.
const MAX_BYTES: u64 = 2048 * MIB;
const MIN_BYTES: u64 = 512 * MIB;

/// Images need the boot disk, too: a size that nobody chose is at most this part of what is free, one quarter; one that
/// was chosen leaves this much.
const FREE_SHARE: u64 = 4;
const RESERVE_BYTES: u64 = 1024 * MIB;

/// A size that nobody chose is a multiple of this.
const STEP_BYTES: u64 = 64 * MIB;

/// Everything that was swapped out must find room in memory first.
const SWAPOFF_TIMEOUT: Duration = Duration::from_secs(300);

/// Makes the machine have the swap of `choice`. A failure is a warning.
pub async fn ensure(host: &Host, choice: SwapChoice) -> Result<()> {
    if let Err(error) = apply(host, choice).await {
        host.warn(format!("the machine goes on without the swap that it should have: {error:#}"));
    }
    Ok(())
}

/// Removes our swap: it may hold secrets, so an image must not have it.
pub async fn remove(host: &Host) -> Result<()> {
    let found = Swap::observe(host).await?;
    remove_file(host, found.is_active()).await
}

async fn apply(host: &Host, choice: SwapChoice) -> Result<()> {
    // Swap belongs to the kernel, which a container shares with others (systemd's own sign of a container).
    if host.read("/run/systemd/container").await?.is_some() {
        tracing::debug!("a container has its kernel's swap, not one of its own");
        return Ok(());
    }
    let found = Swap::observe(host).await?;
    let change = decide(choice, found)?;
    tracing::debug!("swap: {change:?}, {found:?}");
    match change {
        SwapChange::Nothing => Ok(()),
        SwapChange::Remove => remove_file(host, found.is_active()).await,
        SwapChange::Activate => activate(host).await,
        SwapChange::Make(size) => {
            remove_file(host, found.is_active()).await?;
            make(host, size).await?;
            activate(host).await
        }
    }
}

/// The machine's swap, and what decides about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Swap {
    /// The machine's memory, in bytes.
    memory: u64,
    /// Whether there is active swap that is not ours.
    others: bool,
    ours: Option<Ours>,
    /// Free bytes on the boot disk.
    free: u64,
    /// Whether a file on it can hold swap once it is allocated.
    suitable: bool,
}

/// Our file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ours {
    size: u64,
    active: bool,
}

impl Swap {
    fn is_active(self) -> bool {
        self.ours.is_some_and(|ours| ours.active)
    }

    async fn observe(host: &Host) -> Result<Self> {
        let memory = memory::total(host).await?;
        let swaps = host.read("/proc/swaps").await?.unwrap_or_default();
        // The kernel names it without links.
        let path = tokio::fs::canonicalize(host.path(SWAP)).await.unwrap_or_else(|_| SWAP.into());
        let (active, others) = parse_swaps(&String::from_utf8_lossy(&swaps), &path);
        let found = if_exists(tokio::fs::symlink_metadata(host.path(SWAP)).await);
        let found = found.with_context(|| format!("looking at {SWAP}"))?;
        let ours = found.map(|found| Ours { size: found.len(), active });
        let place = statfs(&host.path("/var/lib")).context("looking at the boot disk's file system")?;
        let free = place.blocks_available() * u64::try_from(place.block_size()).unwrap_or_default();
        Ok(Self { memory, others, ours, free, suitable: is_suitable(place.filesystem_type()) })
    }
}

/// Other file systems copy on write or compress, and need swap files made in ways of their own.
fn is_suitable(kind: FsType) -> bool {
    kind == EXT4_SUPER_MAGIC || kind == XFS_SUPER_MAGIC
}

/// Whether our file, at `path`, is among the active swap areas of `/proc/swaps`, and whether another is.
fn parse_swaps(swaps: &str, path: &Path) -> (bool, bool) {
    let mut areas = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    areas.by_ref().fold((false, false), |(ours, others), area| {
        (ours || path == Path::new(area), others || path != Path::new(area))
    })
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SwapChange {
    Nothing,
    Remove,
    Activate,
    Make(u64),
}

fn decide(choice: SwapChoice, found: Swap) -> Result<SwapChange> {
    let free = found.free + found.ours.map_or(0, |ours| ours.size);
    let size = match choice {
        SwapChoice::Off => None,
        SwapChoice::Auto if found.memory >= ENOUGH_MEMORY_BYTES || found.others => None,
        SwapChoice::Auto => {
            Some(found.ours.map_or(MAX_BYTES.min(free / FREE_SHARE) / STEP_BYTES * STEP_BYTES, |ours| ours.size))
        }
        SwapChoice::Size(size) => Some(size),
    };
    let Some(size) = size else {
        return Ok(if found.ours.is_some() { SwapChange::Remove } else { SwapChange::Nothing });
    };
    if let Some(ours) = found.ours.filter(|ours| ours.size == size) {
        return Ok(if ours.active { SwapChange::Nothing } else { SwapChange::Activate });
    }
    if !found.suitable {
        bail!("the boot disk's file system is neither ext4 nor xfs");
    }
    let is_short = match choice {
        SwapChoice::Size(size) => free < size + RESERVE_BYTES,
        _ => size < MIN_BYTES,
    };
    if is_short {
        bail!("the boot disk has only {} MiB left (grow it: gcloud compute disks resize)", free / MIB);
    }
    Ok(SwapChange::Make(size))
}

/// Makes the file: allocated in full, since swap cannot have holes, and under its name only when it is complete.
async fn make(host: &Host, size: u64) -> Result<()> {
    host.ensure_dir(BOOT_DISK_DIR, Access::root(0o700)).await?;
    let (file, unfinished) = (host.path(SWAP), host.path(UNFINISHED_SWAP));
    let path = unfinished.clone();
    blocking(move || allocate(&path, size)).await.with_context(|| format!("allocating {UNFINISHED_SWAP}"))?;
    host.command("mkswap").arg(&unfinished).run().await?;
    blocking(move || {
        File::open(&unfinished)?.sync_all()?;
        std::fs::rename(&unfinished, &file)?;
        file.parent().map_or(Ok(()), sync_dir)
    })
    .await
    .with_context(|| format!("completing {SWAP}"))?;
    host.changed(format!("made a swap file of {} MiB", size / MIB));
    Ok(())
}

fn allocate(path: &Path, size: u64) -> Result<()> {
    let file = File::create(path)?;
    set_access(&file, Access::root(0o600))?;
    posix_fallocate(&file, 0, i64::try_from(size)?)?;
    Ok(())
}

async fn activate(host: &Host) -> Result<()> {
    host.command("swapon").arg(host.path(SWAP)).run().await?;
    host.changed("activated swap");
    Ok(())
}

/// Removes the file, whether or not it is complete, after it has been deactivated.
async fn remove_file(host: &Host, active: bool) -> Result<()> {
    if active {
        host.command("swapoff").arg(host.path(SWAP)).timeout(SWAPOFF_TIMEOUT).run().await?;
        host.changed("deactivated swap");
    }
    host.remove_file(UNFINISHED_SWAP).await?;
    host.remove_file(SWAP).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    const SMALL: Swap = Swap { memory: 2000 * MIB, others: false, ours: None, free: 20_000 * MIB, suitable: true };

    fn with(size: u64, active: bool) -> Swap {
        Swap { ours: Some(Ours { size: size * MIB, active }), ..SMALL }
    }

    #[test]
    fn memory_disk_and_the_operator_decide() {
        use SwapChoice::{Auto, Off, Size};
        let size = |mib: u64| Size(mib * MIB);
        let make = |mib: u64| Ok(SwapChange::Make(mib * MIB));
        #[rustfmt::skip]
        let cases: &[(&str, SwapChoice, Swap, Result<SwapChange, &str>)] = &[
            ("small", Auto, SMALL, make(2048)),
            ("e2-medium: 4 GB less the kernel's part", Auto, Swap { memory: 3936 * MIB, ..SMALL }, make(2048)),
            ("8 GB", Auto, Swap { memory: 7900 * MIB, ..SMALL }, Ok(SwapChange::Nothing)),
            ("has swap of its own", Auto, Swap { others: true, ..SMALL }, Ok(SwapChange::Nothing)),
            ("has swap of its own, and more is asked for", size(1024), Swap { others: true, ..SMALL }, make(1024)),
            ("little disk", Auto, Swap { free: 5000 * MIB, ..SMALL }, make(1216)),
            ("too little disk", Auto, Swap { free: 1500 * MIB, ..SMALL }, Err("only 1500 MiB")),
            ("too little disk for this size", size(1024), Swap { free: 1500 * MIB, ..SMALL }, Err("only 1500 MiB")),
            ("btrfs", Auto, Swap { suitable: false, ..SMALL }, Err("neither ext4 nor xfs")),
            ("second run", Auto, with(2048, true), Ok(SwapChange::Nothing)),
            ("second run, disk nearly full", Auto, Swap { free: 0, ..with(2048, true) }, Ok(SwapChange::Nothing)),
            ("next boot", Auto, with(2048, false), Ok(SwapChange::Activate)),
            ("larger machine type", Auto, Swap { memory: 7900 * MIB, ..with(2048, false) }, Ok(SwapChange::Remove)),
            ("another size", size(1024), with(2048, true), make(1024)),
            ("another size in the room of the old", size(2048), Swap { free: 0, ..with(3072, true) }, make(2048)),
            ("the same size", size(2048), with(2048, true), Ok(SwapChange::Nothing)),
            ("off", Off, with(2048, true), Ok(SwapChange::Remove)),
            ("off already", Off, SMALL, Ok(SwapChange::Nothing)),
            ("off leaves others alone", Off, Swap { others: true, ..SMALL }, Ok(SwapChange::Nothing)),
        ];
        for (case, choice, found, expected) in cases {
            match (decide(*choice, *found), expected) {
                (Ok(change), Ok(expected)) => assert_eq!(change, *expected, "{case}"),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{case}: {error}"),
                (change, _) => panic!("{case}: {change:?}"),
            }
        }
    }

    #[test]
    fn active_areas_are_told_apart() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let line = |name: &str| format!("{name}    file\t\t2097148\t\t0\t\t-2\n");
        let (own, zram) = (line(SWAP), line("/dev/zram0"));
        let parsed = |swaps: &str| parse_swaps(swaps, Path::new(SWAP));
        assert_eq!(parsed(""), (false, false));
        assert_eq!(parsed(head), (false, false));
        assert_eq!(parsed(&format!("{head}{own}")), (true, false));
        assert_eq!(parsed(&format!("{head}{zram}")), (false, true));
        assert_eq!(parsed(&format!("{head}{zram}{own}")), (true, true));
    }

    /// Everything but the kernel's part: swap is the whole machine's, so a test must not have any.
    #[tokio::test]
    async fn the_file_is_whole_private_and_gone_again() -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root, for a file of root's");
            return Ok(());
        }
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(host.path(BOOT_DISK_DIR))?;
        std::fs::write(host.path(UNFINISHED_SWAP), "of a run that was cut")?;
        make(&host, STEP_BYTES).await?;
        let found = std::fs::metadata(host.path(SWAP))?;
        assert_eq!((found.len(), found.permissions().mode() & 0o777), (STEP_BYTES, 0o600));
        assert!(found.blocks() * 512 >= STEP_BYTES, "it has holes: {} blocks", found.blocks());
        let page = std::fs::read(host.path(SWAP))?;
        assert_eq!(&page[4086..4096], b"SWAPSPACE2");
        assert!(!host.path(UNFINISHED_SWAP).exists());
        remove_file(&host, false).await?;
        assert!(!host.path(SWAP).exists());
        Ok(())
    }

    #[tokio::test]
    async fn a_container_is_left_alone() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(host.path("/run/systemd"))?;
        std::fs::write(host.path("/run/systemd/container"), "systemd-nspawn")?;
        ensure(&host, SwapChoice::Size(STEP_BYTES)).await?;
        assert_eq!(*host.ledger().borrow(), crate::host::Ledger::default());
        Ok(())
    }
}
