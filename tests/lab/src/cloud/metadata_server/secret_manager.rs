//! Secret Manager as far as reading goes: `GET /v1/NAME:access` for global and regional secrets.
//!
//! The secrets are files below a directory, under their resources' names: `projects/P/secrets/S/versions/3` holds the
//! value of version 3. Another end of the name says what is wrong with a version: `3.disabled`, `3.destroyed`,
//! `3.corrupt` (sent with a wrong checksum). A file `denied` in a secret's directory, or `api-disabled` in that of a
//! project, refuses. Faults are those of the metadata server, by path. The VM's scopes count.

use std::fs;
use std::path::{Path, PathBuf};

use axum::Json;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::answer::ACCESS_TOKEN;
use super::fault::{Effect, Fault};
use super::server::Server;

/// The names under which it is reached: that of global secrets, and that of one region.
pub const SECRET_MANAGER_NAMES: [&str; 2] =
    ["secretmanager.googleapis.com", "secretmanager.europe-west1.rep.googleapis.com"];

pub(super) const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";

pub(super) fn router(server: Server, dir: PathBuf) -> Router {
    Router::new().route("/v1/{*name}", get(handle)).with_state((server, dir))
}

async fn handle(State((server, dir)): State<(Server, PathBuf)>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    respond(&server, "secret-manager", &parts, || access(&server, &dir, &parts)).await
}

/// An `answer` of one of Google's APIs, with the faults that it meets; the request is in the log with `host`.
pub(super) async fn respond(
    server: &Server,
    host: &str,
    parts: &Parts,
    answer: impl FnOnce() -> Result<Value, Refusal>,
) -> Response {
    let entry = server.shared.log.begin(host, parts);
    let fault = server.faults().meet(parts.method.as_str(), parts.uri.path());
    entry.note(|request| request.fault.clone_from(&fault));
    let (delay, effect) = fault.map_or((None, None), |Fault { delay, effect, .. }| (delay, effect));
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    let response = match effect {
        Some(Effect::BlackHole) => std::future::pending().await,
        Some(Effect::Status(status)) => {
            Refusal::new(status, "UNAVAILABLE", "The service is currently unavailable.").into_response()
        }
        _ => match answer() {
            Ok(answer) => Json(answer).into_response(),
            Err(refusal) => refusal.into_response(),
        },
    };
    entry.note(|request| request.status = Some(response.status().as_u16()));
    response
}

/// An error as Google's APIs word it.
pub(super) struct Refusal {
    status: u16,
    name: &'static str,
    message: String,
    /// The reason, and what is told with it.
    info: Option<(&'static str, Value)>,
}

impl Refusal {
    pub(super) fn new(status: u16, name: &'static str, message: impl Into<String>) -> Self {
        Self { status, name, message: message.into(), info: None }
    }

    pub(super) fn denied(message: impl Into<String>, reason: &'static str, metadata: Value) -> Self {
        Self { info: Some((reason, metadata)), ..Self::new(403, "PERMISSION_DENIED", message) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, name, message, info } = self;
        let mut error = json!({ "code": status, "message": message, "status": name });
        if let Some((reason, metadata)) = info {
            let domain = if reason == "IAM_PERMISSION_DENIED" { "iam.googleapis.com" } else { "googleapis.com" };
            let kind = "type.googleapis.com/google.rpc.ErrorInfo";
            error["details"] = json!([{ "@type": kind, "reason": reason, "domain": domain, "metadata": metadata }]);
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(json!({ "error": error }))).into_response()
    }
}

/// A secret's name, in parts.
struct Name<'a> {
    project: &'a str,
    location: Option<&'a str>,
    secret: &'a str,
    version: &'a str,
}

impl<'a> Name<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> = path.strip_prefix("/v1/")?.strip_suffix(":access")?.split('/').collect();
        let (project, location, secret, version) = match segments[..] {
            ["projects", project, "secrets", secret, "versions", version] => (project, None, secret, version),
            ["projects", project, "locations", location, "secrets", secret, "versions", version] => {
                (project, Some(location), secret, version)
            }
            _ => return None,
        };
        (!segments.contains(&"..")).then_some(Self { project, location, secret, version })
    }

    /// Of the secret, with this for its project.
    fn resource(&self, project: &str) -> String {
        let location = self.location.map(|location| format!("/locations/{location}")).unwrap_or_default();
        format!("projects/{project}{location}/secrets/{}", self.secret)
    }

    /// Whether the server of this name has it; a test may come by address.
    fn is_at(&self, host: &str) -> bool {
        let own = if self.location.is_some() { SECRET_MANAGER_NAMES[1] } else { SECRET_MANAGER_NAMES[0] };
        host == own || !host.ends_with("googleapis.com")
    }
}

