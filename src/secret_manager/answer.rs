//! What an answer of Secret Manager means.

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::StatusCode;
use serde::Deserialize;

use crate::http::Retry;
use crate::secret::Secret;
use crate::text::printable;

/// The largest value that Secret Manager takes.
const VALUE_BYTES: usize = 64 << 10;

/// The longest text of Google's that is repeated.
const WORDS_BYTES: usize = 300;

#[derive(Debug)]
pub(crate) enum Outcome {
    Value(Secret),
    /// Another request may do better.
    Again(Error),
    Refused(Refusal),
}

/// What no other request will change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// Google's own.
    pub(crate) words: String,
}

impl Refusal {
    /// Whether a permission that was just given, or an API that was just enabled, may not be known everywhere yet.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self.reason, Reason::Permission | Reason::ApiDisabled(_))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The VM has no account that could ask.
    NoAccount,
    /// The account may not read it, or it does not exist: who may not read is not told which.
    Permission,
    /// The VM's scopes do not cover it, whatever the account may do.
    Scope,
    /// In this project, where it is said.
    ApiDisabled(Option<String>),
    NoSecret,
    NoVersion,
    /// The number of the version, where it is said.
    Disabled(Option<String>),
    Destroyed,
    /// No environment variable can hold it.
    NotText,
    Other,
}

