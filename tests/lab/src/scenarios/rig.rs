//! One lab machine as a scenario uses it: only through the command line.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::cloud::network::STORAGE;
use crate::host;
use crate::product::BINARY;
use crate::state::Lab;
use crate::watch::Watch;

/// A default version that no registry has: a gateway that keeps its own never asks for it.
const NEWER_DEFAULT: (&str, &str) = ("OPENCLAW_INIT_DEFAULT_VERSION", "2099.1.1");

/// The program under test, one like it that is newer, and the lab's own.
#[derive(Debug)]
pub(crate) struct Binaries {
    directory: TempDir,
}

/// A machine's name; the machine goes away with the rig.
#[derive(Debug)]
pub(crate) struct Rig {
    name: String,
    binaries: Arc<Binaries>,
    watch: Arc<Watch>,
}

impl Binaries {
    /// Builds both, the working tree's own last, so that it is the one that stays also with the profile `dev`.
    pub(crate) fn build() -> Result<Self> {
        println!("== building the static binary, and one with a newer default");
        let binaries = Self { directory: tempfile::tempdir().context("making a directory for the binaries")? };
        // The running program's own file may be gone: building the tests has put a newer one in its place.
        std::fs::copy("/proc/self/exe", binaries.lab()).context("keeping the lab's own program")?;
        std::fs::copy(host::another_binary(&[NEWER_DEFAULT])?, binaries.newer()).context("keeping the newer binary")?;
        std::fs::copy(host::binary()?, binaries.tested()).context("keeping the binary")?;
        Ok(binaries)
    }

    fn lab(&self) -> PathBuf {
        self.directory.path().join("lab")
    }

    fn tested(&self) -> PathBuf {
        self.directory.path().join("openclaw-init")
    }

    fn newer(&self) -> PathBuf {
        self.directory.path().join("newer")
    }
}

/// What a command said: both streams, and its exit code.
#[derive(Debug)]
pub(super) struct CommandOutput {
    pub(super) code: i32,
    pub(super) text: String,
}

impl CommandOutput {
    pub(super) fn of(output: &Output) -> Self {
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Self { code: output.status.code().unwrap_or(-1), text }
    }

    /// An error unless `text` holds every one of `parts`.
    pub(super) fn has(&self, parts: &[&str]) -> Result<&Self> {
        for part in parts {
            ensure!(self.text.contains(part), "{part:?} is missing in:\n{}", self.text);
        }
        Ok(self)
    }
}

impl Rig {
    /// A name for a machine that does not exist yet; one left from an earlier run is removed.
    pub(crate) fn new(scenario: &str, binaries: &Arc<Binaries>, watch: &Arc<Watch>) -> Result<Self> {
        let rig = Self { name: format!("t-{scenario}"), binaries: Arc::clone(binaries), watch: Arc::clone(watch) };
        watch.has_lab(&rig.name);
        rig.lab_ends(0, "down", &[])?;
        Ok(rig)
    }

    /// A second machine of the same scenario.
    pub(super) fn beside(&self, name: &str) -> Result<Self> {
        Self::new(name, &self.binaries, &self.watch)
    }

    /// The machine's files on this side.
    pub(super) fn machine(&self) -> Result<Lab> {
        Lab::named(&self.name)
    }

    /// Runs `lab COMMAND --name … ARGUMENTS`; any exit code is fine.
    pub(super) fn lab(&self, command: &str, arguments: &[&str]) -> Result<CommandOutput> {
        let output = self.watch.output(&mut self.command(command, arguments));
        Ok(CommandOutput::of(&output.with_context(|| format!("running lab {command}"))?))
    }

    fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut lab = Command::new(self.binaries.lab());
        lab.args([command, "--name", &self.name]).args(arguments);
        lab
    }

    /// What ends the programs of this scenario when its time is over.
    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// The same, and an error unless it ends with `code`.
    pub(super) fn lab_ends(&self, code: i32, command: &str, arguments: &[&str]) -> Result<CommandOutput> {
        let printed = self.lab(command, arguments)?;
        if printed.code != code {
            bail!(
                "lab {command} {} ended with {} instead of {code}:\n{}",
                arguments.join(" "),
                printed.code,
                printed.text
            );
        }
        Ok(printed)
    }

    /// The lab's own program.
    pub(super) fn lab_program(&self) -> PathBuf {
        self.binaries.lab()
    }

    /// The program under test.
    pub(super) fn binary(&self) -> PathBuf {
        self.binaries.tested()
    }

    /// The same program with a newer default version.
    pub(super) fn newer_binary(&self) -> PathBuf {
        self.binaries.newer()
    }

    /// Makes and boots the machine; `lab up` must end with `code`.
    pub(super) fn up_ends(&self, code: i32, arguments: &[&str]) -> Result<CommandOutput> {
        let binary = self.binary();
        let binary = binary.to_str().context("the binary's path is not text")?;
        self.lab_ends(code, "up", &[&["--binary", binary], arguments].concat())
    }

    /// Makes the machine and boots it to `ready`.
    pub(super) fn up(&self, arguments: &[&str]) -> Result<CommandOutput> {
        self.up_ends(0, arguments)
    }

    /// Runs a shell line inside the machine, which must succeed; its output, trimmed.
    pub(super) fn shell(&self, line: &str) -> Result<String> {
        let printed = self.lab_ends(0, "exec", &["--", "sh", "-c", line])?;
        Ok(printed.text.trim().to_owned())
    }

    /// Runs a script inside the machine with `arguments`, which must succeed; its output, trimmed.
    pub(super) fn script(&self, script: &str, arguments: &[&str]) -> Result<String> {
        let printed = self.lab_ends(0, "exec", &[&["--", "sh", "-c", script, "script"], arguments].concat())?;
        Ok(printed.text.trim().to_owned())
    }

    /// Fetches the program under test from the cloud's web server to `path` inside the machine.
    pub(super) fn fetch(&self, path: &str) -> Result<()> {
        self.shell(&format!("curl -fsS -o {path} http://{STORAGE}/{BINARY} && chmod 0755 {path}")).map(drop)
    }

    /// Runs a boot inside the machine, in the foreground, which must end with `code`.
    pub(super) fn boot(&self, code: i32) -> Result<CommandOutput> {
        self.lab_ends(code, "exec", &["--", "openclaw-init", "boot", "--foreground"])
    }

    /// Sets (`KEY=VALUE`) or, without a `=`, unsets an instance attribute.
    pub(super) fn attribute(&self, change: &str) -> Result<()> {
        let verb = if change.contains('=') { "set" } else { "unset" };
        self.lab_ends(0, "metadata", &[verb, change]).map(|_| ())
    }

    /// The guest attributes of our namespace.
    pub(super) fn guest_attributes(&self) -> Result<Value> {
        let printed = self.lab_ends(0, "guest-attributes", &[])?;
        serde_json::from_str(&printed.text).with_context(|| format!("reading {}", printed.text))
    }

    /// The status file inside the machine.
    pub(super) fn status(&self) -> Result<Value> {
        let text = self.shell("cat /run/openclaw-init/status.json")?;
        serde_json::from_str(&text).with_context(|| format!("reading {text}"))
    }

    /// Every request that the metadata server got, oldest first.
    pub(super) fn requests(&self) -> Result<Vec<Value>> {
        let printed = self.lab_ends(0, "requests", &[])?;
        printed.text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("reading {line}"))).collect()
    }

    /// The writes to our guest attributes as `METHOD key`, oldest first.
    pub(super) fn writes(&self) -> Result<Vec<String>> {
        let key = |request: &Value| {
            let path = request["path"].as_str()?;
            let (_, key) = path.split_once("/instance/guest-attributes/openclaw/")?;
            let method = request["method"].as_str()?;
            // The watcher's heartbeat comes when it likes.
            (method != "GET" && key != "heartbeat").then(|| format!("{method} {key}"))
        };
        Ok(self.requests()?.iter().filter_map(key).collect())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // When the time is over, the runner takes the machines down.
        if std::env::var_os("OPENCLAW_LAB_KEEP").is_some() || self.watch.has_ended() {
            return;
        }
        match self.lab("down", &[]) {
            Ok(printed) if printed.code == 0 => {}
            Ok(printed) => println!("lab down --name {} failed:\n{}", self.name, printed.text),
            Err(error) => println!("lab down --name {} failed: {error:#}", self.name),
        }
    }
}
