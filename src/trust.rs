//! The machine's own trust in the CAs of `openclaw-ca-certificates`, for every program that asks the system's store:
//! this one, apt, the engine, the proxy. The gateway mounts a file of its own.

use anyhow::{Context as _, Result};

use crate::apt;
use crate::config::MOST_CERTIFICATES;
use crate::host::{Access, Host};
use crate::paths::{CA_BUNDLE, CA_FILES, ETC_DIR};

/// Of the package `ca-certificates`.
const UPDATE: &str = "/usr/sbin/update-ca-certificates";

/// Makes the machine trust these CAs, given as PEM, and none that it trusted for a former list; true when something was
/// changed.
pub(crate) async fn ensure(host: &Host, certificates: &[String]) -> Result<bool> {
    let bundle = certificates.concat();
    let mut changed = host.read(CA_BUNDLE).await?.unwrap_or_default() != bundle.as_bytes();
    if certificates.is_empty() && !changed {
        return Ok(false);
    }
    if !host.path(UPDATE).exists() && !certificates.is_empty() {
        apt::ensure_installed(host, &["ca-certificates"]).await?;
    }
    changed |= place(host, certificates).await?;
    if changed && host.path(UPDATE).exists() {
        // Without the option a certificate that went leaves its link.
        let update = host.command(UPDATE).arg("--fresh").run().await;
        update.context("making the machine's store of trusted CAs anew")?;
        host.changed("changed the CAs that this machine trusts");
    }
    // The last: while it differs, a run that was cut is gone on with. An empty one stays: a container that mounts it
    // could not start again without it.
    host.ensure_dir(ETC_DIR, Access::root(0o755)).await?;
    host.ensure_file(CA_BUNDLE, bundle, Access::root(0o644)).await?;
    Ok(changed)
}

/// Makes these the ones that the store is made of, beside those of others: one in each file, since `openssl rehash`
/// passes over any other. True when something was changed.
async fn place(host: &Host, certificates: &[String]) -> Result<bool> {
    let mut changed = false;
    for number in 0..MOST_CERTIFICATES {
        let file = format!("{CA_FILES}{}.crt", number + 1);
        changed |= match certificates.get(number) {
            Some(certificate) => host.ensure_file(file, certificate.as_str(), Access::root(0o644)).await?,
            None => host.remove_file(file).await?,
        };
    }
    Ok(changed)
}

/// Takes that trust away.
pub(crate) async fn remove(host: &Host) -> Result<()> {
    ensure(host, &[]).await?;
    host.remove_file(CA_BUNDLE).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_former_list_had_goes() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(host.path("/usr/local/share/ca-certificates"))?;
        let theirs = host.path("/usr/local/share/ca-certificates/theirs.crt");
        std::fs::write(&theirs, "theirs")?;
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let of = |number: usize| std::fs::read_to_string(host.path(format!("{CA_FILES}{number}.crt"))).ok();
        for (names, changed) in [(&[][..], false), (&["a", "b", "c"], true), (&["a", "b", "c"], false), (&["b"], true)]
        {
            assert_eq!(place(&host, &list(names)).await?, changed, "{names:?}");
            assert_eq!([1, 2, 3].map(of), [0, 1, 2].map(|at| names.get(at).map(|&name| name.to_owned())));
        }
        assert!(theirs.exists());
        Ok(())
    }
}
