//! The one container: desired spec, observed spec, decide, replace or start, wait until ready.

pub mod cli;
mod dotenv;
mod env;
mod exec;
mod exposure;
mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
mod inventory;
pub mod live;
mod logs;
mod merge;
mod named;
mod native_backup;
mod one_off;
mod openclaw_json;
pub mod pairing;
mod probe;
mod processes;
mod readiness;
pub(crate) mod secrets;
mod settings;
pub(crate) mod silence;
mod space;
mod spec;
mod start;
mod swap;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum as Status, HostConfig, PortBinding};
use bollard::query_parameters::StopContainerOptionsBuilder;
use jiff::Timestamp;

use crate::config::GatewayConfig;
use crate::docker::{Engine, is_missing};
use crate::error::{Classify as _, Code, RUN_AGAIN, one_line};
use crate::host::Host;
use crate::image::Image;
use crate::secret::Secret;
use crate::state::{DataDir, RefusedSettings};
pub use inventory::{Inventory, NOT_LOADED};
pub use probe::Health;
pub use processes::started_at;
pub use secrets::Secrets;
pub use settings::Ownership;

pub use native_backup::{native_backup, native_backup_file};
use one_off::Edited;
use openclaw_json::INNER_PORT;
use probe::Probe;
use settings::Plan;
use spec::{Inputs, STOP_SECONDS, in_container};
use swap::{FORMER, KEPT, NEXT};

/// The container's name, and its host name.
pub const NAME: &str = "openclaw-gateway";

