//! The gateway's own commands in its container, for this program: what they print is not to be trusted.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::ExecConfig;
use futures_util::StreamExt as _;

use super::{NAME, PROGRAM, inspect, logs, secrets};
use crate::docker::Engine;
use crate::document;
use crate::host::Host;
use crate::secret::Redaction;
use crate::state::DataDir;
use crate::text;

/// How much a command may print: the answers that are asked for have some thousand bytes of JSON.
const OUTPUT_BYTES: usize = 1 << 20;

/// How much of its error goes into a message.
const REASON_CHARS: usize = 600;

/// What a command printed.
#[derive(Default)]
pub(super) struct Output {
    pub(super) stdout: String,
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
    pub(super) fn reason(&self, secrets: &Redaction) -> String {
        let message = document::parse(&self.stdout).ok();
        let message = message.and_then(|answer| answer["error"]["message"].as_str().map(str::to_owned));
        let text = message.unwrap_or_else(|| format!("{} {}", self.stdout, self.stderr));
        let text = secrets.redact(&logs::plain(&text));
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_CHARS).collect()
    }
}

/// Runs a command of the gateway's in its container, as its user; its exit code, and what it printed. One that does not
/// end in time is left to itself.
pub(super) async fn exec(engine: &Engine, command: &[&str], timeout: Duration) -> Result<(i64, Output)> {
    let ended = tokio::time::timeout(timeout, run(engine, command, timeout)).await;
    ended.map_err(|_| anyhow!("it did not end within {} s", timeout.as_secs()))?
}

async fn run(engine: &Engine, command: &[&str], timeout: Duration) -> Result<(i64, Output)> {
    let doing = || format!("running a command in container {NAME}");
    let config = ExecConfig {
        cmd: Some(PROGRAM.iter().chain(command).map(|&word| word.to_owned()).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..Default::default()
    };
    let client = engine.client.clone().with_timeout(timeout);
    let exec = client.create_exec(NAME, config).await.with_context(doing)?.id;
    let mut printed = Output::default();
    if let StartExecResults::Attached { mut output, .. } = client.start_exec(&exec, None).await.with_context(doing)? {
        while let Some(part) = output.next().await {
            printed.push(&part.with_context(doing)?).with_context(doing)?;
        }
    }
    Ok((exit_code(engine, &exec).await.with_context(doing)?, printed))
}

/// The secrets that such a command may print.
pub(super) async fn redaction(host: &Host, engine: &Engine, data: &DataDir) -> Result<Redaction> {
    let variables = inspect(engine, NAME).await?.and_then(|container| container.config?.env).unwrap_or_default();
    secrets::redaction(host, data, &variables).await
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
