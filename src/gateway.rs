//! The one container: desired spec, observed spec, decide, replace or start, wait until ready.

mod document;
mod dotenv;
mod env;
mod failure;
pub mod live;
mod logs;
mod native_backup;
mod one_off;
mod openclaw_json;
mod probe;
mod processes;
mod readiness;
pub(crate) mod secrets;
pub(crate) mod silence;
mod space;
mod spec;
mod start;
mod swap;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum as Status, HostConfig, PortBinding};
use bollard::query_parameters::StopContainerOptionsBuilder;
use jiff::Timestamp;
use serde_json::Value;

use crate::config::GatewayConfig;
use crate::docker::{Engine, is_missing};
use crate::error::{Classify as _, Code, RUN_AGAIN, one_line};
use crate::host::Host;
use crate::image::Image;
use crate::secret::Secret;
use crate::state::DataDir;
pub use probe::Health;
pub use secrets::Secrets;

pub use native_backup::{native_backup, native_backup_file};
use probe::Probe;
use spec::{Inputs, STOP_SECONDS};
use swap::{FORMER, KEPT, NEXT};

/// The container's name, and its host name.
pub const NAME: &str = "openclaw-gateway";

/// The label with the fingerprint of the spec; a container without it is not ours.
const SPEC_LABEL: &str = "openclaw-init.spec";

/// How long a repair may take: migrations of large databases on a small disk.
const DOCTOR_TIMEOUT: Duration = Duration::from_secs(600);

/// Killed: in a container nearly always by the kernel for lack of memory, certainly so if the kernel's count rose.
const EXIT_KILLED: i64 = 137;

/// How long the engine may take to answer a stop when the grace is over.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// A container that runs with that spec and with the current `.env` is left alone. An `openclaw.json` with which it
    /// could not start again is then a warning; without such a container it is [`Code::GatewayRefused`]. A container
    /// that is to be restarted or replaced comes back when that fails.
    pub async fn ensure(&self, image: &Image, secrets: &Secrets) -> Result<()> {
        let Self { host, engine, data, config } = *self;
        space::warn(host, data).await;
        one_off::remove_leftover(host, engine).await?;
        let observed = self.recover_names().await?;
        self.warn_of_kill(observed.as_ref()).await;
        openclaw_json::ensure_access(host, data).await?;
        let document = openclaw_json::read(host, data).await;
        let has_none = matches!(document, Ok(None));
        let edits =
            document.as_ref().map_or_else(|_| Vec::new(), |found| openclaw_json::missing(found.as_ref(), config));
        let has_tls = document.as_ref().is_ok_and(|found| openclaw_json::has_tls(found.as_ref()));
        let inputs = Inputs::observe(*self, image, has_tls).await?;
        let spec = inputs.gateway()?;
        let secrets_changed = secrets::changed_at(host, data).await?;

        let action = decide(observed.as_ref(), &spec.fingerprint, secrets_changed, !edits.is_empty());
        tracing::debug!("container {NAME}: {action:?}, observed {observed:?}");
        if let Err(broken) = document {
            if action != Action::Untouched {
                return Err(broken);
            }
            host.warn(format!("the gateway runs, but could not start again: {}", one_line(&broken)));
        }
        if action == Action::Untouched {
            return Ok(());
        }
        let applied = async {
            self.prove(action, observed.as_ref(), &spec).await?;
            if matches!(action, Action::Restart | Action::Replace) {
                stop_for_maintenance(host, engine).await?;
            }
            if has_none {
                openclaw_json::create(host, data, &edits).await?;
            } else if !edits.is_empty() {
                one_off::set(self, &inputs, secrets, &edits).await?;
                self.verify(&edits).await?;
            }
            self.apply(action).await
        };
        match applied.await {
            Err(error) if matches!(action, Action::Restart | Action::Replace) => Err(self.bring_back(error).await),
            applied => applied,
        }
    }

    /// Says that the last shutdown killed the gateway: it counts that as a crash.
    async fn warn_of_kill(&self, observed: Option<&Observed>) {
        let killed_at = observed.and_then(|observed| observed.killed_at);
        if killed_at.is_some() && killed_at < processes::booted_at(self.host).await {
            self.host.warn(format!(
                "the gateway had not ended when the last shutdown's grace was over and was killed (exit code \
                 {EXIT_KILLED}), which it counts as a crash: `sudo docker logs {NAME}` shows what held it up"
            ));
        }
    }

    /// A value that is still missing is only a warning: the gateway itself knows best whether it can start.
    async fn verify(&self, edits: &[Value]) -> Result<()> {
        let Self { host, data, config, .. } = *self;
        openclaw_json::ensure_access(host, data).await?;
        let missing = openclaw_json::missing(openclaw_json::read(host, data).await?.as_ref(), config);
        if missing.is_empty() {
            host.changed(format!("set {} in openclaw.json", one_off::paths(edits)));
        } else {
            host.warn(format!(
                "the image's `config set` reported success, but openclaw.json still lacks {}",
                one_off::paths(&missing)
            ));
        }
        Ok(())
    }

    /// Lets the image's own `doctor` repair the state. The gateway must not run. The doctor's exit code says nothing of
    /// its success (openclaw issue 138892): the gateway's next start does.
    pub async fn doctor(&self, image: &Image, secrets: &Secrets) -> Result<()> {
        self.host.progress("repairing the state with the gateway's own doctor");
        let container = Inputs::observe(*self, image, false).await?.doctor();
        if let Err(error) = one_off::run(self.engine, container, secrets, DOCTOR_TIMEOUT).await {
            tracing::info!("openclaw doctor --fix: {error:#}");
        }
        self.host.changed("ran openclaw doctor --fix");
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

/// What is known of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Observed {
    fingerprint: String,
    status: Status,
    started_at: Option<Timestamp>,
    /// When it was killed, of one that does not run since then. Not for lack of memory.
    killed_at: Option<Timestamp>,
    /// Where it is published on the VM.
    port: Option<u16>,
    /// It runs without its endpoint, as after an engine that could not publish ports: nothing reaches it.
    is_cut_off: bool,
}

