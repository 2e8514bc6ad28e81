//! Compares two trees, content included.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::attributes::{self, Attributes};
use super::linked::Linked;
use super::tree::{Dir, Entry};
use super::{Progress, content};
use crate::text::short;

#[derive(Debug)]
pub(super) struct Verifier<'a> {
    progress: &'a Progress,
    /// Files with more than one name: which inode of the copy stands for which of the original, and back.
    there: Linked<u64>,
    back: Linked<u64>,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(progress: &'a Progress) -> Self {
        Self { progress, there: Linked::new(), back: Linked::new() }
    }

    /// An error that names the first difference.
    pub(super) fn directory(&mut self, from: &Dir, to: &Dir, path: &Path, depth: usize) -> Result<()> {
        from.require_depth(depth)?;
        let original = Attributes::read(from.file(), &from.metadata()?)?;
        let copy = Attributes::read(to.file(), &to.metadata()?)?;
        if let Some(difference) = original.difference(&copy) {
            bail!("the directory {} differs: {difference}", short(path));
        }
        let names = from.names()?;
        let extra = to.names()?.iter().find(|name| !names.has(name)).map(OsStr::to_owned);
        for name in names.iter() {
            let path = path.join(name);
            let doing = || format!("comparing {}", short(&path));
            match (from.open_entry(name).with_context(doing)?, to.open_entry(name).with_context(doing)?) {
                (Entry::Special | Entry::Gone, Entry::Gone) => {}
                (Entry::Special | Entry::Gone, _) => bail!("{} is only in the copy", short(&path)),
                (Entry::Directory(from), Entry::Directory(to)) => self.directory(&from, &to, &path, depth + 1)?,
                (original, copy) => self.entry(&original, &copy).with_context(doing)?,
            }
        }
        match extra {
            None => Ok(()),
            Some(name) => bail!("{} is only in the copy", short(&path.join(name))),
        }
    }

    fn entry(&mut self, original: &Entry, copy: &Entry) -> Result<()> {
        match (original, copy) {
            (_, Entry::Gone) => bail!("it is missing in the copy"),
            (Entry::File(from, original), Entry::File(to, copy)) => self.file(from, original, to, copy),
            (Entry::Link(from, original), Entry::Link(to, copy)) => {
                ensure!(from == to, "the link leads to {}, not to {}", to.display(), from.display());
                let same = attributes::of_link(original) == attributes::of_link(copy);
                ensure!(same, "the link's owner or time differs");
                self.names(original, copy)
            }
            _ => bail!("it is of another kind in the copy"),
        }
    }

    /// What has several names in one tree has the same ones in the other.
    fn names(&mut self, original: &Metadata, copy: &Metadata) -> Result<()> {
        if original.nlink() > 1 || copy.nlink() > 1 {
            let there = self.there.insert(original.ino(), copy.ino())?;
            let back = self.back.insert(copy.ino(), original.ino())?;
            let same = |before: Option<u64>, now| before.is_none_or(|before| before == now);
            ensure!(same(there, copy.ino()) && same(back, original.ino()), "its hard links differ");
        }
        Ok(())
    }

    fn file(&mut self, from: &File, original: &Metadata, to: &File, copy: &Metadata) -> Result<()> {
        self.names(original, copy)?;
        if let Some(difference) = Attributes::read(from, original)?.difference(&Attributes::read(to, copy)?) {
            bail!("{difference}");
        }
        // What is on the disk counts, not what is still in memory.
        posix_fadvise(to, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("dropping its cache")?;
        self.progress.add(0)?;
        let equal = content::equal(from, to, &mut |bytes| self.progress.send(bytes))?;
        ensure!(equal, "its content differs");
        Ok(())
    }
}
