//! IAM Service Account Credentials as far as tokens go:
//! `POST /v1/projects/-/serviceAccounts/EMAIL:generateAccessToken`.
//!
//! An account is a directory `accounts/EMAIL`. A file `denied` in it refuses to impersonate it, and one `api-disabled`
//! in `accounts` refuses everything. Faults are those of the metadata server, by path. The VM's scopes count.

use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::post;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::answer::MAX_BODY;
use super::secret_manager::{CLOUD_PLATFORM, Refusal, authorize, respond};
use super::server::Server;

/// The name under which it is reached.
pub const IAM_CREDENTIALS_NAME: &str = "iamcredentials.googleapis.com";

/// What every token of an account begins with, before its address and the moment it was made.
pub const TOKEN_PREFIX: &str = "openclaw-lab-token-of-";

const PATH: &str = "/v1/projects/-/serviceAccounts/";
const METHOD: &str = ":generateAccessToken";

pub(super) fn router(server: Server, dir: &Path) -> Router {
    Router::new().route(&format!("{PATH}{{name}}"), post(handle)).with_state((server, dir.join("accounts")))
}

async fn handle(State((server, dir)): State<(Server, PathBuf)>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    respond(&server, "iam-credentials", &parts, || generate(&server, &dir, &parts, &body)).await
}

fn generate(server: &Server, dir: &Path, parts: &Parts, body: &[u8]) -> Result<Value, Refusal> {
    let number = authorize(server, parts)?;
    let host = parts.headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = parts.uri.path().strip_prefix(PATH).and_then(|name| name.strip_suffix(METHOD));
    let invalid = |words: &str| Refusal::new(400, "INVALID_ARGUMENT", words);
    let email = name.filter(|name| host == IAM_CREDENTIALS_NAME && !name.contains(".."));
    let email = email.ok_or_else(|| invalid("Request contains an invalid argument."))?;
    if dir.join("api-disabled").exists() {
        let message = format!(
            "IAM Service Account Credentials API has not been used in project {number} before or it is disabled."
        );
        return Err(Refusal::denied(message, "SERVICE_DISABLED", json!({ "consumer": format!("projects/{number}") })));
    }
    let account = dir.join(email);
    if !account.is_dir() {
        return Err(Refusal::new(404, "NOT_FOUND", format!("Not found; Gaia id not found for email {email}")));
    }
    if account.join("denied").exists() {
        let message = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).";
        let metadata = json!({ "permission": "iam.serviceAccounts.getAccessToken" });
        return Err(Refusal::denied(message, "IAM_PERMISSION_DENIED", metadata));
    }
    let asked: Value = serde_json::from_slice(body).map_err(|_| invalid("Invalid JSON payload received."))?;
    if asked != json!({ "scope": [CLOUD_PLATFORM], "lifetime": "3600s" }) {
        return Err(invalid("Request contains an invalid argument."));
    }
    let now = Timestamp::now();
    let end = now + SignedDuration::from_hours(1);
    Ok(json!({
        "accessToken": format!("{TOKEN_PREFIX}{email}-{}", now.as_nanosecond()),
        "expireTime": format!("{end:.0}"),
    }))
}