impl Observed {
    /// True when it runs, or the engine would start it again.
    fn is_alive(&self) -> bool {
        !matches!(self.status, Status::CREATED | Status::EXITED | Status::DEAD | Status::EMPTY)
    }
}

/// `secrets_changed`: when `.env` last changed, which the gateway reads only when it starts. `has_edits`: its
/// configuration is to be edited, and it must not run meanwhile.
fn decide(observed: Option<&Observed>, spec: &str, secrets_changed: Option<Timestamp>, has_edits: bool) -> Action {
    let Some(observed) = observed else { return Action::Create };
    if observed.fingerprint != spec || observed.status == Status::DEAD || observed.is_cut_off {
        return Action::Replace;
    }
    match observed.status {
        _ if !observed.is_alive() => Action::Start,
        Status::RUNNING if !has_edits && secrets_changed <= observed.started_at => Action::Untouched,
        // A restart loop goes on at ever longer intervals: started anew, it is judged from its first exit.
        _ => Action::Restart,
    }
}

async fn observe(engine: &Engine, name: &str) -> Result<Option<Observed>> {
    let Some(found) = inspect(engine, name).await? else { return Ok(None) };
    let has_no_endpoint = has_no_endpoint(&found);
    let label = found.config.and_then(|config| config.labels?.remove(SPEC_LABEL));
    let state = found.state.unwrap_or_default();
    let fingerprint = label.ok_or_else(|| anyhow!("container {name} was not made by openclaw-init")).classify(
        Code::DockerUnusable,
        format!("Rename or remove it: `sudo docker rename {name} {name}-old`, then run `{RUN_AGAIN}`."),
    )?;
    let is_killed = state.status == Some(Status::EXITED) && state.exit_code == Some(EXIT_KILLED);
    let killed_at = state.finished_at.filter(|_| is_killed && state.oom_killed != Some(true));
    let published = binding(found.host_config);
    Ok(Some(Observed {
        fingerprint,
        status: state.status.unwrap_or(Status::EMPTY),
        started_at: state.started_at.and_then(|at| at.parse().ok()),
        killed_at: killed_at.and_then(|at| at.parse().ok()),
        port: published.and_then(|published| published.host_port?.parse().ok()),
        is_cut_off: state.running == Some(true) && has_no_endpoint,
    }))
}

/// Where the container's one port is published, as its settings say.
fn binding(settings: Option<HostConfig>) -> Option<PortBinding> {
    settings?.port_bindings?.into_values().flatten().flatten().next()
}

/// Whether its network has lost it, as after an engine that could not publish ports: while it runs, nothing reaches it.
fn has_no_endpoint(found: &ContainerInspectResponse) -> bool {
    let ports = found.network_settings.as_ref().and_then(|network| network.ports.as_ref());
    ports.is_some_and(HashMap::is_empty)
}

async fn inspect(engine: &Engine, name: &str) -> Result<Option<ContainerInspectResponse>> {
    match engine.client.inspect_container(name, None).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("inspecting container {name}")),
    }
}

/// Removes a container of this program that does not run; true when there was one.
async fn remove_if_exists(engine: &Engine, name: &str) -> Result<bool> {
    if observe(engine, name).await?.is_none() {
        return Ok(false);
    }
    engine.client.remove_container(name, None).await.with_context(|| format!("removing container {name}"))?;
    Ok(true)
}

