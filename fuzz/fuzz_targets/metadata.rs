//! The metadata server's tree of the VM.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| openclaw_init::metadata::fuzzing::tree(bytes));
