//! Docker's apt repository: check its key, write its source, fetch its lists.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use backon::{ExponentialBuilder, Retryable as _};

use crate::apt::Apt;
use crate::apt::docker_key::{DOCKER_FINGERPRINT, Fingerprint, only_key};
use crate::apt::os_release::Distribution;
use crate::config::Arch;
use crate::error::{Classify, Code, Diagnosis, RUN_AGAIN, code_of};
use crate::host::{Access, Host};
use crate::http::{self, Limit, Retry};
use crate::paths::DOCKER_KEY_FINGERPRINT;

const KEY_DIR: &str = "/etc/apt/keyrings";
const KEY_FILE: &str = "/etc/apt/keyrings/docker.asc";
const SOURCES_DIR: &str = "/etc/apt/sources.list.d";
const SOURCES_FILE: &str = "/etc/apt/sources.list.d/docker.sources";

/// How long one try for the key may take, and how many there are: less than 30 s in all.
const KEY_TIMEOUT: Duration = Duration::from_secs(8);
const KEY_ATTEMPTS: usize = 3;

/// No key file comes near this; Docker's has 4 KB.
const MAX_KEY_BYTES: u64 = 1 << 20;

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

    /// The key that this machine trusts: the one with the fingerprint in [`DOCKER_KEY_FINGERPRINT`] if root has put
    /// one there (for mirrors that sign themselves), else Docker's own.
    pub(super) async fn of(host: &Host) -> Result<Self> {
        let Some(bytes) = host.read(DOCKER_KEY_FINGERPRINT).await? else {
            return DOCKER_FINGERPRINT.parse().map(Self::new);
        };
        let fingerprint =
            String::from_utf8_lossy(&bytes).parse().with_context(|| format!("reading {DOCKER_KEY_FINGERPRINT}"));
        let remedy =
            format!("Write the key's fingerprint into {DOCKER_KEY_FINGERPRINT} (gpg --show-keys FILE), or remove it.");
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

/// An entry for the repository among apt's sources.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    file: PathBuf,
    /// The key file that it names.
    key: Option<PathBuf>,
}

/// Whether packages can be installed from the repository.
#[derive(Debug)]
pub(super) enum Availability {
    /// apt has its lists, signed by the trusted key.
    Usable,
    /// It cannot be used now, and what this program wrote of it is gone again.
    Unusable(Error),
}

