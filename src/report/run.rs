//! What is known of the run so far, and how it reads from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Ready;
use super::status::millis;
use super::status::{Changes, Detail, Machine, State, Status, Update};
use crate::error::StageError;
use crate::host::Ledger;
use crate::stage::Stage;

/// Which stages stand behind a state, in the order in which the outside sees them. The disk and the
/// engine are prepared at the same time; the state is the first one that is not finished.
const PHASES: &[(State, &[Stage])] = &[
    (State::Starting, &[Stage::Metadata, Stage::Config]),
    (State::Installing, &[Stage::Swap, Stage::Docker]),
    (State::Disk, &[Stage::Disk, Stage::State]),
    (State::Image, &[Stage::Shield, Stage::Image]),
    (State::Gateway, &[Stage::Secrets, Stage::Gateway, Stage::Ready, Stage::Update]),
];

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Begun,
    Done(Duration),
    Failed(Duration),
}

/// What is known of the run so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    pub(super) boot_id: String,
    /// The operator's name for it.
    pub(super) id: Option<String>,
    pub(super) instance: Option<Machine>,
    pub(super) stages: BTreeMap<Stage, Mark>,
    pub(super) outcome: Option<Outcome>,
    pub(super) update: Option<Update>,
    /// Until when the last words may be sent; set with the outcome.
    pub(super) flush_until: Option<Instant>,
}

/// How the run ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Ready(Ready),
    /// `settled`: no further try will follow that could end otherwise.
    Failed {
        stage: Stage,
        code: &'static str,
        sentence: String,
        settled: bool,
    },
}

impl Outcome {
    pub(super) fn of(outcome: &Result<Ready, StageError>, last_try: bool) -> Self {
        match outcome {
            Ok(ready) => Self::Ready(ready.clone()),
            Err(failure) => Self::Failed {
                stage: failure.stage,
                code: failure.code().name(),
                sentence: failure.sentence(),
                settled: last_try || failure.code().is_permanent(),
            },
        }
    }
}

impl Run {
    fn is_done(&self, stage: Stage) -> bool {
        matches!(self.stages.get(&stage), Some(Mark::Done(_)))
    }

    /// Whether the stage is over, well or not.
    pub(super) fn has_ended(&self, stage: Stage) -> bool {
        matches!(self.stages.get(&stage), Some(Mark::Done(_) | Mark::Failed(_)))
    }

    /// Whether the metadata server is known to answer; before that there is no use in writing to it.
    pub(super) fn can_reach_metadata(&self) -> bool {
        self.is_done(Stage::Metadata)
    }

    fn phase(&self) -> State {
        let unfinished = PHASES.iter().find(|(_, stages)| stages.iter().any(|stage| !self.is_done(*stage)));
        unfinished.map_or(State::Gateway, |(state, _)| *state)
    }

    pub(super) fn current_stage(&self) -> Option<Stage> {
        let begun = |stage: &&Stage| self.stages.contains_key(*stage) && !self.is_done(**stage);
        PHASES.iter().flat_map(|(_, stages)| *stages).find(begun).copied()
    }

    /// The status, with no time in its detail.
    pub(super) fn status(&self, notes: &Ledger) -> Status {
        let (state, result, version) = match &self.outcome {
            None => (self.phase(), None, None),
            Some(Outcome::Ready(ready)) => {
                let state = if ready.degraded.is_empty() { State::Ready } else { State::Degraded };
                (state, Some("ready".to_owned()), Some(ready.version.clone()))
            }
            Some(Outcome::Failed { code, settled, .. }) => {
                (State::Failed, settled.then(|| format!("failed:{code}")), None)
            }
        };
        Status {
            boot_id: self.boot_id.clone(),
            run_id: self.id.clone(),
            state,
            result,
            version,
            detail: self.detail(notes),
            changes: changes(notes),
            instance: self.instance.clone(),
            update: self.update.clone(),
            peak_memory_kib: 0,
            reported: false,
        }
    }

    fn detail(&self, notes: &Ledger) -> Detail {
        let (stage, code, message) = match &self.outcome {
            None => (self.current_stage(), None, None),
            Some(Outcome::Ready(ready)) => {
                // What was refused or undone is a warning.
                let code = self.update.as_ref().and_then(|update| update.code.clone());
                let done = self.update.iter().filter(|update| update.code.is_none()).map(|it| it.message.clone());
                let degraded = format!("degraded: {}", ready.degraded.join("; "));
                let parts: Vec<_> = done.chain((!ready.degraded.is_empty()).then_some(degraded)).collect();
                (None, code, (!parts.is_empty()).then(|| parts.join("; ")))
            }
            Some(Outcome::Failed { stage, code, sentence, .. }) => {
                (Some(*stage), Some((*code).to_owned()), Some(sentence.clone()))
            }
        };
        let elapsed = self.stages.iter().filter_map(|(stage, mark)| match mark {
            Mark::Begun => None,
            Mark::Done(time) | Mark::Failed(time) => Some((stage.name().to_owned(), millis(*time))),
        });
        Detail {
            updated: String::new(),
            stage: stage.map(|stage| stage.name().to_owned()),
            code,
            message,
            elapsed: elapsed.collect(),
            warnings: notes.warnings.clone(),
        }
    }
}

