//! The gateway's image: which version, from where, pulled or built only when it is not there.

mod base;
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

use std::fmt::Display;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bollard::models::ImageInspect;

use crate::config::{Extras, ImageConfig, ImageSource};
use crate::docker::{Engine, is_missing};
use crate::error::{Classify, Code, RUN_AGAIN};
use crate::host::Host;
use crate::metadata::Client;
use crate::reference::{ImageReference, PinnedImage};
use crate::stage::Stage;
use crate::state::Record;
use crate::version::{GatewayVersion, VersionChoice};

use base::Base;
pub(crate) use choice::is_standard;
use choice::{Desired, Source};
pub use prune::{is_wanted as is_prune_wanted, prune, unused};
use registries::Registries;

/// How long the whole stage may take.
const PATIENCE: Patience = Patience {
    deadline: Duration::from_secs(30 * 60),
    stall: Duration::from_secs(10 * 60),
    longest: Duration::from_secs(3 * 3600),
};

/// How long work may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Unless it gets on.
    deadline: Duration,
    /// It gets on while it says something new within this time, as on a disk that writes 1.5 MB/s.
    stall: Duration,
    /// However it gets on.
    longest: Duration,
}

/// The pause before each try of what may fail for the moment.
const RETRY_BACKOFF: [Duration; 3] = [Duration::ZERO, Duration::from_secs(3), Duration::from_secs(12)];

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
    pub reference: ImageReference,
    /// The image without the operator's extras: what the choice of an image is about.
    pub base: PinnedImage,
    /// The image id (`sha256:…`).
    pub id: String,
    /// The gateway version in it.
    pub version: GatewayVersion,
    /// It brings its own `tini`: the engine's is then not needed, and it is not always installed.
    pub has_init: bool,
}

/// The images of this machine: who has them, and where they come from.
#[derive(Debug, Clone, Copy)]
struct Images<'a> {
    host: &'a Host,
    engine: &'a Engine,
    registries: Registries<'a>,
}

/// Makes sure that the desired image is on this machine; without network when it already is.
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
    let images = Images { host, engine, registries };
    context::clear(host).await?;
    let desired = choice::decide(config, record);
    if let Some(warning) = &desired.warning {
        host.warn(warning);
    }
    let late = match desired.source {
        Source::Standard(ImageSource::Release) | Source::Reference(_) if config.extras.is_empty() => {
            Code::ImagePullFailed
        }
        _ => Code::ImageBuildFailed,
    };
    let work = async {
        let (version, source) = images.resolve(desired).await?;
        let base = Base::new(&version, &source, config, record);
        if config.extras.is_empty() {
            let (base, inspect) = images.ensure_base(&base).await?;
            Image::new(base.reference.clone(), base, inspect, version)
        } else {
            images.ensure_layer(&base, version, &config.extras).await
        }
    };
    let (begun, remedy) = (Instant::now(), format!("Check the VM's way to the registry, then run `{RUN_AGAIN}`."));
    let ended = while_it_gets_on(host, PATIENCE, work).await;
    ended
        .ok_or_else(|| anyhow!("the image was not there after {} minutes", begun.elapsed().as_secs() / 60))
        .classify(late, remedy)?
}

/// What `work` ends with; `None` when it is late and does not get on.
async fn while_it_gets_on<T>(host: &Host, patience: Patience, work: impl Future<Output = T>) -> Option<T> {
    let Patience { deadline, stall, longest } = patience;
    let (begun, mut work, mut said) = (Instant::now(), pin!(work), None);
    loop {
        if let Ok(ended) = tokio::time::timeout(stall, &mut work).await {
            return Some(ended);
        }
        let says = host.ledger().borrow().progress.clone().filter(|(stage, _)| *stage == Stage::Image);
        let elapsed = begun.elapsed();
        if elapsed >= longest || elapsed >= deadline && says == said {
            return None;
        }
        said = says;
        host.extend_deadline((elapsed + stall).saturating_sub(deadline));
    }
}

impl Image {
    /// `version` counts where the image does not say which one it has.
    fn new(
        reference: ImageReference,
        base: PinnedImage,
        inspect: ImageInspect,
        version: GatewayVersion,
    ) -> Result<Self> {
        let version = version_in(&inspect, &base.reference).unwrap_or(version);
        let has_init = has_init(&inspect);
        let id = inspect.id.ok_or_else(|| anyhow!("the engine names no id of image {reference}"))?;
        tracing::debug!("image {reference} is {id}, over {base}");
        Ok(Self { reference, base, id, version, has_init })
    }
}

impl Images<'_> {
    /// Which version it is, and where it comes from, given what is on this machine.
    async fn resolve(self, desired: Desired) -> Result<(GatewayVersion, Source)> {
        let version = match desired.version {
            VersionChoice::Latest => self.resolve_latest(&desired.source, desired.variant).await?,
            VersionChoice::Exact(version) => version,
        };
        let source = match desired.fallback_image {
            Some(image) if find(self.engine, &image).await?.is_some() => Source::Reference(image),
            _ => desired.source,
        };
        Ok((version, source))
    }

    /// The layer with the operator's extras over the base. The base is fetched or built only to build the layer.
    async fn ensure_layer(self, base: &Base<'_>, version: GatewayVersion, extras: &Extras) -> Result<Image> {
        let recipe = layer::recipe(&version, &base.identity(), extras);
        if let Some(inspect) = build::find(self.engine, &recipe).await? {
            return Image::new(recipe.reference(), self.find_base(base).await?, inspect, version);
        }
        let (base, inspect) = self.ensure_base(base).await?;
        let version = version_in(&inspect, &base.reference).unwrap_or(version);
        let pack = async |directory: &_| layer::pack(self.host, extras, &base.reference, &inspect, directory).await;
        let built = self.build(&recipe, &version, pack).await?;
        Image::new(recipe.reference(), base, built, version)
    }
}

