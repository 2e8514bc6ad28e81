//! What is remembered of `openclaw-config`: which paths of `openclaw.json` are the operator's, and what was there
//! before.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::DataDir;

/// The record of settings that are being tried. It is about the state in use, and of no use for another one.
pub fn settings_trial(data: &DataDir) -> PathBuf {
    data.records.join("settings-trial.json")
}

/// The operator's part of `openclaw.json`, as it was last applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct OwnedSettings {
    /// What goes back when the operator no longer sets it.
    pub owned: Vec<Owned>,
    /// The settings with which the gateway did not come up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedSettings>,
}

impl OwnedSettings {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One path that the operator sets, and what was there before.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Owned {
    /// The keys from the top.
    pub path: Vec<String>,
    /// How many of the keys led to what was there before, or to where nothing was.
    pub depth: usize,
    /// What was there; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// The operator asks only for an object, and what somebody puts into it is not his.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_object: bool,
}

impl std::fmt::Debug for Owned {
    /// Without the value: it may be a credential.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Owned({}, {})", self.path.join("."), self.depth)
    }
}

/// Settings that are not tried again: another start with them would be another outage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RefusedSettings {
    /// Of the settings and the gateway's version; of a container, its fingerprint.
    pub digest: String,
    /// What the gateway said.
    pub why: String,
}
