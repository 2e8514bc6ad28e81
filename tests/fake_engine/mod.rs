//! A fake Docker Engine: answers like one on a socket and, while its container runs, like a gateway on a port.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// The one runtime of all servers, in a thread of its own.
pub(crate) static SERVERS: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
});

/// Runs as long as this lives.
pub(crate) struct FakeEngine {
    /// Where its gateway is published.
    pub(crate) port: u16,
    known: Arc<Mutex<Known>>,
    tasks: [JoinHandle<()>; 2],
}

struct Known {
    /// What it says of itself in the head of each answer.
    head: HeaderMap,
    /// Method and path of every request, oldest first.
    requests: Vec<String>,
    /// The machine, whose paths the mounts name.
    root: PathBuf,
    /// By id.
    images: BTreeMap<String, String>,
    containers: BTreeMap<String, Container>,
    /// The end of a path, and what is answered to it instead.
    instead: Vec<(&'static str, Answers)>,
    printed: Option<Prints>,
}

/// Makes answers.
type Answers = Arc<dyn Fn() -> Response + Send + Sync>;
/// What a command prints, part by part.
pub(crate) type Printed = Box<dyn Iterator<Item = Bytes> + Send>;
/// Does what a command does.
type Prints = Arc<dyn Fn() -> Printed + Send + Sync>;

struct Container {
    body: Value,
    status: &'static str,
    started_at: String,
}

impl FakeEngine {
    /// Listens at `socket` for the machine below `root`, and says `head` of itself.
    pub(crate) fn start(root: &Path, socket: &Path, head: HeaderMap) -> Result<Self> {
        let known = Known {
            head,
            requests: Vec::new(),
            root: root.to_owned(),
            images: BTreeMap::new(),
            containers: BTreeMap::new(),
            instead: Vec::new(),
            printed: None,
        };
        let known = Arc::new(Mutex::new(known));
        let (socket, gateway) = (StdUnixListener::bind(socket)?, StdTcpListener::bind("127.0.0.1:0")?);
        socket.set_nonblocking(true)?;
        gateway.set_nonblocking(true)?;
        let port = gateway.local_addr()?.port();
        let answers = Router::new().fallback(answer).with_state(Arc::clone(&known));
        let probes = Router::new().fallback(health).with_state(Arc::clone(&known));
        let tasks = [
            SERVERS.spawn(async {
                let socket = UnixListener::from_std(socket).expect("the socket is taken over");
                axum::serve(socket, answers).await.expect("the engine serves");
            }),
            SERVERS.spawn(async {
                let gateway = TcpListener::from_std(gateway).expect("the port is taken over");
                axum::serve(gateway, probes).await.expect("the gateway serves");
            }),
        ];
        Ok(Self { port, known, tasks })
    }

    /// Method and path of every request, oldest first.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.known.lock().unwrap().requests.clone()
    }

    /// What the gateway's container was made from.
    pub(crate) fn gateway(&self) -> Option<Value> {
        self.known.lock().unwrap().containers.get("openclaw-gateway").map(|container| container.body.clone())
    }

    /// Answers so to every request of it, or of its gateway, whose path ends so.
    pub(crate) fn answers_instead(&self, end: &'static str, make: impl Fn() -> Response + Send + Sync + 'static) {
        self.known.lock().unwrap().instead.push((end, Arc::new(make)));
    }

    /// Every command in its container does this.
    pub(crate) fn executes(&self, make: impl Fn() -> Printed + Send + Sync + 'static) {
        self.known.lock().unwrap().printed = Some(Arc::new(make));
    }

    /// Its containers have ended.
    pub(crate) fn ends_all(&self) {
        self.known.lock().unwrap().containers.values_mut().for_each(|container| container.status = "exited");
    }

