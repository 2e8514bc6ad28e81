//! What a startup script, cloud-init or an operator runs: put the program in place, start its unit, follow it.
//!
//! A launcher never boots the gateway itself. Only the unit does the work, so both triggers of one boot are one run,
//! and the gateway comes up even if the launcher is gone at the next boot.

use anyhow::Result;

use super::install;
use crate::host::{Host, blocking, remove_if_exists};
use crate::metadata::Client;
use crate::paths::{BOOT_UNIT, IDENTITY_UNIT, SHIELD_UNIT, TRIES, WATCH_UNIT};
use crate::report::follow::{self, RunOutcome, UnitState};
use crate::report::report_failure;
use crate::systemd;
use crate::update::Request;

/// Installs the program, has its unit run with it, and follows the run to the result.
pub async fn run(host: &Host, metadata: &Client) -> Result<RunOutcome> {
    let installed = match install(host).await {
        Err(error) => {
            // A unit that is there reports on its own.
            if !systemd::is_loaded(host, BOOT_UNIT).await.unwrap_or(false) {
                report_failure(host, metadata, &error).await;
            }
            return Err(error);
        }
        installed => installed?,
    };
    let before = follow::observe(host).await?;
    if installed && before == UnitState::InProgress {
        tracing::info!("waiting for the run of the previous version to end");
        follow::wait(host).await?;
    }
    if installed {
        // The parts that are resident run with this program, too. Where the shield cannot, the run says so.
        for unit in [SHIELD_UNIT, IDENTITY_UNIT, WATCH_UNIT] {
            if let Err(error) = systemd::restart_if_active(host, unit).await {
                tracing::debug!("{error:#}");
            }
        }
    }
    systemd::start_without_waiting(host, WATCH_UNIT).await?;
    // Same program, same boot: follow the run that is in progress or done.
    let has_ended = before == UnitState::Idle && follow::last(host).await?.has_result();
    if installed || before == UnitState::Failed || before == UnitState::Idle && !has_ended {
        // Another program, or another chance: its tries begin anew.
        let tries = host.path(TRIES);
        drop(blocking(move || remove_if_exists(&tries)).await);
        return follow::start_and_follow(host).await;
    }
    follow::follow(host).await
}

/// Has the unit do what `request` asks for, once the run in progress has ended, and follows it to the result. The run
/// goes on when this process ends.
pub async fn carry_out(host: &Host, request: &Request) -> Result<RunOutcome> {
    request.leave(host).await?;
    if !systemd::is_loaded(host, BOOT_UNIT).await? {
        install(host).await?;
    }
    follow::start_and_follow(host).await
}
