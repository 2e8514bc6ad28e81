//! `openclaw.json`: JSON5, the user's own. This program reads it; only the gateway's own tools write it.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::dotenv::TOKEN_VARIABLE;
use crate::config::{self, GatewayConfig};
use crate::document;
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Access, Host, blocking, set_access, untrusted};
use crate::secret::Secret;
use crate::state::DataDir;

/// The port inside the container; the published one may differ.
pub(super) const INNER_PORT: u16 = 18789;

/// The file's name in the state directory.
const FILE: &str = "openclaw.json";

/// The gateway's user can read and replace the file, nobody else.
const ACCESS: Access = Access::gateway(0o600);

/// Where `openclaw.json` has the gateway take its token from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConfiguredToken {
    /// It says nothing, or refers to our variable.
    Unset,
    /// The token itself. It wins over `.env` (measured, gateway 2026.9.6).
    Literal(Secret),
    /// A reference that this program does not follow; the source's name.
    Elsewhere(String),
}

/// The parsed file, `None` when there is none.
///
/// [`Code::GatewayRefused`]: the file cannot be parsed, with which the gateway would not start (exit code 78), or it is
/// a symbolic link. Anything but a regular file is an error. It is left as it is.
pub(super) async fn read(host: &Host, data: &DataDir) -> Result<Option<Value>> {
    let path = data.state.join(FILE);
    let Some(text) = untrusted::read(host, &data.state, FILE).await? else { return Ok(None) };
    let path = path.display();
    document::parse(&text)
        .with_context(|| format!("parsing {path}"))
        .classify(
            Code::GatewayRefused,
            format!("The file was left as it is: correct {path} (or move it aside), then run `{RUN_AGAIN}`."),
        )
        .map(Some)
}

/// Gives the file back to the gateway's user if somebody edited it as root; true when that was needed.
pub(super) async fn ensure_access(host: &Host, data: &DataDir) -> Result<bool> {
    let directory = host.path(&data.state);
    let name = directory.join(FILE).display().to_string();
    let changed = blocking(move || {
        let Some(file) = untrusted::open(&directory, FILE)? else { return Ok(false) };
        // Another name of it may lie where the gateway's user has no business: it stays whose it is.
        if file.metadata()?.nlink() > 1 { Ok(false) } else { set_access(&file, ACCESS) }
    });
    let changed = changed.await.with_context(|| format!("giving {name} to the gateway's user"))?;
    if changed {
        host.changed(format!("gave {name} to the gateway's user"));
    }
    Ok(changed)
}

/// Makes the file of a state that has none. Any existing file is left to the gateway's own tools.
pub(super) async fn create(host: &Host, data: &DataDir, document: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(document).context("writing the first openclaw.json")?;
    text.push('\n');
    replace(host, data, text).await
}

/// Puts this text in the place of the file's, whole or not at all.
pub(super) async fn replace(host: &Host, data: &DataDir, text: String) -> Result<()> {
    host.ensure_file(data.state.join(FILE), text, ACCESS).await.map(drop)
}

/// The file's text, empty when there is none.
pub(super) async fn text(host: &Host, data: &DataDir) -> Result<String> {
    Ok(untrusted::read(host, &data.state, FILE).await?.unwrap_or_default())
}

/// The names in it that are written `${NAME}`; none when it cannot be read.
pub(super) async fn references(host: &Host, data: &DataDir) -> HashSet<String> {
    let text = text(host, data).await.unwrap_or_default();
    text.split("${").skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.to_owned())).collect()
}

/// Whether parts of it are in other files, at the top or on the way to `path`: only the gateway can merge them.
pub(super) fn has_include(document: &Value, path: &[impl AsRef<str>]) -> bool {
    let mut place = document;
    for key in path.iter().map(AsRef::as_ref) {
        if place.get("$include").is_some() {
            return true;
        }
        place = place.get(key).unwrap_or(&Value::Null);
    }
    false
}

