//! One of the gateway's own commands, in a container that ends with it.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::errors::Error as DockerError;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde_json::Value;

use super::merge::{lists_of_models, paths};
use super::secrets::Secrets;
use super::spec::Inputs;
use super::{Gateway, logs};
use crate::docker::{Engine, is_missing};
use crate::error::{Classify as _, Code, RUN_AGAIN, what};
use crate::host::{Access, Host, remove_if_exists, write_in_memory};
use crate::paths::{SETTINGS_PATCH, STATE_ALIAS};
use crate::secret::Redaction;

/// The name of the container; one at a time.
pub(super) const NAME: &str = "openclaw-one-off";

/// A command of the gateway takes 4 s on two free cores, ten times that on a busy shared one.
const TIMEOUT: Duration = Duration::from_secs(180);

/// What the tool says of a change that a running gateway applies by itself (2026.8.2 and later). After any other words
/// it is restarted.
const LIVE: [&str; 2] = ["without restarting the gateway", "No gateway restart needed"];

/// What it says when it writes a file that had comments.
const COMMENTS: &str = "strip JSON5 comments";

/// What it says when somebody else wrote the file meanwhile.
pub(super) const CHANGED: &str = "config file changed while this command was writing";

/// How often an edit is tried beside somebody who writes the file.
const PATCH_TRIES: usize = 3;

/// What an edit means for a gateway that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edited {
    /// Nothing, or it applies the change by itself.
    Live,
    /// It must be restarted.
    ForNextStart,
}

impl Edited {
    fn of(said: &str) -> Self {
        if LIVE.iter().any(|words| said.contains(words)) { Self::Live } else { Self::ForNextStart }
    }
}

/// Edits an existing `openclaw.json` with the image's own `config patch`, which checks the whole file before it writes
/// it, and keeps the rest. The gateway may run. [`Code::GatewayRefused`]: the tool did not write, and never will.
pub(super) async fn patch(
    gateway: &Gateway<'_>,
    inputs: &Inputs<'_>,
    secrets: &Secrets,
    edits: &Value,
) -> Result<Edited> {
    let host = gateway.host;
    let setting = format!("setting {} in openclaw.json", paths(edits));
    host.progress(&setting);
    // For the container's user alone: it may hold credentials.
    write_in_memory(&host.path(SETTINGS_PATCH), edits.to_string().as_bytes(), Access::gateway(0o400))?;
    let mut tries = 1..PATCH_TRIES;
    let ran = loop {
        let body = inputs.patch(&lists_of_models(edits));
        match run(gateway.engine, body, &secrets.redaction, TIMEOUT).await {
            Err(error) if what(&error).contains(CHANGED) => {
                if tries.next().is_none() {
                    let remedy = format!("Something keeps writing it: find out what, then run `{RUN_AGAIN}`.");
                    break Err(error).classify(Code::GatewayNotReady, remedy);
                }
            }
            ran => break ran,
        }
    };
    remove_if_exists(&host.path(SETTINGS_PATCH))?;
    let said = ran.context(setting)?;
    if said.contains(COMMENTS) {
        host.warn("openclaw.json had comments: the gateway's own tool, which changed it, does not keep them");
    }
    Ok(if takes_origins_away(edits) { Edited::ForNextStart } else { Edited::of(&said) })
}

/// A gateway that runs cannot do that: without origins it reloads nothing of the change (measured, 2026.9.6).
fn takes_origins_away(edits: &Value) -> bool {
    let places = ["/gateway", "/gateway/controlUi", "/gateway/controlUi/allowedOrigins"];
    places.iter().any(|place| edits.pointer(place).is_some_and(Value::is_null))
}

/// Runs it to its end and returns what it printed. [`Code::GatewayRefused`]: it failed. [`Code::GatewayNotReady`]: it
/// did not end within `timeout`, for which a busy machine may be at fault. The error has its last lines, without
/// secrets.
pub(super) async fn run(
    engine: &Engine,
    body: ContainerCreateBody,
    secrets: &Redaction,
    timeout: Duration,
) -> Result<String> {
    let options = CreateContainerOptionsBuilder::default().name(NAME).build();
    engine.client.create_container(Some(options), body).await.with_context(|| format!("creating container {NAME}"))?;
    let outcome = finish(engine, secrets, timeout).await;
    remove(engine).await?;
    outcome
}

async fn finish(engine: &Engine, secrets: &Redaction, timeout: Duration) -> Result<String> {
    engine.client.start_container(NAME, None).await.with_context(|| format!("starting container {NAME}"))?;
    let client = engine.client.clone().with_timeout(timeout);
    let mut end = client.wait_container(NAME, None);
    let code = match tokio::time::timeout(timeout, end.next()).await {
        Ok(Some(Ok(ended))) => ended.status_code,
        Ok(Some(Err(DockerError::DockerContainerWaitError { code, .. }))) => code,
        Ok(Some(Err(error))) => return Err(error).with_context(|| format!("waiting for container {NAME}")),
        Ok(None) => return Err(anyhow!("the engine did not say how container {NAME} ended")),
        Err(_) => {
            return Err(anyhow!("it did not end within {} s", timeout.as_secs())).classify(
                Code::GatewayNotReady,
                format!("See with `top` what keeps the VM busy, then run `{RUN_AGAIN}`."),
            );
        }
    };
    let said = logs::read(engine, NAME, Timestamp::UNIX_EPOCH).await;
    if code != 0 {
        let lines = logs::last_lines(&said, secrets);
        return Err(anyhow!("it ended with exit code {code}: {lines}")).classify(
            Code::GatewayRefused,
            format!(
                "Correct openclaw.json in the state directory {STATE_ALIAS} as its message says, then run \
                 `{RUN_AGAIN}`."
            ),
        );
    }
    Ok(said)
}

/// Removes the container of a run that was cut: it may still be at work on the state.
pub(super) async fn remove_leftover(host: &Host, engine: &Engine) -> Result<()> {
    if remove(engine).await? {
        host.changed(format!("removed container {NAME}, left by a run that was cut"));
    }
    Ok(())
}

/// Removes the container, killing it: it holds no state. True when there was one.
pub(super) async fn remove(engine: &Engine) -> Result<bool> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match engine.client.remove_container(NAME, Some(options)).await {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing container {NAME}")),
    }
}
