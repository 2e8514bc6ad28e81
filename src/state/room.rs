//! Is there room? Asked once, by one rule: what is needed and a tenth of it, in bytes and in files.

use std::fmt;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::iter::Sum;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::sys::statvfs::{Statvfs, statvfs};

use super::copy::linked::Linked;
use super::copy::tree::Dir;
use crate::error::{Classify as _, Code};
use crate::host::{Host, blocking};
use crate::text::{self, short};

/// A file system with a smaller share of it left is nearly full.
pub(crate) const LOW_PERCENT: u128 = 5;

/// One with a smaller share left will be, with the next update.
pub(crate) const LITTLE_PERCENT: u128 = 15;

/// The room that a tree takes, or that a file system has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Bytes on the disk: holes take none, small files a whole block, a file with two names counts once.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
    /// The lengths of the files, what progress counts.
    pub(crate) content: u64,
}

impl Size {
    /// Whether a file system with this much left has room for a tree of size `tree`, and a tenth more of it.
    pub(crate) fn has_room_for(&self, tree: Self) -> bool {
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
        write!(out, "{} in {} files", text::size(self.bytes), self.inodes)
    }
}

impl Sum for Size {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), |mut sum, size| {
            sum += size;
            sum
        })
    }
}

/// Refuses what does not find room in `room` with [`Code::NoSpace`]. `what` needs it (`a copy of the state`), `place`
/// has the room (`the data disk`), `remedy` is a full sentence.
pub(crate) fn require(needed: Size, room: Size, what: &str, place: &str, remedy: impl Into<String>) -> Result<()> {
    if room.has_room_for(needed) {
        return Ok(());
    }
    let display = |size: Size| if needed.inodes == 0 { text::size(size.bytes) } else { size.to_string() };
    Err(anyhow!("{what} needs {}, and {place} has room for {}", display(needed), display(room)))
        .classify(Code::NoSpace, remedy)
}

/// The room that the tree or file `path` takes; nothing when it does not exist.
pub(crate) async fn of(host: &Host, path: &Path) -> Result<Size> {
    let tree = host.path(path);
    let measure = move || match std::fs::symlink_metadata(&tree) {
        Ok(found) if found.is_dir() => measure(&Dir::open(&tree)?),
        Ok(found) => Ok(Size { bytes: found.blocks() * 512, inodes: 1, content: found.len() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Size::default()),
        Err(error) => Err(error.into()),
    };
    blocking(measure).await.with_context(|| format!("measuring {}", path.display()))
}

/// The room that is left on the file system of the directory `path`, for root.
pub(crate) async fn free(host: &Host, path: &Path) -> Result<Size> {
    let found = file_system(host, path).await?;
    Ok(Size { bytes: found.blocks_free() * found.fragment_size(), inodes: found.files_free(), content: 0 })
}

/// Whether less than so many percent of the file system of the directory `path` are left, in bytes or in files.
pub(crate) async fn is_below(host: &Host, path: &Path, percent: u128) -> Result<bool> {
    let found = file_system(host, path).await?;
    let used = found.blocks().saturating_sub(found.blocks_free());
    let files = found.files().saturating_sub(found.files_free());
    // What is reserved for root is nobody else's; a file system that makes files as it needs them has no number.
    let is_below = |free, used| is_smaller_part(free, used, percent);
    Ok(is_below(found.blocks_available(), used) || is_below(found.files_free(), files))
}

async fn file_system(host: &Host, path: &Path) -> Result<Statvfs> {
    let directory = host.path(path);
    let found = blocking(move || Ok(statvfs(&directory)?)).await;
    found.with_context(|| format!("asking for the room left in {}", path.display()))
}

/// Whether `free` is less than so many percent of both.
fn is_smaller_part(free: u64, used: u64, percent: u128) -> bool {
    u128::from(free) * 100 < percent * (u128::from(free) + u128::from(used))
}

pub(super) fn measure(top: &Dir) -> Result<Size> {
    let (mut size, mut seen) = (Size::default(), Linked::new());
    measure_into(top, &mut size, &mut seen, 0)?;
    Ok(size)
}

fn measure_into(dir: &Dir, size: &mut Size, seen: &mut Linked<()>, depth: usize) -> Result<()> {
    dir.require_depth(depth)?;
    let here = dir.metadata()?;
    size.bytes += here.blocks() * 512;
    size.inodes += 1;
    for name in dir.names()?.iter() {
        let Some(found) = dir.look(name)?.filter(|found| found.dev() == here.dev()) else { continue };
        if found.is_dir() {
            // One that is gone by now, or is none any more, takes no room.
            if let Ok(child) = dir.open_directory(name) {
                measure_into(&child, size, seen, depth + 1)?;
            }
        } else if found.nlink() == 1 || is_first(&found, seen).with_context(|| short(Path::new(name)))? {
            size.bytes += found.blocks() * 512;
            size.inodes += 1;
            size.content += if found.is_file() { found.len() } else { 0 };
        }
    }
    Ok(())
}

fn is_first(found: &Metadata, seen: &mut Linked<()>) -> Result<bool> {
    Ok(seen.insert(found.ino(), ())?.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_is_enough() {
        let cases = [
            (5, 95, false),
            (4, 96, true),
            (0, 0, false),
            (0, 1, true),
            (u64::MAX, 0, false),
            (u64::MAX, u64::MAX, false),
        ];
        for (free, used, low) in cases {
            assert_eq!(is_smaller_part(free, used, LOW_PERCENT), low, "{free} {used}");
        }
    }

    #[test]
    fn a_tenth_more_must_fit() {
        let of = |bytes, inodes| Size { bytes, inodes, content: 0 };
        let cases =
            [(of(1100, 110), true), (of(1099, 110), false), (of(1100, 109), false), (of(u64::MAX, u64::MAX), true)];
        for (room, expected) in cases {
            assert_eq!(room.has_room_for(of(1000, 100)), expected, "{room:?}");
        }
    }
}
