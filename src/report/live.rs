//! What is said between two runs: state and detail follow the gateway, the result stays that of the boot.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::time::Instant;

use super::budget::{Budget, Urgency};
use super::status::{Saying, State, Status, Words, with};
use super::write_status;
use super::writer::NAMESPACE;
use crate::host::Host;
use crate::http::backoff;
use crate::lock::RunLock;
use crate::metadata::{Client, WriteOutcome};
use crate::paths::{LOCK, RESULT_CLEARED};
use crate::text::seconds;

/// What follows the gateway, the most important first; who reads `state` finds its detail.
const KEYS: &[&str] = &["detail", "state", "version", "run-id", "boot-id"];

/// What does not: it is the boot's.
const RESULT: &str = "result";

/// How often the time of the last good look is told.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(600);

/// The pause after a failed request, doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The same while guest attributes are disabled.
const DISABLED_MAX_BACKOFF: Duration = Duration::from_secs(600);

/// Keeps state and detail equal to what is known of the gateway while no run is at work.
#[derive(Debug)]
pub struct LiveReport {
    host: Host,
    client: Client,
    budget: Budget,
    /// The run after which it was written.
    run: Option<SystemTime>,
    /// What the server holds, as far as this process wrote it.
    sent: BTreeMap<&'static str, String>,
    /// What was said last, here.
    said: Option<Words>,
    heartbeat: Option<Instant>,
    failures: u32,
    refusals: u32,
    not_before: Option<Instant>,
}

impl LiveReport {
    /// A report that has written nothing yet.
    pub fn new(host: &Host, client: Client) -> Self {
        let budget = Budget::new(host);
        Self {
            host: host.clone(),
            client,
            budget,
            run: None,
            sent: BTreeMap::new(),
            said: None,
            heartbeat: None,
            failures: 0,
            refusals: 0,
            not_before: None,
        }
    }

    /// Says it, or without `saying` what the latest `run` said at its end, and who is `asking` to be paired, unless a
    /// run is at work. Returns after how long another call can bring out what the server does not hold yet.
    pub async fn tell(
        &mut self,
        saying: Option<&Saying>,
        asking: &[String],
        run: Option<SystemTime>,
    ) -> Result<Option<Duration>> {
        if self.run != run {
            // It has written, too, and knows more than earlier failures do.
            self.sent.clear();
            (self.failures, self.refusals, self.not_before) = (0, 0, None);
            self.run = run;
        }
        let Some(status) = self.note(saying, asking).await? else { return Ok(None) };
        let is_told = status.at_end.is_none() && status.reported;
        if is_told {
            self.sent = KEYS.iter().filter_map(|key| Some((*key, status.words_as(key)?))).collect();
        } else if let Some(pause) = self.deliver(&status).await {
            return Ok(Some(pause));
        } else if let Some(pause) = self.deliver_result(&status).await {
            return Ok(Some(pause));
        } else if saying.is_none() && asking.is_empty() {
            self.settle().await?;
        }
        Ok(self.beat().await)
    }

    /// The status file with it. Nothing while a run is at work, or when none has ended yet.
    async fn note(&mut self, saying: Option<&Saying>, asking: &[String]) -> Result<Option<Status>> {
        let Some(_lock) = RunLock::try_acquire(&self.host.path(LOCK))? else { return Ok(None) };
        let Some(mut status) = Status::read(&self.host).await?.filter(|status| status.result.is_some()) else {
            return Ok(None);
        };
        let mut words = with(status.words_of_the_run(), saying);
        if matches!(words.state, State::Ready | State::Degraded) {
            words.detail.pairing = asking.to_vec();
        }
        if self.said.as_ref().is_some_and(|said| *said != status.words()) {
            // Somebody else has said something since, as `openclaw-init stop` does.
            self.sent.clear();
        }
        self.said = Some(words.clone());
        if status.words() != words {
            tracing::info!("state={}: {}", words.state.name(), words.detail.message.as_deref().unwrap_or("as before"));
            status.say(words);
            write_status(&self.host, &status).await;
        }
        Ok(Some(status))
    }

    /// The server holds what the run said: there is nothing to remember any more.
    async fn settle(&self) -> Result<()> {
        let Some(_lock) = RunLock::try_acquire(&self.host.path(LOCK))? else { return Ok(()) };
        if let Some(mut status) = Status::read(&self.host).await?
            && status.at_end.take().is_some_and(|words| words == status.words())
        {
            write_status(&self.host, &status).await;
        }
        Ok(())
    }

