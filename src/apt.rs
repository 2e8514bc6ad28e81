//! apt: which packages are installed, and installing the missing ones.
//!
//! On a fresh machine other programs use apt at the same moment (unattended upgrades above all), and a power cut may
//! have interrupted one of them. So every call waits until the lock is free, repairs what was cut short, and tries
//! again when a mirror has a bad moment. No package is ever removed to make room for another.

pub mod docker_key;
#[cfg(fuzzing)]
pub mod fuzzing;
mod messages;
pub mod os_release;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use backon::{ConstantBuilder, ExponentialBuilder, Retryable as _};
use tokio::time::Instant;

use self::messages::{Cause, StatusLine, parse_candidate, parse_status};
use crate::error::{Classify, Code, RUN_AGAIN, what};
use crate::host::{Command, Host};

/// How long the packages of one stage may take, waiting for locks included.
pub const APT_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// How often a taken lock is tried again. apt's own `DPkg::Lock::Timeout` waits silently, and not for the lock of the
/// lists.
const LOCK_INTERVAL: Duration = Duration::from_secs(2);

/// How often apt is started in all when its failures may pass, and the pause before the second time.
const ATTEMPTS: usize = 3;
const MIN_BACKOFF: Duration = Duration::from_secs(2);

/// dpkg's journal of changes that it has not yet merged; not empty after an interruption.
const DPKG_JOURNAL: &str = "/var/lib/dpkg/updates";

/// apt on this machine, with one deadline for all calls together.
#[derive(Debug)]
pub struct Apt<'a> {
    host: &'a Host,
    deadline: Instant,
}

/// [`Apt::ensure_installed`] with a deadline of its own.
pub async fn ensure_installed(host: &Host, packages: &[&str]) -> Result<bool> {
    Apt::new(host, APT_DEADLINE).ensure_installed(packages).await
}

/// Those of `packages` that are completely installed.
pub async fn installed(host: &Host, packages: &[&str]) -> Result<BTreeSet<String>> {
    // 1: dpkg knows nothing of one of them.
    let query = host.command("dpkg-query").args(["--show", "--showformat=${Package} ${db:Status-Status}\n"]);
    let output = query.args(packages).answers(&[1]).run().await.context("asking which packages are installed")?;
    Ok(parse_installed(&output.stdout))
}

fn parse_installed(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.strip_suffix(" installed")).map(str::to_owned).collect()
}

impl<'a> Apt<'a> {
    /// apt on `host`, whose calls all end within `deadline` from now.
    pub fn new(host: &'a Host, deadline: Duration) -> Self {
        Self { host, deadline: Instant::now() + deadline }
    }

