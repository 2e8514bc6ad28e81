//! Pulling: the first registry that has the image, with live progress.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::{CreateImageOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder};
use futures_util::TryStreamExt as _;

use super::registries::{GRANT, is_at_google};
use super::{GROW_BOOT_DISK, Images, OFFICIAL, RETRY_BACKOFF, find};
use crate::docker::Engine;
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::reference::ImageReference;

/// How long a pull may stand still: longer than unpacking one large layer on a small disk takes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(180);

const MEGABYTE: i64 = 1_000_000;

/// The name of an image, and where it is fetched from.
type Candidate = (ImageReference, ImageReference);

impl Images<'_> {
    /// The first of the references that can be pulled, even if one is on this machine.
    ///
    /// In each of three rounds every reference is tried once; one that its registry does not have is not
    /// tried again.
    pub(super) async fn pull_first(self, references: &[ImageReference]) -> Result<(ImageReference, ImageInspect)> {
        let mut left = self.candidates(references);
        let sources: Vec<_> = left.iter().map(|(_, source)| source.clone()).collect();
        let (mut missing, mut failed) = (String::new(), Vec::new());
        for backoff in RETRY_BACKOFF {
            tokio::time::sleep(backoff).await;
            failed.clear();
            for (reference, source) in std::mem::take(&mut left) {
                let Err(error) = self.pull(&source).await else { return self.pulled(reference, &source).await };
                let text = format!("{error:#}");
                tracing::debug!("{text}");
                match PullFailure::of(&text) {
                    PullFailure::NoSpace => return Err(error).classify(Code::NoSpace, GROW_BOOT_DISK),
                    PullFailure::NotFound => missing = text,
                    PullFailure::Transient => {
                        failed.push(text);
                        left.push((reference, source));
                    }
                }
            }
            if left.is_empty() {
                let what = format!("no registry has {}", join(&sources));
                return Err(anyhow!(missing).context(what)).classify(Code::ImageNotFound, not_found(&sources));
            }
        }
        Err(anyhow!(failed.join("; "))).classify(
            Code::ImagePullFailed,
            format!(
                "Check that the VM has a way out (an external address or Cloud NAT) to the registry, then run \
                 `{RUN_AGAIN}`."
            ),
        )
    }

    /// Each source once.
    fn candidates(self, references: &[ImageReference]) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for reference in references {
            let source = self.registries.source_of(reference);
            if candidates.iter().all(|(_, other)| *other != source) {
                candidates.push((reference.clone(), source));
            }
        }
        candidates
    }

    async fn pull(self, source: &ImageReference) -> Result<()> {
        let options = CreateImageOptionsBuilder::default().from_image(&with_tag(source).to_string()).build();
        let credentials = self.registries.credentials(source).await?;
        let mut stream = self.engine.client.create_image(Some(options), None, credentials);
        let mut layers = Layers::default();
        self.host.progress(format!("pulling {source}"));
        loop {
            let next = tokio::time::timeout(IDLE_TIMEOUT, stream.try_next())
                .await
                .map_err(|_| anyhow!("nothing came for {} s", IDLE_TIMEOUT.as_secs()))
                .and_then(|next| Ok(next?))
                .with_context(|| format!("pulling {source}"))?;
            let Some(info) = next else { return Ok(()) };
            if layers.note(&info) {
                self.host.progress(format!("pulling {source}: {layers}"));
            }
        }
    }

    /// Looks at what was pulled, and gives what came through a mirror its own name instead.
    async fn pulled(
        self,
        reference: ImageReference,
        source: &ImageReference,
    ) -> Result<(ImageReference, ImageInspect)> {
        let inspect = pulled(self.engine, source).await?;
        let digest = inspect.repo_digests.iter().flatten().next().map_or("no digest", String::as_str);
        self.host.changed(format!("pulled {reference} ({digest})"));
        if *source != reference {
            // With the mirror's name goes the digest, which the engine knows by it alone: the caller gets to see it.
            rename(self.engine, source, &reference).await?;
        }
        Ok((reference, inspect))
    }
}

