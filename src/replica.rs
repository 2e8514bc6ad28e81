//! Exact copies of a directory: owners, modes, times to the nanosecond, symbolic and hard links, holes and
//! extended attributes.
//!
//! The original may belong to somebody who changes it at any moment, links included: every directory is held
//! open and its entries are reached by one name from there, so nothing outside of it is ever read or written.
//! The copy lies where only root can write. What cannot be copied (fifos, sockets, devices, other file systems
//! mounted within) is left out. The bytes are carried by `fs_extra`, which knows of none of the rest.

mod attributes;
mod content;
mod copier;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod verifier;

use std::collections::HashSet;
use std::fmt;
use std::ops::AddAssign;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;

use crate::cut;
use crate::host::{Host, sync_dir};
use copier::Copier;
use tree::Dir;
use verifier::Verifier;

/// How many directories may lie within each other: two are held open for each.
pub(crate) const DEPTH: usize = 256;

/// How long before its copy was begun a file must have been changed last, to be trusted to be the same by size
/// and times. A store through a mapping moves the times only once in every write-back, 30 s by default
/// (kernel.org/doc/Documentation/sysctl/vm.txt, `dirty_expire_centisecs`).
const SETTLED: Duration = Duration::from_secs(60);

/// How often progress is told.
const PACE: Duration = Duration::from_millis(200);

/// What [`level`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leveled {
    /// Files and links that were copied.
    pub copied: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that the copy had and the original has not (a directory with all in it counts once).
    pub removed: u64,
    /// What has no content to copy: fifos, sockets, devices, mount points.
    pub left_out: Vec<PathBuf>,
}

/// The room that a tree takes, or that a file system has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes on the disk: holes take none, small files a whole block, a file with two names counts once.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
    /// The lengths of the files, what progress is told of.
    pub(crate) content: u64,
}

impl Size {
    /// Whether a file system with this much left has room for a tree of size `tree`, and a tenth more of it.
    pub fn has_room_for(&self, tree: Self) -> bool {
        let needed = |part: u64| part.saturating_add(part / 10);
        self.bytes >= needed(tree.bytes) && self.inodes >= needed(tree.inodes)
    }
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
        self.content += other.content;
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.bytes.div_ceil(1 << 20);
        write!(out, "{mebibytes} MiB in {} files", self.inodes)
    }
}

/// Makes the directory `to` an exact replica of the directory `from`, synced to the disk when this returns.
///
/// The first call, when there is no `to`, copies everything; another one only what differs, and removes what
/// `from` has no more. `from` may be in use during a call, whose result is then only nearly equal: a later call
/// finds every file that changed since it was copied, and copies `SQLite`'s files again in any case. Paths are
/// the machine's; the parent of `to` exists, and only root can write to it. The caller notes the change.
pub async fn level(host: &Host, from: &Path, to: &Path) -> Result<Leveled> {
    let (source, target) = (host.path(from), host.path(to));
    let doing = || format!("copying {} to {}", from.display(), to.display());
    let step = cut::step("copy");
    step.at("before");
    let leveled = in_background(host, "copied", move |told| {
        let source = open(&source)?;
        told.expect(measure(&source)?.content);
        if !target.exists() {
            std::fs::DirBuilder::new().mode(0o700).create(&target).context("making the copy's directory")?;
        }
        let copy = open(&target)?;
        let leveled = Copier::new(&copy, SETTLED, told).run(&source)?;
        nix::unistd::syncfs(copy.file()).context("syncing the copy")?;
        sync_dir(target.parent().unwrap_or(&target))?;
        Ok(leveled)
    })
    .await
    .with_context(doing)?;
    step.at("after");
    if let Some(first) = leveled.left_out.first() {
        host.warn(format!(
            "{} of {} cannot be copied and were left out (fifos, sockets, devices, mount points), such as {}",
            leveled.left_out.len(),
            from.display(),
            first.display()
        ));
    }
    Ok(leveled)
}

