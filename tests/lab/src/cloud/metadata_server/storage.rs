//! Cloud Storage as far as a download goes: `GET /storage/v1/b/BUCKET/o/OBJECT?alt=media` of its JSON API, and
//! `GET /BUCKET/OBJECT` of its XML API, which Google's script runner uses.

use std::path::PathBuf;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use super::answer::ACCESS_TOKEN;
use super::files;
use super::log::Log;

/// The one bucket that there is; the README names a bucket after its project like this.
pub const BUCKET: &str = "openclaw-lab-openclaw";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Params {
    alt: String,
}

pub(super) fn router(dir: PathBuf, log: Log) -> Router {
    Router::new()
        .route("/storage/v1/b/{bucket}/o/{object}", get(json))
        .route("/{bucket}/{*object}", get(xml))
        .with_state((dir, log))
}

async fn json(
    State((dir, log)): State<(PathBuf, Log)>,
    Path((bucket, object)): Path<(String, String)>,
    Query(params): Query<Params>,
    request: Request,
) -> Response {
    let object = (params.alt == "media").then_some(object);
    answer(&dir, &log, &bucket, object, request).await
}

async fn xml(
    State((dir, log)): State<(PathBuf, Log)>,
    Path((bucket, object)): Path<(String, String)>,
    request: Request,
) -> Response {
    answer(&dir, &log, &bucket, Some(object), request).await
}

/// As on Compute Engine, a caller who may not see a bucket is told so whether the object exists or not.
async fn answer(dir: &std::path::Path, log: &Log, bucket: &str, object: Option<String>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let entry = log.begin("storage", &parts);
    let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let response = match (authorization.map(|value| value.strip_prefix("Bearer ")), object) {
        (None | Some(None), _) => StatusCode::UNAUTHORIZED.into_response(),
        (Some(Some(ACCESS_TOKEN)), Some(object)) if bucket == BUCKET => files::answer(dir, &object).await,
        (Some(Some(ACCESS_TOKEN)), _) => StatusCode::NOT_FOUND.into_response(),
        (Some(Some(_)), _) => StatusCode::FORBIDDEN.into_response(),
    };
    entry.note(|request| request.status = Some(response.status().as_u16()));
    response
}
