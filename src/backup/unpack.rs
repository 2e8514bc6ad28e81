//! Unpacking an archive beside the current state, where only root can reach it until it is complete.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::plan::{Kind, Member};
use crate::host::{Access, if_exists};
use crate::state::copy::tree::Dir;

/// Everything belongs to the gateway then, no matter whose it was: nobody else can use it.
const OWNER: Access = Access::gateway(0);

/// The directories that are being filled. Nothing is remembered of what is in them, however much that is.
pub(super) struct Unpacker {
    tops: [Top; 2],
}

/// `state` or `config`: only root can enter it until it is complete.
struct Top {
    place: PathBuf,
    open: Dir,
    member: Member,
}

impl Unpacker {
    /// Fills the two directories, which must not exist; their parent is root's.
    pub(super) fn new(state: &Path, config: &Path) -> Result<Self> {
        Ok(Self { tops: [Top::new("state", state)?, Top::new("config", config)?] })
    }

    /// Unpacks one member.
    pub(super) fn add(&mut self, member: &Member, content: &mut dyn Read) -> Result<()> {
        if let Some(top) = self.tops.iter_mut().find(|top| top.member.path == member.path) {
            top.member = member.clone();
            return Ok(());
        }
        let (directory, path) = self.place(&member.path)?;
        keeping_time(&directory, || match &member.kind {
            Kind::Directory => {
                make_directory(&path)?;
                apply_metadata(&path, member)
            }
            Kind::File(size) => {
                let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
                let written = io::copy(content, &mut file).context("writing it")?;
                ensure!(written == *size, "it has {written} bytes instead of {size}");
                apply_metadata(&path, member)
            }
            Kind::Symlink(target) => {
                std::os::unix::fs::symlink(target, &path)?;
                lchown(&path, Some(OWNER.uid), Some(OWNER.gid))?;
                set_time(&path, member.modified)
            }
            Kind::HardLink(first) => {
                let (_open, first) = self.place(first)?;
                ensure!(fs::symlink_metadata(&first)?.is_file(), "{} is no file", first.display());
                Ok(fs::hard_link(first, &path)?)
            }
        })
    }

    /// Completes the two directories.
    pub(super) fn finish(self) -> Result<()> {
        for Top { place, member, .. } in &self.tops {
            let applied = apply_metadata(place, member);
            applied.with_context(|| format!("completing the directory {}", place.display()))?;
        }
        Ok(())
    }

    /// The open directory that the member goes to, and its path there: no link leads anywhere else.
    fn place(&self, path: &Path) -> Result<(Dir, PathBuf)> {
        let (parent, name) = path.parent().zip(path.file_name()).context("it has no name")?;
        let directory = self.directory(parent).with_context(|| format!("making {}", parent.display()))?;
        let place = directory.at(name);
        Ok((directory, place))
    }

    /// Opens the directory. One whose own member has not come yet is made, the gateway's alone.
    fn directory(&self, path: &Path) -> Result<Dir> {
        let found = self.tops.iter().find_map(|top| Some((top, path.strip_prefix(&top.member.path).ok()?)));
        let Some((top, below)) = found else { bail!("{} belongs nowhere", path.display()) };
        if let Some(found) = if_exists(top.open.open_below(below))? {
            return Ok(found);
        }
        let (parent, place) = self.place(path)?;
        keeping_time(&parent, || {
            make_directory(&place)?;
            apply_metadata(&place, &member(path))
        })?;
        Ok(top.open.open_below(below)?)
    }
}

impl Top {
    fn new(name: &str, place: &Path) -> Result<Self> {
        let made = private().create(place).and_then(|()| Dir::open(place));
        let open = made.with_context(|| format!("making {}", place.display()))?;
        Ok(Self { place: place.to_owned(), open, member: member(Path::new(name)) })
    }
}

/// What a directory is without a member of its own.
fn member(path: &Path) -> Member {
    let owner = (OWNER.uid, OWNER.gid);
    Member { path: path.to_owned(), kind: Kind::Directory, mode: 0o700, owner, modified: 0 }
}

/// Makes something in `directory`, whose time stays what it is: its own member may have come before.
fn keeping_time(directory: &Dir, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let found = directory.metadata()?;
    make()?;
    let time = TimeSpec::new(found.mtime(), found.mtime_nsec());
    utimensat(nix::fcntl::AT_FDCWD, &directory.at("."), &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::NoFollowSymlink)
        .context("keeping the time of its directory")
}

/// Makes a directory where none is yet.
fn make_directory(path: &Path) -> io::Result<()> {
    match private().create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() => Ok(()),
        outcome => outcome,
    }
}

/// A directory that only root can enter.
fn private() -> fs::DirBuilder {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// Gives a file or directory its owner, mode and time. Set-user-ID and set-group-ID are not restored.
fn apply_metadata(path: &Path, member: &Member) -> Result<()> {
    let mode = member.mode & 0o1777;
    lchown(path, Some(OWNER.uid), Some(OWNER.gid)).context("giving it to the gateway's user")?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).context("setting its mode")?;
    set_time(path, member.modified)
}

fn set_time(path: &Path, seconds: u64) -> Result<()> {
    let time = TimeSpec::new(i64::try_from(seconds)?, 0);
    utimensat(nix::fcntl::AT_FDCWD, path, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::NoFollowSymlink)
        .context("setting its time")
}
