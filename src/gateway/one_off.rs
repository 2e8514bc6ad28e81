//! One of the gateway's own commands, in a container that ends with it.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::errors::Error as DockerError;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::StreamExt as _;
use serde_json::Value;

use super::{is_missing, logs};
use crate::docker::Engine;
use crate::error::{Classify, Code};
use crate::gateway::secrets::Secrets;
use crate::host::Host;

/// The name of the container; one at a time.
const NAME: &str = "openclaw-one-off";

/// A command of the gateway takes 4 s on two free cores, ten times that on a busy shared one.
const DEADLINE: Duration = Duration::from_secs(180);

/// Sets values in `openclaw.json` with the image's own `config set`, which keeps the rest of the file and
/// creates it where there is none. The gateway must not run.
pub(super) async fn set(
    host: &Host,
    engine: &Engine,
    edits: &[Value],
    secrets: &Secrets,
    container: impl FnOnce(&[&str]) -> ContainerCreateBody,
) -> Result<()> {
    let paths = edits.iter().filter_map(|edit| edit["path"].as_str()).collect::<Vec<_>>().join(", ");
    host.progress(format!("setting {paths} in openclaw.json"));
    let batch = Value::from(edits.to_vec()).to_string();
    run(engine, secrets, container(&["config", "set", "--batch-json", &batch]), DEADLINE)
        .await
        .with_context(|| format!("setting {paths} in openclaw.json"))
}

/// Runs it to its end, which must be a good one within `deadline`: else [`Code::GatewayRefused`], or
/// [`Code::GatewayNotReady`] for one that had not ended, since a busy machine may be at fault.
pub(super) async fn run(
    engine: &Engine,
    secrets: &Secrets,
    body: ContainerCreateBody,
    deadline: Duration,
) -> Result<()> {
    let options = CreateContainerOptionsBuilder::default().name(NAME).build();
    engine.client.create_container(Some(options), body).await.with_context(|| format!("creating container {NAME}"))?;
    let outcome = finish(engine, secrets, deadline).await;
    remove(engine).await?;
    outcome
}

async fn finish(engine: &Engine, secrets: &Secrets, deadline: Duration) -> Result<()> {
    engine.client.start_container(NAME, None).await.with_context(|| format!("starting container {NAME}"))?;
    let client = engine.client.clone().with_timeout(deadline);
    let mut end = client.wait_container(NAME, None);
    let code = match tokio::time::timeout(deadline, end.next()).await {
        Ok(Some(Ok(ended))) => ended.status_code,
        Ok(Some(Err(DockerError::DockerContainerWaitError { code, .. }))) => code,
        Ok(Some(Err(error))) => return Err(error).with_context(|| format!("waiting for container {NAME}")),
        Ok(None) => return Err(anyhow!("the engine did not say how container {NAME} ended")),
        Err(_) => {
            return Err(anyhow!("it did not end within {} s", deadline.as_secs())).classify(
                Code::GatewayNotReady,
                "See with `top` what keeps the VM busy, then run `sudo openclaw-init boot`.",
            );
        }
    };
    if code != 0 {
        let said = logs::last_lines(engine, NAME, &secrets.token).await;
        return Err(anyhow!("it ended with exit code {code}: {said}")).classify(
            Code::GatewayRefused,
            "Correct openclaw.json in the state directory /home/node/.openclaw as its message says, \
             then run `sudo openclaw-init boot`.",
        );
    }
    Ok(())
}

/// Removes the container that a run which was cut left behind: it may still be at work on the state.
pub(super) async fn remove_left(host: &Host, engine: &Engine) -> Result<()> {
    if remove(engine).await? {
        host.changed(format!("removed container {NAME}, left by a run that was cut"));
    }
    Ok(())
}

/// Removes the container, true when there was one. It holds no state: killing it is fine.
async fn remove(engine: &Engine) -> Result<bool> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match engine.client.remove_container(NAME, Some(options)).await {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing container {NAME}")),
    }
}
