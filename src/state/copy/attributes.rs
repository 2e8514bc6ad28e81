//! What a file has besides its content: owner, mode, time, extended attributes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown, lchown};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;
use xattr::FileExt as _;

use super::tree::Dir;

/// Of a file or a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    owner: (u32, u32),
    mode: u32,
    modified: (i64, i64),
    extended: BTreeMap<OsString, Vec<u8>>,
}

impl Attributes {
    pub(super) fn read(file: &File, found: &Metadata) -> Result<Self> {
        let mut extended = BTreeMap::new();
        let names = match file.list_xattr() {
            Ok(names) => names.collect(),
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Vec::new(),
            Err(error) => return Err(error).context("listing its extended attributes"),
        };
        for name in names {
            // One that has gone since then is none.
            if let Some(value) = file.get_xattr(&name).with_context(|| format!("reading {}", name.display()))? {
                extended.insert(name, value);
            }
        }
        Ok(Self { owner: owner(found), mode: found.mode() & 0o7777, modified: modified(found), extended })
    }

    /// Gives `file` these; each only if it differs.
    pub(super) fn give_to(&self, file: &File) -> Result<()> {
        let current = Self::read(file, &file.metadata()?)?;
        if current == *self {
            return Ok(());
        }
        let (uid, gid) = self.owner;
        fchown(file, Some(uid), Some(gid)).with_context(|| format!("giving it to {uid}:{gid}"))?;
        // After the owner: a change of owner takes away set-user-ID bits and file capabilities.
        file.set_permissions(Permissions::from_mode(self.mode)).context("setting its mode")?;
        for name in current.extended.keys().filter(|name| !self.extended.contains_key(*name)) {
            file.remove_xattr(name).with_context(|| format!("removing {}", name.display()))?;
        }
        for (name, value) in &self.extended {
            file.set_xattr(name, value).with_context(|| format!("setting {}", name.display()))?;
        }
        futimens(file, &TimeSpec::UTIME_OMIT, &timespec(self.modified)).context("setting its time")
    }

    /// The first difference, if any, as a person names it.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        if self.owner != other.owner {
            Some(format!("its owner is {:?}, not {:?}", other.owner, self.owner))
        } else if self.mode != other.mode {
            Some(format!("its mode is {:04o}, not {:04o}", other.mode, self.mode))
        } else if self.modified != other.modified {
            Some("its modification time differs".to_owned())
        } else if self.extended != other.extended {
            Some("its extended attributes differ".to_owned())
        } else {
            None
        }
    }
}

/// The part of [`Attributes`] that a symbolic link has. (Its extended attributes can only be root's.)
pub(super) fn of_link(found: &Metadata) -> ((u32, u32), (i64, i64)) {
    (owner(found), modified(found))
}

/// Gives the symbolic link `name` owner and time of `wanted`, if they differ.
pub(super) fn give_to_link(dir: &Dir, name: &OsStr, wanted: &Metadata) -> Result<()> {
    let wanted = of_link(wanted);
    if dir.look(name)?.is_some_and(|current| of_link(&current) == wanted) {
        return Ok(());
    }
    let ((uid, gid), modified) = wanted;
    lchown(dir.at(name), Some(uid), Some(gid)).with_context(|| format!("giving it to {uid}:{gid}"))?;
    utimensat(dir.file(), name, &TimeSpec::UTIME_OMIT, &timespec(modified), UtimensatFlags::NoFollowSymlink)
        .context("setting its time")
}

fn owner(found: &Metadata) -> (u32, u32) {
    (found.uid(), found.gid())
}

fn timespec((seconds, nanoseconds): (i64, i64)) -> TimeSpec {
    TimeSpec::new(seconds, nanoseconds)
}

/// Seconds and nanoseconds.
pub(super) fn modified(found: &Metadata) -> (i64, i64) {
    (found.mtime(), found.mtime_nsec())
}
