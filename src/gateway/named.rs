//! The secrets that attributes name, as values: from Secret Manager, else the last good ones in `.env`.

use std::collections::BTreeMap;

use anyhow::{Error, Result, anyhow};
use sha2::{Digest as _, Sha256};

use super::dotenv::{EnvFile, TOKEN_VARIABLE, quoted};
use crate::config::{GatewayConfig, SecretVersion, TokenSource, check_token};
use crate::error::{Classify as _, Code, Diagnosis, RUN_AGAIN, what};
use crate::host::Host;
use crate::metadata::Client;
use crate::secret::Secret;
use crate::secret_manager::{self, Read, Wanted, add_version};
use crate::text::hex;

/// What is set by attributes, whether they have a value or name one.
#[derive(Debug, Default)]
pub(super) struct Configured {
    pub(super) token: Option<Secret>,
    pub(super) variables: BTreeMap<String, Secret>,
}

impl Configured {
    /// Of all of it: other values have another.
    pub(super) fn digest(&self) -> String {
        let token = self.token.iter().map(|token| (TOKEN_VARIABLE, token));
        let variables = self.variables.iter().map(|(name, value)| (name.as_str(), value));
        let mut digest = Sha256::new();
        for (name, value) in token.chain(variables) {
            digest.update(format!("{name}={}\0", value.expose()));
        }
        hex(digest.finalize())
    }
}

/// A variable whose value an attribute names.
struct Named<'a> {
    variable: &'a str,
    secret: &'a SecretVersion,
    /// The last good value.
    former: Option<Secret>,
}

/// The values for `config`; nobody is asked unless it names a secret.
///
/// [`Code::SecretDenied`]: one cannot be read or used. [`Code::SecretUnreachable`]: nobody answers, and `env` has no
/// former value of it.
pub(super) async fn resolve(
    host: &Host,
    metadata: &Client,
    config: &GatewayConfig,
    env: &EnvFile,
) -> Result<Configured> {
    let named = named(config, env);
    let literal = match &config.token {
        Some(TokenSource::Literal(token)) => Some(token.clone()),
        Some(TokenSource::Named(_)) | None => None,
    };
    if named.is_empty() {
        return Ok(Configured { token: literal, variables: BTreeMap::new() });
    }
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    for Named { secret, former, .. } in &named {
        let has_fallback = former.is_some();
        match wanted.iter_mut().find(|it| it.secret == *secret) {
            Some(same) => same.has_fallback &= has_fallback,
            None => wanted.push(Wanted { secret, has_fallback }),
        }
    }
    let read = secret_manager::read(metadata, &wanted).await?;
    let mut configured = Configured { token: literal, variables: BTreeMap::new() };
    for named in &named {
        let value = value(host, named, &read)?;
        if named.variable == TOKEN_VARIABLE {
            configured.token = Some(value);
        } else {
            configured.variables.insert(named.variable.to_owned(), value);
        }
    }
    Ok(configured)
}

fn named<'a>(config: &'a GatewayConfig, env: &EnvFile) -> Vec<Named<'a>> {
    let token = match &config.token {
        Some(TokenSource::Named(secret)) => Some(Named { variable: TOKEN_VARIABLE, secret, former: env.token() }),
        Some(TokenSource::Literal(_)) | None => None,
    };
    let variables = config.secrets.iter();
    token
        .into_iter()
        .chain(variables.map(|(name, secret)| Named { variable: name, secret, former: env.ours(name) }))
        .collect()
}

fn value(host: &Host, named: &Named<'_>, read: &Read<'_>) -> Result<Secret> {
    let Named { variable, secret, former } = named;
    match (read.get(secret), former) {
        (Some(Ok(value)), _) => usable(variable, value)
            .map_err(|what| anyhow!("the value of {secret} cannot be {variable}: it {what}"))
            .classify(Code::SecretDenied, format!("Add another: {}. Then run `{RUN_AGAIN}`.", add_version(secret))),
        (Some(Err(why)), Some(former)) => {
            host.warn(format!("{variable} stays as it is, {secret} could not be read: {}", what(why)));
            Ok(former.clone())
        }
        (Some(Err(why)), None) => Err(unreachable(&what(why), secret)),
        (None, _) => Err(unreachable("it was not asked for", secret)),
    }
}

