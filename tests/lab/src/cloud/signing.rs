//! `OpenPGP` keys for the lab's apt repository, in the shape of Docker's: RSA, a primary key and a signing subkey.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::program::run;

/// Part of the cache key: to be raised when the keys are to look different.
const RECIPE: &str = "1";

/// Two signing keys of the lab's own, in a directory of `gpg`.
#[derive(Debug)]
pub struct Keys {
    home: PathBuf,
}

impl Keys {
    /// The key that stands for Docker's.
    pub const GOOD: &str = "docker@lab.invalid";
    /// Somebody else's.
    pub const OTHER: &str = "somebody-else@lab.invalid";

    /// The keys of this cache, made when there are none.
    pub fn load(cache: &Cache) -> Result<Self> {
        Ok(Self { home: cache.entry("docker-key", &[RECIPE], Self::create)? })
    }

    fn create(home: &Path) -> Result<()> {
        fs::set_permissions(home, fs::Permissions::from_mode(0o700)).context("protecting the keys")?;
        let keys = Self { home: home.to_owned() };
        for name in [Self::GOOD, Self::OTHER] {
            let user = format!("openclaw-lab (stands for Docker Release) <{name}>");
            run(keys.gpg().args(["--quick-generate-key", &user, "rsa4096", "sign,cert,encrypt", "never"]))?;
            let fingerprint = keys.fingerprint(name)?;
            run(keys.gpg().args(["--quick-add-key", &fingerprint, "rsa4096", "sign", "never"]))?;
        }
        Ok(())
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.arg("--homedir").arg(&self.home);
        gpg.args(["--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode=loopback", "--passphrase", ""]);
        gpg
    }

    /// The primary key's fingerprint, 40 upper-case hex digits.
    pub fn fingerprint(&self, name: &str) -> Result<String> {
        let listing = run(self.gpg().args(["--with-colons", "--list-keys", name]))?;
        let line = listing.lines().find(|line| line.starts_with("fpr:")).context("gpg lists no fingerprint")?;
        line.split(':').nth(9).map(str::to_owned).with_context(|| format!("no fingerprint in {line:?}"))
    }

    /// The public keys, as one armored block.
    pub fn armored(&self, names: &[&str]) -> Result<String> {
        run(self.gpg().args(["--armor", "--export"]).args(names))
    }

    /// Writes the text of a `Release` file as `Release`, `Release.gpg` and `InRelease` to `directory`.
    pub fn sign(&self, name: &str, release: &str, directory: &Path) -> Result<()> {
        let file = directory.join("Release");
        fs::write(&file, release).with_context(|| format!("writing {}", file.display()))?;
        for (kind, signed) in [(&["--clear-sign"][..], "InRelease"), (&["--armor", "--detach-sign"], "Release.gpg")] {
            let mut gpg = self.gpg();
            gpg.args(["--local-user", name, "--output"]).arg(directory.join(signed)).args(kind).arg(&file);
            run(&mut gpg).with_context(|| format!("signing {}", file.display()))?;
        }
        Ok(())
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // gpg leaves an agent behind for every home; when this fails there is none.
        let _ = run(Command::new("gpgconf").arg("--homedir").arg(&self.home).args(["--kill", "gpg-agent"]));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_release_is_signed_so_that_only_its_own_key_accepts_it() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::load(&Cache::open(directory.path()).unwrap()).unwrap();
        let dists = directory.path().join("dists");
        fs::create_dir(&dists).unwrap();
        keys.sign(Keys::GOOD, "Codename: bookworm\n", &dists).unwrap();
        for (names, accepted) in
            [(&[Keys::GOOD][..], true), (&[Keys::OTHER], false), (&[Keys::GOOD, Keys::OTHER], true)]
        {
            let ring = directory.path().join("ring.gpg");
            let armored = directory.path().join("ring.asc");
            fs::write(&armored, keys.armored(names).unwrap()).unwrap();
            run(keys.gpg().arg("--output").arg(&ring).arg("--dearmor").arg(&armored)).unwrap();
            let verify = |file: &[PathBuf]| run(Command::new("gpgv").arg("--keyring").arg(&ring).args(file)).is_ok();
            assert_eq!(verify(&[dists.join("InRelease")]), accepted, "{names:?}");
            assert_eq!(verify(&[dists.join("Release.gpg"), dists.join("Release")]), accepted, "{names:?}");
        }
        assert_eq!(keys.fingerprint(Keys::GOOD).unwrap().len(), 40);
    }
}
