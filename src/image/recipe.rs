//! What an image that is built on this machine is called, and all that determines it.

use sha2::{Digest as _, Sha256};

use crate::reference::ImageReference;
use crate::text::hex;
use crate::version::GatewayVersion;

/// The repository of images that were built here. No registry answers for `localhost`: a name below
/// Docker Hub could be published by a stranger, and some engines look there first.
pub(super) const BUILT: &str = "localhost/openclaw-init";

/// How many digits of the fingerprint are in the tag.
const TAG_DIGITS: usize = 12;

/// One image that can be built here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recipe {
    /// The gateway's version in it.
    pub(super) version: GatewayVersion,
    /// Build arguments.
    pub(super) args: Vec<(&'static str, String)>,
    /// Base images on Docker Hub, as the build arguments that name them. Where they come from does not
    /// determine the image.
    pub(super) bases: &'static [(&'static str, &'static str)],
    /// Digest of everything that determines the image.
    pub(super) fingerprint: String,
    /// What to do when the build fails for a reason that has no remedy of its own.
    pub(super) remedy: String,
}

impl Recipe {
    /// The image of `version` that is determined by `parts`, in this order.
    pub(super) fn new(
        version: &GatewayVersion,
        args: Vec<(&'static str, String)>,
        parts: &[&str],
        remedy: impl Into<String>,
    ) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let fingerprint = hex(hash.finalize());
        Self { version: version.clone(), args, bases: &[], fingerprint, remedy: remedy.into() }
    }

    /// The image's name on this machine: another recipe has another one.
    pub(super) fn reference(&self) -> ImageReference {
        ImageReference::tagged(BUILT, format!("{}-{}", self.version, &self.fingerprint[..TAG_DIGITS]))
    }
}

/// True for the name of an image of `version` that was built here, by any recipe.
pub(super) fn is_built(reference: &ImageReference, version: &GatewayVersion) -> bool {
    let Some((_, digits)) = reference.tag().and_then(|tag| tag.rsplit_once('-')) else { return false };
    *reference == ImageReference::tagged(BUILT, format!("{version}-{digits}"))
        && digits.len() == TAG_DIGITS
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_one_recipe() -> anyhow::Result<()> {
        let recipe = |version: &str, parts: &[&str]| Recipe::new(&version.into(), Vec::new(), parts, "");
        let first = recipe("1", &["a", "b"]);
        assert_eq!(first, recipe("1", &["a", "b"]));
        for other in [recipe("1", &["ab", ""]), recipe("1", &["a"]), recipe("2", &["a", "b"])] {
            assert_ne!(first.reference(), other.reference());
        }
        assert_eq!(first.fingerprint.len(), 64);
        assert!(is_built(&first.reference(), &"1".into()));
        for (reference, version) in [
            (first.reference().to_string().as_str(), "2"),
            ("localhost/openclaw-init:1", "1"),
            ("localhost/openclaw-init:1-slim", "1"),
            ("openclaw/openclaw:1-0123456789ab", "1"),
        ] {
            assert!(!is_built(&reference.parse()?, &version.into()), "{reference}");
        }
        Ok(())
    }
}
