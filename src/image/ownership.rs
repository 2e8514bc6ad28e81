//! Which image a state belongs to, as its record says.

use super::{Image, is_standard};
use crate::config::{ImageConfig, ImageSource};
use crate::reference::ImageReference;
use crate::state::{Owner, Record};
use crate::version::VersionChoice;

impl Record {
    /// The record once `image` is ready on this state. A state that had an owner keeps it. The choice that led
    /// to it stays as well while the attributes ask for something else, so that this is still seen as a change.
    #[must_use]
    pub fn owned_by(mut self, image: &Image, config: &ImageConfig) -> Self {
        // What was built or loaded here has no digest: then the recorded one stays.
        if let Some(recorded) = self.image.as_mut().filter(|recorded| recorded.reference == image.base.reference)
            && image.base.digest.is_some()
        {
            recorded.clone_from(&image.base);
        }
        match &self.owner {
            Owner::Version(_) if self.satisfies(config) => {
                Self { choice: config.choice(), refused: None, interrupted: None, ..self }
            }
            Owner::Version(_) => self,
            Owner::Nobody | Owner::Unknown => Self {
                owner: Owner::Version(image.version.clone()),
                choice: config.choice(),
                image: Some(image.base.clone()),
                ..self
            },
        }
    }

    /// Every image that this state needs: the one that runs, what it was made of, the one that the state belongs to,
    /// and those of the way back.
    pub fn images<'a>(&'a self, image: &'a Image) -> Vec<&'a ImageReference> {
        let previous = self.previous.as_deref();
        let recorded = self.image.iter().chain(previous.and_then(|previous| previous.record.image.as_ref()));
        [&image.reference, &image.base.reference]
            .into_iter()
            .chain(recorded.map(|image| &image.reference))
            .chain(previous.map(|previous| &previous.image))
            .collect()
    }

    /// Whether the state's owner is what the operator chose.
    pub fn satisfies(&self, config: &ImageConfig) -> bool {
        let image = self.image.as_ref().map(|image| &image.reference);
        match (&config.reference, &config.source, &config.version) {
            (Some(reference), _, _) => image == Some(reference),
            (None, ImageSource::Release | ImageSource::Npm, Some(VersionChoice::Exact(version))) => {
                self.owner.version() == Some(version) && image.is_none_or(|image| is_standard(image, version))
            }
            // A version does not tell one commit from another.
            (None, _, _) => false,
        }
    }
}
