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
    let note = Note::read(host).await?;
    if !note.as_ref().is_some_and(|note| note.is_done) && host.path(PROGRAM).exists() {
        // Somebody may have installed it after a try of ours that failed.
        is_idle(host).await?;
        if note.is_none() {
            return Ok(());
        }
    }
    let mut note = match note {
        Some(note) => note,
        None => Note { units: unmasked_units(host).await?, is_done: false },
    };
    note.write(host).await?;
    for unit in &note.units {
        systemd::ensure_masked(host, unit).await?;
    }
    Apt::new(host, APT_DEADLINE).ensure_installed(&[PACKAGE]).await?;
    note.is_done = true;
    note.write(host).await
}

/// What is written down of an installation of ours.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    /// The units that were masked for it.
    units: Vec<String>,
    /// It has come to its end: the package is ours.
    is_done: bool,
}

/// The last line of a note about an installation that has come to its end.
const DONE: &str = "installed";

impl Note {
    async fn read(host: &Host) -> Result<Option<Self>> {
        let text = host.read(CADDY_INSTALLED).await?;
        Ok(text.map(|text| Self::parse(&String::from_utf8_lossy(&text))))
    }

    fn parse(text: &str) -> Self {
        let (done, units): (Vec<_>, Vec<_>) = text.lines().map(str::to_owned).partition(|line| line == DONE);
        Self { units, is_done: !done.is_empty() }
    }

    fn text(&self) -> String {
        let lines = self.units.iter().map(String::as_str).chain(self.is_done.then_some(DONE));
        lines.collect::<Vec<_>>().join("\n")
    }

    async fn write(&self, host: &Host) -> Result<()> {
        host.ensure_file(CADDY_INSTALLED, self.text(), Access::root(0o600)).await.map(drop)
    }
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
async fn unmasked_units(host: &Host) -> Result<Vec<String>> {
    let mut units = Vec::new();
    for unit in UNITS {
        if !systemd::is_masked(host, unit).await? {
            units.push(unit.to_owned());
        }
    }
    Ok(units)
}

/// Takes the package away if it was installed here.
pub(super) async fn remove(host: &Host) -> Result<()> {
    let Some(note) = Note::read(host).await? else { return Ok(()) };
    let is_ours = note.is_done || is_idle(host).await.is_ok();
    if is_ours && !installed(host, &[PACKAGE]).await?.is_empty() {
        Apt::new(host, APT_DEADLINE).purge(PACKAGE).await?;
    }
    for unit in &note.units {
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

    /// Without a last word: of a try that failed, or of an earlier program.
    #[test]
    fn a_note_says_whether_the_package_is_ours() {
        for (text, units, is_done) in [
            ("", &[][..], false),
            ("caddy.service\ncaddy-api.service", &UNITS, false),
            ("caddy.service\ncaddy-api.service\ninstalled", &UNITS, true),
            ("installed", &[], true),
        ] {
            let note = Note { units: units.iter().map(|&unit| unit.to_owned()).collect(), is_done };
            assert_eq!((Note::parse(text), note.text().as_str()), (note, text));
        }
    }

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
