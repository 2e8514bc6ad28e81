//! What is known of the run so far, and how it reads from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Ready;
use super::last_boot::BootEnd;
use super::status::{Changes, Detail, InstanceIdentity, RunResult, State, Status, UpdateReport, millis};
use super::timeline::Span;
use crate::error::{Code, StageError};
use crate::host::Ledger;
use crate::stage::Stage;

/// Which stages stand behind a state, in the order in which the outside sees them. The disk and the
/// engine are prepared at the same time; the state is the first one that is not finished.
const PHASES: &[(State, &[Stage])] = &[
    (State::Starting, &[Stage::Metadata, Stage::Config]),
    (State::Installing, &[Stage::Swap, Stage::Docker]),
    (State::Disk, &[Stage::Disk, Stage::State]),
    (State::Image, &[Stage::Shield, Stage::Image]),
    (State::Gateway, &[Stage::Secrets, Stage::Gateway, Stage::Ready, Stage::Update, Stage::Pairing, Stage::Proxy]),
];

/// How long a run may take until it is reported although it has changed nothing.
const QUIET: Duration = Duration::from_secs(30);

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StageState {
    InProgress,
    Done(Duration),
    Failed(Duration),
}

/// What is known of the run so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    pub(super) boot_id: String,
    /// How the boot before it ended.
    pub(super) last_boot: Option<BootEnd>,
    /// The operator's name for it.
    pub(super) id: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) instance: Option<InstanceIdentity>,
    /// The version that is brought up.
    pub(super) version: Option<String>,
    pub(super) stages: BTreeMap<Stage, StageState>,
    /// The spans of the stages that ended.
    pub(super) timeline: Vec<Span>,
    pub(super) conclusion: Option<Conclusion>,
    pub(super) update: Option<UpdateReport>,
    /// Until when the last words may be sent; set with the outcome.
    pub(super) flush_until: Option<Instant>,
}

/// How the run ended.
#[derive(Debug, Clone)]
pub(super) enum Conclusion {
    Ready(Ready),
    /// `settled`: no further try will follow that could end otherwise.
    Failed {
        stage: Stage,
        code: Code,
        sentence: String,
        settled: bool,
    },
}

impl Conclusion {
    pub(super) fn of(outcome: &Result<Ready, StageError>, last_try: bool) -> Self {
        match outcome {
            Ok(ready) => Self::Ready(ready.clone()),
            Err(failure) => Self::Failed {
                stage: failure.stage,
                code: failure.code(),
                sentence: failure.sentence(),
                settled: last_try || failure.code().is_permanent(),
            },
        }
    }
}

impl Run {
    fn is_done(&self, stage: Stage) -> bool {
        matches!(self.stages.get(&stage), Some(StageState::Done(_)))
    }