/// For sentences: `a:1 or b:1`.
pub(super) fn join(references: &[ImageReference]) -> String {
    references.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// What to do about an image that no registry has.
fn not_found(sources: &[ImageReference]) -> &'static str {
    if sources.iter().any(is_at_google) {
        return GRANT;
    }
    if sources.iter().any(|source| OFFICIAL.contains(&source.repository())) {
        return "Check the attribute openclaw-version; a version that only npm has is built here with \
            openclaw-image-source=npm.";
    }
    "Check the attributes openclaw-version, openclaw-image and openclaw-registry-mirror (an image that needs a login is \
     refused likewise)."
}

/// Gives an image the name `reference` instead of `name`.
pub(super) async fn rename(engine: &Engine, name: &ImageReference, reference: &ImageReference) -> Result<()> {
    tag(engine, name, reference).await?;
    untag(engine, name).await
}

/// Gives an image the name `reference`, too.
pub(super) async fn tag(engine: &Engine, name: &ImageReference, reference: &ImageReference) -> Result<ImageInspect> {
    let tag = reference.tag().with_context(|| format!("{reference} has no tag"))?;
    let options = TagImageOptionsBuilder::default().repo(reference.repository()).tag(tag).build();
    let tagged = engine.client.tag_image(&name.to_string(), Some(options)).await;
    tagged.with_context(|| format!("naming {name} {reference}"))?;
    pulled(engine, reference).await
}

/// Takes a name from an image that has another one.
pub(super) async fn untag(engine: &Engine, name: &ImageReference) -> Result<()> {
    let untagged = engine.client.remove_image(&name.to_string(), None::<RemoveImageOptions>, None).await;
    untagged.map(drop).with_context(|| format!("removing the name {name}"))
}

async fn pulled(engine: &Engine, name: &ImageReference) -> Result<ImageInspect> {
    find(engine, name).await?.ok_or_else(|| anyhow!("the engine lost image {name} after pulling it"))
}

/// The reference with a tag or digest: without one the engine would pull every tag of the repository.
fn with_tag(reference: &ImageReference) -> ImageReference {
    match (reference.tag(), reference.digest()) {
        (None, None) => ImageReference::tagged(reference.repository(), "latest"),
        _ => reference.clone(),
    }
}

/// What a failed pull means for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PullFailure {
    NotFound,
    NoSpace,
    Transient,
}

impl PullFailure {
    /// By the words of the engine: registries answer "denied" for what does not exist, and the engine
    /// gives every cause the same status.
    fn of(error: &str) -> Self {
        const NOT_FOUND: &[&str] = &[
            "manifest unknown",
            "manifest for ",
            "not found",
            "name unknown",
            "denied",
            "unauthorized",
            "no basic auth credentials",
            "403 forbidden",
            "repository does not exist",
            "invalid reference format",
            "no matching manifest",
        ];
        // A missing name server also says "not found" in some versions; it is no answer of a registry.
        const UNREACHABLE: &[&str] = &["dial tcp", "lookup ", "no such host", "i/o timeout"];
        let error = error.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
        if says(&["no space left on device"]) {
            Self::NoSpace
        } else if says(UNREACHABLE) || !says(NOT_FOUND) {
            Self::Transient
        } else {
            Self::NotFound
        }
    }
}

/// How far each layer is.
#[derive(Debug, Default)]
struct Layers {
    /// Downloaded and whole size in bytes.
    downloads: HashMap<String, (i64, i64)>,
    /// How much of it is unpacked, in bytes.
    unpacked: HashMap<String, i64>,
    /// For how many seconds the slowest is being unpacked: what containerd's store counts.
    seconds: i64,
}

