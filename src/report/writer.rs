//! The one writer of guest attributes: keeps them equal to the status, in order and within the budget.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::budget::{Budget, Urgency};
use super::run::View;
use super::status::Status;
use crate::error::one_line;
use crate::host::Host;
use crate::http::{Retry, backoff};
use crate::metadata::{Client, RequestError, WriteOutcome};
use crate::paths::RESULT_CLEARED;

pub(super) const NAMESPACE: &str = "openclaw";

/// What is written while the run goes on, the most important first.
const IN_PROGRESS: &[&str] = &["boot-id", "version", "state", "run-id", "detail"];

/// What is written at the end. A waiter that sees `result` finds everything else in place.
pub(super) const AT_END: &[&str] = &["boot-id", "run-id", "version", "detail", "state", "result"];

/// Stands in for a deletion where the server refuses one.
const PENDING: &str = "pending";

/// The pause after a failed request, doubled each time. At the end there is no time for long ones.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(15);
const END_MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Longest wait at the end for anything but the last words: no more than the limit per second asks for.
const END_WAIT_TIMEOUT: Duration = Duration::from_secs(2);

/// One request to be made.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Takes back the result of an earlier run.
    Clear,
    /// Sets a key to a value (the one without the time in it).
    Put(&'static str, String),
}

/// Keeps the guest attributes equal to the status.
#[derive(Debug)]
pub(super) struct Writer {
    host: Host,
    client: Client,
    budget: Budget,
    view: View,
    /// What the server holds, as far as this run wrote it or gave it up.
    sent: BTreeMap<&'static str, String>,
    /// The result of an earlier run is gone.
    cleared: bool,
    /// The server refuses DELETE.
    no_delete: bool,
    failures: u32,
    not_before: Option<Instant>,
    complete: bool,
}

impl Writer {
    pub(super) fn new(host: Host, client: Client, view: View) -> Self {
        let (budget, cleared) = (Budget::new(&host), host.path(RESULT_CLEARED).exists());
        Self {
            host,
            client,
            budget,
            view,
            sent: BTreeMap::new(),
            cleared,
            no_delete: false,
            failures: 0,
            not_before: None,
            complete: true,
        }
    }

    /// Writes until the run is over and its last words are written, or cannot be. True when everything is written.
    pub(super) async fn run(mut self) -> bool {
        let mut ending = false;
        loop {
            let status = self.view.status();
            if status.is_final() && !ending {
                (ending, self.failures, self.not_before) = (true, 0, None);
            }
            let may_write = !self.view.is_unchanged(&status) && (ending || self.view.run.borrow().can_reach_metadata());
            let step = if may_write { self.next(&status) } else { None };
            match step {
                None if ending => return self.complete,
                None => {
                    if !self.view.changed().await {
                        return false;
                    }
                }
                Some(_) if self.is_too_late() => return false,
                Some(step) => {
                    let Some(pause) = self.take(&step, &status).await else { return false };
                    if !self.wait(pause).await {
                        return false;
                    }
                }
            }
        }
    }

    fn next(&self, status: &Status) -> Option<Step> {
        // A result of this same boot stands until its successor replaces it, one of an earlier boot may not.
        if !self.cleared {
            return Some(if self.no_delete { Step::Put("result", PENDING.to_owned()) } else { Step::Clear });
        }
        let keys = if status.is_final() { AT_END } else { IN_PROGRESS };
        keys.iter().find_map(|key| {
            let value = status.attribute(key)?;
            (self.sent.get(key) != Some(&value)).then_some(Step::Put(key, value))
        })
    }

