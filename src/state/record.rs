//! Our own durable record on the data disk: which version owns the state, what the operator last chose.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::DataDir;
use super::settings::{OwnedSettings, RefusedSettings};
use crate::host::{Host, json_file};
use crate::lock::RunLock;
use crate::reference::{ImageReference, PinnedImage};
use crate::version::GatewayVersion;

/// Who owns a state: the version of the gateway that last became ready on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Owner {
    /// No gateway has lived in the state directory: any version may.
    #[default]
    Nobody,
    /// There is a state of an unknown owner: the record was lost, or the run was cut before it was first written.
    Unknown,
    /// This version.
    Version(GatewayVersion),
}

impl Owner {
    /// The version, if it is known.
    pub fn version(&self) -> Option<&GatewayVersion> {
        match self {
            Self::Version(version) => Some(version),
            Self::Nobody | Self::Unknown => None,
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(version) => version.fmt(out),
            Self::Nobody | Self::Unknown => out.write_str("an unknown version"),
        }
    }
}

/// `openclaw-init/record.json` on the data disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Record {
    /// The gateway version that last owned the state. In the file it is `version`, with null for the others.
    #[serde(rename = "version", serialize_with = "write_owner", deserialize_with = "read_owner")]
    pub owner: Owner,
    /// The choice ([`choice`](crate::config::ImageConfig::choice)) that was last acted upon, with or without success.
    pub choice: Option<String>,
    /// The image that first became ready on the state, without the operator's extras, with what a new boot disk pulls.
    #[serde(flatten, with = "pinned")]
    pub image: Option<PinnedImage>,
    /// What the state belonged to before the last update, and where it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<Previous>>,
    /// Why [`Record::choice`] is not what runs, when an update to it was refused or undone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The choice whose update was cut short once; a second time it counts as refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<String>,
    /// The container with which the gateway did not come up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_container: Option<RefusedSettings>,
    /// What of `openclaw.json` is the operator's.
    #[serde(skip_serializing_if = "OwnedSettings::is_empty")]
    pub settings: OwnedSettings,
    /// The plugins that the gateway had loaded when it was last ready, by their ids.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub plugins: BTreeSet<String>,
    /// Those that it had loaded before and lacks.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub lost_plugins: BTreeSet<String>,
    /// The requests to be paired that were approved because an attribute names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approved: Vec<String>,
}

/// The way back from an update: a state and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Previous {
    /// The record of that time.
    pub record: Record,
    /// The image that ran then, with the operator's extras.
    pub image: ImageReference,
    /// The state and what belongs to it, as that version left it.
    pub copy: SafetyCopy,
    /// When that version was stopped: the state is of this time.
    pub of: jiff::Timestamp,
}

/// A copy of the state and of what belongs to it, by the names of directories beside the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SafetyCopy {
    /// Of the state directory.
    pub state: String,
    /// Of the directory of `/home/node/.config/openclaw`.
    pub config: String,
}

impl Record {
    /// Reads the record; a missing one is empty, and so is one that cannot be understood, with a warning.
    ///
    /// An empty record does not mean an empty state: then [`Record::owner`] is unknown.
    pub async fn read(host: &Host, data: &DataDir) -> Result<Self> {
        let record: Self = json_file::read_hint(host, path(data)).await?.unwrap_or_default();
        let owner = match record.owner {
            Owner::Nobody if data.holds_state(host).await? => Owner::Unknown,
            owner => owner,
        };
        Ok(Self { owner, ..record })
    }

    /// The same without what was in `openclaw.json` before the operator's settings: it may be a credential.
    #[must_use]
    pub fn without_former_values(self) -> Self {
        let previous = self.previous.map(|previous| {
            let Previous { record, image, copy, of } = *previous;
            Box::new(Previous { record: record.without_former_values(), image, copy, of })
        });
        Self { previous, settings: OwnedSettings::default(), ..self }
    }

    /// Writes the record if it differs from the one on the disk; true when it was written. After a power
    /// cut there is the old one or the new one.
    pub(crate) async fn write(&self, host: &Host, data: &DataDir, _lock: &RunLock) -> Result<bool> {
        json_file::write(host, path(data), self).await
    }
}

fn write_owner<S: Serializer>(owner: &Owner, serializer: S) -> Result<S::Ok, S::Error> {
    owner.version().serialize(serializer)
}

fn read_owner<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Owner, D::Error> {
    let version = Option::<GatewayVersion>::deserialize(deserializer)?;
    Ok(version.map_or(Owner::Nobody, Owner::Version))
}

/// The image in the file: `image`, null for none, and with its digest `digest` (`REFERENCE@sha256:…`).
mod pinned {
    use super::{Deserialize, Deserializer, ImageReference, PinnedImage, Serialize, Serializer};

