//! The request log: what clients asked, kept in memory and, on request, as JSON lines in a file.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// When it came, RFC 3339 in JSON.
    pub time: Timestamp,
    /// Which server got it: `metadata` or `files`.
    pub host: String,
    /// The method, in capitals.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The status of the answer; none while there is no answer, and for ever when the client gave up before.
    pub status: Option<u16>,
    /// The client's `User-Agent`.
    pub user_agent: Option<String>,
    /// The client's address; none when the router is not served on TCP.
    pub remote: Option<IpAddr>,
    /// The body of a PUT.
    pub body: Option<String>,
    /// The fault that the request met.
    pub fault: Option<Fault>,
}

/// The log; a clone is the same log.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    requests: Vec<Request>,
    file: Option<File>,
}

impl Log {
    /// Appends to `path` from now on.
    pub(super) fn append_to(&self, path: &Path) -> Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        self.lock().file = Some(file.with_context(|| format!("opening the request log {}", path.display()))?);
        Ok(())
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Notes a request that has just come in.
    pub(super) fn begin(&self, host: &str, parts: &Parts) -> Entry {
        let remote = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let user_agent = parts.headers.get("user-agent").map(|value| String::from_utf8_lossy(value.as_bytes()).into());
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut inner = self.lock();
        inner.requests.push(Request {
            time: Timestamp::now(),
            host: host.into(),
            method: parts.method.as_str().into(),
            path: path.into(),
            status: None,
            user_agent,
            remote,
            body: None,
            fault: None,
        });
        Entry { log: self.clone(), index: inner.requests.len() - 1 }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in flight. It goes to the file when this is dropped: answered, or abandoned by the client.
#[derive(Debug)]
pub(super) struct Entry {
    log: Log,
    index: usize,
}

impl Entry {
    /// Completes what is known about the request.
    pub(super) fn note(&self, change: impl FnOnce(&mut Request)) {
        change(&mut self.log.lock().requests[self.index]);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut inner = self.log.lock();
        let Inner { requests, file } = &mut *inner;
        let Some(file) = file else { return };
        let written = serde_json::to_string(&requests[self.index])
            .map_err(std::io::Error::from)
            .and_then(|line| file.write_all((line + "\n").as_bytes()));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write the request log");
        }
    }
}
