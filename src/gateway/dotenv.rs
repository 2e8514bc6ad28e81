//! `.env` in the state directory: the one place of secrets at rest. The gateway loads it, and `docker inspect` does not
//! show it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, anyhow};

use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::secret::{Secret, is_secret};

/// The file's name.
pub(super) const FILE: &str = ".env";

/// The variable of the gateway's token.
pub(super) const TOKEN_VARIABLE: &str = "OPENCLAW_GATEWAY_TOKEN";

/// The variable in which the token is kept while the gateway's mode of authentication takes none.
pub(super) const KEPT_TOKEN_VARIABLE: &str = "OPENCLAW_INIT_KEPT_TOKEN";

/// The variable of the password, by which the gateway's own commands come in where a proxy says who users are.
pub(super) const PASSWORD_VARIABLE: &str = "OPENCLAW_GATEWAY_PASSWORD";

/// The end of the line in which the token is that password.
const LENT: &str = " # the token, lent by openclaw-init";

/// The variable that unlocks `gog`'s keyring; a new one would make the stored logins unreadable.
pub(super) const KEYRING_VARIABLE: &str = "GOG_KEYRING_PASSWORD";

/// The end of a line that this program wrote for an attribute, and removes with it. The last line of a name counts: a
/// line of the user's above it stays, and counts again without the attribute.
const OURS: &str = " # openclaw-init";

/// More secrets than anybody has: each costs a pass over every message.
const SECRETS_LIMIT: usize = 1000;

/// What a file may have: each line costs memory beside its text, and the watcher reads the file once a minute.
pub(super) const BYTES_LIMIT: usize = 1 << 20;
const LINES_LIMIT: usize = 10_000;

/// The lines of a `.env` file, as the `dotenv` package of npm reads them.
pub(super) struct EnvFile {
    lines: Vec<String>,
}

/// `text`, unless it has more than such a file may.
pub(super) fn limited(text: String) -> Result<String> {
    let lines = text.bytes().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
    if text.len() > BYTES_LIMIT || lines > LINES_LIMIT {
        let limits = format!("{LINES_LIMIT} lines and {BYTES_LIMIT} bytes");
        return Err(anyhow!("{FILE} in the state directory has more than {limits}"))
            .classify(Code::GatewayRefused, format!("Remove what does not belong there, then run `{RUN_AGAIN}`."));
    }
    Ok(text)
}

impl EnvFile {
    /// A carriage return ends a line, alone or before a line feed.
    pub(super) fn parse(text: &str) -> Self {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        Self { lines: text.lines().map(str::to_owned).collect() }
    }

    /// The value of `key`, from its last line; `None` also for an empty one.
    pub(super) fn get(&self, key: &str) -> Option<Secret> {
        let value = self.lines.iter().rev().find_map(|line| value_of(line, key))?;
        if value.is_empty() { None } else { Some(Secret::new(value)) }
    }

    /// The value of `key` in the line that was written for an attribute.
    pub(super) fn ours(&self, key: &str) -> Option<Secret> {
        self.lines.iter().filter(|line| line.ends_with(OURS)).find_map(|line| value_of(line, key)).map(Secret::new)
    }

    /// Makes the lines for attributes these, each the last of its name; every other line stays as it is, and so does
    /// one whose name is `referred` to.
    pub(super) fn set_ours(&mut self, values: &BTreeMap<String, Secret>, referred: &HashSet<String>) -> Result<()> {
        self.keep_ours(|name| values.contains_key(name) || referred.contains(name));
        for (name, value) in values {
            let line = format!("{name}={}{OURS}", quoted(value.expose()).map_err(|what| anyhow!("{name} {what}"))?);
            let last = self.lines.iter().rev().find(|line| value_of(line, name).is_some());
            if last != Some(&line) {
                self.lines.retain(|line| !is_ours(line, name));
                self.lines.push(line);
            }
        }
        Ok(())
    }