/// Where upstream's image with this tag is, the primary registry first.
fn official(tag: &impl Display) -> [ImageReference; 2] {
    OFFICIAL.map(|repository| ImageReference::tagged(repository, tag))
}

/// The version that the image says it has, else the one in its tag.
fn version_in(inspect: &ImageInspect, reference: &ImageReference) -> Option<GatewayVersion> {
    let label = inspect.config.as_ref().and_then(|config| config.labels.as_ref()?.get(VERSION_LABEL));
    let version = label.map(String::as_str).or(reference.tag());
    version.filter(|version| version.starts_with(|first: char| first.is_ascii_digit())).map(GatewayVersion::from)
}

/// Whether what the image starts is `tini`.
fn has_init(inspect: &ImageInspect) -> bool {
    let program = inspect.config.as_ref().and_then(|config| config.entrypoint.as_ref()?.first());
    program.is_some_and(|program| program.rsplit('/').next() == Some("tini"))
}

/// The first of the references whose image is on this machine.
async fn find_first(engine: &Engine, references: &[ImageReference]) -> Result<Option<(ImageReference, ImageInspect)>> {
    for reference in references {
        if let Some(inspect) = find(engine, reference).await? {
            return Ok(Some((reference.clone(), inspect)));
        }
    }
    Ok(None)
}

/// The image behind `reference` if it is on this machine.
async fn find(engine: &Engine, reference: &ImageReference) -> Result<Option<ImageInspect>> {
    match engine.client.inspect_image(&reference.to_string()).await {
        Ok(inspect) => Ok(Some(inspect)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking for image {reference}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::within;

    #[tokio::test]
    async fn work_that_gets_on_may_take_longer() -> Result<()> {
        let millis = Duration::from_millis;
        let patience = Patience { deadline: millis(1500), stall: millis(500), longest: millis(4500) };
        // For how long it says something new, when it ends, and whether that is waited for.
        let cases = [(0, 50, true), (0, 1000, true), (0, 60_000, false), (3500, 3000, true), (60_000, 60_000, false)];
        let holds = async |(speaks, ends, expected)| {
            let host = Host::new("/");
            let speaking = async {
                for step in 0..speaks / 20 {
                    host.progress(step.to_string());
                    tokio::time::sleep(millis(20)).await;
                }
                std::future::pending::<()>().await;
            };
            let work = async {
                tokio::select! {
                    () = tokio::time::sleep(millis(ends)) => (),
                    () = speaking => (),
                }
                anyhow::Ok(())
            };
            let ended = within(Stage::Image, while_it_gets_on(&host, patience, work)).await;
            assert_eq!(ended.is_some(), expected, "{speaks} {ends}");
            let extension = host.ledger().borrow().extension;
            assert!(speaks == 0 || extension > millis(1000), "{speaks} {ends}: {extension:?}");
        };
        futures_util::future::join_all(cases.map(holds)).await;
        Ok(())
    }

    #[test]
    fn the_version_is_read_from_the_label_then_from_the_tag() -> Result<()> {
        let labelled = |version: &str| ImageInspect {
            config: Some(bollard::models::ImageConfig {
                labels: Some([(VERSION_LABEL.to_owned(), version.to_owned())].into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let digest = format!("@sha256:{}", "1".repeat(64));
        let (by_digest, both) = (format!("x/y{digest}"), format!("x/y:2026.9.5{digest}"));
        let cases = [
            (labelled("2026.9.6"), "x/y:latest", Some("2026.9.6")),
            (ImageInspect::default(), &by_digest, None),
            (ImageInspect::default(), &both, Some("2026.9.5")),
            (ImageInspect::default(), "localhost:5000/y:2026.9.5", Some("2026.9.5")),
            (ImageInspect::default(), "localhost:5000/y", None),
            (labelled("main"), "x/y:1", None),
        ];
        for (inspect, reference, version) in cases {
            let found = version_in(&inspect, &reference.parse()?);
            assert_eq!(found.as_ref().map(GatewayVersion::as_str), version, "{reference}");
        }
        Ok(())
    }

    #[test]
    fn an_image_that_starts_tini_needs_none_of_the_engines() {
        let starting = |words: &[&str]| ImageInspect {
            config: Some(bollard::models::ImageConfig {
                entrypoint: Some(words.iter().map(ToString::to_string).collect()),
                ..Default::default()
            }),
            ..Default::default()
        };
        for (words, expected) in
            [(&["/usr/bin/tini", "--"][..], true), (&["tini"], true), (&["sh", "tini"], false), (&[], false)]
        {
            assert_eq!(has_init(&starting(words)), expected, "{words:?}");
        }
        assert!(!has_init(&ImageInspect::default()));
    }
}