impl Repository<'_> {
    /// Makes apt know the repository. A wrong key, a second key and a wrong signature are errors and never count as
    /// unreachable: a repository under attack must be loud.
    ///
    /// Our files have the names of Docker's documentation, so that the two never contradict each other. Only what is
    /// ours byte for byte is ever written over or removed.
    pub(super) async fn ensure(&self) -> Result<Availability> {
        let own = self.own_sources();
        if let Some(source) = self.foreign_source(&own).await? {
            tracing::info!("Docker's repository is already in {}, with the trust given there", source.file.display());
            // Beside it ours would make apt refuse all of its sources.
            self.remove(false).await?;
            return match self.missing_key(&source) {
                Some(error) => Ok(Availability::Unusable(error)),
                None => self.fetch_lists(&source).await,
            };
        }
        if self.host.read(SOURCES_FILE).await?.is_some_and(|found| found != own.as_bytes()) {
            return Ok(Availability::Unusable(not_ours(SOURCES_FILE)));
        }
        let key = match self.fetch_key().await {
            Ok(key) => key,
            Err(error) => return self.give_up(error, false).await,
        };
        self.check_key(&key)?;
        let has_key = match self.host.read(KEY_FILE).await? {
            Some(found) if only_key(&found).is_ok_and(|found| found == self.trust.fingerprint) => true,
            Some(_) => return self.give_up(not_ours(KEY_FILE), false).await,
            None => false,
        };
        if !has_key {
            self.host.ensure_dir(KEY_DIR, Access::root(0o755)).await?;
            self.host.ensure_file(KEY_FILE, key, Access::root(0o644)).await?;
        }
        self.host.ensure_file(SOURCES_FILE, own, Access::root(0o644)).await?;
        match self.fetch_lists(&Source { file: SOURCES_FILE.into(), key: Some(KEY_FILE.into()) }).await {
            Ok(Availability::Unusable(error)) => self.give_up(error, !has_key).await,
            Err(error) if code_of(&error) == Code::DockerUnusable => {
                self.remove(!has_key).await?;
                Err(error)
            }
            other => other,
        }
    }

    /// `https://download.docker.com/linux/debian`, as it stands in sources.
    fn uri(&self) -> String {
        format!("{}/{}", self.url, self.distribution.id)
    }

    /// An entry for this repository that is not ours. A second one with another `Signed-By` would make apt refuse all
    /// of its sources.
    async fn foreign_source(&self, own: &str) -> Result<Option<Source>> {
        let uri = self.uri();
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        let mut entries = tokio::fs::read_dir(self.host.path(SOURCES_DIR)).await.context("listing apt's sources")?;
        while let Some(entry) = entries.next_entry().await.context("listing apt's sources")? {
            files.push(Path::new(SOURCES_DIR).join(entry.file_name()));
        }
        let is_read_by_apt = |file: &PathBuf| {
            matches!(file.extension().and_then(|extension| extension.to_str()), Some("list" | "sources"))
        };
        for file in files.into_iter().filter(is_read_by_apt) {
            let text = self.host.read(&file).await?.unwrap_or_default();
            if text != own.as_bytes()
                && let Some(source) = find_source(&file, &String::from_utf8_lossy(&text), &uri)
            {
                return Ok(Some(source));
            }
        }
        Ok(None)
    }

    async fn fetch_key(&self) -> Result<Vec<u8>> {
        let (client, url) = (http::internet_client().await?, format!("{}/gpg", self.uri()));
        let fetch = || async {
            let limit = Limit { time: KEY_TIMEOUT, bytes: MAX_KEY_BYTES };
            http::send(client.get(&url), limit).await?.success()?.body().await
        };
        fetch
            .retry(ExponentialBuilder::default().with_jitter().with_max_times(KEY_ATTEMPTS - 1))
            .when(|failure| failure.retry() != Retry::No)
            .await
            .with_context(|| format!("fetching {url}"))
    }

    fn check_key(&self, key: &[u8]) -> Result<()> {
        let trusted = self.trust.fingerprint;
        if self.trust.overridden {
            self.host.warn(format!("{DOCKER_KEY_FINGERPRINT} replaces Docker's key by {trusted}"));
        }
        let found = match only_key(key) {
            Ok(found) if found == trusted => return Ok(()),
            Ok(found) => anyhow!("its fingerprint is {found}, the trusted one is {trusted}"),
            Err(error) => error.context(format!("the only key in it must be {trusted}")),
        };
        let remedy = format!(
            "Do not trust this repository. If it is your own mirror with a key of its own, put that key's \
             fingerprint into {DOCKER_KEY_FINGERPRINT}; else choose the distribution's packages: openclaw-docker=distro"
        );
        let refused = Err(found).with_context(|| format!("checking the key at {}/gpg", self.uri()));
        refused.classify(Code::DockerUnusable, remedy)
    }

    /// What [`SOURCES_FILE`] holds when it is ours.
    fn own_sources(&self) -> String {
        sources(&self.uri(), self.distribution.codename, Arch::OURS.name())
    }

    /// A source whose key file does not exist: a mistake on this machine and no attack.
    fn missing_key(&self, source: &Source) -> Option<Error> {
        let Source { file, key } = source;
        let key = key.as_ref().filter(|key| !self.host.path(key).exists())?;
        let (file, key) = (file.display(), key.display());
        let remedy = format!("Put Docker's key there, or remove {file}; then run `{RUN_AGAIN}`");
        let diagnosis = Diagnosis { code: Code::DockerUnusable, remedy };
        Some(anyhow!("{file} names the key file {key}, which does not exist").context(diagnosis))
    }

    async fn fetch_lists(&self, source: &Source) -> Result<Availability> {
        match self.apt.update_only(&source.file.to_string_lossy()).await {
            Ok(()) => Ok(Availability::Usable),
            // A lock, a full disk: not about the repository.
            Err(error) if code_of(&error) != Code::Internal => Err(error),
            Err(error) if is_about_signature(&format!("{error:#}")) => {
                let refused = Err(error).with_context(|| format!("verifying the signature of {}", self.uri()));
                refused.classify(Code::DockerUnusable, signature_remedy(source))
            }
            Err(error) => Ok(Availability::Unusable(error.context(format!("fetching the lists of {}", self.uri())))),
        }
    }

    async fn give_up(&self, error: Error, with_key: bool) -> Result<Availability> {
        self.remove(with_key).await?;
        Ok(Availability::Unusable(error))
    }

    /// Removes what this run or an interrupted earlier one wrote, so that apt does not stumble over it. A key that this
    /// run did not write may be somebody's.
    async fn remove(&self, with_key: bool) -> Result<()> {
        let own = self.own_sources();
        if self.host.read(SOURCES_FILE).await?.is_some_and(|found| found == own.as_bytes()) {
            self.host.remove_file(SOURCES_FILE).await?;
        }
        if with_key {
            self.host.remove_file(KEY_FILE).await?;
        }
        Ok(())
    }
}

