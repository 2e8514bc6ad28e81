//! JSON on a Unix socket, one object a line: QEMU's monitor (QMP), and the agent inside the guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// One connection; requests on it are answered in order.
#[derive(Debug)]
pub struct Json {
    reader: BufReader<UnixStream>,
}

impl Json {
    /// QEMU's monitor, ready for commands.
    pub fn monitor(socket: &Path) -> Result<Self> {
        let mut monitor = Self::connect(socket)?;
        monitor.ask("qmp_capabilities", &json!({})).context("greeting QEMU")?;
        Ok(monitor)
    }

    /// The guest's agent, which must have started: see [`Json::guest`].
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).context("limiting the time for an answer")?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The agent inside the guest. What a former connection left unanswered is passed over.
    pub fn guest(socket: &Path) -> Result<Self> {
        let mut guest = Self::connect(socket)?;
        let id = std::process::id();
        guest.send(&json!({ "execute": "guest-sync", "arguments": { "id": id } }))?;
        while guest.read()?["return"] != id {}
        Ok(guest)
    }

    /// Runs a command and returns what it returns.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.send(&json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let mut answer = self.read().with_context(|| format!("waiting for the answer to {command}"))?;
            ensure!(answer.get("error").is_none(), "{command} failed: {}", answer["error"]["desc"]);
            // Greetings and events are no answers.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Runs a shell line as root in the guest; its standard output, trimmed. An error unless it ends with 0.
    pub fn shell(&mut self, line: &str, limit: Duration) -> Result<String> {
        let started = self.begin(line)?;
        let deadline = Instant::now() + limit;
        let ended = loop {
            let status = self.ask("guest-exec-status", &json!({ "pid": started["pid"] }))?;
            if status["exited"] == true {
                break status;
            }
            ensure!(Instant::now() < deadline, "`{line}` still runs after {} s", limit.as_secs());
            sleep(Duration::from_millis(500));
        };
        let text = |key: &str| -> Result<String> {
            let bytes = STANDARD.decode(ended[key].as_str().unwrap_or_default()).context("reading what it said")?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        if ended["exitcode"] != 0 {
            bail!("`{line}` ended with {}: {} {}", ended["exitcode"], text("out-data")?, text("err-data")?);
        }
        text("out-data")
    }

    /// Starts a shell line as root in the guest, which may end the agent.
    pub fn begin(&mut self, line: &str) -> Result<Value> {
        self.ask(
            "guest-exec",
            &json!({ "path": "/bin/sh", "arg": ["-c", line], "capture-output": true,
                     "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"] }),
        )
    }

    fn send(&mut self, request: &Value) -> Result<()> {
        let stream = self.reader.get_mut();
        stream.write_all(format!("{request}\n").as_bytes()).with_context(|| format!("sending {request}"))
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line).context("reading an answer")? > 0, "the connection was closed");
        serde_json::from_str(&line).with_context(|| format!("reading {line:?}"))
    }
}
