//! Swap of a small machine: a file on the boot disk, active from this program's run on, at every boot.
//!
//! A gateway with agents needs 1.4 - 1.7 GB, an npm build or an update beside it 0.6 GB more, each command of
//! its own 0.3 GB: on less than 4 GiB a moment's peak would otherwise be the end of the gateway. There is no
//! line in `/etc/fstab`: what the machine has is looked at anew in each run. A machine that cannot have swap is
//! warned about and goes on.

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

/// A machine with this much memory needs none (see above).
const ENOUGH_MEMORY: u64 = 4096 * MIB;

/// The size that nobody chose: a gateway on 2 GB was seen to need no more, less than the least helps nobody.
const LARGEST: u64 = 2048 * MIB;
const LEAST: u64 = 512 * MIB;

/// At most this part of the free disk, since images need the rest; and what must stay of it for a chosen size.
const PART: u64 = 4;
const RESERVE: u64 = 1024 * MIB;

const STEP: u64 = 64 * MIB;

/// Everything in it must find room in memory first.
const SWAPOFF_TIMEOUT: Duration = Duration::from_secs(300);

/// Makes the machine have the swap that `choice` asks for. What goes wrong is a warning.
pub async fn ensure(host: &Host, choice: SwapChoice) -> Result<()> {
    if let Err(error) = apply(host, choice).await {
        host.warn(format!("the machine goes on without the swap that it should have: {error:#}"));
    }
    Ok(())
}

/// Takes our swap away: what was swapped out may hold secrets, so an image must not have it.
pub async fn remove(host: &Host) -> Result<()> {
    let machine = Machine::observe(host).await?;
    take_away(host, machine.ours.is_some_and(|ours| ours.active)).await
}

async fn apply(host: &Host, choice: SwapChoice) -> Result<()> {
    // Swap belongs to the kernel, which a container shares with others (systemd's own sign of a container).
    if host.read("/run/systemd/container").await?.is_some() {
        tracing::debug!("a container has its kernel's swap, not one of its own");
        return Ok(());
    }
    let machine = Machine::observe(host).await?;
    let plan = decide(choice, machine)?;
    tracing::debug!("swap: {plan:?}, {machine:?}");
    match plan {
        Plan::Nothing => Ok(()),
        Plan::Remove => take_away(host, machine.ours.is_some_and(|ours| ours.active)).await,
        Plan::Activate => activate(host).await,
        Plan::Make(size) => {
            take_away(host, machine.ours.is_some_and(|ours| ours.active)).await?;
            make(host, size).await?;
            activate(host).await
        }
    }
}

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Machine {
    /// In bytes.
    memory: u64,
    /// Whether there is active swap that is not ours.
    others: bool,
    ours: Option<Ours>,
    /// Free bytes on the boot disk.
    free: u64,
    /// Whether its file system can hold swap in a file that is merely allocated.
    suitable: bool,
}

/// Our file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ours {
    size: u64,
    active: bool,
}

impl Machine {
    async fn observe(host: &Host) -> Result<Self> {
        let memory = memory::total(host).await?;
        let swaps = host.read("/proc/swaps").await?.unwrap_or_default();
        let (active, others) = parse_swaps(&String::from_utf8_lossy(&swaps));
        let found = if_exists(tokio::fs::symlink_metadata(host.path(SWAP)).await);
        let found = found.with_context(|| format!("looking at {SWAP}"))?;
        let ours = found.map(|found| Ours { size: found.len(), active });
        let place = statfs(&host.path("/var/lib")).context("looking at the boot disk's file system")?;
        let free = place.blocks_available() * u64::try_from(place.block_size()).unwrap_or_default();
        Ok(Self { memory, others, ours, free, suitable: is_suitable(place.filesystem_type()) })
    }
}

/// Others copy on write or compress: there swap needs files made in their own ways.
fn is_suitable(kind: FsType) -> bool {
    kind == EXT4_SUPER_MAGIC || kind == XFS_SUPER_MAGIC
}

/// Whether our file is among the active swap areas of `/proc/swaps`, and whether another is.
fn parse_swaps(swaps: &str) -> (bool, bool) {
    let mut areas = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    areas.by_ref().fold((false, false), |(ours, others), area| (ours || area == SWAP, others || area != SWAP))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Nothing,
    Remove,
    Activate,
    Make(u64),
}

fn decide(choice: SwapChoice, machine: Machine) -> Result<Plan> {
    let free = machine.free + machine.ours.map_or(0, |ours| ours.size);
    let size = match choice {
        SwapChoice::Off => None,
        SwapChoice::Auto if machine.memory >= ENOUGH_MEMORY || machine.others => None,
        SwapChoice::Auto => Some(machine.ours.map_or(LARGEST.min(free / PART) / STEP * STEP, |ours| ours.size)),
        SwapChoice::Size(size) => Some(size),
    };
    let Some(size) = size else {
        return Ok(if machine.ours.is_some() { Plan::Remove } else { Plan::Nothing });
    };
    match machine.ours {
        Some(Ours { size: present, active }) if present == size => {
            return Ok(if active { Plan::Nothing } else { Plan::Activate });
        }
        _ => {}
    }
    if !machine.suitable {
        bail!("the boot disk's file system is neither ext4 nor xfs");
    }
    let short = match choice {
        SwapChoice::Size(size) => free < size + RESERVE,
        _ => size < LEAST,
    };
    if short {
        bail!("the boot disk has only {} MiB left (grow it: gcloud compute disks resize)", free / MIB);
    }
    Ok(Plan::Make(size))
}

