//! For the fuzz targets in `fuzz/`; no other build has it.

use super::mount::Mounts;
use super::probe::decode_superblock;

/// `/proc/self/mountinfo`.
pub fn mountinfo(text: &str) {
    drop(text.parse::<Mounts>());
}

/// The size of a disk, and the superblock on it.
pub fn superblock(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first_chunk() else { return };
    let mut block = [0; 1024];
    let length = rest.len().min(block.len());
    block[..length].copy_from_slice(&rest[..length]);
    if let Some(found) = decode_superblock(&block, u64::from_le_bytes(*size)) {
        assert_eq!(found.uuid.len(), 36);
        assert!(!found.truncated || found.spare == 0);
    }
}
