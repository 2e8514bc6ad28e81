//! Waiting for the result of one boot, while its progress is shown.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::time::sleep;

use crate::cloud;
use crate::machine;
use crate::product::NAMESPACE;
use crate::program::run;
use crate::state::Lab;

const UNIT: &str = "openclaw-init.service";
/// What may start it: Google's script runner and, where it is installed, cloud-init.
const CARRIERS: [&str; 2] = ["google-startup-scripts.service", "cloud-final.service"];
/// Where the product keeps its report on the machine.
const STATUS: &str = "run/openclaw-init/status.json";
/// How often the unit is looked at; the console is followed more closely.
const LOOK: Duration = Duration::from_secs(2);
/// How often, and how many times, the report is looked at that follows a result.
const SETTLE_INTERVAL: Duration = Duration::from_millis(500);
const SETTLE_LOOKS: usize = 20;

/// How a boot ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The product's result, `ready` or `failed:<code>`.
    Result(String),
    /// The product's unit, or what should have started it, ended without a result.
    Ended(String),
    /// Nothing of that within the time.
    TimedOut,
}

impl Outcome {
    /// Whether the gateway is ready.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Result(result) if result == "ready")
    }
}

/// The console of a machine, read on from where the last look ended.
#[derive(Debug)]
pub struct Console {
    reader: BufReader<File>,
    partial: String,
}

impl Console {
    /// From its present end on.
    pub fn from_end(lab: &Lab) -> Result<Self> {
        let mut console = Self::from_start(lab)?;
        console.reader.seek(SeekFrom::End(0)).context("going to the end of the console")?;
        Ok(console)
    }

    /// From the machine's first boot on.
    pub fn from_start(lab: &Lab) -> Result<Self> {
        let path = lab.console();
        let file = File::options().create(true).append(true).read(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { reader: BufReader::new(file), partial: String::new() })
    }

    /// The product's lines that are new.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        loop {
            let mut bytes = Vec::new();
            if self.reader.read_until(b'\n', &mut bytes).context("reading the console")? == 0 {
                return Ok(found);
            }
            self.partial.push_str(&String::from_utf8_lossy(&bytes));
            if self.partial.ends_with('\n') {
                found.extend(own_line(&self.partial).map(str::to_owned));
                self.partial.clear();
            }
        }
    }
}

/// The product's message in a console line: `[   12.3] openclaw-init[77]: disk: mounted` or `openclaw: …`.
fn own_line(line: &str) -> Option<&str> {
    let line = line.trim();
    if let Some((_, rest)) = line.split_once("openclaw-init[") {
        return rest.split_once("]: ").map(|(_, message)| message);
    }
    line.find("openclaw: ").map(|at| &line[at + "openclaw: ".len()..])
}