fn unreachable(why: &str, secret: &SecretVersion) -> Error {
    let remedy = format!(
        "Let the VM reach https://secretmanager.googleapis.com (an external address, Cloud NAT or Private Google Access), \
         then run `{RUN_AGAIN}`."
    );
    anyhow!("reading {secret}: {why}").context(Diagnosis { code: Code::SecretUnreachable, remedy })
}

/// The value without the line breaks at its end, which `echo` and editors add; else what is wrong with it.
fn usable(variable: &str, value: &Secret) -> Result<Secret, String> {
    let value = value.expose().trim_end_matches(['\n', '\r']);
    if value.is_empty() {
        return Err("is empty".to_owned());
    }
    if variable == TOKEN_VARIABLE {
        return check_token(value);
    }
    quoted(value).map(|_| Secret::new(value)).map_err(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::{code_of, one_line};

    const NAME: &str = "projects/p/secrets/s/versions/1";

    #[test]
    fn a_value_is_usable_or_named_and_never_shown() {
        let token = "f0".repeat(32);
        let large = "x".repeat(64 << 10);
        let cases = [
            ("KEY", "hunter2", Ok("hunter2")),
            ("KEY", "hunter2\n", Ok("hunter2")),
            ("KEY", "hunter2\r\n", Ok("hunter2")),
            ("KEY", "-----BEGIN\nhunter2\n-----END\n", Ok("-----BEGIN\nhunter2\n-----END")),
            ("KEY", " hunter2 ", Ok(" hunter2 ")),
            ("KEY", &large, Ok(large.as_str())),
            ("KEY", "", Err("is empty")),
            ("KEY", "\n", Err("is empty")),
            ("KEY", "hunter2\0", Err("control character")),
            ("KEY", "hunter2'`\"", Err("quotation marks")),
            (TOKEN_VARIABLE, &format!("{token}\n"), Ok(token.as_str())),
            (TOKEN_VARIABLE, "hunter2", Err("printable ASCII")),
            (TOKEN_VARIABLE, "change-me", Err("placeholder")),
        ];
        let secret: SecretVersion = NAME.parse().unwrap();
        let (root, named) =
            (tempfile::tempdir().unwrap(), |variable| Named { variable, secret: &secret, former: None });
        let host = Host::new(root.path());
        for (variable, text, expected) in cases {
            let read = Read::from([(&secret, Ok(Secret::new(text)))]);
            match (value(&host, &named(variable), &read), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.expose(), expected),
                (Err(error), Err(words)) => {
                    let said = one_line(&error);
                    assert_eq!(code_of(&error), Code::SecretDenied, "{said}");
                    assert!(said.contains(words) && said.contains(NAME) && said.contains("versions add s"), "{said}");
                    assert!(!said.contains("hunter2"), "{said}");
                }
                (found, _) => panic!("{variable} {text:.20}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_former_value_is_gone_on_with_and_without_one_the_run_may_be_tried_again() {
        let secret: SecretVersion = NAME.parse().unwrap();
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        let read = Read::from([(&secret, Err(anyhow!("no route to host")))]);
        let named = |former| Named { variable: "KEY", secret: &secret, former };
        let kept = value(&host, &named(Some(Secret::new("former"))), &read).unwrap();
        assert_eq!(kept.expose(), "former");
        let warnings = host.ledger().borrow().warnings.clone();
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        let said = format!("{warning:?}");
        assert!(said.contains("KEY stays as it is") && said.contains(NAME) && said.contains("no route"), "{said}");
        let error = value(&host, &named(None), &read).unwrap_err();
        assert_eq!(code_of(&error), Code::SecretUnreachable);
        assert!(!Code::SecretUnreachable.is_permanent() && one_line(&error).contains("Cloud NAT"));
    }
}
