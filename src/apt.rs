//! apt: what is installed, and installing what is missing.
//!
//! Other programs use apt on a fresh machine at the same moment (unattended upgrades above all), and a power
//! cut may have interrupted one. So every call waits for the lock whoever holds it, repairs what was cut
//! short, and tries again when a mirror has a bad moment. Nothing is ever removed to make room.

pub mod docker_key;
mod messages;
pub mod os_release;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use backon::{ConstantBuilder, ExponentialBuilder, Retryable as _};
use tokio::time::Instant;

use self::messages::{Kind, Status, classify, own_words, parse_candidate, parse_status};
use crate::error::{Classify, Code, one_line};
use crate::host::{Command, Host};

/// How long the packages of one stage may take, waiting for locks included.
pub const APT_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How often a taken lock is tried again. apt's own `DPkg::Lock::Timeout` waits for one of the locks only
/// (not for that of the lists), and silently.
const LOCK_PAUSE: Duration = Duration::from_secs(2);

/// How often in all apt is started for a failure that may pass by itself.
const ATTEMPTS: usize = 3;

/// Where dpkg keeps the journal of changes that it has not yet merged; not empty after an interruption.
const DPKG_JOURNAL: &str = "/var/lib/dpkg/updates";

/// apt on this machine, with one deadline for everything that is asked of it.
#[derive(Debug)]
pub struct Apt<'a> {
    host: &'a Host,
    deadline: Instant,
}

/// Makes sure that `packages` are installed; true when something had to be installed. See [`Apt::ensure_installed`].
pub async fn ensure_installed(host: &Host, packages: &[&str]) -> Result<bool> {
    Apt::new(host, APT_LIMIT).ensure_installed(packages).await
}

/// Those of `packages` that are completely installed.
pub async fn installed(host: &Host, packages: &[&str]) -> Result<BTreeSet<String>> {
    // 1: one of them is not known at all.
    let query = host.command("dpkg-query").args(["--show", "--showformat=${Package} ${db:Status-Status}\n"]);
    let output = query.args(packages).answers(&[1]).run().await.context("asking which packages are installed")?;
    Ok(parse_installed(&output.stdout))
}

fn parse_installed(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.strip_suffix(" installed")).map(str::to_owned).collect()
}

impl<'a> Apt<'a> {
    /// apt on `host`; all calls together end within `limit`.
    pub fn new(host: &'a Host, limit: Duration) -> Self {
        Self { host, deadline: Instant::now() + limit }
    }

    /// Makes sure that `packages` are installed; true when something had to be installed.
    ///
    /// An interrupted dpkg is repaired and the lists are updated first, both only when something is missing.
    /// Errors: [`Code::AptLocked`], [`Code::NoSpace`], [`Code::AptFailed`].
    pub async fn ensure_installed(&self, packages: &[&str]) -> Result<bool> {
        if self.missing(packages).await?.is_empty() {
            return Ok(false);
        }
        self.repair().await?;
        let missing = self.missing(packages).await?;
        if missing.is_empty() {
            return Ok(true);
        }
        let names = missing.join(" ");
        let updated = match self.update().await {
            // A broken source of the operator's own need not concern our packages: the installation tells.
            Err(error) if Instant::now() < self.deadline => Some(one_line(&error)),
            other => other.map(|()| None)?,
        };
        let install = ["install", "--no-install-recommends", "--no-remove"];
        let arguments: Vec<&str> = install.into_iter().chain(missing.iter().map(String::as_str)).collect();
        self.apt_get(&arguments).await.with_context(|| match &updated {
            None => format!("installing {names}"),
            Some(error) => format!("installing {names} after a failed update ({error})"),
        })?;
        if let Some(error) = updated {
            self.host
                .warn(format!("the needed packages were installed although apt's lists are not up to date: {error}"));
        }
        let missing = self.missing(packages).await?;
        if !missing.is_empty() {
            let error = anyhow!("apt reported success, yet not installed: {}", missing.join(" "));
            return Err(error).classify(Code::AptFailed, remedy());
        }
        self.host.changed(format!("installed {names}"));
        Ok(true)
    }

    /// Fetches the lists of all sources.
    pub async fn update(&self) -> Result<()> {
        self.apt_get(&["update"]).await.context("updating apt's lists")
    }

    /// Fetches the lists of one file of sources; unlike with [`Apt::update`], any failure is an error. Only
    /// a lock and a full disk are blamed here: what the rest means is the caller's to say.
    pub async fn update_only(&self, sources: &str) -> Result<()> {
        let list = format!("Dir::Etc::SourceList={sources}");
        let options = ["Dir::Etc::SourceParts=/dev/null", "APT::Get::List-Cleanup=0", "APT::Update::Error-Mode=any"];
        let mut arguments = vec!["update", "-o", &list];
        arguments.extend(options.into_iter().flat_map(|option| ["-o", option]));
        self.unlocked(|| self.command(&arguments)).await.or_else(|trouble| match trouble.kind {
            Kind::Locked(_) | Kind::Full => trouble.classify(),
            Kind::Lasting | Kind::Passing => Err(trouble.error),
        })
    }

    /// Whether any source offers the package.
    pub async fn offers(&self, package: &str) -> Result<bool> {
        let policy = self.host.command("apt-cache").args(["policy", package]).run().await;
        let output = policy.with_context(|| format!("asking apt for {package}"))?;
        Ok(parse_candidate(&output.stdout))
    }

