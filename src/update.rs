//! Another version in the place of the current one, with a way back: image and state go together.
//!
//! The new image, and most of the safety copy of the state, are made while the current gateway runs. Then the gateway
//! stops, the copy is made exact, and the new version starts on the state itself. If it does not become ready, or the
//! machine is cut before that, [`state::recover()`] puts the copy in the place of the state, and the version before
//! runs again. A replaced state is renamed aside, never deleted; only a copy that a later update superseded is removed.

mod forward;
mod request;
mod target;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};
use jiff::Timestamp;

use crate::config::ImageConfig;
use crate::error::{Classify as _, Code, StageError, what};
use crate::gateway::{self, Gateway, Ownership, Secrets, secrets};
use crate::image::{self, Image};
use crate::lock::RunLock;
use crate::metadata::Client;
use crate::report::{self, Ready, Report, UpdateReport};
use crate::stage::{Stage, within};
use crate::state::{self, Owner, Purpose, Record, Refusal};
use crate::text::{age, join_paths, minutes};
use crate::version::GatewayVersion;

pub use request::Request;
use target::{Target, decide_target, held};

/// What brings a machine to a version.
#[derive(Debug, Clone, Copy)]
pub struct Updater<'a> {
    /// The gateway and what it runs on.
    pub gateway: Gateway<'a>,
    /// For the service account that pulls images.
    pub metadata: &'a Client,
    /// Which image, from where.
    pub image: &'a ImageConfig,
    /// Held: records are written.
    pub lock: &'a RunLock,
}

/// The moment from which no gateway answered, carried by the error of what stopped it.
#[derive(Debug, Clone, Copy)]
struct StoppedAt(Instant);

impl fmt::Display for StoppedAt {
    /// Nothing: the sentence is the error's own.
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// Does the update or rollback that is asked for, if any. `current` is the outcome of bringing up the version that the
/// state belongs to. What fails is undone, and `bring_up` brings that version up again.
pub async fn run(
    report: &Report,
    on: Updater<'_>,
    request: Option<&Request>,
    current: Result<(Ready, Record), StageError>,
    bring_up: impl AsyncFn(Record) -> Result<(Ready, Record), StageError>,
) -> Result<Ready, StageError> {
    let record = match &current {
        Ok((_, record)) => record.clone(),
        // Another version may be the way out for a gateway that does not become ready.
        Err(error) if matches!(error.stage, Stage::Gateway | Stage::Ready) => on.record().await?,
        Err(_) => return current.map(|(ready, _)| ready),
    };
    let Some(target) = decide_target(request, on.image, &record) else { return current.map(|(ready, _)| ready) };
    match report.stage(Stage::Update, on.carry_out(&target, record)).await {
        Ok((ready, update)) => {
            report.update(update);
            if current.is_err_and(|error| error.code() == Code::ConfigRefused) {
                // What the version before refused may be right for this one.
                return bring_up(on.record().await?).await.map(|(ready, _)| ready);
            }
            Ok(ready)
        }
        Err(error) => {
            on.undo(&target, &error).await?;
            let message = error.sentence();
            on.gateway.host.warn(&message);
            let restored = bring_up(on.record().await?).await;
            let stopped = error.error.downcast_ref().filter(|_| restored.is_ok());
            let downtime_ms = stopped.map(|StoppedAt(since)| report::millis(since.elapsed()));
            report.update(UpdateReport { message, code: Some(error.code().into()), downtime_ms });
            restored.map(|(ready, _)| ready)
        }
    }
}

impl Updater<'_> {
    /// The record of the state. Warns while an attribute asks for what was refused or undone before.
    pub async fn record(&self) -> Result<Record, StageError> {
        let Gateway { host, data, .. } = self.gateway;
        let record = Record::read(host, data).await.map_err(|error| StageError { stage: Stage::State, error })?;
        if let Some(warning) = held(self.image, &record) {
            host.warn(warning);
        }
        Ok(record)
    }

    /// Waits until the gateway of `image` is ready, and makes the state its own. If an image was made, or the boot disk
    /// is nearly full, those that nothing needs any more are removed. `refusal`: why the operator's settings are not
    /// those of the gateway.
    pub async fn own(
        &self,
        image: &Image,
        secrets: &Secrets,
        mut record: Record,
        refusal: Option<Error>,
    ) -> Result<(Ready, Record)> {
        let Gateway { host, engine, data, .. } = self.gateway;
        let ownership = Ownership { record: &mut record, lock: self.lock };
        let (mut ready, undone) = self.gateway.settle(image, secrets, ownership).await?;
        let mut record = record.owned_by(image, self.image);
        self.take_stock(&mut record, &mut ready).await?;
        self.gateway.warn_if_exposed().await;
        if refusal.is_none() && undone.is_none() {
            record.refused_container = None;
        }
        record.write(host, data, self.lock).await?;
        let is_made = [Stage::Image, Stage::Update].iter().any(|stage| host.changed_in(*stage));
        if is_made || image::is_prune_wanted(host).await {
            image::prune(host, engine, &record.images(image)).await;
        }
        match refusal.or(undone) {
            Some(refusal) => Err(refusal),
            None => Ok((ready, record)),
        }
    }

