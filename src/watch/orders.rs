//! What a run leaves for the watcher: whether it is wanted, and what the run has applied.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::{Config, GatewayConfig, keys};
use crate::host::Host;
use crate::paths::WATCH_ORDERS;
use crate::state::DataDir;
use crate::text::hex;

/// What the latest run knows. Gone with the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    pub(super) is_on: bool,
    /// The attributes that the run has read: their values as digests.
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) published: Option<(IpAddr, u16)>,
    /// The name at which this machine serves the gateway.
    #[serde(default)]
    pub(super) domain: Option<String>,
    /// Where browsers find the gateway behind any proxy.
    #[serde(default)]
    origin: Option<String>,
    pub(super) is_shielded: bool,
    /// Where the state is, once the run has opened it, and whether that is the boot disk.
    pub(super) data: Option<(PathBuf, bool)>,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            is_on: true,
            attributes: BTreeMap::new(),
            published: None,
            domain: None,
            origin: None,
            is_shielded: false,
            data: None,
        }
    }
}

impl Orders {
    /// Those of the latest run, `None` before the first one of this boot.
    pub(super) async fn read(host: &Host) -> Result<Option<Self>> {
        let Some(bytes) = host.read(WATCH_ORDERS).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading {WATCH_ORDERS}"))
    }

    /// When the latest run left them.
    pub(super) async fn left_at(host: &Host) -> Option<SystemTime> {
        tokio::fs::metadata(host.path(WATCH_ORDERS)).await.ok()?.modified().ok()
    }

    /// Where browsers find the gateway, if a proxy is in front of it.
    pub async fn origin(host: &Host) -> Option<String> {
        Self::read(host).await.ok().flatten()?.origin
    }

    /// Whether a run of this boot wants the machine to be watched.
    pub(super) async fn are_on(host: &Host) -> bool {
        Self::read(host).await.ok().flatten().is_some_and(|orders| orders.is_on)
    }

    /// Notes the attributes that a run has read, before it looks at their values.
    pub async fn leave_attributes(host: &Host, attributes: &BTreeMap<String, String>) -> Result<()> {
        Self::change(host, |orders| orders.attributes = digests(attributes)).await
    }

    /// Notes what they mean for the watcher.
    pub async fn leave_config(host: &Host, config: &Config) -> Result<()> {
        Self::change(host, |orders| {
            orders.is_on = config.is_watched;
            orders.published = Some((config.gateway.bind, config.gateway.port));
            orders.domain = config.domain.as_ref().map(|domain| domain.name.clone());
            orders.origin = config.gateway.ingress.as_ref().map(|ingress| ingress.origin.clone());
            orders.is_shielded = config.gateway.metadata_access.is_shielded();
        })
        .await
    }

    /// Notes where the state is.
    pub async fn leave_data(host: &Host, data: &DataDir) -> Result<()> {
        let root = data.root()?.to_owned();
        Self::change(host, |orders| orders.data = Some((root, data.on_boot_disk))).await
    }

    /// Not a change of the machine: it is about the run and gone with the boot.
    async fn change(host: &Host, change: impl FnOnce(&mut Self)) -> Result<()> {
        let mut orders = Self::read(host).await.ok().flatten().unwrap_or_default();
        change(&mut orders);
        let bytes = serde_json::to_vec(&orders).context("writing the watcher's orders as JSON")?;
        let (path, new) = (host.path(WATCH_ORDERS), host.path(format!("{WATCH_ORDERS}.new")));
        let written = async {
            tokio::fs::write(&new, bytes).await?;
            tokio::fs::rename(&new, path).await
        };
        written.await.with_context(|| format!("writing {WATCH_ORDERS}"))
    }

    /// How the gateway is reached.
    pub(super) fn gateway(&self) -> Option<GatewayConfig> {
        self.published.map(|(bind, port)| GatewayConfig { port, bind, ..GatewayConfig::default() })
    }

    /// The keys whose values are not those that the run has read.
    pub(super) fn changed(&self, attributes: &BTreeMap<String, String>) -> Vec<String> {
        let now = digests(attributes);
        let keys = now.keys().chain(self.attributes.keys().filter(|key| !now.contains_key(*key)));
        keys.filter(|key| now.get(*key) != self.attributes.get(*key)).cloned().collect()
    }
}

fn digests(attributes: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let ours = attributes.iter().filter(|(key, _)| keys::is_ours(key));
    ours.map(|(key, value)| (key.clone(), hex(Sha256::digest(value)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[tokio::test]
    async fn what_a_run_has_read_is_no_change() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        assert!(!Orders::are_on(&host).await, "no run yet");
        std::fs::create_dir_all(host.path(crate::paths::PRIVATE_RUN_DIR))?;
        let read =
            map(&[("openclaw-port", "1"), ("ssh-keys", "a"), ("openclaw-init-url", "u"), ("openclaw-env-A", "s")]);
        Orders::leave_attributes(&host, &read).await?;
        assert!(Orders::are_on(&host).await, "on is the default");
        let orders = Orders::read(&host).await?.context("they are there")?;
        assert!(!serde_json::to_string(&orders)?.contains("\"s\""), "a value is not written down");
        let cases: [(Pairs<'_>, &[&str]); 5] = [
            (
                &[
                    ("openclaw-port", "1"),
                    ("openclaw-env-A", "s"),
                    ("openclaw-gateway-token", "secret:projects/p/secrets/t"),
                    ("openclaw-secret-A", "projects/p/secrets/s"),
                ],
                &["openclaw-gateway-token", "openclaw-secret-A"],
            ),
            (&[("openclaw-port", "1"), ("openclaw-env-A", "s"), ("ssh-keys", "b")], &[]),
            (&[("openclaw-port", "2"), ("openclaw-env-A", "s"), ("openclaw-init-url", "v")], &["openclaw-port"]),
            (&[("openclaw-port", "1")], &["openclaw-env-A"]),
            (&[("openclaw-port", "1"), ("openclaw-env-A", "s"), ("openclaw-swap", "off")], &["openclaw-swap"]),
        ];
        for (now, changed) in cases {
            assert_eq!(orders.changed(&map(now)), changed, "{now:?}");
        }
        let (config, _) = Config::from_attributes(&map(&[("openclaw-watch", "off"), ("openclaw-port", "7")]))?;
        Orders::leave_config(&host, &config).await?;
        assert!(!Orders::are_on(&host).await);
        let orders = Orders::read(&host).await?.context("they are there")?;
        assert_eq!(orders.gateway().map(|gateway| gateway.port), Some(7));
        assert_eq!(orders.attributes.len(), 2, "the rest stays");
        Ok(())
    }
}
