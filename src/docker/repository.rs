//! Docker's apt repository: its key checked, its source written, its lists fetched.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use backon::{ExponentialBuilder, Retryable as _};

use crate::apt::Apt;
use crate::apt::docker_key::{DOCKER_FINGERPRINT, Fingerprint, only_key};
use crate::apt::os_release::Distribution;
use crate::error::{Classify, Code, code_of};
use crate::host::{Access, Host};
use crate::http;

/// Root's own decision on this machine to trust another key: for mirrors that sign themselves.
const TRUST_FILE: &str = "/etc/openclaw-init/docker-key.fingerprint";

const KEY_DIRECTORY: &str = "/etc/apt/keyrings";
const KEY_FILE: &str = "/etc/apt/keyrings/docker.asc";
const SOURCES_DIRECTORY: &str = "/etc/apt/sources.list.d";
const SOURCES_FILE: &str = "/etc/apt/sources.list.d/docker.sources";

/// How long one try for the key may take, and how many there are: with the pauses less than 30 s in all.
const KEY_TRY_LIMIT: Duration = Duration::from_secs(8);
const KEY_TRIES: usize = 3;

/// No key file comes near this; Docker's has 4 KB.
const KEY_LIMIT_BYTES: usize = 1 << 20;

/// The key that Docker's repository must be signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RepositoryTrust {
    fingerprint: Fingerprint,
    overridden: bool,
}

impl RepositoryTrust {
    /// Trusts the key with this fingerprint.
    pub(super) fn new(fingerprint: Fingerprint) -> Self {
        Self { fingerprint, overridden: false }
    }

    /// What this machine trusts: the fingerprint in `/etc/openclaw-init/docker-key.fingerprint` if root put
    /// one there, else that of Docker's own key.
    pub(super) async fn of(host: &Host) -> Result<Self> {
        let Some(bytes) = host.read(TRUST_FILE).await? else {
            return DOCKER_FINGERPRINT.parse().map(Self::new);
        };
        let fingerprint = String::from_utf8_lossy(&bytes).parse().with_context(|| format!("reading {TRUST_FILE}"));
        let remedy = format!("Write the key's fingerprint into {TRUST_FILE} (gpg --show-keys FILE), or remove it.");
        Ok(Self { fingerprint: fingerprint.classify(Code::DockerUnusable, remedy)?, overridden: true })
    }
}

/// The repository for one distribution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repository<'a> {
    pub(super) host: &'a Host,
    pub(super) apt: &'a Apt<'a>,
    pub(super) distribution: Distribution,
    /// Base of Docker's repositories, without the distribution.
    pub(super) url: &'a str,
    pub(super) trust: &'a RepositoryTrust,
}

/// Whether packages can be installed from the repository.
#[derive(Debug)]
pub(super) enum Diagnosis {
    /// Its lists are here, signed by the trusted key.
    Usable,
    /// It cannot be had now; no trace of it is left on the machine.
    Unreachable(Error),
}

