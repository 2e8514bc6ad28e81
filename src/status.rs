//! How the gateway is now. The machine is asked; what the last run wrote is where the question begins.

mod kept;

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::error::{Code, RUN_AGAIN, one_line};
use crate::host::Host;
use crate::lock::require_root;
use crate::metadata::Client;
use crate::report::follow::{RunOutcome, align};
use crate::report::{State, Status};
use crate::text::seconds;
use crate::watch::{self, Now};
use kept::Kept;

/// How long all of the machine together may take to answer.
const DEADLINE: Duration = Duration::from_secs(15);

const NOT_ROOT: &str = "this is what was last reported; `sudo openclaw-init status` asks the machine, and knows it now";

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// What the latest run of this boot left, with what is so now.
    status: Option<Status>,
    now: Option<Now>,
    /// Why the machine was not asked, or did not answer.
    caveat: Option<String>,
    kept: Vec<Kept>,
}

/// Looks at the machine. Nothing is changed, and no run is waited for.
pub async fn look(host: &Host, metadata: &Client) -> Result<Seen> {
    let Some(status) = Status::read(host).await? else { return Ok(Seen::default()) };
    if require_root().is_err() {
        return Ok(Seen { status: Some(status), caveat: Some(NOT_ROOT.to_owned()), ..Seen::default() });
    }
    let now = async { tokio::time::timeout(DEADLINE, watch::now(host, metadata, &status)).await };
    let kept = async { tokio::time::timeout(DEADLINE, kept::find(host)).await.unwrap_or_default() };
    let (now, kept) = tokio::join!(now, kept);
    let unanswered =
        |why: String| Some(format!("this is what was last reported, for the machine gives no answer: {why}"));
    let (now, caveat) = match now {
        Ok(Ok(now)) => (Some(now), None),
        Ok(Err(error)) => (None, unanswered(one_line(&error))),
        Err(_) => (None, unanswered(format!("{} s were not enough", DEADLINE.as_secs()))),
    };
    let status = match &now {
        Some(now) => with(status, now),
        None => status,
    };
    Ok(Seen { status: Some(status), now, caveat, kept })
}

/// The status of the run, with what is so now.
fn with(run: Status, now: &Now) -> Status {
    if run.result.is_none() {
        return run;
    }
    let told = (run.state, run.detail.updated.clone());
    let mut status = run.now(now.saying.as_ref());
    status.detail.updated = since(status.state, &told, now.changed_at);
    status.version = now.version.clone().or(status.version);
    status.detail.pairing.clone_from(&now.asking);
    status
}

/// Since when the state is so, as far as that is known: the report has the time of its last change, and the container
/// that of its own.
fn since(state: State, told: &(State, String), changed_at: Option<Timestamp>) -> String {
    let told = Some(&told.1).filter(|_| told.0 == state).cloned();
    let changed_at = changed_at.map(seconds);
    let since = match state {
        State::Stopped => changed_at.or(told),
        State::Ready | State::Starting => told.max(changed_at),
        _ => told,
    };
    since.unwrap_or_default()
}

impl Seen {
    /// 0 when the gateway is ready now, else the code of the failure.
    pub fn exit_code(&self) -> ExitCode {
        match &self.status {
            Some(status) if status.result.is_some() => self.outcome().exit_code(),
            Some(status) => {
                let code = status.detail.code.as_ref().and_then(|code| code.known().copied());
                code.unwrap_or(Code::GatewayNotReady).exit_code().into()
            }
            None => Code::GatewayNotReady.exit_code().into(),
        }
    }

    fn outcome(&self) -> RunOutcome {
        self.status.clone().into()
    }