/// What must be added for the gateway to start and its Control UI to be usable, as paths and values: empty when nothing
/// is missing. A value that the user chose is never touched.
pub(super) fn missing(document: Option<&Value>, config: &GatewayConfig) -> Vec<(Vec<String>, Value)> {
    let empty = json!({});
    let document = document.unwrap_or(&empty);
    let includes = |value: &Value| value.get("$include").is_some();
    let gateway = document.get("gateway").unwrap_or(&empty);
    if includes(document) || includes(gateway) {
        // The rest is in other files, which only the gateway knows how to merge.
        return Vec::new();
    }
    let mut edits = Vec::new();
    // Only the mode is needed: the command line says the rest, and an edit costs the user's comments.
    if gateway.get("mode").is_none() {
        edits.push((path(&["gateway", "mode"]), json!("local")));
        if gateway.get("bind").is_none() {
            edits.push((path(&["gateway", "bind"]), json!("lan")));
        }
    }
    // The gateway itself adds the origins of its inner port, and only those (measured, 2026.9.6).
    let lacks_origins = match gateway.pointer("/controlUi/allowedOrigins") {
        None => config.port != INNER_PORT,
        Some(current) => port_of_own_origins(current).is_some_and(|port| port != config.port),
    };
    if lacks_origins {
        edits.push((path(&["gateway", "controlUi", "allowedOrigins"]), origins(config.port)));
    }
    edits
}

