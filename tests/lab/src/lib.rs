//! A pretend Compute Engine on one Linux machine: what `cargo lab` is made of.

pub mod ca;
pub mod cache;
pub mod cloud_content;
pub mod docker_apt;
pub mod files;
pub mod images;
pub mod metadata_server;
pub mod oci;
pub mod program;
pub mod real_clients;
pub mod registry;
pub mod requests;
pub mod signing;
pub mod sources;
