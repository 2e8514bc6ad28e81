//! To another version: image and safety copy while the gateway runs, then the switch-over, then undone or accepted.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;

use super::{StoppedAt, Updater, refuse_older, report_of};
use crate::config::ImageConfig;
use crate::error::{Classify as _, Code, what};
use crate::gateway::{self, Gateway, Secrets, secrets};
use crate::host::Host;
use crate::image::{self, Image};
use crate::report::{Ready, UpdateReport};
use crate::state::copy::{self, Original};
use crate::state::{self, DataDir, Operation, Phase, Previous, Record, SafetyCopy, Update, room};
use crate::text::file_time;

/// The check that fails while the gateway refuses an agent's database; the agent's name follows.
const AGENT_DATABASE: &str = "agent-database";

/// What to do when there is no room for the safety copy.
const MAKE_ROOM: &str = "Grow the disk with `gcloud compute disks resize DISK --size=SIZE --zone=ZONE` (it is in use at the \
    next boot), or remove a state that was renamed aside (`openclaw.before-*` beside the state directory).";

impl Updater<'_> {
    /// `choice`: the attribute's value that asks for it; `None` when an operator did.
    pub(super) async fn forward(
        &self,
        record: Record,
        desired: &ImageConfig,
        choice: Option<String>,
    ) -> Result<(Ready, UpdateReport)> {
        let Gateway { host, engine, data, .. } = self.gateway;
        let image = self.new_image(&record, desired).await?;
        let secrets = secrets::ensure(host, data, self.gateway.config, self.metadata).await?;
        if record.image.as_ref().is_some_and(|current| current.reference == image.base.reference) {
            return self.stay(record, &image, &secrets).await;
        }
        let former = image::ensure(host, engine, self.metadata, self.image, &record).await?;
        let record = self.with_plugins_of_now(record).await?;
        let mut update = begin(data, &record, &image, choice)?;
        Operation::Update(update.clone()).write(host, data, self.lock).await?;
        sync(host, data, &update.copy, Original::InUse).await?;

        let (stopped, of) = (StoppedAt(Instant::now()), Timestamp::now());
        let switched = self.switch_over(&mut update, &record, &image, &secrets).await;
        let (mut ready, lost) = switched.map_err(|error| error.context(stopped))?;
        let down = stopped.0.elapsed();
        let without = if lost.is_empty() { String::new() } else { format!(" without {}", names(&lost)) };
        let from = record.owner.clone();
        let previous = Previous {
            record: Record { previous: None, refused: None, interrupted: None, ..record },
            image: former.reference,
            copy: update.copy.clone(),
            of,
        };
        self.accept(&update, previous, &image, desired, &mut ready).await?;
        let message = format!("updated OpenClaw {from} to {}{without}", image.version);
        host.changed(&message);
        Ok((ready, report_of(&message, down)))
    }

    /// The image of the other version, made while the current gateway runs. An older version is refused before and
    /// after: some images have no known version until they are on the machine.
    async fn new_image(&self, record: &Record, desired: &ImageConfig) -> Result<Image> {
        let Gateway { host, engine, data, .. } = self.gateway;
        if let Some(version) = desired.known_version() {
            refuse_older(version, &record.owner)?;
        }
        require_room(host, data).await?;
        let image = image::ensure(host, engine, self.metadata, desired, &Record::default()).await?;
        refuse_older(&image.version, &record.owner)?;
        Ok(image)
    }

    /// The version is the current one: the choice is recorded, and the gateway stays.
    async fn stay(&self, record: Record, image: &Image, secrets: &Secrets) -> Result<(Ready, UpdateReport)> {
        let Gateway { host, data, .. } = self.gateway;
        let message = format!("OpenClaw {} is the current version already", image.version);
        let choice = self.image.choice();
        let mut record = Record { choice, refused: None, interrupted: None, ..record };
        record.write(host, data, self.lock).await?;
        let mut ready = self.bring_up(image, secrets).await?;
        self.take_stock(&mut record, &mut ready).await?;
        record.write(host, data, self.lock).await?;
        Ok((ready, UpdateReport { message, code: None, downtime_ms: None }))
    }

    /// The record with what the present gateway has loaded, if it runs: it may have begun anew since it was ready.
    async fn with_plugins_of_now(&self, record: Record) -> Result<Record> {
        let inventory = self.gateway.take_inventory().await?;
        let plugins = inventory.map_or(record.plugins, |inventory| inventory.plugins);
        Ok(Record { plugins, ..record })
    }

    /// Stops the gateway, makes the safety copy exact, and starts the new version on the state. Returns also the
    /// plugins without which it is taken.
    async fn switch_over(
        &self,
        update: &mut Update,
        record: &Record,
        image: &Image,
        secrets: &Secrets,
    ) -> Result<(Ready, BTreeSet<String>)> {
        let Gateway { host, engine, data, .. } = self.gateway;
        gateway::remove(host, engine).await?;
        // What had a lease is copied now: no process of the gateway's is left.
        sync(host, data, &update.copy, Original::AtRest).await?;
        verify(host, data, &update.copy).await?;
        update.phase = Phase::Starting;
        Operation::Update(update.clone()).write(host, data, self.lock).await?;
        let started = self.start(image, secrets).await;
        let ready = started
            .map_err(|error| anyhow!("OpenClaw {} did not become ready: {}", image.version, what(&error)))
            .classify(Code::UpdateFailed, "The version before runs again; choose another one.")?;
        self.compare(ready, record, image, secrets).await
    }

    /// The new version must load what the one before had loaded and `openclaw.json` asks for, unless the operator takes
    /// the loss. A second start tells a plugin that does not load from one that stumbled.
    async fn compare(
        &self,
        ready: Ready,
        record: &Record,
        image: &Image,
        secrets: &Secrets,
    ) -> Result<(Ready, BTreeSet<String>)> {
        let Gateway { host, engine, .. } = self.gateway;
        let lost = self.gateway.lost(&record.plugins).await?;
        if lost.is_empty() || self.image.accepts_loss {
            return Ok((ready, lost));
        }
        tracing::info!("OpenClaw {} does not load {}: starting it again", image.version, names(&lost));
        gateway::remove(host, engine).await?;
        let ready = accept_ready(self.bring_up(image, secrets).await)?;
        let lost = self.gateway.lost(&record.plugins).await?;
        if lost.is_empty() {
            return Ok((ready, lost));
        }
        let what = anyhow!(
            "OpenClaw {} does not load {}, which OpenClaw {} had loaded and openclaw.json asks for",
            image.version,
            names(&lost),
            record.owner
        );
        Err(what).classify(
            Code::UpdateFailed,
            "The version before runs again. To do without it, set openclaw-update-accept=loss, then run \
             `sudo openclaw-init update`.",
        )
    }

    /// Starts the new version. If it asks for its doctor, it gets it once.
    async fn start(&self, image: &Image, secrets: &Secrets) -> Result<Ready> {
        let Gateway { host, engine, .. } = self.gateway;
        let error = match accept_ready(self.bring_up(image, secrets).await) {
            Ok(ready) => return Ok(ready),
            Err(error) if gateway::asks_for_doctor(engine).await => error,
            Err(error) => return Err(error),
        };
        tracing::info!("the gateway asks for its doctor: {error:#}");
        gateway::remove(host, engine).await?;
        self.gateway.doctor(image, secrets).await?;
        accept_ready(self.bring_up(image, secrets).await)
    }

    /// The new version owns the state; the safety copy of an earlier update goes.
    async fn accept(
        &self,
        update: &Update,
        previous: Previous,
        image: &Image,
        desired: &ImageConfig,
        ready: &mut Ready,
    ) -> Result<()> {
        let Gateway { host, engine, data, .. } = self.gateway;
        let Record { settings, approved, lost_plugins, .. } = previous.record.clone();
        let lost_plugins = if self.image.accepts_loss { BTreeSet::new() } else { lost_plugins };
        let record = Record { previous: Some(Box::new(previous)), settings, approved, ..Record::default() };
        let record = record.owned_by(image, desired);
        let mut record = Record { choice: self.image.choice(), lost_plugins, ..record };
        self.take_stock(&mut record, ready).await?;
        record.write(host, data, self.lock).await?;
        state::accept(host, data, update, self.lock).await?;
        image::prune(host, engine, &record.images(image)).await;
        Ok(())
    }
}