impl Repository<'_> {
    /// Makes apt know the repository. A wrong key, a second key and a wrong signature are never taken for
    /// "cannot be reached": a repository under attack must be loud.
    pub(super) async fn ensure(&self) -> Result<Diagnosis> {
        if let Some(file) = self.foreign_source().await? {
            tracing::info!("Docker's repository is already in {}, with the trust given there", file.display());
            return self.fetch_lists(&file.to_string_lossy()).await;
        }
        let key = match self.fetch_key().await {
            Ok(key) => key,
            Err(error) => return self.give_up(error).await,
        };
        self.check_key(&key)?;
        self.write(key).await?;
        match self.fetch_lists(SOURCES_FILE).await {
            Ok(Diagnosis::Unreachable(error)) => self.give_up(error).await,
            Err(error) if code_of(&error) == Code::DockerUnusable => {
                self.remove().await?;
                Err(error)
            }
            other => other,
        }
    }

    /// `https://download.docker.com/linux/debian`, as it stands in sources.
    fn uri(&self) -> String {
        format!("{}/{}", self.url, self.distribution.id)
    }

    /// A file in which somebody else has already told apt about this repository. A second entry with
    /// another `Signed-By` would make apt refuse all of its sources.
    async fn foreign_source(&self) -> Result<Option<PathBuf>> {
        let uri = self.uri();
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        let mut entries =
            tokio::fs::read_dir(self.host.path(SOURCES_DIRECTORY)).await.context("listing apt's sources")?;
        while let Some(entry) = entries.next_entry().await.context("listing apt's sources")? {
            files.push(Path::new(SOURCES_DIRECTORY).join(entry.file_name()));
        }
        for file in files {
            let read_by_apt =
                matches!(file.extension().and_then(|extension| extension.to_str()), Some("list" | "sources"));
            if read_by_apt && file != Path::new(SOURCES_FILE) {
                let text = self.host.read(&file).await?.unwrap_or_default();
                if names_source(&String::from_utf8_lossy(&text), &uri) {
                    return Ok(Some(file));
                }
            }
        }
        Ok(None)
    }

    async fn fetch_key(&self) -> Result<Vec<u8>> {
        let (client, url) = (http::internet_client().await?, format!("{}/gpg", self.uri()));
        let fetch = || async {
            let mut reply = http::send(client.get(&url).timeout(KEY_TRY_LIMIT)).await?.error_for_status()?;
            let mut key = Vec::new();
            while let Some(chunk) = reply.chunk().await? {
                key.extend_from_slice(&chunk);
                if key.len() > KEY_LIMIT_BYTES {
                    bail!("the reply is larger than any key");
                }
            }
            Ok(key)
        };
        let fetched = fetch.retry(ExponentialBuilder::default().with_jitter().with_max_times(KEY_TRIES - 1)).await;
        fetched.with_context(|| format!("fetching {url}"))
    }

    fn check_key(&self, key: &[u8]) -> Result<()> {
        let trusted = self.trust.fingerprint;
        if self.trust.overridden {
            self.host.warn(format!("{TRUST_FILE} replaces Docker's key by {trusted}"));
        }
        let found = match only_key(key) {
            Ok(found) if found == trusted => return Ok(()),
            Ok(found) => anyhow!("its fingerprint is {found}, the trusted one is {trusted}"),
            Err(error) => error.context(format!("the only key in it must be {trusted}")),
        };
        let remedy = format!(
            "Do not trust this repository. If it is your own mirror with a key of its own, put that key's \
             fingerprint into {TRUST_FILE}; else choose the distribution's packages: openclaw-docker=distro"
        );
        let refused = Err(found).with_context(|| format!("checking the key at {}/gpg", self.uri()));
        refused.classify(Code::DockerUnusable, remedy)
    }

    async fn write(&self, key: Vec<u8>) -> Result<()> {
        let architecture = self.host.command("dpkg").arg("--print-architecture").run().await;
        let architecture = architecture.context("asking dpkg for the architecture")?.stdout;
        let sources = sources(&self.uri(), self.distribution.codename, architecture.trim());
        self.host.ensure_dir(KEY_DIRECTORY, Access::root(0o755)).await?;
        self.host.ensure_file(KEY_FILE, key, Access::root(0o644)).await?;
        self.host.ensure_file(SOURCES_FILE, sources, Access::root(0o644)).await?;
        Ok(())
    }

    async fn fetch_lists(&self, sources: &str) -> Result<Diagnosis> {
        match self.apt.update_only(sources).await {
            Ok(()) => Ok(Diagnosis::Usable),
            // A lock, a full disk: not about the repository.
            Err(error) if code_of(&error) != Code::Internal => Err(error),
            Err(error) if is_about_signature(&format!("{error:#}")) => {
                let remedy = "Do not trust this repository until it is known why; to go on with the distribution's \
                              packages, set openclaw-docker=distro";
                let refused = Err(error).with_context(|| format!("verifying the signature of {}", self.uri()));
                refused.classify(Code::DockerUnusable, remedy)
            }
            Err(error) => Ok(Diagnosis::Unreachable(error.context(format!("fetching the lists of {}", self.uri())))),
        }
    }

    async fn give_up(&self, error: Error) -> Result<Diagnosis> {
        self.remove().await?;
        Ok(Diagnosis::Unreachable(error))
    }

    /// Removes what this or an interrupted earlier run wrote, so that apt does not stumble over it.
    async fn remove(&self) -> Result<()> {
        self.host.remove_file(SOURCES_FILE).await?;
        self.host.remove_file(KEY_FILE).await?;
        Ok(())
    }
}

fn sources(uri: &str, codename: &str, architecture: &str) -> String {
    format!(
        "Types: deb\nURIs: {uri}\nSuites: {codename}\nComponents: stable\nArchitectures: {architecture}\nSigned-By: {KEY_FILE}\n"
    )
}

