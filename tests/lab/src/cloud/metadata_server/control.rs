//! Changing a running server from another process: JSON over HTTP on a Unix socket.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::fault::FaultChange;
use super::guest::GuestAttribute;
use super::instance::{Disk, Level};
use super::log::Request;
use super::server::Server;

/// How long [`Client::wait_guest_attribute`] lets the server wait in one request.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What can be asked; the answer's type is that of the [`Client`] method.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Command {
    SetAttribute { level: Level, key: String, value: String },
    UnsetAttribute { level: Level, key: String },
    SetDisks(Vec<Disk>),
    SetInstanceId(u64),
    SetScopes(Vec<String>),
    Fault(FaultChange),
    GuestAttributes { namespace: String },
    WaitGuestAttribute { namespace: String, key: String, after: u64, timeout: Duration },
    Requests,
}

/// Serves the control interface on a new Unix socket, replacing one that a former server left; ends only with an
/// error. Who can open the socket controls the server.
pub async fn serve(server: Server, socket: &Path) -> Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old control socket {}", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("binding {}", socket.display()))?;
    let router = Router::new().route("/", post(handle)).with_state(server);
    axum::serve(listener, router).await.with_context(|| format!("serving {}", socket.display()))
}

async fn handle(State(server): State<Server>, Json(command): Json<Command>) -> (StatusCode, Json<Value>) {
    match run(&server, command).await {
        Ok(answer) => (StatusCode::OK, Json(answer)),
        Err(error) => (StatusCode::BAD_REQUEST, Json(json!(format!("{error:#}")))),
    }
}

async fn run(server: &Server, command: Command) -> Result<Value> {
    match command {
        Command::SetAttribute { level, key, value } => server.set_attribute(level, &key, &value)?,
        Command::UnsetAttribute { level, key } => server.unset_attribute(level, &key),
        Command::SetDisks(disks) => server.set_disks(disks),
        Command::SetInstanceId(id) => server.set_instance_id(id),
        Command::SetScopes(scopes) => server.set_scopes(&scopes),
        Command::Fault(change) => server.fault(change),
        Command::GuestAttributes { namespace } => return Ok(json!(server.guest_attributes(&namespace))),
        Command::WaitGuestAttribute { namespace, key, after, timeout } => {
            return Ok(json!(server.wait_guest_attribute(&namespace, &key, after, timeout).await));
        }
        Command::Requests => return Ok(json!(server.requests())),
    }
    Ok(Value::Null)
}

/// The other end of [`serve`].
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
}

impl Client {
    /// A client for the server behind `socket`, which need not be there yet.
    pub fn new(socket: &Path) -> Result<Self> {
        // Even plain HTTP wants a TLS provider here; an error means that the process already has one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().unix_socket(socket).build();
        Ok(Self { http: http.with_context(|| format!("making a client for {}", socket.display()))? })
    }

    /// Sets an attribute.
    pub async fn set_attribute(&self, level: Level, key: &str, value: &str) -> Result<()> {
        self.run(&Command::SetAttribute { level, key: key.into(), value: value.into() }).await
    }

    /// Removes an attribute.
    pub async fn unset_attribute(&self, level: Level, key: &str) -> Result<()> {
        self.run(&Command::UnsetAttribute { level, key: key.into() }).await
    }

    /// Replaces the list of attached disks.
    pub async fn set_disks(&self, disks: Vec<Disk>) -> Result<()> {
        self.run(&Command::SetDisks(disks)).await
    }

    /// Makes the instance another one, see [`Server::set_instance_id`].
    pub async fn set_instance_id(&self, id: u64) -> Result<()> {
        self.run(&Command::SetInstanceId(id)).await
    }

    /// Changes what the tokens of the VM's accounts may be used for.
    pub async fn set_scopes(&self, scopes: &[String]) -> Result<()> {
        self.run(&Command::SetScopes(scopes.to_vec())).await
    }

    /// Adds a fault, or clears them all.
    pub async fn fault(&self, change: FaultChange) -> Result<()> {
        self.run(&Command::Fault(change)).await
    }

    /// The guest attributes of one namespace.
    pub async fn guest_attributes(&self, namespace: &str) -> Result<BTreeMap<String, String>> {
        self.run(&Command::GuestAttributes { namespace: namespace.into() }).await
    }

    /// Waits for a change of `namespace/key`, see [`Server::wait_guest_attribute`].
    pub async fn wait_guest_attribute(
        &self,
        namespace: &str,
        key: &str,
        after: u64,
        timeout: Duration,
    ) -> Result<GuestAttribute> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let command = Command::WaitGuestAttribute {
                namespace: namespace.into(),
                key: key.into(),
                after,
                timeout: left.min(LONGEST_WAIT),
            };
            let attribute: GuestAttribute = self.run(&command).await?;
            if attribute.revision > after || left <= LONGEST_WAIT {
                return Ok(attribute);
            }
        }
    }

    /// Every request so far.
    pub async fn requests(&self) -> Result<Vec<Request>> {
        self.run(&Command::Requests).await
    }

    async fn run<T: DeserializeOwned>(&self, command: &Command) -> Result<T> {
        let doing = || format!("asking the metadata server's control socket for {command:?}");
        let response = self.http.post("http://control/").json(command).send().await.with_context(doing)?;
        let status = response.status();
        let answer: Value = response.json().await.with_context(doing)?;
        ensure!(status.is_success(), "the metadata server refused: {}", answer.as_str().unwrap_or_default());
        serde_json::from_value(answer).with_context(doing)
    }
}
