//! The gateway's image: which version, from where, pulled or built only when it is not there.

mod build;
mod choice;
mod pull;

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::models::ImageInspect;

use crate::config::ImageConfig;
use crate::docker::Engine;
use crate::failure::{Blame, Code};
use crate::host::Host;
use crate::record::Record;

use choice::Source;

/// How long the whole stage may take (the design's deadline).
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// How often a transient failure is tried again, after these pauses.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(3), Duration::from_secs(12)];

/// Where upstream publishes its image, first the primary registry, then the mirror on Docker Hub.
const OFFICIAL: [&str; 2] = ["ghcr.io/openclaw/openclaw", "openclaw/openclaw"];

/// The repository of images that were built on this machine.
const BUILT: &str = "openclaw-init/openclaw";

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
    /// The image id (`sha256:…`).
    pub id: String,
    /// The gateway version in it.
    pub version: String,
}

/// Makes sure that the wanted image is on this machine; without network when it already is.
///
/// Fails with [`Code::ImageNotFound`], [`Code::ImagePullFailed`], [`Code::ImageBuildFailed`],
/// [`Code::OutOfMemory`] or [`Code::NoSpace`].
pub async fn ensure(host: &Host, engine: &Engine, config: &ImageConfig, record: &Record) -> Result<Image> {
    let wanted = choice::decide(config, record);
    if let Some(warning) = wanted.warning {
        host.warn(warning);
    }
    let late = match wanted.source {
        Source::Npm => Code::ImageBuildFailed,
        Source::Release | Source::Reference(_) => Code::ImagePullFailed,
    };
    let work = async {
        let (reference, inspect) = match wanted.source {
            Source::Release => pull::first_of(host, engine, &official(&wanted.version)).await?,
            Source::Reference(reference) => pull::first_of(host, engine, &[reference]).await?,
            Source::Npm => build::ensure(host, engine, &wanted.version, config.npm_registry.as_deref()).await?,
        };
        let version = version_in(&inspect, &reference).unwrap_or(wanted.version);
        let id = inspect.id.ok_or_else(|| anyhow!("the engine names no id of image {reference}"))?;
        tracing::debug!("image {reference} is {id}, digests {:?}", inspect.repo_digests.unwrap_or_default());
        Ok(Image { reference, id, version })
    };
    tokio::time::timeout(DEADLINE, work)
        .await
        .map_err(|_| anyhow!("the image was not there after {} minutes", DEADLINE.as_secs() / 60))
        .blame(late, "Check the VM's way to the registry, then run `sudo systemctl restart openclaw-init`.")?
}

fn official(version: &str) -> [String; 2] {
    OFFICIAL.map(|repository| format!("{repository}:{version}"))
}

fn built(version: &str) -> String {
    format!("{BUILT}:{version}")
}

/// The version that the image says it has, else the one in its tag.
fn version_in(inspect: &ImageInspect, reference: &str) -> Option<String> {
    let label = inspect.config.as_ref().and_then(|config| config.labels.as_ref()?.get(VERSION_LABEL).cloned());
    let tag = || reference.rsplit('/').next()?.split_once(':').map(|(_, tag)| tag.to_owned());
    label.or_else(tag).filter(|version| version.starts_with(|first: char| first.is_ascii_digit()))
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
