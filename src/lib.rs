//! openclaw-init turns a bare Compute Engine VM into a ready `OpenClaw` gateway, at every boot.
//!
//! [`bootstrap`] is the table of contents: the stages in their order. Each stage observes the machine,
//! decides, applies and verifies; none of them trusts a marker of an earlier run.

pub mod apt_key;
pub mod backup;
pub mod bake;
pub mod bootstrap;
pub mod carrier;
pub mod config;
pub mod console;
pub mod cut;
pub mod disk;
pub mod docker;
pub mod failure;
pub mod gateway;
pub mod host;
pub mod http;
pub mod image;
pub mod memory;
pub mod metadata;
pub mod openclaw_config;
pub mod os_release;
pub mod packages;
pub mod record;
pub mod replica;
pub mod report;
pub mod restore;
pub mod seal;
pub mod secret;
pub mod secrets;
pub mod shield;
pub mod stage;
pub mod swap;
pub mod switch;
pub mod systemd;
pub mod uninstall;
pub mod units;
pub mod update;
