//! A pretend Compute Engine on one Linux machine: what `cargo lab` is made of.
//!
//! A module imports only from the left (`tests/imports.rs`), and no two files import each other:
//!
//! `ground ← cloud ← machine ← cli ← workstation ← scenarios ← runner ← commands ← main`
//!
//! - ground: the development machine and one lab's own files; knows nothing of what a lab consists of.
//! - [`cloud`]: everything that a VM reaches: metadata server, registries, package repository, network.
//! - [`machine`]: the VM itself and its disks.
//! - [`cli`]: the command line, a lab from nothing to a booting machine, the progress of a boot.
//! - [`workstation`]: what a user has in front of them; `gcloud` and `packer` as far as the README calls them.
//! - [`scenarios`]: what must be seen of whole machines.
//! - [`runner`]: `cargo lab test`.
//!
//! Inside a folder the file beside it only declares and sequences; what its files share is a file among them.

// Ground.
pub mod background;
pub mod cache;
pub mod files;
pub mod host;
pub mod process;
pub mod product;
pub mod program;
pub mod release;
pub mod size;
pub mod sources;
pub mod state;
pub mod watch;

pub mod cloud;
pub mod machine;

pub mod cli;
pub mod commands;
pub mod runner;
pub mod scenarios;
pub mod workstation;

// What the product's own tests use.
pub use cloud::metadata_server;
pub use machine::disks;
