//! The secrets of a gateway: its token and the password of its keyring.

use anyhow::{Context, Error, Result, anyhow};
use jiff::Timestamp;
use serde_json::Value;

use super::dotenv::{self, EnvFile, FILE, KEPT_TOKEN_VARIABLE, KEYRING_VARIABLE, TOKEN_VARIABLE};
use super::named::{self, Configured};
use super::openclaw_json::{self, ConfiguredToken};
use crate::config::GatewayConfig;
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Access, Host, untrusted};
use crate::metadata::Client;
use crate::secret::{Redaction, Secret};
use crate::state::DataDir;
use crate::text::hex;

/// Values of published examples, with which the gateway exits with code 1.
const PLACEHOLDERS: &[&str] = &["change-me-now", "undefined", "null"];

/// What is said once, when the gateway's token becomes another one.
const ADOPTED: &str = "gateway.auth.token in openclaw.json is another token than the one in .env: it is the gateway's \
    token from now on, and .env has it, too";

/// Bytes of randomness in a generated secret; upstream's own setup uses as many.
const RANDOM_BYTES: usize = 32;

/// The secrets that the state directory's `.env` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The gateway token.
    pub token: Secret,
    /// All of them, and those among the operator's variables.
    pub redaction: Redaction,
    /// Of those that attributes set: other values have another.
    pub(super) digest: String,
}

/// Makes sure that `.env` holds the token, the keyring's password and the secrets that attributes name, mode 0600,
/// owned by the gateway's user.
///
/// The token is the configured one, applied at each boot; else the literal in `openclaw.json`, which wins there; else
/// the one in `.env`; else a new one. Other lines are the user's and stay. In a mode of authentication that takes no
/// token it is kept under another name. [`Code::TokenConflict`]: `openclaw.json` has another one than the configured.
/// For secrets in Secret Manager the VM's service account is asked for, and only then.
pub(crate) async fn ensure(host: &Host, data: &DataDir, config: &GatewayConfig, metadata: &Client) -> Result<Secrets> {
    let mut env = EnvFile::parse(&text(host, data).await?);
    let configured = named::resolve(host, metadata, config, &env).await?;
    let token = token(host, data, &configured, &mut env).await?;
    let password = env.get(KEYRING_VARIABLE).map_or_else(generate, Ok)?;
    env.set(KEYRING_VARIABLE, &password)?;
    let referred = openclaw_json::references(host, data).await;
    env.set_ours(&configured.variables, &referred)?;
    replace(host, data, env.text()).await?;
    let variables = config.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let variables = variables.chain(config.settings.texts().into_iter().map(named_as_secret));
    // What the file holds beside them comes last: however much that is, these are left out of every message.
    let redaction = Redaction::of(variables).and(configured.variables.values()).and([&token, &password]);
    Ok(Secrets { token, redaction: redaction.and(&env.secrets()), digest: configured.digest() })
}

/// Makes `.env` fit a new `document` for `openclaw.json`: the token has the name that its mode of authentication asks
/// for, and the lines for secrets that neither an attribute nor the document names any more are gone; true when that
/// changed something. [`ensure`] knows only the document before.
pub(super) async fn fit(host: &Host, data: &DataDir, config: &GatewayConfig, document: &Value) -> Result<bool> {
    let former = text(host, data).await?;
    let mut env = EnvFile::parse(&former);
    if let Some(token) = env.token() {
        env.set_token(&token, openclaw_json::takes_token(Some(document)))?;
    }
    let referred = openclaw_json::references(host, data).await;
    env.keep_ours(|name| config.secrets.contains_key(name) || referred.contains(name));
    let is_changed = env.text() != former;
    if is_changed {
        replace(host, data, env.text()).await?;
    }
    Ok(is_changed)
}

/// The whole of `.env`, empty when there is none.
pub(super) async fn text(host: &Host, data: &DataDir) -> Result<String> {
    dotenv::limited(untrusted::read(host, &data.state, FILE).await?.unwrap_or_default())
}

