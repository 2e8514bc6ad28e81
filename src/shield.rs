//! Containers and build steps cannot reach the metadata server.
//!
//! It would give any of them the VM's service account token and every attribute. An nftables table of our own on the
//! forward hook, independent of Docker and its firewall backend, rejects what containers send there, except DNS:
//! 169.254.169.254 is the VM's resolver as well. Programs of the VM, and containers in the host's network, do not pass
//! the forward hook and are not affected.
//!
//! With `openclaw-metadata-access=identity` their HTTP goes to a server of ours, before it is forwarded. Nobody else
//! reaches that server: it takes what was sent there by this table, and no other connections.
//!
//! It fails closed. A unit loads and verifies the table before Docker starts, which after a power cut may start
//! containers before our own boot, and loads it again when somebody flushes it. Only while it can is the gateway's
//! container able to start.

mod generation;
mod guard;
mod table;

use std::net::SocketAddrV4;

use anyhow::Result;

use crate::config::MetadataAccess;
use crate::error::{Classify, Code, RUN_AGAIN};
use crate::host::{Access, Host};
use crate::paths::{ETC_DIR, SHIELD_RULESET, SHIELD_UNIT};
use crate::{apt, systemd};
use table::Table;

/// The unit of [`guard()`]. `nftables.service` flushes every table when it starts, so this one starts again with it.
const UNIT: &str = include_str!("shield/openclaw-shield.service");

/// Makes the shield be in force, or be gone ([`MetadataAccess::Allow`]). The server at `stand_in`, if there is one,
/// gets what containers ask of the metadata server by HTTP.
pub async fn ensure(host: &Host, access: &MetadataAccess, stand_in: Option<SocketAddrV4>) -> Result<()> {
    if access.is_shielded() {
        return block(host, &Table::new(stand_in)).await;
    }
    host.warn(
        "containers can reach the metadata server, and with it the VM's service account and all \
         attributes (openclaw-metadata-access=allow)",
    );
    remove(host).await
}

/// Keeps the table in force until it cannot be: see [`mod@guard`].
pub async fn guard(host: &Host, stand_in: Option<SocketAddrV4>, stop: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    guard::run(host, &Table::new(stand_in), stop).await
}

async fn block(host: &Host, table: &Table) -> Result<()> {
    // While the table is in force, nft was there to load it.
    let is_in_force = guard::is_in_force(host, table).await?;
    if !is_in_force {
        ensure_nft(host).await?;
    }
    host.ensure_dir(ETC_DIR, Access::root(0o755)).await?;
    host.ensure_file(SHIELD_RULESET, table.ruleset(), Access::root(0o644)).await?;
    let is_new = systemd::ensure_enabled_unit(host, SHIELD_UNIT, UNIT).await?;
    if is_new || !is_in_force || !is_loaded(host, table).await? {
        start(host).await?;
    }
    Ok(())
}

async fn ensure_nft(host: &Host) -> Result<bool> {
    apt::ensure_installed(host, &["nftables"]).await
}

/// What the unit reads and loads the table with.
const NFT: &str = "/usr/sbin/nft";

/// Whether the kernel has the table. Somebody may have removed what reads it.
async fn is_loaded(host: &Host, table: &Table) -> Result<bool> {
    if generation::is_verified(host).await && host.path(NFT).exists() {
        return Ok(true);
    }
    match table.is_loaded(host).await {
        Err(error) => {
            if ensure_nft(host).await? {
                table.is_loaded(host).await
            } else {
                Err(error)
            }
        }
        loaded => loaded,
    }
}

/// Has the unit load and verify the table.
async fn start(host: &Host) -> Result<()> {
    systemd::restart_quoting(host, SHIELD_UNIT, "shielding the metadata server from containers").await.classify(
        Code::UnsupportedSystem,
        format!(
            "The gateway stays down: its agent could take the VM's service account. If nft is damaged, \
             `sudo apt-get install --reinstall nftables` and `{RUN_AGAIN}`; if the kernel lacks nf_tables, use another \
             image, or accept containers that can reach the metadata server: gcloud compute instances add-metadata VM \
             --metadata=openclaw-metadata-access=allow"
        ),
    )
}

/// Removes the table and what loads it.
pub async fn remove(host: &Host) -> Result<()> {
    systemd::remove_unit(host, SHIELD_UNIT).await?;
    host.remove_file(SHIELD_RULESET).await?;
    if !apt::installed(host, &["nftables"]).await?.is_empty() && table::remove(host).await? {
        host.changed("opened the metadata server to containers");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::{PROGRAM, SHIELD_IN_FORCE};

    #[test]
    fn the_unit_agrees_with_this_program() {
        assert!(UNIT.contains(&format!("ExecStart={PROGRAM} shield\n")));
        let directory = SHIELD_IN_FORCE.strip_prefix("/run/").and_then(|path| path.strip_suffix("/in-force"));
        assert!(UNIT.contains(&format!("RuntimeDirectory={}\n", directory.unwrap_or_default())));
    }
}
