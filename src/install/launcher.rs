//! What a startup script, cloud-init or an operator runs: put the program in place, start its unit, follow it.
//!
//! A launcher never boots the gateway itself. The unit is the only place where the work is done, so both
//! triggers of one boot are one run, and the gateway comes up even if the launcher is gone at the next boot.

use anyhow::Result;

use super::install;
use crate::host::Host;
use crate::paths::{BOOT_UNIT, TRIES};
use crate::report::follow::{self, RunOutcome, UnitState};
use crate::systemd;
use crate::update::Request;

/// Installs the program, makes sure that its unit runs with it, follows it to the result.
pub async fn run(host: &Host) -> Result<RunOutcome> {
    let installed = install(host).await?;
    let before = follow::observe(host).await?;
    if installed && before == UnitState::InProgress {
        tracing::info!("waiting for the run of the previous version to end");
        follow::wait(host).await?;
    }
    // Same program, same boot: a run in progress or done is the one to follow.
    let has_ended = before == UnitState::Idle && follow::last(host).await?.has_result();
    if installed || before == UnitState::Failed || before == UnitState::Idle && !has_ended {
        // Another program, or another chance: its tries begin anew.
        drop(tokio::fs::remove_file(host.path(TRIES)).await);
        return follow::start_and_follow(host).await;
    }
    follow::follow(host).await
}

/// Has the unit do what `request` asks for, once the run in progress has ended, and follows it to the result. It goes
/// on when this process ends.
pub async fn carry_out(host: &Host, request: &Request) -> Result<RunOutcome> {
    request.leave(host).await?;
    if systemd::property(host, BOOT_UNIT, "LoadState").await? != "loaded" {
        install(host).await?;
    }
    follow::start_and_follow(host).await
}