/// Whether a file of apt's sources, in either format, has an active entry for `uri`.
fn names_source(text: &str, uri: &str) -> bool {
    // A disabled paragraph of a `.sources` file is no entry.
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.lines().any(|line| line.trim() == "Enabled: no"));
    let lines = paragraphs.flat_map(str::lines).filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(str::split_whitespace).any(|word| word.trim_end_matches('/') == uri)
}

/// Whether apt refused the lists for their signature; gpgv's words (Debian 12, Ubuntu), then sqv's (Debian 13).
fn is_about_signature(message: &str) -> bool {
    ["GPG error", "is not signed", "no longer signed", "signatures were invalid", "signature verification failed"]
        .iter()
        .any(|text| message.contains(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::one_line;

    #[test]
    fn entries_of_others_are_found_in_both_formats() {
        let uri = "https://download.docker.com/linux/debian";
        for (text, wanted) in [
            ("deb [arch=amd64 signed-by=/x.asc] https://download.docker.com/linux/debian bookworm stable\n", true),
            ("deb https://download.docker.com/linux/debian/ bookworm stable\n", true),
            ("# deb https://download.docker.com/linux/debian bookworm stable\n", false),
            ("deb https://download.docker.com/linux/debian-other bookworm stable\n", false),
            ("Types: deb\nURIs: https://download.docker.com/linux/debian\nSuites: bookworm\n", true),
            ("Types: deb\nEnabled: no\nURIs: https://download.docker.com/linux/debian\n", false),
            ("Enabled: no\nURIs: https://other\n\nURIs: https://download.docker.com/linux/debian\n", true),
            ("", false),
        ] {
            assert_eq!(names_source(text, uri), wanted, "{text}");
        }
    }

    #[test]
    fn a_wrong_signature_is_not_an_unreachable_repository() {
        for (message, wanted) in [
            (
                "W: GPG error: https://x bookworm InRelease: The following signatures couldn't be verified NO_PUBKEY 1",
                true,
            ),
            ("E: The repository 'https://x bookworm InRelease' is not signed.", true),
            (
                "W: OpenPGP signature verification failed: https://x: Sub-process /usr/bin/sqv returned an error code",
                true,
            ),
            ("E: Failed to fetch https://x/InRelease  Could not connect to x:443, connection timed out", false),
            ("E: The repository 'https://x forky Release' does not have a Release file.", false),
        ] {
            assert_eq!(is_about_signature(message), wanted, "{message}");
        }
    }

    #[tokio::test]
    async fn root_may_trust_another_key() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let docker = RepositoryTrust::of(&host).await?;
        assert_eq!((docker.fingerprint.to_string().as_str(), docker.overridden), (DOCKER_FINGERPRINT, false));

        std::fs::create_dir_all(root.path().join("etc/openclaw-init"))?;
        std::fs::write(host.path(TRUST_FILE), "45e5 705d c647 c9d6 c6fb  174f 1846 df8a 096b 2903\n")?;
        let own = RepositoryTrust::of(&host).await?;
        assert_eq!(
            (own.fingerprint.to_string().as_str(), own.overridden),
            ("45E5705DC647C9D6C6FB174F1846DF8A096B2903", true)
        );

        std::fs::write(host.path(TRUST_FILE), "none\n")?;
        let error = RepositoryTrust::of(&host).await.unwrap_err();
        assert_eq!(code_of(&error), Code::DockerUnusable);
        Ok(())
    }

    #[test]
    fn a_refused_key_names_both_fingerprints() -> Result<()> {
        let host = Host::new("/nonexistent");
        let apt = Apt::new(&host, Duration::ZERO);
        let trust = RepositoryTrust::new(DOCKER_FINGERPRINT.parse()?);
        let distribution = Distribution { id: "debian", version: "12", codename: "bookworm" };
        let repository = Repository {
            host: &host,
            apt: &apt,
            distribution,
            url: "https://download.docker.com/linux",
            trust: &trust,
        };
        let one = "45E5705DC647C9D6C6FB174F1846DF8A096B2903";
        for file in ["one-key.asc", "two-keys.asc"] {
            let key = std::fs::read(Path::new("tests/fixtures/keys").join(file))?;
            let error = repository.check_key(&key).unwrap_err();
            let sentence = one_line(&error);
            assert_eq!(code_of(&error), Code::DockerUnusable);
            assert!(sentence.contains(DOCKER_FINGERPRINT) && sentence.contains(one), "{sentence}");
            let own = RepositoryTrust::new(one.parse()?);
            assert_eq!(Repository { trust: &own, ..repository }.check_key(&key).is_ok(), file == "one-key.asc");
        }
        Ok(())
    }
}
