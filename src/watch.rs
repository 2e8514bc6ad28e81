//! Between two runs: the machine is watched, its state is told, and what a run can heal starts one.
//!
//! The watcher does no work of its own. It waits for the engine's events, for a change of the attributes, and for the
//! next minute; then it looks, and [`decide()`] says what that means. All work is in `openclaw-init.service`.

mod attributes;
mod decide;
mod events;
mod look;
mod orders;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::gateway::{Health, live};
use crate::host::{Host, uptime};
use crate::metadata::Client;
use crate::paths::{BOOT_UNIT, HUNG};
use crate::report::{LiveReport, Saying, Status};
use crate::systemd;
use crate::update::Request;

use decide::{Cause, Memory, Moment, Start, decide};
use events::Events;
use look::Eyes;
pub use orders::Orders;

/// How often the machine is looked at when nothing happens.
const TICK: Duration = Duration::from_secs(50);

/// Events come in groups: the machine is looked at when they are over.
const EVENTS_INTERVAL: Duration = Duration::from_secs(5);

/// How long the attributes may take when somebody waits for them.
const ATTRIBUTES_TIMEOUT: Duration = Duration::from_secs(2);

/// The machine as one look sees it.
#[derive(Debug, Clone)]
pub struct Now {
    /// A run is at work or waits for its next try, or the engine starts or stops.
    pub is_busy: bool,
    /// What is so other than the run said at its end.
    pub saying: Option<Saying>,
    /// Who has asked to be paired lately: `ID from ADDRESS`.
    pub asking: Vec<String>,
    /// Where the gateway is published on the VM.
    pub address: Option<SocketAddr>,
    /// The version that the gateway says it has.
    pub version: Option<String>,
    /// When its container last started or ended.
    pub changed_at: Option<Timestamp>,
}

/// How the machine is now, after the run that left `status`: by the same eyes and the same judgement as the watcher's,
/// without its memory. Nothing is changed, and no lock is waited for.
pub async fn now(host: &Host, metadata: &Client, status: &Status) -> Result<Now> {
    let asked = tokio::time::timeout(ATTRIBUTES_TIMEOUT, metadata.wait_for_change(None, Duration::ZERO)).await;
    let answered = asked.ok().and_then(Result::ok);
    let attributes = answered.map(|answered| attributes::Believed { attributes: answered.attributes, at: uptime() });
    let mut eyes = Eyes::in_a_hurry(host, metadata.clone());
    let sight = eyes.glance(status, attributes.as_ref()).await.context("looking at the machine")?;
    let version = match &sight.health {
        Some(Health::Ready { version, .. } | Health::Unhealthy { version, .. }) => version.clone(),
        _ => None,
    };
    let changed_at = match eyes.engine() {
        Some(engine) => live::changed_at(engine).await?,
        None => None,
    };
    let address = Orders::read(host).await?.and_then(|orders| orders.published).map(SocketAddr::from);
    let saying = decide::now(&sight);
    Ok(Now { is_busy: sight.is_busy, saying, asking: sight.asking, address, version, changed_at })
}

/// Watches until the process is ended.
pub async fn run(host: &Host, metadata: Client) -> Result<()> {
    let (engine_is_up, engine) = watch::channel(false);
    let (attributes, believed) = watch::channel(None);
    let events = Notify::new();
    notify(NotifyState::Ready)?;
    tokio::select! {
        ended = watch(host, metadata.clone(), &engine_is_up, &events, believed) => ended,
        () = events::follow(host, engine, &events) => Ok(()),
        () = attributes::follow(host, &metadata, &attributes) => Ok(()),
    }
}

async fn watch(
    host: &Host,
    metadata: Client,
    engine_is_up: &watch::Sender<bool>,
    events: &Events,
    mut attributes: watch::Receiver<Option<attributes::Believed>>,
) -> Result<()> {
    let mut eyes = Eyes::new(host, metadata.clone());
    let (mut memory, mut report) = (Memory::default(), LiveReport::new(host, metadata));
    let begun = Instant::now();
    loop {
        notify(NotifyState::Watchdog)?;
        let mut pause = TICK;
        if Orders::are_on(host).await {
            let believed = attributes.borrow_and_update().clone();
            let now = Moment { elapsed: begun.elapsed(), time: Timestamp::now() };
            match round(&mut eyes, &mut memory, &mut report, believed.as_ref(), now).await {
                Ok(next) => pause = next,
                Err(error) => tracing::warn!("looking at the machine: {error:#}"),
            }
            engine_is_up.send_replace(eyes.engine().is_some());
        }
        tokio::select! {
            () = tokio::time::sleep(pause.min(TICK)) => {}
            () = events.notified() => tokio::time::sleep(EVENTS_INTERVAL).await,
            changed = attributes.changed() => changed.context("the attributes are not followed any more")?,
        }
    }
}

/// One look and what follows from it. Returns when the next one is due.
async fn round(
    eyes: &mut Eyes<'_>,
    memory: &mut Memory,
    report: &mut LiveReport,
    attributes: Option<&attributes::Believed>,
    now: Moment,
) -> Result<Duration> {
    let sight = eyes.look(attributes, now.elapsed).await?;
    let decision = decide(&sight, memory, now);
    let mut next = decision.next;
    if !sight.is_busy {
        let unsaid = report
            .tell(decision.saying.as_ref(), &sight.asking, sight.run)
            .await
            .context("telling how the gateway is")?;
        next = next.min(unsaid.unwrap_or(next));
    }
    if let Some(start) = decision.start
        && start_run(eyes.host(), &start).await?
    {
        memory.started(start.cause, now);
    }
    Ok(next.max(Duration::from_secs(1)))
}

/// Has the unit run. False when a run is at work or something else waits for one.
async fn start_run(host: &Host, start: &Start) -> Result<bool> {
    let request = Request::Repair { reason: start.reason.clone() };
    if !request.leave_if_idle(host).await? {
        return Ok(false);
    }
    if start.cause == Cause::Hung {
        tokio::fs::write(host.path(HUNG), "").await.context("noting that the gateway hangs")?;
    }
    tracing::info!("starting {BOOT_UNIT}: {}", start.reason);
    systemd::start_without_waiting(host, BOOT_UNIT).await?;
    Ok(true)
}

fn notify(state: NotifyState<'_>) -> Result<()> {
    sd_notify::notify(&[state]).context("telling systemd")
}
