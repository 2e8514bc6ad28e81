//! Another version in the place of the present one, with a way back: image and state go together.
//!
//! The new image is made while the present gateway runs, and so is most of the copy of the state. Then the
//! gateway stops, the copy is made exact, and the new version starts on the state itself. When it does not
//! become ready, or the machine is cut before it is, [`settle`] puts the copy in the place of the state, and the
//! version before runs again. What gives way is renamed aside, never deleted; only a copy that a later update
//! has superseded is removed.

mod copy;
mod ending;
mod journal;
mod request;
pub(crate) mod version;
mod wish;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use jiff::Timestamp;

use crate::config::{Config, ImageConfig};
use crate::disk::{self, DataDir};
use crate::docker::Engine;
use crate::failure::{Blame as _, Code, what};
use crate::gateway;
use crate::host::Host;
use crate::image::{self, Image};
use crate::metadata::Client;
use crate::record::{Previous, Record};
use crate::report::{self, Ready, Update};
use crate::secrets::{self, Secrets};
use crate::switch;

pub use ending::settle;
use ending::succeed;
use journal::{Journal, Phase};
pub use request::Request;
pub use wish::{Wish, asked};

/// The check that fails while the gateway refuses an agent's database, with the agent's name behind it.
const AGENT_DATABASE: &str = "agent-database";

/// What is done to a copy when it takes the place of the state, in the names of directories and in messages.
const ROLLBACK: &str = "rollback";

/// The machine that is brought to another version.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Its files.
    pub host: &'a Host,
    /// Its engine.
    pub engine: &'a Engine,
    /// Its metadata server, for the service account that pulls images.
    pub metadata: &'a Client,
    /// Its data.
    pub data: &'a DataDir,
    /// What it should be.
    pub config: &'a Config,
}

/// Does what is asked for. Returns how the other version is, and what to report.
///
/// An error that comes before the present gateway is stopped leaves everything as it is. After any error
/// [`settle`] must follow: it undoes what was done. `stopped` gets the time at which the gateway is stopped.
pub async fn run(on: Machine<'_>, wish: &Wish, stopped: &OnceLock<Instant>) -> Result<(Ready, Update)> {
    let record = Record::read(on.host, on.data).await?;
    match wish {
        Wish::Update { to: None, choice } => forward(on, record, &on.config.image, choice.clone(), stopped).await,
        Wish::Update { to: Some(version), .. } => {
            let wanted = on.config.image.clone().of_version(version);
            forward(on, record, &wanted, None, stopped).await
        }
        Wish::Rollback { set_newer_state_aside } => back(on, record, *set_newer_state_aside, stopped).await,
    }
}

async fn forward(
    on: Machine<'_>,
    record: Record,
    wanted: &ImageConfig,
    asked_by: Option<String>,
    stopped: &OnceLock<Instant>,
) -> Result<(Ready, Update)> {
    let Machine { host, engine, metadata, data, .. } = on;
    let from = record.version.clone().unwrap_or_else(|| "an unknown version".to_owned());
    if wanted.reference.is_none() {
        refuse_older(wanted.version.as_ref().unwrap_or(&wanted.default_version), &from)?;
    }
    copy::room(host, data).await?;
    let image = image::ensure(host, engine, metadata, wanted, &Record::default()).await?;
    refuse_older(&image.version, &from)?;
    let secrets = secrets::ensure(host, data, &on.config.gateway).await?;
    let choice = on.config.image.choice();
    if record.image.as_ref() == Some(&image.base) {
        let message = format!("OpenClaw {} is the present version already", image.version);
        Record { choice, refused: None, interrupted: None, ..record }.write(host, data).await?;
        let ready = bring_up(on, &image, &secrets).await?;
        return Ok((ready, Update { message, code: None, downtime_ms: None }));
    }

    let present = image::ensure(host, engine, metadata, &on.config.image, &record).await?;
    let since = Timestamp::now();
    let mut journal = Journal {
        phase: Phase::Copying,
        from: record.version.clone(),
        to: image.version.clone(),
        choice: asked_by,
        copy: copy::named(data, since)?,
        superseded: record.previous.as_ref().map(|previous| previous.copy.clone()),
        since,
    };
    journal.write(host, data).await?;
    copy::level(host, data, &journal.copy).await?;
    let (stopped, of) = (stopped.get_or_init(Instant::now), Timestamp::now());
    gateway::remove(host, engine).await?;
    copy::level(host, data, &journal.copy).await?;
    copy::verify(host, data, &journal.copy).await?;
    journal.phase = Phase::Starting;
    journal.write(host, data).await?;

    let ready = start(on, &image, &secrets)
        .await
        .map_err(|error| anyhow!("OpenClaw {} did not become ready: {}", image.version, what(&error)))
        .blame(Code::UpdateFailed, "The version before runs again; choose another one.")?;
    let down = stopped.elapsed();
    let previous = Previous {
        record: Record { previous: None, refused: None, interrupted: None, ..record },
        image: present.reference,
        copy: journal.copy.clone(),
        of,
    };
    let record = Record { previous: Some(Box::new(previous)), ..Record::default() }.owned_by(&image, wanted);
    let record = Record { choice, ..record };
    record.write(host, data).await?;
    succeed(host, data, &journal).await?;
    image::prune(host, engine, &record.images(&image)).await;
    host.changed(format!("updated OpenClaw {from} to {}", image.version));
    Ok((ready, told(&format!("updated OpenClaw {from} to {}", image.version), down)))
}

