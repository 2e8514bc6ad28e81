//! Waiting for the gateway, and telling its ways to die apart.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};
use bollard::models::{ContainerState, ContainerStateStatusEnum as Status, EventMessage};
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;

use super::probe::{Health, Probe};
use super::{Gateway, NAME, STOP_SECONDS, inspect, logs, stop_container};
use crate::docker::Engine;
use crate::error::{Code, Diagnosis};
use crate::gateway::secrets::Secrets;
use crate::host::Host;
use crate::image::Image;
use crate::memory::{self, LARGER_MACHINE};
use crate::report::Ready;

/// Upstream's own budget for a start; a check of the databases on a cold disk alone took 45 s (openclaw issue 150762).
const DEADLINE: Duration = Duration::from_secs(300);

const POLL: Duration = Duration::from_millis(250);

/// How long a gateway that has just started may be unwell: channels connect in this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway that has been up for longer is not starting; a moment's overload passes in [`SHORT_PATIENCE`].
const SETTLED: Duration = Duration::from_secs(120);
const SHORT_PATIENCE: Duration = Duration::from_secs(5);

/// The gateway's "restarting me will not help".
const REFUSED: i64 = 78;

/// Killed; in a container nearly always by the kernel for lack of memory, and certainly if its count rose.
const KILLED: i64 = 137;

/// How often the gateway may end in one wait before its code is taken for its final word.
const CERTAIN_EXITS: usize = 2;
const LOOP_EXITS: usize = 3;

