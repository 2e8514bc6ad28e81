//! What the outside sees: guest attributes, the status file, progress on the console.
//!
//! Three tasks follow the run and the host's ledger: one writes guest attributes, one the status file, one prints
//! progress. None of them can delay or fail a boot.

mod budget;
pub mod follow;
mod last_boot;
mod live;
mod name;
mod outside;
mod progress;
mod run;
mod status;
mod timeline;
mod tries;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::{StageError, code_of};
use crate::host::Host;
use crate::lock::make_private;
use crate::metadata::{Client, Instance};
use crate::paths::PRIVATE_RUN_DIR;
use crate::stage::{Stage, within};

use run::{Conclusion, Run, StageState, View};
use writer::Writer;

pub use last_boot::{BootEnd, note_end, note_preemption};
pub use live::{LiveReport, stopped, stopping};
pub use name::Name;
pub use outside::report_failure;
pub use status::{Changes, Detail, InstanceIdentity, RunResult, Saying, State, Status, UpdateReport, Words, millis};
pub use timeline::Span;
pub use tries::Try;

/// How long the end of a run may wait for its last words to arrive.
const FLUSH_DEADLINE: Duration = Duration::from_secs(20);

/// The one writer of guest attributes, the status file and progress lines; clones are the same report.
#[derive(Debug, Clone)]
pub struct Report {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    host: Host,
    run: watch::Sender<Run>,
    previous: Option<Status>,
    tasks: Mutex<Option<Tasks>>,
    started: Instant,
}

#[derive(Debug)]
struct Tasks {
    writer: JoinHandle<bool>,
    keeper: JoinHandle<()>,
    progress: JoinHandle<()>,
}

/// How the run ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Gateway version.
    pub version: String,
    /// The failing checks of a gateway that runs but is not wholly well (`degraded`); empty when `ready`.
    pub degraded: Vec<String>,
}

impl Report {
    /// Starts reporting, without waiting for the metadata server: the first request, the deletion of an
    /// earlier `result`, follows as soon as the metadata stage has ended well.
    ///
    /// When this boot has its `ready` already, nothing is written anywhere until this run changes
    /// something or ends otherwise.
    pub async fn start(host: &Host, metadata: Client) -> Result<Self> {
        let boot_id = host.boot_id().await?;
        make_private(&host.path(PRIVATE_RUN_DIR)).with_context(|| format!("making {PRIVATE_RUN_DIR}"))?;
        let previous = Status::read(host).await.unwrap_or_else(|error| {
            tracing::debug!("{error:#}");
            None
        });
        let last_boot = last_boot::begin(host, &boot_id).await;
        let run = watch::Sender::new(Run { boot_id, last_boot, ..Run::default() });
        let started = Instant::now();
        let mut view = View::new(run.subscribe(), host.ledger(), previous.clone(), started);
        let first = view.status();
        if !view.is_unchanged(&first) {
            first.write(host).await?;
        }
        let tasks = Tasks {
            writer: tokio::spawn(Writer::new(host.clone(), metadata, view.clone()).run()),
            keeper: tokio::spawn(keep_status_file(host.clone(), view, first)),
            progress: tokio::spawn(progress::print_progress(host.ledger(), run.subscribe())),
        };
        let tasks = Mutex::new(Some(tasks));
        let shared = Shared { host: host.clone(), run, previous, tasks, started };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The run id to echo, known after the config stage.
    pub fn run_id(&self, run_id: Option<String>) {
        self.shared.run.send_modify(|run| run.id = run_id);
    }

    /// Why the watcher started this run.
    pub fn reason(&self, reason: &str) {
        tracing::info!("started by the watcher: {reason}");
        self.shared.run.send_modify(|run| run.reason = Some(reason.to_owned()));
    }

    /// The machine's identity, known after the metadata stage: for the status file and for remedies.
    pub fn instance(&self, instance: &Instance) {
        let Instance { id, name, zone, .. } = instance;
        let identity = InstanceIdentity { id: *id, name: name.clone(), zone: zone.clone() };
        self.shared.run.send_modify(|run| run.instance = Some(identity));
    }

    /// The version that is brought up, told before the end: the last words then fit into one second's requests.
    pub fn version(&self, version: &str) {
        self.shared.run.send_modify(|run| run.version = Some(version.to_owned()));
    }

    /// What became of the update or the rollback of this run. A success is printed; a failure is a warning already.
    pub fn update(&self, update: UpdateReport) {
        if update.code.is_none() {
            tracing::info!("{}", update.message);
        }
        self.shared.run.send_modify(|run| run.update = Some(update));
    }

    /// Runs one stage: notes its beginning and end, prints its one end line with outcome, changes and duration, and
    /// tags a failure with the stage.
    pub async fn stage<T>(&self, stage: Stage, work: impl Future<Output = Result<T>>) -> Result<T, StageError> {
        let started = Instant::now();
        self.begin(stage);
        let outcome = within(stage, work).await;
        let ms = started.elapsed().as_millis();
        self.end(stage, started, outcome.is_ok());
        let changes = self.changes_of(stage);
        match outcome {
            Ok(value) => {
                tracing::info!("stage={stage} status=ok changes={changes} ms={ms}");
                Ok(value)
            }
            Err(error) => {
                tracing::info!("stage={stage} status=failed code={} changes={changes} ms={ms}", code_of(&error));
                Err(StageError { stage, error })
            }
        }
    }

    /// A stage began.
    ///
    /// One that ended well before stays done: for the outside nothing goes back within a run.
    fn begin(&self, stage: Stage) {
        self.shared.run.send_modify(|run| {
            let progress = run.stages.entry(stage).or_insert(StageState::InProgress);
            if !matches!(progress, StageState::Done(_)) {
                *progress = StageState::InProgress;
            }
        });
    }

    /// A stage ended.
    fn end(&self, stage: Stage, began: Instant, ok: bool) {
        let ended = if ok { StageState::Done } else { StageState::Failed };
        let since = |moment: Instant| millis(moment.saturating_duration_since(self.shared.started));
        let span = Span { stage: stage.into(), begin_ms: since(began), end_ms: since(Instant::now()) };
        self.shared.run.send_modify(|run| {
            run.stages.insert(stage, ended(began.elapsed()));
            run.timeline.push(span);
        });
    }

    /// The earliest stage that has begun and is not finished.
    pub fn current_stage(&self) -> Stage {
        self.shared.run.borrow().current_stage().unwrap_or(Stage::Metadata)
    }

    /// How many changes the stage made so far.
    pub fn changes_of(&self, stage: Stage) -> usize {
        let ledger = self.shared.host.ledger();
        let ledger = ledger.borrow();
        ledger.changes.iter().filter(|(by, _)| *by == Some(stage)).count()
    }

    /// Writes the result, last of all keys, and prints it. `last_try`: nobody will start another run after this
    /// failure. Returns after 20 s and one request's time-out at the latest.
    pub async fn finish(&self, outcome: &Result<Ready, StageError>, last_try: bool) {
        self.shared.run.send_modify(|run| {
            run.conclusion = Some(Conclusion::of(outcome, last_try));
            run.flush_until = Some(Instant::now() + FLUSH_DEADLINE);
        });
        let tasks = self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tasks) = tasks {
            tasks.progress.abort();
            let reported = tasks.writer.await.unwrap_or(false);
            drop(tasks.keeper.await);
            self.leave_status(reported).await;
        }
        self.print_result(outcome);
    }

