//! The Docker Engine: installed when there is none, started, answering.
//!
//! An engine that answers and speaks API 1.41 or newer is kept as it is, whoever installed it: no apt, no network, no
//! change. `/etc/docker/daemon.json` is never written, so there is no file to merge. Log rotation, limits and restart
//! policy are set per container, where they bind nobody else. `live-restore` would only spare the gateway a restart of
//! some seconds when the engine is upgraded, and swarm refuses it. [`restart`] is for an engine that cannot go on.

mod engine;
mod forwarding;
mod repository;
mod settings;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use backon::{ConstantBuilder, Retryable as _};
use bollard::errors::Error as DockerError;

pub use self::engine::{Engine, SOCKET};
use self::repository::{Availability, Repository, RepositoryTrust};
use crate::apt::os_release::{self, Distribution};
use crate::apt::{APT_DEADLINE, Apt, installed};
use crate::config::{DockerConfig, DockerSource};
use crate::error::{Classify, Code, RUN_AGAIN, code_of, one_line};
use crate::host::Host;
use crate::paths::{ENGINE_RULES_GONE, ENGINE_RULES_SEEN};
use crate::systemd;

/// The engine's unit; it pulls in its socket and containerd.
pub const UNIT: &str = "docker.service";

/// The unit of what runs the engine's containers, where the engine does not start its own.
pub const CONTAINERD: &str = "containerd.service";

/// How long an engine may take until it first answers: after a power cut it cleans up before.
const ANSWER_DEADLINE: Duration = Duration::from_secs(90);

/// How often a started engine is asked whether it answers.
const ANSWER_INTERVAL: Duration = Duration::from_millis(250);

/// The kernel's words, in messages of the engine.
pub(crate) const NO_SPACE: &str = "no space left on device";

/// What later stages need on every machine, most of it part of most images. With `pigz` the engine unpacks an image
/// beside decompressing it.
const COMPANIONS: [&str; 4] = ["ca-certificates", "e2fsprogs", "nftables", "pigz"];

/// The packages of Docker's repository; `docker-buildx-plugin` is added where the repository has it.
const DOCKER_CE: [&str; 3] = ["docker-ce", "docker-ce-cli", "containerd.io"];

/// What Docker's packages cannot be installed beside (docs.docker.com/engine/install/debian).
const CONFLICTS_WITH_DOCKER_CE: [&str; 4] = ["docker.io", "podman-docker", "containerd", "runc"];

/// What the distribution's packages cannot be installed beside.
const CONFLICTS_WITH_DISTRO: [&str; 4] = ["docker-ce", "docker-ce-cli", "containerd.io", "podman-docker"];

/// Makes sure that a usable engine runs, and that its containers reach the internet.
pub async fn ensure(host: &Host, config: &DockerConfig) -> Result<Engine> {
    if has_lost_rules(host) {
        restore_rules(host).await;
    }
    let engine = match connect(host).await? {
        Some(engine) => engine,
        None => install_and_start(host, config).await?,
    };
    let [unit, containerd] = systemd::show(host, [UNIT, CONTAINERD]).await?;
    // An engine goes on without its containerd, and then starts no program in a container.
    if containerd.load == "loaded" && containerd.active != "active" {
        systemd::ensure_started(host, CONTAINERD).await?;
    }
    settings::check(host, &engine, unit.main_pid).await?;
    forwarding::ensure(host).await?;
    Ok(engine)
}

/// The address of this machine at which containers see its programs, also those that reach them through a published
/// port: the bridge's.
pub async fn host_address(engine: &Engine) -> Result<IpAddr> {
    let bridge = engine.client.inspect_network("bridge", None).await.context("asking the engine for its bridge")?;
    let networks = bridge.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let address = networks.iter().find_map(|it| it.gateway.as_deref()?.parse().ok().filter(IpAddr::is_ipv4));
    address.context("the engine's bridge has no address of IPv4, at which its containers see this machine").classify(
        Code::DockerUnusable,
        format!(
            "See `sudo docker network inspect bridge` and `bip` in /etc/docker/daemon.json, then run `{RUN_AGAIN}`."
        ),
    )
}

