//! Google's Secret Manager, read with the VM's own service account. Another API of Google's is asked in the same way
//! ([`ask`]), and refuses in the same words.

mod answer;
mod remedy;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow};
use futures_util::future::join_all;
use reqwest::{RequestBuilder, StatusCode};
use tokio::time::Instant;

use crate::config::SecretVersion;
use crate::error::{Classify as _, Code, Diagnosis, RUN_AGAIN, one_line};
use crate::http::{self, Limit};
use crate::metadata::{self, ServiceAccount};
use crate::secret::Secret;
use remedy::remedy;

pub(crate) use answer::{Outcome, Reason, Refusal, failure};
pub(crate) use remedy::{Vm, add_version, enable_api};

/// One request. A secret has at most 64 KiB, a third more in base64.
const LIMIT: Limit = Limit { time: Duration::from_secs(10), bytes: 128 << 10 };

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// How long a secret is asked for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How long one is asked for that may not be read: a new permission is known everywhere after a minute or two, and a VM
/// is often made in the same breath.
const GRANT_DEADLINE: Duration = Duration::from_secs(150);

/// The same where there is a value to go on with: a boot without network shall not be a slow one.
pub(crate) const FALLBACK_DEADLINE: Duration = Duration::from_secs(15);

/// How long the metadata server has to tell whom a remedy is about.
const VM_DEADLINE: Duration = Duration::from_secs(5);

/// A secret to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) secret: &'a SecretVersion,
    /// There is a value to go on with.
    pub(crate) has_fallback: bool,
}

/// The values by secret; an inner error is a Secret Manager that cannot be reached.
pub(crate) type Read<'a> = BTreeMap<&'a SecretVersion, Result<Secret>>;

/// Reads all of them at once. [`Code::SecretDenied`] names every one that cannot be read, and what to do about it.
pub(crate) async fn read<'a>(metadata: &metadata::Client, wanted: &[Wanted<'a>]) -> Result<Read<'a>> {
    let token = match metadata.access_token().await {
        Ok(Some(token)) => token,
        Ok(None) => {
            let secrets: Vec<_> = wanted.iter().map(|wanted| wanted.secret.to_string()).collect();
            return Err(anyhow!("this VM has no service account with which to read {}", secrets.join(", ")))
                .classify(Code::SecretDenied, sentence(&[vm(metadata).await.give_account()]));
        }
        Err(error) => {
            let reason = one_line(&error.context("asking for an access token"));
            return Ok(wanted.iter().map(|wanted| (wanted.secret, Err(anyhow!(reason.clone())))).collect());
        }
    };
    let client = http::internet_client().await?;
    let reads = wanted.iter().map(async |Wanted { secret, has_fallback }| {
        let deadline = if *has_fallback { FALLBACK_DEADLINE } else { DEADLINE };
        let request = client.get(url(secret)).bearer_auth(token.expose());
        (*secret, ask(&request, answer::read, deadline).await)
    });
    let (mut read, mut refused) = (Read::new(), Vec::new());
    for (secret, outcome) in join_all(reads).await {
        match outcome {
            Outcome::Value(value) => drop(read.insert(secret, Ok(value))),
            Outcome::Again(why) => drop(read.insert(secret, Err(why))),
            Outcome::Refused(refusal) => refused.push((secret, refusal)),
        }
    }
    if refused.is_empty() { Ok(read) } else { Err(denied(metadata, refused).await) }
}

/// Global secrets and those of a region have hosts of their own (docs.cloud.google.com/secret-manager/docs/endpoints).
fn url(secret: &SecretVersion) -> String {
    match &secret.location {
        Some(location) => format!("https://secretmanager.{location}.rep.googleapis.com/v1/{secret}:access"),
        None => format!("https://secretmanager.googleapis.com/v1/{secret}:access"),
    }
}

/// Asks until there is an answer that another request would not change, or the deadline is there. A refusal that may
/// pass is waited for when the deadline is longer than [`FALLBACK_DEADLINE`].
pub(crate) async fn ask(
    request: &RequestBuilder,
    read: fn(StatusCode, &[u8]) -> Outcome,
    deadline: Duration,
) -> Outcome {
    let (started, mut failures) = (Instant::now(), 0);
    loop {
        let left = deadline.saturating_sub(started.elapsed()).max(FIRST_BACKOFF);
        let limit = Limit { time: LIMIT.time.min(left), ..LIMIT };
        let outcome = attempt(request, read, limit).await.unwrap_or_else(Outcome::Again);
        let until = match &outcome {
            Outcome::Again(_) => deadline,
            Outcome::Refused(refusal) if refusal.may_pass() && deadline > FALLBACK_DEADLINE => GRANT_DEADLINE,
            Outcome::Refused(_) | Outcome::Value(_) => return outcome,
        };
        let pause = http::backoff(FIRST_BACKOFF, failures, MAX_BACKOFF);
        failures += 1;
        if started.elapsed() + pause >= until {
            let tries = format!("no value after {failures} tries in {} s", started.elapsed().as_secs());
            return match outcome {
                Outcome::Again(why) => Outcome::Again(why.context(tries)),
                refused => refused,
            };
        }
        tracing::debug!("{outcome:?}; next in {pause:?}");
        tokio::time::sleep(pause).await;
    }
}

