//! A tar archive that the gateway made, or that `restore` was given.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| openclaw_init::backup::fuzzing::archive(bytes));
