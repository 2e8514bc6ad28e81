//! The running gateway's own backup: the one consistent copy of databases that are in use.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::ExecConfig;
use futures_util::StreamExt as _;
use serde_json::Value;

use super::spec::CONFIG;
use super::{NAME, PROGRAM, inspect, logs, secrets};
use crate::docker::Engine;
use crate::host::Host;
use crate::secret::Redaction;
use crate::state::DataDir;
use crate::text;

/// The archive, in the one place on the data disk that the gateway can write to and does not back up.
const FILE: &str = ".openclaw-init-backup.tar.gz";

/// A large workspace takes its time.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// How much it may print: its answer is some hundred bytes of JSON.
const OUTPUT_BYTES: usize = 1 << 20;

/// How much of its error goes into a message.
const REASON_CHARS: usize = 600;

/// Where the gateway leaves its archive, on the host. The content is the gateway's: not to be trusted.
pub fn native_backup_file(data: &DataDir) -> PathBuf {
    data.config.join(FILE)
}

/// Has the running gateway write a verified archive to [`native_backup_file`], where no file may be.
pub async fn native_backup(host: &Host, engine: &Engine, data: &DataDir) -> Result<()> {
    let variables = inspect(engine, NAME).await?.and_then(|container| container.config?.env).unwrap_or_default();
    let secrets = secrets::redaction(host, data, &variables).await?;
    let file = format!("{CONFIG}/{FILE}");
    let command = [&PROGRAM[..], &["backup", "create", "--output", &file, "--verify", "--json"]].concat();
    let work = exec(engine, &command);
    let (code, output) = tokio::time::timeout(TIMEOUT, work)
        .await
        .map_err(|_| anyhow!("it did not end within {} minutes", TIMEOUT.as_secs() / 60))??;
    let verified = serde_json::from_str::<Value>(&output.stdout).is_ok_and(|result| result["verified"] == true);
    if code != 0 || !verified {
        bail!("`backup create --verify` ended with exit code {code}: {}", output.reason(&secrets));
    }
    Ok(())
}

/// What a command printed.
#[derive(Default)]
struct Output {
    stdout: String,
    stderr: String,
}

impl Output {
    /// An error when it printed more than it may; what was printed until then is kept.
    fn push(&mut self, part: &LogOutput) -> Result<()> {
        let bytes = part.as_ref();
        if self.stdout.len() + self.stderr.len() + bytes.len() > OUTPUT_BYTES {
            bail!("it printed more than {}", text::size(OUTPUT_BYTES as u64));
        }
        let is_error = matches!(part, LogOutput::StdErr { .. });
        let to = if is_error { &mut self.stderr } else { &mut self.stdout };
        to.push_str(&String::from_utf8_lossy(bytes));
        Ok(())
    }

    /// Its own message, else the end of what it printed.
    fn reason(&self, secrets: &Redaction) -> String {
        let message = serde_json::from_str::<Value>(&self.stdout).ok();
        let message = message.and_then(|answer| answer["error"]["message"].as_str().map(str::to_owned));
        let text = message.unwrap_or_else(|| format!("{} {}", self.stdout, self.stderr));
        let text = secrets.redact(&logs::plain(&text));
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_CHARS).collect()
    }
}

/// Runs a command in the gateway's container, as its user; its exit code, and what it printed.
async fn exec(engine: &Engine, command: &[&str]) -> Result<(i64, Output)> {
    let doing = || format!("running a command in container {NAME}");
    let config = ExecConfig {
        cmd: Some(command.iter().map(|&word| word.to_owned()).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..Default::default()
    };
    let client = engine.client.clone().with_timeout(TIMEOUT);
    let exec = client.create_exec(NAME, config).await.with_context(doing)?.id;
    let mut printed = Output::default();
    if let StartExecResults::Attached { mut output, .. } = client.start_exec(&exec, None).await.with_context(doing)? {
        while let Some(part) = output.next().await {
            printed.push(&part.with_context(doing)?).with_context(doing)?;
        }
    }
    Ok((exit_code(engine, &exec).await.with_context(doing)?, printed))
}

/// How a command in the gateway's container ended.
pub(super) async fn exit_code(engine: &Engine, exec: &str) -> Result<i64> {
    let ended = engine.client.inspect_exec(exec).await?;
    ended.exit_code.ok_or_else(|| anyhow!("the engine does not say how it ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_prints_without_end_is_given_up() {
        let mut output = Output::default();
        let part = LogOutput::StdOut { message: vec![b'x'; 1 << 16].into() };
        let count = (0..99).take_while(|_| output.push(&part).is_ok()).count();
        assert_eq!((count, output.stdout.len()), (16, OUTPUT_BYTES));
    }

    #[test]
    fn the_reason_is_its_own_message() {
        let output = |stdout: &str, stderr: &str| Output { stdout: stdout.to_owned(), stderr: stderr.to_owned() };
        let cases = [
            (output(r#"{"ok":false,"error":{"message":"no\nroom"}}"#, "x"), "no room"),
            (output("", "\u{1b}[31mEACCES\u{1b}[0m: open"), "EACCES: open"),
            (output("{}", "Killed"), "{} Killed"),
            (output("", "TOKEN=s3cret"), "TOKEN=[redacted]"),
        ];
        let secrets = Redaction::of([("TOKEN", "s3cret")]);
        for (output, expected) in cases {
            assert_eq!(output.reason(&secrets), expected);
        }
    }
}
