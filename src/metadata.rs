//! The instance metadata server's client.
//!
//! It does what Google documents and what Google's own clients do. The server is asked by address, since a static
//! resolver may not know the search suffix, and never through a proxy. Every reply's `Metadata-Flavor` is checked. 404
//! means "no such key", not an empty value. 503 is normal while a VM boots or is migrated
//! (cloud.google.com/compute/docs/troubleshooting/troubleshoot-metadata-server).

mod clock;
#[cfg(fuzzing)]
pub mod fuzzing;
mod request_error;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, anyhow};
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use jiff::SignedDuration;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::error::{Classify, Code, RUN_AGAIN, one_line};
use crate::http::{self, Answer, Limit, Retry};
use crate::secret::Secret;

use clock::Clock;
pub use request_error::RequestError;

/// The server's address: documented as stable, and the same in every zone.
const ADDRESS: &str = "169.254.169.254";

/// Both sides must send this header; a captive portal or a stray proxy does not.
const FLAVOR: (&str, &str) = ("Metadata-Flavor", "Google");

/// All of the instance and its project.
const TREE: &str = "?recursive=true&alt=json";

/// The value of `instance/preempted` of a VM that is being taken back.
const PREEMPTED: &str = "TRUE";

/// Far above any answer on a healthy VM, and shorter than the deadlines, so that a lost packet costs one try.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Far above all attributes of an instance and its project, of which each has at most 256 KB.
const ANSWER_BYTES: u64 = 8 << 20;

const MIN_BACKOFF: Duration = Duration::from_millis(100);

/// Jitter adds up to as much again: at most 5 s between two tries.
const MAX_BACKOFF: Duration = Duration::from_millis(2500);

/// A 403 can be a passing security check of the host: one more try, after this long.
const FORBIDDEN_BACKOFF: Duration = Duration::from_secs(2);

/// How long a token may take: the server has answered before.
const TOKEN_DEADLINE: Duration = Duration::from_secs(30);

/// A wait longer than this is reported, once, to a person who watches the boot.
const QUIET_DEADLINE: Duration = Duration::from_secs(10);

/// A client of one metadata server; clones share the connection pool, and what is known of the server's clock.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    clock: Clock,
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
    /// The project's number.
    pub project_number: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// Attached disks.
    pub disks: Vec<Disk>,
    /// Spot or preemptible: 30 s to stop instead of 90 s.
    pub spot: bool,
}

/// Instance and project attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Merged per key; the instance wins.
    pub values: BTreeMap<String, String>,
    /// The keys that the instance has, whether or not the project has them, too.
    pub own: BTreeSet<String>,
}

/// What the server says when it is asked for a change.
#[derive(Debug)]
pub struct Answered {
    /// The name of this answer.
    pub etag: String,
    /// The attributes of the instance and its project.
    pub attributes: Attributes,
    /// Compute Engine is taking this Spot VM back.
    pub is_preempted: bool,
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

/// The VM's service account.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ServiceAccount {
    /// Its address.
    pub email: String,
    /// What its tokens may be used for, whatever the account may do.
    #[serde(default)]
    pub scopes: Vec<String>,
}

impl ServiceAccount {
    /// Whether its tokens are of no use for most of Google's APIs.
    pub fn lacks_cloud_platform(&self) -> bool {
        !self.scopes.iter().any(|scope| scope.ends_with("/auth/cloud-platform"))
    }
}

/// What became of a guest-attribute write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The attribute has the value now.
    Done,
    /// 403: guest attributes are disabled for this instance.
    Disabled,
    /// 405 or 501: this server knows no such request.
    Unsupported,
}

impl Client {
    /// A client for `host` (`host[:port]`, from `GCE_METADATA_HOST`), else the link-local address.
    pub fn new(host: Option<&str>) -> Result<Self> {
        let host = host.map(str::trim).filter(|host| !host.is_empty()).unwrap_or(ADDRESS);
        let base = format!("http://{host}/computeMetadata/v1/");
        Ok(Self { http: http::metadata_client()?, base, clock: Clock::default() })
    }

    /// How far the machine's clock is ahead of the server's now, to some seconds; `None` before the first answer.
    pub fn clock_is_ahead_by(&self) -> Option<SignedDuration> {
        self.clock.is_behind_by()
    }

