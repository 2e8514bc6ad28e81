//! The table in the kernel: what it should be, what it is, and how it gets there.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::host::Host;
use crate::paths::SHIELD_RULESET;
use crate::text::hex;

/// The metadata server's addresses, with the words that match them.
const SERVERS: [&str; 2] = ["ip daddr 169.254.169.254", "ip6 daddr fd20:ce::254"];

/// Loads the table of [`SHIELD_RULESET`] unless the kernel has it; true when it did not.
///
/// It is loaded in one transaction, so that there is no moment without it, and verified by reading it back.
pub(super) async fn ensure(host: &Host) -> Result<bool> {
    if is_loaded(host).await? {
        return Ok(false);
    }
    let load = host.command("nft").args(["-f", SHIELD_RULESET]).run().await;
    load.context("loading the table that shields the metadata server")?;
    let found = observe(host).await?;
    if !is_desired(&found) {
        bail!("the loaded table is not what was written: {found}");
    }
    Ok(true)
}

/// Whether the kernel has the table as it should be.
pub(super) async fn is_loaded(host: &Host) -> Result<bool> {
    Ok(is_desired(&observe(host).await?))
}

/// Removes the table; true when there was one.
pub(super) async fn remove(host: &Host) -> Result<bool> {
    if observe(host).await?.is_null() {
        return Ok(false);
    }
    let delete = host.command("nft").args(["delete", "table", "inet", "openclaw_init"]).run().await;
    delete.context("removing the table that shields the metadata server").map(|_| true)
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

/// The rules without their comments, about what the metadata server speaks: HTTP and DNS.
fn rules() -> [String; SERVERS.len()] {
    SERVERS.map(|server| format!("{server} meta l4proto {{ tcp, udp }} th dport != 53 reject"))
}

/// What `nft -f` loads: the table, in place of an older one, in one transaction.
pub(super) fn ruleset() -> String {
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
    const LISTED: &str = include_str!("../../tests/fixtures/nft/shield.json");

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
    fn dns_and_nothing_else_stays_open() {
        let text = ruleset();
        for server in ["169.254.169.254", "fd20:ce::254"] {
            let rules: Vec<&str> = text.lines().filter(|line| line.contains(server)).collect();
            assert_eq!(rules.len(), 1);
            assert!(rules[0].contains("dport != 53 reject"));
        }
    }
}
