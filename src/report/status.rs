//! The status of a run as data: the one content of the guest attributes and of `status.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::last_boot::BootEnd;
use super::name::Name;
use super::timeline::Span;
use crate::error::Code;
use crate::host::{Host, blocking};
use crate::paths::STATUS;
use crate::stage::Stage;
use crate::text::{head, seconds, tail};

/// The longest `detail`: small enough for every reader.
const DETAIL_BYTES: usize = 1024;

/// A warning that would be cut shorter than this is left out.
const SHORTEST_WARNING_BYTES: usize = 24;

/// How far the machine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Metadata and configuration.
    #[default]
    Starting,
    /// The Docker Engine.
    Installing,
    /// The data disk.
    Disk,
    /// The gateway's image.
    Image,
    /// The container.
    Gateway,
    /// The gateway answers.
    Ready,
    /// The gateway answers, but part of it (a channel) does not work.
    Degraded,
    /// The run failed.
    Failed,
    /// The gateway is being stopped.
    Stopping,
    /// The gateway does not run because somebody stopped it.
    Stopped,
}

impl State {
    /// The value of the guest attribute `state`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Installing => "installing",
            Self::Disk => "disk",
            Self::Image => "image",
            Self::Gateway => "gateway",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// How a run ended, for whoever waits for it: `ready` or `failed:<code>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunResult {
    /// The gateway answers.
    Ready,
    /// It does not, and no further try will follow that could end otherwise.
    Failed(Code),
}

impl fmt::Display for RunResult {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => out.write_str("ready"),
            Self::Failed(code) => write!(out, "failed:{code}"),
        }
    }
}

impl FromStr for RunResult {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("failed:") {
            Some(code) => code.parse().map(Self::Failed),
            None if text == "ready" => Ok(Self::Ready),
            None => Err(anyhow!("{text:?} is no result of this version")),
        }
    }
}

/// The status of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Status {
    /// The kernel's boot id.
    pub boot_id: String,
    /// How the boot before it ended, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_boot: Option<Name<BootEnd>>,
    /// The operator's `openclaw-run-id`.
    pub run_id: Option<String>,
    /// How far the run is.
    pub state: State,
    /// Nothing while the run goes on and while another try will follow.
    pub result: Option<Name<RunResult>>,
    /// The gateway's version, from when its image is there; none of a run that failed.
    pub version: Option<String>,
    /// The rest, for people.
    pub detail: Detail,
    /// Why the watcher started this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the run itself said at its end, where `state` and `detail` say what happened since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_end: Option<Words>,
    /// What this run changed.
    pub changes: Changes,
    /// The machine, once its metadata is read.
    pub instance: Option<InstanceIdentity>,
    /// What became of an update or a rollback in this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateReport>,
    /// When each stage that ended began and ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Span>,
    /// The most memory that this program needed, in KiB; known at the end of the run.
    pub peak_memory_kib: u64,
    /// The guest attributes have all of this.
    pub reported: bool,
}

/// How the gateway is, as the guest attributes say it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// In one word.
    pub state: State,
    /// The rest.
    pub detail: Detail,
}

/// What has happened to the gateway since the run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saying {
    /// In one word.
    pub state: State,
    /// What, since when, and what to do.
    pub message: String,
}

/// The guest attribute `detail`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// When this was written, RFC 3339.
    pub updated: String,
    /// The earliest unfinished stage, or the one that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<Name<Stage>>,
    /// The failure's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Name<Code>>,
    /// The sentence for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Milliseconds of every stage that ended.
    pub elapsed: BTreeMap<String, u64>,
    /// What an operator should know although the run went on.
    pub warnings: Vec<String>,
    /// How the boot before this one ended, unless it was clean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Who has asked to be paired lately: `ID from ADDRESS`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pairing: Vec<String>,
}

/// What a run changed on the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Changes {
    /// How many changes.
    pub count: usize,
    /// Each of them in the past tense, with its stage in front.
    pub list: Vec<String>,
}

/// What became of an update or a rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpdateReport {
    /// One sentence.
    pub message: String,
    /// The failure's code when it was refused or undone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Name<Code>>,
    /// How long no gateway answered, in milliseconds; nothing when the current one was not touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
}

/// A length of time in the report's unit, milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Which machine it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceIdentity {
    /// The instance id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
}

impl Status {
    /// The status that the latest run of this boot left, `None` when there was no run yet.
    pub async fn read(host: &Host) -> Result<Option<Self>> {
        let Some(bytes) = host.read(STATUS).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading the status in {STATUS}"))
    }

    /// Replaces the status file. Not a change of the machine: it is about the run and gone with the boot.
    pub(super) async fn write(&self, host: &Host) -> Result<()> {
        let path = host.path(STATUS);
        let mut json = serde_json::to_vec_pretty(&self.stamped()).context("encoding the status")?;
        json.push(b'\n');
        blocking(move || replace(&path, &json)).await.with_context(|| format!("writing the status to {STATUS}"))
    }

