//! A value that must not be seen.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// A secret: readable only through [`Secret::expose`]; `Debug` and logs show a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes hold of a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret([redacted])")
    }
}

/// What the name of a variable has in it whose value is a secret.
const SECRET_NAMES: [&str; 6] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"];

/// A shorter value is a number or a word that would be missed everywhere.
const SHORTEST_BYTES: usize = 6;

/// The secrets in the value of a variable, one per line: none, unless its name says that it is secret.
fn secrets_of<'a>(name: &str, value: &'a str) -> impl Iterator<Item = &'a str> {
    let name = name.to_ascii_uppercase();
    lines(if SECRET_NAMES.iter().any(|word| name.contains(word)) { value } else { "" })
}

/// A secret as it may be repeated: a line of it at a time.
fn lines(secret: &str) -> impl Iterator<Item = &str> {
    secret.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_BYTES)
}

/// Whether the variable holds a secret, as far as its name says.
pub fn is_secret(name: &str, value: &str) -> bool {
    secrets_of(name, value).next().is_some()
}

/// The secrets that must not be in any text that leaves the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redaction(Vec<Secret>);

impl Redaction {
    /// Of the variables whose name says that they are secret. A value of several lines is one secret per line.
    pub fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let secrets = variables.into_iter().flat_map(|(name, value)| secrets_of(name, value));
        Self(secrets.map(Secret::new).collect()).sorted()
    }

    /// One may be the beginning of another.
    fn sorted(mut self) -> Self {
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.0.len()));
        self
    }

    /// These, too, whatever the names of their variables say.
    #[must_use]
    pub fn and<'a>(mut self, secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        self.0.extend(secrets.into_iter().flat_map(|secret| lines(secret.expose())).map(Secret::new));
        self.sorted()
    }

    /// `text` with every occurrence of a secret replaced, also as a string of JSON has it.
    pub fn redact(&self, text: &str) -> String {
        let replaced = |text: String, secret: &str| text.replace(secret, "[redacted]");
        self.0.iter().fold(text.to_owned(), |text, Secret(secret)| {
            let text = replaced(text, secret);
            let escaped = serde_json::to_string(secret).unwrap_or_default();
            let escaped = escaped.trim_start_matches('"').strip_suffix('"').unwrap_or_default();
            if escaped.is_empty() || escaped == secret { text } else { replaced(text, escaped) }
        })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_a_secret_is_redacted_wherever_it_stands() {
        let variables = [
            ("OPENCLAW_GATEWAY_TOKEN", "canary-1"),
            ("openai_api_key", "canary-1-longer"),
            ("GOG_KEYRING_PASSWORD", "canary 2"),
            ("PEM_SECRET", "-----BEGIN\ncanary-3\n"),
            ("TZ", "Europe/Berlin"),
            ("MAX_TOKENS", "4096"),
        ];
        let text = "a=canary-1-longer b=canary-1 'canary 2' canary-3 Europe/Berlin 4096";
        let expected = "a=[redacted] b=[redacted] '[redacted]' [redacted] Europe/Berlin 4096";
        assert_eq!(Redaction::of(variables).redact(text), expected);
        assert_eq!(Redaction::default().redact(text), text);
        let more = [Secret::new("Europe/Berlin"), Secret::new("canary-1-longer b"), Secret::new("a=")];
        let expected = "a=[redacted]=[redacted] '[redacted]' [redacted] [redacted] 4096";
        assert_eq!(Redaction::of(variables).and(&more).redact(text), expected);
        let odd = Redaction::default().and(&[Secret::new("can\"ary\\9"), Secret::new("\"\"\"\"\"\"\"\"")]);
        assert_eq!(odd.redact(r#"can"ary\9 {"a":"can\"ary\\9"}"#), r#"[redacted] {"a":"[redacted]"}"#);
    }
}
