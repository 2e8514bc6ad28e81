//! The user's openclaw.json, which the gateway's agent can write.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| openclaw_init::gateway::fuzzing::openclaw_json(text));
