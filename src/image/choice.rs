//! Which version of the gateway this machine should have, and from where: the operator's choice for an empty
//! state, what last owned it for any other.

use super::recipe::is_built;
use super::{official, source};
use crate::config::{ImageConfig, ImageSource, LATEST, SourceCommit};
use crate::state::{Owner, Record};

/// Which image this machine should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The version, as far as it is known before the image is here; [`LATEST`] for an empty state that is to get it.
    pub(super) version: String,
    /// Where the image comes from.
    pub(super) source: Source,
    /// The image that the state belongs to, to be taken instead as long as it is here: nothing else makes it again.
    pub(super) kept: Option<String>,
    /// What the operator should know about the choice.
    pub(super) warning: Option<String>,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Upstream's own image.
    Release,
    /// Built from the npm package.
    Npm,
    /// Built from a commit of the source.
    Commit(SourceCommit),
    /// Exactly this reference.
    Reference(String),
}

/// The operator's choice for an empty state. An existing state keeps what last owned it: another version comes
/// with a copy of the state and a way back, in [`crate::update`].
pub(super) fn decide(config: &ImageConfig, record: &Record) -> Wanted {
    let source = match &config.source {
        ImageSource::Release => Source::Release,
        ImageSource::Npm => Source::Npm,
        ImageSource::Source(commit) => Source::Commit(commit.clone()),
    };
    let Some(version) = record.owner.version().map(ToString::to_string) else {
        let reference = config.reference.clone().or_else(|| config.default_reference.clone());
        let named = config.version.clone().filter(|version| reference.is_none() || version != LATEST);
        let version = named.unwrap_or_else(|| config.default_version.clone());
        let source = reference.map_or(source, Source::Reference);
        // A record that was lost, or a run that was cut before it wrote the first one.
        let warning = (record.owner == Owner::Unknown).then(|| {
            format!(
                "nothing tells which version the existing state belongs to: trying {version}, \
                 which refuses the state of a newer one"
            )
        });
        return Wanted { version, source, kept: None, warning };
    };
    let explicit = record.image.clone().filter(|image| !is_standard(image, &version));
    let (source, kept) = match (explicit, &config.reference, &record.image, source) {
        (Some(explicit), ..) => (Source::Reference(explicit), None),
        // The recorded image is a standard one and was named explicitly.
        (None, Some(reference), Some(image), _) if image == reference => (Source::Reference(reference.clone()), None),
        // Another commit is another program: it comes as an update.
        (None, _, Some(image), Source::Commit(commit)) if *image != source::recipe(&version, &commit).reference() => {
            if is_built(image, &version) {
                (Source::Commit(commit), Some(image.clone()))
            } else {
                (Source::Release, None)
            }
        }
        (None, _, _, source) => (source, None),
    };
    Wanted { version, source, kept, warning: None }
}

/// True for an image that this program chooses by itself for `version`.
pub(crate) fn is_standard(image: &str, version: &str) -> bool {
    official(version).iter().any(|official| official == image) || is_built(image, version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Extras;

    const BAKED: &str = "2026.9.4";

    fn config(version: Option<&str>, reference: Option<&str>, source: ImageSource) -> ImageConfig {
        ImageConfig {
            version: version.map(str::to_owned),
            reference: reference.map(str::to_owned),
            source,
            mirror: None,
            npm_registry: None,
            extras: Extras::default(),
            default_version: BAKED.to_owned(),
            default_reference: None,
        }
    }

    fn record(version: Option<&str>, choice: Option<&str>, image: Option<&str>) -> Record {
        Record {
            owner: version.map_or(Owner::Nobody, |version| Owner::Version(version.into())),
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
        let unknown = Record { owner: Owner::Unknown, ..Record::default() };
        let owned = record(Some("2026.9.5"), None, Some(hub));
        let chosen = record(Some("2026.9.5"), Some("latest"), Some(hub));
        let own = record(Some("2026.9.5"), None, Some("registry.example/claw:9"));
        let built_here = record(Some("2026.9.5"), None, Some("localhost/openclaw-init:2026.9.5-0123456789ab"));
        let baked = ImageConfig { default_reference: Some("b/k:1".to_owned()), ..config(None, None, Release) };
        let overruled = ImageConfig { reference: Some("x/y:1".to_owned()), ..baked.clone() };
        #[rustfmt::skip]
        let cases = [
            (config(None, None, Release), &empty, BAKED, Source::Release, false),
            (config(Some("2026.9.1"), None, Npm), &empty, "2026.9.1", Source::Npm, false),
            (config(None, Some("x/y:1"), Release), &empty, BAKED, reference("x/y:1"), false),
            (config(Some("latest"), None, Release), &empty, "latest", Source::Release, false),
            (config(Some("latest"), Some("x/y:1"), Release), &empty, BAKED, reference("x/y:1"), false),
            (baked.clone(), &empty, BAKED, reference("b/k:1"), false),
            (overruled.clone(), &empty, BAKED, reference("x/y:1"), false),
            (overruled.of_version("2026.9.6"), &empty, "2026.9.6", Source::Release, false),
            (baked, &owned, "2026.9.5", Source::Release, false),
            (config(None, None, Release), &unknown, BAKED, Source::Release, true),
            (config(None, None, Release), &owned, "2026.9.5", Source::Release, false),
            (config(None, None, Npm), &owned, "2026.9.5", Source::Npm, false),
            (config(Some("2026.9.5"), None, Release), &owned, "2026.9.5", Source::Release, false),
            (config(Some("2026.9.6"), None, Release), &owned, "2026.9.5", Source::Release, false),
            (config(Some("latest"), None, Release), &chosen, "2026.9.5", Source::Release, false),
            (config(None, Some(hub), Release), &owned, "2026.9.5", reference(hub), false),
            (config(None, Some("x/y:1"), Release), &owned, "2026.9.5", Source::Release, false),
            (config(None, Some("x/y:1"), Release), &own, "2026.9.5", reference("registry.example/claw:9"), false),
            (config(None, None, Release), &built_here, "2026.9.5", Source::Release, false),
            (config(None, None, Release), &own, "2026.9.5", reference("registry.example/claw:9"), false),
        ];
        for (config, record, version, source, warned) in cases {
            let wanted = decide(&config, record);
            assert_eq!((wanted.version.as_str(), &wanted.source), (version, &source), "{config:?} {record:?}");
            assert_eq!(wanted.warning.is_some(), warned, "{config:?} {record:?}");
            assert_eq!(wanted.kept, None, "{config:?} {record:?}");
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
        let built = |commit| source::recipe(version, &commit).reference();
        let (first, second, hub) = (built(commit("1")), built(commit("2")), "openclaw/openclaw:2026.9.5");
        let cases = [
            (Some(&*first), "1", Source::Commit(commit("1")), None),
            (Some(&*first), "2", Source::Commit(commit("2")), Some(&*first)),
            (Some(&*second), "1", Source::Commit(commit("1")), Some(&*second)),
            (Some(hub), "1", Source::Release, None),
            (None, "1", Source::Commit(commit("1")), None),
        ];
        for (image, named, source, kept) in cases {
            let config = config(None, None, ImageSource::Source(commit(named)));
            let wanted = decide(&config, &record(Some(version), None, image));
            assert_eq!((wanted.version.as_str(), wanted.kept.as_deref()), (version, kept), "{image:?} {named}");
            assert_eq!(wanted.source, source, "{image:?} {named}");
        }
    }
}