/// Whether the request comes from the VM with the scope that all of Google's APIs are content with. Returns the
/// project's number.
pub(super) fn authorize(server: &Server, parts: &Parts) -> Result<String, Refusal> {
    let metadata = server.metadata();
    let number = metadata.project.numeric_project_id.to_string();
    if header(parts, header::AUTHORIZATION).strip_prefix("Bearer ") != Some(ACCESS_TOKEN) {
        return Err(Refusal::new(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."));
    }
    let mut accounts = metadata.instance.service_accounts.values();
    if !accounts.any(|account| account.scopes.iter().any(|scope| scope == CLOUD_PLATFORM)) {
        let message = "Request had insufficient authentication scopes.";
        return Err(Refusal::denied(message, "ACCESS_TOKEN_SCOPE_INSUFFICIENT", json!({})));
    }
    Ok(number)
}

fn header(parts: &Parts, name: HeaderName) -> &str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn access(server: &Server, dir: &Path, parts: &Parts) -> Result<Value, Refusal> {
    let number = authorize(server, parts)?;
    let name = Name::of(parts.uri.path()).filter(|name| name.is_at(header(parts, header::HOST)));
    let name =
        name.ok_or_else(|| Refusal::new(400, "INVALID_ARGUMENT", "Invalid resource field value in the request."))?;
    if dir.join("projects").join(name.project).join("api-disabled").exists() {
        let message = format!("Secret Manager API has not been used in project {number} before or it is disabled.");
        return Err(Refusal::denied(message, "SERVICE_DISABLED", json!({ "consumer": format!("projects/{number}") })));
    }
    read(&dir.join(name.resource(name.project)), &name, &number)
}

/// The version of the secret whose files are in `directory`. Google tells the project's number, not its id.
fn read(directory: &Path, name: &Name<'_>, number: &str) -> Result<Value, Refusal> {
    let (resource, wanted) = (name.resource(number), name.version);
    if directory.join("denied").exists() {
        let resource = format!("{}/versions/{wanted}", name.resource(name.project));
        let message = format!(
            "Permission 'secretmanager.versions.access' denied for resource '{resource}' (or it may not exist)."
        );
        let metadata = json!({ "permission": "secretmanager.versions.access", "resource": resource });
        return Err(Refusal::denied(message, "IAM_PERMISSION_DENIED", metadata));
    }
    let files = fs::read_dir(directory.join("versions")).into_iter().flatten().flatten();
    let files = files.filter_map(|file| {
        let file = file.file_name().into_string().ok()?;
        let (version, state) = file.split_once('.').unwrap_or((&file, ""));
        Some((version.parse::<u32>().ok()?, state.to_owned(), file.clone()))
    });
    let mut versions: Vec<_> = files.collect();
    versions.sort();
    let Some(latest) = versions.last() else {
        return Err(Refusal::new(404, "NOT_FOUND", format!("Secret [{resource}] not found or has no versions.")));
    };
    let found = versions.iter().find(|(version, ..)| wanted == version.to_string());
    let Some((version, state, file)) = found.or_else(|| (wanted == "latest").then_some(latest)) else {
        let message = format!("Secret Version [{resource}/versions/{wanted}] not found.");
        return Err(Refusal::new(404, "NOT_FOUND", message));
    };
    let resource = format!("{resource}/versions/{version}");
    if ["disabled", "destroyed"].contains(&state.as_str()) {
        let message = format!("Secret Version [{resource}] is in {} state.", state.to_uppercase());
        return Err(Refusal::new(400, "FAILED_PRECONDITION", message));
    }
    let data = fs::read(directory.join("versions").join(file)).unwrap_or_default();
    let checksum = crc32c::crc32c(&data) ^ u32::from(state == "corrupt");
    let payload = json!({ "data": BASE64_STANDARD.encode(data), "dataCrc32c": checksum.to_string() });
    Ok(json!({ "name": resource, "payload": payload }))
}
