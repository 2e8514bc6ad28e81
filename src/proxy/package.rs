//! The distribution's Caddy, and the account that it runs as. Neither is taken from anybody who uses it.

use anyhow::{Context, Result, anyhow, ensure};

use crate::apt::{APT_DEADLINE, Apt, installed};
use crate::error::{Classify as _, Code};
use crate::host::{Access, Host};
use crate::paths::{CADDY_INSTALLED, PROXY_ACCOUNT};
use crate::systemd;

const PACKAGE: &str = "caddy";

/// The program, whoever installed it.
const PROGRAM: &str = "/usr/bin/caddy";

/// The package's own units: the first would take both ports as soon as it is installed.
const UNITS: [&str; 2] = ["caddy.service", "caddy-api.service"];

/// What an account of ours says besides its name.
const COMMENT: &str = "OpenClaw proxy (openclaw-init)";

/// Makes sure that there is a Caddy for our unit, and that it serves nobody else. What was installed for it is noted
/// before: a cut forgets nothing.
pub(super) async fn ensure(host: &Host) -> Result<()> {
    let note = host.read(CADDY_INSTALLED).await?;
    if note.is_none() && host.path(PROGRAM).exists() {
        return is_idle(host).await;
    }
    let masked = if let Some(note) = note {
        String::from_utf8_lossy(&note).into_owned()
    } else {
        let masked = unmasked_units(host).await?.join("\n");
        host.ensure_file(CADDY_INSTALLED, masked.as_str(), Access::root(0o600)).await?;
        masked
    };
    for unit in masked.lines() {
        systemd::ensure_masked(host, unit).await?;
    }
    Apt::new(host, APT_DEADLINE).ensure_installed(&[PACKAGE]).await.map(drop)
}

/// A Caddy of somebody else's is used while it does nothing.
async fn is_idle(host: &Host) -> Result<()> {
    for unit in UNITS {
        if systemd::is_active(host, unit).await? || systemd::is_enabled(host, unit).await? {
            return Err(anyhow!("this machine has a Caddy already, which {unit} runs")).classify(
                Code::ProxyFailed,
                "It was left as it is. Add the gateway to its own Caddyfile and set openclaw-public-url in the place of \
                 openclaw-domain, or remove it: `sudo apt-get purge caddy`.",
            );
        }
    }
    Ok(())
}

/// The package's units that no administrator has masked.
async fn unmasked_units(host: &Host) -> Result<Vec<&'static str>> {
    let mut units = Vec::new();
    for unit in UNITS {
        if !systemd::is_masked(host, unit).await? {
            units.push(unit);
        }
    }
    Ok(units)
}

/// Takes the package away if it was installed here.
pub(super) async fn remove(host: &Host) -> Result<()> {
    let Some(note) = host.read(CADDY_INSTALLED).await? else { return Ok(()) };
    if !installed(host, &[PACKAGE]).await?.is_empty() {
        Apt::new(host, APT_DEADLINE).purge(PACKAGE).await?;
    }
    for unit in String::from_utf8_lossy(&note).lines() {
        systemd::unmask(host, unit).await?;
    }
    host.remove_file(CADDY_INSTALLED).await.map(drop)
}

/// The account's numbers; it is made if need be.
pub(super) async fn ensure_account(host: &Host) -> Result<Access> {
    if let Some(access) = account(host).await? {
        return Ok(access);
    }
    let fields = ["--comment", COMMENT, "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"];
    let add = host.command("useradd").args(["--system", "--no-create-home", "--user-group"]).args(fields);
    add.arg(PROXY_ACCOUNT).run().await.context("making an account for the proxy")?;
    host.changed(format!("made the account {PROXY_ACCOUNT}"));
    account(host).await?.context("the account that was made is not there")
}

/// Removes the account if it is ours.
pub(super) async fn remove_account(host: &Host) -> Result<()> {
    if matches!(account(host).await, Ok(Some(_))) {
        host.command("userdel").arg(PROXY_ACCOUNT).run().await.context("removing the proxy's account")?;
        host.changed(format!("removed the account {PROXY_ACCOUNT}"));
    }
    Ok(())
}

async fn account(host: &Host) -> Result<Option<Access>> {
    let passwd = host.read("/etc/passwd").await?.unwrap_or_default();
    find(&String::from_utf8_lossy(&passwd))
}

fn find(passwd: &str) -> Result<Option<Access>> {
    let Some(line) = passwd.lines().find(|line| line.split(':').next() == Some(PROXY_ACCOUNT)) else { return Ok(None) };
    let fields: Vec<&str> = line.split(':').collect();
    let &[_, _, uid, gid, comment, ..] = &fields[..] else { return Err(anyhow!("/etc/passwd is damaged: {line}")) };
    ensure!(comment == COMMENT, "the account {PROXY_ACCOUNT} is somebody else's ({comment})");
    Ok(Some(Access { mode: 0o700, uid: uid.parse()?, gid: gid.parse()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_account_of_ours_is_used() {
        let ours = "openclaw-proxy:x:997:995:OpenClaw proxy (openclaw-init):/nonexistent:/usr/sbin/nologin\n";
        let found = |passwd: &str| find(passwd).map(|access| access.map(|access| (access.uid, access.gid))).ok();
        for (passwd, expected) in [
            ("root:x:0:0:root:/root:/bin/bash\n".to_owned(), Some(None)),
            (format!("root:x:0:0:root:/root:/bin/bash\n{ours}"), Some(Some((997, 995)))),
            (ours.replace("OpenClaw proxy (openclaw-init)", "mine"), None),
            (ours.replace(":997:", ":x:"), None),
            ("openclaw-proxy:x\n".to_owned(), None),
        ] {
            assert_eq!(found(&passwd), expected, "{passwd}");
        }
    }
}
