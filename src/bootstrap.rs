//! The table of contents: what happens at every boot, in this order.
//!
//! ```text
//! metadata - config
//!    |- swap
//!    |- disk --------------- Volume --+
//!    |- docker - shield --- Engine ---+- state -+- image ----+
//!                 (image, beside a blank disk)  +- secrets --+- gateway - ready - (update)
//!                                                                                  pairing - proxy
//! ```

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::{self, Config, Domain, Limits, MetadataAccess};
use crate::docker::{self, Engine};
use crate::error::{Code, RUN_AGAIN, StageError, one_line};
use crate::gateway::{self, Ended, Gateway, Ownership, RunState, secrets};
use crate::host::Host;
use crate::image::Image;
use crate::lock::RunLock;
use crate::memory::{self, swap};
use crate::metadata::{Client, Instance};
use crate::paths::{LOCK, PROXY_UNIT, STOP_GRACE, STOPPED_BY_SHIELD};
use crate::proxy::{self, Upstream};
use crate::report::{self, BootEnd, Ready, Report, Try};
use crate::stage::{Stage, within};
use crate::state::{DataDir, Record};
use crate::update::{self, Request, Updater};
use crate::watch::Orders;
use crate::{clock, disk, identity, image, pair, shield, state, systemd, trust};

/// How long the metadata server may keep us waiting.
const METADATA_DEADLINE: Duration = Duration::from_secs(120);

/// The whole run, unless the operator asked for work of any length; `TimeoutStartSec=` of the unit is above it.
const RUN_DEADLINE: Duration = Duration::from_secs(55 * 60);

/// How long a run that missed its deadline has for its report.
const UNIT_MARGIN: Duration = Duration::from_secs(5 * 60);

/// Grace for the gateway at shutdown. Compute Engine gives a Spot VM 30 s, any other 90 s
/// (cloud.google.com/compute/docs/shutdownscript); Docker and the system need the rest.
const SPOT_GRACE_SECONDS: u32 = 25;
const GRACE_SECONDS: u32 = 80;

/// How exactly it is known when a process started.
const START_PRECISION: SignedDuration = SignedDuration::from_secs(1);

/// How long the shutdown may wait for the metadata server.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Who started a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Somebody who watches it; nobody starts another one when it fails.
    Foreground,
    /// systemd, which starts another one when it is told so.
    Unit,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What the report says.
    pub result: Result<Ready, StageError>,
    /// The failure may heal, and the unit shall start another run.
    pub is_retried: bool,
}

/// Brings the gateway up and reports how it went. The error is a machine on which not even a run can start.
pub async fn boot(host: &Host, metadata: Client, trigger: Trigger) -> Result<Outcome> {
    let lock = RunLock::acquire(&host.path(LOCK)).await?;
    let request = Request::take(host).await?;
    let attempt = Try::begin(host, trigger == Trigger::Unit && request.is_none()).await?;
    let report = Report::start(host, metadata.clone()).await?;
    if let Some(Request::Repair { reason }) = &request {
        report.reason(reason);
    }
    let run = stages(host, &metadata, &report, request.as_ref(), &lock);
    let late = || anyhow!("the run did not end within {} minutes", RUN_DEADLINE.as_secs() / 60);
    let result = match attempt.precondition() {
        Ok(()) => within_deadline(host, run)
            .await
            .unwrap_or_else(|| Err(StageError { stage: report.current_stage(), error: late() })),
        Err(error) => Err(StageError { stage: report.current_stage(), error }),
    };
    let is_retried = attempt.end(host, &result).await;
    report.finish(&result, !is_retried).await;
    Ok(Outcome { result, is_retried })
}

/// What `run` ends with; `None` when it does not end in time.
async fn within_deadline<T>(host: &Host, run: impl Future<Output = T>) -> Option<T> {
    let (started, mut run) = (Instant::now(), pin!(run));
    let deadline = || started + RUN_DEADLINE + host.ledger().borrow().extension;
    while Instant::now() < deadline() {
        if let Ok(outcome) = tokio::time::timeout_at(deadline(), &mut run).await {
            return Some(outcome);
        }
        systemd::extend_timeout(host, deadline().saturating_duration_since(Instant::now()) + UNIT_MARGIN);
    }
    None
}

