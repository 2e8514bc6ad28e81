//! Waiting for the gateway, and telling its failures apart.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};
use bollard::models::{ContainerState, ContainerStateStatusEnum as Status, EventMessage};
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;

use super::probe::{Health, Probe};
use super::silence::{Silence, cpu_time};
use super::{Gateway, NAME, STOP_SECONDS, Secrets, inspect, logs, stop_container};
use crate::docker::Engine;
use crate::error::{Code, Diagnosis, RUN_AGAIN};
use crate::image::Image;
use crate::memory::{self, LARGER_MACHINE};
use crate::paths::{HUNG, STATE_ALIAS};
use crate::report::Ready;

/// Upstream's own budget for a start; a check of the databases on a cold disk alone took 45 s (openclaw issue 150762).
const READY_DEADLINE: Duration = Duration::from_secs(300);

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long a gateway that has just started may be unhealthy: channels connect in this time.
const UNHEALTHY_DEADLINE: Duration = Duration::from_secs(60);

/// The same for a gateway that has been up for longer than [`STARTUP_DEADLINE`]: a moment's overload passes.
const OVERLOAD_DEADLINE: Duration = Duration::from_secs(5);

/// What is left to end for a gateway that hangs, in seconds.
const HUNG_SECONDS: i32 = 30;

/// A gateway that has been up for longer is not starting.
const STARTUP_DEADLINE: Duration = Duration::from_secs(120);

/// The gateway's "restarting me will not help".
const EXIT_REFUSED: i64 = 78;

/// Killed: in a container nearly always by the kernel for lack of memory, certainly so if the kernel's count rose.
const EXIT_KILLED: i64 = 137;

/// How often the gateway may end in one wait before its code is taken for its final word.
const CERTAIN_EXITS: usize = 2;
const LOOP_EXITS: usize = 3;

