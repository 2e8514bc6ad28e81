//! The table of contents: what happens at every boot, in this order.
//!
//! ```text
//! metadata - config
//!    |- swap
//!    |- disk ------ DataDir --+
//!    |- docker ---- Engine ---+- move - shield -+- image ----+
//!    |                                          +- secrets --+- gateway - ready - (update)
//! ```

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

use crate::docker::{Engine, RepositoryTrust};
use crate::failure::{Blame, Code};
use crate::host::Host;
use crate::metadata::Client;
use crate::record::Record;
use crate::report::{RUN_DIR, Ready, Report};
use crate::stage::{Failure, Stage, stage, within};
use crate::update::{Request, Wish};
use crate::{bake, disk, docker, gateway, image, report, secrets, shield, swap, units, update};

/// How long the metadata server may keep us waiting.
const METADATA_DEADLINE: Duration = Duration::from_secs(120);

/// The whole run; `TimeoutStartSec=` of the unit is above it.
const RUN_DEADLINE: Duration = Duration::from_secs(55 * 60);

/// Grace for the gateway at shutdown. Compute Engine gives a Spot VM 30 s, any other 90 s
/// (cloud.google.com/compute/docs/shutdownscript); Docker and the system need the rest.
const SPOT_GRACE_SECONDS: u32 = 25;
const GRACE_SECONDS: u32 = 80;
const GRACE_FILE: &str = "/run/openclaw-init/stop-grace-seconds";

/// How long the shutdown may wait for the metadata server.
const TELLING_LIMIT: Duration = Duration::from_secs(2);

/// Who starts another run when this one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tries {
    /// Nobody: started by hand.
    Once,
    /// systemd, as often as the unit says.
    Unit,
}

/// Brings the gateway up and reports how it went. The outer error is a machine on which not even a run
/// can start; the inner one is what the report says.
pub async fn boot(host: &Host, metadata: Client, tries: Tries) -> Result<Result<Ready, Failure>> {
    let _only_run = only_run(host).await?;
    let request = Request::take(host).await?;
    let report = Report::start(host, metadata.clone()).await?;
    let run = stages(host, &metadata, &report, request.as_ref());
    let outcome = match tokio::time::timeout(RUN_DEADLINE, run).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(Failure { stage: report.current_stage(), error: anyhow!("the run did not end within 55 minutes") })
        }
    };
    let last_try = match tries {
        Tries::Once => true,
        Tries::Unit => units::is_last_try(host).await,
    };
    report.finish(&outcome, last_try).await;
    Ok(outcome)
}

async fn stages(host: &Host, metadata: &Client, report: &Report, request: Option<&Request>) -> Result<Ready, Failure> {
    let instance = stage(report, Stage::Metadata, metadata.instance(METADATA_DEADLINE)).await?;
    report.instance(&instance);
    let config = stage(report, Stage::Config, async {
        let (config, warnings) = bake::configure(host, &instance.attributes).await?;
        for warning in warnings {
            host.warn(warning);
        }
        let grace = if instance.spot { SPOT_GRACE_SECONDS } else { GRACE_SECONDS };
        tokio::fs::write(host.path(GRACE_FILE), grace.to_string()).await.context("noting the grace at shutdown")?;
        Ok(config)
    })
    .await?;
    report.run_id(config.run_id.clone());

    // Each reaches a clean point, whatever becomes of the others.
    let (swap, data, engine) = tokio::join!(
        stage(report, Stage::Swap, async {
            swap::ensure(host, config.swap).await;
            Ok(())
        }),
        stage(report, Stage::Disk, disk::ensure(host, &config.disk, &instance)),
        stage(report, Stage::Docker, async {
            docker::ensure(host, &config.docker, &RepositoryTrust::of(host).await?).await
        }),
    );
    let ((), data, engine) = (swap?, data?, engine?);
    stage(report, Stage::Move, async {
        disk::move_in(host, &data, &instance, async || gateway::halt(host, &engine).await).await
    })
    .await?;

    stage(report, Stage::Shield, shield::ensure(host, config.metadata_access)).await?;
    let machine = update::Machine { host, engine: &engine, metadata, data: &data, config: &config };
    settle(machine, None).await?;
    let present = bring_up(report, machine).await;

    let Some(wish) = asked(machine, request, &present).await? else { return present };
    let stopped = OnceLock::new();
    match stage(report, Stage::Update, update::run(machine, &wish, &stopped)).await {
        Ok((ready, told)) => {
            report.update(told);
            Ok(ready)
        }
        Err(failure) => {
            settle(machine, Some((&wish, &failure))).await?;
            let message = failure.sentence();
            host.warn(&message);
            let present = bring_up(report, machine).await;
            let downtime_ms = stopped.get().filter(|_| present.is_ok()).map(|since| report::millis(since.elapsed()));
            report.update(report::Update { message, code: Some(failure.code().name().to_owned()), downtime_ms });
            present
        }
    }
}

