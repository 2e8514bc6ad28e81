//! The gateway's image: which version, from where, pulled or built only when it is not there.

mod build;
mod choice;
mod context;
mod download;
mod latest;
mod layer;
mod npm;
mod ownership;
mod pin;
mod programs;
mod prune;
mod pull;
mod recipe;
mod registries;
mod source;

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::models::ImageInspect;

use crate::config::{Extras, ImageConfig, LATEST, SourceCommit};
use crate::docker::Engine;
use crate::error::{Classify, Code};
use crate::host::Host;
use crate::metadata::Client;
use crate::state::Record;

use choice::Source;
pub(crate) use choice::is_standard;
pub use prune::prune;
use recipe::Recipe;
use registries::Registries;

/// How long the whole stage may take (the design's deadline).
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// How often a transient failure is tried again, after these pauses.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(3), Duration::from_secs(12)];

/// Where upstream publishes its image, first the primary registry, then the mirror on Docker Hub.
const OFFICIAL: [&str; 2] = ["ghcr.io/openclaw/openclaw", "openclaw/openclaw"];

/// The label in which images that follow the OCI conventions carry their version.
const VERSION_LABEL: &str = "org.opencontainers.image.version";

/// What to do about a full disk: Docker keeps its images on the boot disk.
const GROW_BOOT_DISK: &str = "Images live on the boot disk: grow it with \
    `gcloud compute disks resize VM --size=30GB --zone=ZONE` (the boot disk usually has the VM's name) and reboot the VM.";

/// An image that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The reference that containers are created from.
    pub reference: String,
    /// The same without what the operator adds: what the choice of an image is about.
    pub base: String,
    /// That with its digest, `REFERENCE@sha256:…`, when a registry has it.
    pub digest: Option<String>,
    /// The image id (`sha256:…`).
    pub id: String,
    /// The gateway version in it.
    pub version: String,
}

/// Makes sure that the wanted image is on this machine; without network when it already is.
///
/// Fails with [`Code::ImageNotFound`], [`Code::ImagePullFailed`], [`Code::ImageBuildFailed`],
/// [`Code::DigestMismatch`], [`Code::OutOfMemory`] or [`Code::NoSpace`].
pub async fn ensure(
    host: &Host,
    engine: &Engine,
    metadata: &Client,
    config: &ImageConfig,
    record: &Record,
) -> Result<Image> {
    let registries = Registries { mirror: config.mirror.as_deref(), metadata };
    context::clear(host).await?;
    let wanted = choice::decide(config, record);
    if let Some(warning) = wanted.warning {
        host.warn(warning);
    }
    let late = match &wanted.source {
        Source::Release | Source::Reference(_) if config.extras.is_empty() => Code::ImagePullFailed,
        _ => Code::ImageBuildFailed,
    };
    let work = async {
        let wanted_version = match wanted.version.as_str() {
            LATEST => latest::version(host, engine, registries, &wanted.source).await?,
            version => version.to_owned(),
        };
        let source = match wanted.kept {
            Some(kept) if present(engine, &kept).await?.is_some() => Source::Reference(kept),
            _ => wanted.source,
        };
        let base = Base::new(&wanted_version, &source, config, record);
        let (reference, inspect, digest) = if config.extras.is_empty() {
            let (reference, inspect) = base.ensure(host, engine, registries).await?;
            let digest = pin::digest(registries, &reference, &inspect);
            (reference, inspect, digest)
        } else {
            let recipe = layer::recipe(&wanted_version, &base.identity(), &config.extras);
            let (inspect, digest) = match build::built(engine, &recipe).await? {
                Some(inspect) => (inspect, None),
                None => extend(host, engine, registries, &base, &recipe, &config.extras).await?,
            };
            (recipe.reference(), inspect, digest)
        };
        let (base, known) = base.here(engine, registries).await?;
        let digest = digest.or(known);
        let version = version_in(&inspect, &base).unwrap_or(wanted_version);
        let id = inspect.id.ok_or_else(|| anyhow!("the engine names no id of image {reference}"))?;
        tracing::debug!("image {reference} is {id}, over {}", digest.as_ref().unwrap_or(&base));
        Ok(Image { reference, base, digest, id, version })
    };
    tokio::time::timeout(DEADLINE, work)
        .await
        .map_err(|_| anyhow!("the image was not there after {} minutes", DEADLINE.as_secs() / 60))
        .classify(late, "Check the VM's way to the registry, then run `sudo openclaw-init boot`.")?
}

