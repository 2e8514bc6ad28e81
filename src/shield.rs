//! Containers and build steps cannot reach the metadata server.
//!
//! It would give any of them the VM's service account token and every attribute. An nftables table of our own on the
//! forward hook, independent of Docker and its firewall backend, rejects what containers send there, except DNS:
//! 169.254.169.254 is the VM's resolver as well. Programs of the VM, and containers in the host's network, do not pass
//! the forward hook and are not affected.
//!
//! After a power cut Docker may start containers before our own boot, so a small unit loads the table before Docker
//! starts.

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::config::MetadataAccess;
use crate::error::{Classify, Code};
use crate::host::{Access, Host};
use crate::paths::{ETC_DIR, SHIELD_RULESET};
use crate::text::hex;
use crate::{apt, systemd};

const UNIT: &str = "openclaw-shield.service";

/// The metadata server's addresses, with the words that match them.
const SERVERS: [&str; 2] = ["ip daddr 169.254.169.254", "ip6 daddr fd20:ce::254"];

/// Makes the kernel have exactly this table, or none of ours ([`MetadataAccess::Allow`]).
///
/// It is loaded in one transaction, so that there is no moment without it, and verified by reading it back.
pub async fn ensure(host: &Host, access: MetadataAccess) -> Result<()> {
    match access {
        MetadataAccess::Block => block(host).await,
        MetadataAccess::Allow => {
            host.warn(
                "containers can reach the metadata server, and with it the VM's service account and all \
                 attributes (openclaw-metadata-access=allow)",
            );
            remove(host).await
        }
    }
}

async fn block(host: &Host) -> Result<()> {
    apt::ensure_installed(host, &["nftables"]).await?;
    host.ensure_dir(ETC_DIR, Access::root(0o755)).await?;
    host.ensure_file(SHIELD_RULESET, ruleset(), Access::root(0o644)).await?;
    systemd::ensure_unit(host, UNIT, &unit()).await?;
    if !is_desired(&observe(host).await?) {
        load(host).await.classify(
            Code::UnsupportedSystem,
            "Use an image whose kernel has nf_tables, or accept containers that can reach the metadata server: \
             gcloud compute instances add-metadata VM --metadata=openclaw-metadata-access=allow",
        )?;
    }
    systemd::ensure_enabled(host, UNIT).await?;
    systemd::ensure_started(host, UNIT).await?;
    Ok(())
}

async fn load(host: &Host) -> Result<()> {
    let load = host.command("nft").args(["-f", SHIELD_RULESET]).run().await;
    load.context("loading the table that shields the metadata server")?;
    host.changed("shielded the metadata server from containers");
    let found = observe(host).await?;
    is_desired(&found).then_some(()).ok_or_else(|| anyhow!("the loaded table is not what was written: {found}"))
}

/// Removes the table and what loads it.
pub async fn remove(host: &Host) -> Result<()> {
    systemd::remove_unit(host, UNIT).await?;
    host.remove_file(SHIELD_RULESET).await?;
    let no_nft = apt::installed(host, &["nftables"]).await?.is_empty();
    if no_nft || observe(host).await?.is_null() {
        return Ok(());
    }
    let delete = host.command("nft").args(["delete", "table", "inet", "openclaw_init"]).run().await;
    delete.context("removing the table that shields the metadata server")?;
    host.changed("opened the metadata server to containers");
    Ok(())
}

/// The table as the kernel has it, null when there is none.
async fn observe(host: &Host) -> Result<Value> {
    let list = host.command("nft").args(["-j", "list", "table", "inet", "openclaw_init"]).answers(&[1]);
    let output = list.run().await.context("reading the table that shields the metadata server")?;
    if output.code == 0 {
        return serde_json::from_str(&output.stdout).context("reading nft's JSON");
    }
    tracing::debug!("no shield yet: {}", output.stderr.trim());
    Ok(Value::Null)
}

/// Loads the table before Docker starts; `nftables.service` flushes every table when it starts.
fn unit() -> String {
    format!(
        "\
[Unit]
Description=Keep containers away from the metadata server
After=nftables.service
PartOf=nftables.service
Before=docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {SHIELD_RULESET}

[Install]
WantedBy=docker.service
"
    )
}

/// The rules without their comments, about what the metadata server speaks: HTTP and DNS.
fn rules() -> [String; SERVERS.len()] {
    SERVERS.map(|server| format!("{server} meta l4proto {{ tcp, udp }} th dport != 53 reject"))
}