/// Ends what an update left half done, so that the state has one owner.
async fn settle(machine: update::Machine<'_>, failed: Option<(&Wish, &Failure)>) -> Result<(), Failure> {
    let settled = within(Stage::Update, update::settle(machine, failed)).await;
    settled.map_err(|error| Failure { stage: Stage::Update, error })
}

/// What is asked for once the state's owner was brought up: also when that did not become ready, since another
/// version may be the way out.
async fn asked(
    machine: update::Machine<'_>,
    request: Option<&Request>,
    present: &Result<Ready, Failure>,
) -> Result<Option<Wish>, Failure> {
    if present.as_ref().is_err_and(|failure| !matches!(failure.stage, Stage::Gateway | Stage::Ready)) {
        return Ok(None);
    }
    let record = Record::read(machine.host, machine.data).await;
    let record = record.map_err(|error| Failure { stage: Stage::Update, error })?;
    Ok(update::asked(request, &machine.config.image, &record))
}

/// Brings up the version that the state belongs to.
async fn bring_up(report: &Report, machine: update::Machine<'_>) -> Result<Ready, Failure> {
    let update::Machine { host, engine, metadata, data, config } = machine;
    let record = Record::read(host, data).await.map_err(|error| Failure { stage: Stage::Image, error })?;
    let (image, secrets) = tokio::join!(
        stage(report, Stage::Image, image::ensure(host, engine, metadata, &config.image, &record)),
        stage(report, Stage::Secrets, secrets::ensure(host, data, &config.gateway)),
    );
    let (image, secrets) = (image?, secrets?);
    stage(report, Stage::Gateway, gateway::ensure(host, engine, &image, data, &secrets, &config.gateway)).await?;
    stage(report, Stage::Ready, async {
        let ready = gateway::wait_ready(host, engine, &image, &secrets, &config.gateway).await?;
        let record = record.owned_by(&image, &config.image);
        record.write(host, data).await?;
        if [Stage::Image, Stage::Update].iter().any(|stage| host.changed_in(*stage)) {
            image::prune(host, engine, &record.images(&image)).await;
        }
        Ok(ready)
    })
    .await
}

/// Stops the gateway with the grace that this kind of machine allows; fine when nothing runs.
pub async fn stop(host: &Host, metadata: &Client) -> Result<()> {
    match tokio::time::timeout(TELLING_LIMIT, report::stopping(host, metadata)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("telling that the gateway stops: {error:#}"),
        Err(late) => tracing::debug!("telling that the gateway stops: {late}"),
    }
    let grace = host.read(GRACE_FILE).await?.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse().ok());
    let engine = match Engine::connect(docker::SOCKET).await {
        Ok(engine) => engine,
        Err(error) => {
            tracing::debug!("no engine, so no gateway to stop: {error:#}");
            return Ok(());
        }
    };
    if let Some(code) = gateway::stop(&engine, grace.unwrap_or(SPOT_GRACE_SECONDS)).await? {
        tracing::info!("stopped the gateway (exit code {code})");
    }
    Ok(())
}

/// One run at a time, whoever starts it, and only as root.
pub(crate) async fn only_run(host: &Host) -> Result<Flock<std::fs::File>> {
    if !nix::unistd::geteuid().is_root() {
        return Err(anyhow!("this user is not root"))
            .blame(Code::UnsupportedSystem, "Run the same command as root, with sudo.");
    }
    let path = host.path(RUN_DIR).join("lock");
    std::fs::create_dir_all(host.path(RUN_DIR)).with_context(|| format!("making {RUN_DIR}"))?;
    let file = std::fs::File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => return Ok(held),
        Err((file, _)) => file,
    };
    tracing::info!("another run is in progress (openclaw-init status --wait follows it), waiting for its end");
    tokio::task::spawn_blocking(|| Flock::lock(file, FlockArg::LockExclusive))
        .await?
        .map_err(|(_, errno)| errno)
        .context("waiting for the other run")
}
