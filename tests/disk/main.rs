//! The disk stage on real block devices: what it accepts, what it refuses untouched, what it repairs.
//!
//! Needs root and the tools that make the disks: `cargo lab test machine` installs these and runs it. Nothing of
//! the development machine is changed: every test has a mount namespace of its own, a root directory of its own,
//! and loop devices that go with their last user.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where its world does")]

mod copy;
mod corpus;
mod failing;
mod fixture;
mod formats;
mod formatting;
mod images;
mod lifecycle;
mod slow;
