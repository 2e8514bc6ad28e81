//! The public image registries and Docker's package repository as the lab has them, under their real names and with
//! certificates of the lab's authority.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{Request as HttpRequest, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::cache::Cache;
use crate::cloud::ca::Ca;
use crate::cloud::docker_apt::{DockerApt, DockerRepository};
use crate::cloud::fake_gateway;
use crate::cloud::images;
use crate::cloud::network::{ARTIFACT_REGISTRY, DOCKER_REPOSITORY, REGISTRY};
use crate::cloud::registry::{self, Registry};
use crate::cloud::requests::AnsweredRequest;
use crate::cloud::tls::{HTTPS, TlsListener};
use crate::files::write;
use crate::sources::Sources;

/// The name of Artifact Registry in the lab's region.
pub const ARTIFACT_REGISTRY_NAME: &str = "europe-docker.pkg.dev";
/// A private repository there that has what Docker Hub has: project and repository.
pub const PRIVATE_REPOSITORY: &str = "openclaw-lab/hub";
/// Who may read it: the user that stands for a token, and the bcrypt hash of [`ACCESS_TOKEN`].
///
/// [`ACCESS_TOKEN`]: crate::cloud::metadata_server::ACCESS_TOKEN
const READER: &str = "oauth2accesstoken:$2b$05$abcdefghijklmnopqrstuuUXN49nkphBU0aoz9bkhx0198ZTlX716\n";

const REGISTRY_NAMES: [&str; 4] = ["ghcr.io", "registry-1.docker.io", "index.docker.io", "auth.docker.io"];
const DOCKER_REPOSITORY_NAME: &str = "download.docker.com";
/// How long the registry may take until it listens.
const REGISTRY_START: Duration = Duration::from_secs(60);

/// Where the file-system storage driver keeps things.
const REGISTRY_TREE: &str = "docker/registry/v2";
/// The directory of the private registry's own files.
const PRIVATE: &str = "artifact-registry";

/// How one registry is seen from the machine.
struct Front<'a> {
    names: &'a [&'a str],
    address: Ipv4Addr,
    storage: &'a Path,
    accounts: Option<&'a Path>,
}

/// Everything that the lab serves besides metadata, made and cached.
#[derive(Debug)]
pub struct Content {
    ca: Ca,
    images: PathBuf,
    docker_apt: Arc<DockerApt>,
}

impl Content {
    /// Makes what the cache does not have: images, Docker's repository, the authority. A few minutes then.
    ///
    /// Needs root and the programs that [`images::storage`] and [`DockerApt::prepare`] name.
    pub fn prepare(cache: &Cache) -> Result<Self> {
        let sources = Sources::of_this_machine().context("reading this machine's package sources")?;
        let ca = Ca::load(cache)?;
        let images = fake_gateway::add(cache, &images::storage(cache, &sources)?)?;
        let docker_apt = Arc::new(DockerApt::prepare(cache, &sources)?);
        Ok(Self { ca, images, docker_apt })
    }

    /// The host names that the pretend cloud's name server has to answer, with their addresses.
    pub fn names() -> Vec<(String, IpAddr)> {
        let registry = REGISTRY_NAMES.map(|name| (name.to_owned(), IpAddr::V4(REGISTRY)));
        let docker = (DOCKER_REPOSITORY_NAME.to_owned(), IpAddr::V4(DOCKER_REPOSITORY));
        let private = (ARTIFACT_REGISTRY_NAME.to_owned(), IpAddr::V4(ARTIFACT_REGISTRY));
        registry.into_iter().chain([docker, private]).collect()
    }

    /// The lab's authority.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// The certificate that a lab machine has to trust, PEM.
    pub fn ca_pem(&self) -> &str {
        self.ca.pem()
    }

    /// The fingerprint of the key that stands for Docker's, 40 upper-case hex digits.
    pub fn docker_key_fingerprint(&self) -> &str {
        self.docker_apt.fingerprint()
    }

