//! The gateway's token and `.env`.

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;

use crate::config::GatewayConfig;
use crate::error::{Classify, Code};
use crate::gateway::openclaw_json::{self, ConfiguredToken};
use crate::host::{Access, Host, untrusted};
use crate::secret::Secret;
use crate::state::DataDir;

/// The variable of the gateway's token.
pub(crate) const TOKEN_VARIABLE: &str = "OPENCLAW_GATEWAY_TOKEN";

/// The variable that unlocks `gog`'s keyring; a new one would make the stored logins unreadable.
const KEYRING_VARIABLE: &str = "GOG_KEYRING_PASSWORD";

/// The one place at rest, in the state directory. The gateway loads it; `docker inspect` does not show it.
const FILE: &str = ".env";

/// Values that published examples contain: the gateway exits with code 1 when it is given one.
const PLACEHOLDERS: &[&str] = &["change-me-now", "undefined", "null"];

/// Bytes of randomness in a generated secret; upstream's own setup uses as many.
const RANDOM_BYTES: usize = 32;

/// Secrets at rest in the state directory's `.env`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The gateway token.
    pub token: Secret,
}

/// Makes sure that `.env` holds the token and the keyring's password, mode 0600, owned by the gateway's user.
///
/// A configured token wins and is applied at each boot; else the one in `.env` is kept; else that of an
/// `openclaw.json` which came with the state; else a new one. Other lines are the user's and stay.
/// A different literal in `openclaw.json` is [`Code::TokenConflict`].
pub(crate) async fn ensure(host: &Host, data: &DataDir, config: &GatewayConfig) -> Result<Secrets> {
    let path = data.state.join(FILE);
    let text = untrusted::read(host.path(&path)).await?.unwrap_or_default();
    let mut env = EnvFile::parse(&text);
    let kept = env.get(TOKEN_VARIABLE);
    let in_config = match openclaw_json::read(host, data).await {
        Ok(document) => openclaw_json::token(document.as_ref()),
        // A gateway that runs does not need the file, and whether one does is the gateway stage's to see.
        Err(error) if kept.is_some() => {
            tracing::debug!("{error:#}");
            ConfiguredToken::Unset
        }
        Err(error) => return Err(error),
    };
    let token = match choose(config.token.as_ref(), kept, in_config) {
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
                    "Remove gateway.auth.token from openclaw.json (recommended), or set the attribute \
                 openclaw-gateway-token to the same value; then run `sudo openclaw-init boot`.",
                );
        }
    };
    let password = env.get(KEYRING_VARIABLE).map_or_else(generate, Ok)?;
    env.set(TOKEN_VARIABLE, &token)?;
    env.set(KEYRING_VARIABLE, &password)?;
    host.ensure_file(&path, env.text(), Access::gateway(0o600)).await?;
    Ok(Secrets { token })
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

