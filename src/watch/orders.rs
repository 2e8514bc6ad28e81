//! What a run leaves for the watcher: whether it is wanted, and what the run has applied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::{self, ApplyChoice, Config, keys};
use crate::host::{Host, uptime};
use crate::metadata::Attributes;
use crate::paths::WATCH_ORDERS;
use crate::state::DataDir;
use crate::text::hex;

/// What the latest run knows. Gone with the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    pub(super) is_on: bool,
    /// The attributes that the run has read: their values as digests.
    pub(super) attributes: BTreeMap<String, String>,
    /// When, since the kernel's start.
    #[serde(default)]
    pub(super) read_at: Option<Duration>,
    /// The keys that the instance itself had then.
    #[serde(default)]
    own: BTreeSet<String>,
    pub(super) published: Option<(IpAddr, u16)>,
    /// The name at which this machine serves the gateway.
    #[serde(default)]
    pub(super) domain: Option<String>,
    /// Where browsers find the gateway behind any proxy.
    #[serde(default)]
    origin: Option<String>,
    pub(super) is_shielded: bool,
    /// How long a start of the gateway may take.
    #[serde(default)]
    pub(super) ready_timeout: Duration,
    /// Where the state is, once the run has opened it, and whether that is the boot disk.
    pub(super) data: Option<(PathBuf, bool)>,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            is_on: true,
            attributes: BTreeMap::new(),
            read_at: None,
            own: BTreeSet::new(),
            published: None,
            domain: None,
            origin: None,
            is_shielded: false,
            ready_timeout: Duration::ZERO,
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
    pub async fn leave_attributes(host: &Host, attributes: &Attributes) -> Result<()> {
        Self::change(host, |orders| {
            orders.attributes = digests(&attributes.values);
            orders.read_at = uptime();
            orders.own.clone_from(&attributes.own);
        })
        .await
    }

    /// Notes what they mean for the watcher.
    pub async fn leave_config(host: &Host, config: &Config) -> Result<()> {
        Self::change(host, |orders| {
            orders.is_on = config.is_watched;
            orders.published = Some((config.gateway.bind, config.gateway.port));
            orders.domain = config.domain.as_ref().map(|domain| domain.name.clone());
            orders.origin = config.gateway.ingress.as_ref().map(|ingress| ingress.origin.clone());
            orders.is_shielded = config.gateway.metadata_access.is_shielded();
            orders.ready_timeout = config.gateway.ready_timeout;
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

    /// What the run has not read, as far as it is to be applied between two boots.
    pub(super) fn changes(&self, now: &Attributes, boot_id: &str) -> Changes {
        if ApplyChoice::of(&now.values) != ApplyChoice::Live {
            return Changes::default();
        }
        let (for_boot, for_run): (Vec<_>, Vec<_>) =
            self.changed(&now.values).into_iter().partition(|key| keys::is_for_boot(key));
        let is_own = |key: &String| now.own.contains(key) || self.own.contains(key);
        let is_spread = !for_run.iter().any(|key| is_own(key) || keys::is_urgent(key));
        let mut restarting = digests(&now.values);
        restarting.retain(|key, _| for_run.contains(key) && keys::may_restart(key));
        let is_restarted = for_run.iter().any(|key| keys::may_restart(key));
        let delay =
            (is_spread && is_restarted).then(|| part_of(config::apply_spread(&now.values), boot_id, &restarting));
        Changes { for_run, for_boot, delay: delay.filter(|delay| !delay.is_zero()) }
    }

    /// The keys whose values are not those that the run has read.
    fn changed(&self, attributes: &BTreeMap<String, String>) -> Vec<String> {
        let now = digests(attributes);
        let keys = now.keys().chain(self.attributes.keys().filter(|key| !now.contains_key(*key)));
        keys.filter(|key| now.get(*key) != self.attributes.get(*key)).cloned().collect()
    }
}

/// Changed attributes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Those that a run can apply.
    pub(super) for_run: Vec<String>,
    /// Those that wait for the next boot.
    pub(super) for_boot: Vec<String>,
    /// How long a run for them waits, so that not all machines of a project are down at once.
    pub(super) delay: Option<Duration>,
}

/// A part of the time that is as good as random, and the same whenever these attributes are asked for in this boot.
fn part_of(spread: Duration, boot_id: &str, attributes: &BTreeMap<String, String>) -> Duration {
    let drawn = Sha256::digest(format!("{boot_id} {attributes:?}"));
    spread * u32::from(u16::from_be_bytes([drawn[0], drawn[1]])) / (1 << 16)
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

    #[test]
    fn only_what_comes_from_the_project_and_restarts_the_gateway_is_spread() {
        let of = |own: Pairs<'_>, projects: Pairs<'_>| {
            let own = map(own);
            let values = map(projects).into_iter().chain(own.clone()).collect();
            Attributes { values, own: own.into_keys().collect() }
        };
        let before = of(&[("openclaw-port", "1")], &[("openclaw-version", "1"), ("openclaw-env-A", "1")]);
        let orders = Orders { attributes: digests(&before.values), own: before.own, ..Orders::default() };
        let (own, version, env) = (("openclaw-port", "1"), ("openclaw-version", "2"), ("openclaw-env-A", "1"));
        let cases: [(Pairs<'_>, Pairs<'_>, bool); 9] = [
            (&[own], &[version, env], true),
            (&[own], &[version, env, ("openclaw-run-id", "2")], true),
            (&[own], &[("openclaw-version", "1")], true),
            (&[own], &[("openclaw-version", "1"), env, ("openclaw-run-id", "2")], false),
            (&[own, version], &[("openclaw-version", "1"), env], false),
            (&[], &[("openclaw-port", "2"), ("openclaw-version", "1"), env], false),
            (&[("openclaw-port", "2")], &[version, env], false),
            (&[own], &[version, env, ("openclaw-apply-spread", "0")], false),
            (&[own], &[version, env, ("openclaw-apply", "boot")], false),
        ];
        for (own, projects, is_spread) in cases {
            let (now, spread) = (of(own, projects), Duration::from_secs(600));
            let delay = orders.changes(&now, "boot").delay;
            assert_eq!(delay.is_some(), is_spread, "{now:?}");
            assert!(delay.is_none_or(|delay| delay < spread), "{delay:?}");
            assert_eq!(orders.changes(&now, "boot").delay, delay, "another look");
        }
        let now = of(&[own], &[version, env]);
        let delays: BTreeSet<_> = (0..100).map(|vm| orders.changes(&now, &vm.to_string()).delay).collect();
        let early = delays.iter().filter(|delay| **delay < Some(Duration::from_secs(300))).count();
        assert!(delays.len() > 90 && (30..70).contains(&early), "{early} of {}", delays.len());
    }

    #[tokio::test]
    async fn what_a_run_has_read_is_no_change() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        assert!(!Orders::are_on(&host).await, "no run yet");
        std::fs::create_dir_all(host.path(crate::paths::PRIVATE_RUN_DIR))?;
        let read =
            map(&[("openclaw-port", "1"), ("ssh-keys", "a"), ("openclaw-init-url", "u"), ("openclaw-env-A", "s")]);
        Orders::leave_attributes(&host, &Attributes { values: read, ..Attributes::default() }).await?;
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
        assert_eq!(orders.published.map(|(_, port)| port), Some(7));
        assert_eq!(orders.attributes.len(), 2, "the rest stays");
        Ok(())
    }
}