/// A file of our name that somebody else wrote.
fn not_ours(file: &str) -> Error {
    let remedy =
        format!("If nothing needs {file}, remove it and run `{RUN_AGAIN}`; else choose openclaw-docker=distro");
    anyhow!("{file} is there and not of this program").context(Diagnosis { code: Code::DockerUnusable, remedy })
}

fn signature_remedy(Source { file, key }: &Source) -> String {
    format!(
        "Do not trust this repository ({}, key {}) until it is known why; to go on with the distribution's packages, set \
         openclaw-docker=distro",
        file.display(),
        key.as_ref().map_or("of apt's own".into(), |key| key.to_string_lossy())
    )
}

fn sources(uri: &str, codename: &str, architecture: &str) -> String {
    format!(
        "Types: deb\nURIs: {uri}\nSuites: {codename}\nComponents: stable\nArchitectures: {architecture}\nSigned-By: {KEY_FILE}\n"
    )
}

/// The active entry for `uri` in one `file` of apt's sources with this `text`, in either format.
fn find_source(file: &Path, text: &str, uri: &str) -> Option<Source> {
    // A disabled paragraph of a `.sources` file is no entry.
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.lines().any(|line| line.trim() == "Enabled: no"));
    paragraphs.into_iter().find_map(|paragraph| {
        let lines = || paragraph.lines().filter(|line| !line.trim_start().starts_with('#'));
        let line = lines().find(|line| line.split_whitespace().any(|word| word.trim_end_matches('/') == uri))?;
        let option = line.split(['[', ']', ' ', '\t']).find_map(|word| word.strip_prefix("signed-by="));
        let key = option.or_else(|| lines().find_map(|line| line.strip_prefix("Signed-By:")));
        // The key itself can be there in place of a file's name.
        let key = key.map(str::trim).filter(|key| key.starts_with('/')).map(PathBuf::from);
        Some(Source { file: file.to_owned(), key })
    })
}