    /// Reads this machine's metadata; what may pass is tried again until `deadline`.
    ///
    /// Fails with [`Code::MetadataUnreachable`]; the sentence names the address, the number of tries and
    /// the last error.
    pub async fn instance(&self, deadline: Duration) -> Result<Instance> {
        let mut tries = Tries::new(deadline);
        self.read(&mut tries)
            .await
            .map_err(|error| {
                let (count, seconds) = (tries.count, tries.started.elapsed().as_secs());
                let reason = one_line(&error.into());
                anyhow!("no usable answer from {} after {count} tries in {seconds} s, the last one: {reason}", self.base)
            })
            .classify(
                Code::MetadataUnreachable,
                format!(
                    "See what `curl -sS -i -H 'Metadata-Flavor: Google' {}instance/id` says on the VM; a firewall rule, \
                     a route or a VPN that takes over 169.254.169.254 must let it through. Then run \
                     `{RUN_AGAIN}`.",
                    self.base
                ),
            )
    }

    async fn read(&self, tries: &mut Tries) -> Result<Instance, RequestError> {
        let root: Option<tree::Root> = self.json(TREE, tries).await?;
        let root = root.ok_or_else(|| RequestError::new(Retry::No, anyhow!("it knows no instance (404)")))?;
        Ok(tree::merge(root.instance, root.project))
    }

    /// What there is when another answer than `last` is there, or after `wait`. One request, no retry.
    pub async fn wait_for_change(&self, last: Option<&str>, wait: Duration) -> Result<Answered, RequestError> {
        let seconds = wait.as_secs();
        let waiting = last
            .map(|etag| format!("&wait_for_change=true&timeout_sec={seconds}&last_etag={etag}"))
            .unwrap_or_default();
        let request = self.request(Method::GET, &format!("{TREE}{waiting}"));
        let answer = checked(request, REQUEST_TIMEOUT + wait).await?;
        if last.is_none() {
            // The answer to a request that waited may have the time at which that came.
            self.clock.note(answer.headers());
        }
        let status = answer.status();
        let etag = answer.headers().get("etag").and_then(|etag| etag.to_str().ok()).unwrap_or("NONE").to_owned();
        let body = answer.body().await.map_err(RequestError::of_failure)?;
        if status != StatusCode::OK {
            return Err(RequestError::of_status(status).doing("waiting for a change of the metadata".to_owned()));
        }
        let root: tree::Root = serde_json::from_slice(&body).map_err(|error| RequestError::of_json(&error))?;
        let is_preempted = root.instance.preempted == PREEMPTED;
        Ok(Answered { etag, attributes: tree::merge(root.instance, root.project).attributes, is_preempted })
    }

    /// Whether Compute Engine is taking this Spot VM back. One request, no retry.
    pub async fn is_preempted(&self) -> Result<bool, RequestError> {
        let (status, body) = self.send(self.request(Method::GET, "instance/preempted"), REQUEST_TIMEOUT).await?;
        Ok(status == StatusCode::OK && body.trim_ascii() == PREEMPTED.as_bytes())
    }

    /// An access token of the VM's service account, good for some minutes at least; `None` when it has no account.
    pub async fn access_token(&self) -> Result<Option<Secret>> {
        let mut tries = Tries::new(TOKEN_DEADLINE);
        let token: Option<tree::Token> = self.json("instance/service-accounts/default/token", &mut tries).await?;
        Ok(token.map(|token| token.access_token))
    }

    /// The VM's service account; `None` when it has none.
    pub async fn service_account(&self) -> Result<Option<ServiceAccount>, RequestError> {
        let path = "instance/service-accounts/default/?recursive=true&alt=json";
        self.json(path, &mut Tries::new(TOKEN_DEADLINE)).await
    }

    /// Sets a guest attribute. One request, no retry; [`RequestError::retry`] says whether another may do better.
    pub async fn put_guest_attribute(
        &self,
        namespace: &str,
        key: &str,
        value: &str,
    ) -> Result<WriteOutcome, RequestError> {
        let request = self.guest_attribute(Method::PUT, namespace, key).body(value.to_owned());
        let (status, _) = self.send(request, REQUEST_TIMEOUT).await?;
        match status {
            StatusCode::OK => Ok(WriteOutcome::Done),
            StatusCode::FORBIDDEN => Ok(WriteOutcome::Disabled),
            other => {
                Err(RequestError::of_status(other).doing(format!("writing the guest attribute {namespace}/{key}")))
            }
        }
    }