fn choose(configured: Option<&Secret>, kept: Option<Secret>, in_config: ConfiguredToken) -> Choice {
    let kept = kept.filter(|kept| !PLACEHOLDERS.contains(&kept.expose()));
    let ours = configured.cloned().or(kept);
    match (ours, in_config) {
        (Some(token), ConfiguredToken::Literal(literal)) if literal != token => Choice::Conflict,
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
    Ok(Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// The lines of a `.env` file, as the `dotenv` package of npm reads them.
struct EnvFile {
    lines: Vec<String>,
}

impl EnvFile {
    fn parse(text: &str) -> Self {
        Self { lines: text.lines().map(str::to_owned).collect() }
    }

    /// The value of `key`; the last of several lines wins. An empty value counts as none.
    fn get(&self, key: &str) -> Option<Secret> {
        let value = self.lines.iter().rev().find_map(|line| value_of(line, key))?;
        if value.is_empty() { None } else { Some(Secret::new(value)) }
    }

    /// Makes one line say `key`=`value`, unless one does; every other line stays as it is.
    fn set(&mut self, key: &str, value: &Secret) -> Result<()> {
        if self.get(key).as_ref() == Some(value) {
            return Ok(());
        }
        let line = format!("{key}={}", quoted(key, value.expose())?);
        self.lines.retain(|line| value_of(line, key).is_none());
        self.lines.push(line);
        Ok(())
    }

    fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let value = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
    for quote in ['"', '\'', '`'] {
        if let Some(rest) = value.strip_prefix(quote)
            && let Some(end) = rest.rfind(quote)
        {
            return Some(&rest[..end]);
        }
    }
    Some(value.split('#').next().unwrap_or_default().trim_end())
}

fn quoted(key: &str, value: &str) -> Result<String> {
    if value.chars().all(|c| c.is_ascii_alphanumeric() || "-_./+=:@%".contains(c)) {
        Ok(value.to_owned())
    } else if value.contains('\'') || value.chars().any(char::is_control) {
        Err(anyhow!("the value of {key} has an apostrophe or a control character"))
            .classify(Code::ConfigInvalid, "Set openclaw-gateway-token to a token of letters and digits.")
    } else {
        Ok(format!("'{value}'"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    fn secret(text: &str) -> Secret {
        Secret::new(text)
    }

    #[test]
    fn the_configured_token_wins_then_the_kept_one_then_that_of_the_state() {
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
            (None, Some("b"), literal("c"), Choice::Conflict),
            (Some("a"), Some("c"), literal("c"), Choice::Conflict),
            (None, None, elsewhere(), Choice::Generate),
        ];
        for (configured, kept, in_config, expected) in cases {
            let configured = configured.map(secret);
            assert_eq!(choose(configured.as_ref(), kept.map(secret), in_config), expected);
        }
        assert!(matches!(choose(None, Some(secret("b")), elsewhere()), Choice::Use { warning: Some(_), .. }));
    }

    #[test]
    fn only_our_lines_of_env_are_edited() {
        let mut env = EnvFile::parse("# mine\nOPENAI_API_KEY=\"x y\"\nexport OPENCLAW_GATEWAY_TOKEN='old'\nEMPTY=\n");
        assert_eq!(env.get(TOKEN_VARIABLE), Some(secret("old")));
        assert_eq!(env.get("EMPTY"), None);
        env.set(TOKEN_VARIABLE, &secret("old")).unwrap();
        assert!(env.text().contains("export OPENCLAW_GATEWAY_TOKEN='old'\n"));
        env.set(TOKEN_VARIABLE, &secret("n#w")).unwrap();
        assert_eq!(env.text(), "# mine\nOPENAI_API_KEY=\"x y\"\nEMPTY=\nOPENCLAW_GATEWAY_TOKEN='n#w'\n");
        assert_eq!(env.get(TOKEN_VARIABLE), Some(secret("n#w")));
        assert!(env.set(TOKEN_VARIABLE, &secret("a'b")).is_err());
    }

    #[test]
    fn values_are_read_as_dotenv_does() {
        let cases = [
            ("K=v", Some("v")),
            ("  K = v # comment", Some("v")),
            ("K=\"a # b\" # comment", Some("a # b")),
            ("KEY=v", None),
            ("# K=v", None),
            ("K", None),
        ];
        for (line, value) in cases {
            assert_eq!(value_of(line, "K"), value, "{line}");
        }
    }

    /// Needs root only to give the file to uid 1000; without it the part that needs no owner is shown.
    #[tokio::test]
    async fn a_generated_token_is_kept_and_a_link_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        let data = DataDir::at("/data", false);
        let config = GatewayConfig { port: 18789, bind: [127, 0, 0, 1].into(), token: None, env: BTreeMap::new() };
        std::fs::create_dir_all(root.path().join("data/openclaw")).unwrap();
        if nix::unistd::geteuid().is_root() {
            let first = ensure(&host, &data, &config).await.unwrap();
            let second = ensure(&host, &data, &config).await.unwrap();
            assert_eq!(first, second);
            assert_eq!(first.token.expose().len(), 64);
            assert_eq!(host.ledger().borrow().changes.len(), 1);
            std::fs::remove_file(root.path().join("data/openclaw/.env")).unwrap();
        }
        std::os::unix::fs::symlink("/etc/shadow", root.path().join("data/openclaw/.env")).unwrap();
        let error = ensure(&host, &data, &config).await.unwrap_err();
        assert!(format!("{error:#}").contains("symbolic link"), "{error:#}");
    }
}
