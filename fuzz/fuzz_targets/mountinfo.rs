//! The kernel's table of mounts: the names in it are anybody's.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| openclaw_init::disk::fuzzing::mountinfo(text));