/// Compares the replica `to` with `from`, both at rest: everything that [`level`] copies, the content of every
/// file included, as the disk has it. The error names the first path that differs.
pub async fn verify(host: &Host, from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (host.path(from), host.path(to));
    in_background(host, "verified", move |told| {
        let (source, copy) = (open(&source)?, open(&target)?);
        told.expect(measure(&source)?.content);
        Verifier::new(told).directory(&source, &copy, Path::new(""), 0)
    })
    .await
    .with_context(|| format!("comparing {} with its copy {}", from.display(), to.display()))
}

/// The room that the tree `path` takes; nothing when it does not exist.
pub async fn size(host: &Host, path: &Path) -> Result<Size> {
    let tree = host.path(path);
    let measure = move || if tree.exists() { measure(&open(&tree)?) } else { Ok(Size::default()) };
    tokio::task::spawn_blocking(measure).await?.with_context(|| format!("measuring {}", path.display()))
}

/// The room that is left on the file system of the directory `path`, for root.
pub async fn free(host: &Host, path: &Path) -> Result<Size> {
    let directory = host.path(path);
    let asked = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&directory)).await?;
    let found = asked.with_context(|| format!("asking for the room left in {}", path.display()))?;
    Ok(Size { bytes: found.blocks_free() * found.fragment_size(), inodes: found.files_free(), content: 0 })
}

fn open(path: &Path) -> Result<Dir> {
    Dir::open(path).with_context(|| format!("opening {}", path.display()))
}

fn measure(top: &Dir) -> Result<Size> {
    let (mut size, mut seen) = (Size::default(), HashSet::new());
    measure_into(top, &mut size, &mut seen, 0)?;
    Ok(size)
}

fn measure_into(dir: &Dir, size: &mut Size, seen: &mut HashSet<u64>, depth: usize) -> Result<()> {
    ensure!(depth < DEPTH, "there are more than {DEPTH} directories within each other");
    let here = dir.metadata()?;
    size.bytes += here.blocks() * 512;
    size.inodes += 1;
    for name in dir.names()? {
        let Some(found) = dir.look(&name)?.filter(|found| found.dev() == here.dev()) else { continue };
        if found.is_dir() {
            // One that is gone by now, or is none any more, takes no room.
            if let Ok(child) = Dir::open(&dir.at(&name)) {
                measure_into(&child, size, seen, depth + 1)?;
            }
        } else if found.nlink() == 1 || seen.insert(found.ino()) {
            size.bytes += found.blocks() * 512;
            size.inodes += 1;
            size.content += if found.is_file() { found.len() } else { 0 };
        }
    }
    Ok(())
}

/// How far the work has come, told from its thread.
#[derive(Debug)]
pub(crate) struct Told(watch::Sender<(u64, u64)>);

impl Told {
    pub(crate) fn expect(&self, total: u64) {
        self.0.send_modify(|told| told.1 = total);
    }

    fn tell(&self, bytes: u64) {
        self.0.send_modify(|told| told.0 += bytes);
    }

    /// Tells `bytes`; an error when nobody waits for the work any more.
    pub(crate) fn add(&self, bytes: u64) -> Result<()> {
        ensure!(!self.0.is_closed(), "it was given up");
        self.tell(bytes);
        Ok(())
    }
}

/// Runs `work` in a thread and shows its progress: "copied 1.2 of 3.4 GiB".
pub(crate) async fn in_background<T: Send + 'static>(
    host: &Host,
    done: &str,
    work: impl FnOnce(&Told) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, progress) = watch::channel((0, 0));
    let mut work = tokio::task::spawn_blocking(move || work(&Told(sender)));
    loop {
        if let Ok(outcome) = tokio::time::timeout(PACE, &mut work).await {
            return outcome.context("waiting for a thread")?;
        }
        let (bytes, total) = *progress.borrow();
        host.progress(shown(done, bytes, total));
    }
}

fn shown(done: &str, bytes: u64, total: u64) -> String {
    let (unit, name) = if total >= 1 << 30 { (1 << 30, "GiB") } else { (1 << 20, "MiB") };
    let tenths = |bytes: u64| bytes.saturating_mul(10) / unit;
    let (bytes, total) = (tenths(bytes), tenths(total.max(bytes)));
    format!("{done} {}.{} of {}.{} {name}", bytes / 10, bytes % 10, total / 10, total % 10)
}
