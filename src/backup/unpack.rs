//! Unpacking an archive beside the current state, where only root can reach it until it is complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::plan::{Kind, Member};
use crate::host::Access;

/// Everything belongs to the gateway then, no matter whose it was: nobody else can use it.
const OWNER: Access = Access::gateway(0);

/// The directories that are being filled.
pub(super) struct Unpacker {
    state: PathBuf,
    config: PathBuf,
    /// Made last: no file is written through a link, and a directory gets its owner, mode and time when nothing more
    /// comes into it.
    links: Vec<Member>,
    directories: BTreeMap<PathBuf, Member>,
}

impl Unpacker {
    /// Fills the two directories, which must not exist; their parent is root's.
    pub(super) fn new(state: &Path, config: &Path) -> Result<Self> {
        for directory in [state, config] {
            private().create(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let (state, config) = (state.to_owned(), config.to_owned());
        Ok(Self { state, config, links: Vec::new(), directories: BTreeMap::new() })
    }

    /// Unpacks one member.
    pub(super) fn add(&mut self, member: &Member, content: &mut dyn Read) -> Result<()> {
        let path = self.place(&member.path)?;
        self.parents(&member.path).context("making its directory")?;
        match &member.kind {
            Kind::Directory => {
                private().recursive(true).create(&path)?;
                self.directories.insert(member.path.clone(), member.clone());
            }
            Kind::File(size) => {
                let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
                let written = io::copy(content, &mut file).context("writing it")?;
                ensure!(written == *size, "it has {written} bytes instead of {size}");
                apply_metadata(&path, member)?;
            }
            Kind::Symlink(_) | Kind::HardLink(_) => self.links.push(member.clone()),
        }
        Ok(())
    }

    /// Makes the directories that the member is in. Until its own member comes, one is the gateway's alone.
    fn parents(&mut self, path: &Path) -> Result<()> {
        let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
        if self.directories.contains_key(parent) {
            return Ok(());
        }
        self.parents(parent)?;
        private().recursive(true).create(self.place(parent)?)?;
        let (path, owner) = (parent.to_owned(), (OWNER.uid, OWNER.gid));
        let member = Member { path, kind: Kind::Directory, mode: 0o700, owner, modified: 0 };
        self.directories.insert(parent.to_owned(), member);
        Ok(())
    }

    /// Makes hard links, then symbolic ones, then completes the directories, the inner ones first.
    pub(super) fn finish(mut self) -> Result<()> {
        let (hard, symbolic): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.links).into_iter().partition(|link| matches!(link.kind, Kind::HardLink(_)));
        for link in hard.iter().chain(&symbolic) {
            self.link(link).with_context(|| format!("making the link {}", link.path.display()))?;
        }
        for (path, directory) in self.directories.iter().rev() {
            let applied = apply_metadata(&self.place(path)?, directory);
            applied.with_context(|| format!("completing the directory {}", path.display()))?;
        }
        Ok(())
    }

    fn link(&self, link: &Member) -> Result<()> {
        let path = self.place(&link.path)?;
        match &link.kind {
            Kind::HardLink(first) => {
                let first = self.place(first)?;
                ensure!(fs::symlink_metadata(&first)?.is_file(), "{} is no file", first.display());
                Ok(fs::hard_link(first, path)?)
            }
            Kind::Symlink(target) => {
                std::os::unix::fs::symlink(target, &path)?;
                lchown(&path, Some(OWNER.uid), Some(OWNER.gid))?;
                set_time(&path, link.modified)
            }
            Kind::Directory | Kind::File(_) => Ok(()),
        }
    }

    /// Where the member goes.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        for (name, directory) in [("state", &self.state), ("config", &self.config)] {
            if let Ok(rest) = path.strip_prefix(name) {
                return Ok(directory.join(rest));
            }
        }
        bail!("{} belongs nowhere", path.display())
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
