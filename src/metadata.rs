//! The instance metadata server's client.
//!
//! What Google documents and what its own clients do: by address and never by name (a static resolver
//! may not know the search suffix), no proxy, the reply's `Metadata-Flavor` checked, 404 means "no such
//! key" and is not an empty value, 503 is normal while a VM boots or is migrated
//! (cloud.google.com/compute/docs/troubleshooting/troubleshoot-metadata-server).

mod retry;
mod tree;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow};
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::error::{Classify, Code, one_line};
use crate::http;
use crate::secret::Secret;

pub use retry::{Heals, Trouble};

/// Documented as stable, and the same in every zone.
const ADDRESS: &str = "169.254.169.254";

/// The header that both sides must send; a captive portal or a stray proxy does not.
const FLAVOR: (&str, &str) = ("Metadata-Flavor", "Google");

/// Far above any answer on a healthy VM; shorter than the deadline, so that a lost packet costs one try.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

const FIRST_DELAY: Duration = Duration::from_millis(100);

/// Before the jitter, which adds up to as much again: at most 5 s between two tries.
const LONGEST_DELAY: Duration = Duration::from_millis(2500);

/// A 403 can be the host's own passing security check; it is asked once more, after this long.
const FORBIDDEN_DELAY: Duration = Duration::from_secs(2);

/// How long a token may take: the server has answered before.
const TOKEN_DEADLINE: Duration = Duration::from_secs(30);

/// When a person who watches the boot should be told what it waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client of one metadata server; clones share the connection pool.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// What the metadata says of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The instance id: a new one is a new machine.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Zone, the last part of its path.
    pub zone: String,
    /// Project id.
    pub project_id: String,
    /// Instance and project attributes, merged per key; the instance wins.
    pub attributes: BTreeMap<String, String>,
    /// Attached disks.
    pub disks: Vec<Disk>,
    /// Spot or preemptible: 30 s to stop instead of 90 s.
    pub spot: bool,
}

/// An attached disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The device name the operator chose.
    pub device_name: String,
    /// Position; 0 is the boot disk.
    pub index: u32,
    /// `READ_ONLY`.
    pub read_only: bool,
    /// `LOCAL-SSD`, `PERSISTENT-BALANCED`, …
    pub kind: String,
}

/// What became of a guest-attribute write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It holds now.
    Done,
    /// 403: guest attributes are disabled for this instance.
    Disabled,
    /// 405 or 501: this server knows no such request.
    Refused,
}

impl Client {
    /// A client for `host` (`host[:port]`, from `GCE_METADATA_HOST`), else the link-local address.
    pub fn new(host: Option<&str>) -> Result<Self> {
        let host = host.map(str::trim).filter(|host| !host.is_empty()).unwrap_or(ADDRESS);
        Ok(Self { http: http::metadata_client()?, base: format!("http://{host}/computeMetadata/v1/") })
    }

    /// Reads this machine's metadata, retrying what may heal until `deadline` has passed.
    ///
    /// Fails with [`Code::MetadataUnreachable`]; the sentence names the address, the number of tries and
    /// the last error.
    pub async fn instance(&self, deadline: Duration) -> Result<Instance> {
        let mut tries = Tries::new(deadline);
        self.read(&mut tries)
            .await
            .map_err(|trouble| {
                let (count, seconds) = (tries.count, tries.started.elapsed().as_secs());
                let reason = one_line(&trouble.into());
                anyhow!("no usable answer from {} after {count} tries in {seconds} s, the last one: {reason}", self.base)
            })
            .classify(
                Code::MetadataUnreachable,
                format!(
                    "See what `curl -sS -i -H 'Metadata-Flavor: Google' {}instance/id` says on the VM; a firewall rule, \
                     a route or a VPN that takes over 169.254.169.254 must let it through. Then run \
                     `sudo openclaw-init boot`.",
                    self.base
                ),
            )
    }

    async fn read(&self, tries: &mut Tries) -> Result<Instance, Trouble> {
        let instance: Option<tree::Instance> = self.json("instance/?recursive=true&alt=json", tries).await?;
        let instance = instance.ok_or_else(|| Trouble::new(Heals::Never, anyhow!("it knows no instance (404)")))?;
        let project: Option<tree::Project> = self.json("project/?recursive=true&alt=json", tries).await?;
        Ok(tree::merge(instance, project.unwrap_or_default()))
    }

    /// An access token of the VM's service account, good for some minutes at least; `None` when it has no account.
    pub async fn access_token(&self) -> Result<Option<Secret>> {
        let mut tries = Tries::new(TOKEN_DEADLINE);
        let token: Option<tree::Token> = self.json("instance/service-accounts/default/token", &mut tries).await?;
        Ok(token.map(|token| token.access_token))
    }

