//! A plain web server for a directory: where `startup-script-url` points.

use std::path::{Component, Path, PathBuf};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::log::Log;

/// Serves the regular files below `dir`; the path is taken as it is, without percent decoding.
pub(super) fn router(dir: PathBuf, log: Log) -> Router {
    Router::new().fallback(handle).with_state((dir, log))
}

async fn handle(State((dir, log)): State<(PathBuf, Log)>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let entry = log.begin("files", &parts);
    let response = match parts.method {
        Method::GET | Method::HEAD => answer(&dir, parts.uri.path()).await,
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    };
    entry.note(|request| request.status = Some(response.status().as_u16()));
    response
}

/// The file at `path` below `dir`, or 404.
pub(super) async fn answer(dir: &Path, path: &str) -> Response {
    match open(dir, path).await {
        Some((file, length)) => stream(file, length),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A regular file below `dir` with its length in bytes.
async fn open(dir: &Path, path: &str) -> Option<(File, u64)> {
    let relative = Path::new(path.trim_start_matches('/'));
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let file = File::open(dir.join(relative)).await.ok()?;
    let metadata = file.metadata().await.ok()?;
    metadata.is_file().then_some((file, metadata.len()))
}

fn stream(file: File, length: u64) -> Response {
    let mut response = Body::from_stream(ReaderStream::with_capacity(file, 64 * 1024)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}