/// Makes this the whole of `.env`, which must be one that can be read again.
pub(super) async fn replace(host: &Host, data: &DataDir, text: String) -> Result<()> {
    if text.len() > dotenv::BYTES_LIMIT {
        return Err(anyhow!("{FILE} would have {} bytes, and at most {} are read", text.len(), dotenv::BYTES_LIMIT))
            .classify(Code::ConfigInvalid, "Set fewer attributes openclaw-secret-NAME, or shorter secrets.");
    }
    host.ensure_file(data.state.join(FILE), text, Access::gateway(0o600)).await.map(drop)
}

/// Makes `env` hold the token, under the name that the gateway's mode of authentication asks for.
async fn token(host: &Host, data: &DataDir, configured: &Configured, env: &mut EnvFile) -> Result<Secret> {
    let stored = env.token();
    let (in_config, takes_token) = match openclaw_json::read(host, data).await {
        Ok(document) => (openclaw_json::token(document.as_ref()), openclaw_json::takes_token(document.as_ref())),
        // A running gateway does not need the file; whether one runs is for the gateway stage to find out.
        Err(error) if stored.is_some() => {
            tracing::debug!("{error:#}");
            (ConfiguredToken::Unset, env.get(KEPT_TOKEN_VARIABLE).is_none())
        }
        Err(error) => return Err(error),
    };
    let token = match choose(configured.token.as_ref(), stored, in_config) {
        Choice::Use { token, warning } => {
            if let Some(warning) = warning {
                host.warn(warning);
            }
            token
        }
        Choice::Generate => generate()?,
        Choice::Conflict => {
            return Err(anyhow!("gateway.auth.token in openclaw.json is another token than the one to be used"))
                .classify(
                    Code::TokenConflict,
                    format!(
                        "Remove gateway.auth.token from openclaw.json (recommended), or set the attribute \
                         openclaw-gateway-token to the same value; then run `{RUN_AGAIN}`."
                    ),
                );
        }
    };
    env.set_token(&token, takes_token)?;
    Ok(token)
}

/// A text of the settings; an address with a password in it is a secret, whatever its name.
fn named_as_secret<'a>((name, text): (&'a str, &'a str)) -> (&'a str, &'a str) {
    if text.contains("://") && text.contains('@') { ("SECRET", text) } else { (name, text) }
}

/// What the gateway asks a browser for, as far as this program can know it.
#[derive(Debug)]
pub(crate) enum Entry {
    /// This token.
    Token(Secret),
    /// None: a password, or a proxy in front says who the user is.
    NoToken,
    /// A token that is elsewhere.
    Unknown(Error),
}

/// What the gateway asks a browser for now.
pub(crate) async fn entry(host: &Host, data: &DataDir) -> Result<Entry> {
    let text = text(host, data).await?;
    let document = openclaw_json::read(host, data).await?;
    if !openclaw_json::asks_for_token(document.as_ref()) {
        return Ok(Entry::NoToken);
    }
    Ok(match (openclaw_json::token(document.as_ref()), EnvFile::parse(&text).get(TOKEN_VARIABLE)) {
        (ConfiguredToken::Literal(token), _) | (ConfiguredToken::Unset, Some(token)) => Entry::Token(token),
        (ConfiguredToken::Unset, None) => {
            Entry::Unknown(anyhow!("there is no token in {}", data.state.join(FILE).display()))
        }
        (ConfiguredToken::Elsewhere(source), _) => {
            Entry::Unknown(anyhow!("openclaw.json takes the gateway's token from {source}"))
        }
    })
}

/// The secrets that the gateway's container knows: those of `.env` and those among its own `variables`.
pub(super) async fn redaction(host: &Host, data: &DataDir, variables: &[String]) -> Result<Redaction> {
    let text = text(host, data).await?;
    let env = EnvFile::parse(&text);
    let variables = variables.iter().filter_map(|variable| variable.split_once('='));
    Ok(Redaction::of(variables).and(&env.secrets()))
}

/// When `.env` last changed; `None` when there is none.
pub(crate) async fn changed_at(host: &Host, data: &DataDir) -> Result<Option<Timestamp>> {
    let path = host.path(data.state.join(FILE));
    let metadata = match tokio::fs::symlink_metadata(&path).await {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    };
    let modified = metadata.modified().with_context(|| format!("looking at {}", path.display()))?;
    Ok(Some(Timestamp::try_from(modified).with_context(|| format!("the time of {}", path.display()))?))
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Use { token: Secret, warning: Option<String> },
    Generate,
    Conflict,
}

