//! The declared intent to format: the difference between an interrupted mkfs of ours and somebody else's data.
//!
//! From its first write on, a cut mkfs leaves a disk that is neither blank nor ext4. So before mkfs a block with a
//! nonce is written 1 MiB before the device's end, where mkfs does not write on any disk of whole GiB, and the same
//! bytes are stored on the boot disk. Afterwards the block is zeroed again. A format may be repeated only while both
//! are equal, and when nothing is on the disk but what mkfs writes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::probe;
use crate::failpoint;
use crate::host::{Access, Host, blocking};
use crate::paths::{BOOT_DISK_DIR, FORMAT_INTENT};
use crate::text::MIB;

const BLOCK_BYTES: usize = 4096;
const MAGIC: &[u8; 16] = b"openclaw format\n";
/// Where the block begins, counted back from the device's end.
const END_OFFSET_BYTES: u64 = MIB;

/// Whose intent to format is on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// None.
    None,
    /// This machine's: both copies are equal, and the device still has its size.
    Ours,
    /// Another machine's, or this one's from before it got a new boot disk.
    Foreign,
}

/// Reads the declaration on the device (or partition) `node`.
pub(super) async fn read(host: &Host, node: &Path) -> Result<Intent> {
    let stored = host.read(FORMAT_INTENT).await?;
    let opened = node.to_owned();
    let found = blocking(move || read_block(&File::open(opened)?));
    let (size, block) = found.await.with_context(|| format!("reading the end of {}", node.display()))?;
    Ok(decide(&block, size, stored.as_deref()))
}

fn decide(block: &[u8], size: u64, stored: Option<&[u8]>) -> Intent {
    let rest = block.strip_prefix(MAGIC);
    match rest {
        None => Intent::None,
        Some(rest) if stored == Some(block) && rest.starts_with(&size.to_le_bytes()) => Intent::Ours,
        Some(_) => Intent::Foreign,
    }
}

/// Where the block is on a device of `size` bytes, and its length.
pub(super) fn place(size: u64) -> (u64, u64) {
    (size.saturating_sub(END_OFFSET_BYTES), BLOCK_BYTES as u64)
}

fn block(size: u64, nonce: [u8; 16]) -> Vec<u8> {
    let mut block = [&MAGIC[..], &size.to_le_bytes(), &nonce].concat();
    block.resize(BLOCK_BYTES, 0);
    block
}

/// Declares, durably, that `node` is about to be formatted: first on the boot disk, then on the device.
pub(super) async fn declare(host: &Host, node: &Path) -> Result<()> {
    let opened = node.to_owned();
    let size = blocking(move || probe::size(&File::open(opened)?)).await?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).context("drawing a nonce")?;
    let block = block(size, nonce);
    host.ensure_dir(BOOT_DISK_DIR, Access::root(0o700)).await?;
    host.ensure_file(FORMAT_INTENT, block.clone(), Access::root(0o600)).await?;
    write(node, size, block).await.with_context(|| format!("declaring on {} that it is formatted", node.display()))
}

/// Withdraws the declaration once the file system is on the device; [`forget`] follows when that is mounted.
pub(super) async fn withdraw(node: &Path) -> Result<()> {
    let opened = node.to_owned();
    let found = blocking(move || {
        let file = File::open(opened)?;
        file.sync_all()?;
        read_block(&file)
    });
    let doing = || format!("completing the format of {}", node.display());
    let (size, block) = found.await.with_context(doing)?;
    if block.starts_with(MAGIC) {
        write(node, size, vec![0; BLOCK_BYTES]).await.with_context(doing)?;
    }
    Ok(())
}

/// Removes the boot disk's copy: from now on no format is repeated.
pub(super) async fn forget(host: &Host) -> Result<()> {
    host.remove_file(FORMAT_INTENT).await.map(drop)
}

fn read_block(file: &File) -> Result<(u64, Vec<u8>)> {
    let size = probe::size(file)?;
    let mut block = vec![0; BLOCK_BYTES];
    file.read_exact_at(&mut block, place(size).0)?;
    Ok((size, block))
}

async fn write(node: &Path, size: u64, block: Vec<u8>) -> Result<()> {
    let (node, failpoint) = (node.to_owned(), failpoint::counted("intent"));
    failpoint.hit_at("before");
    let written = blocking(move || {
        let file = File::options().write(true).open(node)?;
        file.write_all_at(&block, place(size).0)?;
        Ok(file.sync_all()?)
    });
    written.await?;
    failpoint.hit_at("after");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_nonces_are_ours() {
        let (ours, other) = (block(1 << 30, [7; 16]), block(1 << 30, [8; 16]));
        let cases = [
            (vec![0; BLOCK_BYTES], 1 << 30, Some(&ours), Intent::None),
            (vec![0; BLOCK_BYTES], 1 << 30, None, Intent::None),
            (ours.clone(), 1 << 30, Some(&ours), Intent::Ours),
            (ours.clone(), 2 << 30, Some(&ours), Intent::Foreign),
            (ours.clone(), 1 << 30, Some(&other), Intent::Foreign),
            (ours.clone(), 1 << 30, None, Intent::Foreign),
        ];
        for (block, size, stored, expected) in cases {
            assert_eq!(decide(&block, size, stored.map(Vec::as_slice)), expected, "{size} {stored:?}");
        }
    }
}