    /// Starts all of it in the network namespace of the calling thread, which must have both addresses.
    ///
    /// When this returns, everything listens. Logs, configuration and server keys are files in `directory`,
    /// which is created; a former log there is continued. The thread that calls this has to live as long as
    /// the result: the registry is killed with it.
    pub async fn start(&self, repository: DockerRepository, directory: &Path) -> Result<Serving> {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        let docker_apt = match repository {
            DockerRepository::Unreachable => None,
            repository => Some(self.bind_docker_apt(repository, directory).await?),
        };
        let public = Front { names: &REGISTRY_NAMES, address: REGISTRY, storage: &self.images, accounts: None };
        let registry = self.start_registry(directory, &public).await?;
        let own = directory.join(PRIVATE);
        let (storage, accounts) = self.private_repository(&own)?;
        let private = Front {
            names: &[ARTIFACT_REGISTRY_NAME],
            address: ARTIFACT_REGISTRY,
            storage: &storage,
            accounts: Some(&accounts),
        };
        let artifact_registry = self.start_registry(&own, &private).await?;
        Ok(Serving { registry, artifact_registry, docker_apt })
    }

    /// A second storage that has the public images below [`PRIVATE_REPOSITORY`], as links; and the file of its readers.
    fn private_repository(&self, directory: &Path) -> Result<(PathBuf, PathBuf)> {
        let (storage, accounts) = (directory.join("storage"), directory.join("accounts"));
        let (theirs, ours) = (self.images.join(REGISTRY_TREE), storage.join(REGISTRY_TREE));
        let repository = ours.join("repositories").join(PRIVATE_REPOSITORY);
        if !repository.exists() {
            let parent = repository.parent().context("the repository has no parent directory")?;
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
            symlink(theirs.join("blobs"), ours.join("blobs")).context("linking the images' content")?;
            symlink(theirs.join("repositories"), &repository).context("linking the images' names")?;
        }
        write(&accounts, READER.as_bytes(), 0o600)?;
        Ok((storage, accounts))
    }

    /// [`Content::start`], then [`Serving::run`].
    pub async fn serve(&self, repository: DockerRepository, directory: &Path) -> Result<()> {
        self.start(repository, directory).await?.run().await
    }

    async fn start_registry(&self, directory: &Path, front: &Front<'_>) -> Result<Child> {
        let certificate = self.ca.server_certificate(front.names)?;
        let (chain, key) = (directory.join("registry.pem"), directory.join("registry.key"));
        write(&chain, certificate.chain_pem.as_bytes(), 0o644)?;
        write(&key, certificate.key_pem.as_bytes(), 0o600)?;
        let address = SocketAddr::from((front.address, HTTPS));
        let (storage, accounts) = (front.storage, front.accounts);
        let registry = Registry { storage, address, tls: Some((&chain, &key)), read_only: true, accounts };
        let mut command = Command::from(registry.command(directory)?);
        let mut child = command.kill_on_drop(true).spawn().context("starting docker-registry")?;
        let deadline = Instant::now() + REGISTRY_START;
        while let Err(error) = TcpStream::connect(address).await {
            if child.try_wait().context("watching docker-registry")?.is_some() || Instant::now() > deadline {
                let log = registry::log_file(directory);
                return Err(error).with_context(|| format!("waiting for docker-registry; see {}", log.display()));
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(child)
    }

    async fn bind_docker_apt(&self, repository: DockerRepository, directory: &Path) -> Result<(TlsListener, Router)> {
        let certificate = self.ca.server_certificate(&[DOCKER_REPOSITORY_NAME])?;
        let address = SocketAddr::from((DOCKER_REPOSITORY, HTTPS));
        let listener = TlsListener::bind(address, &certificate).await?;
        let log = docker_apt_log(directory);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let state = AptServer { apt: Arc::clone(&self.docker_apt), repository, log: Arc::new(Mutex::new(log)) };
        Ok((listener, state.router()))
    }
}

/// All requests that were answered so far for the `directory` of [`Content::start`]: first those to the public
/// registries, then to the private one, then to the package repository, each oldest first. A pull asks for a blob.
pub fn requests(directory: &Path) -> Result<Vec<AnsweredRequest>> {
    let read = |file: PathBuf| match fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("reading {}", file.display())),
    };
    let mut requests = registry::requests(&read(registry::log_file(directory))?);
    requests.extend(registry::requests(&read(registry::log_file(&directory.join(PRIVATE)))?));
    for line in read(docker_apt_log(directory))?.lines() {
        requests.push(serde_json::from_str(line).with_context(|| format!("reading the request {line:?}"))?);
    }
    Ok(requests)
}

