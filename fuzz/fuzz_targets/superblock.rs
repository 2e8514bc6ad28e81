//! An ext4 superblock, after eight bytes that say how large its disk is.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| openclaw_init::disk::fuzzing::superblock(bytes));