fn choose(configured: Option<&Secret>, stored: Option<Secret>, in_config: ConfiguredToken) -> Choice {
    let stored = stored.filter(|stored| !PLACEHOLDERS.contains(&stored.expose()));
    let ours = configured.cloned().or(stored);
    match (ours, in_config) {
        (Some(token), ConfiguredToken::Literal(literal)) if literal != token && configured.is_some() => {
            Choice::Conflict
        }
        (Some(token), ConfiguredToken::Literal(literal)) if literal != token => {
            Choice::Use { token: literal, warning: Some(ADOPTED.to_owned()) }
        }
        (Some(token), ConfiguredToken::Unset | ConfiguredToken::Literal(_))
        | (None, ConfiguredToken::Literal(token)) => Choice::Use { token, warning: None },
        (Some(token), ConfiguredToken::Elsewhere(source)) => Choice::Use {
            token,
            warning: Some(format!(
                "openclaw.json takes the gateway's token from {source}: the one in .env is not used"
            )),
        },
        (None, ConfiguredToken::Unset | ConfiguredToken::Elsewhere(_)) => Choice::Generate,
    }
}

fn generate() -> Result<Secret> {
    let mut bytes = [0; RANDOM_BYTES];
    getrandom::fill(&mut bytes).context("generating a secret")?;
    Ok(Secret::new(hex(bytes)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    #![allow(clippy::needless_raw_string_hashes, reason = "UPDATE_EXPECT=1 writes them")]
    use super::*;
    use crate::error::{code_of, one_line};
    use expect_test::expect;

    fn secret(text: &str) -> Secret {
        Secret::new(text)
    }

    #[test]
    fn the_configured_token_wins_then_the_stored_one_then_that_of_the_state() {
        let literal = |text| ConfiguredToken::Literal(secret(text));
        let elsewhere = || ConfiguredToken::Elsewhere("a secret of source file".to_owned());
        let using = |text| Choice::Use { token: secret(text), warning: None };
        #[rustfmt::skip]
        let cases = [
            (Some("a"), Some("b"), ConfiguredToken::Unset, using("a")),
            (None, Some("b"), ConfiguredToken::Unset, using("b")),
            (None, None, ConfiguredToken::Unset, Choice::Generate),
            (None, Some("change-me-now"), ConfiguredToken::Unset, Choice::Generate),
            (None, None, literal("c"), using("c")),
            (None, Some("c"), literal("c"), using("c")),
            (None, Some("b"), literal("c"), Choice::Use { token: secret("c"), warning: Some(ADOPTED.to_owned()) }),
            (Some("c"), Some("b"), literal("c"), using("c")),
            (Some("a"), Some("c"), literal("c"), Choice::Conflict),
            (None, None, elsewhere(), Choice::Generate),
        ];
        for (configured, stored, in_config, expected) in cases {
            let configured = configured.map(secret);
            assert_eq!(choose(configured.as_ref(), stored.map(secret), in_config), expected);
        }
        assert!(matches!(choose(None, Some(secret("b")), elsewhere()), Choice::Use { warning: Some(_), .. }));
    }

    #[tokio::test]
    async fn a_browser_is_asked_for_what_the_gateway_takes() {
        let cases = [
            (Some("OPENCLAW_GATEWAY_TOKEN=b\n"), None, "b"),
            (Some("OPENCLAW_GATEWAY_TOKEN=b\n"), Some("{gateway: {auth: {token: 'c'}}}"), "c"),
            (None, Some("{gateway: {auth: {token: 'c', mode: 'token'}}}"), "c"),
            (None, Some("{gateway: {}}"), "unknown"),
            (Some("OPENCLAW_GATEWAY_TOKEN=b\n"), Some("{gateway: {auth: {token: {source: 'file'}}}}"), "unknown"),
            (Some("OPENCLAW_GATEWAY_TOKEN=b\n"), Some("{gateway: {auth: {mode: 'password'}}}"), "none"),
            (Some("OPENCLAW_INIT_KEPT_TOKEN=b\n"), Some("{gateway: {auth: {mode: 'trusted-proxy'}}}"), "none"),
        ];
        for (env, document, token) in cases {
            let root = tempfile::tempdir().unwrap();
            let (host, data) = (Host::new(root.path()), DataDir::at("/data", false));
            let state = host.path(&data.state);
            std::fs::create_dir_all(&state).unwrap();
            for (name, text) in [(FILE, env), ("openclaw.json", document)] {
                if let Some(text) = text {
                    std::fs::write(state.join(name), text).unwrap();
                }
            }
            let found = match entry(&host, &data).await.unwrap() {
                Entry::Token(token) => token.expose().to_owned(),
                Entry::NoToken => "none".to_owned(),
                Entry::Unknown(_) => "unknown".to_owned(),
            };
            assert_eq!(found, token, "{env:?} {document:?}");
        }
    }

    #[tokio::test]
    async fn what_could_not_be_read_again_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        let long = "x".repeat(usize::try_from(untrusted::MAX_BYTES).unwrap() + 1);
        let refused = replace(&Host::new(root.path()), &DataDir::at("/data", false), long).await.unwrap_err();
        assert_eq!(code_of(&refused), Code::ConfigInvalid);
        assert!(one_line(&refused).contains("openclaw-secret-NAME"), "{}", one_line(&refused));
    }

    /// Needs root only to give the file to uid 1000; without it the part that needs no owner is shown.
    #[tokio::test]
    async fn a_generated_token_is_kept_and_a_link_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        let data = DataDir::at("/data", false);
        let (config, nobody) = (GatewayConfig::default(), Client::new(Some("127.0.0.1:9")).unwrap());
        std::fs::create_dir_all(root.path().join("data/openclaw")).unwrap();
        if nix::unistd::geteuid().is_root() {
            let first = ensure(&host, &data, &config, &nobody).await.unwrap();
            let text = std::fs::read_to_string(host.path(data.state.join(FILE))).unwrap();
            let masked = text.replace(|c: char| c.is_ascii_hexdigit() && !c.is_ascii_uppercase(), "x");
            expect![[r#"
                OPENCLAW_GATEWAY_TOKEN=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
                GOG_KEYRING_PASSWORD=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
            "#]]
            .assert_eq(&masked);
            let second = ensure(&host, &data, &config, &nobody).await.unwrap();
            assert_eq!(first, second);
            assert_eq!(first.token.expose().len(), 64);
            assert_eq!(host.ledger().borrow().changes.len(), 1);
            let settings = root.path().join("data/openclaw/openclaw.json");
            std::fs::write(&settings, "{gateway: {auth: {mode: 'trusted-proxy'}}}").unwrap();
            assert_eq!(ensure(&host, &data, &config, &nobody).await.unwrap().token, first.token);
            let text = std::fs::read_to_string(host.path(data.state.join(FILE))).unwrap();
            assert!(!text.contains(TOKEN_VARIABLE) && text.contains(first.token.expose()), "{text}");
            // What cannot be read changes nothing.
            std::fs::write(&settings, "{gateway: ").unwrap();
            assert_eq!(ensure(&host, &data, &config, &nobody).await.unwrap().token, first.token);
            assert_eq!(std::fs::read_to_string(host.path(data.state.join(FILE))).unwrap(), text);
            std::fs::remove_file(&settings).unwrap();
            assert_eq!(ensure(&host, &data, &config, &nobody).await.unwrap().token, first.token);
            assert_eq!(std::fs::read_to_string(host.path(data.state.join(FILE))).unwrap().lines().count(), 2);
            std::fs::remove_file(root.path().join("data/openclaw/.env")).unwrap();
        }
        std::os::unix::fs::symlink("/etc/shadow", root.path().join("data/openclaw/.env")).unwrap();
        let error = ensure(&host, &data, &config, &nobody).await.unwrap_err();
        assert!(format!("{error:#}").contains("symbolic link"), "{error:#}");
    }
}
