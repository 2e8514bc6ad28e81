//! A connection to an engine that can be worked with.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::models::SystemInfo;
use bollard::{API_DEFAULT_VERSION, ClientVersion, Docker};
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::error::{Classify, Code, RUN_AGAIN};
use crate::failpoint;
use crate::http::{self, Answer, Failure, Limit};

/// Where the engine listens.
pub const SOCKET: &str = "/run/docker.sock";

/// The API of Docker 20.10, the oldest one with all that is used here (`Mounts`, init, build session).
const MINIMUM_API: (usize, usize) = (1, 41);

/// How long a request may wait for its answer to begin: above the longest grace of a stop.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Of the body of a ping's answer, whose head is what is read.
const MAX_PING_BYTES: u64 = 1024;

/// How much is read of what was changed in a container: its programs may have made any number of files. These are the
/// paths of some 20,000.
const CHANGES_LIMIT: Limit = Limit { time: ANSWER_TIMEOUT, bytes: 4 << 20 };

/// A running engine that answered a ping and speaks at least the API version that we need.
#[derive(Debug, Clone)]
pub struct Engine {
    /// The client; every request carries the negotiated version in its path.
    pub client: Docker,
    /// Whether builds can use `BuildKit`: in every engine for Linux since API 1.39.
    pub buildkit: bool,
    /// For answers that need a limit, which the client's have not.
    limited: reqwest::Client,
    /// The beginning of their URLs.
    url: String,
    info: Arc<OnceCell<SystemInfo>>,
}

impl Engine {
    /// Connects to the engine behind `socket`: one ping, the API that both speak, its version prefix on all requests.
    ///
    /// An engine that is too old, or is not Docker's, is a [`Code::DockerUnusable`]. One that does not answer is an
    /// unclassified error, since it may yet be started.
    pub async fn connect(socket: &str) -> Result<Self> {
        let limited = http::socket_client(socket)?;
        let request = limited.get("http://docker/_ping");
        let answer = http::send(request, Limit { time: ANSWER_TIMEOUT, bytes: MAX_PING_BYTES }).await;
        let answer =
            answer.and_then(Answer::success).with_context(|| format!("connecting to the engine at {socket}"))?;
        // The head of every answer says what it is. Asked for `/version`, the engine starts two programs.
        let head = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let api = head("api-version").and_then(parse_api).context("the engine does not say which API it speaks")?;
        check(head("server").unwrap_or_default(), api, head("libpod-api-version"))?;

        let (major_version, minor_version) =
            api.min((API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version));
        let version = ClientVersion { major_version, minor_version };
        let client = Docker::connect_with_unix(socket, ANSWER_TIMEOUT.as_secs(), &version)
            .with_context(|| format!("preparing requests to {socket}"))?;
        let client = with_failpoints_and_version(client, (major_version, minor_version));
        let url = format!("http://docker/v{major_version}.{minor_version}");
        let buildkit = head("ostype") == Some("linux");
        Ok(Self { client, buildkit, limited, url, info: Arc::default() })
    }

    /// What it says of its settings and of the machine. It is asked once: it starts two programs to answer.
    pub async fn info(&self) -> Result<&SystemInfo> {
        self.info.get_or_try_init(|| self.client.info()).await.context("asking the engine for its settings")
    }

    /// The paths in a container that differ from its image; `None`: they are more than can be listed.
    pub async fn changed_paths(&self, container: &str) -> Result<Option<Vec<String>>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Change {
            path: String,
        }
        let request = self.limited.get(format!("{}/containers/{container}/changes", self.url));
        let answer = async { http::send(request, CHANGES_LIMIT).await?.success()?.body().await };
        let body = match answer.await {
            Err(Failure::TooLarge(_)) => return Ok(None),
            body => body.with_context(|| format!("asking what was changed in container {container}"))?,
        };
        let changes: Option<Vec<Change>> =
            serde_json::from_slice(&body).with_context(|| format!("reading what was changed in {container}"))?;
        Ok(Some(changes.unwrap_or_default().into_iter().map(|change| change.path).collect()))
    }
}

/// `1.47` as numbers.
fn parse_api(version: &str) -> Option<(usize, usize)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Refuses an engine that we cannot work with. `server` is `Docker/28.5.2 (linux)`; only Podman has a version of
/// `libpod`.
fn check(server: &str, api: (usize, usize), libpod: Option<&str>) -> Result<()> {
    if let Some(version) = libpod {
        return Err(anyhow!("Podman {version} answers at {SOCKET}, not Docker")).classify(
            Code::DockerUnusable,
            format!(
                "Remove it (sudo apt-get remove podman-docker; sudo systemctl disable --now podman.socket), then run \
                 `{RUN_AGAIN}`"
            ),
        );
    }
    if api < MINIMUM_API {
        let (major, minor) = MINIMUM_API;
        let version = server.split(['/', ' ']).nth(1).unwrap_or_default();
        return Err(anyhow!("Docker {version} speaks API {}.{}, needed is {major}.{minor}", api.0, api.1)).classify(
            Code::DockerUnusable,
            format!("Upgrade it to Docker 20.10 or newer the way it was installed, then run `{RUN_AGAIN}`"),
        );
    }
    Ok(())
}

/// Makes every request a failpoint, and puts the negotiated API version in front of its path: bollard 0.21 negotiates
/// one and does not send it, and requests without one are deprecated.
fn with_failpoints_and_version(client: Docker, (major, minor): (usize, usize)) -> Docker {
    client.with_request_modifier(move |mut request| {
        failpoint::counted(&format!("docker-{}", request.method().as_str().to_ascii_lowercase())).hit_at("before");
        let mut parts = request.uri().clone().into_parts();
        let path = parts.path_and_query.as_ref().map_or("/", |path| path.as_str());
        // Both conversions succeed: a path with a path in front of it is a path.
        if let Ok(path) = format!("/v{major}.{minor}{path}").parse() {
            parts.path_and_query = Some(path);
            if let Ok(uri) = parts.try_into() {
                *request.uri_mut() = uri;
            }
        }
        request
    })
}
