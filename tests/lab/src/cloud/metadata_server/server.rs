//! What the server tells, and how a test or the control socket changes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;

use super::fault::{self, FaultChange};
use super::guest::{self, GuestAttribute};
use super::instance::{Disk, Level, Metadata, check_attribute};
use super::log::{self, Request};

/// A metadata server; a clone is the same server. Every setter wakes the requests that wait for a change.
#[derive(Debug, Clone)]
pub struct Server {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: watch::Sender<State>,
    faults: Mutex<fault::Faults>,
    pub(super) log: log::Log,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) metadata: Metadata,
    pub(super) guest: guest::GuestAttributes,
}

impl Server {
    /// A server that tells about an [`Instance`](super::Instance), or about a whole [`Metadata`] tree.
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

    /// Changes what the tokens of the VM's accounts may be used for.
    pub fn set_scopes(&self, scopes: &[String]) {
        self.update(|metadata| {
            metadata.instance.service_accounts.values_mut().for_each(|account| account.scopes = scopes.to_vec());
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

    pub(super) fn faults(&self) -> MutexGuard<'_, fault::Faults> {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
