//! Our own durable record on the data disk: which version owns the state, what the operator last chose.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;
use crate::disk::DataDir;
use crate::host::{Access, Host};
use crate::image::Image;

/// `openclaw-init/record.json` on the data disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Record {
    /// The gateway version that last owned the state.
    pub version: Option<String>,
    /// The value of `openclaw-version` when that version was chosen.
    pub choice: Option<String>,
    /// The image that first became ready on the state, without the operator's extras.
    pub image: Option<String>,
    /// Whether a gateway has lived in the state directory, as the directory itself shows it; never
    /// written. With it and without [`Record::version`] the state's version is unknown, not free to
    /// choose: the record was lost, or the run was cut before it was first written.
    #[serde(skip)]
    pub state_exists: bool,
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

    /// The record once `image` is ready on this state. A state that had an owner keeps it and the choice
    /// that led to it, so a choice that changed later is still seen as changed.
    #[must_use]
    pub fn owned_by(self, image: &Image, config: &ImageConfig) -> Self {
        match self.version {
            Some(_) => self,
            None => Self {
                version: Some(image.version.clone()),
                choice: config.version.clone(),
                image: Some(image.base.clone()),
                ..self
            },
        }
    }

    /// Every image that this state needs: the one that runs, what it was made of, and the one that it belongs to.
    pub fn images<'a>(&'a self, image: &'a Image) -> Vec<&'a str> {
        [&image.reference, &image.base].into_iter().chain(&self.image).map(String::as_str).collect()
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