    /// Sets a guest attribute. One request, no retry; [`Trouble::heals`] says whether another may do better.
    pub async fn put_guest_attribute(&self, namespace: &str, key: &str, value: &str) -> Result<Write, Trouble> {
        let request = self.guest_attribute(Method::PUT, namespace, key).body(value.to_owned());
        let (status, _) = send(request).await?;
        match status {
            StatusCode::OK => Ok(Write::Done),
            StatusCode::FORBIDDEN => Ok(Write::Disabled),
            other => Err(Trouble::of_status(other).doing(format!("writing the guest attribute {namespace}/{key}"))),
        }
    }

    /// Deletes a guest attribute; one that is not there is deleted. One request, no retry.
    pub async fn delete_guest_attribute(&self, namespace: &str, key: &str) -> Result<Write, Trouble> {
        let (status, _) = send(self.guest_attribute(Method::DELETE, namespace, key)).await?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(Write::Done),
            StatusCode::FORBIDDEN => Ok(Write::Disabled),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(Write::Refused),
            other => Err(Trouble::of_status(other).doing(format!("deleting the guest attribute {namespace}/{key}"))),
        }
    }

    fn guest_attribute(&self, method: Method, namespace: &str, key: &str) -> RequestBuilder {
        self.request(method, &format!("instance/guest-attributes/{namespace}/{key}"), REQUEST_TIMEOUT)
    }

    fn request(&self, method: Method, path: &str, timeout: Duration) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).header(FLAVOR.0, FLAVOR.1).timeout(timeout)
    }

    /// Reads what the server has at `path` as JSON, `None` when it has nothing there.
    async fn json<T: DeserializeOwned>(&self, path: &str, tries: &mut Tries) -> Result<Option<T>, Trouble> {
        loop {
            let asked = self.json_once(path, tries.request_timeout()).await;
            match asked {
                Err(trouble) => match tries.delay_after(&trouble) {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => return Err(trouble.doing(format!("reading {}", path.split('?').next().unwrap_or(path)))),
                },
                answer => return answer,
            }
        }
    }

    async fn json_once<T: DeserializeOwned>(&self, path: &str, timeout: Duration) -> Result<Option<T>, Trouble> {
        let (status, body) = send(self.request(Method::GET, path, timeout)).await?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|error| Trouble::of_json(&error)),
            StatusCode::NOT_FOUND => Ok(None),
            other => Err(Trouble::of_status(other)),
        }
    }
}

/// One request: its status and whole body, if the answer really is a metadata server's.
async fn send(request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), Trouble> {
    let response = http::send(request).await.map_err(Trouble::of_transport)?;
    let status = response.status();
    let flavored = response.headers().get(FLAVOR.0).is_some_and(|flavor| flavor == FLAVOR.1);
    // An error page may come without the header; what claims to be an answer may not.
    if !flavored && Heals::of_status(status) == Heals::Never {
        return Err(Trouble::new(
            Heals::Soon,
            anyhow!("an answer ({status}) without the metadata server's flavor header: something else answers there"),
        ));
    }
    let body = response.bytes().await.map_err(Trouble::of_transport)?;
    Ok((status, body.to_vec()))
}

/// The tries of one reading of the metadata, against one deadline.
struct Tries {
    started: Instant,
    deadline: Instant,
    delays: ExponentialBackoff,
    count: u32,
    forbidden: bool,
    told: bool,
}

impl Tries {
    fn new(deadline: Duration) -> Self {
        let delays = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .without_max_times()
            .build();
        let started = Instant::now();
        Self { started, deadline: started + deadline, delays, count: 0, forbidden: false, told: false }
    }

    /// Counts a try and says how long it may take.
    fn request_timeout(&mut self) -> Duration {
        self.count += 1;
        REQUEST_TIMEOUT.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// How long to wait before the next try; `None` when there should be none.
    fn delay_after(&mut self, trouble: &Trouble) -> Option<Duration> {
        let delay = match trouble.heals {
            Heals::Soon => self.delays.next()?,
            Heals::Once if !self.forbidden => {
                self.forbidden = true;
                FORBIDDEN_DELAY
            }
            Heals::Once | Heals::Never => return None,
        };
        tracing::debug!("metadata server, try {}: {trouble:#}; next in {delay:?}", self.count);
        if !self.told && self.started.elapsed() > PATIENCE {
            self.told = true;
            tracing::info!("stage=metadata waiting for the metadata server: {trouble:#}");
        }
        (Instant::now() + delay < self.deadline).then_some(delay)
    }
}
