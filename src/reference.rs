//! Names of container images, by Docker's grammar (github.com/distribution/reference): `repository:tag@digest`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, ensure};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A repository, perhaps with a tag, a digest or both. It is written as it was read: nothing is filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What a registry has of an image: `sha256:` and 64 lower-case hex digits. A tag can be moved, a digest cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(String);

/// An image by the name that it was chosen by, with the digest that its registry had under that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedImage {
    /// The name.
    pub reference: ImageReference,
    /// `None` for what was built or loaded here, and for a name that has a digest already.
    pub digest: Option<Digest>,
}

impl ImageReference {
    /// The image with this tag in a repository that is known to be one. A character that no tag may have becomes
    /// `-`, as in `2026.9.6+build`.
    pub fn tagged(repository: &str, tag: impl fmt::Display) -> Self {
        let tag = tag.to_string().replace(|character| !is_tag_char(character), "-");
        Self { repository: repository.to_owned(), tag: Some(tag), digest: None }
    }

    /// Registry and path.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if it has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The registry that it names; without one it is Docker Hub.
    pub fn registry(&self) -> Option<&str> {
        registry_of(&self.repository).map(|(registry, _)| registry)
    }

    /// The same image in another repository.
    #[must_use]
    pub fn in_repository(&self, repository: String) -> Self {
        Self { repository, ..self.clone() }
    }

    /// What its repository has under `digest`, even if the tag has moved.
    #[must_use]
    pub fn at(&self, digest: &Digest) -> Self {
        Self { repository: self.repository.clone(), tag: None, digest: Some(digest.clone()) }
    }
}

impl FromStr for ImageReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (named, digest) = text.split_once('@').map_or((text, None), |(named, digest)| (named, Some(digest)));
        let path = named.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match named[path..].rfind(':') {
            Some(colon) => (&named[..path + colon], Some(&named[path + colon + 1..])),
            None => (named, None),
        };
        ensure!(is_repository(repository) && tag.is_none_or(is_tag), "{text:?} is no reference of an image");
        let digest = digest.map(str::parse).transpose()?;
        Ok(Self { repository: repository.to_owned(), tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64 && digits.bytes().all(hex));
        digits.with_context(|| format!("{text:?} is no digest of an image"))?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Display for PinnedImage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference.fmt(out)?;
        self.digest.iter().try_for_each(|digest| write!(out, "@{digest}"))
    }
}

impl Serialize for ImageReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Registry and path of a repository that names its registry.
fn registry_of(repository: &str) -> Option<(&str, &str)> {
    repository.split_once('/').filter(|(first, _)| first.contains(['.', ':']) || *first == "localhost")
}

/// Docker allows 255, and counts the registry and `library/` that it fills in.
const NAME_BYTES: usize = 255 - "docker.io/library/".len();

fn is_tag_char(character: char) -> bool {
    character.is_ascii_alphanumeric() || "_.-".contains(character)
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len()) && !tag.starts_with(['.', '-']) && tag.chars().all(is_tag_char)
}

fn is_repository(name: &str) -> bool {
    let (registry, path) = registry_of(name).map_or((None, name), |(registry, path)| (Some(registry), path));
    name.len() <= NAME_BYTES && registry.is_none_or(is_registry) && path.split('/').all(is_component)
}

/// Whether it is a host, perhaps with a port.
pub(crate) fn is_registry(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').unwrap_or((registry, "443"));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    host.split('.').all(label) && is_port
}

