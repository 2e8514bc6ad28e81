//! Our own durable record on the data disk: which version owns the state, what the operator last chose.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::config::{ImageConfig, ImageSource};
use crate::disk::DataDir;
use crate::host::{Access, Host};
use crate::image::{Image, is_standard};

/// `openclaw-init/record.json` on the data disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Record {
    /// The gateway version that last owned the state.
    pub version: Option<String>,
    /// The choice ([`ImageConfig::choice`]) that was last acted upon, whatever came of it.
    pub choice: Option<String>,
    /// The image that first became ready on the state, without the operator's extras.
    pub image: Option<String>,
    /// That image with its digest, `REFERENCE@sha256:…`: what a new boot disk pulls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What the state belonged to before the last update, and where it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<Previous>>,
    /// Why [`Record::choice`] is not what runs, when an update to it was refused or undone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The choice whose update was cut short once; a second time it counts as refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<String>,
    /// Whether a gateway has lived in the state directory, as the directory itself shows it; never
    /// written. With it and without [`Record::version`] the state's version is unknown, not free to
    /// choose: the record was lost, or the run was cut before it was first written.
    #[serde(skip)]
    pub state_exists: bool,
}

/// The way back from an update: a state and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Previous {
    /// The record of that time.
    pub record: Record,
    /// The image that ran then, with the operator's extras.
    pub image: String,
    /// The copies.
    pub copy: Copy,
    /// When that version was stopped: the state is of this time.
    pub of: jiff::Timestamp,
}

/// A copy of the state and of what belongs to it, by the names of directories beside the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Copy {
    /// Of the state directory.
    pub state: String,
    /// Of the directory of `/home/node/.config/openclaw`.
    pub config: String,
}

impl Record {
    /// Reads the record; a missing or half-written one is an empty one (with a warning for the latter).
    ///
    /// An empty record does not mean an empty state: see [`Record::state_exists`].
    pub async fn read(host: &Host, data: &DataDir) -> Result<Self> {
        let path = path(data);
        let read = match host.read(&path).await? {
            None => Self::default(),
            Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                host.warn(format!("{} cannot be read ({error}): going on without it", path.display()));
                Self::default()
            }),
        };
        Ok(Self { state_exists: data.holds_state(host).await?, ..read })
    }

    /// The record once `image` is ready on this state. A state that had an owner keeps it. The choice that led
    /// to it stays as well while the attributes ask for something else, so that this is still seen as a change.
    #[must_use]
    pub fn owned_by(mut self, image: &Image, config: &ImageConfig) -> Self {
        // An image that was built or loaded here has none: then the one that it had stays.
        if image.digest.is_some() && self.image.as_ref() == Some(&image.base) {
            self.digest.clone_from(&image.digest);
        }
        match self.version {
            Some(_) if self.satisfies(config) => {
                Self { choice: config.choice(), refused: None, interrupted: None, ..self }
            }
            Some(_) => self,
            None => Self {
                version: Some(image.version.clone()),
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
                self.version.as_ref() == Some(version) && self.image.as_ref().is_none_or(standard)
            }
        }
    }

    /// Writes the record if it differs from the one on the disk; true when it was written. After a power
    /// cut there is the old one or the new one.
    pub async fn write(&self, host: &Host, data: &DataDir) -> Result<bool> {
        let mut bytes = serde_json::to_vec_pretty(self).context("writing the record as JSON")?;
        bytes.push(b'\n');
        host.ensure_file(path(data), bytes, Access::root(0o600)).await
    }
}

fn path(data: &DataDir) -> PathBuf {
    data.records.join("record.json")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_record_is_read_whatever_became_of_it() -> Result<()> {
        let written = Record { version: Some("2026.9.6".into()), ..Record::default() };
        let whole = serde_json::to_vec(&written)?;
        let cases = [
            ("missing", None, Record::default(), 0),
            ("whole", Some(whole.clone()), written, 0),
            ("half", Some(whole[..whole.len() / 2].to_vec()), Record::default(), 1),
            ("empty", Some(Vec::new()), Record::default(), 1),
            ("of a later program", Some(br#"{"later":1}"#.to_vec()), Record::default(), 0),
        ];
        for (case, bytes, expected, warnings) in cases {
            let root = tempfile::tempdir()?;
            let host = Host::new(root.path());
            let below = |name: &str| PathBuf::from("/data").join(name);
            let data = DataDir {
                state: below("openclaw"),
                config: below("config-openclaw"),
                records: below("openclaw-init"),
                backups: below("backups"),
                on_boot_disk: false,
            };
            fs::create_dir_all(host.path(&data.records))?;
            fs::create_dir_all(host.path(&data.state))?;
            if let Some(bytes) = bytes {
                fs::write(host.path(path(&data)), bytes)?;
            }
            assert_eq!(Record::read(&host, &data).await?, expected, "{case}");
            assert_eq!(host.notes().borrow().warnings.len(), warnings, "{case}");
            fs::write(host.path(data.state.join("openclaw.json")), "{}")?;
            assert!(
                Record::read(&host, &data).await?.state_exists,
                "{case}: a state is not empty for want of a record"
            );
        }
        Ok(())
    }
}