    #[derive(Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Fields {
        image: Option<ImageReference>,
        #[serde(skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    }

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(image: &Option<PinnedImage>, serializer: S) -> Result<S::Ok, S::Error> {
        let digest = image.as_ref().filter(|image| image.digest.is_some()).map(ToString::to_string);
        Fields { image: image.as_ref().map(|image| image.reference.clone()), digest }.serialize(serializer)
    }

    /// A digest of another image, or one that cannot be read, is none: then the tag is pulled.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PinnedImage>, D::Error> {
        let Fields { image, digest } = Fields::deserialize(deserializer)?;
        Ok(image.map(|reference| {
            let digest = digest.and_then(|text| text.strip_prefix(&format!("{reference}@"))?.parse().ok());
            PinnedImage { reference, digest }
        }))
    }
}

fn path(data: &DataDir) -> PathBuf {
    data.records.join("record.json")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// As version 0.1.0 wrote it.
    const WRITTEN: &str = r#"{
  "version": "2026.9.6",
  "choice": "2026.9.6",
  "image": "ghcr.io/openclaw/openclaw:2026.9.6",
  "digest": "ghcr.io/openclaw/openclaw:2026.9.6@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
  "previous": {
    "record": {
      "version": "2026.9.5",
      "choice": null,
      "image": null
    },
    "image": "localhost/openclaw-init:2026.9.5-0123456789ab",
    "copy": {
      "state": "openclaw.before-update-20261001T120000Z",
      "config": "config-openclaw.before-update-20261001T120000Z"
    },
    "of": "2026-10-01T12:00:00Z"
  }
}"#;

    #[test]
    fn image_and_digest_are_two_fields_of_the_file_and_one_of_the_record() -> Result<()> {
        let record: Record = serde_json::from_str(WRITTEN)?;
        let image = record.image.as_ref().map(|image| (image.reference.to_string(), image.digest.is_some()));
        assert_eq!(image, Some(("ghcr.io/openclaw/openclaw:2026.9.6".to_owned(), true)));
        assert_eq!(record.previous.as_ref().map(|previous| previous.record.image.clone()), Some(None));
        assert_eq!(serde_json::to_string_pretty(&record)?, WRITTEN);

        let sha = format!("sha256:{}", "0".repeat(64));
        let cases = [
            (json!("a/b:1"), json!(format!("a/b:1@{sha}")), Some(format!("a/b:1@{sha}"))),
            (json!("a/b:1"), json!(format!("a/b:2@{sha}")), Some("a/b:1".to_owned())),
            (json!("a/b:1"), json!("a/b:1@"), Some("a/b:1".to_owned())),
            (json!("a/b:1"), json!("a/b:1"), Some("a/b:1".to_owned())),
            (json!("a/b:1"), json!("a/b:1@sha256:00"), Some("a/b:1".to_owned())),
            (json!(format!("a/b@{sha}")), json!(format!("a/b@{sha}")), Some(format!("a/b@{sha}"))),
            (json!(null), json!(format!("a/b:1@{sha}")), None),
        ];
        for (image, digest, expected) in cases {
            let record: Record = serde_json::from_value(json!({"image": image, "digest": digest}))?;
            assert_eq!(record.image.map(|image| image.to_string()), expected, "{image} {digest}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_record_is_read_in_any_condition() -> Result<()> {
        let written = Record { owner: Owner::Version("2026.9.6".into()), ..Record::default() };
        let whole = serde_json::to_vec(&written)?;
        let cases = [
            ("missing", None, Record::default(), 0),
            ("whole", Some(whole.clone()), written, 0),
            ("half", Some(whole[..whole.len() / 2].to_vec()), Record::default(), 1),
            ("empty", Some(Vec::new()), Record::default(), 1),
            ("of version 0.1.0", Some(br#"{"version":null,"choice":null}"#.to_vec()), Record::default(), 0),
            ("of a later program", Some(br#"{"format":2}"#.to_vec()), Record::default(), 1),
        ];
        for (case, bytes, expected, warnings) in cases {
            let root = tempfile::tempdir()?;
            let host = Host::new(root.path());
            let data = DataDir::at("/data", false);
            fs::create_dir_all(host.path(&data.records))?;
            fs::create_dir_all(host.path(&data.state))?;
            if let Some(bytes) = bytes {
                fs::write(host.path(path(&data)), bytes)?;
            }
            assert_eq!(Record::read(&host, &data).await?, expected.clone(), "{case}");
            assert_eq!(host.ledger().borrow().warnings.len(), warnings, "{case}");
            fs::write(host.path(data.state.join("openclaw.json")), "{}")?;
            let owner = Record::read(&host, &data).await?.owner;
            let known = if expected.owner == Owner::Nobody { Owner::Unknown } else { expected.owner };
            assert_eq!(owner, known, "{case}: a state is not nobody's for want of a record");
        }
        Ok(())
    }
}
