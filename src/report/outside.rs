//! The report of a failure outside of any run: of a launcher that could not install, or a run that could not start.

use std::time::Duration;

use anyhow::{Error, Result};

use super::status::{Detail, RunResult, State, Status};
use super::writer::{AT_END, NAMESPACE};
use crate::error::{code_of, one_line};
use crate::host::Host;
use crate::metadata::Client;

/// The pause between two requests: Compute Engine takes three a second.
const PAUSE: Duration = Duration::from_millis(400);

/// Writes the failure to the guest attributes, and to nothing of this machine, which may be what is full. A result that
/// this boot has already stays.
pub async fn report_failure(host: &Host, metadata: &Client, error: &Error) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    if let Err(failed) = write(host, metadata, error).await {
        tracing::warn!("reporting the failure: {failed:#}");
    }
}

async fn write(host: &Host, metadata: &Client, error: &Error) -> Result<()> {
    let boot_id = host.boot_id().await?;
    let last = Status::read(host).await.ok().flatten();
    if last.is_some_and(|last| last.boot_id == boot_id && last.result.is_some()) {
        return Ok(());
    }
    let code = code_of(error);
    let detail = Detail { code: Some(code.into()), message: Some(one_line(error)), ..Detail::default() };
    let result = Some(RunResult::Failed(code).into());
    let status = Status { boot_id, state: State::Failed, result, detail, ..Status::default() }.stamped();
    for (key, value) in AT_END.iter().filter_map(|key| Some((key, status.attribute(key)?))) {
        metadata.put_guest_attribute(NAMESPACE, key, &value).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
