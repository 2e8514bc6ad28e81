//! `.env` in the state directory: the one place of secrets at rest. The gateway loads it, and `docker inspect` does not
//! show it.

use anyhow::{Result, anyhow};

use crate::error::{Classify as _, Code};
use crate::secret::Secret;

/// The file's name.
pub(super) const FILE: &str = ".env";

/// The variable of the gateway's token.
pub(super) const TOKEN_VARIABLE: &str = "OPENCLAW_GATEWAY_TOKEN";

/// The variable in which the token is kept while the gateway's mode of authentication takes none.
pub(super) const KEPT_TOKEN_VARIABLE: &str = "OPENCLAW_INIT_KEPT_TOKEN";

/// The variable that unlocks `gog`'s keyring; a new one would make the stored logins unreadable.
pub(super) const KEYRING_VARIABLE: &str = "GOG_KEYRING_PASSWORD";

/// The lines of a `.env` file, as the `dotenv` package of npm reads them.
pub(super) struct EnvFile {
    lines: Vec<String>,
}

impl EnvFile {
    pub(super) fn parse(text: &str) -> Self {
        Self { lines: text.lines().map(str::to_owned).collect() }
    }

    /// The value of `key`, from its last line; `None` also for an empty one.
    pub(super) fn get(&self, key: &str) -> Option<Secret> {
        let value = self.lines.iter().rev().find_map(|line| value_of(line, key))?;
        if value.is_empty() { None } else { Some(Secret::new(value)) }
    }

    /// Makes `key` have `value`, in one line; every other line stays as it is.
    pub(super) fn set(&mut self, key: &str, value: &Secret) -> Result<()> {
        if self.get(key).as_ref() == Some(value) {
            return Ok(());
        }
        let line = format!("{key}={}", quoted(key, value.expose())?);
        self.lines.retain(|line| value_of(line, key).is_none());
        self.lines.push(line);
        Ok(())
    }

    /// Leaves no line that sets `key`.
    pub(super) fn remove(&mut self, key: &str) {
        self.lines.retain(|line| value_of(line, key).is_none());
    }

    /// Every name with its value, each line by itself.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.iter().filter_map(|line| {
            let name = line.split('=').next()?.trim().trim_start_matches("export ").trim();
            Some((name, value_of(line, name)?))
        })
    }

    /// The whole file.
    pub(super) fn text(&self) -> String {
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
    use proptest::prelude::*;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text)
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
        env.remove(TOKEN_VARIABLE);
        assert_eq!(env.text(), "# mine\nOPENAI_API_KEY=\"x y\"\nEMPTY=\n");
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

    proptest! {
        #[test]
        fn what_is_set_is_read_again_and_no_other_line_changes(
            lines in proptest::collection::vec("[A-Z]{1,3} ?= ?[^\\n\\r]{0,20}|(export )?[KL]=['\"`a#]{0,8}|[^\\n\\r]{0,30}", 0..8),
            value in "[^']{1,40}",
        ) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let mut env = EnvFile::parse(&text);
            prop_assert_eq!(env.text(), text);
            let others: Vec<_> = lines.iter().filter(|line| value_of(line, "K").is_none()).cloned().collect();
            prop_assert!(env.variables().all(|(name, _)| !name.contains('=')));
            let secret = Secret::new(value.clone());
            if env.set("K", &secret).is_err() {
                prop_assert!(value.contains(char::is_control));
                return Ok(());
            }
            let written = EnvFile::parse(&env.text());
            prop_assert_eq!(written.get("K"), Some(secret));
            let left: Vec<_> = written.lines.iter().filter(|line| value_of(line, "K").is_none()).cloned().collect();
            prop_assert_eq!(left, others);
        }
    }
}