fn docker_apt_log(directory: &Path) -> PathBuf {
    directory.join("docker-apt.log")
}

/// The servers, listening. Dropping it ends them.
pub struct Serving {
    registry: Child,
    artifact_registry: Child,
    docker_apt: Option<(TlsListener, Router)>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("registry", &self.registry.id()).finish_non_exhaustive()
    }
}

impl Serving {
    /// Answers requests until it is dropped; returns only when a server failed.
    pub async fn run(mut self) -> Result<()> {
        let docker_apt = async {
            match self.docker_apt {
                Some((listener, router)) => axum::serve(listener, router).await.context("serving Docker's repository"),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = docker_apt => result,
            status = self.registry.wait() => bail!("docker-registry ended: {}", status.context("waiting for it")?),
            status = self.artifact_registry.wait() => bail!("the private registry ended: {}", status.context("waiting for it")?),
        }
    }
}

/// Docker's repository behind HTTP.
#[derive(Clone)]
struct AptServer {
    apt: Arc<DockerApt>,
    repository: DockerRepository,
    log: Arc<Mutex<File>>,
}

impl AptServer {
    fn router(self) -> Router {
        Router::new().route("/{*path}", any(answer)).with_state(self)
    }

    fn record(&self, request: &AnsweredRequest) -> Result<()> {
        let mut line = serde_json::to_vec(request).context("writing a request down")?;
        line.push(b'\n');
        let mut log = self.log.lock().map_err(|_| anyhow::anyhow!("the log's lock is poisoned"))?;
        log.write_all(&line).context("writing a request down")
    }
}

async fn answer(
    State(server): State<AptServer>,
    UrlPath(path): UrlPath<String>,
    request: HttpRequest<Body>,
) -> Response {
    let body = match server.apt.file(server.repository, &path) {
        Some(file) => tokio::fs::read(file).await.ok(),
        None => None,
    };
    let status = if body.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let host = request.headers().get(header::HOST).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let record =
        AnsweredRequest { host: host.to_owned(), method: request.method().to_string(), path, status: status.as_u16() };
    match server.record(&record) {
        Ok(()) => (status, body.unwrap_or_default()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn both_logs_are_read_and_tell_the_hosts_apart() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(requests(directory.path()).unwrap(), []);
        let registry = concat!(
            r#"{"level":"info","msg":"listening on 198.18.0.2:443, tls"}"#,
            "\n",
            r#"{"http.request.host":"ghcr.io","http.request.method":"HEAD","http.request.uri":"/v2/a/manifests/1","#,
            r#""http.response.status":200,"level":"info","msg":"response completed"}"#,
            "\n",
            r#"{"err.code":"manifest unknown","http.request.host":"registry-1.docker.io","http.request.method":"GET","#,
            r#""http.request.uri":"/v2/b/manifests/2","http.response.status":404,"msg":"response completed with error"}"#,
            "\n",
            r#"{"http.request.host":"ghcr.io","http.request.method":"GET","http.request.uri":"/v2/","msg":"authorized"}"#,
            "\nnot JSON\n",
        );
        fs::write(registry::log_file(directory.path()), registry).unwrap();
        let docker = r#"{"host":"download.docker.com","method":"GET","path":"/linux/debian/gpg","status":200}"#;
        fs::write(docker_apt_log(directory.path()), format!("{docker}\n")).unwrap();

        let requests = requests(directory.path()).unwrap();
        let told: Vec<_> = requests.iter().map(|it| (it.host.as_str(), it.path.as_str(), it.status)).collect();
        assert_eq!(
            told,
            [
                ("ghcr.io", "/v2/a/manifests/1", 200),
                ("registry-1.docker.io", "/v2/b/manifests/2", 404),
                ("download.docker.com", "/linux/debian/gpg", 200),
            ]
        );
    }
}
