//! The bodies of `/startupz` and `/readyz`, with a NUL between them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| openclaw_init::gateway::fuzzing::probe(bytes));