/// An engine makes its rules only when it starts. What keeps it from that is found by who connects to it.
async fn restore_rules(host: &Host) {
    // An engine that makes none is not started anew again and again.
    drop(tokio::fs::remove_file(host.path(ENGINE_RULES_SEEN)).await);
    let restarted =
        async { if systemd::is_active(host, UNIT).await? { systemd::restart(host, UNIT).await } else { Ok(()) } };
    if let Err(error) = restarted.await {
        tracing::warn!("{error:#}");
    }
    drop(tokio::fs::remove_file(host.path(ENGINE_RULES_GONE)).await);
}

/// Whether somebody removed the engine's rules of the packet filter, as `nft flush ruleset` does.
pub fn has_lost_rules(host: &Host) -> bool {
    host.path(ENGINE_RULES_GONE).exists()
}

/// Whether containers have no network but their own, because the kernel does not forward packets.
pub async fn is_forwarding_off(host: &Host) -> Result<bool> {
    forwarding::is_off(host).await
}

/// Whether the engine answered that there is no such thing.
pub(crate) fn is_missing(error: &DockerError) -> bool {
    matches!(error, DockerError::DockerResponseServerError { status_code: 404, .. })
}

async fn install_and_start(host: &Host, config: &DockerConfig) -> Result<Engine> {
    let distribution = os_release::observe(host).await?;
    let apt = Apt::new(host, APT_DEADLINE);
    apt.repair().await?;
    let names: Vec<&str> = CONFLICTS_WITH_DOCKER_CE.into_iter().chain(CONFLICTS_WITH_DISTRO).collect();
    match decide(config.source, &installed(host, &names).await?)? {
        Setup::Start => {}
        Setup::Install(DockerSource::Distro) => install_distro(&apt, distribution).await?,
        Setup::Install(source) => {
            let trust = RepositoryTrust::of(host).await?;
            let repository = Repository { host, apt: &apt, distribution, url: &config.apt_url, trust: &trust };
            install_docker_ce(host, &repository, source).await?;
        }
    }
    start(host).await
}

/// The engine of a machine that has one, which is started if need be. Nothing is installed.
pub async fn find(host: &Host) -> Result<Option<Engine>> {
    if let Some(engine) = connect(host).await? {
        return Ok(Some(engine));
    }
    if !systemd::is_loaded(host, UNIT).await? {
        return Ok(None);
    }
    systemd::ensure_started(host, UNIT).await?;
    wait_for_answer(host).await.map(Some)
}

/// The engine, `None` when none answers; one that answers and cannot be used is an error.
async fn connect(host: &Host) -> Result<Option<Engine>> {
    let socket = host.path(SOCKET);
    // A socket unit accepts the connection and only then starts the engine.
    match tokio::time::timeout(ANSWER_DEADLINE, Engine::connect(&socket.to_string_lossy())).await {
        Ok(Ok(engine)) => Ok(Some(engine)),
        Ok(Err(error)) if code_of(&error) == Code::DockerUnusable => Err(error),
        Ok(Err(error)) => {
            tracing::debug!("no engine answers: {}", one_line(&error));
            Ok(None)
        }
        Err(_) => Ok(None),
    }
}

/// What is needed for an engine to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// One is installed and only has to be started.
    Start,
    /// None is installed: take one from here.
    Install(DockerSource),
}

/// What an engine that does not answer needs, on a machine that has the packages `installed`.
fn decide(source: DockerSource, installed: &BTreeSet<String>) -> Result<Setup> {
    let found = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().copied().filter(|name| installed.contains(*name)).collect()
    };
    if !found(&["docker-ce", "docker.io"]).is_empty() {
        return Ok(Setup::Start);
    }
    let (conflicts_ce, conflicts_distro) = (found(&CONFLICTS_WITH_DOCKER_CE), found(&CONFLICTS_WITH_DISTRO));
    match source {
        DockerSource::Auto if conflicts_ce.is_empty() && conflicts_distro.is_empty() => Ok(Setup::Install(source)),
        // The remains of an interrupted installation of Docker's packages rule out the distribution's.
        DockerSource::Auto | DockerSource::DockerCe if conflicts_ce.is_empty() => {
            Ok(Setup::Install(DockerSource::DockerCe))
        }
        // The distribution's docker.io is made for its containerd and runc.
        DockerSource::Auto | DockerSource::Distro if conflicts_distro.is_empty() => {
            Ok(Setup::Install(DockerSource::Distro))
        }
        _ => {
            let names = if source == DockerSource::Distro { conflicts_distro } else { conflicts_ce }.join(" ");
            let remedy = format!(
                "If nothing else needs them, remove them (sudo apt-get remove {names}), then run `{RUN_AGAIN}`"
            );
            Err(anyhow!("the engine cannot be installed beside these packages: {names}"))
                .classify(Code::DockerUnusable, remedy)
        }
    }
}

