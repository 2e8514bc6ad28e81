//! One of the gateway's own commands, in a container that ends with it.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::errors::Error as DockerError;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde_json::Value;

use super::secrets::Secrets;
use super::spec::Inputs;
use super::{Gateway, logs};
use crate::docker::{Engine, is_missing};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::Host;
use crate::paths::STATE_ALIAS;

/// The name of the container; one at a time.
const NAME: &str = "openclaw-one-off";

/// A command of the gateway takes 4 s on two free cores, ten times that on a busy shared one.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Sets values in an existing `openclaw.json` with the image's own `config set`, which keeps the rest of the file. The
/// gateway must not run.
pub(super) async fn set(gateway: &Gateway<'_>, inputs: &Inputs<'_>, secrets: &Secrets, edits: &[Value]) -> Result<()> {
    let setting = format!("setting {} in openclaw.json", paths(edits));
    gateway.host.progress(&setting);
    let batch = Value::from(edits.to_vec()).to_string();
    let body = inputs.one_off(&["config", "set", "--batch-json", &batch]);
    run(gateway.engine, body, secrets, TIMEOUT).await.context(setting)
}

/// The names of the values that `edits` set.
pub(super) fn paths(edits: &[Value]) -> String {
    edits.iter().filter_map(|edit| edit["path"].as_str()).collect::<Vec<_>>().join(", ")
}

/// Runs it to its end. [`Code::GatewayRefused`]: it failed. [`Code::GatewayNotReady`]: it did not end within
/// `timeout`, for which a busy machine may be at fault. The error has its last lines, without secrets.
pub(super) async fn run(
    engine: &Engine,
    body: ContainerCreateBody,
    secrets: &Secrets,
    timeout: Duration,
) -> Result<()> {
    let options = CreateContainerOptionsBuilder::default().name(NAME).build();
    engine.client.create_container(Some(options), body).await.with_context(|| format!("creating container {NAME}"))?;
    let outcome = finish(engine, secrets, timeout).await;
    remove(engine).await?;
    outcome
}

async fn finish(engine: &Engine, secrets: &Secrets, timeout: Duration) -> Result<()> {
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
    if code != 0 {
        let lines = logs::last_lines(&logs::read(engine, NAME, Timestamp::UNIX_EPOCH).await, &secrets.redaction);
        return Err(anyhow!("it ended with exit code {code}: {lines}")).classify(
            Code::GatewayRefused,
            format!(
                "Correct openclaw.json in the state directory {STATE_ALIAS} as its message says, then run \
                 `{RUN_AGAIN}`."
            ),
        );
    }
    Ok(())
}

/// Removes the container of a run that was cut: it may still be at work on the state.
pub(super) async fn remove_leftover(host: &Host, engine: &Engine) -> Result<()> {
    if remove(engine).await? {
        host.changed(format!("removed container {NAME}, left by a run that was cut"));
    }
    Ok(())
}

/// Removes the container, killing it: it holds no state. True when there was one.
async fn remove(engine: &Engine) -> Result<bool> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match engine.client.remove_container(NAME, Some(options)).await {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing container {NAME}")),
    }
}
