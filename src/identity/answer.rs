//! What a container is told, as a function of its request: a short list, and 403 for everything else.
//!
//! Paths and forms are the metadata server's (cloud.google.com/compute/docs/metadata/predefined-metadata-keys), as far
//! as Google's own clients ask for them to find their project and a token.

use super::Identity;
use super::token::SCOPE;
use reqwest::StatusCode;

const TEXT: &str = "application/text";
const JSON: &str = "application/json";

/// A request, as far as it counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    /// Path and query.
    pub(super) target: &'a str,
    /// It has the header `Metadata-Flavor: Google`.
    pub(super) has_flavor: bool,
    /// It has passed a proxy.
    pub(super) is_forwarded: bool,
}

/// What the answer is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// This, and the type of it.
    Content(&'static str, String),
    /// A token.
    Token,
    /// An error.
    Refused(StatusCode),
}

pub(super) fn decide(identity: &Identity, request: Request<'_>) -> Answer {
    let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
    if request.method != "GET" {
        return Answer::Refused(StatusCode::METHOD_NOT_ALLOWED);
    }
    // The one that is asked to find out what this is.
    let is_ping = path == "/";
    if request.is_forwarded || !request.has_flavor && !is_ping {
        return Answer::Refused(StatusCode::FORBIDDEN);
    }
    let is_recursive = query.split('&').any(|word| word.eq_ignore_ascii_case("recursive=true"));
    find(identity, path, is_recursive).unwrap_or(Answer::Refused(StatusCode::FORBIDDEN))
}

fn find(identity: &Identity, path: &str, is_recursive: bool) -> Option<Answer> {
    let text = |text: &str| Some(Answer::Content(TEXT, text.to_owned()));
    let list = |entries: &str| if is_recursive { None } else { text(entries) };
    // A directory may be named without its slash: the server would send the client there.
    let path = path.strip_suffix('/').unwrap_or(path);
    let Some(key) = path.strip_prefix("/computeMetadata/v1") else {
        return match path {
            "" => list("computeMetadata/\n"),
            "/computeMetadata" => list("v1/\n"),
            _ => None,
        };
    };
    match key {
        "" => list("instance/\nproject/\nuniverse/\n"),
        "/instance" => list("service-accounts/\nzone\n"),
        "/instance/zone" => text(&format!("projects/{}/zones/{}", identity.project_number, identity.zone)),
        "/project" => list("numeric-project-id\nproject-id\n"),
        "/project/numeric-project-id" => text(&identity.project_number.to_string()),
        "/project/project-id" => text(&identity.project_id),
        "/universe" => list("universe-domain\n"),
        "/universe/universe-domain" => text("googleapis.com"),
        "/instance/service-accounts" => Some(accounts(identity, is_recursive)),
        _ => account(identity, key.strip_prefix("/instance/service-accounts/")?, is_recursive),
    }
}

fn accounts(Identity { account, .. }: &Identity, is_recursive: bool) -> Answer {
    if is_recursive {
        let details = details(account);
        return Answer::Content(JSON, format!("{{\"default\":{details},\"{account}\":{details}}}"));
    }
    Answer::Content(TEXT, format!("default/\n{account}/\n"))
}

/// What is told of the one account, by either of its names.
fn account(Identity { account, .. }: &Identity, path: &str, is_recursive: bool) -> Option<Answer> {
    let (name, key) = path.split_once('/').unwrap_or((path, ""));
    if name != "default" && name != account {
        return None;
    }
    let text = |text: String| Some(Answer::Content(TEXT, text));
    match key {
        "" if is_recursive => Some(Answer::Content(JSON, details(account))),
        "" => text("aliases\nemail\nscopes\ntoken\n".to_owned()),
        "aliases" => text("default\n".to_owned()),
        "email" => text(account.clone()),
        "scopes" => text(format!("{SCOPE}\n")),
        "token" => Some(Answer::Token),
        _ => None,
    }
}

