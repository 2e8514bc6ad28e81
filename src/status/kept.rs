//! What is kept beside the gateway in use, and takes room: states put aside, backups, images.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::docker::{self, Engine, SOCKET};
use crate::gateway;
use crate::host::Host;
use crate::image;
use crate::paths::MKFS_UNDO;
use crate::state::{self, room};
use crate::systemd;
use crate::text::size;

/// How long a tree may be measured, or the engine asked.
const TIMEOUT: Duration = Duration::from_secs(4);

/// One such thing.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) what: String,
    /// The room that it takes; `None`: not known in time.
    pub(super) bytes: Option<u64>,
}

impl fmt::Display for Kept {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            Some(bytes) => write!(out, "{} ({})", self.what, size(bytes)),
            None => write!(out, "{} (of a size that is not known)", self.what),
        }
    }
}

/// All that is known of it. What cannot be asked is left out.
pub(super) async fn find(host: &Host) -> Vec<Kept> {
    let (files, images) = tokio::join!(files(host), tokio::time::timeout(TIMEOUT, images(host)));
    let images = images.unwrap_or_else(|late| Err(late.into()));
    let mut kept = Vec::new();
    for found in [files, images] {
        match found {
            Ok(found) => kept.extend(found),
            Err(error) => tracing::debug!("looking for what is kept: {error:#}"),
        }
    }
    kept
}

async fn files(host: &Host) -> Result<Vec<Kept>> {
    let data = state::current(host).await?;
    let aside = state::aside(host, data.as_ref()).await?.into_iter();
    let others = data.into_iter().map(|data| data.backups).chain([PathBuf::from(MKFS_UNDO)]);
    let mut kept = Vec::new();
    for path in aside.chain(others) {
        let bytes = measure(host, &path).await;
        // An empty directory, or none, is nothing to tell.
        if bytes.is_none_or(|bytes| bytes > EMPTY_BYTES) {
            kept.push(Kept { what: path.display().to_string(), bytes });
        }
    }
    Ok(kept)
}

/// A directory without anything in it takes at most this.
const EMPTY_BYTES: u64 = 4096;

async fn measure(host: &Host, path: &Path) -> Option<u64> {
    let measured = tokio::time::timeout(TIMEOUT, room::of(host, path)).await;
    measured.ok()?.map_err(|error| tracing::debug!("{error:#}")).ok().map(|size| size.bytes)
}

async fn images(host: &Host) -> Result<Vec<Kept>> {
    // To ask an engine that somebody stopped would start it.
    if !systemd::is_active(host, docker::UNIT).await? {
        return Ok(Vec::new());
    }
    let engine = Engine::connect(SOCKET).await?;
    let (image, container) = gateway::image_and_kept(&engine).await?;
    let mut kept: Vec<Kept> =
        container.iter().map(|name| Kept { what: format!("the container {name}"), bytes: None }).collect();
    if let Some(image) = image {
        let (count, bytes) = image::unused(&engine, &image).await?;
        let what = format!("{count} {} that no gateway runs", if count == 1 { "image" } else { "images" });
        kept.extend((count > 0).then_some(Kept { what, bytes: Some(bytes) }));
    }
    Ok(kept)
}