    /// Whether the run is over.
    pub fn is_final(&self) -> bool {
        matches!(self.state, State::Ready | State::Degraded | State::Failed | State::Stopped)
    }

    /// What it says of the gateway now.
    pub fn words(&self) -> Words {
        Words { state: self.state, detail: Detail { updated: String::new(), ..self.detail.clone() } }
    }

    /// What the run said at its end.
    pub fn words_of_the_run(&self) -> Words {
        self.at_end.clone().unwrap_or_else(|| self.words())
    }

    /// Says something else of the gateway from now on, and remembers what the run said.
    pub(super) fn say(&mut self, words: Words) {
        self.at_end = Some(self.words_of_the_run());
        (self.state, self.detail) = (words.state, words.detail);
    }

    /// The same with what is so now instead of what was said since the run.
    #[must_use]
    pub(crate) fn now(mut self, saying: Option<&Saying>) -> Self {
        let run = self.words_of_the_run();
        if saying.is_some() {
            self.say(with(run, saying));
        } else {
            (self.state, self.detail, self.at_end) = (run.state, run.detail, None);
        }
        self
    }

    /// Whether another state is said now than the run said at its end.
    pub(super) fn has_changed_since(&self) -> bool {
        self.at_end.as_ref().is_some_and(|words| words.state != self.state)
    }

    /// Whether the gateway, by what is said now, does not do what it did at the end of the run.
    pub(super) fn is_down(&self) -> bool {
        let is_down_since = self.at_end.is_some() && matches!(self.state, State::Failed | State::Starting);
        is_down_since || matches!(self.state, State::Stopping | State::Stopped)
    }

    /// What who waits for the boot is told. They learn nothing from a repair that failed weeks later; `state` says it.
    pub(super) fn result_of_the_boot(&self) -> Option<&Name<RunResult>> {
        self.result.as_ref().filter(|result| self.reason.is_none() || **result == RunResult::Ready.into())
    }

    /// Whether a waiter that has read `other` learns nothing from this one.
    pub(super) fn adds_nothing_to(&self, other: &Self) -> bool {
        let outcome = |status: &Self| {
            (status.state, status.result.clone(), status.version.clone(), status.run_id.clone(), status.boot_id.clone())
        };
        let warnings = |status: &Self| status.detail.warnings.clone();
        outcome(self) == outcome(other) && warnings(self).iter().all(|warning| warnings(other).contains(warning))
    }

    /// The value of a guest attribute, `None` when it has none now.
    pub(super) fn attribute(&self, key: &str) -> Option<String> {
        match key {
            "boot-id" => Some(self.boot_id.clone()),
            "run-id" => self.run_id.clone(),
            "version" => self.version.clone(),
            "detail" => Some(self.detail.fitted()),
            "state" => Some(self.state.name().to_owned()),
            "result" => self.result_of_the_boot().map(ToString::to_string),
            _ => None,
        }
    }

    /// The same without the time in it: to know whether it is news.
    pub(super) fn words_as(&self, key: &str) -> Option<String> {
        let mut status = self.clone();
        status.detail.updated.clear();
        status.attribute(key)
    }

    /// The same status, with the time in its detail.
    pub(super) fn stamped(&self) -> Self {
        let mut stamped = self.clone();
        stamped.detail.updated = seconds(Timestamp::now());
        stamped
    }
}

/// The run's words with what happened since: its own message stays behind.
pub(super) fn with(run: Words, saying: Option<&Saying>) -> Words {
    let Some(Saying { state, message }) = saying else { return run };
    // What the run missed, and is there now, is not missed any more.
    let own = run.detail.message.as_deref().filter(|_| (run.state, *state) != (State::Degraded, State::Ready));
    let messages: Vec<&str> = [message.as_str()].into_iter().chain(own).collect();
    let message = Some(messages.join("; "));
    Words { state: *state, detail: Detail { stage: None, message, ..run.detail } }
}

impl Detail {
    /// As JSON of at most 1 KiB: the warnings are cut first, from the last one, then the message.
    fn fitted(&self) -> String {
        let mut detail = self.clone();
        loop {
            let json = serde_json::to_string(&detail).unwrap_or_default();
            let Some(over) = json.len().checked_sub(DETAIL_BYTES).filter(|over| *over > 0) else { return json };
            if let Some(last) = detail.warnings.last_mut() {
                if !shorten(last, over, SHORTEST_WARNING_BYTES) {
                    detail.warnings.pop();
                }
            } else if !detail.message.as_mut().is_some_and(|message| shorten(message, over, 1)) {
                return Self::default().fitted();
            }
        }
    }
}