    /// Makes sure that `packages` are installed; true when something had to be installed.
    ///
    /// When something is missing, an interrupted dpkg is repaired and the lists are updated first.
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
        self.install(&missing).await?;
        let still_missing = self.missing(packages).await?.join(" ");
        if !still_missing.is_empty() {
            let error = anyhow!("apt reported success, yet not installed: {still_missing}");
            return Err(error).classify(Code::AptFailed, remedy());
        }
        self.host.changed(format!("installed {}", missing.join(" ")));
        Ok(true)
    }

    /// Removes a package and its settings, and nothing that it needed.
    pub async fn purge(&self, package: &str) -> Result<()> {
        self.repair().await?;
        self.apt_get(&["purge", package]).await.with_context(|| format!("removing {package}"))?;
        self.host.changed(format!("removed {package}"));
        Ok(())
    }

    /// Updates the lists and installs `packages`.
    async fn install(&self, packages: &[String]) -> Result<()> {
        let names = packages.join(" ");
        let update_error = match self.update().await {
            // A broken source of the operator's need not concern our packages: the installation decides.
            Err(error) if Instant::now() < self.deadline => Some(what(&error)),
            other => other.map(|()| None)?,
        };
        let install = ["install", "--no-install-recommends", "--no-remove"];
        let arguments: Vec<&str> = install.into_iter().chain(packages.iter().map(String::as_str)).collect();
        self.apt_get(&arguments).await.with_context(|| match &update_error {
            None => format!("installing {names}"),
            Some(error) => format!("installing {names} after a failed update ({error})"),
        })?;
        if let Some(error) = update_error {
            self.host
                .warn(format!("the needed packages were installed although apt's lists are not up to date: {error}"));
        }
        Ok(())
    }

    /// Fetches the lists of all sources.
    pub async fn update(&self) -> Result<()> {
        self.apt_get(&["update"]).await.context("updating apt's lists")
    }

    /// Fetches the lists of one file of sources; unlike with [`Apt::update`], any failure is an error. Only a taken
    /// lock and a full disk are classified here; the caller knows what the rest means.
    pub async fn update_only(&self, sources: &str) -> Result<()> {
        let list = format!("Dir::Etc::SourceList={sources}");
        let options = ["Dir::Etc::SourceParts=/dev/null", "APT::Get::List-Cleanup=0"];
        let mut arguments = vec!["update", "-o", &list];
        arguments.extend(options.into_iter().flat_map(|option| ["-o", option]));
        self.unlocked(|| self.command(&arguments)).await.or_else(|failed| match failed.cause {
            Cause::Locked(_) | Cause::NoSpace | Cause::Sources => failed.classify(),
            Cause::Permanent | Cause::Transient => Err(failed.error),
        })
    }

    /// Whether any source offers the package.
    pub async fn offers(&self, package: &str) -> Result<bool> {
        let policy = self.host.command("apt-cache").args(["policy", package]).run().await;
        let output = policy.or_else(|error| AptError::new(&error, "").classify());
        Ok(parse_candidate(&output.with_context(|| format!("asking apt for {package}"))?.stdout))
    }

    async fn missing(&self, packages: &[&str]) -> Result<Vec<String>> {
        let installed = installed(self.host, packages).await?;
        Ok(packages.iter().filter(|name| !installed.contains(**name)).map(|name| (*name).to_owned()).collect())
    }

    /// Completes what an interrupted dpkg began; does nothing on a machine where all is well.
    pub async fn repair(&self) -> Result<()> {
        if !self.is_interrupted().await? {
            return Ok(());
        }
        let configure =
            || unattended(self.host.command("dpkg").args(["--configure", "-a", "--force-confdef", "--force-confold"]));
        if let Err(failed) = self.unlocked(configure).await {
            // apt below may still repair what dpkg alone cannot (a package that must be unpacked again).
            tracing::debug!("dpkg --configure -a: {:#}", failed.error);
        }
        if self.is_interrupted().await? {
            self.apt_get(&["install", "--fix-broken", "--no-remove"]).await.context("repairing an interrupted dpkg")?;
        }
        self.host.changed("repaired an interrupted dpkg");
        Ok(())
    }

    async fn is_interrupted(&self) -> Result<bool> {
        let audit = self.host.command("dpkg").arg("--audit").answers(&[1]).run().await;
        let audit = audit.context("asking dpkg for half-installed packages")?;
        let journal = self.host.path(DPKG_JOURNAL);
        let journal = std::fs::read_dir(&journal).map(|mut entries| entries.next().is_some());
        Ok(!audit.stdout.trim().is_empty() || journal.unwrap_or(false))
    }

    /// Runs apt-get, waiting for its locks; runs it again after a failure that may pass.
    async fn apt_get(&self, arguments: &[&str]) -> Result<()> {
        let backoff = ExponentialBuilder::default().with_min_delay(MIN_BACKOFF).with_jitter();
        (|| self.unlocked(|| self.command(arguments)))
            .retry(backoff.with_max_times(ATTEMPTS - 1))
            .when(|failed| failed.cause == Cause::Transient && Instant::now() < self.deadline)
            .notify(|failed, _| tracing::debug!("apt is tried again: {:#}", failed.error))
            .await
            .or_else(AptError::classify)
    }

    /// Runs a program that needs apt's or dpkg's locks, again and again while another program has them.
    async fn unlocked(&self, command: impl Fn() -> Command) -> Result<(), AptError> {
        let package_error = std::cell::RefCell::new(String::new());
        let run = || async {
            let command = command().timeout(self.deadline.saturating_duration_since(Instant::now()));
            let output = command.run_lines(|line| self.follow(line, &mut package_error.borrow_mut())).await;
            output.map(drop).map_err(|error| AptError::new(&error, &package_error.borrow()))
        };
        run.retry(ConstantBuilder::default().with_delay(LOCK_INTERVAL).without_max_times())
            .when(|failed| matches!(failed.cause, Cause::Locked(_)) && Instant::now() + LOCK_INTERVAL < self.deadline)
            .notify(|failed, _| {
                if let Cause::Locked(holder) = &failed.cause {
                    self.host.progress(format!("waiting for apt's lock, held by {holder}"));
                }
            })
            .await
    }

    /// Follows one line of output; keeps the last error of a package in `package_error`.
    fn follow(&self, line: &str, package_error: &mut String) {
        match parse_status(line) {
            Some(StatusLine::Progress { percent, what }) => self.host.progress(format!("{percent:.0} % {what}")),
            Some(StatusLine::Error { what }) => *package_error = what,
            None => tracing::debug!("apt: {line}"),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        const OPTIONS: [&str; 5] = [
            "Acquire::Retries=3",
            // Else an update without any name resolution ends well, and no package is found afterwards.
            "APT::Update::Error-Mode=any",
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
struct AptError {
    cause: Cause,
    error: Error,
}

impl AptError {
    fn new(error: &Error, package_error: &str) -> Self {
        let message = format!("{error:#}");
        let output = messages::output(&message);
        let separator = if package_error.is_empty() { "" } else { ": " };
        Self { cause: messages::cause(output), error: anyhow!("{package_error}{separator}{output}") }
    }

    fn classify<T>(self) -> Result<T> {
        let failed = Err(self.error);
        match self.cause {
            Cause::Locked(holder) => failed.classify(
                Code::AptLocked,
                format!(
                    "{holder} kept apt's lock until the deadline: see what it does (ps -ef), then run `{RUN_AGAIN}`"
                ),
            ),
            Cause::NoSpace => failed.classify(
                Code::NoSpace,
                "Free some space on the boot disk (sudo apt-get clean) or enlarge it: gcloud compute disks resize",
            ),
            Cause::Sources => failed.classify(
                Code::AptFailed,
                format!("Correct or remove that entry of apt's sources, then run `{RUN_AGAIN}`"),
            ),
            Cause::Permanent | Cause::Transient => failed.classify(Code::AptFailed, remedy()),
        }
    }
}

fn remedy() -> String {
    format!("See what apt says with: sudo apt-get update && sudo apt-get install --fix-broken; then run `{RUN_AGAIN}`")
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
