//! A connection to an engine that can be worked with.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::{API_DEFAULT_VERSION, Docker};

use crate::error::{Classify, Code, RUN_AGAIN};
use crate::failpoint;

/// Where the engine listens.
pub const SOCKET: &str = "/run/docker.sock";

/// The API of Docker 20.10, the oldest one with all that is used here (`Mounts`, init, build session).
const MINIMUM_API: (usize, usize) = (1, 41);

/// How long a request may wait for its answer to begin: above the longest grace of a stop.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// A running engine that answered a ping and speaks at least the API version that we need.
#[derive(Debug, Clone)]
pub struct Engine {
    /// The client; every request carries the negotiated version in its path.
    pub client: Docker,
    /// Whether builds can use `BuildKit`: in every engine for Linux since API 1.39.
    pub buildkit: bool,
}

impl Engine {
    /// Connects to the engine behind `socket`: ping, API version, version prefix on all requests.
    ///
    /// An engine that is too old, or is not Docker's, is a [`Code::DockerUnusable`]. One that does not answer is an
    /// unclassified error, since it may yet be started.
    pub async fn connect(socket: &str) -> Result<Self> {
        let timeout = ANSWER_TIMEOUT.as_secs();
        let client =
            async { Docker::connect_with_unix(socket, timeout, API_DEFAULT_VERSION)?.negotiate_version().await };
        let client = client.await.with_context(|| format!("connecting to the engine at {socket}"))?;
        let found = client.version().await.context("asking the engine for its version")?;
        let components = found.components.unwrap_or_default().into_iter().map(|component| component.name);
        let version = found.version.unwrap_or_default();
        let api = client.client_version();
        let api = (api.major_version, api.minor_version);
        check(&version, api, components)?;

        let client = with_failpoints_and_version(client, api);
        client.ping().await.context("pinging the engine")?;
        Ok(Self { client, buildkit: found.os.as_deref() == Some("linux") })
    }
}

/// Refuses an engine that we cannot work with.
fn check(version: &str, api: (usize, usize), mut components: impl Iterator<Item = String>) -> Result<()> {
    if let Some(name) = components.find(|name| name.contains("Podman")) {
        return Err(anyhow!("{name} {version} answers at {SOCKET}, not Docker")).classify(
            Code::DockerUnusable,
            format!(
                "Remove it (sudo apt-get remove podman-docker; sudo systemctl disable --now podman.socket), then run \
                 `{RUN_AGAIN}`"
            ),
        );
    }
    if api < MINIMUM_API {
        let (major, minor) = MINIMUM_API;
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
