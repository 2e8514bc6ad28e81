//! For the fuzz targets in `fuzz/`; no other build has it.

use super::tree::{Root, merge};

/// The tree of a VM.
pub fn tree(bytes: &[u8]) {
    let Ok(Root { instance, project }) = serde_json::from_slice(bytes) else { return };
    let instance = merge(instance, project);
    assert!(!instance.zone.contains('/'));
}
