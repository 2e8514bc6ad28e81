//! The attributes as they were set, and what is wrong with them.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

use super::check::{self, Checked};
use super::keys;
use super::secret_version::SecretVersion;
use crate::error::{Classify, Code, RUN_AGAIN};

/// The attributes and what is wrong with them so far.
pub(super) struct Attributes<'a> {
    attributes: &'a BTreeMap<String, String>,
    /// Key and complaint.
    errors: Vec<(String, String)>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(attributes: &'a BTreeMap<String, String>) -> Self {
        Self { attributes, errors: Vec::new() }
    }

    /// The checked variables of `openclaw-env-NAME`.
    pub(super) fn env(&mut self) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for (key, value) in self.attributes {
            let Some(name) = key.strip_prefix(keys::ENV_PREFIX) else { continue };
            match check::variable(name, value) {
                Ok(()) => env.extend(self.value(key).map(|value| (name.to_owned(), value.to_owned()))),
                Err(complaint) => self.reject(key, format!("{key}: {complaint}")),
            }
        }
        env
    }

    /// The checked names of `openclaw-secret-NAME`. A variable has one source.
    pub(super) fn secrets(&mut self) -> BTreeMap<String, SecretVersion> {
        let mut secrets = BTreeMap::new();
        for key in self.attributes.keys() {
            let Some(name) = key.strip_prefix(keys::SECRET_PREFIX) else { continue };
            let env = format!("{}{name}", keys::ENV_PREFIX);
            if let Err(complaint) = check::variable(name, "") {
                self.reject(key, format!("{key}: {complaint}"));
            } else if self.attributes.contains_key(&env) {
                self.reject(key, format!("{env} and {key} set the same variable: remove one of them"));
            } else if let Some(secret) = self.get_secret(key, SecretVersion::named) {
                secrets.insert(name.to_owned(), secret);
            }
        }
        secrets
    }

    /// The keys that begin with `prefix`, each with the rest of it.
    pub(super) fn beginning_with(&self, prefix: &str) -> Vec<(&'a str, &'a str)> {
        let keys = self.attributes.keys().map(String::as_str);
        keys.filter_map(|key| Some((key, key.strip_prefix(prefix)?))).collect()
    }

    /// Whether `key` is set, to whatever.
    pub(super) fn has(&self, key: &str) -> bool {
        self.attributes.contains_key(key)
    }

    /// The checked value of `key`, `None` when it is not set or wrong.
    pub(super) fn get<T>(&mut self, key: &str, check: impl FnOnce(&str) -> Checked<T>) -> Option<T> {
        let value = self.value(key)?;
        check(value).map_err(|complaint| self.reject(key, format!("{key}={}: {complaint}", check::display(value)))).ok()
    }

    /// Like [`Attributes::get`], for a value that must not appear in a message.
    pub(super) fn get_secret<T>(&mut self, key: &str, check: impl FnOnce(&str) -> Checked<T>) -> Option<T> {
        let value = self.value(key)?;
        check(value).map_err(|complaint| self.reject(key, format!("{key} (value not shown): {complaint}"))).ok()
    }

    /// The trimmed value of `key`; one that is set to nothing is a slip.
    fn value(&mut self, key: &str) -> Option<&'a str> {
        match self.attributes.get(key)?.trim() {
            "" => {
                self.reject(key, format!("{key} is empty: give it a value or remove it"));
                None
            }
            value => Some(value),
        }
    }

    /// Notes a complaint, a whole clause, about `key`.
    pub(super) fn reject(&mut self, key: &str, complaint: impl Into<String>) {
        self.errors.push((key.to_owned(), complaint.into()));
    }

    /// The one error for everything that is wrong.
    pub(super) fn outcome(self) -> Result<()> {
        if self.errors.is_empty() {
            return Ok(());
        }
        let (names, complaints): (Vec<_>, Vec<_>) = self.errors.into_iter().unzip();
        Err(anyhow!(complaints.join("; "))).classify(
            Code::ConfigInvalid,
            format!(
                "Correct it with `gcloud compute instances add-metadata VM --zone=ZONE --metadata=KEY=VALUE` or remove \
                 it with `gcloud compute instances remove-metadata VM --zone=ZONE --keys={}` (or in the project's \
                 metadata, if it was set there), then run `{RUN_AGAIN}`.",
                names.join(",")
            ),
        )
    }
}
