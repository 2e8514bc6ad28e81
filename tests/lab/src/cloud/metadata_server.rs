//! A Compute Engine metadata server for tests: the documented behaviour, plus scripted faults and a request log.
//!
//! Sources: Google's pages on querying metadata, guest attributes and troubleshooting the metadata server;
//! `server.go` of `salrashid123/gce_metadata_server` for headers, status codes and spelling. What no source tells
//! (limits of guest attributes, the effect of DELETE on a missing key) is chosen here and says so.

mod answer;
pub mod control;
mod fault;
mod files;
mod guest;
mod iam_credentials;
mod instance;
mod log;
mod secret_manager;
mod server;
mod storage;
mod tree;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use axum::Router;
use tokio::net::TcpListener;

pub use answer::{ACCESS_TOKEN, MAX_BODY};
pub use fault::{Effect, Fault, FaultChange, Limit, Rate};
pub use guest::{GuestAttribute, MAX_KEY, MAX_VALUE};
pub use iam_credentials::{IAM_CREDENTIALS_NAME, TOKEN_PREFIX};
pub use instance::{
    AccessConfig, Disk, Instance, Level, Metadata, NetworkInterface, OsLogin, PROJECT, Project, Scheduling,
    ServiceAccount, Universe, VirtualClock, check_attribute,
};
pub use log::Request;
pub use secret_manager::SECRET_MANAGER_NAMES;
pub use server::Server;
pub use storage::BUCKET;

impl Server {
    /// Serves on a free port of 127.0.0.1, in a task of the current runtime, until that ends.
    pub async fn spawn(metadata: impl Into<Metadata>) -> Result<(Self, SocketAddr)> {
        let server = Self::new(metadata);
        let listener = TcpListener::bind("127.0.0.1:0").await.context("binding the metadata server to 127.0.0.1")?;
        let address = listener.local_addr().context("reading the metadata server's address")?;
        tokio::spawn(server.clone().serve(listener));
        Ok((server, address))
    }

    /// Serves on `listener`; ends only with an error.
    pub async fn serve(self, listener: TcpListener) -> Result<()> {
        let service = self.router().into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, service).await.context("serving metadata")
    }

    /// The metadata server as a router; serve it with connect info to have the clients' addresses in the log.
    pub fn router(&self) -> Router {
        Router::new().fallback(answer::handle).with_state(self.clone())
    }

    /// A web server for the files below `dir`, for `startup-script-url`: no metadata rules, no faults, requests in
    /// the same log with `files` as their host.
    pub fn files_router(&self, dir: impl Into<PathBuf>) -> Router {
        files::router(dir.into(), self.shared.log.clone())
    }

    /// Cloud Storage with the files below `dir` as the objects of [`BUCKET`], private: an access token is needed.
    /// Requests are in the same log with `storage` as their host.
    pub fn storage_router(&self, dir: impl Into<PathBuf>) -> Router {
        storage::router(dir.into(), self.shared.log.clone())
    }

    /// Secret Manager with the secrets below `dir`. Requests are in the same log with `secret-manager` as their host,
    /// faults are the metadata server's.
    pub fn secrets_router(&self, dir: impl Into<PathBuf>) -> Router {
        secret_manager::router(self.clone(), dir.into())
    }

    /// IAM Service Account Credentials with the accounts below `dir`. Requests are in the same log with
    /// `iam-credentials` as their host, faults are the metadata server's.
    pub fn accounts_router(&self, dir: &Path) -> Router {
        iam_credentials::router(self.clone(), dir)
    }
}
