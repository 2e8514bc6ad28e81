//! openclaw-init turns a bare Compute Engine VM into a ready `OpenClaw` gateway, at every boot.
//!
//! [`bootstrap`] is the table of contents: the stages in their order. Each stage observes the machine,
//! decides, applies and verifies; none of them trusts a marker of an earlier run.
//!
//! A module imports only from the left; `tests/house.rs` keeps it so:
//!
//! ground <- host <- {http, metadata, config, systemd, apt, memory}
//! <- {account, disk, docker, `secret_manager`, shield, report, trust} <- {identity, state} <- {image, proxy}
//! <- gateway <- update <- {backup, install, link, pair, watch} <- {bake, status} <- bootstrap <- main
//!
//! Ground is error, stage, secret, version, reference, paths, document, failpoint, lock and text. Inside a folder:
//! facade, siblings, leaves. The one ambient thing is the task-local [`stage`] to which changes and progress belong.

mod account;
pub mod apt;
pub mod backup;
pub mod bake;
pub mod bootstrap;
mod clock;
pub mod config;
pub mod disk;
pub mod docker;
mod document;
pub mod error;
pub mod failpoint;
pub mod gateway;
pub mod host;
pub mod http;
pub mod identity;
pub mod image;
pub mod install;
pub mod link;
pub mod lock;
pub mod log;
pub mod memory;
pub mod metadata;
pub mod pair;
pub mod paths;
pub mod proxy;
pub mod reference;
pub mod report;
pub mod secret;
mod secret_manager;
pub mod shield;
pub mod stage;
pub mod state;
pub mod status;
pub mod systemd;
pub mod text;
mod trust;
pub mod update;
pub mod version;
pub mod watch;
