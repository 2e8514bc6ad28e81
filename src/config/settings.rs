//! `openclaw-config`: the operator's part of `openclaw.json`, a merge patch (RFC 7396).

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::check::Checked;
use super::keys;
use super::secret_version::SecretVersion;
use crate::document;
use crate::secret;

/// What this program sets itself, and by what.
const OURS: [(&str, &str); 6] = [
    ("agents.list", "the gateway's own tool makes agents.entries of it: set that"),
    ("gateway.mode", "it is always local"),
    ("gateway.bind", "openclaw-bind sets where the gateway is published"),
    ("gateway.port", "openclaw-port sets it"),
    ("gateway.auth.token", "openclaw-gateway-token sets it"),
    ("gateway.controlUi.allowedOrigins", "openclaw-port and openclaw-public-url decide it"),
];

/// The modes of authentication with which the gateway starts in a container (measured, 2026.9.6).
const AUTH_MODES: [&str; 3] = ["token", "password", TRUSTED_PROXY];

/// The mode in which the gateway believes a proxy who its users are.
const TRUSTED_PROXY: &str = "trusted-proxy";

/// What lets devices in that nobody has approved.
const PAIRING: [&str; 5] = [
    "gateway.controlUi.dangerouslyDisableDeviceAuth",
    "gateway.controlUi.allowInsecureAuth",
    "gateway.auth.trustedProxy.deviceAutoApprove",
    "gateway.nodes.pairing.autoApproveCidrs",
    "gateway.nodes.pairing.sshVerify",
];

/// A merge patch for `openclaw.json`. `Debug` does not show it: it may hold credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct SettingsPatch {
    value: Value,
    secrets: BTreeMap<String, SecretVersion>,
    /// The attributes that it is made of.
    attributes: Vec<&'static str>,
    /// It asked for the gateway's own Tailscale mode.
    has_tailscale: bool,
}

/// A value of the patch that is no object with entries. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf<'a> {
    /// The keys from the top.
    pub path: Vec<&'a str>,
    /// What is asked for there; null: nothing.
    pub value: &'a Value,
}

impl fmt::Debug for Leaf<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Leaf({})", display(&self.path))
    }
}

impl Default for SettingsPatch {
    fn default() -> Self {
        Self {
            value: Value::Object(Map::new()),
            secrets: BTreeMap::new(),
            attributes: Vec::new(),
            has_tailscale: false,
        }
    }
}

impl fmt::Debug for SettingsPatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SettingsPatch([redacted])")
    }
}

impl SettingsPatch {
    /// The patch, an object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The secrets for which it has a reference to a variable, by the variable's name.
    pub(super) fn secrets(&self) -> &BTreeMap<String, SecretVersion> {
        &self.secrets
    }

    /// The attributes that it is made of, for a sentence.
    pub fn attributes(&self) -> String {
        self.attributes.join(" and ")
    }

    /// Has a gateway that is published at `port` take browsers from `origin` through these proxies, as `attribute`
    /// asks.
    pub(super) fn serve_through(&mut self, attribute: &'static str, origin: &str, proxies: &[String], port: u16) {
        let local = origins(port);
        let origins: Vec<&str> = [origin].into_iter().chain(local.iter().map(String::as_str)).collect();
        self.set(attribute, &["gateway", "controlUi", "allowedOrigins"], json!(origins));
        self.set(attribute, &["gateway", "trustedProxies"], json!(proxies));
    }

    /// Whether it leaves it to the proxy in front to say who a user is.
    pub(super) fn trusts_proxy(&self) -> bool {
        self.value.pointer("/gateway/auth/mode").is_some_and(|mode| mode == TRUSTED_PROXY)
    }

    /// Sets what is at `path`, which nothing in it decides yet, as `attribute` asks.
    pub(super) fn set(&mut self, attribute: &'static str, path: &[&str], value: Value) {
        *path.iter().fold(&mut self.value, |at, key| &mut at[*key]) = value;
        if !self.attributes.contains(&attribute) {
            self.attributes.push(attribute);
        }
    }

