//! The one container: wanted spec, observed spec, decide, replace or start, wait until ready.

mod dotenv;
mod env;
mod logs;
mod native_backup;
mod one_off;
mod openclaw_json;
mod probe;
mod readiness;
pub(crate) mod secrets;
mod spec;
mod start;

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::errors::Error as DockerError;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum as Status};
use bollard::query_parameters::{CreateContainerOptionsBuilder, StopContainerOptionsBuilder};
use jiff::Timestamp;
use serde_json::Value;

use crate::config::GatewayConfig;
use crate::docker::Engine;
use crate::error::{Classify, Code, one_line};
use crate::host::Host;
use crate::image::Image;
use crate::state::DataDir;
pub use secrets::Secrets;

pub use native_backup::{native_backup, native_backup_file};
use spec::{Machine, STOP_SECONDS, Spec};
use start::start;

/// The container's name, and its host name.
pub const NAME: &str = "openclaw-gateway";

/// The label with the fingerprint of the wanted spec; a container without it is not ours.
const SPEC_LABEL: &str = "openclaw-init.spec";

/// How long a repair may take: migrations of large databases on a small disk.
const DOCTOR_TIMEOUT: Duration = Duration::from_secs(600);

/// How much longer than the grace the engine's answer to a stop may take.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// The gateway on its machine: what it runs on, and what it should be.
#[derive(Debug, Clone, Copy)]
pub struct Gateway<'a> {
    /// The machine.
    pub host: &'a Host,
    /// Its engine.
    pub engine: &'a Engine,
    /// The state.
    pub data: &'a DataDir,
    /// The container's settings.
    pub config: &'a GatewayConfig,
}

impl Gateway<'_> {
    /// Makes the container run with the desired spec, and `openclaw.json` hold what the gateway needs to start.
    ///
    /// A container that runs with that spec and with the current `.env` is left alone; with a warning when its
    /// `openclaw.json` is broken, with which it could not start. Without such a container a broken one is
    /// [`Code::GatewayRefused`].
    pub async fn ensure(&self, image: &Image, secrets: &Secrets) -> Result<()> {
        let Self { host, engine, data, config } = *self;
        one_off::remove_left(host, engine).await?;
        openclaw_json::ensure_access(host, data).await?;
        let document = openclaw_json::read(host, data).await;
        let edits =
            document.as_ref().map_or_else(|_| Vec::new(), |found| openclaw_json::missing(found.as_ref(), config));
        let machine = Machine::observe(host, engine, image).await?;
        let spec = Spec::gateway(image, data, config, machine)?;
        let secrets_changed = secrets::changed_at(host, data).await?;
        let observed = observe(engine).await?;

        let action = decide(observed.as_ref(), &spec.fingerprint, secrets_changed, !edits.is_empty());
        tracing::debug!("container {NAME}: {action:?}, observed {observed:?}");
        if let Err(broken) = document {
            if action != Action::Untouched {
                return Err(broken);
            }
            host.warn(format!("the gateway runs, but could not start again: {}", one_line(&broken)));
        }
        if matches!(action, Action::Restart | Action::Replace) {
            stop_for_maintenance(host, engine).await?;
        }
        if !edits.is_empty() {
            let container = |command: &[&str]| Spec::one_off(image, data, config, machine, command);
            one_off::set(host, engine, &edits, secrets, container).await?;
            self.verify(&edits).await?;
        }
        self.apply(action, spec).await
    }

    async fn apply(&self, action: Action, spec: Spec) -> Result<()> {
        let Self { host, engine, config, .. } = *self;
        if action == Action::Replace {
            remove_stopped(host, engine).await?;
        }
        match action {
            Action::Untouched => Ok(()),
            Action::Start | Action::Restart => start(host, engine, config).await,
            Action::Replace | Action::Create => create(host, engine, spec, config).await,
        }
    }

    /// An edit that left things missing is not fatal here: the gateway itself knows best whether it can start.
    async fn verify(&self, edits: &[Value]) -> Result<()> {
        let Self { host, data, config, .. } = *self;
        openclaw_json::ensure_access(host, data).await?;
        let left = openclaw_json::missing(openclaw_json::read(host, data).await?.as_ref(), config);
        let paths =
            |edits: &[Value]| edits.iter().filter_map(|edit| edit["path"].as_str()).collect::<Vec<_>>().join(", ");
        if left.is_empty() {
            host.changed(format!("set {} in openclaw.json", paths(edits)));
        } else {
            host.warn(format!(
                "the image's `config set` reported success, but openclaw.json still lacks {}",
                paths(&left)
            ));
        }
        Ok(())
    }

    /// Lets the image's own `doctor` repair the state. The gateway must not run. What the doctor thinks of its work
    /// is in its output, not in its exit code (openclaw issue 138892): the gateway's next start is the judge.
    pub async fn doctor(&self, image: &Image, secrets: &Secrets) -> Result<()> {
        let Self { host, engine, data, config } = *self;
        host.progress("repairing the state with the gateway's own doctor");
        let machine = Machine::observe(host, engine, image).await?;
        let container = Spec::doctor(image, data, config, machine);
        if let Err(error) = one_off::run(engine, secrets, container, DOCTOR_TIMEOUT).await {
            tracing::info!("openclaw doctor --fix: {error:#}");
        }
        host.changed("ran openclaw doctor --fix");
        Ok(())
    }
}