    /// Leaves of the lines for attributes only those whose names are kept.
    pub(super) fn keep_ours(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.lines.retain(|line| !(line.ends_with(OURS) && line.contains('=')) || is_kept(name_of(line)));
    }

    fn our_lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str).filter(|line| line.ends_with(OURS))
    }

    /// The values that are secret: those in lines for attributes, and those whose names say so.
    pub(super) fn secrets(&self) -> Vec<Secret> {
        let ours = self.our_lines().filter_map(|line| value_of(line, name_of(line)));
        let named = self.variables().filter(|(name, value)| is_secret(name, value)).map(|(_, value)| value);
        ours.chain(named).take(SECRETS_LIMIT).map(Secret::new).collect()
    }

    /// Makes `key` have `value`, in one line; every other line stays as it is.
    pub(super) fn set(&mut self, key: &str, value: &Secret) -> Result<()> {
        if self.get(key).as_ref() == Some(value) {
            return Ok(());
        }
        let quoted = quoted(value.expose()).map_err(|what| anyhow!("the value of {key} {what}"));
        let remedy = "Set openclaw-gateway-token to a token of letters and digits.";
        let line = format!("{key}={}", quoted.classify(Code::ConfigInvalid, remedy)?);
        self.lines.retain(|line| value_of(line, key).is_none());
        self.lines.push(line);
        Ok(())
    }

    /// Makes it hold the token under the name that the gateway reads, or, where its mode of authentication takes none,
    /// under another.
    pub(super) fn set_token(&mut self, token: &Secret, is_taken: bool) -> Result<()> {
        let names = [TOKEN_VARIABLE, KEPT_TOKEN_VARIABLE];
        let [name, other] = if is_taken { names } else { [names[1], names[0]] };
        self.set(name, token)?;
        self.remove(other);
        self.lend(token, !is_taken)
    }

    /// Makes the token the password as well, unless there is one, or takes that back.
    fn lend(&mut self, token: &Secret, is_lent: bool) -> Result<()> {
        let value = quoted(token.expose()).map_err(|what| anyhow!("the token {what}"))?;
        let lent = format!("{PASSWORD_VARIABLE}={value}{LENT}");
        let is_free = |line: &String| line.ends_with(LENT) || value_of(line, PASSWORD_VARIABLE).is_none();
        let is_lent = is_lent && self.lines.iter().all(is_free);
        self.lines.retain(|line| !line.ends_with(LENT) || is_lent && *line == lent);
        if is_lent && !self.lines.contains(&lent) {
            self.lines.push(lent);
        }
        Ok(())
    }

    /// The token under either name.
    pub(super) fn token(&self) -> Option<Secret> {
        self.get(TOKEN_VARIABLE).or_else(|| self.get(KEPT_TOKEN_VARIABLE))
    }

    /// Leaves no line that sets `key`.
    pub(super) fn remove(&mut self, key: &str) {
        self.lines.retain(|line| value_of(line, key).is_none());
    }

    /// Every name with its value, each line by itself.
    fn variables(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.lines.iter().filter_map(|line| {
            let name = name_of(line);
            Some((name, value_of(line, name)?))
        })
    }

    /// The whole file.
    pub(super) fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn name_of(line: &str) -> &str {
    let name = line.split('=').next().unwrap_or_default().trim();
    name.strip_prefix("export ").unwrap_or(name).trim()
}

fn is_ours(line: &str, key: &str) -> bool {
    line.ends_with(OURS) && value_of(line, key).is_some()
}

fn value_of<'a>(line: &'a str, key: &str) -> Option<Cow<'a, str>> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let value = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
    for quote in ['"', '\'', '`'] {
        if let Some(rest) = value.strip_prefix(quote)
            && let Some(end) = rest.rfind(quote)
        {
            let value = &rest[..end];
            let has_escapes = quote == '"' && value.contains('\\');
            return Some(if has_escapes {
                value.replace("\\n", "\n").replace("\\r", "\r").into()
            } else {
                value.into()
            });
        }
    }
    Some(value.split('#').next().unwrap_or_default().trim_end().into())
}