fn path(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

/// The Control UI's addresses at the end of a tunnel to the published `port`.
fn origins(port: u16) -> Value {
    json!(config::origins(port))
}

/// The port of origins that this program wrote; `None` for the user's own.
fn port_of_own_origins(current: &Value) -> Option<u16> {
    let port = current.get(0)?.as_str()?.rsplit(':').next()?.parse().ok()?;
    (*current == origins(port)).then_some(port)
}

/// Whether the gateway starts beside a token: in this one mode it does not (measured, 2026.9.6).
pub(super) fn takes_token(document: Option<&Value>) -> bool {
    document.and_then(|document| document.pointer("/gateway/auth/mode")).is_none_or(|mode| mode != "trusted-proxy")
}

/// Whether the gateway may leave it to a proxy in front to say who a user is. What is in another file is not known.
pub(super) fn may_believe_proxy(document: Option<&Value>) -> bool {
    let Some(document) = document else { return false };
    let mode = document.pointer("/gateway/auth/mode").filter(|mode| !mode.is_null());
    let asks_users = mode.is_none_or(|mode| mode == "token" || mode == "password");
    !asks_users || has_include(document, &["gateway", "auth", "mode"])
}

/// Whether browsers are asked for the token.
pub(super) fn asks_for_token(document: Option<&Value>) -> bool {
    document.and_then(|document| document.pointer("/gateway/auth/mode")).is_none_or(|mode| mode == "token")
}

/// Whether the gateway's port has TLS.
pub(super) fn has_tls(document: Option<&Value>) -> bool {
    document.and_then(|document| document.pointer("/gateway/tls/enabled")).is_some_and(|enabled| enabled == true)
}

/// Where the gateway takes its token from.
pub(super) fn token(document: Option<&Value>) -> ConfiguredToken {
    match document.and_then(|document| document.pointer("/gateway/auth/token")) {
        None | Some(Value::Null) => ConfiguredToken::Unset,
        Some(Value::String(text)) if text.trim().is_empty() => ConfiguredToken::Unset,
        Some(Value::String(text)) if text.starts_with("${") && text.ends_with('}') => {
            reference("the environment", text.trim_start_matches("${").trim_end_matches('}'))
        }
        Some(Value::String(text)) => ConfiguredToken::Literal(Secret::new(text)),
        Some(value) => {
            let field = |name| value.get(name).and_then(Value::as_str);
            match field("source") {
                Some("env") => reference("the environment", field("id").unwrap_or_default()),
                source => ConfiguredToken::Elsewhere(format!("a secret of source {}", source.unwrap_or("unknown"))),
            }
        }
    }
}

fn reference(source: &str, variable: &str) -> ConfiguredToken {
    if variable == TOKEN_VARIABLE {
        ConfiguredToken::Unset
    } else {
        ConfiguredToken::Elsewhere(format!("{source} ({variable})"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gateway::merge;

    fn gateway(port: u16) -> GatewayConfig {
        GatewayConfig { port, ..GatewayConfig::default() }
    }

    fn data() -> DataDir {
        DataDir::at("/data", false)
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let paths = |text: Option<&str>, port| {
            let document = text.map(|text| json5::from_str::<Value>(text).unwrap());
            let edits = missing(document.as_ref(), &gateway(port));
            edits.iter().map(|(path, _)| path.join(".")).collect::<Vec<_>>().join(" ")
        };
        #[rustfmt::skip]
        let cases = [
            (None, 18789, "gateway.mode gateway.bind"),
            (None, 8080, "gateway.mode gateway.bind gateway.controlUi.allowedOrigins"),
            (Some("{ /* mine */ gateway: {mode: 'local', bind: 'lan',}, }"), 18789, ""),
            (Some("{gateway: {mode: 'remote', bind: 'loopback'}}"), 18789, ""),
            (Some("{gateway: {mode: 'local', bind: 'lan', controlUi: {allowedOrigins: []}}}"), 8080, ""),
            (Some("{gateway: {mode: 'local', bind: 'lan', controlUi: {allowedOrigins: ['https://claw.example']}}}"), 8080, ""),
            (Some("{gateway: {mode: 'local', bind: 'lan', controlUi: {allowedOrigins: ['http://localhost:1', 'http://127.0.0.1:1']}}}"), 18789, "gateway.controlUi.allowedOrigins"),
            (Some("{gateway: {mode: 'local', bind: 'lan', controlUi: {allowedOrigins: ['http://localhost:8080', 'http://127.0.0.1:8080']}}}"), 8080, ""),
            (Some("{gateway: {mode: 'local'}}"), 18789, ""),
            (Some("{gateway: {bind: 'loopback'}}"), 18789, "gateway.mode"),
            (Some("{$include: './base.json5'}"), 8080, ""),
            (Some("{gateway: {$include: './gateway.json5'}}"), 8080, ""),
            (Some("{agents: {}}"), 18789, "gateway.mode gateway.bind"),
        ];
        for (text, port, expected) in cases {
            assert_eq!(paths(text, port), expected, "{text:?} {port}");
        }
    }

    #[tokio::test]
    async fn the_first_file_lacks_nothing_and_is_the_gateways_own() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        std::fs::create_dir_all(root.path().join("data/openclaw")).unwrap();
        let config = gateway(8080);
        let mut first = json!({});
        for (path, value) in missing(None, &config) {
            merge::set(&mut first, &path, value);
        }
        create(&host, &data(), &first).await.unwrap();
        let created = read(&host, &data()).await.unwrap();
        let expected =
            json!({"gateway": {"mode": "local", "bind": "lan", "controlUi": {"allowedOrigins": origins(8080)}}});
        assert_eq!(created, Some(expected));
        assert!(missing(created.as_ref(), &config).is_empty());
        assert!(!ensure_access(&host, &data()).await.unwrap());
        // Whose another name is, nobody knows: it stays as it is, and no run fails for it.
        let directory = root.path().join("data/openclaw");
        std::fs::hard_link(directory.join(FILE), directory.join("another")).unwrap();
        std::fs::set_permissions(directory.join(FILE), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(!ensure_access(&host, &data()).await.unwrap());
    }

    #[test]
    fn the_token_is_found_in_every_form() {
        let literal = ConfiguredToken::Literal(Secret::new("abc"));
        let elsewhere = |text: &str| ConfiguredToken::Elsewhere(text.to_owned());
        #[rustfmt::skip]
        let cases = [
            ("{}", ConfiguredToken::Unset),
            ("{gateway: {auth: {token: ''}}}", ConfiguredToken::Unset),
            ("{gateway: {auth: {token: 'abc'}}}", literal),
            ("{gateway: {auth: {token: '${OPENCLAW_GATEWAY_TOKEN}'}}}", ConfiguredToken::Unset),
            ("{gateway: {auth: {token: {source: 'env', provider: 'default', id: 'OPENCLAW_GATEWAY_TOKEN'}}}}", ConfiguredToken::Unset),
            ("{gateway: {auth: {token: {source: 'env', id: 'MINE'}}}}", elsewhere("the environment (MINE)")),
            ("{gateway: {auth: {token: {source: 'file', id: 'x'}}}}", elsewhere("a secret of source file")),
        ];
        for (text, expected) in cases {
            let document: Value = json5::from_str(text).unwrap();
            assert_eq!(token(Some(&document)), expected, "{text}");
        }
    }

    #[test]
    fn another_file_on_the_way_is_found() {
        let cases = [
            ("{$include: 'x'}", "a", true),
            ("{a: {$include: 'x'}}", "a", false),
            ("{a: {$include: 'x'}}", "a.b", true),
            ("{a: {$include: 'x'}}", "b.c", false),
            ("{a: 1}", "a.b.c", false),
        ];
        for (text, path, expected) in cases {
            let path: Vec<&str> = path.split('.').collect();
            assert_eq!(has_include(&json5::from_str(text).unwrap(), &path), expected, "{text} {path:?}");
        }
    }

    #[test]
    fn settings_that_change_how_the_gateway_is_used_are_found() {
        let cases = [
            ("{}", true, false),
            ("{gateway: {auth: {mode: 'token'}, tls: {}}}", true, false),
            ("{gateway: {auth: {mode: 'password'}, tls: {enabled: true}}}", true, true),
            ("{gateway: {auth: {mode: 'trusted-proxy'}, tls: {enabled: 'true'}}}", false, false),
        ];
        for (text, token, tls) in cases {
            let document: Value = json5::from_str(text).unwrap();
            assert_eq!((takes_token(Some(&document)), has_tls(Some(&document))), (token, tls), "{text}");
        }
        assert_eq!((takes_token(None), has_tls(None)), (true, false));
    }

    #[test]
    fn a_gateway_that_may_believe_a_proxy_is_found() {
        let cases = [
            ("{}", false),
            ("{gateway: {auth: {mode: null}}}", false),
            ("{gateway: {auth: {mode: 'token', trustedProxy: {userHeader: 'x-forwarded-user'}}}}", false),
            ("{gateway: {auth: {mode: 'password'}}}", false),
            ("{gateway: {auth: {mode: 'trusted-proxy'}}}", true),
            ("{gateway: {auth: {mode: '${MODE}'}}}", true),
            ("{gateway: {auth: {$include: 'auth.json5'}}}", true),
            ("{gateway: {$include: 'gateway.json5'}}", true),
            ("{agents: {$include: 'agents.json5'}}", false),
        ];
        for (text, expected) in cases {
            assert_eq!(may_believe_proxy(Some(&json5::from_str(text).unwrap())), expected, "{text}");
        }
        assert!(!may_believe_proxy(None));
    }

    #[tokio::test]
    async fn a_broken_file_a_link_and_a_pipe_are_refused_untouched() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        let directory = root.path().join("data/openclaw");
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join(FILE);
        assert_eq!(read(&host, &data()).await.unwrap(), None);

        for text in ["{gateway: ".to_owned(), "[".repeat(200_000)] {
            std::fs::write(&file, &text).unwrap();
            let error = read(&host, &data()).await.unwrap_err();
            assert_eq!(crate::error::code_of(&error), Code::GatewayRefused, "{error:#}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }

        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
        let error = read(&host, &data()).await.unwrap_err();
        assert!(format!("{error:#}").contains("symbolic link"), "{error:#}");

        std::fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(&host, &data()).await.unwrap_err();
        assert!(format!("{error:#}").contains("not a regular file"), "{error:#}");
    }
}