/// What must be done about the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Untouched,
    Start,
    Restart,
    Replace,
    Create,
}

/// What is known of the present container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Observed {
    fingerprint: String,
    status: Status,
    started_at: Option<Timestamp>,
}

impl Observed {
    /// True when it runs, or the engine would start it again by itself.
    fn is_alive(&self) -> bool {
        !matches!(self.status, Status::CREATED | Status::EXITED | Status::DEAD | Status::EMPTY)
    }
}

/// `secrets_changed` is when `.env` last changed: the gateway reads it only when it starts. `stopped`: it
/// must not run while its configuration is edited.
fn decide(observed: Option<&Observed>, spec: &str, secrets_changed: Option<Timestamp>, stopped: bool) -> Action {
    let Some(observed) = observed else { return Action::Create };
    if observed.fingerprint != spec || observed.status == Status::DEAD {
        return Action::Replace;
    }
    match observed.status {
        _ if !observed.is_alive() => Action::Start,
        Status::RUNNING if !stopped && secrets_changed <= observed.started_at => Action::Untouched,
        // A restart loop goes on at ever longer intervals; started anew it is judged from its first exit.
        _ => Action::Restart,
    }
}

async fn observe(engine: &Engine) -> Result<Option<Observed>> {
    let Some(found) = inspect(engine).await? else { return Ok(None) };
    let label = found.config.and_then(|config| config.labels?.remove(SPEC_LABEL));
    let state = found.state.unwrap_or_default();
    let fingerprint = label.ok_or_else(|| anyhow!("container {NAME} was not made by openclaw-init")).classify(
        Code::DockerUnusable,
        format!("Rename or remove it: `sudo docker rename {NAME} {NAME}-old`, then run `sudo openclaw-init boot`."),
    )?;
    Ok(Some(Observed {
        fingerprint,
        status: state.status.unwrap_or(Status::EMPTY),
        started_at: state.started_at.and_then(|at| at.parse().ok()),
    }))
}

async fn inspect(engine: &Engine) -> Result<Option<ContainerInspectResponse>> {
    match engine.client.inspect_container(NAME, None).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("inspecting container {NAME}")),
    }
}

fn is_missing(error: &DockerError) -> bool {
    matches!(error, DockerError::DockerResponseServerError { status_code: 404, .. })
}

async fn create(host: &Host, engine: &Engine, spec: Spec, config: &GatewayConfig) -> Result<()> {
    let options = CreateContainerOptionsBuilder::default().name(NAME).build();
    let created = engine
        .client
        .create_container(Some(options), spec.body)
        .await
        .with_context(|| format!("creating container {NAME}"))?;
    created.warnings.iter().for_each(|warning| tracing::debug!("creating container {NAME}: {warning}"));
    host.changed(format!("created container {NAME}"));
    let started = start(host, engine, config).await;
    if started.is_err() {
        // It never ran: nothing is lost, and the next run begins clean.
        if let Err(error) = engine.client.remove_container(NAME, None).await {
            tracing::debug!("removing container {NAME} that did not start: {error}");
        }
    }
    started
}

