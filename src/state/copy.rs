//! Exact copies of a directory: owners, modes, times to the nanosecond, symbolic and hard links, holes and
//! extended attributes.
//!
//! The original may belong to somebody who changes it at any moment, links included. Every directory is held open and
//! its entries are reached by one name from there, so nothing outside of it is read or written. The copy lies where
//! only root can write. What cannot be copied (fifos, sockets, devices, other file systems mounted within) is left out.
//! `fs_extra` copies the bytes; it knows of none of the rest.

mod attributes;
mod content;
mod copier;
pub(crate) mod linked;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod verifier;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;

use super::room::measure;
use crate::failpoint;
use crate::host::{Host, sync_dir};
use crate::text;
use copier::Copier;
use tree::Dir;
use verifier::Verifier;

/// How long before its copy was begun a file must have been changed last, to be taken for the same by size and times. A
/// store through a mapping moves the times only once in every write-back, 30 s by default
/// (kernel.org/doc/Documentation/sysctl/vm.txt, `dirty_expire_centisecs`).
const QUIET_INTERVAL: Duration = Duration::from_secs(60);

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What [`sync`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Files and links that were copied.
    pub copied: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that the copy had and the original has not (a directory with all in it counts once).
    pub removed: u64,
    /// What has no content to copy: fifos, sockets, devices, mount points.
    pub left_out: LeftOut,
    /// Files that other processes hold leases on, in a copy of what is [in use](Original::InUse).
    pub leased: LeftOut,
}

/// What is left out: how much, and one of it. Its names are somebody else's, as many and as long as they like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub first: Option<PathBuf>,
}

impl LeftOut {
    pub(crate) fn add(&mut self, path: &Path) {
        self.count += 1;
        self.first.get_or_insert_with(|| path.to_owned());
    }
}

/// Whether processes may have the original open while it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Original {
    /// A file with a lease on it is left for a later call.
    InUse,
    /// Every file is copied.
    AtRest,
}

/// Makes the directory `to` an exact copy of the directory `from`, synced to the disk when this returns.
///
/// Without a `to` it copies everything; else what differs, and it removes what `from` has no more. `from` may be in use
/// during a call, whose result is then only nearly equal: a later call finds every file that changed since it was
/// copied, and always copies `SQLite`'s files again. Paths are the machine's; the parent of `to` exists, and only root
/// can write to it. The caller notes the change.
pub async fn sync(host: &Host, from: &Path, to: &Path, original: Original) -> Result<SyncStats> {
    let (source, target) = (host.path(from), host.path(to));
    let doing = || format!("copying {} to {}", from.display(), to.display());
    let step = failpoint::counted("copy");
    step.hit_at("before");
    let stats = in_background(host, "copied", move |progress| {
        let source = open(&source)?;
        progress.expect(measure(&source)?.content);
        if !target.exists() {
            std::fs::DirBuilder::new().mode(0o700).create(&target).context("making the copy's directory")?;
        }
        let copy = open(&target)?;
        let stats = Copier::new(&copy, original, QUIET_INTERVAL, progress)?.run(&source)?;
        nix::unistd::syncfs(copy.file()).context("syncing the copy")?;
        sync_dir(target.parent().unwrap_or(&target))?;
        Ok(stats)
    })
    .await
    .with_context(doing)?;
    step.hit_at("after");
    if let Some(first) = &stats.left_out.first {
        host.warn(format!(
            "{} of {} cannot be copied and were left out (fifos, sockets, devices, mount points), such as {}",
            stats.left_out.count,
            from.display(),
            first.display()
        ));
    }
    Ok(stats)
}

/// Compares the copy `to` with `from`, both at rest: everything that [`sync`] copies, with the content of every file as
/// the disk has it. The error names the first path that differs.
pub async fn verify(host: &Host, from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (host.path(from), host.path(to));
    in_background(host, "verified", move |progress| {
        let (source, copy) = (open(&source)?, open(&target)?);
        progress.expect(measure(&source)?.content);
        Verifier::new(progress).directory(&source, &copy, Path::new(""), 0)
    })
    .await
    .with_context(|| format!("comparing {} with its copy {}", from.display(), to.display()))
}

fn open(path: &Path) -> Result<Dir> {
    Dir::open(path).with_context(|| format!("opening {}", path.display()))
}

/// How far the work has come, sent from its thread.
#[derive(Debug)]
pub(crate) struct Progress(watch::Sender<(u64, u64)>);

impl Progress {
    pub(crate) fn expect(&self, total: u64) {
        self.0.send_modify(|sent| sent.1 = total);
    }

    fn send(&self, bytes: u64) {
        self.0.send_modify(|sent| sent.0 += bytes);
    }

    /// Adds `bytes`; an error when nobody waits for the work any more.
    pub(crate) fn add(&self, bytes: u64) -> Result<()> {
        ensure!(!self.0.is_closed(), "it was given up");
        self.send(bytes);
        Ok(())
    }
}

/// Runs `work` in a thread and reports its progress: "copied 1.2 of 3.4 GiB".
pub(crate) async fn in_background<T: Send + 'static>(
    host: &Host,
    done: &str,
    work: impl FnOnce(&Progress) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, progress) = watch::channel((0, 0));
    let mut work = tokio::task::spawn_blocking(move || work(&Progress(sender)));
    loop {
        if let Ok(outcome) = tokio::time::timeout(PROGRESS_INTERVAL, &mut work).await {
            return outcome.context("waiting for a thread")?;
        }
        let (bytes, total) = *progress.borrow();
        host.progress(display_progress(done, bytes, total));
    }
}

fn display_progress(done: &str, bytes: u64, total: u64) -> String {
    let (unit, name) = text::unit(total);
    let tenths = |bytes: u64| bytes.saturating_mul(10) / unit;
    let (bytes, total) = (tenths(bytes), tenths(total.max(bytes)));
    format!("{done} {}.{} of {}.{} {name}", bytes / 10, bytes % 10, total / 10, total % 10)
}