async fn stages(
    host: &Host,
    metadata: &Client,
    report: &Report,
    request: Option<&Request>,
    lock: &RunLock,
) -> Result<Ready, StageError> {
    let instance = report.stage(Stage::Metadata, metadata.instance(METADATA_DEADLINE)).await?;
    report.instance(&instance);
    clock::ensure(host, metadata).await;
    let mut config = report.stage(Stage::Config, configure(host, &instance)).await?;
    report.run_id(config.run_id.clone());

    // Each reaches a clean point, whatever becomes of the others.
    let (blank, is_blank) = oneshot::channel();
    let (swap, volume, engine) = tokio::join!(
        report.stage(Stage::Swap, swap::ensure(host, config.swap)),
        report.stage(Stage::Disk, disk::ensure(host, &config.disk, &instance, blank)),
        engine(host, metadata, report, &config, &instance, is_blank),
    );
    let ((), volume, (engine, fetched)) = (swap?, volume?, engine?);
    let stop = async || gateway::remove(host, &engine).await;
    let open = async {
        let data = state::open(host, &volume, &instance, lock, &stop).await?;
        Orders::leave_data(host, &data).await.map(|()| data)
    };
    let data = report.stage(Stage::State, open).await?;

    if config.gateway.ingress.is_some() {
        let address = within(Stage::Docker, docker::host_address(&engine)).await;
        let address = address.map_err(|error| StageError { stage: Stage::Docker, error })?;
        config.gateway = config.gateway.seeing_host_at(address);
    }
    let gateway = Gateway { host, engine: &engine, data: &data, config: &config.gateway };
    close_to_strangers(gateway).await;
    let updater = Updater { gateway, metadata, image: &config.image, lock };
    let record = updater.record().await?;
    let current = bring_up(report, updater, record, fetched).await;
    let again = async |record| bring_up(report, updater, record, None).await;
    let ended = update::run(report, updater, request, current, again).await;
    if is_up(&ended) {
        forget_stop_by_shield(host).await;
        if !config.approve.is_empty() {
            let approve = async { Ok(pair::approve_named(gateway, &config.approve, lock).await) };
            if let Err(error) = report.stage(Stage::Pairing, approve).await? {
                host.warn(one_line(&error));
            }
        }
    }
    serve(report, gateway, config.domain.as_ref(), ended).await
}

/// Whether the gateway runs, with the operator's settings or those before.
fn is_up(ended: &Result<Ready, StageError>) -> bool {
    ended.as_ref().map_or_else(|error| error.code() == Code::ConfigRefused, |_| true)
}

/// Serves the gateway at its domain, if it has one. What it lacks there is added to how it is.
async fn serve(
    report: &Report,
    gateway: Gateway<'_>,
    domain: Option<&Domain>,
    ended: Result<Ready, StageError>,
) -> Result<Ready, StageError> {
    let Gateway { host, data, .. } = gateway;
    if domain.is_none() && !proxy::exists(host) {
        return ended;
    }
    let served = match domain {
        // With an `openclaw.json` that cannot be read the proxy stays as it is, and so does one that was stopped.
        Some(domain) => match upstream(gateway).await {
            Ok(upstream) => Some((domain, upstream)),
            Err(_) => return ended,
        },
        None => None,
    };
    let is_other = match served {
        Some((domain, upstream)) => proxy::is_other(host, domain, upstream).await,
        None => true,
    };
    match proxy::decide(ended.as_ref().err().map(StageError::code), domain.is_some(), is_other) {
        proxy::Action::Leave => return ended,
        proxy::Action::Keep => {
            host.warn(format!(
                "openclaw-domain is gone, and its proxy serves on: the gateway may have its settings until a run \
                 succeeds. `sudo systemctl stop {PROXY_UNIT}` closes it now"
            ));
            return ended;
        }
        proxy::Action::Ensure => {}
    }
    let serve = async { Ok(proxy::ensure(host, served, data).await) };
    let lacks = report.stage(Stage::Proxy, serve).await?;
    match ended {
        Ok(mut ready) => {
            ready.degraded.extend(lacks);
            Ok(ready)
        }
        Err(error) => {
            for lack in lacks {
                host.warn(lack);
            }
            Err(error)
        }
    }
}

/// Stops a proxy that passes on what anybody says to a gateway that may believe it, before that one starts again.
async fn close_to_strangers(gateway: Gateway<'_>) {
    if proxy::exists(gateway.host)
        && gateway.may_believe_proxy().await.unwrap_or(false)
        && let Err(error) = proxy::stop(gateway.host).await
    {
        gateway.host.warn(one_line(&error));
    }
}

/// Where the gateway is: a run that failed may have left it at another port than the attribute's.
async fn upstream(gateway: Gateway<'_>) -> Result<Upstream> {
    let Gateway { engine, config, .. } = gateway;
    let published = gateway::published(engine).await.ok().flatten();
    Ok(Upstream {
        address: published.unwrap_or(SocketAddr::new(config.bind, config.port)),
        has_tls: gateway.has_tls().await?,
        may_believe_proxy: gateway.may_believe_proxy().await?,
    })
}

