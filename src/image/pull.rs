//! Pulling: the first registry that has the image, with live progress.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::{CreateImageOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder};
use futures_util::TryStreamExt as _;

use super::registries::{GRANT, Registries, is_at_googles};
use super::{GROW_BOOT_DISK, PAUSES, present};
use crate::docker::Engine;
use crate::error::{Classify as _, Code};
use crate::host::Host;

/// How long a pull may stand still: longer than unpacking one large layer on a small disk takes.
const IDLE: Duration = Duration::from_secs(180);

const MEGABYTE: i64 = 1_000_000;

/// The first of the references that can be pulled, from `registries`, whatever is on this machine.
///
/// In each of three rounds every reference is tried once; one that its registry does not have is not
/// asked for again.
pub(super) async fn first_of(
    host: &Host,
    engine: &Engine,
    registries: Registries<'_>,
    references: &[String],
) -> Result<(String, ImageInspect)> {
    let mut left: Vec<(String, String)> = Vec::new();
    for reference in references {
        let source = registries.source_of(reference);
        if left.iter().all(|(_, other)| *other != source) {
            left.push((reference.clone(), source));
        }
    }
    let remedy = not_found(left.iter().map(|(_, source)| source.as_str()));
    let asked = left.iter().map(|(_, source)| source.as_str()).collect::<Vec<_>>().join(" or ");
    let (mut missing, mut failed) = (String::new(), Vec::new());
    for pause in PAUSES {
        tokio::time::sleep(pause).await;
        failed.clear();
        for (reference, source) in std::mem::take(&mut left) {
            let Err(error) = pull(host, engine, registries, &source).await else {
                return pulled(host, engine, reference, &source).await;
            };
            let text = format!("{error:#}");
            tracing::debug!("{text}");
            match Trouble::of(&text) {
                Trouble::NoSpace => return Err(error).classify(Code::NoSpace, GROW_BOOT_DISK),
                Trouble::NotFound => missing = text,
                Trouble::Transient => {
                    failed.push(text);
                    left.push((reference, source));
                }
            }
        }
        if left.is_empty() {
            break;
        }
    }
    if left.is_empty() {
        return Err(anyhow!("{missing}").context(format!("no registry has {asked}")))
            .classify(Code::ImageNotFound, remedy);
    }
    Err(anyhow!(failed.join("; "))).classify(
        Code::ImagePullFailed,
        "Check that the VM has a way out (an external address or Cloud NAT) to the registry, \
         then run `sudo openclaw-init boot`.",
    )
}

/// What to do about an image that no registry has.
fn not_found<'a>(mut sources: impl Iterator<Item = &'a str>) -> &'static str {
    if sources.any(is_at_googles) {
        return GRANT;
    }
    "Check the attributes openclaw-version, openclaw-image and openclaw-registry-mirror (an image that needs a login is \
     refused likewise)."
}

/// Looks at what was pulled, and gives what came through a mirror its own name instead.
async fn pulled(host: &Host, engine: &Engine, reference: String, source: &str) -> Result<(String, ImageInspect)> {
    let inspect = found(engine, source).await?;
    let digest = inspect.repo_digests.iter().flatten().next().cloned().unwrap_or_else(|| "no digest".to_owned());
    host.changed(format!("pulled {reference} ({digest})"));
    if source == reference {
        return Ok((reference, inspect));
    }
    // With the mirror's name goes the digest, which the engine knows by it alone: the caller gets to see it.
    rename(engine, source, &reference).await?;
    Ok((reference, inspect))
}

/// Gives an image the name `reference` instead of `name`.
pub(super) async fn rename(engine: &Engine, name: &str, reference: &str) -> Result<()> {
    tag(engine, name, reference).await?;
    untag(engine, name).await
}

/// Gives an image the name `reference`, too.
pub(super) async fn tag(engine: &Engine, name: &str, reference: &str) -> Result<ImageInspect> {
    let (repository, tag) = reference.rsplit_once(':').with_context(|| format!("{reference} has no tag"))?;
    let options = TagImageOptionsBuilder::default().repo(repository).tag(tag).build();
    engine.client.tag_image(name, Some(options)).await.with_context(|| format!("naming {name} {reference}"))?;
    found(engine, reference).await
}

/// Takes a name from an image that has another one.
pub(super) async fn untag(engine: &Engine, name: &str) -> Result<()> {
    let untagged = engine.client.remove_image(name, None::<RemoveImageOptions>, None).await;
    untagged.map(drop).with_context(|| format!("removing the name {name}"))
}

