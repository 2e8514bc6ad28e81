//! Tokens of the named account, made by Google's IAM for the VM's own
//! (cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Error, Result, anyhow};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::runtime::Handle;

use crate::error::{Code, Diagnosis, one_line};
use crate::http;
use crate::metadata::Client;
use crate::secret::Secret;
use crate::secret_manager::{self, FALLBACK_DEADLINE, Outcome, Reason, Refusal, Vm, enable_api, failure, sentence};

/// What a token may be used for, as far as the account may.
pub(super) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The longest life that needs no policy of its own.
const LIFETIME: Duration = Duration::from_secs(3600);

/// A token that is left so little is not handed out: clients ask for another one less than four minutes before the end.
const SPARE: Duration = Duration::from_secs(300);

/// How long nobody is asked again after a failure.
const FAILURE_INTERVAL: Duration = Duration::from_secs(5);

/// A token of the account.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) value: Secret,
    /// By the clock of the machine, which goes on while that is suspended.
    end: SystemTime,
}

impl Token {
    /// How long it is good; `None` when that is too short, or the clock was set.
    fn left(&self, now: SystemTime) -> Option<Duration> {
        self.end.duration_since(now).ok().filter(|left| (SPARE..=LIFETIME).contains(left))
    }
}

/// Why there is no token, for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// Google refuses it.
    Denied,
    /// Google cannot be reached.
    Unreachable,
}

/// The tokens of one account: one at a time is asked for, and kept while it is good.
#[derive(Debug)]
pub(super) struct Tokens {
    metadata: Client,
    account: String,
    latest: Mutex<Latest>,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Latest {
    token: Option<Token>,
    failure: Option<(Instant, Lack)>,
}

impl Tokens {
    /// On the current runtime, whose threads are not those that ask.
    pub(super) fn new(metadata: Client, account: String) -> Self {
        Self { metadata, account, latest: Mutex::default(), runtime: Handle::current() }
    }

    /// One that is good for some minutes at least, and how long.
    pub(super) fn get(&self) -> Result<(Secret, Duration), Lack> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = &latest.token
            && let Some(left) = token.left(SystemTime::now())
        {
            return Ok((token.value.clone(), left));
        }
        if let Some((at, lack)) = latest.failure
            && at.elapsed() < FAILURE_INTERVAL
        {
            return Err(lack);
        }
        let (lack, why) = match self.runtime.block_on(make(&self.metadata, &self.account, FALLBACK_DEADLINE)) {
            Ok(Ok(token)) => {
                let made = (token.value.clone(), token.end.duration_since(SystemTime::now()).unwrap_or_default());
                *latest = Latest { token: Some(token), failure: None };
                return Ok(made);
            }
            Ok(Err(why)) => (Lack::Unreachable, why),
            Err(refused) => (Lack::Denied, refused),
        };
        tracing::warn!("no token of {}: {}", self.account, one_line(&why));
        latest.failure = Some((Instant::now(), lack));
        Err(lack)
    }
}

/// Asks for a token of `account`. [`Code::SecretDenied`] has the command that grants it; the inner error is a server
/// that cannot be reached.
pub(super) async fn make(metadata: &Client, account: &str, deadline: Duration) -> Result<Result<Token>> {
    let end = SystemTime::now() + LIFETIME;
    let outcome = match metadata.access_token().await {
        Ok(Some(own)) => ask(&own, account, deadline).await?,
        Ok(None) => {
            let words = "this VM has no service account that could".to_owned();
            Outcome::Refused(Refusal { reason: Reason::NoAccount, words })
        }
        Err(error) => Outcome::Again(error.context("asking for the VM's own token")),
    };
    match outcome {
        Outcome::Value(value) => Ok(Ok(Token { value, end })),
        Outcome::Again(why) => Ok(Err(why)),
        Outcome::Refused(refusal) => Err(denied(refusal, account, &secret_manager::vm(metadata).await)),
    }
}

/// With the VM's own token.
async fn ask(own: &Secret, account: &str, deadline: Duration) -> Result<Outcome> {
    let body = format!("{{\"scope\":[\"{SCOPE}\"],\"lifetime\":\"{}s\"}}", LIFETIME.as_secs());
    let url =
        format!("https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{account}:generateAccessToken");
    let request = http::internet_client().await?.post(url).bearer_auth(own.expose());
    let request = request.header("content-type", "application/json").body(body);
    Ok(secret_manager::ask(&request, read, deadline).await)
}

