//! The table in the kernel: what it should be, what it is, and how it gets there.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::host::Host;
use crate::text::hex;

/// The metadata server's addresses, with the words that match them.
const SERVERS: [&str; 2] = ["ip daddr 169.254.169.254", "ip6 daddr fd20:ce::254"];

/// A chain of the table: its name, what it is hooked to, and its rules without their comments.
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: &'static str,
    /// Where it stands, in nft's words and as a number.
    priority: (&'static str, i64),
    rules: Vec<String>,
}

/// The table that shall be in force.
pub(super) struct Table {
    chains: Vec<Chain>,
}

impl Table {
    /// What containers send to the metadata server is rejected, but for DNS. With a `stand_in`, HTTP goes there.
    pub(super) fn new(stand_in: Option<SocketAddrV4>) -> Self {
        let rejected = SERVERS.map(|server| format!("{server} meta l4proto {{ tcp, udp }} th dport != 53 reject"));
        let forward = Chain {
            name: "forward",
            kind: "filter",
            hook: "forward",
            priority: ("filter - 10", -10),
            rules: rejected.to_vec(),
        };
        let mut chains = vec![forward];
        if let Some(address) = stand_in {
            let (ip, port) = (address.ip(), address.port());
            chains.push(Chain {
                name: "prerouting",
                kind: "nat",
                hook: "prerouting",
                // Every network of Docker's is a bridge, and nothing from outside comes through one.
                priority: ("dstnat - 10", -110),
                rules: vec![format!("meta iifkind \"bridge\" {} tcp dport 80 dnat ip to {address}", SERVERS[0])],
            });
            chains.push(Chain {
                name: "input",
                kind: "filter",
                hook: "input",
                priority: ("filter - 10", -10),
                // The address alone keeps nobody out: who is on the VM's network can send packets for it.
                rules: vec![format!("ip daddr {ip} tcp dport {port} ct status ! dnat reject")],
            });
        }
        Self { chains }
    }

    /// Loads the table unless the kernel has it; true when it did not.
    ///
    /// It is loaded in one transaction, so that there is no moment without it, and verified by reading it back.
    pub(super) async fn ensure(&self, host: &Host) -> Result<bool> {
        if self.is_loaded(host).await? {
            return Ok(false);
        }
        let load = host.command("nft").args(["-f", "-"]).stdin(self.ruleset()).run().await;
        load.context("loading the table that shields the metadata server")?;
        let found = observe(host).await?;
        if !self.is_as_found(&found) {
            bail!("the loaded table is not what was written: {found}");
        }
        Ok(true)
    }

    /// Whether the kernel has the table as it should be.
    pub(super) async fn is_loaded(&self, host: &Host) -> Result<bool> {
        Ok(self.is_as_found(&observe(host).await?))
    }

    /// What `nft -f` loads: the table, in place of an older one, in one transaction.
    pub(super) fn ruleset(&self) -> String {
        let mark = self.mark();
        let chain = |Chain { name, kind, hook, priority: (priority, _), rules }: &Chain| {
            let rules: String = rules.iter().map(|rule| format!("\t\t{rule} comment \"{mark}\"\n")).collect();
            format!("\tchain {name} {{\n\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n{rules}\t}}\n")
        };
        let chains: String = self.chains.iter().map(chain).collect();
        format!(
            "# Written by openclaw-init at every boot: containers cannot reach the metadata server, except its DNS.\n\
             add table inet openclaw_init\n\
             delete table inet openclaw_init\n\
             table inet openclaw_init {{\n\
             {chains}\
             }}\n"
        )
    }

    /// The comment of each rule, which sets these rules apart from those of another version.
    pub(super) fn mark(&self) -> String {
        let rules: Vec<&str> = self.chains.iter().flat_map(|chain| &chain.rules).map(String::as_str).collect();
        format!("openclaw-init {}", hex(&Sha256::digest(rules.join("\n"))[..6]))
    }

    /// Whether the table is as in [`Table::ruleset`]: our chains in their places, with our rules and no others.
    fn is_as_found(&self, table: &Value) -> bool {
        let objects = table["nftables"].as_array().map_or(&[][..], Vec::as_slice);
        let all = |kind: &str| objects.iter().filter_map(|object| object.get(kind)).collect::<Vec<_>>();
        let (chains, rules, mark) = (all("chain"), all("rule"), self.mark());
        let is_there = |Chain { name, kind, hook, priority: (_, priority), rules: own }: &Chain| {
            let is_hooked = chains.iter().any(|chain| {
                chain["name"] == *name
                    && chain["type"] == *kind
                    && chain["hook"] == *hook
                    && chain["prio"] == *priority
                    && chain["policy"] == "accept"
            });
            is_hooked && rules.iter().filter(|rule| rule["chain"] == *name).count() == own.len()
        };
        chains.len() == self.chains.len()
            && self.chains.iter().all(is_there)
            && rules.iter().all(|rule| rule["comment"] == mark.as_str())
    }
}

/// Removes the table; true when there was one.
pub(super) async fn remove(host: &Host) -> Result<bool> {
    if observe(host).await?.is_null() {
        return Ok(false);
    }
    let delete = host.command("nft").args(["delete", "table", "inet", "openclaw_init"]).run().await;
    delete.context("removing the table that shields the metadata server").map(|_| true)
}

