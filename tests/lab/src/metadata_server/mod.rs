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
mod instance;
mod log;
mod storage;
mod tree;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use answer::{ACCESS_TOKEN, MAX_BODY};
pub use fault::{Effect, Fault, FaultChange, Limit, Rate};
pub use guest::{GuestAttribute, MAX_KEY, MAX_VALUE};
pub use instance::{
    AccessConfig, Disk, Instance, Level, Metadata, NetworkInterface, OsLogin, Project, Scheduling, ServiceAccount,
    Universe, VirtualClock, check_attribute,
};
pub use log::Request;
pub use storage::BUCKET;

/// A metadata server; a clone is the same server. Every setter wakes the requests that wait for a change.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: watch::Sender<State>,
    faults: Mutex<fault::Faults>,
    log: log::Log,
}

#[derive(Debug, Default)]
struct State {
    metadata: Metadata,
    guest: guest::GuestAttributes,
}

impl Server {
    /// A server that tells about an [`Instance`], or about a whole [`Metadata`] tree.
    pub fn new(metadata: impl Into<Metadata>) -> Self {
        let state = State { metadata: metadata.into(), ..State::default() };
        Self {
            shared: Arc::new(Shared {
                state: watch::Sender::new(state),
                faults: Mutex::default(),
                log: log::Log::default(),
            }),
        }
    }

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

    /// Also appends every request from now on to `path`, as one line of JSON when it is answered or given up.
    pub fn log_to(&self, path: &Path) -> Result<()> {
        self.shared.log.append_to(path)
    }

    /// Every request so far, in the order of arrival, those without an answer yet included.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.requests()
    }

    /// Changes anything the server tells.
    pub fn update(&self, change: impl FnOnce(&mut Metadata)) {
        self.shared.state.send_modify(|state| change(&mut state.metadata));
    }

    /// A copy of what the server tells.
    pub fn metadata(&self) -> Metadata {
        self.shared.state.borrow().metadata.clone()
    }

    /// Sets an attribute; refused when the Compute Engine API would refuse it ([`check_attribute`]).
    pub fn set_attribute(&self, level: Level, key: &str, value: &str) -> Result<()> {
        check_attribute(key, value)?;
        self.update(|metadata| {
            metadata.attributes_mut(level).insert(key.into(), value.into());
        });
        Ok(())
    }

    /// Removes an attribute; nothing happens when there is none.
    pub fn unset_attribute(&self, level: Level, key: &str) {
        self.update(|metadata| {
            metadata.attributes_mut(level).remove(key);
        });
    }

    /// Replaces the list of attached disks.
    pub fn set_disks(&self, disks: Vec<Disk>) {
        self.update(|metadata| metadata.instance.disks = disks);
    }

    /// Makes the instance another one: a different id also begins without guest attributes.
    pub fn set_instance_id(&self, id: u64) {
        self.shared.state.send_modify(|state| {
            if state.metadata.instance.id != id {
                state.metadata.instance.id = id;
                state.guest.clear();
            }
        });
    }

    /// Adds a fault, or clears them all.
    pub fn fault(&self, change: FaultChange) {
        self.faults().change(change);
    }

    /// The guest attributes of one namespace, readable here even while the guest may not.
    pub fn guest_attributes(&self, namespace: &str) -> BTreeMap<String, String> {
        self.shared.state.borrow().guest.namespace(namespace)
    }

    /// Waits until `namespace/key` was written or deleted more often than `after` says, or until `timeout`.
    ///
    /// Either way it returns what is there then: its `revision` tells whether something happened. Start with 0 to
    /// get the first write.
    pub async fn wait_guest_attribute(
        &self,
        namespace: &str,
        key: &str,
        after: u64,
        timeout: Duration,
    ) -> GuestAttribute {
        let mut states = self.shared.state.subscribe();
        let written = states.wait_for(|state| state.guest.attribute(namespace, key).revision > after);
        // Neither way out is an error: the sender lives as long as `self`, and after the timeout the old value counts.
        let _ = tokio::time::timeout(timeout, written).await;
        self.shared.state.borrow().guest.attribute(namespace, key)
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, fault::Faults> {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
