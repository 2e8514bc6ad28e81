//! What an image that is built on this machine is called, and all that determines it.

use sha2::{Digest as _, Sha256};

/// The repository of images that were built here. No registry answers for `localhost`: a name below
/// Docker Hub could be published by a stranger, and some engines look there first.
pub(super) const BUILT: &str = "localhost/openclaw-init";

/// How many digits of the fingerprint are in the tag.
const SHOWN_DIGITS: usize = 12;

/// One image that can be built here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recipe {
    /// The gateway's version in it.
    pub(super) version: String,
    /// Build arguments.
    pub(super) args: Vec<(&'static str, String)>,
    /// Base images on Docker Hub, as the build arguments that name them. Where they come from does not
    /// determine the image.
    pub(super) bases: &'static [(&'static str, &'static str)],
    /// Digest of everything that determines the image.
    pub(super) fingerprint: String,
    /// What to do when the build fails for a reason that has no remedy of its own.
    pub(super) remedy: &'static str,
}

impl Recipe {
    /// The image of `version` that is determined by `parts`, in this order.
    pub(super) fn new(version: &str, args: Vec<(&'static str, String)>, parts: &[&str], remedy: &'static str) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let fingerprint = hex(&hash.finalize());
        Self { version: version.to_owned(), args, bases: &[], fingerprint, remedy }
    }

    /// The image's name on this machine: another recipe has another one.
    pub(super) fn reference(&self) -> String {
        format!("{BUILT}:{}-{}", self.version, &self.fingerprint[..SHOWN_DIGITS])
    }
}

/// True for the name of an image of `version` that was built here, by whatever recipe.
pub(super) fn is_built(reference: &str, version: &str) -> bool {
    let recipe = reference.strip_prefix(BUILT).and_then(|tag| tag.strip_prefix(':')?.strip_prefix(version));
    recipe
        .and_then(|digits| digits.strip_prefix('-'))
        .is_some_and(|digits| digits.len() == SHOWN_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The bytes as lower-case hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_one_recipe() {
        let recipe = |version, parts: &[&str]| Recipe::new(version, Vec::new(), parts, "");
        let first = recipe("1", &["a", "b"]);
        assert_eq!(first, recipe("1", &["a", "b"]));
        for other in [recipe("1", &["ab", ""]), recipe("1", &["a"]), recipe("2", &["a", "b"])] {
            assert_ne!(first.reference(), other.reference());
        }
        assert_eq!(first.fingerprint.len(), 64);
        assert!(is_built(&first.reference(), "1"));
        for (reference, version) in [
            (first.reference().as_str(), "2"),
            ("localhost/openclaw-init:1", "1"),
            ("localhost/openclaw-init:1-slim", "1"),
            ("openclaw/openclaw:1-0123456789ab", "1"),
        ] {
            assert!(!is_built(reference, version), "{reference}");
        }
    }
}
