//! The running gateway's own backup: the one consistent copy of databases that are in use.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bollard::exec::StartExecResults;
use bollard::models::ExecConfig;
use futures_util::StreamExt as _;
use serde_json::Value;

use super::spec::CONFIG;
use super::{NAME, logs};
use crate::docker::Engine;
use crate::state::DataDir;

/// The archive, in the one place on the data disk that the gateway can write to and does not back up.
const FILE: &str = ".openclaw-init-backup.tar.gz";

/// A large workspace takes its time.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// How much of its error goes into a message.
const REASON_CHARS: usize = 600;

/// Where the gateway leaves its archive, on the host. The content is the gateway's: not to be trusted.
pub fn native_backup_file(data: &DataDir) -> PathBuf {
    data.config.join(FILE)
}

/// Has the running gateway write a verified archive to [`native_backup_file`], where no file may be.
pub async fn native_backup(engine: &Engine) -> Result<()> {
    let file = format!("{CONFIG}/{FILE}");
    let command = ["node", "openclaw.mjs", "backup", "create", "--output", &file, "--verify", "--json"];
    let work = exec(engine, &command);
    let (code, output) = tokio::time::timeout(TIMEOUT, work)
        .await
        .map_err(|_| anyhow!("it did not end within {} minutes", TIMEOUT.as_secs() / 60))??;
    let verified = serde_json::from_str::<Value>(&output.stdout).is_ok_and(|result| result["verified"] == true);
    if code != 0 || !verified {
        bail!("`backup create --verify` ended with exit code {code}: {}", output.reason());
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
    /// Its own message, else the end of what it printed.
    fn reason(&self) -> String {
        let message = serde_json::from_str::<Value>(&self.stdout).ok();
        let message = message.and_then(|answer| answer["error"]["message"].as_str().map(str::to_owned));
        let text = message.unwrap_or_else(|| format!("{} {}", self.stdout, self.stderr));
        logs::plain(&text).split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_CHARS).collect()
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
            match part.with_context(doing)? {
                bollard::container::LogOutput::StdErr { message } => {
                    printed.stderr += &String::from_utf8_lossy(&message);
                }
                other => printed.stdout += &String::from_utf8_lossy(other.as_ref()),
            }
        }
    }
    let ended = client.inspect_exec(&exec).await.with_context(doing)?;
    let code = ended.exit_code.ok_or_else(|| anyhow!("the engine does not say how it ended"));
    Ok((code.with_context(doing)?, printed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_its_own_message() {
        let output = |stdout: &str, stderr: &str| Output { stdout: stdout.to_owned(), stderr: stderr.to_owned() };
        let cases = [
            (output(r#"{"ok":false,"error":{"message":"no\nroom"}}"#, "x"), "no room"),
            (output("", "\u{1b}[31mEACCES\u{1b}[0m: open"), "EACCES: open"),
            (output("{}", "Killed"), "{} Killed"),
        ];
        for (output, expected) in cases {
            assert_eq!(output.reason(), expected);
        }
    }
}