/// Allocated in full, since swap cannot have holes, and given its name when it is complete.
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

async fn take_away(host: &Host, active: bool) -> Result<()> {
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

    const SMALL: Machine =
        Machine { memory: 2000 * MIB, others: false, ours: None, free: 20_000 * MIB, suitable: true };

    fn with(size: u64, active: bool) -> Machine {
        Machine { ours: Some(Ours { size: size * MIB, active }), ..SMALL }
    }

    #[test]
    fn memory_disk_and_the_operator_decide() {
        use SwapChoice::{Auto, Off, Size};
        let size = |mib: u64| Size(mib * MIB);
        let make = |mib: u64| Ok(Plan::Make(mib * MIB));
        #[rustfmt::skip]
        let cases: &[(&str, SwapChoice, Machine, Result<Plan, &str>)] = &[
            ("small", Auto, SMALL, make(2048)),
            ("e2-medium: 4 GB less the kernel's part", Auto, Machine { memory: 3936 * MIB, ..SMALL }, make(2048)),
            ("8 GB", Auto, Machine { memory: 7900 * MIB, ..SMALL }, Ok(Plan::Nothing)),
            ("has swap of its own", Auto, Machine { others: true, ..SMALL }, Ok(Plan::Nothing)),
            ("has swap of its own, and more is asked for", size(1024), Machine { others: true, ..SMALL }, make(1024)),
            ("little disk", Auto, Machine { free: 5000 * MIB, ..SMALL }, make(1216)),
            ("too little disk", Auto, Machine { free: 1500 * MIB, ..SMALL }, Err("only 1500 MiB")),
            ("too little disk for this size", size(1024), Machine { free: 1500 * MIB, ..SMALL }, Err("only 1500 MiB")),
            ("btrfs", Auto, Machine { suitable: false, ..SMALL }, Err("neither ext4 nor xfs")),
            ("second run", Auto, with(2048, true), Ok(Plan::Nothing)),
            ("second run, disk nearly full", Auto, Machine { free: 0, ..with(2048, true) }, Ok(Plan::Nothing)),
            ("next boot", Auto, with(2048, false), Ok(Plan::Activate)),
            ("larger machine type", Auto, Machine { memory: 7900 * MIB, ..with(2048, false) }, Ok(Plan::Remove)),
            ("another size", size(1024), with(2048, true), make(1024)),
            ("another size in the room of the old", size(2048), Machine { free: 0, ..with(3072, true) }, make(2048)),
            ("the same size", size(2048), with(2048, true), Ok(Plan::Nothing)),
            ("off", Off, with(2048, true), Ok(Plan::Remove)),
            ("off already", Off, SMALL, Ok(Plan::Nothing)),
            ("off leaves others alone", Off, Machine { others: true, ..SMALL }, Ok(Plan::Nothing)),
        ];
        for (case, choice, machine, wanted) in cases {
            match (decide(*choice, *machine), wanted) {
                (Ok(plan), Ok(wanted)) => assert_eq!(plan, *wanted, "{case}"),
                (Err(error), Err(wanted)) => assert!(error.to_string().contains(wanted), "{case}: {error}"),
                (plan, _) => panic!("{case}: {plan:?}"),
            }
        }
    }

    #[test]
    fn active_areas_are_told_apart() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let line = |name: &str| format!("{name}    file\t\t2097148\t\t0\t\t-2\n");
        let (own, zram) = (line(SWAP), line("/dev/zram0"));
        assert_eq!(parse_swaps(""), (false, false));
        assert_eq!(parse_swaps(head), (false, false));
        assert_eq!(parse_swaps(&format!("{head}{own}")), (true, false));
        assert_eq!(parse_swaps(&format!("{head}{zram}")), (false, true));
        assert_eq!(parse_swaps(&format!("{head}{zram}{own}")), (true, true));
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
        make(&host, STEP).await?;
        let found = std::fs::metadata(host.path(SWAP))?;
        assert_eq!((found.len(), found.permissions().mode() & 0o777), (STEP, 0o600));
        assert!(found.blocks() * 512 >= STEP, "it has holes: {} blocks", found.blocks());
        let page = std::fs::read(host.path(SWAP))?;
        assert_eq!(&page[4086..4096], b"SWAPSPACE2");
        assert!(!host.path(UNFINISHED_SWAP).exists());
        take_away(&host, false).await?;
        assert!(!host.path(SWAP).exists());
        Ok(())
    }

    #[tokio::test]
    async fn a_container_is_left_alone() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(host.path("/run/systemd"))?;
        std::fs::write(host.path("/run/systemd/container"), "systemd-nspawn")?;
        ensure(&host, SwapChoice::Size(STEP)).await?;
        assert_eq!(*host.ledger().borrow(), crate::host::Ledger::default());
        Ok(())
    }
}
