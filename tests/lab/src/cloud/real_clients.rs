//! The metadata server against clients nobody here wrote: google-auth (Python) and gcp-metadata (Node).
//!
//! They are installed from the package registries that the machine's pip and npm are configured for, so this
//! belongs to the `machine` tier. It needs `python3` with its `venv` module, `node` and `npm`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command as Client;

use crate::cache::Cache;
use crate::cloud::metadata_server::{ACCESS_TOKEN, Disk, Instance, Metadata, Server};

const PYTHON_PACKAGES: [&str; 2] = ["google-auth==2.62.2", "requests==2.32.5"];
const NODE_PACKAGES: [&str; 1] = ["gcp-metadata@8.1.4"];

const PROJECT_ID: &str = "/computeMetadata/v1/project/project-id";

/// Generous: both clients retry a 503 with back-off, which takes google-auth about 3 s.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Prints what google-auth makes of the server, as one line of JSON.
const PYTHON_CLIENT: &str = include_str!("../../scripts/clients/google_auth.py");

/// Prints what gcp-metadata makes of the server, as one line of JSON.
const NODE_CLIENT: &str = include_str!("../../scripts/clients/gcp_metadata.js");

/// Runs both clients against a server on loopback and compares what they understood with what the server tells:
/// the full 64-bit id, the default universe for a 404, disks, token; twice 503 before an answer is survived.
///
/// The packages are kept in `cache`. Returns one line per passed check. Starts a runtime of its own, so it must not
/// be called from inside one.
pub fn check(cache: &Cache) -> Result<Vec<String>> {
    let python = cache.entry("google-auth", &PYTHON_PACKAGES, install_python)?.join("bin/python");
    let node_modules = cache.entry("gcp-metadata", &NODE_PACKAGES, install_node)?.join("node_modules");
    let metadata = metadata();
    let google_auth = json!({
        "ping": true,
        "project": metadata.project.project_id,
        "id": metadata.instance.id.to_string(),
        "universe": "googleapis.com",
        "account": metadata.instance.service_accounts["default"].email,
        "token": ACCESS_TOKEN,
    });
    let gcp_metadata = json!({
        "available": true,
        "project": metadata.project.project_id,
        "id": metadata.instance.id.to_string(),
        "disks": metadata.instance.disks,
        "universe": 404,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("making a runtime")?;
    runtime.block_on(async {
        let mut python = Client::new(python);
        let mut passed = check_client("google-auth", python.args(["-c", PYTHON_CLIENT]), &google_auth).await?;
        let mut node = Client::new("node");
        let node = node.args(["-e", NODE_CLIENT]).env("NODE_PATH", node_modules);
        passed.extend(check_client("gcp-metadata", node, &gcp_metadata).await?);
        Ok(passed)
    })
}

fn metadata() -> Metadata {
    let mut instance = Instance::default();
    instance.disks.push(Disk::new(1, "openclaw-data"));
    instance.into()
}

fn install_python(dir: &Path) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
    run(Command::new(dir.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(PYTHON_PACKAGES))
}

fn install_node(dir: &Path) -> Result<()> {
    run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(dir).args(NODE_PACKAGES))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, errors.trim());
    Ok(())
}

/// Runs one client through two 503 for the project id; `wanted` is what it must have understood.
async fn check_client(client: &str, command: &mut Client, wanted: &Value) -> Result<Vec<String>> {
    let (server, address) = Server::spawn(metadata()).await?;
    server.fault(format!("path={PROJECT_ID},status=503,times=2").parse()?);
    let understood = run_client(command, address).await.with_context(|| format!("running {client}"))?;
    let mut passed = Vec::new();
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        ensure!(understood[key] == *wanted, "{client} understood {key} as {}, not {wanted}", understood[key]);
        passed.push(format!("{client}: {key} is {wanted}"));
    }
    let requests = server.requests().into_iter().filter(|request| request.path == PROJECT_ID);
    let statuses: Vec<u16> = requests.filter_map(|request| request.status).collect();
    ensure!(statuses == [503, 503, 200], "{client} asked for the project id and got {statuses:?}");
    passed.push(format!("{client}: two 503 are survived"));
    Ok(passed)
}

/// Runs a client that is to find the metadata server at `address`, and parses the JSON it prints.
async fn run_client(command: &mut Client, address: SocketAddr) -> Result<Value> {
    command.env("GCE_METADATA_HOST", address.to_string()).env("GCE_METADATA_IP", address.to_string());
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    let output = tokio::time::timeout(CLIENT_TIMEOUT, command.kill_on_drop(true).output())
        .await
        .with_context(|| format!("the client did not end within {CLIENT_TIMEOUT:?}"))?
        .context("starting the client")?;
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the client ended with {}: {}", output.status, errors.trim());
    serde_json::from_str(&printed).with_context(|| format!("reading what the client printed: {printed}"))
}
