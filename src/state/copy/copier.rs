//! One pass that makes a tree equal to another one.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::attributes::{self, Attributes};
use super::content;
use super::linked::{FirstNames, Linked, Place};
use super::tree::{Dir, Entry};
use super::{Original, Progress, SyncStats};
use crate::text::short;

#[derive(Debug)]
pub(super) struct Copier<'a> {
    target: &'a Dir,
    original: Original,
    /// How long before its copy was begun a file must have been changed last, for the copy to be trusted unread.
    quiet: Duration,
    progress: &'a Progress,
    /// Files with more than one name: by the original's inode, where the copy is, and its inode.
    links: Linked<(Place, u64)>,
    names: FirstNames,
    /// Files of the copy with more than one name that already stand for an original.
    taken: Linked<()>,
    stats: SyncStats,
}

impl<'a> Copier<'a> {
    pub(super) fn new(target: &'a Dir, original: Original, quiet: Duration, progress: &'a Progress) -> Result<Self> {
        let (links, taken, stats) = (Linked::new(), Linked::new(), SyncStats::default());
        Ok(Self { target, original, quiet, progress, links, names: FirstNames::new(&target.at("."))?, taken, stats })
    }

    /// Makes the target equal to `from`.
    pub(super) fn run(mut self, from: &Dir) -> Result<SyncStats> {
        self.directory(from, self.target, Path::new(""), 0)?;
        Ok(self.stats)
    }

    fn directory(&mut self, from: &Dir, to: &Dir, path: &Path, depth: usize) -> Result<()> {
        from.require_depth(depth)?;
        let found = from.metadata()?;
        let target = self.target.metadata()?;
        ensure!((found.dev(), found.ino()) != (target.dev(), target.ino()), "the copy lies within the original");
        let wanted = from.names().context("listing it")?;
        for name in to.names().context("listing its copy")?.iter() {
            if !wanted.has(name) {
                to.remove(name).with_context(|| format!("removing {} from the copy", short(&path.join(name))))?;
                self.stats.removed += 1;
            }
        }
        for name in wanted.iter() {
            let path = path.join(name);
            let doing = || short(&path);
            let Some(entry) = self.open(from, name).with_context(doing)? else {
                self.stats.leased.add(&path);
                continue;
            };
            match entry {
                Entry::Directory(child) => {
                    let copy = to.ensure_directory(name).with_context(doing)?;
                    self.directory(&child, &copy, &path, depth + 1)?;
                    continue;
                }
                Entry::File(file, found) => self.file(&file, &found, to, name, &path),
                Entry::Link(target, found) => self.link(&target, &found, to, name, &path),
                Entry::Special | Entry::Gone => {
                    if matches!(entry, Entry::Special) {
                        self.stats.left_out.add(&path);
                    }
                    to.remove(name).map(drop).map_err(Into::into)
                }
            }
            .with_context(doing)?;
        }
        // Last, since every change within it moved its time.
        let attributes = Attributes::read(from.file(), &found)?;
        attributes.give_to(to.file()).with_context(|| format!("the directory {}", short(path)))
    }

    /// `None`: it has a lease, and is left for later.
    fn open(&self, from: &Dir, name: &OsStr) -> Result<Option<Entry>> {
        match self.original {
            Original::InUse => from.open_unleased(name),
            Original::AtRest => from.open_entry(name).map(Some),
        }
    }

    fn link(&mut self, target: &Path, found: &Metadata, to: &Dir, name: &OsStr, path: &Path) -> Result<()> {
        if self.is_linked(found, to, name)? {
            return Ok(());
        }
        let current = to.look(name)?.filter(|current| current.is_symlink() && !self.taken.has(current.ino()));
        if current.is_none() || fs::read_link(to.at(name))? != target {
            to.remove(name)?;
            symlink(target, to.at(name))?;
            self.stats.copied += 1;
        }
        attributes::give_to_link(to, name, found)?;
        let copied = to.look(name)?.context("the link that was just made has gone")?;
        self.remember(found, &copied, path)
    }

    fn file(&mut self, file: &File, found: &Metadata, to: &Dir, name: &OsStr, path: &Path) -> Result<()> {
        if self.is_linked(found, to, name)? {
            return Ok(());
        }
        let may_keep = to.look(name)?.is_some_and(|current| self.is_unchanged(found, &current));
        let copy = if may_keep && !content::is_sqlite(name.as_bytes(), file)? {
            self.progress.add(found.len())?;
            to.regular(name)?
        } else {
            self.progress.add(0)?;
            to.remove(name)?;
            let copy = to.create(name)?;
            content::copy(file, &copy, &mut |bytes| self.progress.send(bytes)).context("copying its content")?;
            self.stats.copied += 1;
            self.stats.bytes += found.len();
            copy
        };
        Attributes::read(file, found)?.give_to(&copy)?;
        self.remember(found, &copy.metadata()?, path)
    }

    /// Whether this is one more name of what was copied already; the copy then has it as well.
    fn is_linked(&self, found: &Metadata, to: &Dir, name: &OsStr) -> Result<bool> {
        let Some(&(first, inode)) = self.links.get(found.ino()) else { return Ok(false) };
        if to.look(name)?.is_none_or(|current| current.ino() != inode) {
            let first = self.names.get(first).context("looking for its first name")?;
            to.remove(name)?;
            fs::hard_link(self.target.at(first), to.at(name)).context("making a hard link")?;
        }
        Ok(true)
    }

    fn remember(&mut self, found: &Metadata, copied: &Metadata, path: &Path) -> Result<()> {
        if found.nlink() > 1 {
            let first = self.names.add(path)?;
            self.links.insert(found.ino(), (first, copied.ino()))?;
        }
        if copied.nlink() > 1 {
            self.taken.insert(copied.ino(), ())?;
        }
        Ok(())
    }

    /// Whether the copy can be trusted to have the file's content.
    ///
    /// Size and modification time are not enough: a file can be written to while it is copied, within one tick of the
    /// clock, or through a mapping, and its times can be set back. Its change time cannot, and every write after the
    /// copy was begun moves it.
    fn is_unchanged(&self, found: &Metadata, copy: &Metadata) -> bool {
        let changed = UNIX_EPOCH
            + Duration::new(
                u64::try_from(found.ctime()).unwrap_or_default(),
                found.ctime_nsec().try_into().unwrap_or(0),
            );
        copy.is_file()
            && copy.len() == found.len()
            && attributes::modified(copy) == attributes::modified(found)
            && copy.created().is_ok_and(|begun| changed + self.quiet < begun)
            && !self.taken.has(copy.ino())
    }
}