    async fn missing(&self, packages: &[&str]) -> Result<Vec<String>> {
        let present = installed(self.host, packages).await?;
        Ok(packages.iter().filter(|name| !present.contains(**name)).map(|name| (*name).to_owned()).collect())
    }

    /// Ends what an interrupted dpkg began; does nothing on a machine where all is well.
    pub async fn repair(&self) -> Result<()> {
        if !self.interrupted().await? {
            return Ok(());
        }
        let configure =
            || unattended(self.host.command("dpkg").args(["--configure", "-a", "--force-confdef", "--force-confold"]));
        if let Err(trouble) = self.unlocked(configure).await {
            // apt below may still repair what dpkg alone cannot (a package that must be unpacked again).
            tracing::debug!("dpkg --configure -a: {:#}", trouble.error);
        }
        if self.interrupted().await? {
            self.apt_get(&["install", "--fix-broken", "--no-remove"]).await.context("repairing an interrupted dpkg")?;
        }
        self.host.changed("repaired an interrupted dpkg");
        Ok(())
    }

    async fn interrupted(&self) -> Result<bool> {
        let audit = self.host.command("dpkg").arg("--audit").answers(&[1]).run().await;
        let audit = audit.context("asking dpkg for half-installed packages")?;
        let journal = self.host.path(DPKG_JOURNAL);
        let journal = std::fs::read_dir(&journal).map(|mut entries| entries.next().is_some());
        Ok(!audit.stdout.trim().is_empty() || journal.unwrap_or(false))
    }

    /// Runs apt-get, waiting for locks, and again when the failure may pass.
    async fn apt_get(&self, arguments: &[&str]) -> Result<()> {
        let pauses = ExponentialBuilder::default().with_min_delay(Duration::from_secs(2)).with_jitter();
        (|| self.unlocked(|| self.command(arguments)))
            .retry(pauses.with_max_times(ATTEMPTS - 1))
            .when(|trouble| trouble.kind == Kind::Passing && Instant::now() < self.deadline)
            .notify(|trouble, _| tracing::debug!("apt is tried again: {:#}", trouble.error))
            .await
            .or_else(Trouble::classify)
    }

    /// Runs a program that needs apt's or dpkg's locks; while another one has them, again and again.
    async fn unlocked(&self, command: impl Fn() -> Command) -> Result<(), Trouble> {
        let last = std::cell::RefCell::new(String::new());
        let run = || async {
            let command = command().timeout(self.deadline.saturating_duration_since(Instant::now()));
            let output = command.run_lines(|line| self.follow(line, &mut last.borrow_mut())).await;
            output.map(drop).map_err(|error| Trouble::of(&error, &last.borrow()))
        };
        run.retry(ConstantBuilder::default().with_delay(LOCK_PAUSE).without_max_times())
            .when(|trouble| matches!(trouble.kind, Kind::Locked(_)) && Instant::now() + LOCK_PAUSE < self.deadline)
            .notify(|trouble, _| {
                if let Kind::Locked(holder) = &trouble.kind {
                    self.host.progress(format!("waiting for apt's lock, held by {holder}"));
                }
            })
            .await
    }

    fn follow(&self, line: &str, error: &mut String) {
        match parse_status(line) {
            Some(Status::Progress { percent, what }) => self.host.progress(format!("{percent:.0} % {what}")),
            Some(Status::Error { what }) => *error = what,
            None => tracing::debug!("apt: {line}"),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        const OPTIONS: [&str; 4] = [
            "Acquire::Retries=3",
            "Dpkg::Options::=--force-confdef",
            "Dpkg::Options::=--force-confold",
            "APT::Status-Fd=1",
        ];
        let options = OPTIONS.into_iter().flat_map(|option| ["-o", option]);
        unattended(self.host.command("apt-get").args(["-y", "-q"]).args(options).args(arguments))
    }
}

/// Keeps maintainer scripts and needrestart from asking questions.
fn unattended(command: Command) -> Command {
    command.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_SUSPEND", "1")
}

/// A failure of apt or dpkg.
#[derive(Debug)]
struct Trouble {
    kind: Kind,
    error: Error,
}

impl Trouble {
    fn of(error: &Error, package_error: &str) -> Self {
        let said = own_words(&format!("{error:#}")).to_owned();
        let kind = classify(&said);
        Self { kind, error: if package_error.is_empty() { anyhow!(said) } else { anyhow!("{package_error}: {said}") } }
    }

    fn classify(self) -> Result<()> {
        let failed = Err(self.error);
        match self.kind {
            Kind::Locked(holder) => failed.classify(
                Code::AptLocked,
                format!("{holder} kept apt's lock until the deadline: see what it does (ps -ef), then run `sudo openclaw-init boot`"),
            ),
            Kind::Full => failed.classify(Code::NoSpace, "Free some space on the boot disk (sudo apt-get clean) or enlarge it: gcloud compute disks resize"),
            Kind::Lasting | Kind::Passing => failed.classify(Code::AptFailed, remedy()),
        }
    }
}

fn remedy() -> String {
    "See what apt says with: sudo apt-get update && sudo apt-get install --fix-broken; then run `sudo openclaw-init boot`".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_packages_count_as_installed() {
        let text = "docker.io installed\ncontainerd half-configured\nrunc not-installed\nnftables installed\n";
        assert_eq!(parse_installed(text).into_iter().collect::<Vec<_>>(), ["docker.io", "nftables"]);
    }
}
