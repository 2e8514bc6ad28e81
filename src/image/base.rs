//! The image without the operator's extras: pulled, or built here.

use anyhow::{Context as _, Result};
use bollard::models::ImageInspect;

use super::choice::Source;
use super::recipe::Recipe;
use super::{Images, build, find_first, npm, official, pin, source};
use crate::config::{ImageConfig, ImageSource, SourceCommit};
use crate::reference::{ImageReference, PinnedImage};
use crate::state::Record;
use crate::version::GatewayVersion;

/// How the image without the operator's extras comes about.
pub(super) enum Base<'a> {
    /// The first of these references that exists, with the record of one of them.
    Pulled { references: Vec<ImageReference>, recorded: Option<&'a PinnedImage> },
    /// Built from the npm package.
    Npm(Recipe),
    /// Built from a commit of the source.
    Commit(Recipe, &'a SourceCommit),
}

impl<'a> Base<'a> {
    pub(super) fn new(version: &GatewayVersion, source: &'a Source, config: &ImageConfig, record: &'a Record) -> Self {
        let pulled = |references| Self::Pulled { references, recorded: record.image.as_ref() };
        match source {
            Source::Reference(reference) => pulled(vec![reference.clone()]),
            Source::Standard(ImageSource::Release) => pulled(official(version).to_vec()),
            Source::Standard(ImageSource::Npm) => Self::Npm(npm::recipe(version, config.npm_registry.as_deref())),
            Source::Standard(ImageSource::Source(commit)) => Self::Commit(source::recipe(version, commit), commit),
        }
    }

    /// What determines it, as far as that is known before it is on this machine.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Pulled { references, .. } => references.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Self::Npm(recipe) | Self::Commit(recipe, _) => recipe.fingerprint.clone(),
        }
    }
}

impl Images<'_> {
    /// The base as it is on this machine, else the name by which it would be chosen.
    pub(super) async fn find_base(self, base: &Base<'_>) -> Result<PinnedImage> {
        let reference = match base {
            Base::Npm(recipe) | Base::Commit(recipe, _) => recipe.reference(),
            Base::Pulled { references, .. } => match find_first(self.engine, references).await? {
                Some((reference, inspect)) => return Ok(pin::pin(self.registries, reference, &inspect)),
                None => references.first().cloned().context("no image is named")?,
            },
        };
        Ok(PinnedImage { reference, digest: None })
    }

    /// Makes sure that the base is on this machine.
    pub(super) async fn ensure_base(self, base: &Base<'_>) -> Result<(PinnedImage, ImageInspect)> {
        let (reference, inspect) = match base {
            Base::Pulled { references, recorded } => self.find_or_pull(references, *recorded).await?,
            Base::Npm(recipe) | Base::Commit(recipe, _) => {
                let inspect = match (build::find(self.engine, recipe).await?, base) {
                    (Some(inspect), _) => inspect,
                    (None, Base::Commit(_, commit)) => self.build_source(recipe, commit).await?,
                    (None, _) => self.build(recipe, &recipe.version, npm::pack).await?,
                };
                (recipe.reference(), inspect)
            }
        };
        Ok((pin::pin(self.registries, reference, &inspect), inspect))
    }
}