fn changes(notes: &Ledger) -> Changes {
    let list = notes.changes.iter().map(|(stage, what)| match stage {
        Some(stage) => format!("{stage}: {what}"),
        None => what.clone(),
    });
    Changes { count: notes.changes.len(), list: list.collect() }
}

/// The run as one of the report's tasks sees it.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) run: watch::Receiver<Run>,
    notes: watch::Receiver<Ledger>,
    /// What an earlier run of this boot left.
    previous: Option<Status>,
    /// Numbers of changes and warnings that were seen; progress is nobody's business here.
    seen: (usize, usize),
}

impl View {
    pub(super) fn new(run: watch::Receiver<Run>, notes: watch::Receiver<Ledger>, previous: Option<Status>) -> Self {
        Self { run, notes, previous, seen: (0, 0) }
    }

    /// The status now, marked as seen.
    pub(super) fn status(&mut self) -> Status {
        let notes = self.notes.borrow_and_update();
        self.seen = (notes.changes.len(), notes.warnings.len());
        self.run.borrow_and_update().status(&notes)
    }

    /// Whether nothing is to be said: this boot has its result, and so far this run confirms it.
    pub(super) fn is_quiet(&self, status: &Status) -> bool {
        let previous = self.previous.as_ref().filter(|_| self.continues_the_boot(status));
        previous.is_some_and(|previous| {
            previous.result.as_deref() == Some("ready")
                && previous.reported
                && status.changes.count == 0
                && status.update.is_none()
                && (!status.is_final() || status.says_the_same_as(previous))
        })
    }

    /// Whether an earlier run of this same boot was there.
    pub(super) fn continues_the_boot(&self, status: &Status) -> bool {
        self.previous.as_ref().is_some_and(|previous| previous.boot_id == status.boot_id)
    }

    /// Waits for something new to say. False when nobody is left to say it.
    pub(super) async fn changed(&mut self) -> bool {
        loop {
            tokio::select! {
                changed = self.run.changed() => return changed.is_ok(),
                changed = self.notes.changed() => {
                    let notes = self.notes.borrow_and_update();
                    if changed.is_err() || self.seen != (notes.changes.len(), notes.warnings.len()) {
                        return changed.is_ok();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_the_earliest_unfinished_stage_and_never_goes_back() {
        let mut run = Run::default();
        // The disk is ready before the engine, the secrets before the image.
        let table = [
            (Stage::Metadata, State::Starting),
            (Stage::Config, State::Installing),
            (Stage::Disk, State::Installing),
            (Stage::Swap, State::Installing),
            (Stage::Secrets, State::Installing),
            (Stage::Docker, State::Disk),
            (Stage::State, State::Image),
            (Stage::Image, State::Image),
            (Stage::Shield, State::Gateway),
            (Stage::Gateway, State::Gateway),
            (Stage::Ready, State::Gateway),
        ];
        let mut last = State::Starting;
        for (stage, state) in table {
            run.stages.insert(stage, Mark::Begun);
            assert!(run.phase() >= last, "beginning {stage} goes back");
            run.stages.insert(stage, Mark::Done(Duration::ZERO));
            assert_eq!(run.phase(), state, "after {stage}");
            last = state;
        }
    }

    #[test]
    fn the_result_is_there_only_when_it_is_settled() {
        let failed =
            |settled| Outcome::Failed { stage: Stage::Docker, code: "apt-failed", sentence: "s".into(), settled };
        let ready = |degraded: &[&str]| {
            let degraded = degraded.iter().map(|check| (*check).to_owned()).collect();
            Outcome::Ready(Ready { version: "1".into(), degraded })
        };
        let table = [
            (None, State::Starting, None),
            (Some(ready(&[])), State::Ready, Some("ready")),
            (Some(ready(&["telegram"])), State::Degraded, Some("ready")),
            (Some(failed(true)), State::Failed, Some("failed:apt-failed")),
            (Some(failed(false)), State::Failed, None),
        ];
        for (outcome, state, result) in table {
            let run = Run { outcome, ..Run::default() };
            let status = run.status(&Ledger::default());
            assert_eq!((status.state, status.result.as_deref()), (state, result));
        }
    }
}