/// The engine, behind its shield. While a blank disk is read, the image is fetched that its state will need; where that
/// fails, the stage in its place tries again and says why.
async fn engine(
    host: &Host,
    metadata: &Client,
    report: &Report,
    config: &Config,
    instance: &Instance,
    is_blank: oneshot::Receiver<()>,
) -> Result<(Engine, Option<Image>), StageError> {
    let engine = report.stage(Stage::Docker, trusting_engine(host, config)).await?;
    let shield = shield_with_identity(host, metadata, instance, &engine, &config.gateway.metadata_access);
    report.stage(Stage::Shield, shield).await?;
    let mut fetched = None;
    if is_blank.await.is_ok()
        && let Ok(record) = Record::read(host, &DataDir::boot_disk()).await
    {
        let fetch = image::ensure(host, &engine, metadata, &config.image, &record);
        fetched = report.stage(Stage::Image, fetch).await.ok();
    }
    Ok((engine, fetched))
}

/// The shield, and then what stands in for the metadata server behind it. What is wrong with that opens nothing.
async fn shield_with_identity(
    host: &Host,
    metadata: &Client,
    instance: &Instance,
    engine: &Engine,
    access: &MetadataAccess,
) -> Result<()> {
    let prepared = identity::prepare(host, metadata, instance, engine, access).await;
    shield::ensure(host, access, identity::stand_in(host).await?).await?;
    let Some(identity) = prepared? else { return Ok(()) };
    identity::serve(host).await?;
    identity::check(host, metadata, &identity).await
}

/// The engine of a machine that trusts its operator's CAs. An engine reads the machine's store when it starts.
async fn trusting_engine(host: &Host, config: &Config) -> Result<Engine> {
    let is_changed = trust::ensure(host, &config.gateway.ca_certificates).await?;
    if !is_changed && config.gateway.ca_certificates.is_empty() {
        return docker::ensure(host, &config.docker).await;
    }
    let [unit] = systemd::show(host, [docker::UNIT]).await?;
    // A run that was cut may have changed them after the engine's start, too.
    let is_old = unit.active == "active" && (is_changed || is_older_than_trust(host, unit.main_pid).await);
    let engine = docker::ensure(host, &config.docker).await?;
    if !is_old {
        return Ok(engine);
    }
    if gateway::run_state(&engine).await? == RunState::Stopped {
        return docker::restart(host).await;
    }
    host.warn(
        "the engine knows of the changed openclaw-ca-certificates when it starts the next time, which would stop the \
         gateway now: until a reboot a registry that such a CA vouches for cannot be asked for another image",
    );
    Ok(engine)
}

/// Whether the engine, the process `pid`, started before the machine's store of CAs was last changed.
async fn is_older_than_trust(host: &Host, pid: Option<u32>) -> bool {
    let (Some(pid), Some(changed)) = (pid, trust::changed_at(host).await) else { return false };
    gateway::started_at(host, pid).await.is_some_and(|started| changed.duration_since(started) > START_PRECISION)
}

/// The checked attributes of this machine; what they mean is noted for the watcher, and for [`stop`] at the shutdown.
async fn configure(host: &Host, instance: &Instance) -> Result<Config> {
    Orders::leave_attributes(host, &instance.attributes).await?;
    let (config, warnings) = config::read(host, &instance.attributes.values).await?;
    if config.gateway.limits != Limits::default() {
        config::check_limits(config.gateway.limits, memory::total(host).await?)?;
    }
    for warning in warnings {
        host.warn(warning);
    }
    Orders::leave_config(host, &config).await?;
    let grace = if instance.spot { SPOT_GRACE_SECONDS } else { GRACE_SECONDS };
    tokio::fs::write(host.path(STOP_GRACE), grace.to_string()).await.context("noting the grace at shutdown")?;
    Ok(config)
}

/// Brings up the version that the state belongs to, from the image that was `fetched` already, if any, and makes the
/// state its own.
async fn bring_up(
    report: &Report,
    updater: Updater<'_>,
    mut record: Record,
    fetched: Option<Image>,
) -> Result<(Ready, Record), StageError> {
    let Updater { gateway, metadata, image: config, .. } = updater;
    let Gateway { host, engine, data, .. } = gateway;
    let (image, secrets) = tokio::join!(
        async {
            match fetched {
                Some(image) => Ok(image),
                None => report.stage(Stage::Image, image::ensure(host, engine, metadata, config, &record)).await,
            }
        },
        report.stage(Stage::Secrets, secrets::ensure(host, data, gateway.config, metadata)),
    );
    let (image, secrets) = (image?, secrets?);
    report.version(image.version.as_str());
    let ownership = Ownership { record: &mut record, lock: updater.lock };
    let refusal = report.stage(Stage::Gateway, gateway.ensure(&image, &secrets, Some(ownership))).await?;
    report.stage(Stage::Ready, updater.own(&image, &secrets, record, refusal)).await
}

