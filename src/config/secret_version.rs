//! The names that secrets have in Google's Secret Manager.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::secret::Secret;
use crate::text::hex;

/// What stands before the name of a secret where a literal value could stand, too.
const PREFIX: &str = "secret:";

const LATEST: &str = "latest";

/// The longest part of a secret's own name in the name of a variable.
const NAME_CHARS: usize = 40;

/// One version of a secret in Secret Manager.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretVersion {
    /// Id or number.
    pub project: String,
    /// Of a regional secret; `None` for one that Google replicates.
    pub location: Option<String>,
    /// The secret's own name.
    pub secret: String,
    /// A number, an alias, or `latest`.
    pub version: String,
}

/// `openclaw-gateway-token`: where the token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// It is the attribute's value.
    Literal(Secret),
    /// From Secret Manager.
    Named(SecretVersion),
}

impl SecretVersion {
    /// The secret in a value that may also be a literal: `None` unless the value begins with `secret:`.
    pub(super) fn in_value(value: &str) -> Option<Result<Self, String>> {
        value.strip_prefix(PREFIX).map(str::parse)
    }

    /// A value that can only be a secret's name, `secret:` before it or not.
    pub(super) fn named(value: &str) -> Result<Self, String> {
        value.strip_prefix(PREFIX).unwrap_or(value).parse()
    }

    /// For a `secret:…` inside of another setting, such as a value in a JSON document: the secret, and the variable
    /// that holds it once both are in [`GatewayConfig::secrets`](super::GatewayConfig::secrets). The same secret has
    /// always the same variable, another one another. `None` for any other value.
    pub fn referenced(value: &str) -> Option<Result<(String, Self), String>> {
        Self::in_value(value).map(|checked| checked.map(|secret| (secret.variable(), secret)))
    }

    /// A name that `OpenClaw` accepts in a reference (`[A-Z][A-Z0-9_]{0,127}`), and people recognise.
    fn variable(&self) -> String {
        let is_kept = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = self.secret.chars().take(NAME_CHARS).map(is_kept).collect();
        let digest = hex(Sha256::digest(self.to_string())).to_ascii_uppercase();
        format!("SECRET_{name}_{}", &digest[..8])
    }
}

impl fmt::Display for SecretVersion {
    /// The resource's name, as Google's API and `gcloud` know it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { project, location, secret, version } = self;
        write!(out, "projects/{project}")?;
        if let Some(location) = location {
            write!(out, "/locations/{location}")?;
        }
        write!(out, "/secrets/{secret}/versions/{version}")
    }
}

impl FromStr for SecretVersion {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let parts: Vec<&str> = name.split('/').collect();
        let (project, location, secret, version) = match parts[..] {
            ["projects", project, "secrets", secret] => (project, None, secret, LATEST),
            ["projects", project, "secrets", secret, "versions", version] => (project, None, secret, version),
            ["projects", project, "locations", location, "secrets", secret] => {
                (project, Some(location), secret, LATEST)
            }
            ["projects", project, "locations", location, "secrets", secret, "versions", version] => {
                (project, Some(location), secret, version)
            }
            _ => return Err(allowed()),
        };
        let is_good = is_word(project, ".:-", 64)
            && location.is_none_or(|location| is_word(location, "-", 64))
            && is_word(secret, "_-", 255)
            && is_word(version, "_-", 63);
        let own = |part: &str| part.to_owned();
        let new =
            || Self { project: own(project), location: location.map(own), secret: own(secret), version: own(version) };
        is_good.then(new).ok_or_else(allowed)
    }
}

/// Letters, digits and these others, with a letter or digit first: no more is needed, and a shell reads it as one word.
fn is_word(part: &str, others: &str, longest: usize) -> bool {
    part.len() <= longest
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn allowed() -> String {
    "must name a secret: projects/PROJECT/secrets/SECRET, or projects/PROJECT/locations/LOCATION/secrets/SECRET for a \
     regional one, and after it /versions/VERSION unless the latest is wanted"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_one_name_however_it_is_written() {
        let (long, longer) = ("s".repeat(255), "s".repeat(256));
        let (long, longer) = (format!("projects/p/secrets/{long}"), format!("projects/p/secrets/{longer}"));
        let latest = format!("{long}/versions/latest");
        #[rustfmt::skip]
        let cases = [
            ("projects/p/secrets/s", Some("projects/p/secrets/s/versions/latest")),
            ("projects/p/secrets/s/versions/7", Some("projects/p/secrets/s/versions/7")),
            ("projects/708288290784/secrets/a_B-1/versions/live", Some("projects/708288290784/secrets/a_B-1/versions/live")),
            ("projects/example.com:p/secrets/s", Some("projects/example.com:p/secrets/s/versions/latest")),
            ("projects/p/locations/europe-west1/secrets/s", Some("projects/p/locations/europe-west1/secrets/s/versions/latest")),
            ("projects/p/locations/l/secrets/s/versions/2", Some("projects/p/locations/l/secrets/s/versions/2")),
            (&long, Some(latest.as_str())),
            (&longer, None),
            ("", None),
            ("s", None),
            ("projects/p", None),
            ("projects//secrets/s", None),
            ("projects/p/secrets/", None),
            ("projects/p/secrets/s/versions", None),
            ("projects/p/secrets/s/versions/", None),
            ("projects/p/secrets/s/versions/1/", None),
            ("projects/p/secrets/s/versions/1:access", None),
            ("/projects/p/secrets/s", None),
            ("projects/p/secrets/s t", None),
            ("projects/p/secrets/$(id)", None),
            ("projects/p/secrets/..", None),
            ("projects/-p/secrets/s", None),
            ("projects/p/secrets/s?alt=media", None),
            ("projects/p/secrets/s\n", None),
        ];
        for (name, expected) in cases {
            let parsed = SecretVersion::named(name);
            assert_eq!(parsed.as_ref().map(ToString::to_string).ok().as_deref(), expected, "{name}");
            assert_eq!(SecretVersion::named(&format!("secret:{name}")), parsed);
            assert_eq!(SecretVersion::in_value(&format!("secret:{name}")), Some(parsed));
            assert_eq!(SecretVersion::in_value(name), None, "{name}");
        }
    }

    #[test]
    fn a_reference_inside_of_a_value_has_a_variable_of_its_own() {
        let variable = |value: &str| SecretVersion::referenced(value)?.ok().map(|(variable, _)| variable);
        let bot = variable("secret:projects/p/secrets/telegram-bot");
        assert_eq!(bot.as_deref(), Some("SECRET_TELEGRAM_BOT_D0F3ED64"));
        assert_eq!(bot, variable("secret:projects/p/secrets/telegram-bot/versions/latest"), "the same secret");
        for other in [
            "secret:projects/p/secrets/telegram-bot/versions/1",
            "secret:projects/p/secrets/telegram_bot",
            "secret:projects/q/secrets/telegram-bot",
            "secret:projects/p/locations/l/secrets/telegram-bot",
        ] {
            assert!(variable(other).is_some() && variable(other) != bot, "{other}");
        }
        let long = variable(&format!("secret:projects/p/secrets/{}", "x".repeat(255)));
        assert_eq!(long.map(|variable| variable.len()), Some("SECRET_".len() + NAME_CHARS + "_00000000".len()));
        assert_eq!(SecretVersion::referenced("projects/p/secrets/s"), None);
        assert!(SecretVersion::referenced("secret:s").is_some_and(|checked| checked.is_err()));
    }
}