fn read(status: StatusCode, body: &[u8]) -> Outcome {
    if status != StatusCode::OK {
        return failure(status, body);
    }
    // An error of the parser could repeat a part of the token. What cannot stand in JSON as it is, is no token.
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    match answer["accessToken"].as_str() {
        Some(token) if is_token(token) => Outcome::Value(Secret::new(token)),
        _ => Outcome::Again(anyhow!("its answer is no token")),
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

fn denied(Refusal { reason, words }: Refusal, account: &str, vm: &Vm) -> Error {
    // Not every refusal says that it is about the scopes.
    let reason = if reason == Reason::Permission && vm.lacks_scope { Reason::Scope } else { reason };
    let remedy = match reason {
        Reason::Permission => format!(
            "Let the VM's account make tokens of it: `gcloud iam service-accounts add-iam-policy-binding {account} \
             --member=serviceAccount:{} --role=roles/iam.serviceAccountTokenCreator`. That takes a minute or two to take \
             effect.",
            vm.account
        ),
        Reason::Scope => vm.give_scope(),
        Reason::NoAccount => vm.give_account(),
        Reason::ApiDisabled(project) => enable_api("iamcredentials", project.as_ref(), vm),
        _ => format!(
            "Correct openclaw-metadata-account; `gcloud iam service-accounts describe {account}` says whether that \
             account exists and is enabled."
        ),
    };
    anyhow!("making a token of {account}: {words}")
        .context(Diagnosis { code: Code::SecretDenied, remedy: sentence(&[remedy]) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{code_of, one_line};

    #[test]
    fn a_token_is_handed_out_while_minutes_are_left() {
        let now = SystemTime::now();
        for (left, expected) in [(3600, true), (300, true), (299, false), (0, false), (3601, false)] {
            let token = Token { value: Secret::new("t"), end: now + Duration::from_secs(left) };
            assert_eq!(token.left(now), expected.then(|| Duration::from_secs(left)), "{left}");
        }
        let past = Token { value: Secret::new("t"), end: now - Duration::from_secs(1) };
        assert_eq!(past.left(now), None);
    }

    #[test]
    fn only_a_token_is_one() {
        let good = r#"{"accessToken":"ya29.c_A-b","expireTime":"2026-11-27T20:00:00Z"}"#;
        assert!(
            matches!(read(StatusCode::OK, good.as_bytes()), Outcome::Value(value) if value.expose() == "ya29.c_A-b")
        );
        for bad in ["", "{}", r#"{"accessToken":""}"#, r#"{"accessToken":"a b"}"#, r#"{"accessToken":"a\nb"}"#] {
            let Outcome::Again(why) = read(StatusCode::OK, bad.as_bytes()) else { panic!("{bad}") };
            assert_eq!(why.to_string(), "its answer is no token", "{bad}");
        }
    }

    #[test]
    fn every_refusal_has_the_command_that_mends_it() {
        let vm = Vm::new("vm@p.iam.gserviceaccount.com", false);
        let grant = "`gcloud iam service-accounts add-iam-policy-binding a@p.iam.gserviceaccount.com \
                     --member=serviceAccount:vm@p.iam.gserviceaccount.com --role=roles/iam.serviceAccountTokenCreator`";
        for (reason, vm, command) in [
            (Reason::Permission, &vm, grant),
            (Reason::Permission, &Vm::new("vm@p.iam.gserviceaccount.com", true), "--scopes=cloud-platform"),
            (Reason::NoAccount, &vm, "give it an account"),
            (Reason::Scope, &vm, "--scopes=cloud-platform"),
            (Reason::ApiDisabled(Some("7".to_owned())), &vm, "enable iamcredentials.googleapis.com --project=7`"),
            (Reason::NoSecret, &vm, "`gcloud iam service-accounts describe a@p.iam.gserviceaccount.com`"),
            (Reason::Other, &vm, "`gcloud iam service-accounts describe a@p.iam.gserviceaccount.com`"),
        ] {
            let refusal = Refusal { reason, words: "no".to_owned() };
            let error = denied(refusal, "a@p.iam.gserviceaccount.com", vm);
            let text = one_line(&error);
            assert!(code_of(&error) == Code::SecretDenied && text.contains(command), "{text}");
            assert!(text.contains("making a token of a@p.iam.gserviceaccount.com: no"), "{text}");
        }
    }
}
