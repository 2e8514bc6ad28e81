//! The gateway's uid on the machine. Its container runs as 1000, which the first person on the VM would get, too: with
//! it the gateway's secrets, state and processes. An account that nobody can use keeps that uid.

use anyhow::{Result, bail};

use crate::host::{Access, Host};
use crate::paths::ACCOUNT;

const PASSWD: &str = "/etc/passwd";

/// The uid of the container's user.
const UID: u32 = Access::gateway(0).uid;

/// What an entry of ours says besides name, uid and group: without any of it, it is somebody else's.
const COMMENT: &str = "OpenClaw gateway (openclaw-init)";
const HOME: &str = "/nonexistent";
const SHELL: &str = "/usr/sbin/nologin";

/// Whose the uid is.
#[derive(Debug, PartialEq, Eq)]
enum Account {
    Nobodys,
    Ours,
    /// Of the account with this name.
    Anothers(String),
    /// Nobody's, and an account with another uid has our name.
    NameTaken,
}

/// Reserves the uid, if it is nobody's. A machine on which that cannot be done runs a gateway all the same.
pub(crate) async fn ensure(host: &Host) {
    if let Err(error) = reserve(host).await {
        host.warn(format!("uid {UID} is not reserved for the gateway, the next account may get it: {error:#}"));
    }
}

async fn reserve(host: &Host) -> Result<()> {
    match observe(host).await? {
        None | Some(Account::Ours) => Ok(()),
        Some(Account::Nobodys) => add(host).await,
        Some(Account::NameTaken) => bail!("an account with another uid has the name {ACCOUNT}"),
        Some(Account::Anothers(name)) => {
            host.warn(format!(
                "the account {name} has uid {UID}, which is the gateway's in its container: who uses it can read the \
                 gateway's secrets (.env), change its state and end its processes without being root. Give that \
                 account another uid (`usermod --uid`) unless its user is an administrator"
            ));
            Ok(())
        }
    }
}

async fn add(host: &Host) -> Result<()> {
    // `--system`: no password, no mail, no range of subordinate uids.
    let options = ["--system", "--no-create-home", "--no-user-group", "--gid", "nogroup", "--uid"];
    let fields = ["--comment", COMMENT, "--home-dir", HOME, "--shell", SHELL, ACCOUNT];
    let added = host.command("useradd").args(options).arg(UID.to_string()).args(fields).run().await;
    match (observe(host).await?, added) {
        (Some(Account::Ours), Ok(_)) => host.changed(format!("reserved uid {UID} for the gateway: account {ACCOUNT}")),
        // Another run was faster.
        (Some(Account::Ours), Err(_)) => {}
        (_, Err(error)) => return Err(error),
        (found, Ok(_)) => bail!("what useradd made is not what it was asked for ({found:?})"),
    }
    Ok(())
}

/// Removes the account if it is ours.
pub(crate) async fn remove(host: &Host) -> Result<()> {
    if observe(host).await? != Some(Account::Ours) {
        return Ok(());
    }
    match host.command("userdel").arg(ACCOUNT).run().await {
        Ok(_) => host.changed(format!("removed the account {ACCOUNT}")),
        // Of another container, perhaps: the account is used by a process.
        Err(error) => host.warn(format!("the account {ACCOUNT} stays: {error:#}")),
    }
    Ok(())
}

/// `None` on what has no accounts.
async fn observe(host: &Host) -> Result<Option<Account>> {
    let passwd = host.read(PASSWD).await?;
    Ok(passwd.map(|passwd| decide(&String::from_utf8_lossy(&passwd))))
}

fn decide(passwd: &str) -> Account {
    let entries = passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        <[&str; 7]>::try_from(fields).ok()
    });
    let (mut account, mut is_taken) = (Account::Nobodys, false);
    for [name, _, uid, _, comment, home, shell] in entries {
        if uid.parse() == Ok(UID) {
            if [name, comment, home, shell] != [ACCOUNT, COMMENT, HOME, SHELL] {
                return Account::Anothers(name.to_owned());
            }
            account = Account::Ours;
        }
        is_taken |= name == ACCOUNT;
    }
    if account == Account::Nobodys && is_taken { Account::NameTaken } else { account }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str =
        "openclaw-gateway:x:1000:65534:OpenClaw gateway (openclaw-init):/nonexistent:/usr/sbin/nologin\n";

    #[test]
    fn only_a_uid_that_is_nobodys_is_taken_and_only_our_entry_is_ours() {
        let root = "root:x:0:0:root:/root:/bin/bash\n";
        let another = |name: &str| Account::Anothers(name.to_owned());
        let cases = [
            (String::new(), Account::Nobodys),
            (root.to_owned(), Account::Nobodys),
            (format!("{root}\n# a remark\nshort:x:1000\n"), Account::Nobodys),
            (format!("{root}{OURS}"), Account::Ours),
            (format!("{root}me:x:1000:1000::/home/me:/bin/bash\n"), another("me")),
            (format!("{OURS}me:x:1000:1000::/home/me:/bin/bash\n"), another("me")),
            (OURS.replace("/usr/sbin/nologin", "/bin/bash"), another("openclaw-gateway")),
            (OURS.replace(":1000:", ":998:"), Account::NameTaken),
            (OURS.replace("OpenClaw gateway (openclaw-init)", ""), another("openclaw-gateway")),
        ];
        for (passwd, expected) in cases {
            assert_eq!(decide(&passwd), expected, "{passwd}");
        }
    }

    /// Nothing is run where nothing has to be changed.
    #[tokio::test]
    async fn an_account_of_a_person_is_named_and_left_alone() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        ensure(&host).await;
        std::fs::create_dir(host.path("/etc"))?;
        for (passwd, warnings) in [(OURS, 0), ("me:x:1000:1000::/home/me:/bin/bash\n", 1)] {
            std::fs::write(host.path(PASSWD), passwd)?;
            ensure(&host).await;
            let ledger = host.ledger().borrow().clone();
            assert_eq!((ledger.warnings.len(), ledger.changes.len()), (warnings, 0), "{ledger:?}");
            assert!(ledger.warnings.iter().all(|warning| warning.contains("the account me has uid 1000")));
        }
        remove(&host).await?;
        assert!(host.ledger().borrow().changes.is_empty());
        Ok(())
    }
}
