//! Guest attributes: what the guest says about itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The longest namespace or key in bytes. No public source has the real limit; this is the one of attribute keys.
pub const MAX_KEY: usize = 127;

/// The longest value in bytes. No public source has the real limit; this is the one of attribute values.
pub const MAX_VALUE: usize = 256 * 1024;

/// One key as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAttribute {
    /// The value; none when the key was never written or is deleted.
    pub value: Option<String>,
    /// How many times the key was written or deleted.
    pub revision: u64,
}

/// All namespaces; deleted keys stay, without value, for their revision.
#[derive(Debug, Default)]
pub(super) struct GuestAttributes(BTreeMap<String, BTreeMap<String, GuestAttribute>>);

impl GuestAttributes {
    pub(super) fn clear(&mut self) {
        for attribute in self.0.values_mut().flat_map(BTreeMap::values_mut) {
            attribute.revision += u64::from(attribute.value.take().is_some());
        }
    }

    /// Writes or deletes a key and returns its former value.
    pub(super) fn set(&mut self, namespace: &str, key: &str, value: Option<String>) -> Option<String> {
        let attribute = self.0.entry(namespace.into()).or_default().entry(key.into()).or_default();
        attribute.revision += 1;
        std::mem::replace(&mut attribute.value, value)
    }

    pub(super) fn attribute(&self, namespace: &str, key: &str) -> GuestAttribute {
        self.0.get(namespace).and_then(|keys| keys.get(key)).cloned().unwrap_or_default()
    }

    pub(super) fn namespace(&self, namespace: &str) -> BTreeMap<String, String> {
        self.0.get(namespace).map(present).unwrap_or_default()
    }

    /// The tree below `guest-attributes/`, without what was deleted.
    pub(super) fn tree(&self) -> Value {
        let namespaces = self.0.iter().map(|(namespace, keys)| (namespace.clone(), present(keys)));
        namespaces.filter(|(_, keys)| !keys.is_empty()).map(|(namespace, keys)| (namespace, json!(keys))).collect()
    }
}

fn present(keys: &BTreeMap<String, GuestAttribute>) -> BTreeMap<String, String> {
    keys.iter().filter_map(|(key, attribute)| Some((key.clone(), attribute.value.clone()?))).collect()
}

/// Namespace and key from the path below `guest-attributes/`, when it names exactly one key with allowed spelling:
/// up to [`MAX_KEY`] letters, digits, dots, hyphens and underscores each.
pub(super) fn parse_key(path: &str) -> Option<(&str, &str)> {
    let (namespace, key) = path.split_once('/')?;
    let allowed = |name: &str| {
        (1..=MAX_KEY).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    (allowed(namespace) && allowed(key)).then_some((namespace, key))
}