#[derive(Deserialize)]
struct Access {
    payload: Payload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    #[serde(default)]
    data: String,
    /// A 64-bit number, which is text in Google's JSON.
    data_crc32c: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Envelope {
    error: ApiError,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ApiError {
    message: String,
    status: String,
    details: Vec<Detail>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Detail {
    reason: String,
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    consumer: String,
}

pub(super) fn read(status: StatusCode, body: &[u8]) -> Outcome {
    if status == StatusCode::OK {
        return match value(body).map(String::from_utf8) {
            Ok(Ok(text)) => Outcome::Value(Secret::new(text)),
            Ok(Err(_)) => {
                Outcome::Refused(Refusal { reason: Reason::NotText, words: "its value is not UTF-8 text".to_owned() })
            }
            Err(why) => Outcome::Again(why),
        };
    }
    failure(status, body)
}

/// What an answer means that is no value.
pub(crate) fn failure(status: StatusCode, body: &[u8]) -> Outcome {
    if Retry::of_status(status) == Retry::Yes {
        return Outcome::Again(anyhow!("it answered {status}"));
    }
    let Envelope { error } = serde_json::from_slice(body).unwrap_or_default();
    let words = if error.message.is_empty() {
        format!("it answered {status}")
    } else {
        printable(error.message.trim().trim_end_matches('.'), WORDS_BYTES)
    };
    Outcome::Refused(Refusal { reason: reason(status, &error), words })
}

/// The value, if it is the one that was sent.
fn value(body: &[u8]) -> Result<Vec<u8>> {
    // An error of the parser could repeat a part of the value.
    let access: Option<Access> = serde_json::from_slice(body).ok();
    let Payload { data, data_crc32c } = access.context("its answer is not that of Secret Manager")?.payload;
    let data = BASE64_STANDARD.decode(data).ok().context("the value is not valid base64")?;
    ensure!(data.len() <= VALUE_BYTES, "the value has more than 64 KiB");
    ensure!(data_crc32c.parse() == Ok(i64::from(crc32c::crc32c(&data))), "the value is not that of its checksum");
    Ok(data)
}

fn reason(status: StatusCode, error: &ApiError) -> Reason {
    let info = error.details.iter().find(|detail| !detail.reason.is_empty());
    let said = info.map_or("", |info| &info.reason);
    match status {
        StatusCode::FORBIDDEN if said == "ACCESS_TOKEN_SCOPE_INSUFFICIENT" => Reason::Scope,
        StatusCode::FORBIDDEN if error.message.contains("insufficient authentication scopes") => Reason::Scope,
        StatusCode::FORBIDDEN if said == "SERVICE_DISABLED" => {
            let consumer = info.and_then(|info| info.metadata.consumer.strip_prefix("projects/"));
            Reason::ApiDisabled(consumer.filter(|it| is_project(it)).map(str::to_owned))
        }
        StatusCode::FORBIDDEN if said.is_empty() || said == "IAM_PERMISSION_DENIED" => Reason::Permission,
        StatusCode::NOT_FOUND if error.message.starts_with("Secret Version") => Reason::NoVersion,
        StatusCode::NOT_FOUND => Reason::NoSecret,
        StatusCode::BAD_REQUEST if error.status != "FAILED_PRECONDITION" => Reason::Other,
        StatusCode::BAD_REQUEST if error.message.contains("DESTROYED") => Reason::Destroyed,
        StatusCode::BAD_REQUEST if error.message.contains("DISABLED") => Reason::Disabled(version(&error.message)),
        _ => Reason::Other,
    }
}

fn is_project(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || ".:-".contains(c))
}

/// The number in `Secret Version [projects/1/secrets/s/versions/3] is in DISABLED state`.
fn version(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("/versions/")?;
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!number.is_empty()).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(status: u16, body: &str) -> Outcome {
        read(StatusCode::from_u16(status).unwrap_or_default(), body.as_bytes())
    }

    #[test]
    fn a_value_is_taken_only_with_its_checksum() {
        let payload =
            |data: &str, sum: &str| format!(r#"{{"name":"n","payload":{{"data":"{data}","dataCrc32c":{sum}}}}}"#);
        let large = vec![b'x'; VALUE_BYTES + 1];
        let (large, sum) = (BASE64_STANDARD.encode(&large), format!("\"{}\"", crc32c::crc32c(&large)));
        #[rustfmt::skip]
        let cases = [
            (payload("aHVudGVyMg==", "\"1736498283\""), Ok("hunter2")),
            (payload("", "\"0\""), Ok("")),
            (payload("aHVudGVyMg==", "\"1736498284\""), Err("checksum")),
            (payload("aHVudGVyMw==", "\"1736498283\""), Err("checksum")),
            (payload("aHVudGVyMg==", "\"x\""), Err("checksum")),
            (payload("aHVudGVyMg==", "1736498283"), Err("not that of Secret Manager")),
            (r#"{"payload":{"data":"aHVudGVyMg=="}}"#.to_owned(), Err("not that of Secret Manager")),
            (payload("hunter2!", "\"0\""), Err("base64")),
            (payload(&large, &sum), Err("64 KiB")),
            ("<html>hunter2</html>".to_owned(), Err("not that of Secret Manager")),
            (String::new(), Err("not that of Secret Manager")),
        ];
        for (body, expected) in cases {
            match (outcome(200, &body), expected) {
                (Outcome::Value(secret), Ok(value)) => assert_eq!(secret.expose(), value),
                (Outcome::Again(why), Err(words)) => {
                    let why = format!("{why:#}");
                    assert!(why.contains(words) && !why.contains("hunter"), "{body:.99}: {why}");
                }
                (outcome, _) => panic!("{body:.99}: {outcome:?}"),
            }
        }
    }

    /// As Google's API words them.
    fn error(status: u16, name: &str, message: &str, detail: &str) -> String {
        let details =
            if detail.is_empty() { String::new() } else { format!(r#","details":[{{"@type":"x"}},{{{detail}}}]"#) };
        format!(r#"{{"error":{{"code":{status},"message":"{message}","status":"{name}"{details}}}}}"#)
    }

    #[test]
    fn refusals_are_told_apart() {
        let (denied, gone, state) = ("PERMISSION_DENIED", "NOT_FOUND", "FAILED_PRECONDITION");
        let forbidden = "Permission 'secretmanager.versions.access' denied for resource 'x' (or it may not exist).";
        let unused = "Secret Manager API has not been used in project 1 before or it is disabled.";
        let disabled = |project: &str| format!(r#""reason":"SERVICE_DISABLED","metadata":{{"consumer":"{project}"}}"#);
        let scope = "Request had insufficient authentication scopes.";
        #[rustfmt::skip]
        let cases = [
            (403, error(403, denied, forbidden, r#""reason":"IAM_PERMISSION_DENIED""#), Reason::Permission),
            (403, error(403, denied, forbidden, ""), Reason::Permission),
            (403, error(403, denied, scope, r#""reason":"ACCESS_TOKEN_SCOPE_INSUFFICIENT""#), Reason::Scope),
            (403, error(403, denied, scope, ""), Reason::Scope),
            (403, error(403, denied, unused, &disabled("projects/1")), Reason::ApiDisabled(Some("1".into()))),
            (403, error(403, denied, unused, &disabled("projects/$(id)")), Reason::ApiDisabled(None)),
            (403, error(403, denied, "prohibited by policy", r#""reason":"SECURITY_POLICY_VIOLATED""#), Reason::Other),
            (403, "<html>".to_owned(), Reason::Permission),
            (404, error(404, gone, "Secret [projects/1/secrets/s] not found or has no versions.", ""), Reason::NoSecret),
            (404, error(404, gone, "Secret Version [projects/1/secrets/s/versions/9] not found.", ""), Reason::NoVersion),
            (400, error(400, state, "Secret Version [projects/1/secrets/s/versions/3] is in DISABLED state.", ""), Reason::Disabled(Some("3".into()))),
            (400, error(400, state, "Secret Version [x] is in DISABLED state.", ""), Reason::Disabled(None)),
            (400, error(400, state, "Secret Version [projects/1/secrets/s/versions/3] is in DESTROYED state.", ""), Reason::Destroyed),
            (400, error(400, "INVALID_ARGUMENT", "Invalid resource field value in the request.", ""), Reason::Other),
            (401, error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", ""), Reason::Other),
        ];
        let binary = r#"{"payload":{"data":"/w==","dataCrc32c":"4278190080"}}"#.to_owned();
        for (status, body, expected) in cases.into_iter().chain([(200, binary, Reason::NotText)]) {
            match outcome(status, &body) {
                Outcome::Refused(Refusal { reason, words }) => {
                    assert_eq!(reason, expected, "{body}");
                    assert!(!words.is_empty() && !words.ends_with('.'), "{words}");
                }
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_passes_is_asked_again() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(matches!(outcome(status, "busy"), Outcome::Again(_)), "{status}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_has_a_meaning(status in 200u16..600, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(read(StatusCode::from_u16(status).unwrap_or_default(), &body));
        }
    }
}
