//! What is on a disk: a read-only look that never guesses.
//!
//! "No signature found" is not "blank": random bytes, an ext4 file system whose first superblock is destroyed and an
//! unreadable device all look like that (kubernetes issue 142243). Zeros at both ends make a disk that may be blank;
//! [`super::proof`] reads the rest before it is formatted.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::error::{Classify as _, Code};
use crate::host::{Host, blocking};
use crate::text::{MIB, hex};

/// A data disk is at least this large; less is a mistake or a device without a medium.
const MIN_BYTES: u64 = 512 * MIB;

/// How much is looked at on both ends, where partition tables, superblocks of all known kinds and most copies are.
pub(super) const END_BYTES: u64 = 8 * MIB;

/// What to do about a disk that cannot be read.
pub(super) const UNREADABLE: &str =
    "The disk cannot be read: see `dmesg`; restore it from a snapshot or attach another one.";

/// What to do about a disk at which nobody can look.
const BUSY: &str = "The disk is in use or cannot be read: see `lsblk` and `dmesg`; nothing on it was touched.";

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing known, and zeros at both ends.
    Blank,
    /// An ext4 file system and nothing else.
    Ext4(Superblock),
    /// A partition table of this kind and nothing else.
    Table(String),
    /// Nothing known, but a non-zero byte at this offset.
    Unknown(u64),
    /// Anything else, as a phrase for the operator.
    Other(String),
}

/// The parts of an ext4 superblock that decide something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) uuid: String,
    pub(super) label: String,
    /// Unmounted properly, no journal to replay, no error on record, no deleted file to clear away.
    pub(super) clean: bool,
    /// Mounted at least once.
    pub(super) used: bool,
    /// The file system needs more bytes than the device has.
    pub(super) truncated: bool,
    /// Bytes of the device behind the file system.
    pub(super) spare: u64,
}

/// What a device (or an image file) holds; nobody else may use it meanwhile.
pub(super) async fn content(host: &Host, path: &Path) -> Result<Content> {
    let (opened, display_path) = (path.to_owned(), path.display());
    // O_EXCL on a block device without O_CREAT: EBUSY while it is held, or mounted in any namespace.
    let device = blocking(move || {
        let file = File::options().read(true).custom_flags(nix::fcntl::OFlag::O_EXCL.bits()).open(opened)?;
        let size = size(&file)?;
        Ok((Arc::new(file), size))
    });
    let (file, size) = device
        .await
        .with_context(|| format!("opening {display_path} exclusively"))
        .classify(Code::DiskForeign, BUSY)?;
    if size < MIN_BYTES {
        return Ok(Content::Other(format!("only {size} bytes; a data disk has at least {} MiB", MIN_BYTES / MIB)));
    }
    let signature = signature(host, path).await.classify(Code::DiskForeign, BUSY)?;
    let held = Arc::clone(&file);
    blocking(move || interpret(&held, size, signature))
        .await
        .with_context(|| format!("reading {display_path}"))
        .classify(Code::DiskDamaged, UNREADABLE)
}

/// The superblock of the ext4 file system on `path`, which may be mounted.
pub(super) async fn superblock(path: &Path) -> Result<Option<Superblock>> {
    let opened = path.to_owned();
    blocking(move || {
        let file = File::open(opened)?;
        let size = size(&file)?;
        read_superblock(&file, size)
    })
    .await
    .with_context(|| format!("reading the superblock of {}", path.display()))
}

/// The length of a file or block device, in bytes.
pub(super) fn size(file: &File) -> Result<u64> {
    use std::io::Seek as _;
    let mut file = file;
    Ok(file.seek(std::io::SeekFrom::End(0))?)
}

/// The same of the file or device at `path`.
pub(super) async fn size_of(path: &Path) -> Result<u64> {
    let opened = path.to_owned();
    let found = blocking(move || size(&File::open(opened)?));
    found.await.with_context(|| format!("measuring {}", path.display()))
}

/// The signature that blkid recognises.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Signature {
    Nothing,
    Found {
        kind: Option<String>,
        table: Option<String>,
    },
    /// Several that exclude each other.
    Ambivalent,
}

