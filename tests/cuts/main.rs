//! The power is cut at every named failpoint, and the next run completes the job.
//!
//! Needs no network and changes nothing outside of temporary directories: the killed processes have these as their
//! root. Only a whole machine has the real apt, Docker Engine, systemd and nftables, a data disk and a gateway: see the
//! lab's scenarios `cuts` and `sweep-…`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where its world does")]

mod boot;
#[path = "../fake_engine/mod.rs"]
mod fake_engine;
mod file;
#[path = "../machine/mod.rs"]
mod machine;
mod sweep;