/// As JSON, in which nothing in an account's address has a meaning.
fn details(account: &str) -> String {
    format!("{{\"aliases\":[\"default\"],\"email\":\"{account}\",\"scopes\":[\"{SCOPE}\"]}}")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use proptest::prelude::*;

    use super::*;

    const ACCOUNT: &str = "agent@p.iam.gserviceaccount.com";
    const ROOT: &str = "/computeMetadata/v1/";

    fn identity() -> Identity {
        Identity {
            account: ACCOUNT.to_owned(),
            project_id: "p".to_owned(),
            project_number: 123,
            zone: "europe-west1-b".to_owned(),
            listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1),
        }
    }

    fn get(target: &str) -> Request<'_> {
        Request { method: "GET", target, has_flavor: true, is_forwarded: false }
    }

    #[test]
    fn what_google_s_clients_ask_for_is_answered() {
        let details = format!(r#"{{"aliases":["default"],"email":"{ACCOUNT}","scopes":["{SCOPE}"]}}"#);
        let accounts = format!(r#"{{"default":{details},"{ACCOUNT}":{details}}}"#);
        let (email, scopes, names) = (ACCOUNT, format!("{SCOPE}\n"), format!("default/\n{ACCOUNT}/\n"));
        #[rustfmt::skip]
        let cases: [(&str, &str, &str); 20] = [
            ("", TEXT, "instance/\nproject/\nuniverse/\n"),
            ("instance", TEXT, "service-accounts/\nzone\n"),
            ("instance/", TEXT, "service-accounts/\nzone\n"),
            ("instance/zone", TEXT, "projects/123/zones/europe-west1-b"),
            ("project/", TEXT, "numeric-project-id\nproject-id\n"),
            ("project/project-id", TEXT, "p"),
            ("project/numeric-project-id", TEXT, "123"),
            ("universe/universe-domain", TEXT, "googleapis.com"),
            ("instance/service-accounts/", TEXT, &names),
            ("instance/service-accounts/?recursive=true", JSON, &accounts),
            ("instance/service-accounts/default/", TEXT, "aliases\nemail\nscopes\ntoken\n"),
            ("instance/service-accounts/default/?recursive=true", JSON, &details),
            ("instance/service-accounts/default?recursive=True&alt=json", JSON, &details),
            ("instance/service-accounts/agent@p.iam.gserviceaccount.com/?recursive=true", JSON, &details),
            ("instance/service-accounts/default/email", TEXT, email),
            ("instance/service-accounts/agent@p.iam.gserviceaccount.com/email", TEXT, email),
            ("instance/service-accounts/default/aliases", TEXT, "default\n"),
            ("instance/service-accounts/default/scopes", TEXT, &scopes),
            ("instance/service-accounts/default/token", "", ""),
            ("instance/service-accounts/agent@p.iam.gserviceaccount.com/token?scopes=a,b", "", ""),
        ];
        for (path, kind, content) in cases {
            let expected =
                if kind.is_empty() { Answer::Token } else { Answer::Content(kind_of(kind), content.to_owned()) };
            assert_eq!(decide(&identity(), get(&format!("{ROOT}{path}"))), expected, "{path}");
        }
        let ping = Request { has_flavor: false, ..get("/") };
        assert_eq!(decide(&identity(), ping), Answer::Content(TEXT, "computeMetadata/\n".to_owned()));
        assert_eq!(decide(&identity(), get("/computeMetadata/")), Answer::Content(TEXT, "v1/\n".to_owned()));
    }

    fn kind_of(kind: &str) -> &'static str {
        if kind == JSON { JSON } else { TEXT }
    }

    /// The lab asks for the same from inside a container.
    const REFUSED: &str = include_str!("../../tests/fixtures/identity/refused.txt");

    #[test]
    fn everything_else_is_refused() {
        let forbidden = Answer::Refused(StatusCode::FORBIDDEN);
        let paths: Vec<&str> = REFUSED.lines().collect();
        assert!(paths.len() >= 40);
        for path in paths {
            assert_eq!(decide(&identity(), get(path)), forbidden, "{path}");
        }
        let token = "/computeMetadata/v1/instance/service-accounts/default/token";
        for request in [
            Request { has_flavor: false, ..get(token) },
            Request { has_flavor: false, ..get("/computeMetadata/") },
            Request { is_forwarded: true, ..get(token) },
            Request { is_forwarded: true, ..get("/") },
        ] {
            assert_eq!(decide(&identity(), request), forbidden, "{request:?}");
        }
        for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "get"] {
            let answer = decide(&identity(), Request { method, ..get(token) });
            assert_eq!(answer, Answer::Refused(StatusCode::METHOD_NOT_ALLOWED), "{method}");
        }
    }

    proptest! {
        /// Nothing but the one account's two names leads to a token.
        #[test]
        fn any_path_has_an_answer(path in "[ -~]{0,80}", name in "[a-z@.%/]{0,40}") {
            drop(decide(&identity(), get(&path)));
            let path = format!("{ROOT}instance/service-accounts/{name}/token");
            if decide(&identity(), get(&path)) == Answer::Token {
                prop_assert!(["default", ACCOUNT].contains(&name.as_str()), "{}", path);
            }
        }
    }
}