async fn install_docker_ce(host: &Host, repository: &Repository<'_>, source: DockerSource) -> Result<()> {
    let error = match repository.ensure().await? {
        Availability::Usable => {
            let mut names = DOCKER_CE.to_vec();
            names.extend(COMPANIONS);
            if repository.apt.offers("docker-buildx-plugin").await? {
                names.push("docker-buildx-plugin");
            }
            return repository.apt.ensure_installed(&names).await.map(drop);
        }
        Availability::Unusable(error) => error,
    };
    if source == DockerSource::DockerCe {
        if code_of(&error) != Code::Internal {
            return Err(error);
        }
        let remedy = format!(
            "Let this VM reach {} (firewall, Cloud NAT, openclaw-docker-apt-url), or choose the distribution's packages: \
             gcloud compute instances add-metadata VM --metadata=openclaw-docker=distro",
            repository.url
        );
        return Err(error).classify(Code::AptFailed, remedy);
    }
    host.warn(format!(
        "Docker's repository cannot be used, the distribution's packages are used instead: {}",
        one_line(&error)
    ));
    install_distro(repository.apt, repository.distribution).await
}

async fn install_distro(apt: &Apt<'_>, distribution: Distribution) -> Result<()> {
    let mut names = vec!["docker.io", "iptables"];
    names.extend(COMPANIONS);
    // Up to Debian 12 and on Ubuntu the client is in docker.io itself.
    if distribution.codename == "trixie" {
        names.push("docker-cli");
    }
    apt.ensure_installed(&names).await.map(drop)
}

/// Starts the engine now and at every boot.
async fn start(host: &Host) -> Result<Engine> {
    let started = async {
        systemd::ensure_enabled(host, "docker.socket").await?;
        systemd::ensure_enabled(host, UNIT).await?;
        systemd::ensure_started(host, UNIT).await?;
        wait_for_answer(host).await
    };
    let error = match started.await {
        Ok(engine) => return Ok(engine),
        Err(error) if code_of(&error) == Code::DockerUnusable => return Err(error),
        Err(error) => error,
    };
    for unit in [UNIT, "docker.socket", CONTAINERD] {
        if systemd::is_masked(host, unit).await? {
            let remedy = format!("If it may run: sudo systemctl unmask {unit}; then run `{RUN_AGAIN}`");
            return Err(error.context(format!("{unit} is masked"))).classify(Code::DockerUnusable, remedy);
        }
    }
    let messages = systemd::last_messages(host, UNIT, 5).await;
    let error = if messages.is_empty() { error } else { error.context(format!("the engine says: {messages}")) };
    // What it says last is that it ends.
    for unit in [UNIT, "containerd.service"] {
        if let Some(path) = full_path(&systemd::last_messages(host, unit, 50).await) {
            let disk = disk_of(host, path);
            return Err(error.context(format!("there is no space left for {path}, on {disk}"))).classify(
                Code::NoSpace,
                format!("Make room on {disk} (`df -h {path}`, `df -i {path}`) or enlarge it, then run `{RUN_AGAIN}`."),
            );
        }
    }
    let remedy = format!("See: sudo journalctl --boot --unit docker; when it is mended, run `{RUN_AGAIN}`");
    Err(error).classify(Code::DockerUnusable, remedy)
}

/// The place that is full, if the engine's `messages` say that one is.
fn full_path(messages: &str) -> Option<&str> {
    let (before, _) = messages.rsplit_once(&format!(": {NO_SPACE}"))?;
    let word = before.rsplit([' ', '"', '=']).next().filter(|word| word.starts_with('/') && !word.contains('`'));
    Some(word.unwrap_or("/var/lib/docker"))
}