    /// Whether the stage is over, well or not.
    pub(super) fn has_ended(&self, stage: Stage) -> bool {
        matches!(self.stages.get(&stage), Some(StageState::Done(_) | StageState::Failed(_)))
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
    pub(super) fn status(&self, ledger: &Ledger) -> Status {
        let (state, result, version) = match &self.conclusion {
            None => (self.phase(), None, self.version.clone()),
            Some(Conclusion::Ready(ready)) => {
                let state = if ready.degraded.is_empty() { State::Ready } else { State::Degraded };
                (state, Some(RunResult::Ready.into()), Some(ready.version.clone()))
            }
            Some(Conclusion::Failed { code, settled, .. }) => {
                (State::Failed, settled.then(|| RunResult::Failed(*code).into()), None)
            }
        };
        Status {
            boot_id: self.boot_id.clone(),
            last_boot: self.last_boot.map(Into::into),
            run_id: self.id.clone(),
            state,
            result,
            version,
            detail: self.detail(ledger),
            reason: self.reason.clone(),
            at_end: None,
            changes: changes(ledger),
            instance: self.instance.clone(),
            update: self.update.clone(),
            timeline: self.timeline.clone(),
            peak_memory_kib: 0,
            reported: false,
        }
    }

    fn detail(&self, ledger: &Ledger) -> Detail {
        let (stage, code, message) = match &self.conclusion {
            None => (self.current_stage(), None, None),
            Some(Conclusion::Ready(ready)) => {
                // What was refused or undone is a warning.
                let code = self.update.as_ref().and_then(|update| update.code.clone());
                let done = self.update.iter().filter(|update| update.code.is_none()).map(|it| it.message.clone());
                let degraded = format!("degraded: {}", ready.degraded.join("; "));
                let parts: Vec<_> = done.chain((!ready.degraded.is_empty()).then_some(degraded)).collect();
                (None, code, (!parts.is_empty()).then(|| parts.join("; ")))
            }
            Some(Conclusion::Failed { stage, code, sentence, .. }) => {
                (Some(*stage), Some((*code).into()), Some(sentence.clone()))
            }
        };
        let elapsed = self.stages.iter().filter_map(|(stage, state)| match state {
            StageState::InProgress => None,
            StageState::Done(time) | StageState::Failed(time) => Some((stage.name().to_owned(), millis(*time))),
        });
        Detail {
            updated: String::new(),
            stage: stage.map(Into::into),
            code,
            message,
            elapsed: elapsed.collect(),
            warnings: ledger.warnings.clone(),
            before: self.last_boot.and_then(BootEnd::sentence),
            pairing: Vec::new(),
        }
    }
}

fn changes(ledger: &Ledger) -> Changes {
    let list = ledger.changes.iter().map(|(stage, what)| match stage {
        Some(stage) => format!("{stage}: {what}"),
        None => what.clone(),
    });
    Changes { count: ledger.changes.len(), list: list.collect() }
}

/// The run as one of the report's tasks sees it.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) run: watch::Receiver<Run>,
    ledger: watch::Receiver<Ledger>,
    /// What an earlier run of this boot left.
    previous: Option<Status>,
    /// Until when that stands while this run only looks.
    quiet_until: Instant,
    /// Numbers of changes and warnings that were seen. Progress is not reported here.
    seen: (usize, usize),
}

impl View {
    /// Of a run that began at `begun`.
    pub(super) fn new(
        run: watch::Receiver<Run>,
        ledger: watch::Receiver<Ledger>,
        previous: Option<Status>,
        begun: Instant,
    ) -> Self {
        Self { run, ledger, previous, quiet_until: begun + QUIET, seen: (0, 0) }
    }

    /// The status now, marked as seen.
    pub(super) fn status(&mut self) -> Status {
        let ledger = self.ledger.borrow_and_update();
        self.seen = (ledger.changes.len(), ledger.warnings.len());
        self.run.borrow_and_update().status(&ledger)
    }

    /// Whether there is nothing to report: this boot has its result, and so far this run confirms it. One that takes
    /// long waits for something.
    pub(super) fn is_unchanged(&self, status: &Status) -> bool {
        let previous = self.previous.as_ref().filter(|_| self.continues_the_boot(status));
        previous.is_some_and(|previous| {
            Instant::now() < self.quiet_until
                && previous.result == Some(RunResult::Ready.into())
                && previous.reported
                && status.changes.count == 0
                && status.update.is_none()
                && (!status.is_final() || status.adds_nothing_to(previous))
        })
    }

    /// Whether an earlier run of this same boot was there.
    pub(super) fn continues_the_boot(&self, status: &Status) -> bool {
        self.previous.as_ref().is_some_and(|previous| previous.boot_id == status.boot_id)
    }

    /// Waits for something new to report. False when the run is gone.
    pub(super) async fn changed(&mut self) -> bool {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.quiet_until), if Instant::now() < self.quiet_until => return true,
                changed = self.run.changed() => return changed.is_ok(),
                changed = self.ledger.changed() => {
                    let ledger = self.ledger.borrow_and_update();
                    if changed.is_err() || self.seen != (ledger.changes.len(), ledger.warnings.len()) {
                        return changed.is_ok();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

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
            run.stages.insert(stage, StageState::InProgress);
            assert!(run.phase() >= last, "beginning {stage} goes back");
            run.stages.insert(stage, StageState::Done(Duration::ZERO));
            assert_eq!(run.phase(), state, "after {stage}");
            last = state;
        }
    }