async fn found(engine: &Engine, name: &str) -> Result<ImageInspect> {
    present(engine, name).await?.ok_or_else(|| anyhow!("the engine lost image {name} after pulling it"))
}

async fn pull(host: &Host, engine: &Engine, registries: Registries<'_>, source: &str) -> Result<()> {
    let options = CreateImageOptionsBuilder::default().from_image(&with_tag(source)).build();
    let credentials = registries.credentials(source).await?;
    let mut stream = engine.client.create_image(Some(options), None, credentials);
    let mut layers = Layers::default();
    host.progress(format!("pulling {source}"));
    loop {
        let next = tokio::time::timeout(IDLE, stream.try_next())
            .await
            .map_err(|_| anyhow!("nothing came for {} s", IDLE.as_secs()))
            .and_then(|next| Ok(next?))
            .with_context(|| format!("pulling {source}"))?;
        let Some(info) = next else { return Ok(()) };
        if layers.note(&info) {
            host.progress(format!("pulling {source}: {}", layers.shown()));
        }
    }
}

/// The reference with a tag or digest: without one the engine would pull every tag of the repository.
fn with_tag(reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    if name.contains([':', '@']) { reference.to_owned() } else { format!("{reference}:latest") }
}

/// What a failed pull means for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    NotFound,
    NoSpace,
    Transient,
}

impl Trouble {
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
    extracting: bool,
}

impl Layers {
    /// Takes in one message of the engine; true when there is something new to show.
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
            ("Extracting", _) => self.extracting = true,
            _ => return false,
        }
        true
    }

    fn shown(&self) -> String {
        let sum = |part: fn(&(i64, i64)) -> i64| self.downloads.values().map(part).sum::<i64>();
        let (current, total) = (sum(|layer| layer.0), sum(|layer| layer.1));
        if self.extracting && current >= total {
            return "unpacking".to_owned();
        }
        let percent = current.saturating_mul(100).checked_div(total).unwrap_or(0);
        format!("{} of {} MB ({percent} %)", current / MEGABYTE, total / MEGABYTE)
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
            ("manifest for openclaw/openclaw:0.0.0 not found: manifest unknown: manifest unknown", Trouble::NotFound),
            ("Error response from daemon: denied", Trouble::NotFound),
            ("pull access denied for x/y, repository does not exist or may require 'docker login'", Trouble::NotFound),
            ("ghcr.io/openclaw/openclaw:1: not found", Trouble::NotFound),
            ("Get \"https://ghcr.io/v2/\": dial tcp: lookup ghcr.io on 169.254.169.254:53: no such host", Trouble::Transient),
            ("dial tcp: lookup ghcr.io: server not found", Trouble::Transient),
            ("Get \"https://ghcr.io/v2/\": net/http: TLS handshake timeout", Trouble::Transient),
            ("received unexpected HTTP status: 503 Service Unavailable", Trouble::Transient),
            ("toomanyrequests: You have reached your pull rate limit", Trouble::Transient),
            ("Head \"https://eu.pkg.dev/v2/p/i/manifests/1\": no basic auth credentials", Trouble::NotFound),
            ("unexpected status from GET request to https://eu.pkg.dev/v2/p/i/manifests/1: 403 Forbidden", Trouble::NotFound),
            ("failed to register layer: write /app/x: no space left on device", Trouble::NoSpace),
        ];
        for (error, trouble) in cases {
            assert_eq!(Trouble::of(error), trouble, "{error}");
        }
    }

    #[test]
    fn a_reference_without_a_tag_gets_one() {
        let digest = "x/y@sha256:00";
        let cases =
            [("x/y", "x/y:latest"), ("localhost:5000/y", "localhost:5000/y:latest"), ("y:1", "y:1"), (digest, digest)];
        for (reference, tagged) in cases {
            assert_eq!(with_tag(reference), tagged);
        }
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
        assert_eq!(layers.shown(), "40 of 400 MB (10 %)");
        assert!(layers.note(&message("a", "Download complete", None)));
        assert!(layers.note(&message("a", "Extracting", Some((1, 2)))));
        assert_eq!(layers.shown(), "110 of 400 MB (27 %)");
        assert!(layers.note(&message("b", "Download complete", None)));
        assert_eq!(layers.shown(), "unpacking");
    }
}