impl Layers {
    /// Takes in one message of the engine; true when it is news.
    fn note(&mut self, info: &CreateImageInfo) -> bool {
        let (Some(id), Some(status)) = (&info.id, info.status.as_deref()) else { return false };
        let detail = info.progress_detail.as_ref();
        let bytes = detail.and_then(|detail| Some((detail.current?, detail.total?)));
        match (status, bytes) {
            ("Downloading", Some(bytes)) => drop(self.downloads.insert(id.clone(), bytes)),
            ("Download complete" | "Pull complete", _) => {
                if let Some((current, total)) = self.downloads.get_mut(id) {
                    *current = *total;
                }
            }
            ("Extracting", Some((bytes, _))) => drop(self.unpacked.insert(id.clone(), bytes)),
            ("Extracting", None) => {
                let seconds = detail.and_then(|detail| detail.current).unwrap_or_default();
                self.seconds = self.seconds.max(seconds).max(1);
            }
            _ => return false,
        }
        true
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |part: fn(&(i64, i64)) -> i64| self.downloads.values().map(part).sum::<i64>();
        let (current, total) = (sum(|layer| layer.0), sum(|layer| layer.1));
        if current >= total && self.seconds > 0 {
            return write!(out, "unpacking, {} s", self.seconds);
        }
        if current >= total && !self.unpacked.is_empty() {
            let unpacked = self.unpacked.values().sum::<i64>();
            return write!(out, "unpacking, {} of {} MB", unpacked / MEGABYTE, total / MEGABYTE);
        }
        let percent = current.saturating_mul(100).checked_div(total).unwrap_or(0);
        write!(out, "{} of {} MB ({percent} %)", current / MEGABYTE, total / MEGABYTE)
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    #[test]
    fn words_of_the_engine_decide_what_follows() {
        #[rustfmt::skip]
        let cases = [
            ("manifest for openclaw/openclaw:0.0.0 not found: manifest unknown: manifest unknown", PullFailure::NotFound),
            ("Error response from daemon: denied", PullFailure::NotFound),
            ("pull access denied for x/y, repository does not exist or may require 'docker login'", PullFailure::NotFound),
            ("ghcr.io/openclaw/openclaw:1: not found", PullFailure::NotFound),
            ("Get \"https://ghcr.io/v2/\": dial tcp: lookup ghcr.io on 169.254.169.254:53: no such host", PullFailure::Transient),
            ("dial tcp: lookup ghcr.io: server not found", PullFailure::Transient),
            ("Get \"https://ghcr.io/v2/\": net/http: TLS handshake timeout", PullFailure::Transient),
            ("received unexpected HTTP status: 503 Service Unavailable", PullFailure::Transient),
            ("toomanyrequests: You have reached your pull rate limit", PullFailure::Transient),
            ("Head \"https://eu.pkg.dev/v2/p/i/manifests/1\": no basic auth credentials", PullFailure::NotFound),
            ("unexpected status from GET request to https://eu.pkg.dev/v2/p/i/manifests/1: 403 Forbidden", PullFailure::NotFound),
            ("failed to register layer: write /app/x: no space left on device", PullFailure::NoSpace),
        ];
        for (error, failure) in cases {
            assert_eq!(PullFailure::of(error), failure, "{error}");
        }
    }

    #[test]
    fn a_reference_without_a_tag_gets_one() -> Result<()> {
        let digest = &format!("x/y@sha256:{}", "0".repeat(64));
        let cases =
            [("x/y", "x/y:latest"), ("localhost:5000/y", "localhost:5000/y:latest"), ("y:1", "y:1"), (digest, digest)];
        for (reference, tagged) in cases {
            assert_eq!(with_tag(&reference.parse()?).to_string(), tagged);
        }
        Ok(())
    }

    #[test]
    fn progress_sums_the_layers() {
        let message = |id: &str, status: &str, bytes: Option<(i64, i64)>| CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: bytes
                .map(|(current, total)| ProgressDetail { current: Some(current), total: Some(total) }),
            ..Default::default()
        };
        let mut layers = Layers::default();
        assert!(!layers.note(&message("a", "Pulling fs layer", None)));
        assert!(layers.note(&message("a", "Downloading", Some((30_000_000, 100_000_000)))));
        assert!(layers.note(&message("b", "Downloading", Some((10_000_000, 300_000_000)))));
        assert_eq!(layers.to_string(), "40 of 400 MB (10 %)");
        assert!(layers.note(&message("a", "Download complete", None)));
        assert!(layers.note(&message("a", "Extracting", Some((1, 2)))));
        assert_eq!(layers.to_string(), "110 of 400 MB (27 %)");
        assert!(layers.note(&message("b", "Download complete", None)));
        assert_eq!(layers.to_string(), "unpacking, 0 of 400 MB");
        assert!(layers.note(&message("b", "Extracting", Some((70_000_000, 300_000_000)))));
        assert_eq!(layers.to_string(), "unpacking, 70 of 400 MB");
        assert!(layers.note(&message("b", "Extracting", None)));
        assert_eq!(layers.to_string(), "unpacking, 1 s");
    }
}