    /// Compares what the gateway has with what it had when it was last ready. What is gone is missed until it is back,
    /// or until `openclaw.json` does not ask for it any more.
    async fn take_stock(&self, record: &mut Record, ready: &mut Ready) -> Result<()> {
        let before = record.plugins.union(&record.lost_plugins).cloned().collect();
        let Some((inventory, lacks)) = self.gateway.stock(&before).await? else { return Ok(()) };
        ready.degraded.extend(lacks.sentences());
        (record.plugins, record.lost_plugins) = (inventory.plugins, lacks.plugins);
        Ok(())
    }

    /// Returns how the other version is, and what to report. An error before the current gateway is stopped leaves
    /// everything as it is; after any error [`Updater::undo`] must follow.
    async fn carry_out(&self, target: &Target, record: Record) -> Result<(Ready, UpdateReport)> {
        match target {
            Target::Update { to: None, choice } => {
                let owner = record.owner.version().filter(|_| choice.is_some());
                let desired = owner.map(|owner| self.image.clone().of_owner(owner));
                self.forward(record, desired.as_ref().unwrap_or(self.image), choice.clone()).await
            }
            Target::Update { to: Some(version), .. } => {
                let desired = self.image.clone().of_version(version.clone());
                self.forward(record, &desired, None).await
            }
            Target::Rollback { set_newer_state_aside } => self.back(record, *set_newer_state_aside).await,
        }
    }

    async fn undo(&self, target: &Target, error: &StageError) -> Result<(), StageError> {
        let Gateway { host, engine, data, .. } = self.gateway;
        let choice = match target {
            Target::Update { choice, .. } => choice.clone(),
            Target::Rollback { .. } => None,
        };
        let refusal = Refusal { choice, is_permanent: error.code().is_permanent(), why: what(&error.error) };
        let stop = async || gateway::remove(host, engine).await;
        let recovered = state::recover(host, data, Some(&refusal), self.lock, &stop);
        within(Stage::Update, recovered).await.map_err(|error| StageError { stage: Stage::Update, error })
    }

    async fn back(&self, record: Record, set_newer_state_aside: bool) -> Result<(Ready, UpdateReport)> {
        let Gateway { host, engine, data, .. } = self.gateway;
        let newer = &record.owner;
        let previous = record.previous.as_deref().ok_or_else(|| anyhow!("no update is known that could be taken back"));
        let previous =
            previous.classify(Code::UpdateFailed, "A version's state is kept from its update to the next one.")?;
        let older = &previous.record.owner;
        let choice = self.image.choice().or_else(|| record.choice.clone());
        let prepared = previous.copy.prepared(data, Record { choice, ..previous.record.clone() })?;
        if !host.path(&prepared.state).is_dir() {
            return Err(anyhow!("the state that OpenClaw {older} had is gone from {}", prepared.state.display()))
                .classify(Code::UpdateFailed, "Restore a backup of that version instead.");
        }
        if !set_newer_state_aside {
            return refuse_back(newer, older, previous.of);
        }
        let image = image::ensure(host, engine, self.metadata, self.image, &previous.record).await?;
        let stopped = StoppedAt(Instant::now());
        let went = async {
            gateway::remove(host, engine).await?;
            let aside = state::switch::replace(host, data, Purpose::Rollback, &prepared, self.lock).await?;
            state::publish(host, data).await?;
            let secrets = secrets::ensure(host, data, self.gateway.config, self.metadata).await?;
            let mut ready = self.bring_up(&image, &secrets).await?;
            let mut record = Record::read(host, data).await?;
            self.take_stock(&mut record, &mut ready).await?;
            record.write(host, data, self.lock).await?;
            Ok((ready, aside))
        };
        let (ready, aside) = went.await.map_err(|error: anyhow::Error| error.context(stopped))?;
        let message =
            format!("went back from OpenClaw {newer} to {older}; the newer state is now {}", join_paths(&aside));
        Ok((ready, report_of(&message, stopped.0.elapsed())))
    }

    /// Makes the gateway of `image` run on the state and waits until it is ready.
    async fn bring_up(&self, image: &Image, secrets: &Secrets) -> Result<Ready> {
        // The operator's settings are those of the version before until this one is ready.
        self.gateway.ensure(image, secrets, None).await?;
        self.gateway.wait_settled(image, secrets).await
    }
}

fn refuse_back<T>(newer: &Owner, older: &Owner, of: Timestamp) -> Result<T> {
    let what = anyhow!(
        "this restores OpenClaw {older} with its state of {} ({} ago); what OpenClaw {newer} has written since then goes \
         out of use",
        minutes(of),
        age(of, Timestamp::now())
    );
    Err(what).classify(
        Code::UpdateFailed,
        "Nothing was changed. If this is wanted, run `sudo openclaw-init rollback --set-newer-state-aside`: the \
         newer state is renamed, not deleted.",
    )
}

fn refuse_older(version: &GatewayVersion, owner: &Owner) -> Result<()> {
    if owner.version().is_some_and(|owner| version.is_older_than(owner)) {
        return Err(anyhow!("OpenClaw {version} is older than {owner}, whose state it cannot read")).classify(
            Code::UpdateFailed,
            "To go back to the version before the last update, run `sudo openclaw-init rollback`.",
        );
    }
    Ok(())
}

fn report_of(message: &str, down: Duration) -> UpdateReport {
    let message = format!("{message}; no gateway answered for {:.1} s", down.as_secs_f32());
    UpdateReport { message, code: None, downtime_ms: Some(report::millis(down)) }
}