/// Builds the layer with the operator's extras over the base, which is fetched or built if it is not here; with
/// the base's digest.
async fn extend(
    host: &Host,
    engine: &Engine,
    registries: Registries<'_>,
    base: &Base<'_>,
    recipe: &Recipe,
    extras: &Extras,
) -> Result<(ImageInspect, Option<String>)> {
    let (reference, inspect) = base.ensure(host, engine, registries).await?;
    let version = version_in(&inspect, &reference).unwrap_or_else(|| recipe.version.clone());
    let built = build::build(host, engine, registries, recipe, &version, async |directory| {
        layer::pack(host, extras, (&reference, &inspect), directory).await
    });
    Ok((built.await?, pin::digest(registries, &reference, &inspect)))
}

/// The image without the operator's extras.
enum Base<'a> {
    /// One of these references, in this order, with the digest that one of them had.
    Pulled { references: Vec<String>, recorded: Option<&'a str> },
    /// Built from the npm package.
    Npm(Recipe),
    /// Built from a commit of the source.
    Commit(Recipe, &'a SourceCommit),
}

impl<'a> Base<'a> {
    fn new(version: &str, source: &'a Source, config: &ImageConfig, record: &'a Record) -> Self {
        let pulled = |references| Self::Pulled { references, recorded: record.digest.as_deref() };
        match source {
            Source::Release => pulled(official(version).to_vec()),
            Source::Reference(reference) => pulled(vec![reference.clone()]),
            Source::Npm => Self::Npm(npm::recipe(version, config.npm_registry.as_deref())),
            Source::Commit(commit) => Self::Commit(source::recipe(version, commit), commit),
        }
    }

    /// What determines it, as far as that is known without it.
    fn identity(&self) -> String {
        match self {
            Self::Pulled { references, .. } => references.join(" "),
            Self::Npm(recipe) | Self::Commit(recipe, _) => recipe.fingerprint.clone(),
        }
    }

    /// The name by which it is chosen, and its digest if it came from a registry.
    async fn here(&self, engine: &Engine, registries: Registries<'_>) -> Result<(String, Option<String>)> {
        let references = match self {
            Self::Pulled { references, .. } => references,
            Self::Npm(recipe) | Self::Commit(recipe, _) => return Ok((recipe.reference(), None)),
        };
        Ok(match first_present(engine, references).await? {
            Some((reference, inspect)) => {
                let digest = pin::digest(registries, &reference, &inspect);
                (reference, digest)
            }
            None => (references.first().cloned().unwrap_or_default(), None),
        })
    }

    async fn ensure(&self, host: &Host, engine: &Engine, registries: Registries<'_>) -> Result<(String, ImageInspect)> {
        let recipe = match self {
            Self::Pulled { references, recorded } => {
                return pin::first_of(host, engine, registries, references, *recorded).await;
            }
            Self::Npm(recipe) | Self::Commit(recipe, _) => recipe,
        };
        let inspect = match (build::built(engine, recipe).await?, self) {
            (Some(inspect), _) => inspect,
            (None, Self::Commit(_, commit)) => source::build(host, engine, registries, recipe, commit).await?,
            (None, _) => build::build(host, engine, registries, recipe, &recipe.version, npm::pack).await?,
        };
        Ok((recipe.reference(), inspect))
    }
}

fn official(version: &str) -> [String; 2] {
    OFFICIAL.map(|repository| format!("{repository}:{version}"))
}

/// The version that the image says it has, else the one in its tag.
fn version_in(inspect: &ImageInspect, reference: &str) -> Option<String> {
    let label = inspect.config.as_ref().and_then(|config| config.labels.as_ref()?.get(VERSION_LABEL).cloned());
    let tag = || reference.rsplit('/').next()?.split_once(':').map(|(_, tag)| tag.to_owned());
    label.or_else(tag).filter(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

/// The first of the references whose image is on this machine.
async fn first_present(engine: &Engine, references: &[String]) -> Result<Option<(String, ImageInspect)>> {
    for reference in references {
        if let Some(inspect) = present(engine, reference).await? {
            return Ok(Some((reference.clone(), inspect)));
        }
    }
    Ok(None)
}

/// The image behind `reference` if it is on this machine.
async fn present(engine: &Engine, reference: &str) -> Result<Option<ImageInspect>> {
    match engine.client.inspect_image(reference).await {
        Ok(inspect) => Ok(Some(inspect)),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking for image {reference}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_label_then_from_the_tag() {
        let labelled = |version: &str| ImageInspect {
            config: Some(bollard::models::ImageConfig {
                labels: Some([(VERSION_LABEL.to_owned(), version.to_owned())].into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let cases = [
            (labelled("2026.9.6"), "x/y:latest", Some("2026.9.6")),
            (ImageInspect::default(), "localhost:5000/y:2026.9.5", Some("2026.9.5")),
            (ImageInspect::default(), "localhost:5000/y", None),
            (labelled("main"), "x/y:1", None),
        ];
        for (inspect, reference, version) in cases {
            assert_eq!(version_in(&inspect, reference).as_deref(), version, "{reference}");
        }
    }
}