    #[test]
    fn the_result_is_there_only_when_it_is_settled() {
        let failed =
            |settled| Conclusion::Failed { stage: Stage::Docker, code: Code::AptFailed, sentence: "s".into(), settled };
        let table = [
            (None, State::Starting, None),
            (Some(ready(&[])), State::Ready, Some("ready")),
            (Some(ready(&["telegram"])), State::Degraded, Some("ready")),
            (Some(failed(true)), State::Failed, Some("failed:apt-failed")),
            (Some(failed(false)), State::Failed, None),
        ];
        for (conclusion, state, result) in table {
            let run = Run { conclusion, ..Run::default() };
            let status = run.status(&Ledger::default());
            let found = status.result.map(|result| result.to_string());
            assert_eq!((status.state, found.as_deref()), (state, result));
        }
    }

    /// A run of which every stage up to `last` took as many milliseconds as it has letters.
    fn run(last: Stage, conclusion: Conclusion) -> Run {
        let failed = match &conclusion {
            Conclusion::Ready(_) => None,
            Conclusion::Failed { stage, .. } => Some(*stage),
        };
        let stages = PHASES.iter().flat_map(|(_, stages)| *stages).filter(|stage| **stage <= last).map(|stage| {
            let time = Duration::from_millis(stage.name().len() as u64);
            (*stage, if failed == Some(*stage) { StageState::Failed(time) } else { StageState::Done(time) })
        });
        let instance = InstanceIdentity { id: 7, name: "openclaw-gateway".into(), zone: "us-central1-a".into() };
        Run {
            boot_id: "3f2a".into(),
            id: Some("build 17".into()),
            instance: Some(instance),
            stages: stages.collect(),
            conclusion: Some(conclusion),
            ..Run::default()
        }
    }

    fn ready(degraded: &[&str]) -> Conclusion {
        let degraded = degraded.iter().map(|check| (*check).to_owned()).collect();
        Conclusion::Ready(Ready { version: "2026.9.6".into(), degraded })
    }

    /// `UPDATE_EXPECT=1 cargo test --lib status_file` writes the files anew.
    #[test]
    fn the_status_file_is_what_it_was() -> anyhow::Result<()> {
        let ledger = Ledger {
            changes: vec![(Some(Stage::Disk), "formatted /dev/sdb".into()), (None, "made a directory".into())],
            ..Ledger::default()
        };
        let warned = Ledger { warnings: vec!["the update was undone".into()], ..ledger.clone() };
        let failed = Conclusion::Failed {
            stage: Stage::Disk,
            code: Code::DiskForeign,
            sentence: "preparing /dev/sdb: signature xfs found. Attach an empty disk.".into(),
            settled: true,
        };
        let undone = UpdateReport {
            message: "the update was undone".into(),
            code: Some(Code::UpdateFailed.into()),
            downtime_ms: Some(1500),
        };
        let undone = Run { update: Some(undone), ..run(Stage::Update, ready(&[])) };
        let cut = Run { last_boot: Some(BootEnd::Cut), ..run(Stage::Update, ready(&[])) };
        let cases = [
            (run(Stage::Update, ready(&[])), ledger, expect_file!["golden/ready.json"]),
            (run(Stage::Update, ready(&["telegram"])), Ledger::default(), expect_file!["golden/degraded.json"]),
            (run(Stage::Disk, failed), Ledger::default(), expect_file!["golden/failed.json"]),
            (undone, warned, expect_file!["golden/undone.json"]),
            (cut, Ledger::default(), expect_file!["golden/cut.json"]),
        ];
        for (run, ledger, file) in cases {
            let mut status = Status { peak_memory_kib: 20_480, reported: true, ..run.status(&ledger) };
            status.detail.updated = "2026-11-26T14:05:03Z".into();
            file.assert_eq(&format!("{}\n", serde_json::to_string_pretty(&status)?));
        }
        Ok(())
    }
}