fn names(plugins: &BTreeSet<String>) -> String {
    plugins.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Refuses a version that refuses an agent's database, which was fine before. A channel may be broken in any version.
fn accept_ready(started: Result<Ready>) -> Result<Ready> {
    let ready = started?;
    let refused: Vec<&str> =
        ready.degraded.iter().map(String::as_str).filter(|check| check.starts_with(AGENT_DATABASE)).collect();
    if !refused.is_empty() {
        bail!("the gateway runs, but refuses {}", refused.join(", "));
    }
    Ok(ready)
}

/// An update to `image` with a safety copy that does not exist yet.
fn begin(data: &DataDir, record: &Record, image: &Image, choice: Option<String>) -> Result<Update> {
    let since = Timestamp::now();
    let named = |directory: &std::path::Path| {
        let name = directory.file_name().and_then(|name| name.to_str()).context("a directory without a name")?;
        anyhow::Ok(format!("{name}.before-update-{}", file_time(since)))
    };
    Ok(Update {
        phase: Phase::Copying,
        from: record.owner.version().cloned(),
        to: image.version.clone(),
        choice,
        copy: SafetyCopy { state: named(&data.state)?, config: named(&data.config)? },
        superseded: record.previous.as_ref().map(|previous| previous.copy.clone()),
        since,
    })
}

/// The disk must hold the state and what belongs to it a second time.
async fn require_room(host: &Host, data: &DataDir) -> Result<()> {
    let (needed, free) = (copy_size(host, data).await?, room::free(host, &data.records).await?);
    room::require(needed, free, "a copy of the state", "its disk", MAKE_ROOM)
}

async fn copy_size(host: &Host, data: &DataDir) -> Result<room::Size> {
    Ok([room::of(host, &data.state).await?, room::of(host, &data.config).await?].into_iter().sum())
}

/// Makes the safety copy equal to the current data, as far as files with a lease allow while it is in use.
async fn sync(host: &Host, data: &DataDir, copy: &SafetyCopy, original: Original) -> Result<()> {
    for (directory, name) in [(&data.state, &copy.state), (&data.config, &copy.config)] {
        let copy::SyncStats { copied, bytes, leased, .. } =
            copy::sync(host, directory, &data.beside(name)?, original).await?;
        let count = leased.count;
        tracing::debug!("copied {copied} files of {}, {bytes} bytes, {count} leased", directory.display());
    }
    host.changed(format!("copied {} to {}", data.state.display(), copy.state));
    Ok(())
}

/// Compares the safety copy with the current data, both at rest.
async fn verify(host: &Host, data: &DataDir, copy: &SafetyCopy) -> Result<()> {
    copy::verify(host, &data.state, &data.beside(&copy.state)?).await?;
    copy::verify(host, &data.config, &data.beside(&copy.config)?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_safety_copy_needs_room_for_both_directories_at_once() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, data) = (Host::new(root.path()), DataDir::at("/data", false));
        for directory in [&data.state, &data.config] {
            std::fs::create_dir_all(host.path(directory))?;
            std::fs::write(host.path(directory).join("file"), vec![1; 1 << 20])?;
        }
        let needed = copy_size(&host, &data).await?;
        assert!(needed.bytes >= 2 << 20 && needed.inodes == 4, "{needed:?}");
        Ok(())
    }
}
