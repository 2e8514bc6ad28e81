//! openclaw-init turns a bare Compute Engine VM into a ready `OpenClaw` gateway, at every boot.
//!
//! `bootstrap` is the table of contents: the stages in their order. Each stage observes the machine,
//! decides, applies and verifies; none of them trusts a marker of an earlier run.

pub mod apt_key;
pub mod config;
pub mod disk;
pub mod docker;
pub mod failure;
pub mod host;
pub mod http;
pub mod metadata;
pub mod os_release;
pub mod packages;
pub mod report;
pub mod secret;
pub mod shield;
pub mod stage;
pub mod systemd;
