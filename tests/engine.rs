//! What the connection to an engine asks, and which engines it refuses: against a socket that answers like one.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use openclaw_init::docker::Engine;
use openclaw_init::error::{Code, code_of};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Answers `/version` with `version`, a ping with `OK`; notes each request line.
struct Fake {
    directory: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(version: &Value) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = UnixListener::bind(directory.path().join("docker.sock"))?;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (noted, version) = (Arc::clone(&requests), version.to_string());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(line) = answer(stream, &version).await
                    && let Ok(mut noted) = noted.lock()
                {
                    noted.push(line);
                }
            }
        });
        Ok(Self { directory, requests })
    }

    async fn connect(&self) -> Result<Engine> {
        Engine::connect(socket(self.directory.path()).as_str()).await
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().map(|requests| requests.clone()).unwrap_or_default()
    }
}

async fn answer(stream: UnixStream, version: &str) -> Result<String> {
    let mut stream = BufReader::new(stream);
    let (mut request, mut header) = (String::new(), String::new());
    stream.read_line(&mut request).await?;
    while stream.read_line(&mut header).await? > 2 {
        header.clear();
    }
    let (kind, body) = match request.split_whitespace().nth(1).context("no path")? {
        path if path.ends_with("/version") => ("application/json", version),
        _ => ("text/plain", "OK"),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    Ok(request.trim().to_owned())
}

fn socket(directory: &Path) -> String {
    directory.join("docker.sock").display().to_string()
}

fn engine(version: &str, api: &str, component: &str) -> Value {
    json!({"Version": version, "ApiVersion": api, "Os": "linux", "Components": [{"Name": component, "Version": version}]})
}

#[tokio::test]
async fn every_request_carries_the_negotiated_version() -> Result<()> {
    for api in ["1.41", "1.47"] {
        let fake = Fake::start(&engine("28.5.2", api, "Engine"))?;
        let engine = fake.connect().await?;
        assert!(engine.buildkit);
        engine.client.ping().await?;
        let prefix = format!("GET /v{api}/");
        let requests = fake.requests();
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
        let refused = Fake::start(&engine(version, api, component))?.connect().await;
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