    /// Deletes a guest attribute; fine when there is none. One request, no retry.
    pub async fn delete_guest_attribute(&self, namespace: &str, key: &str) -> Result<WriteOutcome, RequestError> {
        let request = self.guest_attribute(Method::DELETE, namespace, key);
        let (status, _) = self.send(request, REQUEST_TIMEOUT).await?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(WriteOutcome::Done),
            StatusCode::FORBIDDEN => Ok(WriteOutcome::Disabled),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(WriteOutcome::Unsupported),
            other => {
                Err(RequestError::of_status(other).doing(format!("deleting the guest attribute {namespace}/{key}")))
            }
        }
    }

    fn guest_attribute(&self, method: Method, namespace: &str, key: &str) -> RequestBuilder {
        self.request(method, &format!("instance/guest-attributes/{namespace}/{key}"))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).header(FLAVOR.0, FLAVOR.1)
    }

    /// Reads what the server has at `path` as JSON, `None` when it has nothing there.
    async fn json<T: DeserializeOwned>(&self, path: &str, tries: &mut Tries) -> Result<Option<T>, RequestError> {
        loop {
            match self.json_once(path, tries.request_timeout()).await {
                Err(error) => match tries.backoff_after(&error) {
                    Some(backoff) => tokio::time::sleep(backoff).await,
                    None => return Err(error.doing(format!("reading /{}", path.split('?').next().unwrap_or(path)))),
                },
                answer => return answer,
            }
        }
    }

    async fn json_once<T: DeserializeOwned>(&self, path: &str, timeout: Duration) -> Result<Option<T>, RequestError> {
        let (status, body) = self.send(self.request(Method::GET, path), timeout).await?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|error| RequestError::of_json(&error)),
            StatusCode::NOT_FOUND => Ok(None),
            other => Err(RequestError::of_status(other)),
        }
    }

    /// One request: its status and whole body.
    async fn send(&self, request: RequestBuilder, time: Duration) -> Result<(StatusCode, Vec<u8>), RequestError> {
        let answer = checked(request, time).await?;
        self.clock.note(answer.headers());
        Ok((answer.status(), answer.body().await.map_err(RequestError::of_failure)?))
    }
}

/// One request: the head of its answer, if that really is a metadata server's.
async fn checked(request: RequestBuilder, time: Duration) -> Result<Answer, RequestError> {
    let limit = Limit { time, bytes: ANSWER_BYTES };
    let answer = http::send(request, limit).await.map_err(RequestError::of_failure)?;
    let status = answer.status();
    let flavored = answer.headers().get(FLAVOR.0).is_some_and(|flavor| flavor == FLAVOR.1);
    // An error page may lack the header; an answer may not.
    if !flavored && Retry::of_status(status) == Retry::No {
        return Err(RequestError::new(
            Retry::Yes,
            anyhow!("an answer ({status}) without the metadata server's flavor header: something else answers there"),
        ));
    }
    Ok(answer)
}

/// The tries of one reading of the metadata, against one deadline.
struct Tries {
    started: Instant,
    deadline: Instant,
    backoffs: ExponentialBackoff,
    count: u32,
    was_forbidden: bool,
    was_reported: bool,
}

impl Tries {
    fn new(deadline: Duration) -> Self {
        let backoffs = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(MIN_BACKOFF)
            .with_max_delay(MAX_BACKOFF)
            .without_max_times()
            .build();
        let started = Instant::now();
        Self { started, deadline: started + deadline, backoffs, count: 0, was_forbidden: false, was_reported: false }
    }

    /// Counts a try and says how long it may take.
    fn request_timeout(&mut self) -> Duration {
        self.count += 1;
        REQUEST_TIMEOUT.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// How long to wait before the next try; `None` when there is none.
    fn backoff_after(&mut self, error: &RequestError) -> Option<Duration> {
        let backoff = match error.retry {
            Retry::Yes => self.backoffs.next()?,
            Retry::Once if !self.was_forbidden => {
                self.was_forbidden = true;
                FORBIDDEN_BACKOFF
            }
            Retry::Once | Retry::No => return None,
        };
        tracing::debug!("metadata server, try {}: {error:#}; next in {backoff:?}", self.count);
        if !self.was_reported && self.started.elapsed() > QUIET_DEADLINE {
            self.was_reported = true;
            tracing::info!("stage=metadata waiting for the metadata server: {error:#}");
        }
        (Instant::now() + backoff < self.deadline).then_some(backoff)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::Ordering;

    use super::*;
    use crate::error::code_of;
    use crate::http::endless;

    /// Each try has its limits of bytes and time; what comes after them is only another try.
    #[tokio::test]
    async fn a_server_without_end_is_unreachable_within_the_deadline() {
        let deadline = Duration::from_secs(2);
        for (what, head, part) in endless::answers() {
            let (address, taken) = endless::serve(head, &part).unwrap();
            let begun = Instant::now();
            let error = Client::new(Some(&address.to_string())).unwrap().instance(deadline).await.unwrap_err();
            assert_eq!(code_of(&error), Code::MetadataUnreachable, "{what}");
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {:?}", begun.elapsed());
            let taken = taken.load(Ordering::Relaxed);
            assert!(taken < 64 << 20, "{what}: {taken} bytes");
        }
    }
}
