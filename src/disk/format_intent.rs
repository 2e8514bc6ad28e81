//! The declared intent to format: what tells an interrupted mkfs of ours from somebody else's data.
//!
//! From its first writes on, a cut mkfs leaves a disk that is neither blank nor ext4. So before mkfs one block
//! with a nonce is written 1 MiB before the device's end, where mkfs does not write on any disk of whole GiB, and the same bytes are
//! kept on the boot disk; afterwards the block is zeroed again. Only while both are equal may a format be repeated.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::probe;
use crate::failpoint;
use crate::host::{Access, Host, blocking};
use crate::paths::{BOOT_DISK_DIR, FORMAT_INTENT};

const BLOCK: usize = 4096;
const MAGIC: &[u8; 16] = b"openclaw format\n";
/// From the device's end.
const DISTANCE: u64 = 1024 * 1024;

/// Whose intent to format is on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// None.
    None,
    /// This machine's own: both copies are equal, and the device has the size that it had.
    Ours,
    /// Another machine's, or this one's from before its boot disk was made anew.
    Foreign,
}

/// Reads what is declared on the device (or partition) `node`.
pub(super) async fn read(host: &Host, node: &Path) -> Result<Intent> {
    let kept = host.read(FORMAT_INTENT).await?;
    let opened = node.to_owned();
    let found = blocking(move || read_block(&File::open(opened)?));
    let (size, block) = found.await.with_context(|| format!("reading the end of {}", node.display()))?;
    Ok(judge(&block, size, kept.as_deref()))
}

fn judge(block: &[u8], size: u64, kept: Option<&[u8]>) -> Intent {
    let rest = block.strip_prefix(MAGIC);
    match rest {
        None => Intent::None,
        Some(rest) if kept == Some(block) && rest.starts_with(&size.to_le_bytes()) => Intent::Ours,
        Some(_) => Intent::Foreign,
    }
}

fn block(size: u64, nonce: [u8; 16]) -> Vec<u8> {
    let mut block = [&MAGIC[..], &size.to_le_bytes(), &nonce].concat();
    block.resize(BLOCK, 0);
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

/// Takes the declaration back, once the file system is on the device; [`forget`] follows when it is mounted.
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
        write(node, size, vec![0; BLOCK]).await.with_context(doing)?;
    }
    Ok(())
}

/// Removes the boot disk's copy: from now on no format is repeated, whatever is found on the device.
pub(super) async fn forget(host: &Host) -> Result<()> {
    host.remove_file(FORMAT_INTENT).await.map(drop)
}

fn read_block(file: &File) -> Result<(u64, Vec<u8>)> {
    let size = probe::size(file)?;
    let mut block = vec![0; BLOCK];
    file.read_exact_at(&mut block, size.saturating_sub(DISTANCE))?;
    Ok((size, block))
}

async fn write(node: &Path, size: u64, block: Vec<u8>) -> Result<()> {
    let (node, step) = (node.to_owned(), failpoint::counted("intent"));
    step.hit_at("before");
    let written = blocking(move || {
        let file = File::options().write(true).open(node)?;
        file.write_all_at(&block, size - DISTANCE)?;
        Ok(file.sync_all()?)
    });
    written.await?;
    step.hit_at("after");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_nonces_are_ours() {
        let (ours, other) = (block(1 << 30, [7; 16]), block(1 << 30, [8; 16]));
        let cases = [
            (vec![0; BLOCK], 1 << 30, Some(&ours), Intent::None),
            (vec![0; BLOCK], 1 << 30, None, Intent::None),
            (ours.clone(), 1 << 30, Some(&ours), Intent::Ours),
            (ours.clone(), 2 << 30, Some(&ours), Intent::Foreign),
            (ours.clone(), 1 << 30, Some(&other), Intent::Foreign),
            (ours.clone(), 1 << 30, None, Intent::Foreign),
        ];
        for (block, size, kept, expected) in cases {
            assert_eq!(judge(&block, size, kept.map(Vec::as_slice)), expected, "{size} {kept:?}");
        }
    }
}
