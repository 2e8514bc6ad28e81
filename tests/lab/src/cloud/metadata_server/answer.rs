//! From request to answer: the rules of the metadata server, and the faults that break them.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use super::fault::{Effect, Fault};
use super::guest::{self, MAX_VALUE};
use super::server::{Server, State};
use super::tree::{Format, Node};

/// The access token of every service account: obviously not a real one.
pub const ACCESS_TOKEN: &str = "openclaw-lab-access-token";

/// The longest request body that is read at all, in bytes.
pub const MAX_BODY: usize = 4 * MAX_VALUE;

const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");
const HTML: &str = "text/html; charset=UTF-8";
const GUEST_ATTRIBUTES: &str = "instance/guest-attributes";
/// The body that three unrelated clients quote for a VM without `enable-guest-attributes`.
const GUEST_ATTRIBUTES_DISABLED: &str = "Guest attributes endpoint access is disabled.";

/// Logs a request and answers it, right or wrong.
pub(super) async fn handle(Shared(server): Shared<Server>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let entry = server.shared.log.begin("metadata", &parts);
    let body = to_bytes(body, MAX_BODY).await;
    let fault = server.faults().meet(parts.method.as_str(), parts.uri.path());
    entry.note(|request| {
        request.body =
            body.as_ref().ok().filter(|body| !body.is_empty()).map(|body| String::from_utf8_lossy(body).into());
        request.fault.clone_from(&fault);
    });
    let response = match body {
        Ok(body) => respond(&server, &parts, &body, fault).await,
        Err(_) => Answer::error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large").into_response(),
    };
    entry.note(|request| request.status = Some(response.status().as_u16()));
    response
}

async fn respond(server: &Server, parts: &Parts, body: &Bytes, fault: Option<Fault>) -> Response {
    let (delay, effect) = fault.map_or((None, None), |fault| (fault.delay, fault.effect));
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    match effect {
        Some(Effect::BlackHole) => std::future::pending().await,
        Some(Effect::Status(status)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            Answer::error(status, status.canonical_reason().unwrap_or("scripted fault")).into_response()
        }
        Some(Effect::Truncate(bytes)) => answer(server, parts, body).await.truncated(bytes),
        Some(Effect::Flavor(flavor)) => {
            let mut response = answer(server, parts, body).await.into_response();
            response.headers_mut().remove(FLAVOR);
            if let Some(flavor) = flavor.and_then(|flavor| HeaderValue::from_str(&flavor).ok()) {
                response.headers_mut().insert(FLAVOR, flavor);
            }
            response
        }
        Some(Effect::Date(off)) => {
            let mut response = answer(server, parts, body).await.into_response();
            let date = (Timestamp::now() + off).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            response.headers_mut().extend(HeaderValue::from_str(&date).ok().map(|date| (header::DATE, date)));
            response
        }
        None => answer(server, parts, body).await.into_response(),
    }
}

async fn answer(server: &Server, parts: &Parts, body: &Bytes) -> Answer {
    let path = parts.uri.path();
    if let Some(refusal) = refuse(path, &parts.headers) {
        return refusal;
    }
    match parts.method {
        Method::GET | Method::HEAD => match Query::<Params>::try_from_uri(&parts.uri) {
            Ok(Query(params)) => get(server, parts, &params).await,
            Err(error) => Answer::error(StatusCode::BAD_REQUEST, &error.body_text()),
        },
        Method::PUT => write(server, path, Some(body)),
        Method::DELETE => write(server, path, None),
        _ => Answer::error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"),
    }
}

