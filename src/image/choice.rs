//! Which version of the gateway this machine should have, and from where: the operator's choice for an empty
//! state, what last owned it for any other.

use super::recipe::is_built;
use super::{official, source};
use crate::config::{ImageConfig, ImageSource};
use crate::reference::{ImageReference, PinnedImage};
use crate::state::{Owner, Record};
use crate::version::{GatewayVersion, Variant, VersionChoice};

/// Which image this machine should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Desired {
    /// The version, as far as it is known before the image is on this machine.
    pub(super) version: VersionChoice,
    /// Of the newest version, which variant.
    pub(super) variant: Option<Variant>,
    /// Where the image comes from.
    pub(super) source: Source,
    /// The image this state was created by, used instead if it is still on the machine: it cannot be rebuilt.
    pub(super) fallback_image: Option<ImageReference>,
    /// What the operator should know about the choice.
    pub(super) warning: Option<String>,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Upstream's own image, or one that is built here.
    Standard(ImageSource),
    /// Exactly this reference.
    Reference(ImageReference),
}

/// The operator's choice for an empty state. An existing state keeps what last owned it: another version comes
/// with a copy of the state and a way back, in [`crate::update`].
pub(super) fn decide(config: &ImageConfig, record: &Record) -> Desired {
    match record.owner.version() {
        None => for_empty(config, &record.owner),
        Some(version) => for_owned(config, version, record.image.as_ref()),
    }
}

fn for_empty(config: &ImageConfig, owner: &Owner) -> Desired {
    let reference = config.reference.clone().or_else(|| config.default_reference.clone());
    // What is newest is looked up by upstream's tag: an explicit image is not.
    let named = config.version.clone().filter(|version| reference.is_none() || *version != VersionChoice::Latest);
    let version = named.unwrap_or_else(|| VersionChoice::Exact(config.default_version.clone()));
    // A record that was lost, or a run that was cut before it wrote the first one.
    let warning = (*owner == Owner::Unknown).then(|| {
        format!(
            "nothing tells which version the existing state belongs to: trying {version}, \
             which refuses the state of a newer one"
        )
    });
    let source = reference.map_or_else(|| Source::Standard(config.source.clone()), Source::Reference);
    Desired { version, variant: config.variant, source, fallback_image: None, warning }
}

fn for_owned(config: &ImageConfig, version: &GatewayVersion, recorded: Option<&PinnedImage>) -> Desired {
    let recorded = recorded.map(|image| &image.reference);
    let explicit = recorded.filter(|image| !is_standard(image, version));
    let (source, fallback_image) = match (explicit, &config.reference, recorded, &config.source) {
        (Some(explicit), ..) => (Source::Reference(explicit.clone()), None),
        // The recorded image is a standard one and was named explicitly.
        (None, Some(reference), Some(image), _) if image == reference => (Source::Reference(reference.clone()), None),
        // Another commit is another program: it comes as an update.
        (None, _, Some(image), ImageSource::Source(commit))
            if *image != source::recipe(version, commit).reference() =>
        {
            if is_built(image, version) {
                (Source::Standard(config.source.clone()), Some(image.clone()))
            } else {
                (Source::Standard(ImageSource::Release), None)
            }
        }
        (None, _, _, source) => (Source::Standard(source.clone()), None),
    };
    Desired { version: VersionChoice::Exact(version.clone()), variant: None, source, fallback_image, warning: None }
}