/// As `dotenv` reads it; else what is wrong with it. Only double quotes can hold line breaks, and they hold no
/// backslash that means itself. A backslash before the last quote would hide that one.
pub(super) fn quoted(value: &str) -> Result<String, &'static str> {
    let has_breaks = value.contains('\n');
    let has_control = value.chars().any(|c| c.is_control() && c != '\n');
    let fits = |quote: &char| match quote {
        '"' => !value.contains(['"', '\\']),
        quote => !has_breaks && !value.contains(*quote) && !value.ends_with('\\'),
    };
    if has_control {
        return Err("has a control character");
    }
    if !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_./+=:@%".contains(c)) {
        return Ok(value.to_owned());
    }
    match ['\'', '`', '"'].iter().find(|quote| fits(quote)) {
        Some(quote) => Ok(format!("{quote}{}{quote}", value.replace('\n', "\\n"))),
        None if has_breaks => Err("has line breaks beside quotation marks or backslashes"),
        None => Err("has quotation marks of every kind, or ends with a backslash"),
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
    fn the_token_is_lent_as_the_password_while_no_token_is_taken() {
        let mut env = EnvFile::parse("OPENCLAW_GATEWAY_TOKEN=abc\nA=1\n");
        for token in ["abc", "def"] {
            for _ in 0..2 {
                env.set_token(&secret(token), false).unwrap();
                let text = env.text();
                assert_eq!(env.get(PASSWORD_VARIABLE), Some(secret(token)), "{text}");
                assert!(text.lines().count() == 3 && env.get(TOKEN_VARIABLE).is_none(), "{text}");
            }
        }
        env.set_token(&secret("def"), true).unwrap();
        assert_eq!(env.text(), "A=1\nOPENCLAW_GATEWAY_TOKEN=def\n");
        let mut env = EnvFile::parse("OPENCLAW_GATEWAY_PASSWORD=mine\n");
        for is_taken in [false, true, false] {
            env.set_token(&secret("abc"), is_taken).unwrap();
            assert_eq!((env.get(PASSWORD_VARIABLE), env.text().lines().count()), (Some(secret("mine")), 2));
        }
    }

    #[test]
    fn a_file_without_end_is_refused_before_its_lines_are_kept() {
        for (text, is_taken) in [
            ("A=1\n".repeat(LINES_LIMIT), true),
            ("\n".repeat(LINES_LIMIT + 1), false),
            ("\r".repeat(4 << 20), false),
            ("x".repeat(BYTES_LIMIT + 1), false),
        ] {
            assert_eq!(limited(text.clone()).is_ok(), is_taken, "{} bytes", text.len());
        }
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
        assert!(env.set(TOKEN_VARIABLE, &secret("a\u{1b}b")).is_err());
        env.remove(TOKEN_VARIABLE);
        assert_eq!(env.text(), "# mine\nOPENAI_API_KEY=\"x y\"\nEMPTY=\n");
    }

    #[test]
    fn values_are_read_as_dotenv_does() {
        let cases = [
            ("K=v", Some("v")),
            ("  K = v # comment", Some("v")),
            ("K=\"a # b\" # comment", Some("a # b")),
            ("K=\"a\\nb\"", Some("a\nb")),
            ("K='a\\nb' # openclaw-init", Some("a\\nb")),
            ("KEY=v", None),
            ("# K=v", None),
            ("K", None),
        ];
        for (line, value) in cases {
            assert_eq!(value_of(line, "K").as_deref(), value, "{line}");
        }
    }

    /// Every line was read with `dotenv` 18.0.10 of npm, too.
    #[test]
    fn a_value_is_quoted_so_that_dotenv_reads_it() {
        #[rustfmt::skip]
        let cases = [
            ("plain+/=", Ok("plain+/=")),
            ("it has \"# and `", Ok("'it has \"# and `'")),
            ("it's", Ok("`it's`")),
            ("it's `so`", Ok("\"it's `so`\"")),
            ("-----BEGIN KEY-----\nAb+/=\n-----END KEY-----", Ok("\"-----BEGIN KEY-----\\nAb+/=\\n-----END KEY-----\"")),
            ("{\"a\": 1}", Ok("'{\"a\": 1}'")),
            ("a\\nb", Ok("'a\\nb'")),
            ("$HOME", Ok("'$HOME'")),
            (" spaced ", Ok("' spaced '")),
            ("{\n\"a\": 1}", Err("line breaks")),
            ("a\\\nb", Err("line breaks")),
            ("end\\", Err("backslash")),
            ("'`\"", Err("quotation marks")),
            ("a\0b", Err("control")),
            ("a\r\nb", Err("control")),
        ];
        for (value, expected) in cases {
            match (quoted(value), expected) {
                (Ok(line), Ok(expected)) => {
                    assert_eq!(line, expected);
                    assert_eq!(value_of(&format!("K={line}{OURS}"), "K").as_deref(), Some(value), "{line}");
                }
                (Err(what), Err(word)) => assert!(what.contains(word), "{what}"),
                (found, _) => panic!("{value:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn lines_for_attributes_come_and_go_and_a_users_line_counts_again() {
        let values =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), secret(value))).collect();
        let mut env = EnvFile::parse("A=mine\n# a remark\nB=other\n");
        env.set_ours(&values(&[("A", "one"), ("C", "t w o")]), &HashSet::new()).unwrap();
        let both = "A=mine\n# a remark\nB=other\nA=one # openclaw-init\nC='t w o' # openclaw-init\n";
        assert_eq!(env.text(), both);
        assert_eq!((env.get("A"), env.ours("A"), env.ours("B")), (Some(secret("one")), Some(secret("one")), None));
        assert_eq!(env.secrets(), [secret("one"), secret("t w o")]);
        env.set_ours(&values(&[("A", "one"), ("C", "t w o")]), &HashSet::new()).unwrap();
        assert_eq!(env.text(), both, "nothing is to be done");
        let mut env = EnvFile::parse(&format!("{both}A=later\n"));
        env.set_ours(&values(&[("A", "one")]), &HashSet::new()).unwrap();
        assert_eq!(env.text(), "A=mine\n# a remark\nB=other\nA=later\nA=one # openclaw-init\n", "the last one counts");
        let before = env.text();
        env.set_ours(&values(&[]), &HashSet::from(["A".to_owned()])).unwrap();
        assert_eq!(env.text(), before, "openclaw.json refers to it");
        env.set_ours(&values(&[]), &HashSet::new()).unwrap();
        assert_eq!((env.get("A"), env.secrets()), (Some(secret("later")), Vec::new()));
        assert_eq!(EnvFile::parse("A_KEY=\"canary\\n\"\n").secrets(), [secret("canary\n")], "its name says so");
        assert!(
            env.set_ours(&values(&[("A", "\u{7}")]), &HashSet::new())
                .is_err_and(|error| !error.to_string().contains('\u{7}'))
        );
    }

    #[test]
    fn lines_end_as_the_gateway_ends_them() {
        for text in ["A=1\nB=2\n", "A=1\r\nB=2\r\n", "A=1\rB=2\r", "A=1\r\r\nB=2", "A=1\n\rB=2\r\r"] {
            let env = EnvFile::parse(text);
            assert_eq!((env.get("A"), env.get("B")), (Some(secret("1")), Some(secret("2"))), "{text:?}");
            assert_eq!(EnvFile::parse(&env.text()).text(), env.text(), "{text:?}");
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
                prop_assert!(quoted(&value).is_err());
                return Ok(());
            }
            let written = EnvFile::parse(&env.text());
            prop_assert_eq!(written.get("K"), Some(secret));
            let left: Vec<_> = written.lines.iter().filter(|line| value_of(line, "K").is_none()).cloned().collect();
            prop_assert_eq!(left, others);
        }
    }
}
