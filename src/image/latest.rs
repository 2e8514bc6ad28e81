//! The version that `openclaw-version=latest` stands for, found out when the state is empty or an update is asked
//! for. From then on it is like any other: the tag may move, the machine stays.

use anyhow::{Result, anyhow};

use super::choice::Source;
use super::registries::Registries;
use super::{official, present, pull, version_in};
use crate::config::LATEST;
use crate::docker::Engine;
use crate::error::{Classify as _, Code};
use crate::host::Host;

/// The exact version, whose official image is then on this machine under its own tag.
pub(super) async fn version(
    host: &Host,
    engine: &Engine,
    registries: Registries<'_>,
    source: &Source,
) -> Result<String> {
    if *source != Source::Release {
        return Err(anyhow!("only the prebuilt image has a version that is called {LATEST}"))
            .classify(Code::ConfigInvalid, "Name an exact version such as 2026.9.6, or unset openclaw-image-source.");
    }
    let (latest, inspect) = pull::first_of(host, engine, registries, &official(LATEST)).await?;
    let version = version_in(&inspect, &latest).ok_or_else(|| anyhow!("{latest} does not say which version it is"));
    let version =
        version.classify(Code::ImageNotFound, "Set openclaw-version to an exact version such as 2026.9.6.")?;
    let reference = latest.replace(&format!(":{LATEST}"), &format!(":{version}"));
    // The gateway may run from an image of that name: a later build of the same version does not take its place.
    if present(engine, &reference).await?.is_some() {
        pull::untag(engine, &latest).await?;
    } else {
        pull::rename(engine, &latest, &reference).await?;
    }
    Ok(version)
}