impl Gateway<'_> {
    /// Waits until the gateway says that it is ready.
    ///
    /// A gateway that runs but whose checks keep failing is returned as degraded. Fails with
    /// [`Code::GatewayRefused`] or [`Code::OutOfMemory`] (the container is then stopped), else with
    /// [`Code::GatewayNotReady`]; the error has the last lines of its log, without the token.
    pub async fn wait_ready(&self, image: &Image, secrets: &Secrets) -> Result<Ready> {
        let Self { host, engine, config, .. } = *self;
        let (begun, since) = (Instant::now(), Timestamp::now());
        let probe = Probe::new(config, &secrets.token)?;
        let kills = memory::kills(host).await;
        let (mut unwell_since, mut restarts) = (None, None);
        loop {
            let container = inspect(engine).await?.ok_or_else(|| anyhow!("container {NAME} is gone"))?;
            let state = container.state.unwrap_or_default();
            let count = container.restart_count.unwrap_or_default();
            if !is_up(&state) || *restarts.get_or_insert(count) != count {
                let exits = exits(engine, since, &state).await?;
                let starved = memory::kills(host).await > kills;
                if let Some(crash) = Crash::of(&exits, &state, starved) {
                    return Err(give_up(host, engine, secrets, crash).await);
                }
            }
            let health = if is_up(&state) { probe.ask().await } else { Health::Silent };
            let ready = |version: Option<String>, degraded| Ready {
                version: version.unwrap_or_else(|| image.version.to_string()),
                degraded,
            };
            let note = match health {
                Health::Ready { version } => return Ok(ready(version, Vec::new())),
                Health::Unwell { failing, uptime, version } => {
                    let patience = if uptime > Some(SETTLED) { SHORT_PATIENCE } else { PATIENCE };
                    if unwell_since.get_or_insert_with(Instant::now).elapsed() >= patience {
                        return Ok(ready(version, failing));
                    }
                    format!("failing checks: {}", failing.join(", "))
                }
                Health::Starting(reason) => reason,
                Health::Silent => "no answer yet".to_owned(),
            };
            host.progress(format!("waiting for the gateway ({note}), {} s", begun.elapsed().as_secs()));
            if begun.elapsed() >= DEADLINE {
                return Err(give_up(host, engine, secrets, Crash::Late(note)).await);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn is_up(state: &ContainerState) -> bool {
    state.status == Some(Status::RUNNING)
}

/// The exit codes of the container since `since`, oldest first. From the engine's events: a short-lived
/// state between two polls is not seen by an inspection.
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
enum Crash {
    Refused,
    OutOfMemory,
    Looping(i64),
    Stopped(i64),
    Late(String),
}

impl Crash {
    /// `None` while the engine may still bring the gateway up. `starved`: the kernel has killed somebody for
    /// lack of memory since the gateway was started.
    fn of(exits: &[i64], state: &ContainerState, starved: bool) -> Option<Self> {
        let gone = !matches!(state.status, Some(Status::RUNNING | Status::RESTARTING));
        let count = |code| exits.iter().filter(|&&exit| exit == code).count();
        let certain = if gone { 1 } else { CERTAIN_EXITS };
        if count(REFUSED) >= certain {
            return Some(Self::Refused);
        }
        let certain = if starved { 1 } else { CERTAIN_EXITS };
        if state.oom_killed == Some(true) || count(KILLED) >= certain {
            return Some(Self::OutOfMemory);
        }
        let last = exits.last().copied();
        if gone {
            return Some(Self::Stopped(last.or(state.exit_code).unwrap_or_default()));
        }
        last.filter(|_| exits.len() >= LOOP_EXITS).map(Self::Looping)
    }

    fn told(&self) -> String {
        match self {
            Self::Refused => format!("the gateway refused to start (exit code {REFUSED})"),
            Self::OutOfMemory => "the gateway was killed for lack of memory, and stays stopped".to_owned(),
            Self::Looping(code) => format!("the gateway ended {LOOP_EXITS} times, last with exit code {code}"),
            Self::Stopped(code) => format!("the gateway's container stopped with exit code {code}"),
            Self::Late(note) => format!("the gateway was not ready after {} s ({note})", DEADLINE.as_secs()),
        }
    }

    fn verdict(&self) -> (Code, &'static str) {
        match self {
            Self::Refused => (
                Code::GatewayRefused,
                "It was stopped, since starting it again cannot help. Correct /home/node/.openclaw/openclaw.json as its \
                 last lines say, then run `sudo openclaw-init boot`.",
            ),
            Self::OutOfMemory => (Code::OutOfMemory, LARGER_MACHINE),
            Self::Looping(_) | Self::Stopped(_) | Self::Late(_) => {
                (Code::GatewayNotReady, "See `sudo docker logs openclaw-gateway`, then run `sudo openclaw-init boot`.")
            }
        }
    }
}

/// The error for the operator. What will not heal is stopped, or the engine would start it for ever.
async fn give_up(host: &Host, engine: &Engine, secrets: &Secrets, crash: Crash) -> Error {
    let said = logs::last_lines(engine, NAME, &secrets.token).await;
    if matches!(crash, Crash::Refused | Crash::OutOfMemory) {
        match stop_container(engine, STOP_SECONDS).await {
            Ok(()) => host.changed(format!("stopped container {NAME}")),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }
    let (code, remedy) = crash.verdict();
    anyhow!("{}; its last lines: {said}", crash.told()).context(Diagnosis { code, remedy: remedy.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_die_are_told_apart() {
        let state = |status, oom| ContainerState { status: Some(status), oom_killed: Some(oom), ..Default::default() };
        #[rustfmt::skip]
        let cases: [(&[i64], _, _, Option<Crash>); 13] = [
            (&[], Status::RUNNING, false, None),
            (&[78], Status::RUNNING, false, None),
            (&[78], Status::RESTARTING, false, None),
            (&[78, 78], Status::RUNNING, false, Some(Crash::Refused)),
            (&[78], Status::EXITED, false, Some(Crash::Refused)),
            (&[137], Status::RESTARTING, true, Some(Crash::OutOfMemory)),
            (&[137], Status::RESTARTING, false, None),
            (&[137, 137], Status::RUNNING, false, Some(Crash::OutOfMemory)),
            (&[137], Status::EXITED, false, Some(Crash::Stopped(137))),
            (&[1, 1], Status::RESTARTING, false, None),
            (&[1, 0, 1], Status::RESTARTING, false, Some(Crash::Looping(1))),
            (&[0], Status::EXITED, false, Some(Crash::Stopped(0))),
            (&[], Status::CREATED, false, Some(Crash::Stopped(0))),
        ];
        for (exits, status, oom, crash) in cases {
            assert_eq!(Crash::of(exits, &state(status, oom), false), crash, "{exits:?} {status:?} {oom}");
        }
        let starved = |exits: &[i64], status| Crash::of(exits, &state(status, false), true);
        assert_eq!(starved(&[137], Status::RESTARTING), Some(Crash::OutOfMemory));
        assert_eq!(starved(&[137], Status::EXITED), Some(Crash::OutOfMemory));
        assert_eq!(starved(&[1], Status::RESTARTING), None);
    }
}
