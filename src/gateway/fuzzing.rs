//! For the fuzz targets in `fuzz/`; no other build has it.

use super::dotenv::{EnvFile, KEYRING_VARIABLE, TOKEN_VARIABLE};
use super::probe::{self, Health};
use super::{merge, openclaw_json};
use crate::config::GatewayConfig;
use crate::document;
use crate::secret::Secret;

/// `.env`: whatever is in it, what is set is read again. The first line is set, too.
pub fn dotenv(text: &str) {
    let mut env = EnvFile::parse(text);
    drop(env.secrets());
    let value = Secret::new(text.lines().next().unwrap_or_default());
    for key in [TOKEN_VARIABLE, KEYRING_VARIABLE] {
        if env.set(key, &value).is_ok() && !value.expose().is_empty() {
            assert!(EnvFile::parse(&env.text()).get(key).as_ref() == Some(&value), "{key} is another");
        }
        env.remove(key);
        assert!(env.get(key).is_none(), "{key} is still there");
    }
    env.keep_ours(|_| false);
    assert_eq!(EnvFile::parse(&env.text()).text(), env.text());
}

/// `openclaw.json`: with what is missing, nothing is missing.
pub fn openclaw_json(text: &str) {
    let Ok(document) = document::parse(text) else { return };
    let config = GatewayConfig { port: 8080, ..GatewayConfig::default() };
    let mut edited = document.clone();
    for (path, value) in openclaw_json::missing(Some(&document), &config) {
        merge::set(&mut edited, &path, value);
    }
    let missing = openclaw_json::missing(Some(&edited), &config);
    assert!(missing.is_empty(), "{missing:?}");
    // A patch cannot ask for a null.
    if !document.to_string().contains("null") && !edited.to_string().contains("null") {
        let mut target = document.clone();
        if let Some(patch) = merge::diff(&document, &edited) {
            merge::merge(&mut target, &patch);
        }
        assert_eq!(target, edited);
    }
    let _ = (openclaw_json::token(Some(&document)), openclaw_json::takes_token(Some(&document)));
    let _ = (openclaw_json::has_tls(Some(&document)), openclaw_json::has_include(&document, &["gateway", "auth"]));
}

/// The bodies of `/startupz` and `/readyz`: what they say fits into a report.
pub fn probe(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let words: Vec<String> =
        match probe::judge(&probe::answer(&bytes[..end]), &probe::answer(bytes.get(end + 1..).unwrap_or_default())) {
            Health::Silent => Vec::new(),
            Health::Starting(reason) => vec![reason],
            Health::Unhealthy { failing, version, .. } => failing.into_iter().chain(version).collect(),
            Health::Ready { version, suppressed } => version.into_iter().chain(suppressed).collect(),
        };
    assert!(words.len() < 20);
    for word in words {
        assert!(word.len() < 20_000 && !word.contains(char::is_control), "{word:?}");
    }
}
