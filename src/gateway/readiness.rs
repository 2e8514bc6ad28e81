//! Waiting for the gateway, and telling its failures apart.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};
use bollard::models::{ContainerState, ContainerStateStatusEnum as Status, EventMessage};
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;

use super::failure::{Ends, Failure};
use super::probe::{Health, Probe};
use super::silence::{Silence, work};
use super::{Gateway, NAME, STOP_SECONDS, Secrets, inspect, logs, processes, published_by, stop_container};
use crate::config::DEFAULT_READY_TIMEOUT;
use crate::docker::Engine;
use crate::error::Code;
use crate::image::Image;
use crate::memory;
use crate::paths::{HUNG, HUNG_RESTARTED};
use crate::report::Ready;
use crate::text::MIB;

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long a gateway that has just started may be unhealthy: channels connect in this time.
const UNHEALTHY_DEADLINE: Duration = Duration::from_secs(60);

/// The same for a gateway that has been up for longer than [`STARTUP_DEADLINE`]: a moment's overload passes.
const OVERLOAD_DEADLINE: Duration = Duration::from_secs(5);

/// What is left to end for a gateway that hangs, in seconds.
const HUNG_SECONDS: i32 = 30;

/// One that is restarted more often keeps its channels off.
const HUNG_INTERVAL: Duration = Duration::from_secs(3600);

/// A gateway that has been up for longer is not starting.
const STARTUP_DEADLINE: Duration = Duration::from_secs(120);

/// A start that has read as much from disks was slowed by them. What the next one needs of it is in memory.
const COLD_BYTES: u64 = 8 * MIB;