/// What people call the disk that `path` is on.
fn disk_of(host: &Host, path: &str) -> String {
    let device = |path: &Path| std::fs::metadata(host.path(path)).ok().map(|found| found.dev());
    let nearest = Path::new(path).ancestors().find_map(device);
    let is_boot_disk = nearest.is_some() && nearest == device(Path::new("/"));
    if is_boot_disk { "the boot disk".to_owned() } else { format!("the disk of {path}") }
}

/// Restarts the engine, and with it every container whose restart policy asks for that.
pub async fn restart(host: &Host) -> Result<Engine> {
    systemd::restart(host, UNIT).await?;
    wait_for_answer(host).await
}

/// Waits until the engine answers.
async fn wait_for_answer(host: &Host) -> Result<Engine> {
    let ask = || async { connect(host).await?.context("no answer") };
    let answer = ask
        .retry(ConstantBuilder::default().with_delay(ANSWER_INTERVAL).without_max_times())
        .when(|error| code_of(error) != Code::DockerUnusable);
    match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
        Ok(engine) => engine,
        Err(_) => bail!("the engine does not answer at {SOCKET} within {} s", ANSWER_DEADLINE.as_secs()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_full_place_is_found_in_the_engines_words() {
        let cases = [
            ("failed to start daemon: mkdir /var/lib/docker/tmp: no space left on device", Some("/var/lib/docker/tmp")),
            (r#"error="write /mnt/d/x.db: no space left on device" / failed"#, Some("/mnt/d/x.db")),
            ("failed to start daemon: Unable to get the TempDir: no space left on device", Some("/var/lib/docker")),
            ("failed to start daemon: permission denied", None),
            ("", None),
        ];
        for (messages, path) in cases {
            assert_eq!(full_path(messages), path, "{messages}");
        }
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        assert_eq!(disk_of(&host, "/var/lib/docker"), "the boot disk");
        assert_eq!(disk_of(&Host::new("/"), "/proc/self"), "the disk of /proc/self");
    }

    #[test]
    fn what_is_installed_decides_what_is_needed() {
        use DockerSource::{Auto, Distro, DockerCe};
        let cases: [(DockerSource, &[&str], Result<Setup, &str>); 14] = [
            (Auto, &[], Ok(Setup::Install(Auto))),
            (DockerCe, &[], Ok(Setup::Install(DockerCe))),
            (Distro, &[], Ok(Setup::Install(Distro))),
            (Auto, &["docker.io", "containerd", "runc"], Ok(Setup::Start)),
            (DockerCe, &["docker.io", "containerd", "runc"], Ok(Setup::Start)),
            (Distro, &["docker-ce", "docker-ce-cli", "containerd.io"], Ok(Setup::Start)),
            (Auto, &["containerd", "runc"], Ok(Setup::Install(Distro))),
            (DockerCe, &["containerd", "runc"], Err("containerd runc")),
            (Distro, &["containerd", "runc"], Ok(Setup::Install(Distro))),
            (Auto, &["containerd.io"], Ok(Setup::Install(DockerCe))),
            (Distro, &["containerd.io", "docker-ce-cli"], Err("docker-ce-cli containerd.io")),
            (Auto, &["podman-docker"], Err("podman-docker")),
            (DockerCe, &["podman-docker"], Err("podman-docker")),
            (Auto, &["runc", "containerd.io"], Err("runc")),
        ];
        for (source, packages, expected) in cases {
            let installed = packages.iter().map(ToString::to_string).collect();
            match (decide(source, &installed), expected) {
                (Ok(setup), Ok(expected)) => assert_eq!(setup, expected, "{source:?} {packages:?}"),
                (Err(error), Err(expected)) => {
                    assert_eq!(code_of(&error), Code::DockerUnusable);
                    assert!(one_line(&error).contains(&format!("packages: {expected}.")), "{}", one_line(&error));
                }
                (decided, expected) => panic!("{source:?} {packages:?}: {decided:?} instead of {expected:?}"),
            }
        }
    }
}
