//! Which image a state belongs to, as its record says.

use super::{Image, is_standard};
use crate::config::{ImageConfig, ImageSource};
use crate::state::{Owner, Record};

impl Record {
    /// The record once `image` is ready on this state. A state that had an owner keeps it. The choice that led
    /// to it stays as well while the attributes ask for something else, so that this is still seen as a change.
    #[must_use]
    pub fn owned_by(mut self, image: &Image, config: &ImageConfig) -> Self {
        // An image that was built or loaded here has none: then the one that it had stays.
        if image.digest.is_some() && self.image.as_ref() == Some(&image.base) {
            self.digest.clone_from(&image.digest);
        }
        match &self.owner {
            Owner::Version(_) if self.satisfies(config) => {
                Self { choice: config.choice(), refused: None, interrupted: None, ..self }
            }
            Owner::Version(_) => self,
            Owner::Nobody | Owner::Unknown => Self {
                owner: Owner::Version(image.version.as_str().into()),
                choice: config.choice(),
                image: Some(image.base.clone()),
                digest: image.digest.clone(),
                ..self
            },
        }
    }

    /// Every image that this state needs: the one that runs, what it was made of, the one that it belongs to, and
    /// those of the way back.
    pub fn images<'a>(&'a self, image: &'a Image) -> Vec<&'a str> {
        let previous =
            self.previous.iter().flat_map(|previous| [&previous.image].into_iter().chain(&previous.record.image));
        [&image.reference, &image.base].into_iter().chain(&self.image).chain(previous).map(String::as_str).collect()
    }

    /// Whether the state's owner is what the operator chose.
    pub fn satisfies(&self, config: &ImageConfig) -> bool {
        match (&config.reference, &config.source, &config.version) {
            (Some(reference), _, _) => self.image.as_ref() == Some(reference),
            // A version does not tell one commit from another.
            (None, ImageSource::Source(_), _) | (None, _, None) => false,
            (None, _, Some(version)) => {
                let standard = |image: &String| is_standard(image, version);
                self.owner.version().is_some_and(|owner| owner.as_str() == version)
                    && self.image.as_ref().is_none_or(standard)
            }
        }
    }
}
