//! The closed list of stages, and which one the current future belongs to.

use std::fmt;
use std::future::Future;

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
    /// What lies on the disk: an interrupted operation, a move from the boot disk, the directories.
    State,
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
            Self::State => "state",
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

/// Runs `work` as part of `stage`: its changes and its progress belong to it.
pub async fn within<T>(stage: Stage, work: impl Future<Output = T>) -> T {
    CURRENT.scope(stage, work).await
}
