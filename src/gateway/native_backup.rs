//! The running gateway's own backup: the one consistent copy of databases that are in use.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::exec::{exec, redaction};
use super::spec::CONFIG;
use crate::docker::Engine;
use crate::document;
use crate::host::Host;
use crate::state::DataDir;

/// The archive, in the one place on the data disk that the gateway can write to and does not back up.
const FILE: &str = ".openclaw-init-backup.tar.gz";

/// A large workspace takes its time.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Where the gateway leaves its archive, on the host. The content is the gateway's: not to be trusted.
pub fn native_backup_file(data: &DataDir) -> PathBuf {
    data.config.join(FILE)
}

/// Has the running gateway write a verified archive to [`native_backup_file`], where no file may be.
pub async fn native_backup(host: &Host, engine: &Engine, data: &DataDir) -> Result<()> {
    let secrets = redaction(host, engine, data).await?;
    let file = format!("{CONFIG}/{FILE}");
    let command = ["backup", "create", "--output", &file, "--verify", "--json"];
    let (code, output) = exec(engine, &command, TIMEOUT).await?;
    let verified = document::parse(&output.stdout).is_ok_and(|result| result["verified"] == true);
    if code != 0 || !verified {
        bail!("`backup create --verify` ended with exit code {code}: {}", output.reason(&secrets));
    }
    Ok(())
}
