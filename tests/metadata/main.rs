//! The metadata client and the report, against the lab's metadata server on loopback.
#![allow(clippy::unwrap_used, reason = "tests")]

mod client;
mod report;