/// Whether apt refused the lists for their signature, in the words of gpgv (Debian 12, Ubuntu) or sqv (Debian 13).
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
    fn entries_of_others_are_found_in_both_formats_with_their_key_files() {
        let uri = "https://download.docker.com/linux/debian";
        let [keyless, x, y] = [Some(None), Some(Some("/x.asc")), Some(Some("/y.gpg"))];
        for (text, expected) in [
            ("deb [arch=amd64 signed-by=/x.asc] https://download.docker.com/linux/debian bookworm stable\n", x),
            (
                "deb [signed-by=/y.gpg] http://a b c\ndeb [signed-by=/x.asc] https://download.docker.com/linux/debian a b",
                x,
            ),
            ("deb https://download.docker.com/linux/debian/ bookworm stable\n", keyless),
            ("# deb https://download.docker.com/linux/debian bookworm stable\n", None),
            ("deb https://download.docker.com/linux/debian-other bookworm stable\n", None),
            ("Types: deb\nURIs: https://download.docker.com/linux/debian\nSuites: bookworm\n", keyless),
            ("Types: deb\nURIs: https://download.docker.com/linux/debian\nSigned-By: /y.gpg\n", y),
            ("URIs: https://download.docker.com/linux/debian\nSigned-By:\n -----BEGIN PGP\n", keyless),
            ("Types: deb\nEnabled: no\nURIs: https://download.docker.com/linux/debian\n", None),
            ("Enabled: no\nURIs: https://other\n\nURIs: https://download.docker.com/linux/debian\n", keyless),
            ("", None),
        ] {
            let found = find_source(Path::new("/file"), text, uri).map(|source| source.key);
            assert_eq!(found, expected.map(|key: Option<&str>| key.map(PathBuf::from)), "{text}");
        }
    }

    #[test]
    fn a_wrong_signature_is_not_an_unreachable_repository() {
        for (message, expected) in [
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
            assert_eq!(is_about_signature(message), expected, "{message}");
        }
    }

    #[tokio::test]
    async fn root_may_trust_another_key() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let docker = RepositoryTrust::of(&host).await?;
        assert_eq!((docker.fingerprint.to_string().as_str(), docker.overridden), (DOCKER_FINGERPRINT, false));

        std::fs::create_dir_all(root.path().join("etc/openclaw-init"))?;
        std::fs::write(host.path(DOCKER_KEY_FINGERPRINT), "45e5 705d c647 c9d6 c6fb  174f 1846 df8a 096b 2903\n")?;
        let own = RepositoryTrust::of(&host).await?;
        assert_eq!(
            (own.fingerprint.to_string().as_str(), own.overridden),
            ("45E5705DC647C9D6C6FB174F1846DF8A096B2903", true)
        );

        std::fs::write(host.path(DOCKER_KEY_FINGERPRINT), "none\n")?;
        let error = RepositoryTrust::of(&host).await.unwrap_err();
        assert_eq!(code_of(&error), Code::DockerUnusable);
        Ok(())
    }

    fn with_repository(host: &Host, test: impl FnOnce(Repository<'_>) -> Result<()>) -> Result<()> {
        let trust = RepositoryTrust::new(DOCKER_FINGERPRINT.parse()?);
        let distribution = Distribution { id: "debian", version: "12", codename: "bookworm" };
        let (apt, url) = (&Apt::new(host, Duration::ZERO), "https://download.docker.com/linux");
        test(Repository { host, apt, distribution, url, trust: &trust })
    }

    #[test]
    fn a_missing_key_file_is_no_attack_and_both_files_are_named() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let (file, key) = ("/etc/apt/sources.list.d/docker.list", "/etc/apt/keyrings/docker.gpg");
        let source = Source { file: file.into(), key: Some(key.into()) };
        with_repository(&host, |repository| {
            let missing = repository.missing_key(&source).map(|error| one_line(&error)).unwrap_or_default();
            std::fs::create_dir_all(host.path("/etc/apt/keyrings"))?;
            std::fs::write(host.path(key), "")?;
            assert!(repository.missing_key(&source).is_none());
            let wrong = signature_remedy(&source);
            for text in [&missing, &wrong] {
                assert!([file, key].iter().all(|part| text.contains(part)), "{text}");
            }
            assert!(missing.contains("does not exist") && !missing.contains("trust"), "{missing}");
            assert!(wrong.contains("Do not trust") && wrong.contains("openclaw-docker=distro"), "{wrong}");
            Ok(())
        })
    }

    #[tokio::test]
    async fn what_is_not_ours_byte_for_byte_is_kept() -> Result<()> {
        let distribution = Distribution { id: "debian", version: "12", codename: "bookworm" };
        let url = "http://127.0.0.1:1/linux";
        let ours = sources(&format!("{url}/debian"), "bookworm", Arch::OURS.name());
        let theirs = "Types: deb\nURIs: https://mirror.example/docker\nSuites: bookworm\nSigned-By: /x.asc\n";
        for (text, is_kept) in [(theirs.to_owned(), true), (format!("# mine\n{theirs}"), true), (ours, false)] {
            let root = tempfile::tempdir()?;
            let host = Host::new(root.path());
            for (file, text) in [(SOURCES_FILE, text.as_str()), (KEY_FILE, "a key of theirs")] {
                std::fs::create_dir_all(host.path(file).parent().context("it has a directory")?)?;
                std::fs::write(host.path(file), text)?;
            }
            let (apt, trust) = (&Apt::new(&host, Duration::ZERO), &RepositoryTrust::new(DOCKER_FINGERPRINT.parse()?));
            let availability = Repository { host: &host, apt, distribution, url, trust }.ensure().await?;
            assert!(matches!(availability, Availability::Unusable(_)), "{availability:?}");
            assert_eq!(std::fs::read_to_string(host.path(SOURCES_FILE)).ok(), is_kept.then_some(text));
            assert_eq!(std::fs::read_to_string(host.path(KEY_FILE))?, "a key of theirs");
        }
        Ok(())
    }

    #[test]
    fn a_refused_key_names_both_fingerprints() -> Result<()> {
        with_repository(&Host::new("/nonexistent"), |repository| {
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
        })
    }
}
