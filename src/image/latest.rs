//! The version that `openclaw-version=latest` stands for, found out when the state is empty or an update is asked
//! for. From then on it is like any other: the tag may move, the machine stays.

use anyhow::{Result, anyhow};

use super::choice::Source;
use super::{Images, find, official, pull, version_in};
use crate::config::ImageSource;
use crate::error::{Classify as _, Code};
use crate::reference::ImageReference;
use crate::version::{GatewayVersion, Variant, VersionChoice};

impl Images<'_> {
    /// The exact version, whose official image is then on this machine under its own tag.
    pub(super) async fn resolve_latest(self, source: &Source, variant: Option<Variant>) -> Result<GatewayVersion> {
        let name = VersionChoice::Latest;
        if *source != Source::Standard(ImageSource::Release) {
            return Err(anyhow!("only the prebuilt image has a version that is called {name}")).classify(
                Code::ConfigInvalid,
                "Name an exact version such as 2026.9.6, or unset openclaw-image-source.",
            );
        }
        let tag = variant.map_or_else(|| name.to_string(), |variant| variant.latest().to_owned());
        let (latest, inspect) = self.pull_first(&official(&tag)).await?;
        let version = version_in(&inspect, &latest)
            .ok_or_else(|| anyhow!("{latest} does not say which version it is"))
            .classify(Code::ImageNotFound, "Set openclaw-version to an exact version such as 2026.9.6.")?;
        let version = variant.map_or_else(|| version.clone(), |variant| version.in_variant(variant));
        let exact = ImageReference::tagged(latest.repository(), &version);
        // The gateway may run from an image of that name: a later build of the same version does not take its place.
        if find(self.engine, &exact).await?.is_some() {
            pull::untag(self.engine, &latest).await?;
        } else {
            pull::rename(self.engine, &latest, &exact).await?;
        }
        Ok(version)
    }
}