async fn signature(host: &Host, path: &Path) -> Result<Signature> {
    let blkid = host.command("blkid").args(["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export"]).arg(path);
    let output = blkid.answers(&[2, 8]).run().await?;
    Ok(match output.code {
        2 => Signature::Nothing,
        8 => Signature::Ambivalent,
        _ => parse_export(&output.stdout),
    })
}

fn parse_export(text: &str) -> Signature {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    Signature::Found { kind: value("TYPE"), table: value("PTTYPE") }
}

/// Turns blkid's answer into a [`Content`], for which it looks closer where the answer leaves a doubt.
fn interpret(file: &File, size: u64, signature: Signature) -> Result<Content> {
    Ok(match signature {
        Signature::Nothing => match first_non_zero(file, size)? {
            None => Content::Blank,
            Some(at) => Content::Unknown(at),
        },
        Signature::Ambivalent => Content::Other("several signatures that exclude each other".into()),
        Signature::Found { kind: Some(kind), table: None } if kind == "ext4" => match read_superblock(file, size)? {
            Some(superblock) => Content::Ext4(superblock),
            None => Content::Other("a broken ext4 superblock".into()),
        },
        Signature::Found { kind: None, table: Some(table) } => Content::Table(table),
        Signature::Found { kind: Some(kind), table: None } => Content::Other(kind),
        Signature::Found { kind: Some(kind), table: Some(table) } => {
            Content::Other(format!("{kind} under a partition table ({table})"))
        }
        Signature::Found { kind: None, table: None } => {
            Content::Other("no file system or partition table that blkid knows by name".into())
        }
    })
}

/// The offset of the first non-zero byte at both ends.
fn first_non_zero(file: &File, size: u64) -> Result<Option<u64>> {
    let mut buffer = vec![0; usize::try_from(MIB)?];
    for (start, length) in [(0, END_BYTES), (size.saturating_sub(END_BYTES), END_BYTES)] {
        let (mut at, end) = (start, size.min(start.saturating_add(length)));
        while at < end {
            let chunk = &mut buffer[..usize::try_from(MIB.min(end - at))?];
            file.read_exact_at(chunk, at).with_context(|| format!("at offset {at}"))?;
            if let Some(index) = chunk.iter().position(|byte| *byte != 0) {
                return Ok(Some(at + index as u64));
            }
            at += chunk.len() as u64;
        }
    }
    Ok(None)
}

/// Reads the primary superblock of a device of this size.
fn read_superblock(file: &File, size: u64) -> Result<Option<Superblock>> {
    let mut bytes = [0; 1024];
    file.read_exact_at(&mut bytes, 1024)?;
    Ok(decode_superblock(&bytes, size))
}

/// Kernel documentation, "ext4 Data Structures and Algorithms", 4.1.
pub(super) fn decode_superblock(bytes: &[u8; 1024], size: u64) -> Option<Superblock> {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (magic, state, incompatible) = (u16_at(0x38), u16_at(0x3a), u32_at(0x60));
    let has_orphans = u32_at(0xe8) != 0 || u32_at(0x64) & 0x1_0000 != 0;
    let block_bits = u32_at(0x18).saturating_add(10);
    if magic != 0xef53 || block_bits > 16 {
        return None;
    }
    let high = if incompatible & 0x80 == 0 { 0 } else { u64::from(u32_at(0x150)) };
    let blocks = high << 32 | u64::from(u32_at(0x4));
    let needed = blocks.checked_mul(1 << block_bits);
    let end = bytes[0x78..0x88].iter().position(|byte| *byte == 0).unwrap_or(16);
    Some(Superblock {
        uuid: uuid(&bytes[0x68..0x78]),
        label: String::from_utf8_lossy(&bytes[0x78..0x78 + end]).into_owned(),
        clean: state & 0b11 == 0b01 && incompatible & 0x4 == 0 && !has_orphans,
        used: u32_at(0x2c) != 0 || u16_at(0x34) != 0,
        truncated: needed.is_none_or(|needed| needed > size),
        spare: needed.map_or(0, |needed| size.saturating_sub(needed)),
    })
}

fn uuid(bytes: &[u8]) -> String {
    [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]].map(hex).join("-")
}

#[cfg(test)]
mod tests;