/// Whether the gateway's log says that its state needs the doctor.
pub async fn asks_for_doctor(engine: &Engine) -> bool {
    logs::read(engine, NAME, Timestamp::UNIX_EPOCH).await.contains("doctor --fix")
}

/// Whether there is a container of the gateway's name, running or not.
pub async fn exists(engine: &Engine) -> Result<bool> {
    Ok(inspect(engine, NAME).await?.is_some())
}

/// Where the container's port is published on the VM; `None` when there is no container.
pub async fn published(engine: &Engine) -> Result<Option<SocketAddr>> {
    let binding = inspect(engine, NAME).await?.and_then(|found| binding(found.host_config));
    Ok(binding.and_then(|it| Some(SocketAddr::new(it.host_ip?.parse().ok()?, it.host_port?.parse().ok()?))))
}

/// What the gateway published at `address` says of itself, in a few words.
pub async fn describe_health(address: SocketAddr, token: &Secret) -> Result<String> {
    let config = GatewayConfig { bind: address.ip(), port: address.port(), ..GatewayConfig::default() };
    Ok(match Probe::new(&config, token)?.ask().await {
        Health::Silent => "does not answer".to_owned(),
        Health::Starting(what) => format!("starting ({what})"),
        Health::Unhealthy { failing, .. } => format!("degraded: {}", failing.join(", ")),
        Health::Ready { suppressed: Some(what), .. } => format!("degraded: {what}"),
        Health::Ready { version: Some(version), .. } => format!("ready, version {version}"),
        Health::Ready { version: None, .. } => "ready".to_owned(),
    })
}

/// Whether the container runs, as others must know before they use its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// There is none, or it does not run and the engine will not start it.
    Stopped,
    /// It runs.
    Running,
    /// Neither: it is paused, or starts again and again.
    Unstable,
}

/// How the container is.
pub async fn run_state(engine: &Engine) -> Result<RunState> {
    Ok(match observe(engine, NAME).await? {
        Some(Observed { status: Status::RUNNING, .. }) => RunState::Running,
        Some(observed) if observed.is_alive() => RunState::Unstable,
        _ => RunState::Stopped,
    })
}

/// Leaves no process of the gateway in the state directory: stops a container that is alive, with the grace that its
/// work needs.
pub async fn stop_for_maintenance(host: &Host, engine: &Engine) -> Result<()> {
    one_off::remove_leftover(host, engine).await?;
    if run_state(engine).await? != RunState::Stopped {
        host.progress("stopping the running gateway");
        stop_container(engine, STOP_SECONDS).await?;
        host.changed(format!("stopped container {NAME}"));
    }
    Ok(())
}

/// Removes the container, stopped with the full grace first. One that this program did not make is refused.
pub async fn remove(host: &Host, engine: &Engine) -> Result<()> {
    if observe(engine, NAME).await?.is_some() {
        stop_for_maintenance(host, engine).await?;
    }
    one_off::remove_leftover(host, engine).await?;
    for name in [NEXT, FORMER] {
        remove_if_exists(engine, name).await?;
    }
    if remove_if_exists(engine, NAME).await? {
        host.changed(format!("removed container {NAME}"));
    }
    Ok(())
}

/// The same, and the container that was kept because somebody had installed something in it.
pub async fn purge(host: &Host, engine: &Engine) -> Result<()> {
    remove(host, engine).await?;
    if remove_if_exists(engine, KEPT).await? {
        host.changed(format!("removed container {KEPT}"));
    }
    Ok(())
}

/// Stops the container with a grace of `seconds` and returns its exit code, `None` when there is no container.
/// `unless-stopped` does not start it again.
pub async fn stop_with_grace(engine: &Engine, seconds: u32) -> Result<Option<i64>> {
    stop_container(engine, i32::try_from(seconds).unwrap_or(i32::MAX)).await?;
    Ok(inspect(engine, NAME).await?.and_then(|container| container.state?.exit_code))
}

async fn stop_container(engine: &Engine, seconds: i32) -> Result<()> {
    let options = StopContainerOptionsBuilder::default().t(seconds).build();
    let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    // The engine answers when the container has ended.
    let client = engine.client.clone().with_timeout(grace + STOP_TIMEOUT);
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
        let observed = |fingerprint: &str, status| Observed {
            fingerprint: fingerprint.into(),
            status,
            started_at: at(100),
            killed_at: None,
            is_cut_off: false,
            port: None,
        };
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
            (Some(Observed { is_cut_off: true, ..observed("a", Status::RUNNING) }), at(1), false, Action::Replace),
            (Some(observed("b", Status::EXITED)), at(1), false, Action::Replace),
        ];
        for (observed, secrets_changed, has_edits, action) in cases {
            assert_eq!(decide(observed.as_ref(), "a", secrets_changed, has_edits), action, "{observed:?}");
        }
    }
}