/// Cuts at least `over` bytes out of the middle, at characters, and marks the cut: the beginning names the object,
/// the end says what to do. False when less than `shortest` is left.
fn shorten(text: &mut String, over: usize, shortest: usize) -> bool {
    const MARK: &str = "...";
    let kept = text.len().saturating_sub(over + MARK.len());
    *text = format!("{}{MARK}{}", head(text, kept / 2), tail(text, kept - kept / 2));
    kept >= shortest
}

/// A reader finds the old file or the new one. Not synced: a file in `/run` does not outlive a power cut.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let directory = path.parent().ok_or_else(|| anyhow!("the path has no directory"))?;
    let mut file = tempfile::NamedTempFile::new_in(directory).context("creating a temporary file beside it")?;
    file.write_all(content).context("writing the temporary file")?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).context("making it readable")?;
    file.persist(path).map_err(|error| error.error).context("renaming the temporary file")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_always_fits_and_stays_json() -> Result<()> {
        let long = "a \"quoted\" \u{fc}\u{1f980} text\n".repeat(100);
        let elapsed: BTreeMap<_, _> = ["metadata", "config"].map(|stage| (stage.to_owned(), 1)).into();
        let table = [
            ("short".to_owned(), vec!["w".to_owned()]),
            ("short".to_owned(), vec![long.clone(), long.clone()]),
            (long.clone(), vec![]),
            (long.clone(), vec!["w".to_owned(); 200]),
        ];
        for (message, warnings) in table {
            let detail =
                Detail { message: Some(message.clone()), warnings, elapsed: elapsed.clone(), ..Detail::default() };
            let json = detail.fitted();
            assert!(json.len() <= DETAIL_BYTES, "{} bytes", json.len());
            let read: Detail = serde_json::from_str(&json)?;
            assert_eq!(read.elapsed, detail.elapsed);
            let start: String = message.chars().take(40).collect();
            assert!(read.message.is_some_and(|read| read.starts_with(start.trim_end_matches("..."))), "{json}");
        }
        Ok(())
    }

    #[test]
    fn nothing_is_cut_that_fits() {
        let detail = Detail { message: Some("m".repeat(400)), warnings: vec!["w".repeat(400)], ..Detail::default() };
        assert!(!detail.fitted().contains("..."));
    }

    #[test]
    fn the_file_has_the_names_of_the_attributes() -> Result<()> {
        let status = Status { boot_id: "b".into(), result: Some(RunResult::Ready.into()), ..Status::default() };
        let json = serde_json::to_value(&status)?;
        assert_eq!(
            (&json["boot-id"], &json["state"], &json["result"]),
            (&"b".into(), &"starting".into(), &"ready".into())
        );
        assert_eq!(serde_json::from_value::<Status>(json)?, status);
        Ok(())
    }

    #[test]
    fn a_status_of_another_version_is_displayed_as_it_is() -> Result<()> {
        for result in ["ready", "failed:disk-foreign", "failed:moon-missing", "postponed"] {
            let known = ["ready", "failed:disk-foreign"].contains(&result);
            let (code, stage) = if known { ("disk-foreign", "disk") } else { ("moon-missing", "orbit") };
            let json = serde_json::json!({
                "result": result,
                "detail": {"stage": stage, "code": code},
                "update": {"message": "m", "code": code},
            });
            let status: Status = serde_json::from_value(json.clone())?;
            assert_eq!(status.result.as_ref().is_some_and(|result| result.known().is_some()), known, "{result}");
            let written = serde_json::to_value(&status)?;
            assert_eq!((&written["result"], &written["update"]), (&json["result"], &json["update"]));
            let detail = (&written["detail"]["stage"], &written["detail"]["code"]);
            assert_eq!(detail, (&json["detail"]["stage"], &json["detail"]["code"]));
        }
        Ok(())
    }

    #[test]
    fn the_runs_own_words_stay() {
        let run = |state, message: Option<&str>| Words {
            state,
            detail: Detail { message: message.map(str::to_owned), ..Detail::default() },
        };
        let saying = Saying { state: State::Stopped, message: "it was stopped".to_owned() };
        let again = Saying { state: State::Ready, message: "it works again".to_owned() };
        for (run, saying, expected) in [
            (run(State::Ready, None), None, run(State::Ready, None)),
            (run(State::Ready, None), Some(&saying), run(State::Stopped, Some("it was stopped"))),
            (run(State::Degraded, Some("a")), Some(&saying), run(State::Stopped, Some("it was stopped; a"))),
            (run(State::Degraded, Some("a")), None, run(State::Degraded, Some("a"))),
            (run(State::Degraded, Some("a")), Some(&again), run(State::Ready, Some("it works again"))),
        ] {
            assert_eq!(with(run, saying), expected);
        }
    }
}