    /// One command, where the message does not name it.
    fn next(&self) -> Option<&'static str> {
        const WAIT: &str = "sudo openclaw-init status --wait";
        let Some(status) = &self.status else { return Some(RUN_AGAIN) };
        match (status.state, self.now.as_ref().is_some_and(|now| now.is_busy)) {
            (_, true) => Some(WAIT),
            (State::Ready | State::Degraded, _) if !self.asking().is_empty() => Some("sudo openclaw-init pair"),
            (State::Ready | State::Degraded, _) => Some("sudo openclaw-init link"),
            (State::Failed, _) => None,
            (State::Starting, _) if status.result.is_some() => Some("sudo openclaw-init status"),
            (State::Stopping | State::Stopped, _) => Some(RUN_AGAIN),
            // A run has begun and left this, and none is at work any more.
            _ if self.now.is_some() => Some(RUN_AGAIN),
            _ => Some(WAIT),
        }
    }

    /// For somebody at a terminal.
    pub fn table(&self, has_colour: bool) -> String {
        if self.status.is_none() {
            return self.to_string();
        }
        let mut rows = self.outcome().rows(has_colour);
        rows.extend(self.address().map(|address| ("address", format!("{address} on this VM"))));
        rows.extend(self.asking().iter().map(|asking| ("asking", asking.clone())));
        rows.extend(self.kept.iter().map(|kept| ("kept", kept.to_string())));
        rows.extend(self.caveat.iter().map(|caveat| ("note", caveat.clone())));
        rows.extend(self.next().map(|next| ("next", next.to_owned())));
        align(&rows)
    }

    /// Who asks to be paired.
    fn asking(&self) -> &[String] {
        self.now.as_ref().map_or(&[], |now| &now.asking)
    }

    fn address(&self) -> Option<String> {
        self.now.as_ref()?.address.map(|address| address.to_string())
    }

    /// As JSON: the report, and what else was seen.
    pub fn json(&self) -> Result<String> {
        let mut seen = match &self.status {
            Some(status) => serde_json::to_value(status)?,
            None => json!({}),
        };
        let kept = self.kept.iter().map(|kept| json!({"what": kept.what, "bytes": kept.bytes})).collect();
        seen["now"] = json!({
            "is-asked": self.now.is_some(),
            "is-busy": self.now.as_ref().map(|now| now.is_busy),
            "address": self.address(),
            "kept": Value::Array(kept),
            "note": self.caveat,
            "next": self.next(),
        });
        Ok(serde_json::to_string_pretty(&seen)?)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.outcome().fmt(out)?;
        if self.status.is_none() {
            return Ok(());
        }
        let mut line = |name: &str, value: &dyn fmt::Display| write!(out, "\n{name}: {value}");
        self.address().iter().try_for_each(|address| line("address", address))?;
        self.asking().iter().try_for_each(|asking| line("asking", asking))?;
        self.kept.iter().try_for_each(|kept| line("kept", kept))?;
        self.caveat.iter().try_for_each(|caveat| line("note", caveat))?;
        self.next().iter().try_for_each(|next| line("next", next))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::report::{Detail, RunResult, Saying};

    fn run(state: State, result: Option<RunResult>) -> Status {
        let detail = Detail { updated: "2026-11-26T14:05:03Z".into(), ..Detail::default() };
        Status { boot_id: "3f2a".into(), state, result: result.map(Into::into), detail, ..Status::default() }
    }

    fn now(saying: Option<(State, &str)>) -> Now {
        let saying = saying.map(|(state, message)| Saying { state, message: message.to_owned() });
        let address = Some(([127, 0, 0, 1], 18789).into());
        let version = Some("2026.9.6".into());
        Now { is_busy: false, saying, asking: Vec::new(), address, version, changed_at: None }
    }

    fn seen(status: Status, now: Now) -> Seen {
        Seen { status: Some(with(status, &now)), now: Some(now), ..Seen::default() }
    }

    #[test]
    fn the_exit_code_and_the_next_step_are_of_what_is_now() {
        use State::{Degraded, Failed, Gateway, Ready, Starting, Stopped};
        let ready = || Some(RunResult::Ready);
        let failed = Some(RunResult::Failed(Code::DiskMissing));
        let wait = Some("sudo openclaw-init status --wait");
        let (link, again) = (Some("sudo openclaw-init link"), Some(RUN_AGAIN));
        // What the run left, what is seen, whether a run is at work; the state, the exit code, the next step.
        let cases = [
            (run(Ready, ready()), None, false, Ready, 0, link),
            (run(Ready, ready()), Some((Stopped, "by hand")), false, Stopped, 29, again),
            (run(Ready, ready()), Some((Failed, "no answer")), false, Failed, 29, None),
            (run(Ready, ready()), Some((Starting, "plugins")), false, Starting, 29, Some("sudo openclaw-init status")),
            (run(Degraded, ready()), Some((Degraded, "full")), false, Degraded, 0, link),
            (run(Ready, ready()), None, true, Ready, 0, wait),
            (run(Failed, failed), None, false, Failed, 12, None),
            (run(Gateway, None), None, true, Gateway, 29, wait),
            (run(Gateway, None), None, false, Gateway, 29, again),
            // The report says stopped, and somebody started it again.
            (run(Ready, ready()).now(now(Some((Stopped, "by hand"))).saying.as_ref()), None, false, Ready, 0, link),
        ];
        for (status, saying, is_busy, state, code, next) in cases {
            let seen = seen(status, Now { is_busy, ..now(saying) });
            assert_eq!(seen.status.as_ref().map(|status| status.state), Some(state), "{seen:?}");
            assert_eq!(seen.exit_code(), ExitCode::from(code), "{seen:?}");
            assert_eq!(seen.next(), next, "{seen:?}");
        }
        let asked = seen(run(Ready, ready()), Now { asking: vec!["a from ::1".into()], ..now(None) });
        assert_eq!(asked.next(), Some("sudo openclaw-init pair"));
        assert!(asked.to_string().contains("\nasking: a from ::1\n") && asked.table(false).contains("asking   a from"));
        assert!(asked.json().is_ok_and(|json| json.contains("\"pairing\"")));
        let never = Seen::default();
        assert_eq!((never.exit_code(), never.next()), (ExitCode::from(29), Some(RUN_AGAIN)));
        assert!(never.to_string().ends_with(RUN_AGAIN) && never.json().is_ok_and(|json| json.contains(RUN_AGAIN)));
    }

    #[test]
    fn since_when_is_the_later_of_report_and_container() {
        let (told, container) = ("2026-11-26T14:05:03Z", "2026-11-26T15:00:00Z");
        let early = "2026-11-26T13:00:00Z";
        for (before, state, changed_at, expected) in [
            (State::Ready, State::Ready, Some(container), container),
            (State::Ready, State::Ready, Some(early), told),
            (State::Ready, State::Stopped, Some(container), container),
            (State::Stopped, State::Stopped, Some(early), early),
            (State::Ready, State::Failed, Some(container), ""),
            (State::Failed, State::Failed, Some(container), told),
        ] {
            let changed_at = changed_at.and_then(|at| at.parse().ok());
            assert_eq!(since(state, &(before, told.to_owned()), changed_at), expected, "{before:?} {state:?}");
        }
    }

    #[test]
    fn what_a_terminal_and_a_pipe_get() {
        let kept = vec![
            Kept { what: "/mnt/disks/openclaw-data/openclaw.before-update-T".into(), bytes: Some(1_610_612_736) },
            Kept { what: "1 image that no gateway runs".into(), bytes: None },
        ];
        let seen = Seen { kept, ..seen(run(State::Ready, Some(RunResult::Ready)), now(None)) };
        expect![[r#"
            state    ready
            version  OpenClaw 2026.9.6
            since    2026-11-26T14:05:03Z
            run      0 changes, boot 3f2a
            address  127.0.0.1:18789 on this VM
            kept     /mnt/disks/openclaw-data/openclaw.before-update-T (1.5 GiB)
            kept     1 image that no gateway runs (of a size that is not known)
            next     sudo openclaw-init link"#]]
        .assert_eq(&seen.table(false));
        expect![[r"
            result=ready version=2026.9.6 changes=0 boot-id=3f2a
            address: 127.0.0.1:18789
            kept: /mnt/disks/openclaw-data/openclaw.before-update-T (1.5 GiB)
            kept: 1 image that no gateway runs (of a size that is not known)
            next: sudo openclaw-init link"]]
        .assert_eq(&seen.to_string());
    }
}
