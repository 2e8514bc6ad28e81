//! Packing a directory into an archive.
//!
//! The directory belongs to the gateway, whose agent may change it at any moment, links included. It is read through
//! open directories only, so nothing outside of it gets into a backup.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::archive::Writer;
use super::plan::{Kind, Member};
use crate::error::{Classify as _, Code};
use crate::state::copy::LeftOut;
use crate::state::copy::linked::{FirstNames, Linked, Place};
use crate::state::copy::tree::{Dir, Entry};
use crate::text::{short, size};

/// A file up to this size is read into memory first: it may grow or shrink meanwhile.
const SMALL_FILE_BYTES: u64 = 1 << 20;

/// An archive that is being filled.
pub(super) struct Packer<'a, W: Write> {
    pub(super) writer: Writer<W>,
    /// Called with the bytes about to be read; an error ends the work.
    pub(super) progress: &'a dyn Fn(u64) -> Result<()>,
    /// Files with more than one name: on which device they are, and where their first names are.
    device: u64,
    linked: Linked<Place>,
    names: FirstNames,
    /// How many bytes of the files may be holes, which the archive fills: a file of terabytes is made in a moment.
    room_for_holes: u64,
    /// Fifos, sockets, devices and mount points: they have no content to pack.
    pub(super) left_out: LeftOut,
}

impl<'a, W: Write> Packer<'a, W> {
    /// `names` are none yet.
    pub(super) fn new(
        writer: Writer<W>,
        names: FirstNames,
        room_for_holes: u64,
        progress: &'a dyn Fn(u64) -> Result<()>,
    ) -> Self {
        let (linked, left_out) = (Linked::new(), LeftOut::default());
        Self { writer, progress, device: 0, linked, names, room_for_holes, left_out }
    }

    /// Packs the directory at `path` under the name `name`. Of its content it packs what `wanted` accepts, which gets
    /// the path in the archive and whether it is a directory.
    pub(super) fn directory(&mut self, path: &Path, name: &Path, wanted: &dyn Fn(&Path, bool) -> bool) -> Result<()> {
        let doing = || format!("packing {}", path.display());
        let dir = Dir::open(path).with_context(doing)?;
        let device = dir.metadata().with_context(doing)?.dev();
        if device != self.device {
            // Every tree ends where its file system does.
            (self.device, self.linked) = (device, Linked::new());
        }
        self.tree(&dir, name, wanted, 0).with_context(doing)
    }

    fn tree(&mut self, dir: &Dir, name: &Path, wanted: &dyn Fn(&Path, bool) -> bool, depth: usize) -> Result<()> {
        dir.require_depth(depth)?;
        self.add(&member(name, Kind::Directory, &dir.metadata()?), io::empty())?;
        for entry in dir.names()?.iter() {
            let name = name.join(entry);
            self.entry(dir.open_entry(entry), &name, wanted, depth).with_context(|| format!("at {}", short(&name)))?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: Result<Entry>,
        name: &Path,
        wanted: &dyn Fn(&Path, bool) -> bool,
        depth: usize,
    ) -> Result<()> {
        match entry? {
            Entry::Directory(_) if !wanted(name, true) => Ok(()),
            Entry::Directory(dir) => self.tree(&dir, name, wanted, depth + 1),
            Entry::File(..) | Entry::Link(..) if self.writer.has_content(name) || !wanted(name, false) => Ok(()),
            Entry::File(file, found) => self.file(file, &found, name),
            Entry::Link(target, found) => self.add(&member(name, Kind::Symlink(target), &found), io::empty()),
            Entry::Special => {
                self.left_out.add(name);
                Ok(())
            }
            Entry::Gone => Ok(()),
        }
    }

    fn file(&mut self, mut file: File, found: &Metadata, name: &Path) -> Result<()> {
        if found.nlink() > 1 {
            if let Some(first) = self.linked.get(found.ino()) {
                let first = self.names.get(*first).context("looking for its first name")?;
                return self.add(&member(name, Kind::HardLink(first), found), io::empty());
            }
            let first = self.names.add(name)?;
            self.linked.insert(found.ino(), first)?;
        }
        self.fill_holes(found)?;
        (self.progress)(found.len())?;
        if found.len() > SMALL_FILE_BYTES {
            return self.add(&member(name, Kind::File(found.len()), found), file);
        }
        let mut content = Vec::new();
        (&mut file).take(SMALL_FILE_BYTES).read_to_end(&mut content)?;
        self.add(&member(name, Kind::File(content.len() as u64), found), content.as_slice())
    }

    /// Counts what the archive will hold and the disk does not.
    fn fill_holes(&mut self, found: &Metadata) -> Result<()> {
        let holes = found.len().saturating_sub(found.blocks() * 512);
        let left = self.room_for_holes.checked_sub(holes);
        self.room_for_holes = left
            .with_context(|| format!("it has {} of holes, and the disk has no room for them", size(holes)))
            .classify(
                Code::NoSpace,
                "A backup holds files with their holes filled, and restoring it would find no room: move this file out \
                 of the state directory, or cut it with `truncate`, then run the backup again.",
            )?;
        Ok(())
    }

    fn add(&mut self, member: &Member, content: impl io::Read) -> Result<()> {
        self.writer.add(member, content)
    }
}

fn member(name: &Path, kind: Kind, found: &Metadata) -> Member {
    Member {
        path: name.to_owned(),
        kind,
        mode: found.mode() & 0o7777,
        owner: (found.uid(), found.gid()),
        modified: u64::try_from(found.mtime()).unwrap_or_default(),
    }
}