impl Gateway<'_> {
    /// Waits until the gateway says that it is ready.
    ///
    /// A gateway that runs but whose checks keep failing is returned as degraded. [`Code::GatewayRefused`] and
    /// [`Code::OutOfMemory`]: the container was stopped. [`Code::GatewayNotReady`]: anything else. The error has the
    /// last lines of its log, without secrets. A gateway that hangs is restarted, once.
    pub async fn wait_ready(&self, image: &Image, secrets: &Secrets) -> Result<Ready> {
        let probe = Probe::new(self.config, &secrets.token)?;
        let mut wait = Wait::begin(self).await;
        loop {
            let (state, failure) = wait.container().await?;
            if let Some(failure) = failure {
                return Err(self.give_up(secrets, failure).await);
            }
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
            if wait.begun.elapsed() >= READY_DEADLINE {
                return Err(self.give_up(secrets, Failure::Late(note)).await);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn restart_hung(&self) -> Result<()> {
        self.host.progress("restarting the gateway, which hangs");
        stop_container(self.engine, HUNG_SECONDS).await?;
        self.start().await?;
        self.host.changed(format!("restarted container {NAME}, which hung"));
        Ok(())
    }

    /// The error for the operator. What will not heal is stopped, or the engine would start it for ever.
    async fn give_up(&self, secrets: &Secrets, failure: Failure) -> Error {
        let lines = logs::last_lines(self.engine, NAME, &secrets.redaction).await;
        if matches!(failure, Failure::Refused | Failure::OutOfMemory) {
            match stop_container(self.engine, STOP_SECONDS).await {
                Ok(()) => self.host.changed(format!("stopped container {NAME}")),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        anyhow!("{failure}; its last lines: {lines}").context(failure.diagnosis())
    }
}

/// One wait for the gateway, and what was seen since it began.
struct Wait<'a> {
    gateway: &'a Gateway<'a>,
    begun: Instant,
    since: Timestamp,
    /// How many processes the kernel had killed for lack of memory.
    kills: u64,
    /// How often the engine had restarted the container when it was first seen up.
    restarts: Option<i64>,
    unhealthy_since: Option<Instant>,
    silence: Silence,
    /// The watcher has seen that it hangs.
    is_known_to_hang: bool,
    is_restarted: bool,
}

impl<'a> Wait<'a> {
    async fn begin(gateway: &'a Gateway<'a>) -> Self {
        let (begun, since, kills) = (Instant::now(), Timestamp::now(), memory::kills(gateway.host).await);
        let is_known_to_hang = tokio::fs::remove_file(gateway.host.path(HUNG)).await.is_ok();
        Self {
            gateway,
            begun,
            since,
            kills,
            restarts: None,
            unhealthy_since: None,
            silence: Silence::default(),
            is_known_to_hang,
            is_restarted: false,
        }
    }

    async fn after_restart(gateway: &'a Gateway<'a>) -> Self {
        Self { is_restarted: true, ..Self::begin(gateway).await }
    }

    /// Whether the gateway hangs, and a restart is left.
    async fn is_hung(&mut self, state: &ContainerState, health: &Health) -> bool {
        let (now, is_silent) = (self.begun.elapsed(), *health == Health::Silent);
        let cpu = if is_silent { cpu_time(self.gateway.host, state.pid.unwrap_or_default()).await } else { None };
        self.silence.note(now, is_silent, cpu);
        let started: Option<Timestamp> = state.started_at.as_ref().and_then(|at| at.parse().ok());
        let up = started.and_then(|at| Timestamp::now().duration_since(at).try_into().ok());
        let is_known = is_silent && std::mem::take(&mut self.is_known_to_hang);
        is_up(state) && !self.is_restarted && (is_known || self.silence.is_hung(now, up))
    }

    /// How the container is, and why waiting for it is of no use, if so. Its exits are asked for only when it is not up
    /// or was restarted.
    async fn container(&mut self) -> Result<(ContainerState, Option<Failure>)> {
        let container = inspect(self.gateway.engine, NAME).await?.ok_or_else(|| anyhow!("container {NAME} is gone"))?;
        let state = container.state.unwrap_or_default();
        let count = container.restart_count.unwrap_or_default();
        if is_up(&state) && *self.restarts.get_or_insert(count) == count {
            return Ok((state, None));
        }
        let exits = exits(self.gateway.engine, self.since, &state).await?;
        let starved = memory::kills(self.gateway.host).await > self.kills;
        let failure = Failure::of(&exits, &state, starved);
        Ok((state, failure))
    }

    /// Ready or degraded, else what is waited for.
    fn judge(&mut self, health: Health, image: &Image) -> ControlFlow<Ready, String> {
        let up = |version: Option<String>, degraded| {
            ControlFlow::Break(Ready { version: version.unwrap_or_else(|| image.version.to_string()), degraded })
        };
        match health {
            Health::Ready { version } => up(version, Vec::new()),
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

/// Why waiting longer is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    Refused,
    OutOfMemory,
    Looping(i64),
    Stopped(i64),
    Late(String),
}

impl Failure {
    /// `None` while the engine may still bring the gateway up. `starved`: the kernel has killed a process for lack of
    /// memory since the gateway was started.
    fn of(exits: &[i64], state: &ContainerState, starved: bool) -> Option<Self> {
        let gone = !matches!(state.status, Some(Status::RUNNING | Status::RESTARTING));
        let count = |code| exits.iter().filter(|&&exit| exit == code).count();
        let certain = if gone { 1 } else { CERTAIN_EXITS };
        if count(EXIT_REFUSED) >= certain {
            return Some(Self::Refused);
        }
        let certain = if starved { 1 } else { CERTAIN_EXITS };
        if state.oom_killed == Some(true) || count(EXIT_KILLED) >= certain {
            return Some(Self::OutOfMemory);
        }
        let last = exits.last().copied();
        if gone {
            return Some(Self::Stopped(last.or(state.exit_code).unwrap_or_default()));
        }
        last.filter(|_| exits.len() >= LOOP_EXITS).map(Self::Looping)
    }

    fn diagnosis(&self) -> Diagnosis {
        let (code, remedy) = match self {
            Self::Refused => (
                Code::GatewayRefused,
                format!(
                    "It was stopped, since starting it again cannot help. Correct {STATE_ALIAS}/openclaw.json as its \
                     last lines say, then run `{RUN_AGAIN}`."
                ),
            ),
            Self::OutOfMemory => (Code::OutOfMemory, LARGER_MACHINE.to_owned()),
            Self::Looping(_) | Self::Stopped(_) | Self::Late(_) => {
                (Code::GatewayNotReady, format!("See `sudo docker logs {NAME}`, then run `{RUN_AGAIN}`."))
            }
        };
        Diagnosis { code, remedy }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => write!(out, "the gateway refused to start (exit code {EXIT_REFUSED})"),
            Self::OutOfMemory => out.write_str("the gateway was killed for lack of memory, and stays stopped"),
            Self::Looping(code) => write!(out, "the gateway ended {LOOP_EXITS} times, last with exit code {code}"),
            Self::Stopped(code) => write!(out, "the gateway's container stopped with exit code {code}"),
            Self::Late(note) => {
                write!(out, "the gateway was not ready after {} s ({note})", READY_DEADLINE.as_secs())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failures_are_told_apart() {
        let state = |status, oom| ContainerState { status: Some(status), oom_killed: Some(oom), ..Default::default() };
        #[rustfmt::skip]
        let cases: [(&[i64], _, _, Option<Failure>); 13] = [
            (&[], Status::RUNNING, false, None),
            (&[78], Status::RUNNING, false, None),
            (&[78], Status::RESTARTING, false, None),
            (&[78, 78], Status::RUNNING, false, Some(Failure::Refused)),
            (&[78], Status::EXITED, false, Some(Failure::Refused)),
            (&[137], Status::RESTARTING, true, Some(Failure::OutOfMemory)),
            (&[137], Status::RESTARTING, false, None),
            (&[137, 137], Status::RUNNING, false, Some(Failure::OutOfMemory)),
            (&[137], Status::EXITED, false, Some(Failure::Stopped(137))),
            (&[1, 1], Status::RESTARTING, false, None),
            (&[1, 0, 1], Status::RESTARTING, false, Some(Failure::Looping(1))),
            (&[0], Status::EXITED, false, Some(Failure::Stopped(0))),
            (&[], Status::CREATED, false, Some(Failure::Stopped(0))),
        ];
        for (exits, status, oom, failure) in cases {
            assert_eq!(Failure::of(exits, &state(status, oom), false), failure, "{exits:?} {status:?} {oom}");
        }
        let starved = |exits: &[i64], status| Failure::of(exits, &state(status, false), true);
        assert_eq!(starved(&[137], Status::RESTARTING), Some(Failure::OutOfMemory));
        assert_eq!(starved(&[137], Status::EXITED), Some(Failure::OutOfMemory));
        assert_eq!(starved(&[1], Status::RESTARTING), None);
    }
}
