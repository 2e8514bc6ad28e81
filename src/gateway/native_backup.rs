//! The running gateway's own backup: the one way to a consistent copy of databases that are in use.

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

/// The archive, in the one place on the data disk that the gateway can write and does not back up itself.
const FILE: &str = ".openclaw-init-backup.tar.gz";

/// A large workspace takes its time.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// How much of its error is told.
const LINE_CHARS: usize = 600;

/// Where the gateway leaves its archive, as a path on the host. Its content is the gateway's: not to be trusted.
pub fn native_backup_file(data: &DataDir) -> PathBuf {
    data.config.join(FILE)
}

/// Has the running gateway write a verified archive to [`native_backup_file`], where no file may be.
pub async fn native_backup(engine: &Engine) -> Result<()> {
    let output = format!("{CONFIG}/{FILE}");
    let command = ["node", "openclaw.mjs", "backup", "create", "--output", &output, "--verify", "--json"];
    let work = exec(engine, &command);
    let (code, said) = tokio::time::timeout(DEADLINE, work)
        .await
        .map_err(|_| anyhow!("it did not end within {} minutes", DEADLINE.as_secs() / 60))??;
    let verified = serde_json::from_str::<Value>(&said.out).is_ok_and(|result| result["verified"] == true);
    if code != 0 || !verified {
        bail!("`backup create --verify` ended with exit code {code}: {}", said.reason());
    }
    Ok(())
}

/// What a command printed.
#[derive(Default)]
struct Said {
    out: String,
    errors: String,
}

impl Said {
    /// Its own message, else the end of what it printed.
    fn reason(&self) -> String {
        let message = serde_json::from_str::<Value>(&self.out).ok();
        let message = message.and_then(|said| said["error"]["message"].as_str().map(str::to_owned));
        let text = message.unwrap_or_else(|| format!("{} {}", self.out, self.errors));
        logs::plain(&text).split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LINE_CHARS).collect()
    }
}

/// Runs a command in the gateway's container, as its user; its exit code, and what it printed.
async fn exec(engine: &Engine, command: &[&str]) -> Result<(i64, Said)> {
    let doing = || format!("running a command in container {NAME}");
    let config = ExecConfig {
        cmd: Some(command.iter().map(|&word| word.to_owned()).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..Default::default()
    };
    let client = engine.client.clone().with_timeout(DEADLINE);
    let exec = client.create_exec(NAME, config).await.with_context(doing)?.id;
    let mut said = Said::default();
    if let StartExecResults::Attached { mut output, .. } = client.start_exec(&exec, None).await.with_context(doing)? {
        while let Some(part) = output.next().await {
            match part.with_context(doing)? {
                bollard::container::LogOutput::StdErr { message } => said.errors += &String::from_utf8_lossy(&message),
                other => said.out += &String::from_utf8_lossy(other.as_ref()),
            }
        }
    }
    let ended = client.inspect_exec(&exec).await.with_context(doing)?;
    let code = ended.exit_code.ok_or_else(|| anyhow!("the engine does not say how it ended"));
    Ok((code.with_context(doing)?, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_its_own_message() {
        let said = |out: &str, errors: &str| Said { out: out.to_owned(), errors: errors.to_owned() };
        let cases = [
            (said(r#"{"ok":false,"error":{"message":"no\nroom"}}"#, "x"), "no room"),
            (said("", "\u{1b}[31mEACCES\u{1b}[0m: open"), "EACCES: open"),
            (said("{}", "Killed"), "{} Killed"),
        ];
        for (said, expected) in cases {
            assert_eq!(said.reason(), expected);
        }
    }
}
