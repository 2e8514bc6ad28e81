//! The closed list of stages, and which one the current future belongs to.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use anyhow::{Context as _, Error};

macro_rules! stages {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// A part of the boot, in the order of the design.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Stage { $($(#[$doc])* $variant,)* }

        impl Stage {
            const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stage's name in logs, in `detail` and in `status.json`.
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
        }
    };
}

stages! {
    /// Reading the instance metadata.
    Metadata = "metadata";
    /// Checking the attributes.
    Config = "config";
    /// Swap, where memory is short.
    Swap = "swap";
    /// The Docker Engine.
    Docker = "docker";
    /// The data disk.
    Disk = "disk";
    /// What lies on the disk: an interrupted operation, a move from the boot disk, the directories.
    State = "state";
    /// Keeping containers away from the metadata server.
    Shield = "shield";
    /// The gateway's image.
    Image = "image";
    /// The gateway's token and `.env`.
    Secrets = "secrets";
    /// The container.
    Gateway = "gateway";
    /// The gateway's own readiness.
    Ready = "ready";
    /// Another version in the place of the current one, or back.
    Update = "update";
    /// Letting in who is named.
    Pairing = "pairing";
    /// HTTPS at a name of the gateway's own.
    Proxy = "proxy";
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let stage = Self::ALL.iter().find(|stage| stage.name() == name);
        stage.copied().with_context(|| format!("{name:?} is no stage of this version"))
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

/// The stage whose future is being polled, if any: changes and progress belong to it.
pub fn current() -> Option<Stage> {
    CURRENT.try_with(|stage| *stage).ok()
}

/// Runs `work` as part of `stage`: its changes and its progress belong to it.
pub async fn within<T>(stage: Stage, work: impl Future<Output = T>) -> T {
    CURRENT.scope(stage, work).await
}
