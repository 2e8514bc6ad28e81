//! Which update or rollback is to be done, if any: a pure function of the operator's request, the attributes and the
//! record.

use super::Request;
use crate::config::ImageConfig;
use crate::state::Record;
use crate::version::VersionChoice;

/// What to update to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Another version.
    Update {
        /// The version that an operator named by hand; else it is what the attributes say.
        to: Option<VersionChoice>,
        /// The attribute's value that asks for it, when no operator did by hand.
        choice: Option<String>,
    },
    /// The version before.
    Rollback {
        /// The operator knows that what was written since then goes out of use.
        set_newer_state_aside: bool,
    },
}

/// What the request asks for; else an attribute's value that has changed since it was last acted upon, and that names
/// another version or image than the state's own.
pub(super) fn decide_target(request: Option<&Request>, config: &ImageConfig, record: &Record) -> Option<Target> {
    match request {
        Some(Request::Update { to }) => Some(Target::Update { to: to.clone(), choice: None }),
        Some(Request::Rollback { set_newer_state_aside }) => {
            Some(Target::Rollback { set_newer_state_aside: *set_newer_state_aside })
        }
        Some(Request::Boot | Request::Repair { .. }) | None => {
            let choice = config.choice()?;
            let is_new = record.owner.version().is_some() && record.choice.as_ref() != Some(&choice);
            (is_new && !record.satisfies(config)).then_some(Target::Update { to: None, choice: Some(choice) })
        }
    }
}

/// The warning while an attribute asks for what was refused or undone before.
pub(super) fn held(config: &ImageConfig, record: &Record) -> Option<String> {
    let why = record.refused.as_ref()?;
    let choice = config.choice().filter(|choice| record.choice.as_ref() == Some(choice))?;
    let key = config.choice_attribute();
    (!record.satisfies(config)).then(|| {
        format!(
            "{key}={choice} is not followed, since {why}. Set it to another value, or try again with \
             `sudo openclaw-init update`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::reference::PinnedImage;
    use crate::state::Owner;

    fn config(pairs: &[(&str, &str)]) -> anyhow::Result<ImageConfig> {
        let attributes = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Ok(Config::from_attributes(&attributes)?.0.image)
    }

    fn record(version: Option<&str>, choice: Option<&str>, image: &str) -> Record {
        let image = image.parse().ok().map(|reference| PinnedImage { reference, digest: None });
        Record {
            owner: version.map_or(Owner::Nobody, |version| Owner::Version(version.into())),
            choice: choice.map(str::to_owned),
            image,
            ..Record::default()
        }
    }

    #[test]
    fn only_a_changed_value_asks_for_another_version() -> anyhow::Result<()> {
        let official = "ghcr.io/openclaw/openclaw:2026.8.2";
        let (old, new) = (("openclaw-version", "2026.8.2"), ("openclaw-version", "2026.9.6"));
        let own = ("openclaw-image", "registry.example/claw:9");
        let (browser, with_browser) =
            (("openclaw-image-variant", "browser"), "ghcr.io/openclaw/openclaw:2026.8.2-browser");
        let (first, built) = ("1".repeat(40), "localhost/openclaw-init:2026.8.2-0123456789ab");
        let (source, commit) = (("openclaw-image-source", "source"), ("openclaw-source-ref", &*first));
        let as_old = format!("{first} as 2026.8.2");
        #[rustfmt::skip]
        let cases = [
            (&[][..], record(Some("2026.8.2"), None, official), None),
            (&[new], record(None, None, official), None),
            (&[old], record(Some("2026.8.2"), None, official), None),
            (&[new], record(Some("2026.8.2"), None, official), Some("2026.9.6")),
            (&[new], record(Some("2026.8.2"), Some("2026.8.2"), official), Some("2026.9.6")),
            // Refused, undone or rolled back before.
            (&[new], record(Some("2026.8.2"), Some("2026.9.6"), official), None),
            // Updated by hand beyond the attribute.
            (&[old], record(Some("2026.9.6"), Some("2026.8.2"), "ghcr.io/openclaw/openclaw:2026.9.6"), None),
            (&[own, old], record(Some("2026.8.2"), Some("2026.8.2"), official), Some("registry.example/claw:9")),
            (&[own], record(Some("2026.8.2"), None, own.1), None),
            // The version is the same, but the image was another's.
            (&[old], record(Some("2026.8.2"), Some(own.1), own.1), Some("2026.8.2")),
            (&[browser], record(Some("2026.8.2"), None, official), Some("browser")),
            (&[browser], record(Some("2026.8.2"), Some("browser"), official), None),
            (&[browser, old], record(Some("2026.8.2"), Some("browser"), official), Some("2026.8.2-browser")),
            // Without it: the version is the same, the image is not.
            (&[old], record(Some("2026.8.2"), Some("2026.8.2-browser"), with_browser), Some("2026.8.2")),
            (&[], record(Some("2026.8.2"), Some("browser"), with_browser), None),
            // Built from a commit.
            (&[source, commit], record(Some("2026.8.2"), Some(&first), built), None),
            (&[source, commit], record(Some("2026.8.2"), Some(&"2".repeat(40)), built), Some(&*first)),
            (&[source, commit, old], record(Some("2026.8.2"), Some("2026.8.2"), official), Some(&*as_old)),
            (&[old], record(Some("2026.8.2"), Some(&first), built), None),
        ];
        for (attributes, record, expected) in cases {
            let config = config(attributes)?;
            let choice = match decide_target(None, &config, &record) {
                Some(Target::Update { choice, .. }) => choice,
                _ => None,
            };
            assert_eq!(choice.as_deref(), expected, "{attributes:?} {record:?}");
        }
        Ok(())
    }

    #[test]
    fn a_request_wins_over_the_attributes() -> anyhow::Result<()> {
        let config = config(&[("openclaw-image", "registry.example/claw:9")])?;
        let record = record(Some("2026.8.2"), None, "x/y:1");
        let version = Some(VersionChoice::Exact("2026.9.6".into()));
        let to = Request::Update { to: version.clone() };
        let expected = Some(Target::Update { to: version, choice: None });
        assert_eq!(decide_target(Some(&to), &config, &record), expected);
        let back = Request::Rollback { set_newer_state_aside: true };
        let expected = Some(Target::Rollback { set_newer_state_aside: true });
        assert_eq!(decide_target(Some(&back), &config, &record), expected);
        Ok(())
    }

    #[test]
    fn a_refused_choice_is_a_warning_until_it_changes() -> anyhow::Result<()> {
        let refused = Record {
            refused: Some("the update to it was undone".to_owned()),
            ..record(Some("2026.8.2"), Some("2026.9.6"), "ghcr.io/openclaw/openclaw:2026.8.2")
        };
        let warning = held(&config(&[("openclaw-version", "2026.9.6")])?, &refused);
        assert!(
            warning.is_some_and(|warning| warning.starts_with("openclaw-version=2026.9.6 is not followed, since the"))
        );
        assert_eq!(held(&config(&[("openclaw-version", "2026.9.7")])?, &refused), None);
        assert_eq!(held(&config(&[("openclaw-version", "2026.8.2")])?, &refused), None);
        assert_eq!(held(&config(&[])?, &refused), None);
        let (source, commit) = (("openclaw-image-source", "source"), "1".repeat(40));
        let refused = Record { choice: Some(commit.clone()), ..refused };
        let warning = held(&config(&[source, ("openclaw-source-ref", &commit)])?, &refused);
        assert!(warning.is_some_and(|warning| warning.starts_with("openclaw-source-ref=1111")));
        Ok(())
    }
}