    async fn leave_status(&self, reported: bool) {
        let Shared { host, run, previous, started, .. } = &*self.shared;
        let mut view = View::new(run.subscribe(), host.ledger(), previous.clone(), *started);
        let status = Status { reported, peak_memory_kib: peak_memory(host).await, ..view.status() };
        if !view.is_unchanged(&status) {
            write_status(host, &status).await;
        }
    }

    /// The last words on the console.
    fn print_result(&self, outcome: &Result<Ready, StageError>) {
        let changes = self.shared.host.ledger().borrow().changes.len();
        let ms = self.shared.started.elapsed().as_millis();
        match outcome {
            Ok(Ready { version, degraded }) => {
                if !degraded.is_empty() {
                    tracing::warn!("degraded: {}", degraded.join("; "));
                }
                tracing::info!("result=ready version={version} changes={changes} ms={ms}");
            }
            Err(failure) => {
                tracing::error!("result=failed:{} stage={} changes={changes} ms={ms}", failure.code(), failure.stage);
                for line in progress::lines(&failure.sentence()) {
                    tracing::error!("{line}");
                }
            }
        }
    }
}

/// The largest resident set of this process, in KiB (`VmHWM`, proc(5)); 0 where the kernel does not say.
async fn peak_memory(host: &Host) -> u64 {
    let status = host.read("/proc/self/status").await.ok().flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(&status);
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Keeps the status file equal to the status until the run is over; the end is written by `finish`.
async fn keep_status_file(host: Host, mut view: View, mut written: Status) {
    loop {
        let status = view.status();
        if status.is_final() {
            return;
        }
        if status != written && !view.is_unchanged(&status) {
            write_status(&host, &status).await;
            written = status;
        }
        if !view.changed().await {
            return;
        }
    }
}

async fn write_status(host: &Host, status: &Status) {
    if let Err(error) = status.write(host).await {
        host.warn(format!("{error:#}"));
    }
}
