//! The names of the attributes.

use std::cmp::Reverse;

macro_rules! keys {
    ($($name:ident = $key:literal;)*) => {
        $(pub(crate) const $name: &str = $key;)*

        /// Every attribute without a free name. The nearest of them is offered when a key is unknown.
        pub(super) const KEYS: &[&str] = &[$($name),*];
    };
}

// In the order of the documentation.
keys! {
    VERSION = "openclaw-version";
    IMAGE = "openclaw-image";
    IMAGE_SOURCE = "openclaw-image-source";
    SOURCE_REF = "openclaw-source-ref";
    SOURCE_URL = "openclaw-source-url";
    BINARIES = "openclaw-binaries";
    APT_PACKAGES = "openclaw-apt-packages";
    REGISTRY_MIRROR = "openclaw-registry-mirror";
    NPM_REGISTRY = "openclaw-npm-registry";
    DATA_DISK = "openclaw-data-disk";
    DATA_DISK_PROOF = "openclaw-data-disk-proof";
    PORT = "openclaw-port";
    BIND = "openclaw-bind";
    GATEWAY_TOKEN = "openclaw-gateway-token";
    READY_TIMEOUT = "openclaw-ready-timeout";
    DOCKER = "openclaw-docker";
    DOCKER_APT_URL = "openclaw-docker-apt-url";
    SWAP = "openclaw-swap";
    METADATA_ACCESS = "openclaw-metadata-access";
    CONTAINER_ROOT = "openclaw-container-root";
    WATCH = "openclaw-watch";
    APPLY = "openclaw-apply";
    RUN_ID = "openclaw-run-id";
}

/// Documented attributes that this version cannot honour. Ignoring one would start a gateway that is
/// not the one its operator described.
const NOT_IMPLEMENTED: &[&str] = &["openclaw-config"];

/// Prefix of plain environment variables of the gateway.
pub(super) const ENV_PREFIX: &str = "openclaw-env-";

/// Prefix of environment variables from Secret Manager.
const SECRET_PREFIX: &str = "openclaw-secret-";

/// Attributes of the loader that fetches this program: not ours to judge.
const LOADER_PREFIX: &str = "openclaw-init-";

/// A word that differs in at most this many letters is taken for a slip.
const SLIP_CHARS: usize = 2;

/// What a run at work does not change under a gateway: disk, engine, swap and the packages of the image.
const AT_BOOT_PREFIXES: &[&str] = &[DATA_DISK, DOCKER, SWAP, "openclaw-apt-"];

/// Whether a run reads the attribute.
pub(crate) fn is_ours(key: &str) -> bool {
    key.starts_with("openclaw-") && !key.starts_with(LOADER_PREFIX)
}

/// Whether another value waits for the next boot.
pub(crate) fn is_for_boot(key: &str) -> bool {
    AT_BOOT_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// Whether the attribute is documented and this version has no code for it.
pub(super) fn is_not_implemented(key: &str) -> bool {
    NOT_IMPLEMENTED.contains(&key) || key.starts_with(SECRET_PREFIX)
}

/// A warning about a key that looks like ours and is not.
pub(super) fn unknown(key: &str) -> Option<String> {
    let ours = key.starts_with("openclaw-") || key.starts_with("openclaw_");
    let known = KEYS.contains(&key) || [ENV_PREFIX, LOADER_PREFIX].iter().any(|prefix| key.starts_with(prefix));
    if !ours || known {
        return None;
    }
    let hint = nearest(key).map(|known| format!("; did you mean {known}?")).unwrap_or_default();
    Some(format!("the attribute {key} is not known to this version of openclaw-init and has no effect{hint}"))
}

/// The attribute that shares the most words with `key`, and of several the one with the fewest other letters.
fn nearest(key: &str) -> Option<&'static str> {
    let free = ["openclaw-env-NAME", "openclaw-init-url", "openclaw-init-sha256"];
    let words = |key: &'_ str| key.split(['-', '_']).skip(1).map(str::to_owned).collect::<Vec<_>>();
    let is_slip = |one: &str, other: &str| {
        let slips = strsim::damerau_levenshtein(one, other);
        slips <= SLIP_CHARS && slips < one.len().min(other.len()).div_ceil(2)
    };
    let shared = |known: &str| {
        let (ours, theirs) = (words(key), words(known));
        let same = ours.iter().filter(|our| theirs.iter().any(|their| is_slip(our, their))).count();
        // Hyphens are left out or put in, too.
        same.max(usize::from(is_slip(&ours.concat(), &theirs.concat())))
    };
    let score = |known: &&str| (shared(known), Reverse(strsim::damerau_levenshtein(key, known)));
    KEYS.iter().copied().chain(free).max_by_key(score).filter(|known| shared(known) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_settings_has_every_attribute_in_this_order() {
        let page = include_str!("../../docs/settings.md");
        let places: Vec<_> = KEYS.iter().map(|key| page.find(&format!("`{key}`"))).collect();
        assert!(places.is_sorted() && places.iter().all(Option::is_some), "{places:?}");
    }
}