impl Gateway<'_> {
    /// Waits until the gateway says that it is ready.
    ///
    /// A gateway that runs but whose checks keep failing is returned as degraded. [`Code::GatewayNotReady`]: it may be
    /// by the next run. With any other code the container was stopped. The error has the last lines of its log, without
    /// secrets. A gateway that hangs is restarted, once.
    pub async fn wait_ready(&self, image: &Image, secrets: &Secrets) -> Result<Ready> {
        let timeout = self.config.ready_timeout;
        self.host.extend_deadline(timeout.saturating_sub(DEFAULT_READY_TIMEOUT));
        let mut probe = Probe::new(SocketAddr::new(self.config.bind, self.config.port), &secrets.token)?;
        let mut wait = Wait::begin(self).await;
        loop {
            let (state, failure) = wait.container().await?;
            if let Some(failure) = failure {
                return Err(self.give_up(secrets, failure, wait.since).await);
            }
            // The container that came back may be published elsewhere than the attributes say.
            wait.published.into_iter().for_each(|address| probe.at(address));
            let health = if is_up(&state) { probe.ask().await } else { Health::Silent };
            if wait.is_hung(&state, &health).await {
                self.restart_hung().await?;
                wait = Wait::after_restart(self).await;
                continue;
            }
            let note = match wait.judge(health, image) {
                ControlFlow::Break(ready) => return Ok(ready),
                ControlFlow::Continue(note) => note,
            };
            self.host.progress(format!("waiting for the gateway ({note}), {} s", wait.begun.elapsed().as_secs()));
            if wait.begun.elapsed() >= timeout {
                return Err(self.give_up(secrets, Failure::Late { note, after: timeout }, wait.since).await);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn restart_hung(&self) -> Result<()> {
        self.host.progress("restarting the gateway, which hangs");
        stop_container(self.engine, NAME, HUNG_SECONDS).await?;
        self.start().await?;
        self.host.changed(format!("restarted container {NAME}, which hung"));
        let noted = tokio::fs::write(self.host.path(HUNG_RESTARTED), "").await;
        noted.context("noting when the gateway was restarted")?;
        Ok(())
    }

    /// The error for the operator. What will not heal is stopped, or the engine would start it for ever.
    async fn give_up(&self, secrets: &Secrets, failure: Failure, since: Timestamp) -> Error {
        let log = logs::read(self.engine, NAME, since).await;
        let diagnosis = failure.diagnosis(&log);
        if diagnosis.code != Code::GatewayNotReady {
            match stop_container(self.engine, NAME, STOP_SECONDS).await {
                Ok(()) => self.host.changed(format!("stopped container {NAME}")),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        anyhow!("{failure}; its last lines: {}", logs::last_lines(&log, &secrets.redaction)).context(diagnosis)
    }
}

/// One wait for the gateway, and what was seen since it began.
struct Wait<'a> {
    gateway: &'a Gateway<'a>,
    begun: Instant,
    since: Timestamp,
    /// How many processes the kernel had killed for lack of memory.
    kills: u64,
    /// Where the container is published.
    published: Option<SocketAddr>,
    /// How often the engine had restarted the container when it was first seen up.
    restarts: Option<i64>,
    tries: Tries,
    unhealthy_since: Option<Instant>,
    silence: Silence,
    /// The watcher has seen that it hangs.
    is_known_to_hang: bool,
    /// Within the last hour.
    is_restarted: bool,
}

impl<'a> Wait<'a> {
    async fn begin(gateway: &'a Gateway<'a>) -> Self {
        let (begun, since, kills) = (Instant::now(), Timestamp::now(), memory::kills(gateway.host).await);
        let is_known_to_hang = tokio::fs::remove_file(gateway.host.path(HUNG)).await.is_ok();
        let restarted = tokio::fs::metadata(gateway.host.path(HUNG_RESTARTED)).await.and_then(|it| it.modified());
        let is_recent = restarted.is_ok_and(|at| at.elapsed().is_ok_and(|ago| ago < HUNG_INTERVAL));
        Self {
            gateway,
            begun,
            since,
            kills,
            published: None,
            restarts: None,
            tries: Tries::default(),
            unhealthy_since: None,
            silence: Silence::default(),
            is_known_to_hang,
            is_restarted: is_recent,
        }
    }

    async fn after_restart(gateway: &'a Gateway<'a>) -> Self {
        Self { is_restarted: true, ..Self::begin(gateway).await }
    }

    /// Whether the gateway hangs, and a restart is left.
    async fn is_hung(&mut self, state: &ContainerState, health: &Health) -> bool {
        let (now, is_silent) = (self.begun.elapsed(), *health == Health::Silent);
        let done = if is_silent { work(self.gateway.host, state.pid.unwrap_or_default()).await } else { None };
        self.silence.note(now, is_silent, done);
        let started: Option<Timestamp> = state.started_at.as_ref().and_then(|at| at.parse().ok());
        let up = started.and_then(|at| Timestamp::now().duration_since(at).try_into().ok());
        // A container that was started since is not the one that hung.
        let is_old = started.is_some_and(|started| started < self.since);
        let is_known = is_silent && std::mem::take(&mut self.is_known_to_hang) && is_old;
        let is_hung = is_known || self.silence.is_hung(now, up, self.gateway.config.ready_timeout);
        is_up(state) && !self.is_restarted && is_hung
    }

    /// How the container is, and why waiting for it is of no use, if so. Its exits are asked for only when it is not up
    /// or was restarted.
    async fn container(&mut self) -> Result<(ContainerState, Option<Failure>)> {
        let container = inspect(self.gateway.engine, NAME).await?.ok_or_else(|| anyhow!("container {NAME} is gone"))?;
        self.published = published_by(container.host_config);
        let state = container.state.unwrap_or_default();
        let count = container.restart_count.unwrap_or_default();
        self.look_at_reads(state.pid.unwrap_or_default()).await;
        if is_up(&state) && *self.restarts.get_or_insert(count) == count {
            return Ok((state, None));
        }
        let ends = Ends {
            codes: exits(self.gateway.engine, self.since, &state).await?,
            cold: self.tries.cold,
            starved: memory::kills(self.gateway.host).await > self.kills,
        };
        let failure = Failure::of(&ends, &state);
        Ok((state, failure))
    }

    /// `pid` is the first process of the container, 0 while it does not run.
    async fn look_at_reads(&mut self, pid: i64) {
        let bytes = if pid == 0 { 0 } else { processes::read_bytes(self.gateway.host, pid).await };
        self.tries.see(pid, bytes);
    }

    /// Ready or degraded, else what is waited for.
    fn judge(&mut self, health: Health, image: &Image) -> ControlFlow<Ready, String> {
        let up = |version: Option<String>, degraded| {
            ControlFlow::Break(Ready { version: version.unwrap_or_else(|| image.version.to_string()), degraded })
        };
        match health {
            // The breaker holds for minutes: there is nothing to wait for.
            Health::Ready { version, suppressed } => up(version, suppressed.into_iter().collect()),
            Health::Unhealthy { failing, uptime, version } => {
                let deadline = if uptime > Some(STARTUP_DEADLINE) { OVERLOAD_DEADLINE } else { UNHEALTHY_DEADLINE };
                if self.unhealthy_since.get_or_insert_with(Instant::now).elapsed() >= deadline {
                    return up(version, failing);
                }
                ControlFlow::Continue(format!("failing checks: {}", failing.join(", ")))
            }
            Health::Starting(reason) => ControlFlow::Continue(reason),
            Health::Silent => ControlFlow::Continue("no answer yet".to_owned()),
        }
    }
}

/// The gateway's starts in one wait.
#[derive(Debug, Default)]
struct Tries {
    /// The first process of the present one, 0 when there is none, and what it has read from disks.
    pid: i64,
    bytes: u64,
    /// How many have ended that were slowed by a disk.
    cold: usize,
}

impl Tries {
    fn see(&mut self, pid: i64, bytes: u64) {
        if pid != self.pid {
            self.cold += usize::from(self.bytes >= COLD_BYTES);
            (self.pid, self.bytes) = (pid, 0);
        }
        // Processes that have ended take their count with them.
        self.bytes = self.bytes.max(bytes);
    }
}

fn is_up(state: &ContainerState) -> bool {
    state.status == Some(Status::RUNNING)
}

/// The exit codes of the container since `since`, oldest first. From the engine's events: an inspection misses a
/// short-lived state between two polls.
async fn exits(engine: &Engine, since: Timestamp, state: &ContainerState) -> Result<Vec<i64>> {
    let seconds = |at: Timestamp| format!("{}.{:09}", at.as_second(), at.subsec_nanosecond());
    let filters = HashMap::from([("container", vec![NAME]), ("event", vec!["die"])]);
    let options = EventsOptionsBuilder::default()
        .since(&seconds(since))
        .until(&seconds(Timestamp::now()))
        .filters(&filters)
        .build();
    let events: Vec<EventMessage> =
        engine.client.events(Some(options)).try_collect().await.context("asking the engine for events")?;
    let mut codes: Vec<i64> =
        events.into_iter().filter_map(|event| event.actor?.attributes?.get("exitCode")?.parse().ok()).collect();
    if codes.is_empty() && !is_up(state) {
        codes.extend(state.exit_code);
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_is_cold_when_it_has_read_much_before_it_ended() {
        let mut tries = Tries::default();
        let seen = [
            (0, 0, 0),
            (7, 4096, 0),
            (7, COLD_BYTES, 0),
            (7, 5, 0),
            (0, 0, 1),
            (0, 0, 1),
            (8, COLD_BYTES - 1, 1),
            (9, COLD_BYTES, 1),
            (10, 0, 2),
        ];
        for (pid, bytes, cold) in seen {
            tries.see(pid, bytes);
            assert_eq!(tries.cold, cold, "{pid} {bytes}");
        }
    }
}
