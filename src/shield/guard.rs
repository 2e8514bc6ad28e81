//! The resident half: while it says so, the table is in force.
//!
//! It runs as a unit before the engine. The file [`SHIELD_IN_FORCE`] exists only while it runs and has verified the
//! table, and every container of the gateway mounts that file: without it none starts, whoever starts it.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use sd_notify::NotifyState;

use super::generation;
use super::table::{self, Table};
use crate::error::one_line;
use crate::host::{Host, blocking};
use crate::paths::{ENGINE_RULES_GONE, ENGINE_RULES_SEEN, SHIELD_IN_FORCE};

/// The group of netlink messages about changes of tables (`NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h), as a bit.
const TABLE_CHANGES: u32 = 1 << (7 - 1);

/// A program that changes tables sends many messages; the table is looked at when they have all arrived.
const CHANGES_INTERVAL: Duration = Duration::from_millis(100);

/// Keeps the table in force until it cannot be: then no container of the gateway can start any more, `stop` ends the
/// one that runs, and the error says why.
pub(super) async fn run(host: &Host, table: &Table, stop: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let changes = Changes::subscribe()?;
    let kept = keep(host, table, &changes).await;
    // Neither waits for the other to go well.
    let closed = host.remove_file(SHIELD_IN_FORCE).await;
    if let Err(error) = stop().await {
        tracing::error!("stopping the gateway: {}", one_line(&error));
    }
    closed.and(kept)
}

async fn keep(host: &Host, table: &Table, changes: &Changes) -> Result<()> {
    ensure(host, table).await?;
    tokio::fs::write(host.path(SHIELD_IN_FORCE), holder(table).await?).await.context("saying that it is in force")?;
    sd_notify::notify(&[NotifyState::Ready]).context("telling systemd")?;
    let mut were_seen = host.path(ENGINE_RULES_SEEN).exists();
    note_engine_rules(host, &mut were_seen).await;
    loop {
        changes.next().await?;
        if ensure(host, table).await? {
            tracing::warn!("the table that shields the metadata server was gone: loaded it again");
        }
        note_engine_rules(host, &mut were_seen).await;
    }
}

/// Makes the table be in force; true when it was not. What changes while it is verified belongs to a later generation.
async fn ensure(host: &Host, table: &Table) -> Result<bool> {
    let generation = generation::read();
    let was_gone = table.ensure(host).await?;
    generation::note_verified(host, generation).await;
    Ok(was_gone)
}

/// Whether the engine's own rules are there, without which its containers have no internet. That they went away is
/// noted for the watcher and for the next run, until they are back.
async fn note_engine_rules(host: &Host, were_seen: &mut bool) {
    let (seen, gone) = (host.path(ENGINE_RULES_SEEN), host.path(ENGINE_RULES_GONE));
    let noted = match table::masquerades(host).await {
        Ok(true) => {
            *were_seen = true;
            drop(tokio::fs::remove_file(gone).await);
            tokio::fs::write(seen, "").await
        }
        // A run that has restarted the engine for it takes the note away.
        Ok(false) if std::mem::take(were_seen) => tokio::fs::write(gone, "").await,
        Ok(false) => Ok(()),
        Err(error) => return tracing::debug!("{error:#}"),
    };
    // Before the first run of a boot there is no place for it.
    if let Err(error) = noted {
        tracing::debug!("noting how the engine's rules are: {error}");
    }
}

/// Whether the table is in force, as verified by a unit that runs the caller's own program file and wants the same.
pub(super) async fn is_in_force(host: &Host, table: &Table) -> Result<bool> {
    Ok(host.read(SHIELD_IN_FORCE).await? == Some(holder(table).await?))
}

/// Who keeps which table: after an update of the program or another setting, the unit must start anew.
async fn holder(table: &Table) -> Result<Vec<u8>> {
    let program = tokio::fs::metadata("/proc/self/exe").await.context("looking at the running program's file")?;
    Ok(format!("{}:{} {}\n", program.dev(), program.ino(), table.mark()).into_bytes())
}

/// The kernel's notices that somebody changed a table.
struct Changes(Arc<OwnedFd>);

impl Changes {
    fn subscribe() -> Result<Self> {
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
        let subscribed = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .and_then(|socket| bind(socket.as_raw_fd(), &NetlinkAddr::new(0, TABLE_CHANGES)).map(|()| socket));
        Ok(Self(Arc::new(subscribed.context("asking the kernel for notices of changed tables")?)))
    }

    /// Waits for the next one, and for those that belong to it.
    async fn next(&self) -> Result<()> {
        let socket = Arc::clone(&self.0);
        blocking(move || receive(&socket, MsgFlags::empty()).map(drop)).await?;
        tokio::time::sleep(CHANGES_INTERVAL).await;
        while receive(&self.0, MsgFlags::MSG_DONTWAIT)? {}
        Ok(())
    }
}

/// Takes one message; false when none is there. An unknown number that was lost counts as one.
fn receive(socket: &OwnedFd, flags: MsgFlags) -> Result<bool> {
    let mut message = [0; 4096];
    match recv(socket.as_raw_fd(), &mut message, flags) {
        Err(Errno::EAGAIN) => Ok(false),
        Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => Ok(true),
        Err(error) => Err(error).context("reading the kernel's notices of changed tables"),
    }
}
