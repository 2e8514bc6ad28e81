//! What the connection to an engine asks, and which engines it refuses: against a fake one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world does")]

mod fake_engine;

use std::path::Path;

use anyhow::{Context, Result};
use openclaw_init::docker::Engine;
use openclaw_init::error::{Code, code_of};
use serde_json::Value;

use fake_engine::{FakeEngine, says};

/// A fake engine with a directory of its own.
struct Fixture {
    directory: tempfile::TempDir,
    engine: FakeEngine,
}

impl Fixture {
    fn start(version: Value) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let engine = FakeEngine::start(directory.path(), &directory.path().join("docker.sock"), version)?;
        Ok(Self { directory, engine })
    }

    async fn connect(&self) -> Result<Engine> {
        Engine::connect(socket(self.directory.path()).as_str()).await
    }
}

fn socket(directory: &Path) -> String {
    directory.join("docker.sock").display().to_string()
}

#[tokio::test]
async fn every_request_carries_the_negotiated_version() -> Result<()> {
    for api in ["1.41", "1.47"] {
        let fake = Fixture::start(says("28.5.2", api, "Engine"))?;
        let engine = fake.connect().await?;
        assert!(engine.buildkit);
        engine.client.ping().await?;
        let prefix = format!("GET /v{api}/");
        let requests = fake.engine.requests();
        // The first two are the negotiation itself.
        assert!(requests.len() > 2 && requests[2..].iter().all(|line| line.starts_with(&prefix)), "{requests:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_engine_that_cannot_be_used_is_refused() -> Result<()> {
    for (version, api, component, wanted) in [
        ("19.03.15", "1.40", "Engine", "speaks API 1.40, needed is 1.41"),
        ("4.3.1", "1.41", "Podman Engine", "Podman Engine 4.3.1 answers"),
    ] {
        let refused = Fixture::start(says(version, api, component))?.connect().await;
        let error = refused.err().context("an unusable engine was accepted")?;
        assert_eq!(code_of(&error), Code::DockerUnusable);
        assert!(format!("{error:#}").contains(wanted), "{error:#}");
    }
    Ok(())
}

#[tokio::test]
async fn silence_is_not_a_verdict() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let error = Engine::connect(&socket(directory.path())).await.err().context("nobody answered")?;
    assert_eq!(code_of(&error), Code::Internal);
    Ok(())
}
