//! What the connection to an engine asks, and which engines it refuses: against a fake one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world does")]

mod fake_engine;

use std::path::Path;

use anyhow::{Context, Result};
use axum::http::{HeaderMap, HeaderValue};
use fake_engine::{FakeEngine, says};
use openclaw_init::docker::Engine;
use openclaw_init::error::{Code, code_of};

/// A fake engine with a directory of its own.
struct Fixture {
    directory: tempfile::TempDir,
    engine: FakeEngine,
}

impl Fixture {
    fn start(head: HeaderMap) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let engine = FakeEngine::start(directory.path(), &directory.path().join("docker.sock"), head)?;
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
async fn one_ping_tells_the_version_that_every_request_carries() -> Result<()> {
    // The second one is newer than what is spoken here.
    for (api, spoken) in [("1.41", "1.41"), ("1.99", "1.53"), ("1.47", "1.47")] {
        let fake = Fixture::start(says("28.5.2", api))?;
        let engine = fake.connect().await?;
        assert!(engine.buildkit);
        engine.client.ping().await?;
        assert_eq!(fake.engine.requests(), ["GET /_ping".to_owned(), format!("GET /v{spoken}/_ping")]);
    }
    Ok(())
}

#[tokio::test]
async fn an_engine_that_cannot_be_used_is_refused() -> Result<()> {
    let mut podman = says("4.3.1", "1.41");
    podman.insert("server", HeaderValue::from_static("Libpod/4.3.1 (linux)"));
    podman.insert("libpod-api-version", HeaderValue::from_static("4.3.1"));
    for (head, wanted) in [
        (says("19.03.15", "1.40"), "Docker 19.03.15 speaks API 1.40, needed is 1.41"),
        (podman, "Podman 4.3.1 answers"),
    ] {
        let refused = Fixture::start(head)?.connect().await;
        let error = refused.err().context("an unusable engine was accepted")?;
        assert_eq!(code_of(&error), Code::DockerUnusable);
        assert!(format!("{error:#}").contains(wanted), "{error:#}");
    }
    Ok(())
}

#[tokio::test]
async fn what_names_no_api_is_no_engine() -> Result<()> {
    let error = Fixture::start(HeaderMap::new())?.connect().await.err().context("it was accepted")?;
    assert_eq!(code_of(&error), Code::Internal);
    Ok(())
}

#[tokio::test]
async fn silence_is_not_a_verdict() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let error = Engine::connect(&socket(directory.path())).await.err().context("nobody answered")?;
    assert_eq!(code_of(&error), Code::Internal);
    Ok(())
}

#[tokio::test]
async fn what_an_engine_says_of_itself_is_asked_once() -> Result<()> {
    let fake = Fixture::start(says("28.5.2", "1.47"))?;
    let engine = fake.connect().await?;
    for engine in [engine.clone(), engine] {
        assert_eq!(engine.info().await?.memory_limit, Some(false));
    }
    assert_eq!(fake.engine.requests(), ["GET /_ping", "GET /v1.47/info"]);
    Ok(())
}
