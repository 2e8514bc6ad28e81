//! What apt and dpkg print.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| openclaw_init::apt::fuzzing::messages(text));