/// What stands before the gateway's own arguments, in the image's working directory.
const PROGRAM: [&str; 2] = ["node", "openclaw.mjs"];

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
    /// Makes the container run with the desired spec, and `openclaw.json` hold what the gateway needs to start and what
    /// the operator sets; without `ownership` that stays as it is. Returns why the operator's settings were refused.
    ///
    /// A container that runs with that spec and with the current `.env` is left alone. An `openclaw.json` with which it
    /// could not start again is then a warning; without such a container it is [`Code::GatewayRefused`]. A container
    /// that is to be restarted or replaced comes back when that fails.
    pub async fn ensure(
        &self,
        image: &Image,
        secrets: &Secrets,
        ownership: Option<Ownership<'_>>,
    ) -> Result<Option<Error>> {
        let known = ownership.as_ref().and_then(|ownership| ownership.record.refused_container.clone());
        self.ensure_unless(known.as_ref(), image, secrets, ownership).await
    }

    /// The same. `known`: the container with which the gateway did not come up; where a former one is left it stays.
    async fn ensure_unless(
        &self,
        known: Option<&RefusedSettings>,
        image: &Image,
        secrets: &Secrets,
        mut ownership: Option<Ownership<'_>>,
    ) -> Result<Option<Error>> {
        let Self { host, engine, data, .. } = *self;
        space::warn(host, data).await;
        one_off::remove_leftover(host, engine).await?;
        let observed = self.recover_names().await?;
        self.warn_of_kill(observed.as_ref()).await;
        openclaw_json::ensure_access(host, data).await?;
        let document = openclaw_json::read(host, data).await;
        let plan = document.map(|found| Plan::of(self, found.as_ref(), image, secrets, ownership.as_ref()));
        let has_tls = plan.as_ref().is_ok_and(Plan::has_tls);
        let inputs = Inputs::observe(*self, image, has_tls).await?;
        let spec = inputs.gateway()?;
        let secrets_changed = secrets::changed_at(host, data).await?;

        let (desired, refusal) = desired(observed.as_ref(), &spec.fingerprint, known);
        let action = decide(observed.as_ref(), desired, secrets_changed);
        tracing::debug!("container {NAME}: {action:?}, observed {observed:?}");
        let mut plan = match plan {
            Ok(plan) => plan,
            Err(broken) if action == Action::Untouched => {
                host.warn(format!("the gateway runs, but could not start again: {}", one_line(&broken)));
                return Ok(refusal);
            }
            Err(broken) => {
                self.leave_next(action, &spec).await;
                return Err(broken);
            }
        };
        let edited = async {
            if action != Action::Untouched {
                self.prove(action, observed.as_ref(), &spec).await?;
            }
            self.edit(&inputs, secrets, &mut plan, ownership.as_mut()).await
        };
        let mut edited = self.or_bring_back(action, edited.await).await?;
        let is_changed = ownership.is_some() && plan.is_changed();
        let is_refitted = is_changed && secrets::fit(host, data, self.config, plan.document()).await?;
        if plan.is_new() || is_refitted {
            edited = Edited::ForNextStart;
        }
        if plan.has_tls() == has_tls {
            self.carry_out(action.after(edited), ownership).await?;
        } else {
            // The container was meant for settings that were refused.
            Box::pin(self.ensure_unless(known, image, secrets, None)).await?;
        }
        Ok(plan.refusal().or(refusal))
    }

    /// Whether its port has TLS.
    pub async fn has_tls(&self) -> Result<bool> {
        let document = openclaw_json::read(self.host, self.data).await?;
        Ok(openclaw_json::has_tls(document.as_ref()))
    }

    /// Whether it may believe a proxy in front who its users are.
    pub async fn may_believe_proxy(&self) -> Result<bool> {
        let document = openclaw_json::read(self.host, self.data).await?;
        Ok(openclaw_json::may_believe_proxy(document.as_ref()))
    }

    /// Starts, restarts or replaces the container. With one that does not start new settings go, too.
    async fn carry_out(&self, action: Action, ownership: Option<Ownership<'_>>) -> Result<()> {
        let applied = async {
            if matches!(action, Action::Restart | Action::Replace) {
                stop_for_maintenance(self.host, self.engine).await?;
            }
            if action == Action::Untouched { Ok(()) } else { self.apply(action).await }
        };
        let applied = applied.await;
        if applied.is_err()
            && let Some(ownership) = ownership
            && let Err(also) = settings::undo_trial(self.host, self.data, ownership).await
        {
            self.host.warn(format!("the settings before could not be put back: {}", one_line(&also)));
        }
        self.or_bring_back(action, applied).await
    }

    async fn or_bring_back<T>(&self, action: Action, outcome: Result<T>) -> Result<T> {
        match outcome {
            Err(error) if matches!(action, Action::Restart | Action::Replace) => Err(self.bring_back(error).await),
            outcome => outcome,
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

    /// Lets the image's own `doctor` repair the state. The gateway must not run. The doctor's exit code says nothing of
    /// its success (openclaw issue 138892): the gateway's next start does.
    pub async fn doctor(&self, image: &Image, secrets: &Secrets) -> Result<()> {
        self.host.progress("repairing the state with the gateway's own doctor");
        let container = Inputs::observe(*self, image, false).await?.doctor();
        if let Err(error) = one_off::run(self.engine, container, &secrets.redaction, DOCTOR_TIMEOUT).await {
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

impl Action {
    /// With a changed `openclaw.json`.
    fn after(self, edited: Edited) -> Self {
        match (self, edited) {
            (Self::Untouched, Edited::ForNextStart) => Self::Restart,
            (action, _) => action,
        }
    }
}

/// What is known of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Observed {
    fingerprint: String,
    status: Status,
    started_at: Option<Timestamp>,
    /// When it was killed, of one that does not run since then. Not for lack of memory.
    killed_at: Option<Timestamp>,
    /// Where it is published on the VM, with the ports of channels.
    published: Vec<SocketAddr>,
    /// It runs without its endpoint, as after an engine that could not publish ports: nothing reaches it.
    is_cut_off: bool,
}

impl Observed {
    /// True when it runs, or the engine would start it again.
    fn is_alive(&self) -> bool {
        !matches!(self.status, Status::CREATED | Status::EXITED | Status::DEAD | Status::EMPTY)
    }
}

/// Which container shall run, by its fingerprint: that of `spec`, unless the gateway is known not to come up with it.
/// Then the former one stays, as long as it works; the second value says why.
fn desired<'a>(
    observed: Option<&'a Observed>,
    spec: &'a str,
    known: Option<&RefusedSettings>,
) -> (&'a str, Option<Error>) {
    let works = |former: &&Observed| former.fingerprint != spec && former.status != Status::DEAD && !former.is_cut_off;
    match (observed.filter(works), known.filter(|known| known.digest == spec)) {
        (Some(former), Some(known)) => {
            let why = format!("{} (not tried again)", known.why);
            (&former.fingerprint, Some(settings::refused_container(&why)))
        }
        _ => (spec, None),
    }
}

/// `secrets_changed`: when `.env` last changed, which the gateway reads only when it starts.
fn decide(observed: Option<&Observed>, spec: &str, secrets_changed: Option<Timestamp>) -> Action {
    let Some(observed) = observed else { return Action::Create };
    if observed.fingerprint != spec || observed.status == Status::DEAD || observed.is_cut_off {
        return Action::Replace;
    }
    match observed.status {
        _ if !observed.is_alive() => Action::Start,
        Status::RUNNING if secrets_changed <= observed.started_at => Action::Untouched,
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
    Ok(Some(Observed {
        fingerprint,
        status: state.status.unwrap_or(Status::EMPTY),
        started_at: state.started_at.and_then(|at| at.parse().ok()),
        killed_at: killed_at.and_then(|at| at.parse().ok()),
        published: bindings(found.host_config).into_values().collect(),
        is_cut_off: state.running == Some(true) && has_no_endpoint,
    }))
}

/// Where the container's ports are published, as its settings say.
fn bindings(settings: Option<HostConfig>) -> HashMap<String, SocketAddr> {
    let address =
        |binding: PortBinding| Some(SocketAddr::new(binding.host_ip?.parse().ok()?, binding.host_port?.parse().ok()?));
    let ports = settings.and_then(|settings| settings.port_bindings).unwrap_or_default().into_iter();
    ports.filter_map(|(port, bound)| Some((port, address(bound?.into_iter().next()?)?))).collect()
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

/// The image of the gateway's container, and the container that was kept because somebody installed something in it.
pub async fn image_and_kept(engine: &Engine) -> Result<(Option<String>, Option<&'static str>)> {
    let image = inspect(engine, NAME).await?.and_then(|found| found.image);
    Ok((image, inspect(engine, KEPT).await?.map(|_| KEPT)))
}

/// Where the gateway is published on the VM; `None` when there is no container.
pub async fn published(engine: &Engine) -> Result<Option<SocketAddr>> {
    Ok(inspect(engine, NAME).await?.and_then(|found| published_by(found.host_config)))
}

/// Where a container with these settings publishes the gateway.
fn published_by(settings: Option<HostConfig>) -> Option<SocketAddr> {
    bindings(settings).remove(&in_container(INNER_PORT))
}

/// What the gateway published at `address` says of itself, in a few words: fewer without its token.
pub async fn describe_health(address: SocketAddr, token: Option<&Secret>) -> Result<String> {
    let nobody = Secret::new("");
    Ok(match Probe::new(address, token.unwrap_or(&nobody))?.ask().await {
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
        stop_container(engine, NAME, STOP_SECONDS).await?;
        host.changed(format!("stopped container {NAME}"));
    }
    Ok(())
}

/// Ends the container of one of the gateway's own commands, if there is one.
pub async fn end_one_off(engine: &Engine) -> Result<()> {
    one_off::remove(engine).await.map(drop)
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

/// How the container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i64,
    /// When, as far as the engine says so.
    pub at: Option<Timestamp>,
}

/// Stops the container with a grace of `seconds` and returns how it ended, now or before; `None` when there is no
/// container. `unless-stopped` does not start it again.
pub async fn stop_with_grace(engine: &Engine, seconds: u32) -> Result<Option<Ended>> {
    stop_container(engine, NAME, i32::try_from(seconds).unwrap_or(i32::MAX)).await?;
    let state = inspect(engine, NAME).await?.and_then(|container| container.state).unwrap_or_default();
    let at = state.finished_at.and_then(|at| at.parse().ok());
    Ok(state.exit_code.map(|code| Ended { code, at }))
}

async fn stop_container(engine: &Engine, name: &str, seconds: i32) -> Result<()> {
    let options = StopContainerOptionsBuilder::default().t(seconds).build();
    let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    // The engine answers when the container has ended.
    let client = engine.client.clone().with_timeout(grace + STOP_TIMEOUT);
    match client.stop_container(name, Some(options)).await {
        Err(error) if !is_missing(&error) => Err(error).with_context(|| format!("stopping container {name}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    fn observed(fingerprint: &str, status: Status) -> Observed {
        let fingerprint = fingerprint.into();
        Observed { fingerprint, status, started_at: at(100), killed_at: None, is_cut_off: false, published: Vec::new() }
    }

    #[test]
    fn a_container_that_did_not_come_up_is_not_tried_again_while_the_former_one_works() {
        let cut_off = Observed { is_cut_off: true, ..observed("former", Status::RUNNING) };
        let cases = [
            (None, "new", "new"),
            (Some(observed("former", Status::RUNNING)), "new", "former"),
            (Some(observed("former", Status::EXITED)), "new", "former"),
            (Some(observed("former", Status::RUNNING)), "another", "new"),
            (Some(observed("former", Status::DEAD)), "new", "new"),
            (Some(cut_off), "new", "new"),
            // It came up after all.
            (Some(observed("new", Status::RUNNING)), "new", "new"),
        ];
        for (observed, refused, expected) in cases {
            let known = RefusedSettings { digest: refused.to_owned(), why: "it ended".to_owned() };
            let (found, refusal) = desired(observed.as_ref(), "new", Some(&known));
            assert_eq!((found, refusal.is_some()), (expected, expected == "former"), "{observed:?} {refused}");
            assert_eq!(desired(observed.as_ref(), "new", None).0, "new");
        }
    }

    #[test]
    fn a_container_is_left_alone_only_when_all_of_it_is_right() {
        #[rustfmt::skip]
        let cases = [
            (None, at(1), Action::Create),
            (Some(observed("a", Status::RUNNING)), at(1), Action::Untouched),
            (Some(observed("a", Status::RUNNING)), at(101), Action::Restart),
            (Some(observed("a", Status::EXITED)), at(101), Action::Start),
            (Some(observed("a", Status::CREATED)), at(1), Action::Start),
            (Some(observed("a", Status::RESTARTING)), at(1), Action::Restart),
            (Some(observed("a", Status::PAUSED)), at(1), Action::Restart),
            (Some(observed("a", Status::DEAD)), at(1), Action::Replace),
            (Some(observed("b", Status::RUNNING)), at(1), Action::Replace),
            (Some(Observed { is_cut_off: true, ..observed("a", Status::RUNNING) }), at(1), Action::Replace),
            (Some(observed("b", Status::EXITED)), at(1), Action::Replace),
        ];
        for (observed, secrets_changed, action) in cases {
            assert_eq!(decide(observed.as_ref(), "a", secrets_changed), action, "{observed:?}");
        }
    }
}
