//! What a startup script, cloud-init or an operator runs: put the program in place, start its unit, follow it.
//!
//! A carrier never boots the gateway itself. The unit is the only place where the work is done, so both
//! triggers of one boot are one run, and the gateway comes up even if the carrier is gone at the next boot.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use crate::failure::Code;
use crate::host::Host;
use crate::report::{Status, Update};
use crate::systemd;
use crate::units::{self, BOOT_UNIT, Run};

/// How often the status is looked at.
const POLL: Duration = Duration::from_millis(500);

/// How a run ended, as its own report says.
#[derive(Debug, Clone)]
pub struct Followed {
    status: Option<Status>,
}

/// Installs the program, makes sure that its unit runs with it, follows it to the result.
pub async fn run(host: &Host) -> Result<Followed> {
    let installed = units::install(host).await?;
    let before = units::observe(host).await?;
    if installed && before == Run::InProgress {
        tracing::info!("waiting for the run of the previous version to end");
        wait(host).await?;
    }
    // Same program, same boot: a run in progress or done is the one to follow.
    if installed || matches!(before, Run::NotStarted | Run::Failed) {
        systemd::restart_without_waiting(host, BOOT_UNIT).await?;
    }
    follow(host).await
}

/// Follows the run in progress to its result, printing each stage as it comes.
pub async fn follow(host: &Host) -> Result<Followed> {
    if wait(host).await? == Run::NotStarted {
        bail!("{BOOT_UNIT} was not started; see: systemctl status {BOOT_UNIT}");
    }
    last(host).await
}

/// How the last run of this boot ended, or how far it is.
pub async fn last(host: &Host) -> Result<Followed> {
    Ok(Followed { status: Status::read(host).await? })
}

async fn wait(host: &Host) -> Result<Run> {
    let mut shown = String::new();
    loop {
        let run = units::observe(host).await?;
        if let Some(status) = Status::read(host).await?
            && run == Run::InProgress
            && !status.is_final()
        {
            let line = progress(&status);
            if line != shown {
                tracing::info!("{line}");
                shown = line;
            }
        }
        if run != Run::InProgress {
            return Ok(run);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// One short line for the carrier's log.
fn progress(status: &Status) -> String {
    let stage = status.detail.stage.as_deref().unwrap_or("starting");
    format!("state={} stage={stage}", status.state.name())
}

impl Followed {
    /// 0 when the gateway is ready, else the code of the failure.
    pub fn exit_code(&self) -> ExitCode {
        let result = self.status.as_ref().and_then(|status| status.result.as_deref());
        match result {
            Some("ready") => ExitCode::SUCCESS,
            result => exit_code_of(result.and_then(|result| result.strip_prefix("failed:"))),
        }
    }

    /// 0 when the update or rollback was carried out and the gateway is ready, else the code of the failure.
    pub fn update_exit_code(&self) -> ExitCode {
        let update = self.status.as_ref().and_then(|status| status.update.as_ref());
        match update {
            Some(Update { code: Some(code), .. }) => exit_code_of(Some(code)),
            None if self.exit_code() == ExitCode::SUCCESS => exit_code_of(None),
            _ => self.exit_code(),
        }
    }

    /// The report as JSON.
    pub fn json(&self) -> Result<String> {
        let status = self.status.as_ref().ok_or_else(|| anyhow!("no run in this boot yet"))?;
        Ok(serde_json::to_string_pretty(status)?)
    }
}

fn exit_code_of(name: Option<&str>) -> ExitCode {
    let code = Code::ALL.iter().find(|code| Some(code.name()) == name);
    code.copied().unwrap_or(Code::Internal).exit_code().into()
}

impl fmt::Display for Followed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = &self.status else {
            return out
                .write_str("openclaw-init has not run in this boot. Start it with: systemctl start openclaw-init");
        };
        let detail = &status.detail;
        match status.result.as_deref() {
            Some(result) => write!(out, "result={result}")?,
            None => out.write_str(&progress(status))?,
        }
        if let Some(version) = &status.version {
            write!(out, " version={version}")?;
        }
        write!(out, " changes={} boot-id={}", status.changes.count, status.boot_id)?;
        if let Some(message) = &detail.message {
            write!(out, "\n{message}")?;
        }
        for warning in &detail.warnings {
            write!(out, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}