/// True for an image that this program chooses for `version` when the operator names none.
pub(crate) fn is_standard(image: &ImageReference, version: &GatewayVersion) -> bool {
    official(version).contains(image) || is_built(image, version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Extras, SourceCommit};

    const BAKED: &str = "2026.9.4";

    fn reference(text: &str) -> ImageReference {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn config(version: Option<&str>, image: Option<&str>, source: ImageSource) -> ImageConfig {
        ImageConfig {
            version: version.and_then(|version| version.parse().ok()),
            variant: None,
            reference: image.map(reference),
            source,
            mirror: None,
            npm_registry: None,
            extras: Extras::default(),
            accepts_loss: false,
            default_version: BAKED.into(),
            default_reference: None,
        }
    }

    fn record(version: Option<&str>, choice: Option<&str>, image: Option<&str>) -> Record {
        Record {
            owner: version.map_or(Owner::Nobody, |version| Owner::Version(version.into())),
            choice: choice.map(str::to_owned),
            image: image.map(|image| PinnedImage { reference: reference(image), digest: None }),
            ..Record::default()
        }
    }

    #[test]
    fn an_empty_state_gets_what_the_operator_chose_and_a_state_keeps_what_it_has() {
        use ImageSource::{Npm, Release};
        let explicit = |text: &str| Source::Reference(reference(text));
        let hub = "openclaw/openclaw:2026.9.5";
        let empty = record(None, None, None);
        let unknown = Record { owner: Owner::Unknown, ..Record::default() };
        let owned = record(Some("2026.9.5"), None, Some(hub));
        let chosen = record(Some("2026.9.5"), Some("latest"), Some(hub));
        let own = record(Some("2026.9.5"), None, Some("registry.example/claw:9"));
        let built_here = record(Some("2026.9.5"), None, Some("localhost/openclaw-init:2026.9.5-0123456789ab"));
        let baked = ImageConfig { default_reference: Some(reference("b/k:1")), ..config(None, None, Release) };
        let overruled = ImageConfig { reference: Some(reference("x/y:1")), ..baked.clone() };
        #[rustfmt::skip]
        let cases = [
            (config(None, None, Release), &empty, BAKED, Source::Standard(Release), false),
            (config(Some("2026.9.1"), None, Npm), &empty, "2026.9.1", Source::Standard(Npm), false),
            (config(None, Some("x/y:1"), Release), &empty, BAKED, explicit("x/y:1"), false),
            (config(Some("latest"), None, Release), &empty, "latest", Source::Standard(Release), false),
            (config(Some("latest"), Some("x/y:1"), Release), &empty, BAKED, explicit("x/y:1"), false),
            (baked.clone(), &empty, BAKED, explicit("b/k:1"), false),
            (overruled.clone(), &empty, BAKED, explicit("x/y:1"), false),
            (overruled.of_version(VersionChoice::Exact("2026.9.6".into())), &empty, "2026.9.6", Source::Standard(Release), false),
            (baked, &owned, "2026.9.5", Source::Standard(Release), false),
            (config(None, None, Release), &unknown, BAKED, Source::Standard(Release), true),
            (config(None, None, Release), &owned, "2026.9.5", Source::Standard(Release), false),
            (config(None, None, Npm), &owned, "2026.9.5", Source::Standard(Npm), false),
            (config(Some("2026.9.5"), None, Release), &owned, "2026.9.5", Source::Standard(Release), false),
            (config(Some("2026.9.6"), None, Release), &owned, "2026.9.5", Source::Standard(Release), false),
            (config(Some("latest"), None, Release), &chosen, "2026.9.5", Source::Standard(Release), false),
            (config(None, Some(hub), Release), &owned, "2026.9.5", explicit(hub), false),
            (config(None, Some("x/y:1"), Release), &owned, "2026.9.5", Source::Standard(Release), false),
            (config(None, Some("x/y:1"), Release), &own, "2026.9.5", explicit("registry.example/claw:9"), false),
            (config(None, None, Release), &built_here, "2026.9.5", Source::Standard(Release), false),
            (config(None, None, Release), &own, "2026.9.5", explicit("registry.example/claw:9"), false),
        ];
        for (config, record, version, source, warned) in cases {
            let desired = decide(&config, record);
            assert_eq!(desired.version.to_string(), version, "{config:?} {record:?}");
            assert_eq!(desired.source, source, "{config:?} {record:?}");
            assert_eq!(desired.warning.is_some(), warned, "{config:?} {record:?}");
            assert_eq!(desired.fallback_image, None, "{config:?} {record:?}");
        }
    }

    #[test]
    fn a_state_keeps_its_image_when_another_commit_is_named() {
        let commit = |digit: &str| SourceCommit {
            url: "https://h/x".to_owned(),
            commit: digit.repeat(40),
            tree: None,
            sha256: None,
        };
        let version = "2026.9.5";
        let built = |commit| source::recipe(&version.into(), &commit).reference().to_string();
        let (first, second, hub) = (built(commit("1")), built(commit("2")), "openclaw/openclaw:2026.9.5");
        let cases = [
            (Some(&*first), "1", Source::Standard(ImageSource::Source(commit("1"))), None),
            (Some(&*first), "2", Source::Standard(ImageSource::Source(commit("2"))), Some(&*first)),
            (Some(&*second), "1", Source::Standard(ImageSource::Source(commit("1"))), Some(&*second)),
            (Some(hub), "1", Source::Standard(ImageSource::Release), None),
            (None, "1", Source::Standard(ImageSource::Source(commit("1"))), None),
        ];
        for (image, named, source, fallback) in cases {
            let config = config(None, None, ImageSource::Source(commit(named)));
            let desired = decide(&config, &record(Some(version), None, image));
            assert_eq!(desired.version.to_string(), version, "{image:?} {named}");
            assert_eq!(desired.fallback_image, fallback.map(reference), "{image:?} {named}");
            assert_eq!(desired.source, source, "{image:?} {named}");
        }
    }
}