/// What `nft -f` loads: the table, in place of an older one, in one transaction.
fn ruleset() -> String {
    let mark = mark();
    let rules: String = rules().iter().map(|rule| format!("\t\t{rule} comment \"{mark}\"\n")).collect();
    format!(
        "# Written by openclaw-init at every boot: containers cannot reach the metadata server, except its DNS.\n\
         add table inet openclaw_init\n\
         delete table inet openclaw_init\n\
         table inet openclaw_init {{\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter - 10; policy accept;\n\
         {rules}\
         \t}}\n\
         }}\n"
    )
}

/// The comment of each rule, which sets these rules apart from those of another version.
fn mark() -> String {
    format!("openclaw-init {}", hex(&Sha256::digest(rules().join("\n"))[..6]))
}

/// Whether the table is as in [`ruleset`]: our chain in its place, with our rules and no others.
fn is_desired(table: &Value) -> bool {
    let objects = table["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let all = |kind: &str| objects.iter().filter_map(|object| object.get(kind)).collect::<Vec<_>>();
    let hook = json!({"type": "filter", "hook": "forward", "prio": -10, "policy": "accept"});
    let hooked =
        |chain: &Value| hook.as_object().is_some_and(|hook| hook.iter().all(|(key, value)| &chain[key] == value));
    let (chains, rules, mark) = (all("chain"), all("rule"), mark());
    chains.len() == 1
        && chains.into_iter().all(hooked)
        && rules.len() == SERVERS.len()
        && rules.into_iter().all(|rule| rule["comment"] == mark.as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use expect_test::expect;

    use super::*;

    /// What `nft -j` 1.0.6 prints about the loaded [`ruleset`].
    const LISTED: &str = include_str!("../tests/fixtures/nft/shield.json");

    fn listed() -> Value {
        serde_json::from_str(&LISTED.replace("@MARK@", &mark())).unwrap()
    }

    #[test]
    fn the_loaded_table_is_recognised() {
        assert!(is_desired(&listed()));
    }

    #[test]
    fn anything_else_is_loaded_anew() {
        let without = |index: usize| {
            let mut table = listed();
            table["nftables"].as_array_mut().unwrap().remove(index);
            table
        };
        let with = |index: usize, kind: &str, key: &str, value: Value| {
            let mut table = listed();
            table["nftables"][index][kind][key] = value;
            table
        };
        for (name, table) in [
            ("none", Value::Null),
            ("no chain", without(2)),
            ("a rule is gone", without(3)),
            ("rules of another version", with(4, "rule", "comment", json!("openclaw-init 000000000000"))),
            ("a rule of somebody else", with(3, "rule", "comment", Value::Null)),
            ("another hook", with(2, "chain", "hook", json!("input"))),
            ("after Docker's chains", with(2, "chain", "prio", json!(10))),
        ] {
            assert!(!is_desired(&table), "{name}");
        }
    }

    #[test]
    fn the_ruleset_as_nft_loads_it() {
        expect![[r##"
            # Written by openclaw-init at every boot: containers cannot reach the metadata server, except its DNS.
            add table inet openclaw_init
            delete table inet openclaw_init
            table inet openclaw_init {
            	chain forward {
            		type filter hook forward priority filter - 10; policy accept;
            		ip daddr 169.254.169.254 meta l4proto { tcp, udp } th dport != 53 reject comment "openclaw-init 40a9b9fee8bd"
            		ip6 daddr fd20:ce::254 meta l4proto { tcp, udp } th dport != 53 reject comment "openclaw-init 40a9b9fee8bd"
            	}
            }
        "##]].assert_eq(&ruleset());
    }

    #[test]
    fn the_unit_as_systemd_reads_it() {
        expect![[r#"
            [Unit]
            Description=Keep containers away from the metadata server
            After=nftables.service
            PartOf=nftables.service
            Before=docker.service

            [Service]
            Type=oneshot
            RemainAfterExit=yes
            ExecStart=/usr/sbin/nft -f /etc/openclaw-init/shield.nft

            [Install]
            WantedBy=docker.service
        "#]]
        .assert_eq(&unit());
    }

    #[test]
    fn dns_and_nothing_else_stays_open() {
        let text = ruleset();
        for server in ["169.254.169.254", "fd20:ce::254"] {
            let rules: Vec<&str> = text.lines().filter(|line| line.contains(server)).collect();
            assert_eq!(rules.len(), 1);
            assert!(rules[0].contains("dport != 53 reject"));
        }
    }
}
