//! A pretend Compute Engine on one Linux machine: what `cargo lab` is made of.

pub mod cache;
pub mod metadata_server;
pub mod program;
pub mod real_clients;
