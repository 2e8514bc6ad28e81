//! The gateway's `.env`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| openclaw_init::gateway::fuzzing::dotenv(text));