/// Whether it is what stands between two slashes of a path.
pub(crate) fn is_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (first, last) = (component.bytes().next(), component.bytes().last());
    first.is_some_and(word)
        && last.is_some_and(word)
        && component.bytes().all(|byte| word(byte) || b"._-".contains(&byte))
        && !["..", "._", "_.", ".-", "-.", "_-", "-_", "___"].iter().any(|run| component.contains(run))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reference_is_read_by_dockers_grammar_and_written_as_it_was() -> Result<()> {
        let digest = format!("sha256:{}", "a".repeat(64));
        let (by_digest, both) = (format!("repo@{digest}"), format!("r.io:5000/a/b:1@{digest}"));
        let cases = [
            ("a", None, "a", None, false),
            ("a:1", None, "a", Some("1"), false),
            ("r.io:5000/a", Some("r.io:5000"), "r.io:5000/a", None, false),
            ("localhost/a:x-1", Some("localhost"), "localhost/a", Some("x-1"), false),
            ("b/c:1", None, "b/c", Some("1"), false),
            (&by_digest, None, "repo", None, true),
            (&both, Some("r.io:5000"), "r.io:5000/a/b", Some("1"), true),
        ];
        for (text, registry, repository, tag, has_digest) in cases {
            let reference: ImageReference = text.parse()?;
            assert_eq!((reference.registry(), reference.repository(), reference.tag()), (registry, repository, tag));
            assert_eq!(reference.digest().map(ToString::to_string), has_digest.then(|| digest.clone()), "{text}");
            assert_eq!(reference.to_string(), text);
            assert_eq!(serde_json::to_value(&reference)?, text);
        }
        for wrong in ["", "a:", "A:1", "https://r.io/a:1", "a:1@", "a@sha256:abc", "a@md5:abc", "r.io:99999/a:1"] {
            assert!(wrong.parse::<ImageReference>().is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn a_reference_changes_one_part_at_a_time() -> Result<()> {
        let (reference, digest) = ("r.io/a:1".parse::<ImageReference>()?, format!("sha256:{}", "0".repeat(64)));
        assert_eq!(reference.at(&digest.parse()?).to_string(), format!("r.io/a@{digest}"));
        assert_eq!(reference.in_repository("m.io/h/a".to_owned()).to_string(), "m.io/h/a:1");
        assert_eq!(ImageReference::tagged("r.io/a", "1.2+b").to_string(), "r.io/a:1.2-b");
        Ok(())
    }

    /// Registry, repository, tag and digest, where a part that is left out is filled in.
    type Parts = (String, String, Option<String>, Option<String>);

    /// By `oci-spec`, another reader of the same grammar.
    fn by_another(text: &str) -> Option<Parts> {
        let found: oci_spec::distribution::Reference = text.parse().ok()?;
        let part = |part: Option<&str>| part.map(str::to_owned);
        Some((found.registry().into(), found.repository().into(), part(found.tag()), part(found.digest())))
    }

    fn by_us(text: &str) -> Option<Parts> {
        const HUB: &str = "docker.io";
        let found: ImageReference = text.parse().ok()?;
        let (registry, path) = registry_of(&found.repository).unwrap_or((HUB, &found.repository));
        let registry = if registry == "index.docker.io" { HUB } else { registry };
        let library = if registry == HUB && !path.contains('/') { "library/" } else { "" };
        let tag = found.tag.clone().or_else(|| found.digest.is_none().then(|| "latest".to_owned()));
        Some((registry.into(), format!("{library}{path}"), tag, found.digest.as_ref().map(ToString::to_string)))
    }

    /// What we refuse and `oci-spec` accepts: as Docker does, names with capitals, tags that are not ASCII, and
    /// registries with `_`; and besides, names that may be too long for it, digests other than SHA-256, in small
    /// letters, and ports that there are not.
    fn is_refused_by_us(text: &str) -> bool {
        let (named, digest) = text.split_once('@').unwrap_or((text, ""));
        let (registry, path) = registry_of(named).unwrap_or(("", named));
        let name = path.rsplit_once(':').map_or(path, |(name, _)| name);
        let port = registry.split_once(':').map_or("0", |(_, port)| port);
        let is_other =
            |digest: &str| !digest.starts_with("sha256:") || digest.contains(|c: char| c.is_ascii_uppercase());
        !text.is_ascii()
            || named.len() - (path.len() - name.len()) > NAME_BYTES
            || name.contains(|c: char| c.is_ascii_uppercase())
            || registry.contains('_')
            || port.parse::<u16>().is_err()
            || !digest.is_empty() && is_other(digest)
    }

    fn agrees(text: &str) {
        match (by_us(text), by_another(text)) {
            (None, Some(_)) => assert!(is_refused_by_us(text), "{text:?} is a reference"),
            (ours, theirs) => assert_eq!(ours, theirs, "{text:?}"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn references_are_read_as_another_reader_does(
            registry in "|([a-zA-Z0-9.-]{1,9}|docker\\.io|index\\.docker\\.io|localhost)(:[0-9+]{0,6})?/",
            path in "[a-z0-9]{1,3}([._/-]{1,3}[a-zA-Z0-9]{1,3}){0,4}|library/[a-z]{1,3}|[a-z]{240,260}",
            tag in "|:[\\w.-]{0,9}|:[a-zA-Z0-9_.-]{120,130}",
            digest in "|@sha256:[0-9a-f]{64}|@sha(256|384|512):[0-9a-fA-F]{62,66}|@[a-z0-9+:]{0,40}",
            changed in proptest::option::of((0..80_usize, "[a-zA-Z0-9:@/._+ -]")),
        ) {
            let mut text = format!("{registry}{path}{tag}{digest}");
            agrees(&text);
            if let Some((at, other)) = changed && text.is_char_boundary(at) {
                text.insert_str(at, &other);
                agrees(&text);
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_no_reference_or_one_that_is_written_as_it_was(text in "[a-z0-9./:@_-]{0,80}|\\PC{0,80}") {
            if let Ok(reference) = text.parse::<ImageReference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }

        #[test]
        fn the_parts_of_a_reference_are_found_again(
            repository in "([a-z]{1,9}\\.io(:[0-9]{1,4})?/)?[a-z0-9]{1,9}([._-][a-z0-9]{1,9})?(/[a-z0-9]{1,9}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"),
            digest in proptest::option::of("sha256:[0-9a-f]{64}"),
        ) {
            let (after, at) = (tag.as_ref().map(|tag| format!(":{tag}")), digest.as_ref().map(|digest| format!("@{digest}")));
            let text = format!("{repository}{}{}", after.unwrap_or_default(), at.unwrap_or_default());
            let Ok(reference) = text.parse::<ImageReference>() else { panic!("{text} was refused") };
            prop_assert_eq!(reference.repository(), repository);
            prop_assert_eq!(reference.tag(), tag.as_deref());
            prop_assert_eq!(reference.digest().map(ToString::to_string), digest);
        }
    }
}
