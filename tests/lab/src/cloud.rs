//! The cloud of one lab: name server, way out, metadata server and web servers, kept by one process.
//!
//! That process lives in the cloud's network namespace; its helpers are its children and end with it.

pub mod acme;
pub mod ca;
pub mod content;
pub mod docker_apt;
pub mod fake_gateway;
pub mod images;
pub mod metadata_server;
pub mod model_provider;
pub mod network;
pub mod oci;
pub mod real_clients;
pub mod registry;
pub mod requests;
pub mod signing;
pub mod tls;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::serve::Listener;
use clap::ValueEnum;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::background;
use crate::cache::Cache;
use crate::process::Process;
use crate::state::Lab;
use ca::Ca;
use content::Content;
use docker_apt::DockerRepository;
use metadata_server::{IAM_CREDENTIALS_NAME, Metadata, SECRET_MANAGER_NAMES, Server, control};
use network::{CERTIFICATES, FORGE, MACHINE, METADATA, MODEL_PROVIDER, STORAGE, UPSTREAM_NAMES};
use tls::{HTTPS, TlsListener};

/// The programs that the cloud's process starts.
const HELPERS: [&str; 3] = ["slirp4netns", "dnsmasq", acme::PROGRAM];
/// The name of Cloud Storage's API.
const STORAGE_NAME: &str = "storage.googleapis.com";
/// Where upstream's source is; the lab has archives of its own under the same paths.
pub const FORGE_NAME: &str = "github.com";
/// The name that leads to the machine.
pub const DOMAIN: &str = "claw.example.com";
const START_LIMIT: Duration = Duration::from_secs(60);

/// Starts the cloud's process, whose metadata server tells `metadata`; returns when all its servers answer.
///
/// Without a `repository` there is no internet: neither a way out nor what the lab has of it, only the metadata server.
/// With a `validity` there is a CA whose certificates are valid for so long.
pub fn start(
    lab: &Lab,
    metadata: &Metadata,
    repository: Option<DockerRepository>,
    validity: Option<Duration>,
) -> Result<()> {
    let file = metadata_file(lab);
    let text = serde_json::to_vec_pretty(metadata).context("writing the metadata as JSON")?;
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    let answers = repository.unwrap_or(DockerRepository::Unreachable).to_possible_value();
    let answers = answers.context("a hidden kind of repository")?;
    let closed = if repository.is_none() { &["--closed"][..] } else { &[] };
    let acme = validity.map(|validity| format!("--acme={}s", validity.as_secs()));
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    let arguments = [&["--docker-repository", answers.get_name()], closed, &acme].concat();
    let mut child = background::start(lab, "serve", &arguments)?;
    let deadline = Instant::now() + START_LIMIT;
    while !lab.control_socket().exists() {
        let ended = child.try_wait().context("looking at the cloud's process")?;
        if ended.is_some() || Instant::now() > deadline {
            let log = fs::read_to_string(lab.path("serve.log")).unwrap_or_default();
            bail!("the cloud did not start: {}", log.trim());
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Ends the cloud's process and its helpers, also when the process itself was killed.
pub fn stop(lab: &Lab) -> Result<()> {
    for what in ["cloud"].iter().chain(&HELPERS) {
        if let Some(process) = Process::recall(&lab.process_file(what)) {
            process.end(Duration::from_secs(5)).with_context(|| format!("ending the lab's {what}"))?;
        }
    }
    Ok(())
}

/// Changes or reads what the running metadata server has.
pub fn client(lab: &Lab) -> Result<control::Client> {
    control::Client::new(&lab.control_socket())
}

/// The cloud's whole life, until it is told to end.
pub fn serve(lab: &Lab, repository: Option<DockerRepository>, validity: Option<Duration>) -> Result<()> {
    Process::me()?.remember(&lab.process_file("cloud"))?;
    let mut helpers: Vec<Child> = repository.map(|_| way_out(lab)).transpose()?.into_iter().collect();
    network::enter(&lab.cloud())?;
    helpers.push(name_server(lab)?);
    if let Some(validity) = validity {
        let child = acme::start(lab, Content::prepare(&Cache::from_env()?)?.ca(), validity)?;
        remember(lab, acme::PROGRAM, &child)?;
        helpers.push(child);
    }
    let served = runtime()?.block_on(servers(lab, repository));
    for mut helper in helpers {
        helper.kill().and_then(|()| helper.wait()).context("ending a helper")?;
    }
    served
}

/// A runtime of one thread, so that the process stays in the namespaces that it entered.
pub fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("starting the runtime")
}

/// The servers in this process. The control socket comes last: when it exists, all of them answer.
async fn servers(lab: &Lab, repository: Option<DockerRepository>) -> Result<()> {
    let mut end = signal(SignalKind::terminate()).context("listening for the end")?;
    let file = metadata_file(lab);
    let metadata = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let metadata: Metadata =
        serde_json::from_slice(&metadata).with_context(|| format!("reading {}", file.display()))?;
    let server = Server::new(metadata);
    let internet = match repository {
        Some(repository) => Some(internet(lab, repository, &server).await?),
        None => None,
    };
    let internet = async {
        match internet {
            Some(serving) => serving.await,
            None => std::future::pending().await,
        }
    };
    let instance = listen(METADATA).await?;
    let socket = lab.control_socket();
    tokio::select! {
        _ = end.recv() => Ok(()),
        ended = server.clone().serve(instance) => ended,
        ended = internet => ended,
        ended = control::serve(server, &socket) => ended,
    }
}

/// What the lab has of the internet. When this returns it listens; the future that it returns serves.
async fn internet(
    lab: &Lab,
    repository: DockerRepository,
    server: &Server,
) -> Result<impl Future<Output = Result<()>> + use<>> {
    let content = Content::prepare(&Cache::from_env()?)?;
    let files = axum::serve(listen(STORAGE).await?, server.files_router(lab.files()));
    let certificate = content
        .ca()
        .server_certificate(&[&[STORAGE_NAME, IAM_CREDENTIALS_NAME], &SECRET_MANAGER_NAMES[..]].concat())?;
    let google = TlsListener::bind((STORAGE, HTTPS).into(), &certificate).await?;
    let apis = server.storage_router(lab.files()).merge(server.secrets_router(lab.secrets()));
    let apis = apis.merge(server.accounts_router(&lab.secrets()));
    let google = axum::serve(google, apis);
    let certificate = content.ca().server_certificate(&[FORGE_NAME])?;
    let forge = TlsListener::bind((FORGE, HTTPS).into(), &certificate).await?;
    let forge = axum::serve(forge, server.files_router(lab.files()));
    let models = axum::serve(listen(MODEL_PROVIDER).await?, model_provider::router());
    let content = content.start(repository, &lab.content()).await?;
    Ok(async {
        tokio::select! {
            ended = files.into_future() => ended.context("serving files"),
            ended = google.into_future() => ended.context("serving Google's APIs"),
            ended = forge.into_future() => ended.context("serving GitHub"),
            ended = models.into_future() => ended.context("serving models"),
            ended = content.run() => ended,
        }
    })
}

/// Serves the files below `directory` as the forge does, at a port of this machine's own 127.0.0.1, as long as this
/// process lives: for a user's workstation, which is in no lab's network.
pub fn serve_forge_here(ca: &Ca, directory: PathBuf) -> Result<SocketAddr> {
    let certificate = ca.server_certificate(&[FORGE_NAME])?;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime()?.block_on(async {
            let listener = TlsListener::bind((Ipv4Addr::LOCALHOST, 0).into(), &certificate).await?;
            tell.send(Listener::local_addr(&listener)?)?;
            let router = Server::new(Metadata::default()).files_router(directory);
            axum::serve(listener, router).await.context("serving GitHub to the workstation")
        })
    });
    told.recv().context("the workstation's GitHub did not start")
}