    /// Whether it decides what is at `path`: there, below it, or by no object above it.
    pub(super) fn sets(&self, path: &[&str]) -> bool {
        let decides =
            |leaf: &Leaf<'_>| leaf.path.starts_with(path) || path.starts_with(&leaf.path) && !leaf.value.is_object();
        self.leaves().iter().any(decides)
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.value.as_object().is_none_or(Map::is_empty)
    }

    /// Its values with their paths.
    pub fn leaves(&self) -> Vec<Leaf<'_>> {
        let mut found = Vec::new();
        collect(&self.value, &mut Vec::new(), &mut found);
        found.retain(|leaf| !leaf.path.is_empty());
        found
    }

    /// The texts in it under the names of their keys, also those in lists.
    pub fn texts(&self) -> Vec<(&str, &str)> {
        fn collect<'a>(name: &'a str, value: &'a Value, found: &mut Vec<(&'a str, &'a str)>) {
            match value {
                Value::String(text) => found.push((name, text)),
                Value::Array(list) => list.iter().for_each(|value| collect(name, value, found)),
                Value::Object(object) => object.iter().for_each(|(name, value)| collect(name, value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        collect("", &self.value, &mut found);
        found
    }

    /// About what it asks for.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let tailscale = self.has_tailscale.then(|| {
            "openclaw-config sets gateway.tailscale, which is left out: the gateway's own Tailscale mode cannot work in \
             its container; install Tailscale on the VM, have `tailscale serve` forward to the gateway's port, and set \
             openclaw-public-url (docs/ways-in.md)"
                .to_owned()
        });
        self.literal_secrets().into_iter().chain(tailscale)
    }

    /// About literals whose key says that they are secret.
    fn literal_secrets(&self) -> Option<String> {
        let is_literal = |leaf: &Leaf<'_>| {
            let (Some(name), Some(text)) = (leaf.path.last(), leaf.value.as_str()) else { return false };
            secret::is_secret(name, text) && !text.starts_with("${")
        };
        let paths: Vec<_> =
            self.leaves().iter().filter(|leaf| is_literal(leaf)).map(|leaf| display(&leaf.path)).collect();
        (!paths.is_empty()).then(|| {
            format!(
                "openclaw-config sets {}: a secret by its name, and everyone who may read this VM's metadata can read the \
                 value; \"secret:projects/PROJECT/secrets/SECRET\" in its place takes it from Secret Manager",
                paths.join(", ")
            )
        })
    }
}

/// The Control UI's addresses at the end of a tunnel to the published `port`.
pub fn origins(port: u16) -> [String; 2] {
    ["localhost", "127.0.0.1"].map(|name| format!("http://{name}:{port}"))
}

fn collect<'a>(value: &'a Value, path: &mut Vec<&'a str>, found: &mut Vec<Leaf<'a>>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                path.push(key);
                collect(value, path, found);
                path.pop();
            }
        }
        value => found.push(Leaf { path: path.clone(), value }),
    }
}

/// A path as the gateway writes it: `agents.defaults.models["openai/gpt-5.4"]`.
pub fn display(path: &[impl AsRef<str>]) -> String {
    let is_plain =
        |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-$".contains(&byte));
    let mut text = String::new();
    for key in path.iter().map(AsRef::as_ref) {
        match (is_plain(key), text.is_empty()) {
            (true, true) => text.push_str(key),
            (true, false) => text.extend([".", key]),
            (false, _) => text.extend(["[", &format!("{key:?}"), "]"]),
        }
    }
    text
}

/// The checked patch. A complaint has paths and no values.
pub(super) fn settings(value: &str) -> Checked<SettingsPatch> {
    let mut document = document::parse(value).map_err(|error| format!("must be a JSON object, but {error}"))?;
    if !document.is_object() {
        return Err("must be a JSON object, such as {\"logging\":{\"level\":\"debug\"}}".to_owned());
    }
    let has_tailscale = leave_tailscale_out(&mut document);
    let (mut secrets, mut complaints) = (BTreeMap::new(), Vec::new());
    refer_to_secrets(&mut document, &mut Vec::new(), &mut secrets, &mut complaints);
    let patch = SettingsPatch { value: document, secrets, attributes: vec![keys::CONFIG], has_tailscale };
    complaints.extend(patch.leaves().iter().filter_map(complaint));
    if complaints.is_empty() { Ok(patch) } else { Err(complaints.join("; ")) }
}