/// Whether the gateway said that its state needs the doctor.
pub async fn asks_for_doctor(engine: &Engine) -> bool {
    logs::hold(engine, NAME, "doctor --fix").await
}

/// Whether there is a container of the gateway's name, running or not.
pub async fn exists(engine: &Engine) -> Result<bool> {
    Ok(inspect(engine).await?.is_some())
}

/// Whether the container runs, as far as others have to know before they use its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// There is none, or it does not run and the engine will not start it by itself.
    Stopped,
    /// It runs.
    Running,
    /// Neither: it is paused, or starts again and again.
    Unstable,
}

/// How the container is.
pub async fn run_state(engine: &Engine) -> Result<RunState> {
    Ok(match observe(engine).await? {
        Some(Observed { status: Status::RUNNING, .. }) => RunState::Running,
        Some(observed) if observed.is_alive() => RunState::Unstable,
        _ => RunState::Stopped,
    })
}

/// Leaves no process of the gateway in the state directory: stops the container, if there is one that is alive,
/// with the grace that its work needs.
pub async fn stop_for_maintenance(host: &Host, engine: &Engine) -> Result<()> {
    one_off::remove_left(host, engine).await?;
    if run_state(engine).await? != RunState::Stopped {
        host.progress("stopping the running gateway");
        stop_container(engine, STOP_SECONDS).await?;
        host.changed(format!("stopped container {NAME}"));
    }
    Ok(())
}

/// Removes the container, stopped first with the full grace; one that this program did not make is refused.
pub async fn remove(host: &Host, engine: &Engine) -> Result<()> {
    one_off::remove_left(host, engine).await?;
    if observe(engine).await?.is_none() {
        return Ok(());
    }
    stop_for_maintenance(host, engine).await?;
    remove_stopped(host, engine).await
}

async fn remove_stopped(host: &Host, engine: &Engine) -> Result<()> {
    engine.client.remove_container(NAME, None).await.with_context(|| format!("removing container {NAME}"))?;
    host.changed(format!("removed container {NAME}"));
    Ok(())
}

/// Stops the container with a grace of `seconds` and returns its exit code, `None` when there is no
/// container. After it `unless-stopped` does not start it by itself.
pub async fn stop_with_grace(engine: &Engine, seconds: u32) -> Result<Option<i64>> {
    stop_container(engine, i32::try_from(seconds).unwrap_or(i32::MAX)).await?;
    Ok(inspect(engine).await?.and_then(|container| container.state?.exit_code))
}

async fn stop_container(engine: &Engine, seconds: i32) -> Result<()> {
    let options = StopContainerOptionsBuilder::default().t(seconds).build();
    let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    // The engine answers when the container has ended.
    let client = engine.client.clone().with_timeout(grace + STOP_MARGIN);
    match client.stop_container(NAME, Some(options)).await {
        Err(error) if !is_missing(&error) => Err(error).with_context(|| format!("stopping container {NAME}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_left_alone_only_when_all_of_it_is_right() {
        let at = |second| Timestamp::from_second(second).ok();
        let observed =
            |fingerprint: &str, status| Observed { fingerprint: fingerprint.into(), status, started_at: at(100) };
        #[rustfmt::skip]
        let cases = [
            (None, at(1), false, Action::Create),
            (Some(observed("a", Status::RUNNING)), at(1), false, Action::Untouched),
            (Some(observed("a", Status::RUNNING)), at(101), false, Action::Restart),
            (Some(observed("a", Status::RUNNING)), None, true, Action::Restart),
            (Some(observed("a", Status::EXITED)), at(101), true, Action::Start),
            (Some(observed("a", Status::CREATED)), at(1), false, Action::Start),
            (Some(observed("a", Status::RESTARTING)), at(1), false, Action::Restart),
            (Some(observed("a", Status::PAUSED)), at(1), false, Action::Restart),
            (Some(observed("a", Status::DEAD)), at(1), false, Action::Replace),
            (Some(observed("b", Status::RUNNING)), at(1), false, Action::Replace),
            (Some(observed("b", Status::EXITED)), at(1), false, Action::Replace),
        ];
        for (observed, secrets_changed, stopped, action) in cases {
            assert_eq!(decide(observed.as_ref(), "a", secrets_changed, stopped), action, "{observed:?}");
        }
    }
}