/// The header rules; the bare root is the ping of many clients and needs no flavor.
fn refuse(path: &str, headers: &HeaderMap) -> Option<Answer> {
    let forwarded = headers.get("x-forwarded-for").is_some_and(|value| !value.is_empty());
    let flavored = path == "/" || headers.get(FLAVOR).is_some_and(|flavor| flavor == "Google");
    if forwarded {
        Some(Answer::error(StatusCode::FORBIDDEN, "Forbidden"))
    } else if !flavored {
        Some(Answer::error(StatusCode::FORBIDDEN, r#"Missing required header "Metadata-Flavor": "Google""#))
    } else {
        None
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Params {
    recursive: String,
    alt: String,
    wait_for_change: String,
    last_etag: Option<String>,
    timeout_sec: Option<u64>,
    audience: String,
}

impl Params {
    /// None for an `alt` that does not exist.
    fn format(&self) -> Option<Format> {
        // cloud-init sends `recursive=True`.
        match (self.recursive.eq_ignore_ascii_case("true"), self.alt.as_str()) {
            (false, "" | "text") => Some(Format::Plain),
            (true, "text") => Some(Format::RecursiveText),
            (true, "") | (_, "json") => Some(Format::Json),
            _ => None,
        }
    }
}

/// A GET, held back while `wait_for_change` asks for that. An error is never held back: 404 means "deleted".
async fn get(server: &Server, parts: &Parts, params: &Params) -> Answer {
    let mut states = server.shared.state.subscribe();
    let look = || look_up(&server.shared.state.borrow(), parts, params);
    let first = look();
    let new = params.last_etag.is_some() && params.last_etag != first.etag;
    if !params.wait_for_change.eq_ignore_ascii_case("true") || first.status != StatusCode::OK || new {
        return first;
    }
    let change = async {
        while states.changed().await.is_ok() {
            let now = look();
            if now.etag != first.etag {
                break;
            }
        }
    };
    match params.timeout_sec {
        Some(seconds) => drop(tokio::time::timeout(Duration::from_secs(seconds), change).await),
        None => change.await,
    }
    look()
}

fn look_up(state: &State, parts: &Parts, params: &Params) -> Answer {
    let path = parts.uri.path();
    let Some(format) = params.format() else {
        return Answer::error(StatusCode::BAD_REQUEST, "alt must be json or text");
    };
    let Some(below) = below_v1(path) else {
        return match path {
            "/" => Answer::ok("application/text", "computeMetadata/\n".into()),
            "/computeMetadata/" => Answer::ok("application/text", "v1/\n".into()),
            "/computeMetadata" | "/computeMetadata/v1" => Answer::redirect(parts),
            _ => Answer::not_found(path),
        };
    };
    let guest = below == GUEST_ATTRIBUTES || guest_path(below).is_some();
    if guest && !state.metadata.guest_attributes_enabled() {
        return Answer::text_error(StatusCode::FORBIDDEN, GUEST_ATTRIBUTES_DISABLED);
    }
    let tree = state.tree(format, guest);
    let root = Node::root(&tree);
    if let Some((account, secret @ ("token" | "identity"))) = below.rsplit_once('/')
        && account.strip_prefix("instance/service-accounts/").is_some_and(|account| !account.contains('/'))
        && root.find(account).is_some()
    {
        return credential(secret, &params.audience);
    }
    match root.find(below) {
        Some(node) if node.is_directory() && !path.ends_with('/') => Answer::redirect(parts),
        Some(node) if node.is_directory() || !path.ends_with('/') => {
            let (content_type, body) = node.render(format);
            Answer::ok(content_type, body)
        }
        _ => Answer::not_found(path),
    }
}

impl State {
    /// The whole tree. Only requests below `guest-attributes/` see guest attributes, and only listings see that
    /// service accounts have a token and an identity.
    fn tree(&self, format: Format, guest: bool) -> Value {
        let mut tree = json!(self.metadata);
        tree["instance"]["guestAttributes"] = if guest { self.guest.tree() } else { json!({}) };
        if format == Format::Plain {
            for account in self.metadata.instance.service_accounts.keys() {
                let node = &mut tree["instance"]["serviceAccounts"][account];
                node["identity"] = json!("");
                node["token"] = json!("");
            }
        }
        tree
    }
}

fn credential(kind: &str, audience: &str) -> Answer {
    match (kind, audience) {
        ("token", _) => {
            let token = json!({ "access_token": ACCESS_TOKEN, "expires_in": 3599, "token_type": "Bearer" });
            Answer { etag: None, ..Answer::ok("application/json", token.to_string()) }
        }
        (_, "") => Answer::text_error(StatusCode::BAD_REQUEST, "non-empty audience parameter required"),
        (_, audience) => {
            Answer { etag: None, ..Answer::ok("text/html", format!("openclaw-lab-identity-for:{audience}")) }
        }
    }
}

/// PUT (with a value) or DELETE; both exist for guest attributes only.
fn write(server: &Server, path: &str, value: Option<&Bytes>) -> Answer {
    let Some(path) = below_v1(path).and_then(guest_path) else {
        return Answer::error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    };
    if !server.shared.state.borrow().metadata.guest_attributes_enabled() {
        return Answer::text_error(StatusCode::FORBIDDEN, GUEST_ATTRIBUTES_DISABLED);
    }
    let Some((namespace, key)) = guest::parse_key(path) else {
        return Answer::error(StatusCode::BAD_REQUEST, "the path is not NAMESPACE/KEY in allowed characters");
    };
    let Some(value) = value else { return delete(server, namespace, key) };
    match std::str::from_utf8(value) {
        Ok(value) if value.len() <= MAX_VALUE => {
            server.shared.state.send_modify(|state| {
                state.guest.set(namespace, key, Some(value.into()));
            });
            Answer { etag: None, ..Answer::ok("application/text", String::new()) }
        }
        _ => Answer::error(StatusCode::BAD_REQUEST, "the value is too long or not UTF-8"),
    }
}

/// No public source tells what a DELETE of a missing key gets; 404 is what a GET of it gets.
fn delete(server: &Server, namespace: &str, key: &str) -> Answer {
    let existed = server.shared.state.send_if_modified(|state| {
        let exists = state.guest.attribute(namespace, key).value.is_some();
        exists && state.guest.set(namespace, key, None).is_some()
    });
    if existed {
        Answer { etag: None, ..Answer::ok("application/text", String::new()) }
    } else {
        Answer::not_found(&format!("{namespace}/{key}"))
    }
}

fn below_v1(path: &str) -> Option<&str> {
    path.strip_prefix("/computeMetadata/v1/")
}

fn guest_path(below_v1: &str) -> Option<&str> {
    below_v1.strip_prefix(GUEST_ATTRIBUTES)?.strip_prefix('/')
}

/// An answer whose body is still known as a whole.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    etag: Option<String>,
    location: Option<String>,
    body: String,
}

impl Answer {
    fn ok(content_type: &'static str, body: String) -> Self {
        let digest = Sha256::digest(body.as_bytes());
        let etag = digest.first_chunk().map(|bytes| format!("{:016x}", u64::from_be_bytes(*bytes)));
        Self { status: StatusCode::OK, content_type, etag, location: None, body }
    }

    /// An error that is not a page.
    fn text_error(status: StatusCode, body: &str) -> Self {
        Self { status, content_type: HTML, etag: None, location: None, body: body.into() }
    }

    fn error(status: StatusCode, message: &str) -> Self {
        let code = status.as_u16();
        let page = format!(
            "<!DOCTYPE html>\n<html lang=en>\n<title>Error {code}</title>\n<p><b>{code}.</b> <ins>{message}</ins>\n"
        );
        Self::text_error(status, &page)
    }

    fn not_found(path: &str) -> Self {
        Self::error(
            StatusCode::NOT_FOUND,
            &format!("The requested URL <code>{path}</code> was not found on this server."),
        )
    }

    /// To the same path with the slash that a directory has.
    fn redirect(parts: &Parts) -> Self {
        let host =
            parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("metadata.google.internal");
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let location = format!("http://{host}{}/{query}", parts.uri.path());
        let page = Self::error(StatusCode::MOVED_PERMANENTLY, &location);
        Self { location: Some(location), ..page }
    }

    /// Sends at most `bytes` of the body but announces more, then ends the connection.
    fn truncated(mut self, bytes: usize) -> Response {
        let announced = self.body.len().max(bytes + 1);
        let mut body = std::mem::take(&mut self.body).into_bytes();
        body.truncate(bytes);
        let (mut sender, receiver) = tokio::io::duplex(body.len().max(1));
        tokio::spawn(async move {
            // The client may be gone already. The pause lets the head and these bytes leave before the server
            // notices that the body ends too early, and aborts.
            let _ = sender.write_all(&body).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        });
        let mut response = self.into_response();
        response.headers_mut().insert(header::CONTENT_LENGTH, announced.into());
        *response.body_mut() = Body::from_stream(ReaderStream::new(receiver));
        response
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (
            self.status,
            [
                (header::CONTENT_TYPE, self.content_type),
                (FLAVOR, "Google"),
                (header::SERVER, "Metadata Server for VM"),
                (header::X_XSS_PROTECTION, "0"),
                (header::X_FRAME_OPTIONS, "SAMEORIGIN"),
            ],
            self.body,
        )
            .into_response();
        for (name, value) in [(header::ETAG, self.etag), (header::LOCATION, self.location)] {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