/// The gateway's own Tailscale mode needs a gateway on loopback beside a tailscaled: in the container it would not
/// start.
fn leave_tailscale_out(document: &mut Value) -> bool {
    let mode = document.pointer("/gateway/tailscale/mode");
    let is_on = mode.is_some_and(|mode| !mode.is_null() && mode != "off");
    if is_on && let Some(gateway) = document.get_mut("gateway").and_then(Value::as_object_mut) {
        gateway.remove("tailscale");
    }
    is_on
}

fn complaint(leaf: &Leaf<'_>) -> Option<String> {
    let (at, shown) = (leaf.path.join("."), display(&leaf.path));
    let is_below =
        |path: &str, top: &str| path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    // An empty object takes nothing away.
    let overlaps = |ours: &str| is_below(&at, ours) || (is_below(ours, &at) && !leaf.value.is_object());
    if let Some((ours, why)) = OURS.iter().find(|(ours, _)| overlaps(ours)) {
        return Some(format!("{shown} sets {ours}, which openclaw-init sets itself ({why})"));
    }
    let is_off = matches!(leaf.value, Value::Null | Value::Bool(false));
    if let Some(pairing) = PAIRING.iter().find(|pairing| is_below(&at, pairing) && !is_off) {
        return Some(format!(
            "{pairing} lets in devices that nobody has approved: openclaw-init keeps the pairing of devices on"
        ));
    }
    if at == "gateway.auth.mode" && !leaf.value.is_null() && !AUTH_MODES.iter().any(|mode| leaf.value == mode) {
        return Some(format!("gateway.auth.mode must be {}", AUTH_MODES.join(", ")));
    }
    if leaf.path.contains(&"$include") {
        return Some(format!("{shown} names another file, and these settings are whole"));
    }
    None
}

