//! The power is cut at every named point , and the next run completes the job.
//!
//! Needs no network and changes nothing outside of temporary directories: the processes that are killed have these as
//! their root. What only a whole machine shows is in the lab's scenarios `cuts` and `cut-sweep`: the real apt, Docker
//! Engine, systemd and nftables, a data disk, and a gateway.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where its world does")]

mod boot;
#[path = "../fake_engine/mod.rs"]
mod fake_engine;
mod file;
mod sweep;
