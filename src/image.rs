//! The gateway's image: which version, from where, pulled or built only when it is not there.

mod build;
mod pull;

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::models::ImageInspect;

use crate::config::{ImageConfig, ImageSource};
use crate::docker::Engine;
use crate::failure::{Blame, Code};
use crate::host::Host;
use crate::record::Record;

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
    let wanted = decide(config, record);
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

/// Which image this machine should have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    version: String,
    source: Source,
    warning: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Release,
    Npm,
    Reference(String),
}

/// The operator's choice for an empty state. An existing state keeps what last owned it: replacing a
/// version needs a backup and a way back, which this version of the program does not have yet.
fn decide(config: &ImageConfig, record: &Record) -> Wanted {
    let source = match config.source {
        ImageSource::Release => Source::Release,
        ImageSource::Npm => Source::Npm,
    };
    let Some(version) = record.version.clone() else {
        let version = config.version.clone().unwrap_or_else(|| config.default_version.clone());
        let source = config.reference.clone().map_or(source, Source::Reference);
        // A record that was lost, or a run that was cut before it wrote the first one.
        let warning = record.state_exists.then(|| {
            format!(
                "nothing tells which version the existing state belongs to: trying {version}, \
                 which refuses the state of a newer one"
            )
        });
        return Wanted { version, source, warning };
    };
    let explicit = record.image.clone().filter(|image| !is_standard(image, &version));
    let warning = match (&config.reference, &config.version) {
        (Some(reference), _) if record.image.as_ref() != Some(reference) => Some(format!("image {reference}")),
        (None, Some(choice)) if *choice != version && record.choice.as_ref() != Some(choice) => {
            Some(format!("version {choice}"))
        }
        _ => None,
    };
    let warning = warning.map(|asked| {
        let kept = explicit.as_ref().map_or_else(|| format!("version {version}"), |image| format!("image {image}"));
        format!(
            "the attributes ask for {asked}, but the state belongs to {kept} and keeps it: \
             this version of openclaw-init cannot update existing state"
        )
    });
    let source = match (explicit, &config.reference) {
        (Some(explicit), _) => Source::Reference(explicit),
        // The recorded image is a standard one and was named explicitly.
        (None, Some(reference)) if record.image.as_ref() == Some(reference) => Source::Reference(reference.clone()),
        (None, _) => source,
    };
    Wanted { version, source, warning }
}

/// True for an image that this program chooses by itself for `version`.
fn is_standard(image: &str, version: &str) -> bool {
    official(version).iter().any(|official| official == image) || image == built(version)
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

    const BAKED: &str = "2026.9.4";

    fn config(version: Option<&str>, reference: Option<&str>, source: ImageSource) -> ImageConfig {
        ImageConfig {
            version: version.map(str::to_owned),
            reference: reference.map(str::to_owned),
            source,
            npm_registry: None,
            default_version: BAKED.to_owned(),
        }
    }

    fn record(version: Option<&str>, choice: Option<&str>, image: Option<&str>) -> Record {
        Record {
            version: version.map(str::to_owned),
            choice: choice.map(str::to_owned),
            image: image.map(str::to_owned),
            ..Record::default()
        }
    }

    #[test]
    fn an_empty_state_gets_what_the_operator_chose_and_a_state_keeps_what_it_has() {
        use ImageSource::{Npm, Release};
        let reference = |text: &str| Source::Reference(text.to_owned());
        let hub = "openclaw/openclaw:2026.9.5";
        let empty = record(None, None, None);
        let unknown = Record { state_exists: true, ..Record::default() };
        let owned = record(Some("2026.9.5"), None, Some(hub));
        let chosen = record(Some("2026.9.5"), Some("latest"), Some(hub));
        let own = record(Some("2026.9.5"), None, Some("registry.example/claw:9"));
        #[rustfmt::skip]
        let cases = [
            (config(None, None, Release), &empty, BAKED, Source::Release, false),
            (config(Some("2026.9.1"), None, Npm), &empty, "2026.9.1", Source::Npm, false),
            (config(None, Some("x/y:1"), Release), &empty, BAKED, reference("x/y:1"), false),
            (config(None, None, Release), &unknown, BAKED, Source::Release, true),
            (config(None, None, Release), &owned, "2026.9.5", Source::Release, false),
            (config(None, None, Npm), &owned, "2026.9.5", Source::Npm, false),
            (config(Some("2026.9.5"), None, Release), &owned, "2026.9.5", Source::Release, false),
            (config(Some("2026.9.6"), None, Release), &owned, "2026.9.5", Source::Release, true),
            (config(Some("latest"), None, Release), &chosen, "2026.9.5", Source::Release, false),
            (config(None, Some(hub), Release), &owned, "2026.9.5", reference(hub), false),
            (config(None, Some("x/y:1"), Release), &owned, "2026.9.5", Source::Release, true),
            (config(None, Some("x/y:1"), Release), &own, "2026.9.5", reference("registry.example/claw:9"), true),
            (config(None, None, Release), &own, "2026.9.5", reference("registry.example/claw:9"), false),
        ];
        for (config, record, version, source, warned) in cases {
            let wanted = decide(&config, record);
            assert_eq!((wanted.version.as_str(), &wanted.source), (version, &source), "{config:?} {record:?}");
            assert_eq!(wanted.warning.is_some(), warned, "{config:?} {record:?}");
        }
    }

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