    /// Takes a step, or finds that it must wait. Returns the pause before the next one; `None` when no other can
    /// succeed.
    async fn take(&mut self, step: &Step, status: &Status) -> Option<Duration> {
        let ending = status.is_final();
        let now = Instant::now();
        if let Some(not_before) = self.not_before.filter(|not_before| *not_before > now) {
            return Some(not_before - now);
        }
        let wait = self.budget.take(urgency(step, ending)).await.unwrap_or_else(|error| {
            tracing::debug!("{error:#}");
            Duration::ZERO
        });
        if wait > END_WAIT_TIMEOUT && ending {
            // An earlier run has used the minute: state and result go out, the rest keeps its last value until the
            // next run, which this one leaves owing.
            self.give_up(step);
            return Some(Duration::ZERO);
        }
        if !wait.is_zero() {
            return Some(wait);
        }
        match self.send(step, status).await {
            Ok(WriteOutcome::Done) => self.done(step),
            Ok(_) if *step == Step::Clear => self.no_delete = true,
            Ok(_) => {
                self.host.warn(disabled(status));
                return None;
            }
            Err(error) => self.failed(step, error, ending),
        }
        Some(Duration::ZERO)
    }

    async fn send(&self, step: &Step, status: &Status) -> Result<WriteOutcome, RequestError> {
        match step {
            Step::Clear => self.client.delete_guest_attribute(NAMESPACE, "result").await,
            Step::Put("detail", _) => {
                let detail = status.stamped().attribute("detail").unwrap_or_default();
                self.client.put_guest_attribute(NAMESPACE, "detail", &detail).await
            }
            Step::Put(key, value) => self.client.put_guest_attribute(NAMESPACE, key, value).await,
        }
    }

    fn done(&mut self, step: &Step) {
        (self.failures, self.not_before) = (0, None);
        self.remember(step);
    }

    /// The server has, or will never have, what the step asks for.
    fn remember(&mut self, step: &Step) {
        if !self.cleared && matches!(step, Step::Clear | Step::Put("result", _)) {
            self.cleared = true;
            // Without the note the next run clears again.
            drop(std::fs::write(self.host.path(RESULT_CLEARED), ""));
        }
        if let Step::Put(key, value) = step {
            self.sent.insert(key, value.clone());
        }
    }

    fn give_up(&mut self, step: &Step) {
        self.complete = false;
        self.remember(step);
    }

    fn failed(&mut self, step: &Step, error: RequestError, ending: bool) {
        let retry = error.retry;
        let reason = one_line(&error.into());
        if retry == Retry::No {
            self.host.warn(format!("a guest attribute cannot be written: {reason}"));
            return self.give_up(step);
        }
        tracing::debug!("guest attributes: {reason}");
        let longest = if ending { END_MAX_BACKOFF } else { MAX_BACKOFF };
        let pause = backoff(FIRST_BACKOFF, self.failures, longest);
        self.failures += 1;
        self.not_before = Some(Instant::now() + pause);
        if self.is_too_late_after(pause) {
            self.host.warn(format!(
                "the guest attributes could not be written: {reason}. `openclaw-init status` on the VM has what they \
                 should say."
            ));
        }
    }

    fn is_too_late(&self) -> bool {
        self.is_too_late_after(Duration::ZERO)
    }

    fn is_too_late_after(&self, pause: Duration) -> bool {
        self.view.run.borrow().flush_until.is_some_and(|until| Instant::now() + pause >= until)
    }

    /// Waits, but not past news of the run. False when the run is gone.
    async fn wait(&mut self, pause: Duration) -> bool {
        if pause.is_zero() {
            return true;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            changed = self.view.run.changed() => changed.is_ok(),
        }
    }
}

fn urgency(step: &Step, ending: bool) -> Urgency {
    match step {
        Step::Clear | Step::Put("state" | "result", _) if ending => Urgency::Last,
        Step::Put("result" | "version", _) | Step::Clear => Urgency::Due,
        Step::Put(..) if ending => Urgency::Due,
        Step::Put(..) => Urgency::Routine,
    }
}

fn disabled(status: &Status) -> String {
    let (name, zone) = match &status.instance {
        Some(instance) => (instance.name.as_str(), instance.zone.as_str()),
        None => ("VM", "ZONE"),
    };
    format!(
        "guest attributes are disabled, so nothing outside this VM can see its state: enable them with `gcloud compute \
         instances add-metadata {name} --zone={zone} --metadata=enable-guest-attributes=TRUE`"
    )
}
