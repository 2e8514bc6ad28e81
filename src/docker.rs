//! The Docker Engine: installed when there is none, started, answering.
//!
//! An engine that answers and speaks API 1.41 or newer is kept as it is, whoever installed it: no apt,
//! no network, no change. `/etc/docker/daemon.json` is never written: nothing here needs it. Log rotation,
//! limits and restart policy are set per container, where they bind nobody else; `live-restore` would spare
//! the gateway a restart of some seconds at an upgrade of the engine, and is refused under swarm. So there is no
//! file to merge, and [`restart`] is for an engine that cannot go on.

mod engine;
mod repository;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use backon::{ConstantBuilder, Retryable as _};

pub use self::engine::{Engine, SOCKET};
use self::repository::{Diagnosis, Repository, RepositoryTrust};
use crate::apt::os_release::{self, Distribution};
use crate::apt::{APT_DEADLINE, Apt, installed};
use crate::config::{DockerConfig, DockerSource};
use crate::error::{Classify, Code, code_of, one_line};
use crate::host::Host;
use crate::systemd;

/// The engine's unit; it pulls in its socket and containerd.
const UNIT: &str = "docker.service";

/// How long an engine may take to its first answer: after a power cut it first cleans up.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);

/// How often a started engine is asked whether it answers.
const ANSWER_PAUSE: Duration = Duration::from_millis(250);

/// What later stages need on every machine; part of most images.
const COMPANIONS: [&str; 3] = ["ca-certificates", "e2fsprogs", "nftables"];

/// The packages of Docker's repository; `docker-buildx-plugin` comes on top where the repository has it.
const DOCKER_CE: [&str; 3] = ["docker-ce", "docker-ce-cli", "containerd.io"];

/// What cannot be installed beside Docker's packages (docs.docker.com/engine/install/debian).
const AGAINST_DOCKER_CE: [&str; 4] = ["docker.io", "podman-docker", "containerd", "runc"];

/// What cannot be installed beside the distribution's packages.
const AGAINST_DISTRO: [&str; 4] = ["docker-ce", "docker-ce-cli", "containerd.io", "podman-docker"];

/// Makes sure that a usable engine runs.
pub async fn ensure(host: &Host, config: &DockerConfig) -> Result<Engine> {
    if let Some(engine) = answering(host).await? {
        return Ok(engine);
    }
    let distribution = os_release::observe(host).await?;
    let apt = Apt::new(host, APT_DEADLINE);
    apt.repair().await?;
    let names: Vec<&str> = AGAINST_DOCKER_CE.into_iter().chain(AGAINST_DISTRO).collect();
    match decide(config.source, &installed(host, &names).await?)? {
        Plan::Start => {}
        Plan::Install(DockerSource::Distro) => install_distro(&apt, distribution).await?,
        Plan::Install(source) => {
            let trust = RepositoryTrust::of(host).await?;
            let repository = Repository { host, apt: &apt, distribution, url: &config.apt_url, trust: &trust };
            install_docker_ce(host, &repository, source).await?;
        }
    }
    start(host).await
}

/// The engine of a machine that has one, started if need be; nothing is installed.
pub async fn find(host: &Host) -> Result<Option<Engine>> {
    if let Some(engine) = answering(host).await? {
        return Ok(Some(engine));
    }
    if systemd::property(host, UNIT, "LoadState").await? != "loaded" {
        return Ok(None);
    }
    systemd::ensure_started(host, UNIT).await?;
    answer(host).await.map(Some)
}

/// The engine if one answers, `None` if none does; one that answers and cannot be used is an error.
async fn answering(host: &Host) -> Result<Option<Engine>> {
    let socket = host.path(SOCKET);
    // A socket unit accepts the connection first and starts the engine then.
    match tokio::time::timeout(ANSWER_LIMIT, Engine::connect(&socket.to_string_lossy())).await {
        Ok(Ok(engine)) => Ok(Some(engine)),
        Ok(Err(error)) if code_of(&error) == Code::DockerUnusable => Err(error),
        Ok(Err(error)) => {
            tracing::debug!("no engine answers: {}", one_line(&error));
            Ok(None)
        }
        Err(_) => Ok(None),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// An engine is installed and only has to run.
    Start,
    /// None is installed.
    Install(DockerSource),
}

/// What to do about an engine that does not answer, on a machine where `installed` is.
fn decide(source: DockerSource, installed: &BTreeSet<String>) -> Result<Plan> {
    let found = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().copied().filter(|name| installed.contains(*name)).collect()
    };
    if !found(&["docker-ce", "docker.io"]).is_empty() {
        return Ok(Plan::Start);
    }
    let (against_ce, against_distro) = (found(&AGAINST_DOCKER_CE), found(&AGAINST_DISTRO));
    match source {
        DockerSource::Auto if against_ce.is_empty() && against_distro.is_empty() => Ok(Plan::Install(source)),
        // With what an interrupted installation of Docker's packages left, there is nothing to fall back to.
        DockerSource::Auto | DockerSource::DockerCe if against_ce.is_empty() => {
            Ok(Plan::Install(DockerSource::DockerCe))
        }
        // The distribution's own containerd and runc are what its docker.io is made for.
        DockerSource::Auto | DockerSource::Distro if against_distro.is_empty() => {
            Ok(Plan::Install(DockerSource::Distro))
        }
        _ => {
            let names = if source == DockerSource::Distro { against_distro } else { against_ce }.join(" ");
            let remedy = format!(
                "If nothing else needs them, remove them (sudo apt-get remove {names}), then run `sudo openclaw-init boot`"
            );
            Err(anyhow!("the engine cannot be installed beside these packages: {names}"))
                .classify(Code::DockerUnusable, remedy)
        }
    }
}

