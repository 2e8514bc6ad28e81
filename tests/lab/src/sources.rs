//! This machine's own package sources and trust, carried into everything the lab builds.
//!
//! The lab never names a package host: what it installs comes from where this machine's apt and npm look.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::program::run;

/// Debian's own archive keys, on every Debian machine.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where an administrator puts certificates that the machine trusts in addition.
const EXTRA_CERTIFICATES: &str = "/usr/local/share/ca-certificates";
/// The apt settings that decide whether this machine's sources can be read at all.
const SETTINGS: [&str; 5] =
    ["Acquire::Check-", "Acquire::Retries", "Acquire::http::", "Acquire::https::", "Acquire::Max-"];

/// A Debian release that the lab can build for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Suite {
    /// All of them, oldest first.
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// The name that apt sources use.
    pub fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The number of the release.
    pub fn number(self) -> u8 {
        match self {
            Self::Bookworm => 12,
            Self::Trixie => 13,
        }
    }
}

/// The settings of this machine's package managers that a lab machine or image needs, too.
#[derive(Debug, Clone)]
pub struct Sources {
    /// One archive each: URI, release as in `bookworm-updates`, component.
    archives: Vec<[String; 3]>,
    codename: String,
    settings: String,
    npm_registry: String,
    certificates: Vec<(String, String)>,
}

impl Sources {
    /// Reads apt's and npm's configuration and the extra CA certificates of this machine.
    ///
    /// Fails when apt has no source for the release that this machine runs.
    pub fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("/etc/os-release names no VERSION_CODENAME")?
            .trim_matches('"')
            .to_owned();
        let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
        let targets = run(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
        let archives = archives(&targets, &codename);
        ensure!(!archives.is_empty(), "apt on this machine has no source for {codename}");
        let settings = settings(&run(Command::new("apt-config").arg("dump"))?);
        let npm_registry = run(Command::new("npm").args(["config", "get", "registry"]))?.trim().to_owned();
        let certificates = certificates(Path::new(EXTRA_CERTIFICATES))?;
        Ok(Self { archives, codename, settings, npm_registry, certificates })
    }

    /// The lines of a `sources.list` for `suite`: this machine's archives with the release exchanged.
    pub fn list(&self, suite: Suite) -> String {
        let lines: Vec<String> = self
            .archives
            .iter()
            .map(|[uri, release, component]| {
                let release = release.replacen(&self.codename, suite.codename(), 1);
                format!("deb [signed-by={KEYRING}] {uri} {release} {component}\n")
            })
            .collect();
        lines.concat()
    }

    /// A file for `apt.conf.d`: proxies and checks as this machine has them; may be empty.
    pub fn settings(&self) -> &str {
        &self.settings
    }

    /// The address of the npm registry.
    pub fn npm_registry(&self) -> &str {
        &self.npm_registry
    }

    /// The extra CA certificates: file name below `/usr/local/share/ca-certificates`, and PEM text.
    pub fn certificates(&self) -> &[(String, String)] {
        &self.certificates
    }

    /// Everything of it that determines what is built, for the key of a cache entry.
    pub fn recipe(&self, suite: Suite) -> String {
        format!("{}{}{}\n{:?}", self.list(suite), self.settings, self.npm_registry, self.certificates)
    }
}

fn archives(targets: &str, codename: &str) -> Vec<[String; 3]> {
    let mut archives = Vec::new();
    for line in targets.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(release), Some(component)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let ours = release.strip_prefix(codename).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        let archive = [uri, release, component];
        if ours && !archives.contains(&archive) {
            archives.push(archive);
        }
    }
    archives
}

fn settings(dump: &str) -> String {
    dump.lines()
        .filter(|line| SETTINGS.iter().any(|name| line.starts_with(name)) && !line.ends_with(" \"\";"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn certificates(directory: &Path) -> Result<Vec<(String, String)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", directory.display())),
    };
    let mut certificates = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", directory.display()))?.path();
        if let (Some("crt"), Some(name)) = (path.extension().and_then(|it| it.to_str()), path.file_name()) {
            let pem = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            certificates.push((name.to_string_lossy().into_owned(), pem));
        }
    }
    certificates.sort();
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_archives_of_this_release_are_carried_over_and_the_release_is_exchanged() {
        let targets = "\
            http://mirror.test/debian/ bookworm main\n\
            http://mirror.test/debian/ bookworm main\n\
            http://mirror.test/debian/ bookworm-updates main\n\
            https://elsewhere.test/apt/ cloud-sdk-bookworm main\n\
            https://elsewhere.test/node/ nodistro main\n\
            http://mirror.test/security/ bookworm-security contrib\n";
        let sources = Sources {
            archives: archives(targets, "bookworm"),
            codename: "bookworm".into(),
            settings: String::new(),
            npm_registry: String::new(),
            certificates: Vec::new(),
        };
        let signed = format!("deb [signed-by={KEYRING}]");
        assert_eq!(
            sources.list(Suite::Trixie),
            format!(
                "{signed} http://mirror.test/debian/ trixie main\n\
                 {signed} http://mirror.test/debian/ trixie-updates main\n\
                 {signed} http://mirror.test/security/ trixie-security contrib\n"
            )
        );
    }

    #[test]
    fn only_the_settings_that_decide_about_reaching_an_archive_are_kept() {
        let dump = "APT \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://proxy.test:8080\";\n\
                    Acquire::https::Verify-Peer \"\";\nAcquire::cdrom::mount \"/media\";\nAcquire::Check-Date \"false\";\n";
        assert_eq!(
            settings(dump),
            "Acquire::http::Proxy \"http://proxy.test:8080\";\nAcquire::Check-Date \"false\";\n"
        );
    }
}