async fn back(
    on: Machine<'_>,
    record: Record,
    set_newer_state_aside: bool,
    stopped: &OnceLock<Instant>,
) -> Result<(Ready, Update)> {
    let Machine { host, engine, metadata, data, config } = on;
    let newer = record.version.clone().unwrap_or_else(|| "an unknown version".to_owned());
    let previous = record.previous.as_deref().ok_or_else(|| anyhow!("no update is known that could be taken back"));
    let previous = previous.blame(Code::UpdateFailed, "A version's state is kept from its update to the next one.")?;
    let older = previous.record.version.clone().unwrap_or_else(|| "an unknown version".to_owned());
    let choice = config.image.choice().or_else(|| record.choice.clone());
    let prepared = previous.copy.prepared(data, Record { choice, ..previous.record.clone() })?;
    if !host.path(&prepared.state).is_dir() {
        return Err(anyhow!("the state that OpenClaw {older} had is gone from {}", prepared.state.display()))
            .blame(Code::UpdateFailed, "Restore a backup of that version instead.");
    }
    if !set_newer_state_aside {
        let age = age(previous.of, Timestamp::now());
        let what = anyhow!(
            "this restores OpenClaw {older} with its state of {} ({age} ago); what OpenClaw {newer} has written since \
             then goes out of use",
            previous.of.strftime("%Y-%m-%d %H:%M UTC")
        );
        return Err(what).blame(
            Code::UpdateFailed,
            "Nothing was changed. If this is wanted, run `sudo openclaw-init rollback --set-newer-state-aside`: the \
             newer state is renamed, not deleted.",
        );
    }
    let image = image::ensure(host, engine, metadata, &config.image, &previous.record).await?;
    let stopped = stopped.get_or_init(Instant::now);
    gateway::remove(host, engine).await?;
    let aside = switch::replace(host, data, ROLLBACK, &prepared).await?;
    disk::show(host, data).await?;
    let secrets = secrets::ensure(host, data, &config.gateway).await?;
    let ready = bring_up(on, &image, &secrets).await?;
    let message = format!("went back from OpenClaw {newer} to {older}; the newer state is now {}", shown(&aside));
    Ok((ready, told(&message, stopped.elapsed())))
}

/// Makes the gateway of `image` run on the state and waits until it is ready.
async fn bring_up(on: Machine<'_>, image: &Image, secrets: &Secrets) -> Result<Ready> {
    let Machine { host, engine, data, config, .. } = on;
    gateway::ensure(host, engine, image, data, secrets, &config.gateway).await?;
    gateway::wait_ready(host, engine, image, secrets, &config.gateway).await
}

/// Starts the new version; where its state needs the doctor, it gets it once.
async fn start(on: Machine<'_>, image: &Image, secrets: &Secrets) -> Result<Ready> {
    let Machine { host, engine, data, config, .. } = on;
    let error = match gate(bring_up(on, image, secrets).await) {
        Ok(ready) => return Ok(ready),
        Err(error) if gateway::asks_for_doctor(engine).await => error,
        Err(error) => return Err(error),
    };
    tracing::info!("the gateway asks for its doctor: {error:#}");
    gateway::remove(host, engine).await?;
    gateway::doctor(host, engine, image, data, secrets, &config.gateway).await?;
    gate(bring_up(on, image, secrets).await)
}

/// A channel may be broken in any version; an agent's database that the new version refuses was not before.
fn gate(started: Result<Ready>) -> Result<Ready> {
    let ready = started?;
    let refused: Vec<&str> =
        ready.degraded.iter().map(String::as_str).filter(|check| check.starts_with(AGENT_DATABASE)).collect();
    if !refused.is_empty() {
        bail!("the gateway runs, but refuses {}", refused.join(", "));
    }
    Ok(ready)
}

fn refuse_older(version: &str, present: &str) -> Result<()> {
    if version::is_older(version, present) {
        return Err(anyhow!("OpenClaw {version} is older than {present}, whose state it cannot read")).blame(
            Code::UpdateFailed,
            "To go back to the version before the last update, run `sudo openclaw-init rollback`.",
        );
    }
    Ok(())
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
}

fn told(message: &str, down: Duration) -> Update {
    let message = format!("{message}; no gateway answered for {:.1} s", down.as_secs_f32());
    Update { message, code: None, downtime_ms: Some(report::millis(down)) }
}

/// For people: "3 days", "2 hours", "5 minutes".
fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    let (count, unit) = match seconds {
        0..=119 => (seconds, "seconds"),
        120..=7_199 => (seconds / 60, "minutes"),
        7_200..=172_799 => (seconds / 3_600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_age_is_told_in_one_unit() {
        let cases =
            [(0, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7_200, "2 hours"), (172_800, "2 days")];
        for (seconds, told) in cases {
            let now = Timestamp::from_second(seconds).unwrap();
            assert_eq!(age(Timestamp::UNIX_EPOCH, now), told);
        }
    }
}