/// Why the gateway is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// An operator wants it, or the system ends.
    Asked,
    /// The shield is not in force.
    Shield,
}

/// Stops the gateway with the grace that this kind of machine allows; fine when nothing runs.
pub async fn stop(host: &Host, metadata: &Client, cause: StopCause) -> Result<()> {
    if cause == StopCause::Shield {
        // Every moment counts, and nothing of this keeps the gateway from being stopped.
        let was_noted = host.path(STOPPED_BY_SHIELD).exists();
        let noted = tokio::fs::write(host.path(STOPPED_BY_SHIELD), "").await.context("noting why the gateway stops");
        let has_stopped = stop_gateway(host, cause).await?;
        if !has_stopped && !was_noted {
            // An operator had stopped it before.
            forget_stop_by_shield(host).await;
        }
        within_report_timeout(report::stopping(host, metadata)).await;
        return noted;
    }
    let is_by_hand = !systemd::is_ending(host).await;
    if !is_by_hand {
        let preemption = report::note_preemption(host, metadata);
        tokio::join!(within_report_timeout(report::stopping(host, metadata)), within_report_timeout(preemption));
    }
    let stopped = stop_gateway(host, cause).await;
    if !is_by_hand && let Err(error) = report::note_end(host, BootEnd::Clean).await {
        tracing::debug!("noting a clean shutdown: {error:#}");
    }
    stopped?;
    if is_by_hand {
        forget_stop_by_shield(host).await;
        let message = format!("the gateway was stopped by hand; `{RUN_AGAIN}` or a reboot starts it");
        within_report_timeout(report::stopped(host, metadata, &message)).await;
        proxy::stop(host).await?;
    }
    Ok(())
}

/// From now on the gateway runs, or is stopped, as somebody wants it.
async fn forget_stop_by_shield(host: &Host) {
    drop(tokio::fs::remove_file(host.path(STOPPED_BY_SHIELD)).await);
}

async fn within_report_timeout(report: impl Future<Output = Result<()>>) {
    match tokio::time::timeout(REPORT_TIMEOUT, report).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("reporting that the gateway stops: {error:#}"),
        Err(late) => tracing::debug!("reporting that the gateway stops: {late}"),
    }
}

/// True when it ran until then.
async fn stop_gateway(host: &Host, cause: StopCause) -> Result<bool> {
    let engine = match Engine::connect(docker::SOCKET).await {
        Ok(engine) => engine,
        Err(error) => {
            tracing::debug!("no engine, so no gateway to stop: {error:#}");
            return Ok(false);
        }
    };
    // No container that has the network outlives a broken shield, whether or not the next one can be stopped.
    let ended = if cause == StopCause::Shield { gateway::end_one_off(&engine).await } else { Ok(()) };
    let grace = match cause {
        // In a grace an agent would have the token of the VM's account.
        StopCause::Shield => 0,
        StopCause::Asked => {
            let noted = host.read(STOP_GRACE).await?.and_then(|bytes| String::from_utf8(bytes).ok());
            noted.and_then(|noted| noted.trim().parse().ok()).unwrap_or(SPOT_GRACE_SECONDS)
        }
    };
    let begun = Timestamp::now();
    let stopped = gateway::stop_with_grace(&engine, grace).await?;
    if let Some(Ended { code, .. }) = stopped {
        tracing::info!("stopped the gateway (exit code {code})");
    }
    ended.map(|()| stopped.is_some_and(|stopped| stopped.at >= Some(begun)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_started_before_the_cas_changed_is_known_as_old() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let now = jiff::Timestamp::now().as_second();
        let files = [("proc/stat", format!("btime {now}\n")), ("etc/openclaw-init/ca-certificates.pem", String::new())];
        // Hundredths of a second after the kernel.
        let starts = [(7, -1000), (8, 500)];
        let starts = starts
            .map(|(pid, at)| (format!("proc/{pid}/stat"), format!("{pid} (dockerd) S {}{at} 0", "0 ".repeat(18))));
        for (path, text) in files.map(|(path, text)| (path.to_owned(), text)).into_iter().chain(starts) {
            let path = root.path().join(path);
            path.parent().map(std::fs::create_dir_all).transpose()?;
            std::fs::write(path, text)?;
        }
        for (pid, expected) in [(Some(7), true), (Some(8), false), (Some(9), false), (None, false)] {
            assert_eq!(is_older_than_trust(&host, pid).await, expected, "{pid:?}");
        }
        Ok(())
    }
}
