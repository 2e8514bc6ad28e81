//! What a run has to say, as data: the one content of the guest attributes and of `status.json`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::host::Host;

/// Where the status of the latest run of this boot is.
pub(super) const FILE: &str = "/run/openclaw-init/status.json";

/// The longest `detail`: small enough for every reader, whatever the server's own limit.
const DETAIL_BYTES: usize = 1024;

/// A warning that is cut shorter than this says nothing any more and is left out.
const SHORTEST_WARNING: usize = 24;

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
        }
    }
}

/// The status of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Status {
    /// The kernel's boot id.
    pub boot_id: String,
    /// The operator's `openclaw-run-id`.
    pub run_id: Option<String>,
    /// How far the run is.
    pub state: State,
    /// `ready` or `failed:<code>`; nothing while the run goes on and while another try will follow.
    pub result: Option<String>,
    /// The gateway's version, once it is ready.
    pub version: Option<String>,
    /// The rest, for people.
    pub detail: Detail,
    /// What this run changed.
    pub changes: Changes,
    /// The machine, once its metadata is read.
    pub instance: Option<Machine>,
    /// What became of an update or a rollback in this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// The most memory that this program needed, in KiB; known at the end of the run.
    pub peak_memory_kib: u64,
    /// The guest attributes say all of this, or are disabled.
    pub reported: bool,
}

/// The guest attribute `detail`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// When this was written, RFC 3339.
    pub updated: String,
    /// The earliest unfinished stage, or the one that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The failure's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The sentence for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Milliseconds of every stage that ended.
    pub elapsed: BTreeMap<String, u64>,
    /// What an operator should know although the run went on.
    pub warnings: Vec<String>,
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
pub struct Update {
    /// One sentence.
    pub message: String,
    /// The failure's code when it was refused or undone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// How long no gateway answered, in milliseconds; nothing when the present one was not touched.
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
pub struct Machine {
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
        let Some(bytes) = host.read(FILE).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading the status in {FILE}"))
    }

    /// Replaces the status file. Not a change of the machine: it is about the run and gone with the boot.
    pub(super) async fn write(&self, host: &Host) -> Result<()> {
        let path = host.path(FILE);
        let mut status = self.clone();
        status.detail.updated = timestamp();
        let mut json = serde_json::to_vec_pretty(&status).context("encoding the status")?;
        json.push(b'\n');
        tokio::task::spawn_blocking(move || replace(&path, &json))
            .await
            .context("waiting for the status file")?
            .with_context(|| format!("writing the status to {FILE}"))
    }

    /// Whether the run is over.
    pub fn is_final(&self) -> bool {
        matches!(self.state, State::Ready | State::Degraded | State::Failed)
    }

    /// Whether a waiter that has read `other` has nothing to learn from this one.
    pub(super) fn says_the_same_as(&self, other: &Self) -> bool {
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
            "result" => self.result.clone(),
            _ => None,
        }
    }

    /// The same status, with the time in its detail.
    pub(super) fn stamped(&self) -> Self {
        let mut stamped = self.clone();
        stamped.detail.updated = timestamp();
        stamped
    }
}

impl Detail {
    /// As JSON of at most 1 KiB: the warnings are cut first, from the last one, then the message.
    fn fitted(&self) -> String {
        let mut detail = self.clone();
        loop {
            let json = serde_json::to_string(&detail).unwrap_or_default();
            let Some(over) = json.len().checked_sub(DETAIL_BYTES).filter(|over| *over > 0) else { return json };
            if let Some(last) = detail.warnings.last_mut() {
                if !shorten(last, over, SHORTEST_WARNING) {
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
    let (mut head, mut tail) = (kept / 2, text.len() - (kept - kept / 2));
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    *text = format!("{}{MARK}{}", &text[..head], &text[tail..]);
    kept >= shortest
}

fn timestamp() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
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
        let status = Status { boot_id: "b".into(), result: Some("ready".into()), ..Status::default() };
        let json = serde_json::to_value(&status)?;
        assert_eq!(
            (&json["boot-id"], &json["state"], &json["result"]),
            (&"b".into(), &"starting".into(), &"ready".into())
        );
        assert_eq!(serde_json::from_value::<Status>(json)?, status);
        Ok(())
    }
}