/// Puts a reference to an environment variable, as the gateway resolves it, in the place of each `secret:…`: no secret
/// stands in `openclaw.json`, or in a backup of it.
fn refer_to_secrets(
    value: &mut Value,
    path: &mut Vec<String>,
    secrets: &mut BTreeMap<String, SecretVersion>,
    complaints: &mut Vec<String>,
) {
    match value {
        Value::String(text) => match SecretVersion::referenced(text) {
            None => {}
            Some(Ok((variable, secret))) => {
                *text = format!("${{{variable}}}");
                secrets.insert(variable, secret);
            }
            Some(Err(why)) => complaints.push(format!("{} {why}", display(path))),
        },
        Value::Array(list) => list.iter_mut().for_each(|value| refer_to_secrets(value, path, secrets, complaints)),
        Value::Object(object) => {
            for (key, value) in object {
                path.push(key.clone());
                refer_to_secrets(value, path, secrets, complaints);
                path.pop();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_operators_to_set_is_named_without_a_value() {
        let cases = [
            ("[1]", "must be a JSON object"),
            ("hunter2 hunter2", "must be a JSON object"),
            ("{a: 'hunter2'", "must be a JSON object"),
            ("{gateway: {port: 1}}", "gateway.port sets gateway.port, which openclaw-init sets itself (openclaw-port"),
            ("{gateway: {auth: {token: 'hunter2'}}}", "openclaw-gateway-token"),
            ("{gateway: {auth: {token: {source: 'env', id: 'hunter2'}}}}", "openclaw-gateway-token"),
            ("{gateway: {auth: {mode: 'none'}}}", "gateway.auth.mode must be token, password, trusted-proxy"),
            ("{gateway: {auth: {mode: ['hunter2']}}}", "gateway.auth.mode must be"),
            ("{gateway: {auth: null}}", "gateway.auth sets gateway.auth.token"),
            ("{gateway: null}", "gateway sets gateway.mode"),
            ("{gateway: 'hunter2'}", "gateway sets gateway.mode"),
            ("{gateway: {controlUi: {allowedOrigins: ['*']}}}", "openclaw-public-url decide it"),
            ("{gateway: {controlUi: {dangerouslyDisableDeviceAuth: true}}}", "pairing of devices on"),
            ("{gateway: {controlUi: {allowInsecureAuth: 'yes'}}}", "pairing of devices on"),
            ("{gateway: {auth: {trustedProxy: {deviceAutoApprove: {enabled: true}}}}}", "pairing of devices on"),
            ("{gateway: {nodes: {pairing: {autoApproveCidrs: ['0.0.0.0/0']}}}}", "pairing of devices on"),
            ("{gateway: {nodes: {pairing: {sshVerify: {user: 'hunter2'}}}}}", "pairing of devices on"),
            ("{gateway: {nodes: {pairing: {sshVerify: {}}}}}", "pairing of devices on"),
            ("{agents: {$include: 'x'}}", "names another file"),
            ("{a: {b: 'secret:projects/hunter2'}}", "a.b must name a secret: projects/PROJECT/"),
            ("{a: [{b: ['secret:hunter2']}]}", "a.b must name a secret: "),
        ];
        for (text, words) in cases {
            let complaint = settings(text).err();
            let complaint = complaint.unwrap_or_else(|| panic!("{text} was accepted"));
            assert!(complaint.contains(words) && !complaint.contains("hunter2"), "{text}: {complaint}");
        }
        for text in [
            "{}",
            "{gateway: {}}",
            "{gateway: {controlUi: {}, auth: {}}}",
            "{gateway: {controlUi: {allowInsecureAuth: false, basePath: '/x'}, auth: {password: 'x'}}}",
            "{gateway: {nodes: {pairing: {sshVerify: false, autoApproveCidrs: null}}}}",
            "{gatewayport: 1, 'gateway.portal': 2}",
            "{gateway: {auth: {mode: 'trusted-proxy', trustedProxy: {userHeader: 'x-user'}}}}",
            "{gateway: {auth: {mode: null}}}",
        ] {
            assert!(settings(text).is_ok(), "{text}: {:?}", settings(text));
        }
    }

    #[test]
    fn a_secret_of_secret_manager_becomes_a_reference() -> Checked<()> {
        let patch = settings(
            "{channels: {telegram: {botToken: 'secret:projects/p/secrets/bot'}}, a: ['secret:projects/p/secrets/bot', 'x']}",
        )?;
        let secrets: Vec<_> =
            patch.secrets().iter().map(|(name, secret)| (name.as_str(), secret.to_string())).collect();
        let [(variable, secret)] = &secrets[..] else { panic!("{secrets:?}") };
        assert_eq!(secret, "projects/p/secrets/bot/versions/latest");
        let reference = format!("${{{variable}}}");
        assert_eq!(
            patch.value(),
            &serde_json::json!({"channels": {"telegram": {"botToken": reference}}, "a": [reference, "x"]})
        );
        assert_eq!(patch.warnings().count(), 0);
        Ok(())
    }

    #[test]
    fn the_gateways_own_tailscale_mode_is_left_out_with_a_warning() -> Checked<()> {
        for (text, left, is_warned) in [
            ("{gateway: {tailscale: {mode: 'serve', resetOnExit: true}, auth: {}}}", json!({"auth": {}}), true),
            ("{gateway: {tailscale: {mode: 'funnel'}}}", json!({}), true),
            ("{gateway: {tailscale: {mode: 'off'}}}", json!({"tailscale": {"mode": "off"}}), false),
        ] {
            let patch = settings(text)?;
            assert_eq!(patch.value()["gateway"], left, "{text}");
            assert_eq!(patch.warnings().any(|it| it.contains("tailscale serve")), is_warned, "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_literal_secret_is_named_by_its_path() -> Checked<()> {
        let patch = settings(
            "{models: {providers: {'x/y': {apiKey: 'hunter22', baseUrl: 'http://h/'}, z: {apiKey: '${Z_API_KEY}'}}},
              agents: {defaults: {maxTokens: 4096}}}",
        )?;
        let warning = patch.warnings().collect::<String>();
        assert!(warning.starts_with(r#"openclaw-config sets models.providers["x/y"].apiKey: "#), "{warning}");
        assert!(!warning.contains("hunter22") && !warning.contains("Z_API_KEY"), "{warning}");
        assert!(!format!("{patch:?}").contains("hunter22"));
        assert_eq!(settings("{a: {apiKey: null}}")?.warnings().count(), 0);
        Ok(())
    }
}