async fn install_docker_ce(host: &Host, repository: &Repository<'_>, source: DockerSource) -> Result<()> {
    let unusable = match repository.ensure().await? {
        Diagnosis::Usable => {
            let mut names = DOCKER_CE.to_vec();
            names.extend(COMPANIONS);
            if repository.apt.offers("docker-buildx-plugin").await? {
                names.push("docker-buildx-plugin");
            }
            return repository.apt.ensure_installed(&names).await.map(drop);
        }
        Diagnosis::Unreachable(error) => error,
    };
    if source == DockerSource::DockerCe {
        let remedy = format!(
            "Let this VM reach {} (firewall, Cloud NAT, openclaw-docker-apt-url), or choose the distribution's packages: \
             gcloud compute instances add-metadata VM --metadata=openclaw-docker=distro",
            repository.url
        );
        return Err(unusable).classify(Code::AptFailed, remedy);
    }
    host.warn(format!(
        "Docker's repository cannot be reached, the distribution's packages are used instead: {}",
        one_line(&unusable)
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

async fn start(host: &Host) -> Result<Engine> {
    let started = async {
        systemd::ensure_enabled(host, "docker.socket").await?;
        systemd::ensure_enabled(host, UNIT).await?;
        systemd::ensure_started(host, UNIT).await?;
        answer(host).await
    };
    let error = match started.await {
        Ok(engine) => return Ok(engine),
        Err(error) if code_of(&error) == Code::DockerUnusable => return Err(error),
        Err(error) => error,
    };
    let said = systemd::last_messages(host, UNIT, 5).await;
    Err(if said.is_empty() { error } else { error.context(format!("the engine says: {said}")) }).classify(
        Code::DockerUnusable,
        "See: sudo journalctl --boot --unit docker; when it is mended, run `sudo openclaw-init boot`",
    )
}

/// Restarts the engine, and with it every container whose restart policy says so.
pub async fn restart(host: &Host) -> Result<Engine> {
    systemd::restart(host, UNIT).await?;
    answer(host).await
}

/// Waits until the engine answers.
async fn answer(host: &Host) -> Result<Engine> {
    let ask = || async { answering(host).await?.context("no answer") };
    let asked = ask.retry(ConstantBuilder::default().with_delay(ANSWER_PAUSE).without_max_times());
    let asked = asked.when(|error| code_of(error) != Code::DockerUnusable);
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(engine) => engine,
        Err(_) => bail!("the engine does not answer at {SOCKET} within {} s", ANSWER_LIMIT.as_secs()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_decides_what_is_done() {
        use DockerSource::{Auto, Distro, DockerCe};
        let cases: [(DockerSource, &[&str], Result<Plan, &str>); 14] = [
            (Auto, &[], Ok(Plan::Install(Auto))),
            (DockerCe, &[], Ok(Plan::Install(DockerCe))),
            (Distro, &[], Ok(Plan::Install(Distro))),
            (Auto, &["docker.io", "containerd", "runc"], Ok(Plan::Start)),
            (DockerCe, &["docker.io", "containerd", "runc"], Ok(Plan::Start)),
            (Distro, &["docker-ce", "docker-ce-cli", "containerd.io"], Ok(Plan::Start)),
            (Auto, &["containerd", "runc"], Ok(Plan::Install(Distro))),
            (DockerCe, &["containerd", "runc"], Err("containerd runc")),
            (Distro, &["containerd", "runc"], Ok(Plan::Install(Distro))),
            (Auto, &["containerd.io"], Ok(Plan::Install(DockerCe))),
            (Distro, &["containerd.io", "docker-ce-cli"], Err("docker-ce-cli containerd.io")),
            (Auto, &["podman-docker"], Err("podman-docker")),
            (DockerCe, &["podman-docker"], Err("podman-docker")),
            (Auto, &["runc", "containerd.io"], Err("runc")),
        ];
        for (source, packages, wanted) in cases {
            let installed = packages.iter().map(ToString::to_string).collect();
            match (decide(source, &installed), wanted) {
                (Ok(plan), Ok(wanted)) => assert_eq!(plan, wanted, "{source:?} {packages:?}"),
                (Err(error), Err(wanted)) => {
                    assert_eq!(code_of(&error), Code::DockerUnusable);
                    assert!(one_line(&error).contains(&format!("packages: {wanted}.")), "{}", one_line(&error));
                }
                (decided, wanted) => panic!("{source:?} {packages:?}: {decided:?} instead of {wanted:?}"),
            }
        }
    }
}