async fn attempt(request: &RequestBuilder, read: fn(StatusCode, &[u8]) -> Outcome, limit: Limit) -> Result<Outcome> {
    let request = request.try_clone().context("a request that cannot be sent twice")?;
    let answer = http::send(request, limit).await?;
    let status = answer.status();
    Ok(read(status, &answer.body().await?))
}

async fn denied(metadata: &metadata::Client, refused: Vec<(&SecretVersion, Refusal)>) -> Error {
    let vm = vm(metadata).await;
    let (mut what, mut remedies) = (Vec::new(), Vec::new());
    for (secret, Refusal { reason, words }) in refused {
        // Not every refusal says that it is about the scopes.
        let reason = if reason == Reason::Permission && vm.lacks_scope { Reason::Scope } else { reason };
        what.push(format!("reading {secret}: {words}"));
        let remedy = remedy(&reason, secret, &vm);
        if !remedies.contains(&remedy) {
            remedies.push(remedy);
        }
    }
    anyhow!(what.join("; ")).context(Diagnosis { code: Code::SecretDenied, remedy: sentence(&remedies) })
}

pub(crate) fn sentence(remedies: &[String]) -> String {
    format!("{} Then run `{RUN_AGAIN}`.", remedies.join(" "))
}

/// Whom a remedy is about; what cannot be told has its name in capitals.
pub(crate) async fn vm(metadata: &metadata::Client) -> Vm {
    let instance = metadata.instance(VM_DEADLINE).await.ok();
    let account = metadata.service_account().await.ok().flatten();
    let lacks_scope = account.as_ref().is_some_and(ServiceAccount::lacks_cloud_platform);
    let known =
        |value: Option<String>, name: &str| value.filter(|it| !it.is_empty()).unwrap_or_else(|| name.to_owned());
    Vm {
        account: known(account.map(|account| account.email), "ACCOUNT"),
        project: known(instance.as_ref().map(|it| it.project_id.clone()), "PROJECT"),
        zone: known(instance.as_ref().map(|it| it.zone.clone()), "ZONE"),
        name: known(instance.map(|it| it.name), "VM"),
        lacks_scope,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// Gives the first client the first answer, and so on; then it is silent for ever.
    fn serve(answers: Vec<String>) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/v1/projects/p/secrets/s/versions/1:access", listener.local_addr()?);
        std::thread::spawn(move || {
            let mut open = Vec::new();
            let mut answers = answers.into_iter();
            for mut peer in listener.incoming().flatten() {
                let (mut request, answer) = ([0; 4096], answers.next());
                let length = peer.read(&mut request).unwrap_or_default();
                let request = String::from_utf8_lossy(&request[..length]).to_ascii_lowercase();
                let is_ours = request.starts_with("get /v1/projects/p/secrets/s/versions/1:access http/1.1")
                    && request.contains("authorization: bearer token");
                match answer {
                    Some(answer) if is_ours => drop(peer.write_all(answer.as_bytes())),
                    _ => open.push(peer),
                }
            }
        });
        Ok(url)
    }

    fn reply(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn what_passes_is_asked_again_and_what_stays_is_not() -> Result<()> {
        let good = reply("200 OK", r#"{"payload":{"data":"aHVudGVyMg==","dataCrc32c":"1736498283"}}"#);
        let busy = || reply("503 Service Unavailable", "busy");
        let gone = || reply("404 Not Found", r#"{"error":{"message":"Secret [s] not found."}}"#);
        let wrong = reply("200 OK", r#"{"payload":{"data":"aHVudGVyMg==","dataCrc32c":"1"}}"#);
        let large = reply("200 OK", &"x".repeat(200 << 10));
        let cases: [(Vec<String>, &str); 6] = [
            (vec![good.clone()], "Value"),
            (vec![busy(), good.clone()], "Value"),
            (vec![wrong.clone(), good.clone()], "Value"),
            (vec![gone(), good], "Refused"),
            (vec![busy(), gone()], "Refused"),
            (vec![large; 2], "the answer is larger than"),
        ];
        let (client, token) = (http::internet_client().await?, Secret::new("token"));
        for (answers, expected) in cases {
            let url = serve(answers)?;
            let request = client.get(url).bearer_auth(token.expose());
            let outcome = format!("{:?}", ask(&request, answer::read, Duration::from_secs(2)).await);
            assert!(outcome.contains(expected) && !outcome.contains("hunter2"), "{expected}: {outcome}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn silence_costs_no_more_than_the_deadline() -> Result<()> {
        let (request, started) = (http::internet_client().await?.get(serve(Vec::new())?), Instant::now());
        let outcome = ask(&request, answer::read, Duration::from_secs(2)).await;
        assert!(matches!(outcome, Outcome::Again(_)), "{outcome:?}");
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        Ok(())
    }

    #[test]
    fn a_regional_secret_has_its_regions_host() {
        for (name, expected) in [
            ("projects/p/secrets/s", "secretmanager.googleapis.com/v1/projects/p/secrets/s/versions/latest:access"),
            (
                "projects/p/locations/europe-west1/secrets/s/versions/2",
                "secretmanager.europe-west1.rep.googleapis.com/v1/projects/p/locations/europe-west1/secrets/s/versions/2:access",
            ),
        ] {
            assert_eq!(name.parse().map(|secret| url(&secret)), Ok(format!("https://{expected}")));
        }
    }
}
