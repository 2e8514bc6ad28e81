//! The names of the attributes.

/// Every attribute without a free name, in the order of the documentation. The nearest of them is
/// offered when a key is unknown.
const KEYS: &[&str] = &[
    "openclaw-version",
    "openclaw-image",
    "openclaw-image-source",
    "openclaw-source-url",
    "openclaw-source-ref",
    "openclaw-binaries",
    "openclaw-apt-packages",
    "openclaw-data-disk",
    "openclaw-port",
    "openclaw-bind",
    "openclaw-gateway-token",
    "openclaw-docker",
    "openclaw-registry-mirror",
    "openclaw-npm-registry",
    "openclaw-docker-apt-url",
    "openclaw-swap",
    "openclaw-metadata-access",
    "openclaw-run-id",
];

/// Documented attributes that this version cannot honour. Ignoring one would start a gateway that is
/// not the one its operator described.
const NOT_IMPLEMENTED: &[&str] = &["openclaw-config"];

/// Prefix of plain environment variables of the gateway.
pub(super) const ENV_PREFIX: &str = "openclaw-env-";

/// Prefix of environment variables from Secret Manager.
const SECRET_PREFIX: &str = "openclaw-secret-";

/// Attributes of the loader that fetches this program: not ours to judge.
const LOADER_PREFIX: &str = "openclaw-init-";

/// A key that differs in at most this many letters is taken for a slip.
const SLIP: usize = 4;

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
    let near = |known: &&&str| strsim::damerau_levenshtein(key, known);
    let nearest = KEYS.iter().min_by_key(near).filter(|known| near(known) <= SLIP);
    let hint = nearest.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
    Some(format!("the attribute {key} is not known to this version of openclaw-init and has no effect{hint}"))
}
