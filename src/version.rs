//! Versions of the gateway: `2026.9.6`, or with a suffix `2026.9.6-slim`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::printable;

/// How an operator writes [`VersionChoice::Latest`], and its tag in upstream's repositories.
const LATEST: &str = "latest";

/// The longest version, of the operator's and of anybody's.
const LENGTH_LIMIT: usize = 64;

/// A version as an image, a record or a backup names it. It may be no real version (`main`): then it has no order. What
/// a hostile one has in it is printable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct GatewayVersion(String);

impl GatewayVersion {
    /// A version that an operator may ask for: three numbers and perhaps a suffix, at most 64 characters.
    pub fn exact(text: &str) -> Option<Self> {
        let (numbers, suffix) = text.split_once('-').unwrap_or((text, "0"));
        let number = |part: &str| (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let suffix_is_good = !suffix.is_empty()
            && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
            && text.len() <= LENGTH_LIMIT;
        let good = numbers.split('.').count() == 3 && numbers.split('.').all(number) && suffix_is_good;
        good.then(|| Self(text.to_owned()))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this one is certainly older than `that`: by their numbers, since a suffix (`-slim`, `-r20261001`)
    /// names a variant or a later build of the same version. False when either has no order.
    pub fn is_older_than(&self, that: &Self) -> bool {
        match (self.numbers(), that.numbers()) {
            (Some(this), Some(that)) => this < that,
            _ => false,
        }
    }

    /// The numbers without the suffix; `None` when it is no version.
    pub fn numbers(&self) -> Option<Vec<u32>> {
        let numbers = self.0.split(['-', '+']).next()?;
        numbers.split('.').map(|number| number.parse().ok()).collect()
    }
}

/// What upstream makes of a version beside its image (openclaw's docs, install/docker.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// With Chromium.
    Browser,
    /// On a smaller base.
    Slim,
}

impl Variant {
    /// What its tags end with, after a hyphen.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Browser => "browser",
            Self::Slim => "slim",
        }
    }

    /// The moving tag of its newest version.
    pub const fn latest(self) -> &'static str {
        match self {
            Self::Browser => "latest-browser",
            Self::Slim => "slim",
        }
    }
}

impl GatewayVersion {
    /// The variant that its suffix names, and what stands before that.
    fn parts(&self) -> (&str, Option<Variant>) {
        let variant = |variant: Variant| Some((self.0.strip_suffix(variant.name())?.strip_suffix('-')?, Some(variant)));
        [Variant::Browser, Variant::Slim].into_iter().find_map(variant).unwrap_or((&self.0, None))
    }

    /// The variant that its suffix names.
    pub fn variant(&self) -> Option<Variant> {
        self.parts().1
    }

    /// The same version in this variant instead of its own.
    #[must_use]
    pub fn in_variant(&self, variant: Variant) -> Self {
        Self(format!("{}-{}", self.parts().0, variant.name()))
    }
}

impl From<&str> for GatewayVersion {
    fn from(text: &str) -> Self {
        Self(printable(text, LENGTH_LIMIT))
    }
}

impl From<String> for GatewayVersion {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Display for GatewayVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The version that an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum VersionChoice {
    /// The newest released version at the time when it is first asked for.
    Latest,
    /// This one.
    Exact(GatewayVersion),
}

impl FromStr for VersionChoice {
    /// What would have been allowed.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == LATEST {
            return Ok(Self::Latest);
        }
        let exact = GatewayVersion::exact(text).map(Self::Exact);
        exact.ok_or("must be an exact version such as 2026.9.6 or 2026.9.6-slim, or latest")
    }
}

impl TryFrom<String> for VersionChoice {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VersionChoice> for String {
    fn from(choice: VersionChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for VersionChoice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => out.write_str(LATEST),
            Self::Exact(version) => version.fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let cases = [
            ("2026.8.2", "2026.9.6", true),
            ("2026.9.6", "2026.8.2", false),
            ("2026.9.6", "2026.9.10", true),
            ("2026.9.6", "2026.9.6", false),
            ("2026.9.6-slim", "2026.9.6", false),
            ("2026.9.6", "2026.9.6-r20261001", false),
            ("2026.9.5-r20261001", "2026.9.6-slim", true),
            ("main", "2026.9.6", false),
            ("2026.9.6", "main", false),
        ];
        for (this, that, older) in cases {
            assert_eq!(GatewayVersion::from(this).is_older_than(&that.into()), older, "{this} {that}");
        }
    }

    #[test]
    fn a_version_has_one_variant() {
        for (version, expected) in [
            ("2026.9.6", "2026.9.6-browser"),
            ("2026.9.6-slim", "2026.9.6-browser"),
            ("2026.9.6-browser", "2026.9.6-browser"),
            ("2026.9.6-r20261001-slim", "2026.9.6-r20261001-browser"),
            ("2026.9.6-slimmer", "2026.9.6-slimmer-browser"),
            ("2026.9.6slim", "2026.9.6slim-browser"),
        ] {
            assert_eq!(GatewayVersion::from(version).in_variant(Variant::Browser).as_str(), expected, "{version}");
        }
    }

    #[test]
    fn a_hostile_version_is_short_and_printable() -> Result<(), serde_json::Error> {
        for text in ["9\u{1b}[2J\nresult=ready", &"9".repeat(3 << 20)] {
            let read: GatewayVersion = serde_json::from_value(text.into())?;
            assert_eq!(read, GatewayVersion::from(text));
            assert!(read.as_str().len() <= 80 && !read.as_str().contains(char::is_control), "{read}");
        }
        Ok(())
    }

    #[test]
    fn an_exact_version_has_three_numbers() {
        for (text, good) in [
            ("2026.9.6", true),
            ("2026.9.6-slim", true),
            ("2026.9", false),
            ("2026.9.6-", false),
            ("main", false),
            ("20261.9.6", false),
        ] {
            assert_eq!(GatewayVersion::exact(text).is_some(), good, "{text}");
        }
    }
}
