//! A weaker service account for containers: what they have in place of the metadata server with
//! `openclaw-metadata-access=identity`.
//!
//! `openclaw-identity.service` is a small server at the bridge's address. The [`shield`](crate::shield) sends it what
//! containers ask of the metadata server by HTTP. It tells the project, the zone and tokens of one named account, and
//! nothing else. Google's IAM makes these tokens for the VM's own account, which no container gets to see.

mod answer;
mod server;
mod token;

use std::net::{IpAddr, SocketAddrV4};

use anyhow::{Context, Result, anyhow};

use crate::config::{IDENTITY_PORT, MetadataAccess};
use crate::docker::{self, Engine};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Access, Host};
use crate::metadata::{Client, Instance};
use crate::paths::{ETC_DIR, IDENTITY, IDENTITY_UNIT};
use crate::secret_manager::{DEADLINE, FALLBACK_DEADLINE};
use crate::systemd;

const UNIT: &str = include_str!("identity/openclaw-identity.service");

/// What the server tells, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The address of the account whose tokens it has.
    account: String,
    project_id: String,
    project_number: u64,
    zone: String,
    /// Where it listens.
    listen: SocketAddrV4,
}

impl Identity {
    /// The one that the latest run left, if containers shall have one.
    async fn read(host: &Host) -> Result<Option<Self>> {
        let Some(bytes) = host.read(IDENTITY).await? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        Self::parse(&text).map(Some).with_context(|| format!("{IDENTITY} is not as it was written"))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut next = || lines.next().map(str::to_owned);
        Some(Self {
            account: next()?,
            project_id: next()?,
            project_number: next()?.parse().ok()?,
            zone: next()?,
            listen: next()?.parse().ok()?,
        })
    }

    /// What [`Identity::parse`] reads: one value a line.
    fn text(&self) -> String {
        let Self { account, project_id, project_number, zone, listen } = self;
        format!("{account}\n{project_id}\n{project_number}\n{zone}\n{listen}\n")
    }
}

/// An identity that containers shall have.
#[derive(Debug)]
pub struct Ensured {
    identity: Identity,
    /// It is another one than before.
    is_new: bool,
}

/// Where the shield shall send what containers ask of the metadata server, as the latest run decided.
pub async fn stand_in(host: &Host) -> Result<Option<SocketAddrV4>> {
    Ok(Identity::read(host).await?.map(|identity| identity.listen))
}

/// Writes down what the server tells if `access` wants one, and stops one that tells something else; else it is gone.
/// The shield comes next, then [`serve`]: what containers ask is closed before it is answered.
pub async fn prepare(
    host: &Host,
    metadata: &Client,
    instance: &Instance,
    engine: &Engine,
    access: &MetadataAccess,
) -> Result<Option<Ensured>> {
    let MetadataAccess::Identity(account) = access else { return remove(host).await.map(|()| None) };
    if let Err(own) = refuse_own(metadata, account).await {
        remove(host).await?;
        return Err(own);
    }
    let IpAddr::V4(bridge) = docker::host_address(engine).await? else { return Ok(None) };
    let identity = Identity {
        account: account.clone(),
        project_id: instance.project_id.clone(),
        project_number: instance.project_number,
        zone: instance.zone.clone(),
        listen: SocketAddrV4::new(bridge, IDENTITY_PORT),
    };
    let text = identity.text();
    let is_new = host.read(IDENTITY).await?.as_deref() != Some(text.as_bytes());
    if is_new {
        // A run that is cut after this leaves none that goes on with what it had: the next one starts it.
        systemd::stop(host, IDENTITY_UNIT).await?;
    }
    host.ensure_dir(ETC_DIR, Access::root(0o755)).await?;
    host.ensure_file(IDENTITY, text, Access::root(0o644)).await?;
    Ok(Some(Ensured { identity, is_new }))
}

/// Makes the server run.
pub async fn serve(host: &Host) -> Result<()> {
    let is_changed = systemd::ensure_enabled_unit(host, IDENTITY_UNIT, UNIT).await?;
    if is_changed || !systemd::is_active(host, IDENTITY_UNIT).await? {
        start(host).await?;
    }
    Ok(())
}

/// The VM's own account is what containers shall not have.
async fn refuse_own(metadata: &Client, account: &str) -> Result<()> {
    let own = metadata.service_account().await.context("asking for the VM's own account")?;
    if own.is_none_or(|own| own.email != account) {
        return Ok(());
    }
    Err(anyhow!("openclaw-metadata-account={account} is the VM's own account"))
        .classify(Code::ConfigInvalid, format!("Name another one, which may do less; then run `{RUN_AGAIN}`."))
}

async fn start(host: &Host) -> Result<()> {
    systemd::restart_quoting(host, IDENTITY_UNIT, "standing in for the metadata server").await.classify(
        Code::PortTaken,
        format!("If another program has port {IDENTITY_PORT} (`sudo ss -ltnp`), stop it, then run `{RUN_AGAIN}`."),
    )
}

/// Asks for one token, as a check. [`Code::SecretDenied`] says what is missing; Google's IAM that cannot be reached is
/// a warning.
pub async fn check(host: &Host, metadata: &Client, ensured: &Ensured) -> Result<()> {
    let account = &ensured.identity.account;
    // One that was refused before is not waited for again.
    let deadline = if ensured.is_new { DEADLINE } else { FALLBACK_DEADLINE };
    match token::make(metadata, account, deadline).await? {
        Ok(_) => {}
        Err(why) => host.warn(format!("containers get no token of {account} for now: {why:#}")),
    }
    Ok(())
}

/// Removes the server and what it tells.
pub async fn remove(host: &Host) -> Result<()> {
    systemd::remove_unit(host, IDENTITY_UNIT).await?;
    host.remove_file(IDENTITY).await.map(drop)
}

/// Serves until the process is ended: what the unit runs.
pub async fn run(host: &Host, metadata: Client) -> Result<()> {
    let identity = Identity::read(host).await?.with_context(|| format!("there is no {IDENTITY}"))?;
    server::run(identity, metadata).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::PROGRAM;

    #[test]
    fn what_is_written_can_be_read() {
        let text = "agent@p.iam.gserviceaccount.com\np\n123\neurope-west1-b\n172.17.0.1:18780\n";
        let identity = Identity::parse(text);
        assert_eq!(identity.as_ref().map(Identity::text).as_deref(), Some(text));
        assert_eq!(Identity::parse("agent@p.iam.gserviceaccount.com\np\n"), None);
    }

    #[test]
    fn the_unit_agrees_with_this_program() {
        assert!(UNIT.contains(&format!("ExecStart={PROGRAM} identity\n")));
    }
}
