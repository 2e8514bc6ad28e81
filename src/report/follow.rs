//! A run of the unit as another process sees it: started without waiting, followed to its result.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::{RunResult, Status, UpdateReport};
use crate::error::{Code, RUN_AGAIN};
use crate::host::Host;
use crate::paths::BOOT_UNIT;
use crate::systemd;

/// How often the status is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How a run ended, by its own report.
#[derive(Debug, Clone)]
pub struct RunOutcome {
    status: Option<Status>,
}

/// The state of the boot unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// Nothing runs: it was not started in this boot, or it has ended well.
    Idle,
    /// It is working, queued, or waiting for its next try.
    InProgress,
    /// It ended with a failure, and there is no further try.
    Failed,
}

/// Starts the unit anew and follows it to its result.
pub async fn start_and_follow(host: &Host) -> Result<RunOutcome> {
    systemd::restart_without_waiting(host, BOOT_UNIT).await?;
    follow(host).await
}

/// Follows the run in progress to its result, printing each stage as it comes.
pub async fn follow(host: &Host) -> Result<RunOutcome> {
    wait(host).await?;
    let outcome = last(host).await?;
    if outcome.status.is_none() {
        bail!("{BOOT_UNIT} was not started; see: systemctl status {BOOT_UNIT}");
    }
    Ok(outcome)
}

/// How the last run of this boot ended, or how far it is.
pub async fn last(host: &Host) -> Result<RunOutcome> {
    Ok(RunOutcome { status: Status::read(host).await? })
}

/// Waits for the end of the run in progress.
pub async fn wait(host: &Host) -> Result<()> {
    let mut printed = String::new();
    while observe(host).await? == UnitState::InProgress {
        if let Some(status) = Status::read(host).await?.filter(|status| !status.is_final()) {
            let line = display_progress(&status);
            if line != printed {
                tracing::info!("{line}");
                printed = line;
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// How the boot unit stands.
pub async fn observe(host: &Host) -> Result<UnitState> {
    let show = host.command("systemctl").args(["show", "--property=ActiveState,Job", BOOT_UNIT]);
    let output = show.run().await.with_context(|| format!("asking systemd about {BOOT_UNIT}"))?;
    Ok(parse_unit(&output.stdout))
}

fn parse_unit(properties: &str) -> UnitState {
    let value = |key: &str| properties.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    match value("ActiveState=") {
        _ if !matches!(value("Job="), "" | "0") => UnitState::InProgress,
        // Units of version 0.1.0 stayed active after their end.
        "active" | "inactive" => UnitState::Idle,
        "failed" => UnitState::Failed,
        _ => UnitState::InProgress,
    }
}

/// One short line for the launcher's log.
fn display_progress(status: &Status) -> String {
    let stage = status.detail.stage.as_ref().map_or_else(|| "starting".to_owned(), ToString::to_string);
    format!("state={} stage={stage}", status.state.name())
}

impl RunOutcome {
    /// Whether a run of this boot has ended with a result.
    pub fn has_result(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.result.is_some())
    }

    /// 0 when the gateway is ready, else the code of the failure.
    pub fn exit_code(&self) -> ExitCode {
        if self.status.as_ref().is_some_and(Status::is_down) {
            return Code::GatewayNotReady.exit_code().into();
        }
        let result = self.status.as_ref().and_then(|status| status.result.as_ref()?.known());
        match result {
            Some(RunResult::Ready) => ExitCode::SUCCESS,
            Some(RunResult::Failed(code)) => code.exit_code().into(),
            None => Code::Internal.exit_code().into(),
        }
    }

    /// 0 when the update or rollback was carried out and the gateway is ready, else the code of the failure.
    pub fn update_exit_code(&self) -> ExitCode {
        let update = self.status.as_ref().and_then(|status| status.update.as_ref());
        match update {
            Some(UpdateReport { code: Some(code), .. }) => {
                code.known().copied().unwrap_or(Code::Internal).exit_code().into()
            }
            None if self.exit_code() == ExitCode::SUCCESS => Code::Internal.exit_code().into(),
            _ => self.exit_code(),
        }
    }

    /// The report as JSON.
    pub fn json(&self) -> Result<String> {
        let status = self.status.as_ref().ok_or_else(|| anyhow!("no run in this boot yet"))?;
        Ok(serde_json::to_string_pretty(status)?)
    }
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = &self.status else {
            return write!(out, "openclaw-init has not run in this boot. Start it with: {RUN_AGAIN}");
        };
        match &status.result {
            Some(_) if status.at_end.is_some() => write!(out, "state={}", status.state.name())?,
            Some(result) => write!(out, "result={result}")?,
            None => out.write_str(&display_progress(status))?,
        }
        if let Some(version) = &status.version {
            write!(out, " version={version}")?;
        }
        write!(out, " changes={} boot-id={}", status.changes.count, status.boot_id)?;
        if let Some(reason) = &status.reason {
            write!(out, "\nThe watcher started this run: {reason}")?;
        }
        if let Some(message) = &status.detail.message {
            write!(out, "\n{message}")?;
        }
        for warning in &status.detail.warnings {
            write!(out, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_judged_by_its_state_and_its_job() {
        let cases = [
            ("ActiveState=inactive\n", UnitState::Idle),
            ("Job=41\nActiveState=inactive\n", UnitState::InProgress),
            ("ActiveState=activating\n", UnitState::InProgress),
            ("ActiveState=active\n", UnitState::Idle),
            ("Job=0\nActiveState=active\n", UnitState::Idle),
            ("Job=77\nActiveState=active\n", UnitState::InProgress),
            ("ActiveState=failed\n", UnitState::Failed),
        ];
        for (properties, expected) in cases {
            assert_eq!(parse_unit(properties), expected, "{properties}");
        }
    }
}