/// The tables in which the engine changes the sender of what its containers send to the internet, and a word that sets
/// its own from others': with iptables, and with nftables (from Docker 29 on, where it is asked to).
const ENGINE_TABLES: [(&str, &str); 2] = [("nat", "chain docker"), ("docker-bridges", "")];

/// Whether the kernel has such a rule of the engine's.
pub(super) async fn masquerades(host: &Host) -> Result<bool> {
    for (table, word) in ENGINE_TABLES {
        let list = host.command("nft").args(["--terse", "list", "table", "ip", table]).answers(&[1]);
        let output = list.run().await.context("reading the engine's rules")?;
        let text = output.stdout.to_ascii_lowercase();
        if output.code == 0 && text.contains("masquerade") && text.contains(word) {
            return Ok(true);
        }
    }
    Ok(false)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use expect_test::expect;
    use serde_json::json;

    use super::*;

    /// What `nft -j` 1.0.6 prints about the loaded [`Table::ruleset`], without and with a stand-in.
    const LISTED: [&str; 2] = [
        include_str!("../../tests/fixtures/nft/shield.json"),
        include_str!("../../tests/fixtures/nft/shield-identity.json"),
    ];

    fn tables() -> [Table; 2] {
        [None, Some(SocketAddrV4::new(Ipv4Addr::new(172, 17, 0, 1), 18780))].map(Table::new)
    }

    fn listed(which: usize) -> Value {
        serde_json::from_str(&LISTED[which].replace("@MARK@", &tables()[which].mark())).unwrap()
    }

    #[test]
    fn the_loaded_table_is_recognised_and_the_other_is_not() {
        for (which, table) in tables().iter().enumerate() {
            assert!(table.is_as_found(&listed(which)), "{which}");
            assert!(!table.is_as_found(&listed(1 - which)), "{which}");
        }
    }

    #[test]
    fn anything_else_is_loaded_anew() {
        let without = |index: usize| {
            let mut table = listed(0);
            table["nftables"].as_array_mut().unwrap().remove(index);
            table
        };
        let with = |index: usize, kind: &str, key: &str, value: Value| {
            let mut table = listed(0);
            table["nftables"][index][kind][key] = value;
            table
        };
        let table = Table::new(None);
        for (name, found) in [
            ("none", Value::Null),
            ("no chain", without(2)),
            ("a rule is gone", without(3)),
            ("rules of another version", with(4, "rule", "comment", json!("openclaw-init 000000000000"))),
            ("a rule of somebody else", with(3, "rule", "comment", Value::Null)),
            ("a rule in another chain", with(3, "rule", "chain", json!("input"))),
            ("another hook", with(2, "chain", "hook", json!("input"))),
            ("after Docker's chains", with(2, "chain", "prio", json!(10))),
        ] {
            assert!(!table.is_as_found(&found), "{name}");
        }
    }

    /// Every object of the one with a stand-in is needed.
    #[test]
    fn a_stand_in_without_one_of_its_parts_is_loaded_anew() {
        let [_, table] = tables();
        let parts = listed(1)["nftables"].as_array().unwrap().len();
        for part in 2..parts {
            let mut found = listed(1);
            found["nftables"].as_array_mut().unwrap().remove(part);
            assert!(!table.is_as_found(&found), "without {}", listed(1)["nftables"][part]);
        }
    }

    #[test]
    fn the_rulesets_as_nft_loads_them() {
        let [blocked, identity] = tables();
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
        "##]].assert_eq(&blocked.ruleset());
        expect![[r##"
            # Written by openclaw-init at every boot: containers cannot reach the metadata server, except its DNS.
            add table inet openclaw_init
            delete table inet openclaw_init
            table inet openclaw_init {
            	chain forward {
            		type filter hook forward priority filter - 10; policy accept;
            		ip daddr 169.254.169.254 meta l4proto { tcp, udp } th dport != 53 reject comment "openclaw-init 5c1971c966a2"
            		ip6 daddr fd20:ce::254 meta l4proto { tcp, udp } th dport != 53 reject comment "openclaw-init 5c1971c966a2"
            	}
            	chain prerouting {
            		type nat hook prerouting priority dstnat - 10; policy accept;
            		meta iifkind "bridge" ip daddr 169.254.169.254 tcp dport 80 dnat ip to 172.17.0.1:18780 comment "openclaw-init 5c1971c966a2"
            	}
            	chain input {
            		type filter hook input priority filter - 10; policy accept;
            		ip daddr 172.17.0.1 tcp dport 18780 ct status ! dnat reject comment "openclaw-init 5c1971c966a2"
            	}
            }
        "##]].assert_eq(&identity.ruleset());
    }

    #[test]
    fn dns_and_nothing_else_stays_open() {
        for table in tables() {
            let text = table.ruleset();
            for server in ["169.254.169.254", "fd20:ce::254"] {
                let rules = text.lines().filter(|line| line.contains(server) && !line.contains("dnat ip to"));
                let rules: Vec<&str> = rules.collect();
                assert_eq!(rules.len(), 1);
                assert!(rules[0].contains("dport != 53 reject"));
            }
        }
    }
}
