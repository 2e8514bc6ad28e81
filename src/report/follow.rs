//! A run of the unit as another process sees it: started without waiting, followed to its result.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::{RunResult, State, Status, UpdateReport, timeline};
use crate::error::{Code, RUN_AGAIN};
use crate::host::Host;
use crate::log::{erase_live, print_live};
use crate::paths::BOOT_UNIT;
use crate::systemd;

/// How often the status is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Longer than any run is followed.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

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

/// Follows the run in progress to its result.
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

/// Waits for the end of the run in progress. On a terminal one line shows what it says, elsewhere each stage is a line.
pub async fn wait(host: &Host) -> Result<()> {
    if !io::stderr().is_terminal() || observe(host).await? != UnitState::InProgress {
        return wait_for_end(host, true).await;
    }
    let ended = tokio::select! {
        ended = wait_for_end(host, false) => ended,
        never = show_journal(host) => match never {},
    };
    erase_live();
    ended
}

/// Shows what the run says. Without a journal there is nothing to see.
async fn show_journal(host: &Host) -> Infallible {
    let journal = host.command("journalctl").args(["--follow", "--lines=1", "--output=cat", "--unit", BOOT_UNIT]);
    let reading = journal.timeout(JOURNAL_TIMEOUT).run_lines(|line| {
        if let Some(line) = shown(line) {
            print_live(&line);
        }
    });
    if let Err(error) = reading.await {
        tracing::debug!("{error:#}");
    }
    std::future::pending().await
}

/// A line of the run's log for a person: `image: pulling …`.
fn shown(line: &str) -> Option<String> {
    let text = line.strip_prefix("openclaw: ")?;
    if text.starts_with("debug: ") || text.starts_with("result=") {
        return None;
    }
    let Some((stage, what)) = text.strip_prefix("stage=").and_then(|rest| rest.split_once(' ')) else {
        return Some(text.to_owned());
    };
    let what = what.strip_prefix("status=").map_or(what, |status| status.split(' ').next().unwrap_or_default());
    Some(format!("{stage}: {what}"))
}

async fn wait_for_end(host: &Host, prints_stages: bool) -> Result<()> {
    let mut printed = String::new();
    while observe(host).await? == UnitState::InProgress {
        if prints_stages && let Some(status) = Status::read(host).await?.filter(|status| !status.is_final()) {
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

    /// The same as [`Display`](fmt::Display), for somebody at a terminal.
    pub fn table(&self, has_colour: bool) -> String {
        if self.status.is_none() { self.to_string() } else { align(&self.rows(has_colour)) }
    }

    /// The rows of the table: names and values.
    pub(crate) fn rows(&self, has_colour: bool) -> Vec<(&'static str, String)> {
        let Some(status) = &self.status else { return Vec::new() };
        let colour = match status.state {
            State::Ready => "32",
            State::Failed => "31",
            _ => "33",
        };
        let state = status.state.name();
        let state = if has_colour { format!("\u{1b}[1;{colour}m{state}\u{1b}[0m") } else { state.to_owned() };
        let mut rows = vec![("state", state)];
        if status.result.is_none() {
            rows.extend(status.detail.stage.as_ref().map(|stage| ("stage", stage.to_string())));
        }
        rows.extend(status.version.iter().map(|version| ("version", format!("OpenClaw {version}"))));
        rows.extend(Some(("since", status.detail.updated.clone())).filter(|(_, since)| !since.is_empty()));
        rows.push(("run", format!("{} changes, boot {}", status.changes.count, status.boot_id)));
        rows.extend(status.reason.iter().map(|reason| ("", format!("started by the watcher: {reason}"))));
        rows.extend(status.detail.code.iter().map(|code| ("code", code.to_string())));
        rows.extend(status.detail.message.iter().map(|message| ("message", message.clone())));
        rows.extend(status.detail.warnings.iter().map(|warning| ("warning", warning.clone())));
        rows.extend(status.detail.before.iter().map(|before| ("before", before.clone())));
        rows
    }

    /// The stages of the run in time, as a chart.
    pub fn timeline(&self) -> Result<String> {
        let status = self.status.as_ref().ok_or_else(|| anyhow!("no run in this boot yet"))?;
        Ok(timeline::chart(&status.timeline))
    }
}

/// Rows as a table.
pub(crate) fn align(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(name, value)| format!("{name:<9}{value}")).collect::<Vec<_>>().join("\n")
}

impl From<Option<Status>> for RunOutcome {
    fn from(status: Option<Status>) -> Self {
        Self { status }
    }
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = &self.status else {
            return write!(out, "openclaw-init has not run in this boot. Start it with: {RUN_AGAIN}");
        };
        match &status.result {
            Some(_) if status.has_changed_since() => write!(out, "state={}", status.state.name())?,
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
        if let Some(before) = &status.detail.before {
            write!(out, "\nbefore: {before}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::report::{Changes, Detail};

    #[test]
    fn a_terminal_gets_a_table() {
        let detail = Detail {
            updated: "2026-11-26T14:05:03Z".into(),
            code: Some(Code::DiskForeign.into()),
            message: Some("preparing /dev/sdb: signature xfs found. Attach an empty disk.".into()),
            warnings: vec!["the clock is wrong".into()],
            before: Some("the boot before this one was cut off".into()),
            ..Detail::default()
        };
        let changes = Changes { count: 3, list: Vec::new() };
        let status = Status { boot_id: "3f2a".into(), state: State::Failed, detail, changes, ..Status::default() };
        let outcome = RunOutcome { status: Some(status) };
        expect![[r#"
            state    failed
            since    2026-11-26T14:05:03Z
            run      3 changes, boot 3f2a
            code     disk-foreign
            message  preparing /dev/sdb: signature xfs found. Attach an empty disk.
            warning  the clock is wrong
            before   the boot before this one was cut off"#]]
        .assert_eq(&outcome.table(false));
        assert!(outcome.table(true).starts_with("state    \u{1b}[1;31mfailed\u{1b}[0m\n"), "{}", outcome.table(true));
    }

    #[test]
    fn what_a_run_says_is_one_short_line() {
        for (line, expected) in [
            ("openclaw: stage=image pulling x/y:1: unpacking", Some("image: pulling x/y:1: unpacking")),
            ("openclaw: stage=image status=ok changes=1 ms=61620", Some("image: ok")),
            ("openclaw: stopped container openclaw-gateway", Some("stopped container openclaw-gateway")),
            ("openclaw: warning: the clock is wrong", Some("warning: the clock is wrong")),
            ("openclaw: result=ready changes=3", None),
            ("openclaw: debug: running blkid", None),
            ("Started openclaw-init.service.", None),
        ] {
            assert_eq!(shown(line).as_deref(), expected, "{line}");
        }
    }

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