/// Shows the boot that is under way until its result is there.
///
/// A result counts when it was written under the machine's present boot id: guest attributes survive a reboot.
pub async fn wait(lab: &Lab, mut console: Console, limit: Duration) -> Result<Outcome> {
    let client = cloud::client(lab)?;
    let attributes = || client.guest_attributes(NAMESPACE);
    let start = Instant::now();
    let mut looked = Instant::now();
    loop {
        show(&mut console, start)?;
        if let Some(result) = result_of(&attributes().await?, boot_id(lab).as_deref()) {
            settle(lab, &result).await;
            show(&mut console, start)?;
            return Ok(Outcome::Result(result));
        }
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            if let Some(how) = ended(lab) {
                let written = result_of(&attributes().await?, boot_id(lab).as_deref());
                let reported = || status(lab).and_then(|status| Some(status.get("result")?.as_str()?.to_owned()));
                return Ok(written.or_else(reported).map_or(Outcome::Ended(how), Outcome::Result));
            }
        }
        if start.elapsed() > limit {
            return Ok(Outcome::TimedOut);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

fn show(console: &mut Console, start: Instant) -> Result<()> {
    for line in console.lines()? {
        println!("{:>5.1}s {line}", start.elapsed().as_secs_f32());
    }
    Ok(())
}

/// Waits until the machine's own report says what the guest attribute says: the product writes it right after, and its
/// last words to the console then. What started it may have told the result, and there is no report.
async fn settle(lab: &Lab, result: &str) {
    for _ in 0..SETTLE_LOOKS {
        if status(lab).is_none_or(|status| status["result"] == result) {
            break;
        }
        sleep(SETTLE_INTERVAL).await;
    }
    sleep(SETTLE_INTERVAL).await;
}

/// The report that the product left on the machine.
pub fn status(lab: &Lab) -> Option<Value> {
    serde_json::from_str(&inside(lab, STATUS)?).ok()
}

/// The machine's own boot id: systemd-nspawn gives each boot a fresh one.
pub fn boot_id(lab: &Lab) -> Option<String> {
    Some(inside(lab, "proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// A file as the running machine sees it.
fn inside(lab: &Lab, file: &str) -> Option<String> {
    let process = machine::pid_one(lab)?;
    fs::read_to_string(format!("/proc/{}/root/{file}", process.pid())).ok()
}

/// The final result among the guest attributes, if it belongs to this boot.
fn result_of(attributes: &BTreeMap<String, String>, boot_id: Option<&str>) -> Option<String> {
    let text = |key: &str| attributes.get(key).map(|value| value.trim());
    let result = text("result").filter(|result| !result.is_empty() && *result != "pending")?;
    (boot_id.is_some() && text("boot-id") == boot_id).then(|| result.to_owned())
}

/// Why no result can come any more, if so.
fn ended(lab: &Lab) -> Option<String> {
    let names = "--property=Id,LoadState,ActiveState,SubState,Result,ExecMainExitTimestampMonotonic";
    let mut command = machine::inside(lab).ok()?;
    let shown = run(command.args(["systemctl", "show", UNIT]).args(CARRIERS).arg(names)).ok()?;
    why_ended(&shown)
}

fn why_ended(shown: &str) -> Option<String> {
    let unit = |name: &str| shown.split("\n\n").find(|unit| unit.lines().any(|line| line == format!("Id={name}")));
    let state = |name: &str, key: &str| {
        let line = unit(name)?.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(str::to_owned)
    };
    let has_run = |name: &str| state(name, "ExecMainExitTimestampMonotonic").is_some_and(|time| time != "0");
    let rests = |name: &str| {
        let (active, sub) = (state(name, "ActiveState"), state(name, "SubState"));
        matches!(active.as_deref(), Some("inactive" | "failed")) || sub.as_deref() == Some("exited")
    };
    let is_loaded = |name: &str| state(name, "LoadState").as_deref() == Some("loaded");
    if is_loaded(UNIT) {
        let how = state(UNIT, "Result").unwrap_or_default();
        return (has_run(UNIT) && rests(UNIT)).then(|| format!("{UNIT} ended ({how}) without a result"));
    }
    let carriers: Vec<&str> = CARRIERS.into_iter().filter(|name| is_loaded(name)).collect();
    let over = !carriers.is_empty() && carriers.iter().all(|name| has_run(name) && rests(name));
    over.then(|| format!("{} ended and there is no {UNIT}", carriers.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_products_lines_are_shown() {
        let cases = [
            ("[    4.2] openclaw-init[77]: disk: mounted\r\n", Some("disk: mounted")),
            ("openclaw: image: pulled\n", Some("image: pulled")),
            ("[  OK  ] Started openclaw-init.service - OpenClaw gateway.\n", None),
            ("Debian GNU/Linux 12 lab console\n", None),
        ];
        for (line, message) in cases {
            assert_eq!(own_line(line), message, "{line}");
        }
    }

    #[test]
    fn a_result_counts_for_its_own_boot_only() {
        type Case = (&'static [(&'static str, &'static str)], Option<&'static str>);
        let cases: [Case; 6] = [
            (&[("result", "ready"), ("boot-id", "b")], Some("ready")),
            (&[("result", "failed:no-space"), ("boot-id", "b")], Some("failed:no-space")),
            (&[("result", "ready"), ("boot-id", "a")], None),
            (&[("result", "pending"), ("boot-id", "b")], None),
            (&[("result", "ready")], None),
            (&[], None),
        ];
        for (pairs, expected) in cases {
            let attributes = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(result_of(&attributes, Some("b")).as_deref(), expected, "{pairs:?}");
            assert_eq!(result_of(&attributes, None), None, "{pairs:?}");
        }
    }

    #[test]
    fn the_end_of_all_hope_is_recognised() {
        let [script_runner, cloud_final] = CARRIERS;
        let unit = |load: &str, active: &str, sub: &str, exit: &str, carrier: &str| {
            format!(
                "Id={UNIT}\nLoadState={load}\nActiveState={active}\nSubState={sub}\nResult=exit-code\n\
                 ExecMainExitTimestampMonotonic={exit}\n\nId={script_runner}\nLoadState=loaded\n\
                 ActiveState={carrier}\nSubState=x\nExecMainExitTimestampMonotonic=5\n"
            )
        };
        let with_cloud_init = |exit: &str| {
            let bare = unit("not-found", "inactive", "dead", "0", "inactive");
            format!(
                "{bare}\nId={cloud_final}\nLoadState=loaded\nActiveState=inactive\n\
                 ExecMainExitTimestampMonotonic={exit}\n"
            )
        };
        let cases = [
            (unit("loaded", "failed", "failed", "9", "active"), true),
            (unit("loaded", "active", "exited", "9", "active"), true),
            (unit("loaded", "inactive", "dead", "9", "active"), true),
            (unit("loaded", "activating", "auto-restart", "9", "active"), false),
            (unit("loaded", "activating", "start", "0", "active"), false),
            (unit("loaded", "inactive", "dead", "0", "active"), false),
            (unit("not-found", "inactive", "dead", "0", "activating"), false),
            (unit("not-found", "inactive", "dead", "0", "inactive"), true),
            (with_cloud_init("0"), false),
            (with_cloud_init("7"), true),
        ];
        for (shown, over) in cases {
            assert_eq!(why_ended(&shown).is_some(), over, "{shown}");
        }
    }
}