async fn listen(address: Ipv4Addr) -> Result<TcpListener> {
    TcpListener::bind((address, 80)).await.with_context(|| format!("listening on {address}"))
}

/// What the metadata server tells at first.
fn metadata_file(lab: &Lab) -> PathBuf {
    lab.path("metadata.json")
}

/// The way out of the namespace, provided by a process outside it.
fn way_out(lab: &Lab) -> Result<Child> {
    let mut command = Command::new("slirp4netns");
    command.args(["--configure", "--mtu=1460", "--disable-host-loopback", "--netns-type=path"]);
    command.arg(network::path(&lab.cloud())).arg("tap0");
    let child = command.stdin(Stdio::null()).spawn().context("starting slirp4netns")?;
    remember(lab, "slirp4netns", &child)?;
    Ok(child)
}

/// The name server of the VM. Google's own names stay in the lab: the script runner looks up
/// `storage.googleapis.com` before any download and waits 100 s for it (facts of the guest agent).
fn name_server(lab: &Lab) -> Result<Child> {
    let own = [
        ("metadata.google.internal", METADATA),
        ("metadata", METADATA),
        ("googleapis.com", STORAGE),
        (FORGE_NAME, FORGE),
        (model_provider::NAME, MODEL_PROVIDER),
        (acme::NAME, CERTIFICATES),
        (DOMAIN, MACHINE),
    ];
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]);
    command.args(["--user=root", "--pid-file=", "--filter-AAAA", "--cache-size=1000", "--log-facility=-"]);
    command.arg(format!("--listen-address={METADATA}")).arg(format!("--server={UPSTREAM_NAMES}"));
    let own = own.map(|(name, address)| (name.to_owned(), IpAddr::V4(address)));
    for (name, address) in own.into_iter().chain(Content::names()) {
        command.arg(format!("--address=/{name}/{address}"));
    }
    let child = command.stdin(Stdio::null()).spawn().context("starting dnsmasq")?;
    remember(lab, "dnsmasq", &child)?;
    Ok(child)
}

fn remember(lab: &Lab, what: &str, child: &Child) -> Result<()> {
    let pid = i32::try_from(child.id()).with_context(|| format!("reading the process id of {what}"))?;
    Process::of(pid)?.remember(&lab.process_file(what))
}