    /// The containers: name, image, status.
    pub(crate) fn containers(&self) -> Vec<(String, String, &'static str)> {
        let known = self.known.lock().unwrap();
        let told = |(name, container): (&String, &Container)| (name.clone(), container.image(), container.status);
        known.containers.iter().map(told).collect()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

type Shared = State<Arc<Mutex<Known>>>;

async fn health(State(known): Shared, request: Request) -> Response {
    if let Some(answer) = known.lock().unwrap().instead(request.uri().path()) {
        return answer();
    }
    let known = known.lock().unwrap();
    let gateway = known.containers.get("openclaw-gateway").filter(|container| container.status == "running");
    let Some(gateway) = gateway else { return StatusCode::BAD_GATEWAY.into_response() };
    // Both answers at once: each reader looks at its own part.
    axum::Json(json!({"status": "started", "ready": true, "version": version(&gateway.image())})).into_response()
}

async fn answer(State(known): Shared, mut request: Request) -> Response {
    let stream = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path();
    known.lock().unwrap().requests.push(format!("{} {path}", parts.method));
    if let Some(answer) = known.lock().unwrap().instead(path) {
        return answer();
    }
    if path.contains("/exec/") && path.ends_with("/start") {
        let print = known.lock().unwrap().printed.clone();
        tokio::spawn(async move {
            let mut stream = TokioIo::new(stream.await.expect("the client takes the stream over"));
            for part in print.into_iter().flat_map(|print| print()) {
                // Who asked may have enough of it.
                if stream.write_all(&frame(&part)).await.is_err() {
                    return;
                }
            }
            drop(stream.shutdown().await);
        });
        let upgrade = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")];
        return (StatusCode::SWITCHING_PROTOCOLS, upgrade).into_response();
    }
    if path.ends_with("/_ping") {
        return (known.lock().unwrap().head.clone(), "OK").into_response();
    }
    // The version that was negotiated.
    let path = path.strip_prefix("/v1.").and_then(|rest| rest.split_once('/')).map_or(path, |(_, path)| path);
    let query = parts.uri.query().unwrap_or_default();
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    let answer = known.lock().unwrap().answer(parts.method.as_str(), &words, query, &body);
    let (status, value) = answer.unwrap_or_else(|error| (500, json!({"message": format!("{error:#}")})));
    let status = StatusCode::from_u16(status).unwrap();
    if value.is_null() { status.into_response() } else { (status, axum::Json(value)).into_response() }
}

/// A part of a command's output, or of a log, as the engine sends it.
pub(crate) fn frame(part: &[u8]) -> Bytes {
    let length = u32::try_from(part.len()).expect("parts are small").to_be_bytes();
    [&[1, 0, 0, 0], &length[..], part].concat().into()
}

impl Known {
    fn instead(&self, path: &str) -> Option<Answers> {
        self.instead.iter().find(|(end, _)| path.ends_with(end)).map(|(_, answers)| Arc::clone(answers))
    }

    fn answer(&mut self, method: &str, words: &[&str], query: &str, body: &Bytes) -> Result<(u16, Value)> {
        let absent = |what: &str| (404, json!({"message": format!("no such {what}")}));
        let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        Ok(match (method, words) {
            (_, ["events"] | ["containers", _, "logs"]) => (200, Value::Null),
            (_, ["info"]) => (200, json!({"MemoryLimit": false})),
            ("GET", ["networks", "bridge"]) => (200, json!({"Name": "bridge"})),
            ("POST", ["images", "create"]) => {
                let name = value("fromImage").context("no image is named")?;
                let name = name.replace("%2F", "/").replace("%3A", ":");
                self.images.insert(id(&name), name);
                (200, json!({"id": "layer", "status": "Pull complete"}))
            }
            ("GET", ["images", name @ .., "json"]) => {
                let name = name.join("/");
                match self.images.iter().find(|(id, known)| name == **id || name == **known) {
                    Some((id, _)) => (200, json!({"Id": id, "RepoDigests": []})),
                    None => absent("image"),
                }
            }
            ("POST", ["containers", "create"]) => self.create(value("name").context("no name")?, body)?,
            ("GET", ["containers", "json"] | ["containers", _, "changes"]) => (200, json!([])),
            ("GET", ["containers", name, "json"]) => match self.containers.get(*name) {
                Some(container) => (200, container.told()),
                None => absent("container"),
            },
            ("POST", ["containers", name, "rename"]) => self.rename(name, value("name").context("no name")?),
            ("POST", ["containers", name, "start"]) => self.start(name)?,
            ("POST", ["containers", _, "exec"]) => (201, json!({"Id": "command"})),
            ("GET", ["exec", _, "json"]) => (200, json!({"ExitCode": 0, "Running": false})),
            ("POST", ["containers", _, "wait"]) => (200, json!({"StatusCode": 0})),
            ("POST", ["containers", name, "stop"]) => match self.containers.get_mut(*name) {
                Some(container) => {
                    container.status = "exited";
                    (204, Value::Null)
                }
                None => absent("container"),
            },
            ("DELETE", ["containers", name]) => match self.containers.remove(*name) {
                Some(_) => (204, Value::Null),
                None => absent("container"),
            },
            _ => (501, json!({"message": format!("{method} {} is not known here", words.join("/"))})),
        })
    }

    fn create(&mut self, name: &str, body: &Bytes) -> Result<(u16, Value)> {
        if self.containers.contains_key(name) {
            return Ok((409, json!({"message": format!("the name {name} is in use")})));
        }
        let container = Container { body: serde_json::from_slice(body)?, status: "created", started_at: String::new() };
        self.containers.insert(name.to_owned(), container);
        Ok((201, json!({"Id": name, "Warnings": []})))
    }

    fn rename(&mut self, from: &str, to: &str) -> (u16, Value) {
        if self.containers.contains_key(to) {
            return (409, json!({"message": format!("the name {to} is in use")}));
        }
        match self.containers.remove(from) {
            Some(container) => {
                self.containers.insert(to.to_owned(), container);
                (204, Value::Null)
            }
            None => (404, json!({"message": "no such container"})),
        }
    }

    /// A container of the gateway runs; any other one is its `config patch` and has ended.
    fn start(&mut self, name: &str) -> Result<(u16, Value)> {
        let container = self.containers.get_mut(name).context("no such container")?;
        let state = container.body.pointer("/HostConfig/Mounts/0/Source").and_then(Value::as_str);
        let state = self.root.join(state.context("no mount")?.trim_start_matches('/'));
        if !state.is_dir() {
            return Ok((400, json!({"message": "bind source path does not exist"})));
        }
        let fault = container.fault();
        if fault.as_deref() == Some("start") {
            return Ok((500, json!({"message": "OCI runtime create failed: exec: no such file"})));
        }
        let mut command = container.body["Cmd"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if let Some(file) = command.find(|word| word.contains("settings-patch")) {
            let edits = fs::read(self.root.join(file.trim_start_matches('/')))?;
            patch(&state.join("openclaw.json"), &serde_json::from_slice(&edits)?)?;
            container.status = "exited";
        } else {
            let version = version(&container.image());
            let starts = migrate(&state, &version)? && version != BROKEN && fault.is_none();
            container.status = if starts { "running" } else { "exited" };
            container.started_at = Timestamp::now().to_string();
        }
        Ok((204, Value::Null))
    }
}

/// What Docker of this `version` says of itself.
pub(crate) fn says(version: &str, api: &'static str) -> HeaderMap {
    let server = format!("Docker/{version} (linux)").parse().expect("a header");
    let [api, os] = [api, "linux"].map(HeaderValue::from_static);
    [("server", server), ("api-version", api), ("ostype", os)]
        .map(|(name, value)| (HeaderName::from_static(name), value))
        .into_iter()
        .collect()
}

/// The id of an image.
fn id(name: &str) -> String {
    let number: u64 = name.bytes().fold(7, |number, byte| number.wrapping_mul(31).wrapping_add(byte.into()));
    format!("sha256:{number:064x}")
}

/// The version in the tag of an image.
fn version(image: &str) -> String {
    image.rsplit(':').next().unwrap_or_default().to_owned()
}

/// A gateway makes the state one of its version; false when that was already a later one.
fn migrate(state: &Path, version: &str) -> Result<bool> {
    let file = state.join(OF_VERSION);
    let present = fs::read_to_string(&file).unwrap_or_default();
    if present.as_str() > version {
        return Ok(false);
    }
    fs::write(&file, version)?;
    chown(&file, Some(1000), Some(1000)).context("giving the state to the gateway's user")?;
    Ok(true)
}

/// The version that migrates the state and then ends.
pub(crate) const BROKEN: &str = "2026.9.66";

/// The variable of a gateway that ends at once; with the value `start`, the engine cannot even start it.
pub(crate) const FAULT: &str = "FAULT";

/// In the state directory: which version's it is.
pub(crate) const OF_VERSION: &str = "of-version";

impl Container {
    fn image(&self) -> String {
        self.body["Image"].as_str().unwrap_or_default().to_owned()
    }

    /// What the operator's variable [`FAULT`] says.
    fn fault(&self) -> Option<String> {
        let mut env = self.body["Env"].as_array().into_iter().flatten().filter_map(Value::as_str);
        env.find_map(|pair| pair.strip_prefix(FAULT)?.strip_prefix('=')).map(str::to_owned)
    }

    fn told(&self) -> Value {
        json!({
            "HostConfig": {
                "PortBindings": self.body["HostConfig"]["PortBindings"],
                "ReadonlyRootfs": self.body["HostConfig"]["ReadonlyRootfs"],
            },
            "Config": {"Labels": self.body["Labels"]},
            "State": {"Status": self.status, "StartedAt": self.started_at, "ExitCode": 1},
            "RestartCount": 0,
        })
    }
}

/// What the gateway's own `config patch` does.
fn patch(file: &Path, edits: &Value) -> Result<()> {
    let mut config = match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => json!({}),
    };
    merge(&mut config, edits);
    fs::write(file, config.to_string())?;
    chown(file, Some(1000), Some(1000)).context("giving openclaw.json to the gateway's user")
}

fn merge(target: &mut Value, edits: &Value) {
    let Some(edits) = edits.as_object() else {
        *target = edits.clone();
        return;
    };
    for (key, edit) in edits {
        match target.as_object_mut() {
            Some(object) if edit.is_null() => drop(object.remove(key)),
            _ => merge(&mut target[key], edit),
        }
    }
}
