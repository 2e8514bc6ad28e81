//! The gateway as it is seen between two runs: one look, which changes nothing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum as Status};
use jiff::Timestamp;

use super::dotenv::{EnvFile, PASSWORD_VARIABLE, TOKEN_VARIABLE};
use super::probe::{Health, Probe};
use super::silence::{Work, work};
use super::{NAME, has_no_endpoint, inspect, published_by, secrets};
use crate::docker::Engine;
use crate::host::Host;
use crate::secret::Secret;
use crate::state::DataDir;
use crate::systemd::Unit;

/// How the container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Container {
    /// There is none.
    Missing,
    /// It does not run, and the engine would have started it again had nobody stopped it.
    Stopped,
    /// The engine could not start it, in its own words.
    Broken(String),
    /// The engine itself ended it when it came back after a crash, and takes that for somebody's wish.
    Dropped,
    /// It runs without its endpoint: nothing reaches it.
    CutOff,
    /// It runs, or the engine starts it again.
    Alive {
        /// For how long.
        up: Option<Duration>,
        /// What it has done since it started.
        work: Option<Work>,
        /// Where it is published.
        at: Option<SocketAddr>,
    },
}

/// How the container is now; `docker` is the engine's unit.
pub async fn container(host: &Host, engine: &Engine, docker: &Unit) -> Result<Container> {
    let Some(found) = inspect(engine, NAME).await? else { return Ok(Container::Missing) };
    Ok(match judge(&found, |ended| docker.was_starting_at(ended)) {
        Container::Alive { up, .. } => {
            let process = found.state.and_then(|state| state.pid).unwrap_or_default();
            Container::Alive { up, work: work(host, process).await, at: published_by(found.host_config) }
        }
        container => container,
    })
}

/// When the container last started, or ended if it does not run.
pub async fn changed_at(engine: &Engine) -> Result<Option<Timestamp>> {
    let state = inspect(engine, NAME).await?.and_then(|found| found.state).unwrap_or_default();
    let at = if state.running == Some(true) { state.started_at } else { state.finished_at };
    // The engine's word for never.
    Ok(at.and_then(|at| at.parse().ok()).filter(|at| *at > Timestamp::UNIX_EPOCH))
}

/// An engine that starts takes nobody's orders yet: what ended then (`was_starting`) was not stopped by hand. It ends
/// what an engine that crashed has left running, and marks it as stopped (moby's `shutdownContainer` in `restore`).
fn judge(found: &ContainerInspectResponse, was_starting: impl Fn(Timestamp) -> bool) -> Container {
    let state = found.state.clone().unwrap_or_default();
    match state.status.unwrap_or(Status::EMPTY) {
        Status::RUNNING if has_no_endpoint(found) => Container::CutOff,
        Status::RUNNING | Status::RESTARTING => {
            let started: Option<Timestamp> = state.started_at.and_then(|at| at.parse().ok());
            let up = started.map(|at| Timestamp::now().duration_since(at));
            Container::Alive { up: up.and_then(|up| up.try_into().ok()), work: None, at: None }
        }
        Status::DEAD => Container::Broken("it is dead".to_owned()),
        // Only an engine that could not start it notes an error.
        _ => match state.error.filter(|error| !error.is_empty()) {
            Some(error) => Container::Broken(error),
            None if state.finished_at.and_then(|at| at.parse().ok()).is_some_and(was_starting) => Container::Dropped,
            None => Container::Stopped,
        },
    }
}

/// What the gateway that is published at `address` answers, with the token that is in its state, under whichever name.
pub async fn health(host: &Host, data: &DataDir, address: SocketAddr) -> Result<Health> {
    let text = secrets::text(host, data).await.unwrap_or_default();
    let env = EnvFile::parse(&text);
    let token = env.get(TOKEN_VARIABLE).or_else(|| env.get(PASSWORD_VARIABLE)).unwrap_or_else(|| Secret::new(""));
    Ok(Probe::new(address, &token)?.ask().await)
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerState, NetworkSettings};

    use super::*;

    #[test]
    fn a_container_that_somebody_stopped_is_told_from_one_that_cannot_start() {
        let found = |status, error: &str, ports: usize| ContainerInspectResponse {
            state: Some(ContainerState { status: Some(status), error: Some(error.to_owned()), ..Default::default() }),
            network_settings: Some(NetworkSettings {
                ports: Some((0..ports).map(|port| (port.to_string(), None)).collect()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let alive = Container::Alive { up: None, work: None, at: None };
        for (status, error, ports, expected) in [
            (Status::RUNNING, "", 1, alive.clone()),
            (Status::RUNNING, "", 0, Container::CutOff),
            (Status::RESTARTING, "", 0, alive),
            (Status::EXITED, "", 0, Container::Stopped),
            (Status::PAUSED, "", 1, Container::Stopped),
            (Status::EXITED, "port is taken", 0, Container::Broken("port is taken".to_owned())),
            (Status::CREATED, "mount failed", 0, Container::Broken("mount failed".to_owned())),
            (Status::DEAD, "", 0, Container::Broken("it is dead".to_owned())),
        ] {
            assert_eq!(judge(&found(status, error, ports), |_| false), expected, "{status:?} {error:?}");
        }
        let mut ended = found(Status::EXITED, "", 0);
        ended.state.get_or_insert_default().finished_at = Some("2026-11-28T03:21:33.493117851Z".to_owned());
        assert_eq!(judge(&ended, |at| at.as_second() == 1_795_836_093), Container::Dropped);
        assert_eq!(judge(&ended, |_| false), Container::Stopped);
    }
}
