//! The directories on a volume: their owners and modes.

use anyhow::Result;

use super::DataDir;
use crate::host::{Access, Host};

/// Makes the directories, or repairs their owners and modes: of themselves, never of what is in them.
pub(super) async fn ensure(host: &Host, data: &DataDir) -> Result<()> {
    for (path, access) in [
        (&data.records, Access::root(0o700)),
        (&data.backups, Access::root(0o700)),
        (&data.config, Access::gateway(0o700)),
        (&data.state, Access::gateway(0o700)),
    ] {
        host.ensure_dir(path, access).await?;
    }
    Ok(())
}
