//! The machine's own trust in the CAs of `openclaw-ca-certificates`, for every program that asks the system's store:
//! this one, apt, the engine, the proxy. The gateway mounts a file of its own.

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use crate::apt;
use crate::config::MOST_CERTIFICATES;
use crate::host::{Access, Host};
use crate::paths::{CA_BUNDLE, CA_FILES, ETC_DIR};

/// Of the package `ca-certificates`.
const UPDATE: &str = "/usr/sbin/update-ca-certificates";

/// What the bundle holds while the first list is placed: a run that is cut then leaves a bundle that differs from any.
const UNDERWAY: &str = "# openclaw-init is at work\n";

/// Makes the machine trust these CAs, given as PEM, and none that it trusted for a former list; true when something was
/// changed.
pub(crate) async fn ensure(host: &Host, certificates: &[String]) -> Result<bool> {
    let (bundle, former) = (certificates.concat(), host.read(CA_BUNDLE).await?.unwrap_or_default());
    let mut changed = former != bundle.as_bytes();
    if certificates.is_empty() && !changed && !is_any_placed(host) {
        return Ok(false);
    }
    if !host.path(UPDATE).exists() && !certificates.is_empty() {
        apt::ensure_installed(host, &["ca-certificates"]).await?;
    }
    if former.is_empty() {
        write_bundle(host, UNDERWAY.to_owned()).await?;
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
    write_bundle(host, bundle).await?;
    Ok(changed)
}

async fn write_bundle(host: &Host, bundle: String) -> Result<()> {
    host.ensure_dir(ETC_DIR, Access::root(0o755)).await?;
    host.ensure_file(CA_BUNDLE, bundle, Access::root(0o644)).await.map(drop)
}

/// When the machine began to trust what it trusts now; `None` where it never had a list.
pub(crate) async fn changed_at(host: &Host) -> Option<Timestamp> {
    let bundle = tokio::fs::metadata(host.path(CA_BUNDLE)).await.ok()?;
    bundle.modified().ok()?.try_into().ok()
}

/// The file of the `index`th certificate.
fn file(index: usize) -> String {
    format!("{CA_FILES}{}.crt", index + 1)
}

fn is_any_placed(host: &Host) -> bool {
    (0..MOST_CERTIFICATES).any(|index| host.path(file(index)).exists())
}

/// Makes these the ones that the store is made of, beside those of others: one in each file, since `openssl rehash`
/// passes over any other. True when something was changed.
async fn place(host: &Host, certificates: &[String]) -> Result<bool> {
    let mut changed = false;
    for index in 0..MOST_CERTIFICATES {
        changed |= match certificates.get(index) {
            Some(certificate) => host.ensure_file(file(index), certificate.as_str(), Access::root(0o644)).await?,
            None => host.remove_file(file(index)).await?,
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

    /// The machine has no `update-ca-certificates`. Without a list: nothing, a run that was cut, one of a program that
    /// did not say so, what an earlier list left.
    #[tokio::test]
    async fn of_a_first_list_that_was_cut_nothing_is_left() -> Result<()> {
        for (bundle, is_placed, changed) in [
            (None, false, false),
            (Some(UNDERWAY), true, true),
            (None, true, true),
            (Some(""), true, true),
            (Some(""), false, false),
        ] {
            let root = tempfile::tempdir()?;
            let host = Host::new(root.path());
            if let Some(bundle) = bundle {
                write_bundle(&host, bundle.to_owned()).await?;
            }
            if is_placed {
                std::fs::create_dir_all(host.path("/usr/local/share/ca-certificates"))?;
                std::fs::write(host.path(file(1)), "b")?;
            }
            assert_eq!(ensure(&host, &[]).await?, changed, "{bundle:?} {is_placed}");
            assert!(!is_any_placed(&host) && !ensure(&host, &[]).await?, "{bundle:?} {is_placed}");
            assert_eq!(changed_at(&host).await.is_some(), bundle.is_some() || is_placed);
        }
        Ok(())
    }
}
