//! Files of root's own: read, written durably, given exactly one owner and mode.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::OFlag;

use super::{Host, blocking};
use crate::failpoint::{self, Failpoint};

/// Opens a directory, and neither a file nor a link of its name.
const DIRECTORY_ONLY: i32 = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).bits();

/// Mode and owner of a file or directory that must be exactly so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Permission bits, for example `0o600`.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

impl Access {
    /// Owned by root with `mode`.
    pub const fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }

    /// Owned by the gateway's user (uid and gid 1000 in the image) with `mode`.
    pub const fn gateway(mode: u32) -> Self {
        Self { mode, uid: 1000, gid: 1000 }
    }
}

impl Host {
    /// The file's content, `None` when there is no such file.
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
        let path = self.path(path);
        if_exists(tokio::fs::read(&path).await).with_context(|| format!("reading {}", path.display()))
    }

    /// Makes the file hold exactly `content` with exactly `access`; true when something was changed.
    ///
    /// After a power cut there is the old file or the new one: it is written under a temporary name beside its own,
    /// synced and renamed, and the directory is synced. Parent directories must exist.
    pub async fn ensure_file(
        &self,
        path: impl AsRef<Path>,
        content: impl Into<Vec<u8>>,
        access: Access,
    ) -> Result<bool> {
        let (path, content) = (self.path(path), content.into());
        let (display_path, failpoint) = (path.display().to_string(), failpoint::counted("write"));
        let changed = blocking(move || {
            if holds(&path, &content, access)? {
                return Ok(false);
            }
            write_durably(&path, &content, access, &failpoint).map(|()| true)
        })
        .await
        .with_context(|| format!("writing {display_path}"))?;
        if changed {
            self.changed(format!("wrote {display_path}"));
        }
        Ok(changed)
    }

    /// Makes a file of root's hold `content`, as durably, with its directory. It is about a boot: no change of the
    /// machine worth noting.
    pub(crate) async fn note_file(&self, path: impl AsRef<Path>, content: Vec<u8>) -> Result<()> {
        let path = self.path(path);
        let display_path = path.display().to_string();
        let write = move || {
            make_dir(path.parent().context("the path has no directory")?, Access::root(0o700))?;
            write_durably(&path, &content, Access::root(0o600), &Failpoint::default())
        };
        blocking(write).await.with_context(|| format!("writing {display_path}"))
    }

    /// Makes `path` a directory with exactly `access`; true when something was changed. Missing parents are made
    /// with mode 0755, owned by root.
    pub async fn ensure_dir(&self, path: impl AsRef<Path>, access: Access) -> Result<bool> {
        let path = self.path(path);
        let display_path = path.display().to_string();
        let made = blocking(move || make_dir(&path, access)).await;
        let changed = made.with_context(|| format!("making the directory {display_path}"))?;
        if changed {
            self.changed(format!("made the directory {display_path}"));
        }
        Ok(changed)
    }

    /// Removes a file and notes the change; false when there is none of that name.
    pub async fn remove_file(&self, path: impl AsRef<Path>) -> Result<bool> {
        let path = self.path(path);
        let display_path = path.display().to_string();
        let removed = blocking(move || remove_if_exists(&path)).await?;
        if removed {
            self.changed(format!("removed {display_path}"));
        }
        Ok(removed)
    }
}

/// The answer to a question about a file, `None` when there is no file of that name.
pub(crate) fn if_exists<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}

/// Removes a file, which is no change worth noting; false when there is none of that name.
pub(crate) fn remove_if_exists(path: &Path) -> Result<bool> {
    let removed = if_exists(std::fs::remove_file(path)).with_context(|| format!("removing {}", path.display()))?;
    Ok(removed.is_some())
}

/// The same for a directory and all that is in it.
pub(crate) fn remove_tree_if_exists(path: &Path) -> Result<bool> {
    let removed = if_exists(std::fs::remove_dir_all(path)).with_context(|| format!("removing {}", path.display()))?;
    Ok(removed.is_some())
}

/// Writes a file below `/run`: neither durable nor a change worth noting.
pub(crate) fn write_in_memory(path: &Path, content: &[u8], access: Access) -> Result<()> {
    let write = || {
        remove_if_exists(path)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        set_access(&file, access).map(drop)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// What cannot be opened, leads elsewhere or would make its reader wait does not hold it: the container may have put it
/// there.
fn holds(path: &Path, content: &[u8], access: Access) -> Result<bool> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY).bits();
    let Ok(file) = File::options().read(true).custom_flags(flags).open(path) else { return Ok(false) };
    let found = file.metadata()?;
    if !found.is_file() || !has_access(&found, access) || found.len() != content.len() as u64 {
        return Ok(false);
    }
    let mut current = Vec::with_capacity(content.len());
    file.take(found.len()).read_to_end(&mut current).context("comparing with the current file")?;
    Ok(current == content)
}

fn has_access(found: &std::fs::Metadata, access: Access) -> bool {
    found.permissions().mode() & 0o7777 == access.mode && found.uid() == access.uid && found.gid() == access.gid
}

/// Gives the file exactly `access`; true when it had another.
///
/// Takes the open file, since its path may lie where the gateway can put a link to something else.
pub(crate) fn set_access(file: &File, access: Access) -> Result<bool> {
    if has_access(&file.metadata()?, access) {
        return Ok(false);
    }
    nix::unistd::fchown(file, Some(access.uid.into()), Some(access.gid.into()))
        .with_context(|| format!("giving it to {}:{}", access.uid, access.gid))?;
    file.set_permissions(std::fs::Permissions::from_mode(access.mode))
        .with_context(|| format!("setting mode {:04o}", access.mode))?;
    Ok(true)
}

fn write_durably(path: &Path, content: &[u8], access: Access, failpoint: &Failpoint) -> Result<()> {
    let directory = path.parent().ok_or_else(|| anyhow!("the path has no directory"))?;
    failpoint.hit_at("before");
    let mut file = tempfile::NamedTempFile::new_in(directory).context("creating a temporary file beside it")?;
    file.write_all(content).context("writing the temporary file")?;
    set_access(file.as_file(), access)?;
    file.as_file().sync_all().context("syncing the temporary file")?;
    failpoint.hit_at("written");
    file.persist(path).map_err(|error| error.error).context("renaming the temporary file")?;
    sync_dir(directory)?;
    failpoint.hit_at("after");
    Ok(())
}

/// Syncs a directory, so that a rename in it survives a power cut.
pub fn sync_dir(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("syncing the directory {}", directory.display()))
}

fn make_dir(path: &Path, access: Access) -> Result<bool> {
    match if_exists(std::fs::symlink_metadata(path))? {
        Some(found) if !found.is_dir() => bail!("something that is not a directory is in its place"),
        Some(found) if has_access(&found, access) => return Ok(false),
        Some(_) => {}
        None => std::fs::create_dir_all(path)?,
    }
    let directory = File::options().read(true).custom_flags(DIRECTORY_ONLY).open(path)?;
    set_access(&directory, access)?;
    Ok(true)
}
