//! The metadata server and Secret Manager against clients nobody here wrote: google-auth and
//! google-cloud-secret-manager (Python), and gcp-metadata (Node).
//!
//! They are installed from the package registries that the machine's pip and npm are configured for, so this
//! belongs to the `machine` tier. It needs `python3` with its `venv` module, `node` and `npm`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command as Client;

use crate::cache::Cache;
use crate::cloud::metadata_server::{ACCESS_TOKEN, Disk, Instance, Metadata, Server};

const PYTHON_PACKAGES: [&str; 2] = ["google-auth==2.62.2", "requests==2.32.5"];
/// Google's own client of Secret Manager; with it comes Google's own CRC-32C.
const SECRET_MANAGER_PACKAGES: [&str; 3] =
    ["google-cloud-secret-manager==2.32.0", "google-crc32c==1.9.0", "requests==2.32.5"];
const NODE_PACKAGES: [&str; 1] = ["gcp-metadata@8.1.4"];

const PROJECT_ID: &str = "/computeMetadata/v1/project/project-id";

/// Generous: both clients retry a 503 with back-off, which takes google-auth about 3 s.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Prints what google-auth makes of the server, as one line of JSON.
const PYTHON_CLIENT: &str = include_str!("../../scripts/clients/google_auth.py");

/// Prints what google-cloud-secret-manager makes of the secrets that it is told, as one line of JSON.
const SECRET_MANAGER_CLIENT: &str = include_str!("../../scripts/clients/secret_manager.py");

/// Prints what gcp-metadata makes of the server, as one line of JSON.
const NODE_CLIENT: &str = include_str!("../../scripts/clients/gcp_metadata.js");

/// The clients that [`pack`] packs, in a container: name, program, and what that prints of the account it finds.
pub(crate) const IDENTITY_CLIENTS: [(&str, &str, &str); 2] = [
    ("google-auth", "python3", include_str!("../../scripts/clients/identity.py")),
    ("gcp-metadata", "node", include_str!("../../scripts/clients/identity.js")),
];

/// Packs google-auth as `site-packages` and gcp-metadata as `node_modules` for the gateway's image, which has the same
/// Python as Debian 12.
pub(crate) fn pack(cache: &Cache, file: &Path) -> Result<()> {
    let python = cache.entry("google-auth", &PYTHON_PACKAGES, |dir| install_python(dir, &PYTHON_PACKAGES))?;
    let node = cache.entry("gcp-metadata", &NODE_PACKAGES, install_node)?;
    let mut tar = Command::new("tar");
    tar.arg("--create")
        .arg("--file")
        .arg(file)
        .arg("--directory")
        .arg(python.join("lib/python3.11"))
        .arg("site-packages");
    run(tar.arg("--directory").arg(node).arg("node_modules"))
}

/// Runs all clients against a server on loopback and compares what they understood with what the server tells:
/// the full 64-bit id, the default universe for a 404, disks, token; twice 503 before an answer is survived.
///
/// The packages are kept in `cache`. Returns one line per passed check. Starts a runtime of its own, so it must not
/// be called from inside one.
pub fn check(cache: &Cache) -> Result<Vec<String>> {
    let python =
        cache.entry("google-auth", &PYTHON_PACKAGES, |dir| install_python(dir, &PYTHON_PACKAGES))?.join("bin/python");
    let install = |dir: &Path| install_python(dir, &SECRET_MANAGER_PACKAGES);
    let secret_manager = cache.entry("secret-manager", &SECRET_MANAGER_PACKAGES, install)?.join("bin/python");
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
        passed.extend(check_secrets(&secret_manager).await.context("running google-cloud-secret-manager")?);
        Ok(passed)
    })
}

/// Good and wrong values, every refusal, and two 503: as Google's own client understands them.
async fn check_secrets(python: &Path) -> Result<Vec<String>> {
    let (server, address) = Server::spawn(metadata()).await?;
    let directory = tempfile::tempdir().context("making a directory for secrets")?;
    let secrets = directory.path().join("projects/openclaw-lab/secrets");
    let files = [
        "good/versions/1",
        "good/versions/2",
        "wrong/versions/1.corrupt",
        "old/versions/1.destroyed",
        "off/versions/1.disabled",
    ];
    for file in files.iter().chain(&["mine/versions/1", "mine/denied"]) {
        let file = secrets.join(file);
        fs::create_dir_all(file.parent().context("a file without a directory")?).context("making a secret")?;
        fs::write(file, "a value").context("writing a secret")?;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.context("binding Secret Manager to 127.0.0.1")?;
    let secret_manager = listener.local_addr().context("reading Secret Manager's address")?;
    let router = server.secrets_router(directory.path());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let run = async |names: &[&str]| {
        let mut client = Client::new(python);
        client.args(["-c", SECRET_MANAGER_CLIENT]).args(names);
        run_client(client.env("SECRET_MANAGER", format!("http://{secret_manager}")), address).await
    };
    let precondition = json!(["BadRequest", null]);
    let value = |name: &str, is_good| json!([format!("projects/708288290784/secrets/{name}"), "a value", is_good]);
    let wanted = json!({
        "good/versions/latest": value("good/versions/2", true),
        "good/versions/1": value("good/versions/1", true),
        "wrong/versions/1": value("wrong/versions/1", false),
        "good/versions/9": ["NotFound", null],
        "gone/versions/1": ["NotFound", null],
        "old/versions/latest": precondition,
        "off/versions/1": precondition,
        "mine/versions/1": ["Forbidden", "IAM_PERMISSION_DENIED"],
    });
    let names: Vec<&str> = wanted.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    server.fault("path=/v1/projects/openclaw-lab/secrets/good/versions/1,status=503,times=2".parse()?);
    let understood = run(&names).await?;
    ensure!(understood == wanted, "google-cloud-secret-manager understood {understood}, not {wanted}");
    let mut passed = vec![format!("google-cloud-secret-manager: {understood}")];
    server.set_scopes(&[]);
    let scope = run(&["good/versions/1"]).await?;
    let wanted = json!({"good/versions/1": ["Forbidden", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"]});
    ensure!(scope == wanted, "google-cloud-secret-manager understood {scope}, not {wanted}");
    passed.push(format!("google-cloud-secret-manager: {scope}"));
    Ok(passed)
}

fn metadata() -> Metadata {
    let mut instance = Instance::default();
    instance.disks.push(Disk::new(1, "openclaw-data"));
    instance.into()
}

fn install_python(dir: &Path, packages: &[&str]) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
    run(Command::new(dir.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(packages))
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