    /// Brings out what the server does not hold. Returns when to go on, `None` when all is done.
    async fn deliver(&mut self, status: &Status) -> Option<Duration> {
        let stamped = status.stamped();
        for key in KEYS {
            let (Some(value), Some(stamped)) = (status.words_as(key), stamped.attribute(key)) else { continue };
            if self.sent.get(key) != Some(&value) {
                if let Some(pause) = self.put(key, &stamped, Urgency::Due).await {
                    return Some(pause);
                }
                self.sent.insert(key, value);
            }
        }
        None
    }

    /// The same for what the run could not say of itself, last of all.
    async fn deliver_result(&mut self, status: &Status) -> Option<Duration> {
        let owed = status.attribute(RESULT).filter(|_| !status.reported)?;
        if self.sent.get(RESULT) == Some(&owed) {
            return None;
        }
        let pause = self.put(RESULT, &owed, Urgency::Due).await;
        if pause.is_none() {
            self.sent.insert(RESULT, owed);
            // The result of the boot before is gone with it.
            drop(std::fs::write(self.host.path(RESULT_CLEARED), ""));
        }
        pause
    }

    /// Says that the gateway was looked at, now and then.
    async fn beat(&mut self) -> Option<Duration> {
        if self.heartbeat.is_some_and(|last| last.elapsed() < HEARTBEAT_INTERVAL) {
            return None;
        }
        let pause = self.put("heartbeat", &seconds(Timestamp::now()), Urgency::Routine).await;
        if pause.is_none() {
            self.heartbeat = Some(Instant::now());
        }
        pause
    }

    /// Sets one attribute. Returns when to try again, `None` when it is set or never can be.
    async fn put(&mut self, key: &str, value: &str, urgency: Urgency) -> Option<Duration> {
        if let Some(left) = self.not_before.and_then(|at| at.checked_duration_since(Instant::now())) {
            return Some(left);
        }
        let wait = self.budget.take(urgency).await.unwrap_or_else(|error| {
            tracing::debug!("{error:#}");
            Duration::ZERO
        });
        if !wait.is_zero() {
            return Some(wait);
        }
        let pause = match self.client.put_guest_attribute(NAMESPACE, key, value).await {
            Ok(WriteOutcome::Done) => {
                (self.failures, self.refusals) = (0, 0);
                return None;
            }
            // A 403 may pass, and an operator may enable them at any time.
            Ok(refused) => {
                tracing::debug!("guest attributes: {refused:?}");
                self.refusals += 1;
                backoff(FIRST_BACKOFF, self.refusals - 1, DISABLED_MAX_BACKOFF)
            }
            Err(error) => {
                tracing::debug!("guest attributes: {error:#}");
                self.failures += 1;
                backoff(FIRST_BACKOFF, self.failures - 1, MAX_BACKOFF)
            }
        };
        self.not_before = Some(Instant::now() + pause);
        Some(pause)
    }
}

/// Reports that the gateway is being stopped: state and status file, one request, no retry.
///
/// For the stop unit, which has little time; the result stays as it is until the next boot deletes it.
pub async fn stopping(host: &Host, metadata: &Client) -> Result<()> {
    now(host, metadata, Urgency::Due, |run| Words { state: State::Stopping, ..run }).await
}

/// The same for a gateway that somebody has stopped.
pub async fn stopped(host: &Host, metadata: &Client, message: &str) -> Result<()> {
    let saying = Saying { state: State::Stopped, message: message.to_owned() };
    now(host, metadata, Urgency::Last, |run| with(run, Some(&saying))).await
}

async fn now(host: &Host, metadata: &Client, urgency: Urgency, words: impl FnOnce(Words) -> Words) -> Result<()> {
    let Some(mut status) = Status::read(host).await? else { return Ok(()) };
    let words = words(status.words_of_the_run());
    status.say(words);
    status.write(host).await?;
    if Budget::new(host).take(urgency).await?.is_zero() {
        let put = metadata.put_guest_attribute(NAMESPACE, "state", status.state.name()).await;
        put.context("writing the guest attribute state")?;
    }
    Ok(())
}
