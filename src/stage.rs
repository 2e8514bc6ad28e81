//! The closed list of stages, and the one wrapper around each of them.

use std::fmt;
use std::future::Future;
use std::time::Instant;

use anyhow::Error;

use crate::failure::{Code, code_of, one_line};
use crate::report::Report;

/// A part of the boot, in the order of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Reading the instance metadata.
    Metadata,
    /// Checking the attributes.
    Config,
    /// Swap, where memory is short.
    Swap,
    /// The Docker Engine.
    Docker,
    /// The data disk.
    Disk,
    /// Moving a state that began on the boot disk to the data disk.
    Move,
    /// Keeping containers away from the metadata server.
    Shield,
    /// The gateway's image.
    Image,
    /// The gateway's token and `.env`.
    Secrets,
    /// The container.
    Gateway,
    /// The gateway's own readiness.
    Ready,
    /// Another version in the place of the present one, or back.
    Update,
}

impl Stage {
    /// The stage's name in logs, in `detail` and in `status.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Config => "config",
            Self::Swap => "swap",
            Self::Docker => "docker",
            Self::Disk => "disk",
            Self::Move => "move",
            Self::Shield => "shield",
            Self::Image => "image",
            Self::Secrets => "secrets",
            Self::Gateway => "gateway",
            Self::Ready => "ready",
            Self::Update => "update",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

tokio::task_local! {
    static CURRENT: Stage;
}

/// The stage whose future is being polled, if any: who a change or a progress line belongs to.
pub fn current() -> Option<Stage> {
    CURRENT.try_with(|stage| *stage).ok()
}

/// A stage's failure: where, and the error with its chain.
#[derive(Debug)]
pub struct Failure {
    /// The stage that failed.
    pub stage: Stage,
    /// What was being done, why it failed, and (see [`code_of`]) its class.
    pub error: Error,
}

impl Failure {
    /// The class of the failure.
    pub fn code(&self) -> Code {
        code_of(&self.error)
    }

    /// The sentence for the operator, on one line.
    pub fn sentence(&self) -> String {
        one_line(&self.error)
    }
}

/// Lets `work` be that of a stage, outside of a boot: its changes and its progress belong to it.
pub async fn within<T>(stage: Stage, work: impl Future<Output = T>) -> T {
    CURRENT.scope(stage, work).await
}

/// Runs one stage: tells the report that it began and ended, prints its one end line with outcome,
/// changes and duration, and tags a failure with the stage.
pub async fn stage<T>(
    report: &Report,
    stage: Stage,
    work: impl Future<Output = anyhow::Result<T>>,
) -> Result<T, Failure> {
    let started = Instant::now();
    report.begin(stage);
    let outcome = within(stage, work).await;
    let ms = started.elapsed().as_millis();
    report.end(stage, started.elapsed(), outcome.is_ok());
    let changes = report.changes_of(stage);
    match outcome {
        Ok(value) => {
            tracing::info!("stage={stage} status=ok changes={changes} ms={ms}");
            Ok(value)
        }
        Err(error) => {
            tracing::info!("stage={stage} status=failed code={} changes={changes} ms={ms}", code_of(&error));
            Err(Failure { stage, error })
        }
    }
}
