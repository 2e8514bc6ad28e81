//! How the boot before this one ended: a boot's first run leaves a mark on the boot disk, its clean shutdown completes
//! it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Error, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::metadata::Client;
use crate::paths::LAST_BOOT;

/// Where a kernel's last words are, and where systemd moves them to early in the next boot.
const PSTORE: &str = "/sys/fs/pstore";
const PSTORE_ARCHIVE: &str = "/var/lib/systemd/pstore";

/// How a boot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootEnd {
    /// By a shutdown.
    Clean,
    /// By a shutdown, since Compute Engine wanted the Spot VM back.
    Preempted,
    /// By nothing that the machine saw coming.
    Cut,
    /// By a failure of the kernel.
    Panic,
}

impl BootEnd {
    const ALL: [Self; 4] = [Self::Clean, Self::Preempted, Self::Cut, Self::Panic];

    fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Preempted => "preempted",
            Self::Cut => "cut",
            Self::Panic => "panic",
        }
    }

    /// For people, unless it was as it should be.
    pub(super) fn sentence(self) -> Option<String> {
        Some(match self {
            Self::Clean => return None,
            Self::Preempted => "the boot before this one ended when Compute Engine preempted the VM".to_owned(),
            Self::Cut => {
                "the boot before this one was cut off, by the power, a reset, or a shutdown that took too long"
                    .to_owned()
            }
            Self::Panic => format!(
                "the boot before this one ended with a panic of the kernel, whose last words are in {PSTORE_ARCHIVE} or \
                 {PSTORE}"
            ),
        })
    }
}

impl fmt::Display for BootEnd {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for BootEnd {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let end = Self::ALL.into_iter().find(|end| end.name() == name);
        end.ok_or_else(|| anyhow!("{name:?} is no end of this version"))
    }
}

/// What the boot disk knows of the boots.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mark {
    /// The boot that left it.
    boot_id: String,
    /// How it ended; nothing until then.
    end: Option<BootEnd>,
    /// How the one before it did.
    before: Option<BootEnd>,
}

impl Mark {
    async fn read(host: &Host) -> Result<Option<Self>> {
        let Some(bytes) = host.read(LAST_BOOT).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading {LAST_BOOT}"))
    }

    async fn write(&self, host: &Host) -> Result<()> {
        host.note_file(LAST_BOOT, serde_json::to_vec(self)?).await
    }
}

/// How the boot before this one ended, as far as that is known. The first run of a boot finds it out.
pub(super) async fn begin(host: &Host, boot_id: &str) -> Option<BootEnd> {
    let found = Mark::read(host).await.unwrap_or_else(|error| {
        tracing::debug!("{error:#}");
        None
    });
    let before = match found {
        None => None,
        Some(mark) if mark.boot_id == boot_id => return mark.before,
        Some(Mark { end: Some(end), .. }) => Some(end),
        Some(Mark { end: None, .. }) if has_panicked(host).await => Some(BootEnd::Panic),
        Some(Mark { end: None, .. }) => Some(BootEnd::Cut),
    };
    if let Some(sentence) = before.and_then(BootEnd::sentence) {
        tracing::info!("{sentence}");
    }
    let mark = Mark { boot_id: boot_id.to_owned(), end: None, before };
    if let Err(error) = mark.write(host).await {
        tracing::debug!("noting that a boot has begun: {error:#}");
    }
    before
}

/// Notes that this boot ends because the VM is preempted, if it is.
pub async fn note_preemption(host: &Host, metadata: &Client) -> Result<()> {
    if metadata.is_preempted().await? { note_end(host, BootEnd::Preempted).await } else { Ok(()) }
}

/// Notes how this boot ends; what was noted first holds. Nothing where no run has begun, and after `seal`.
pub async fn note_end(host: &Host, end: BootEnd) -> Result<()> {
    match Mark::read(host).await? {
        Some(mark) if mark.end.is_none() && mark.boot_id == host.boot_id().await? => {
            Mark { end: Some(end), ..mark }.write(host).await
        }
        _ => Ok(()),
    }
}

/// Whether the kernel has left last words for this boot. What was moved in an earlier one is old.
async fn has_panicked(host: &Host) -> bool {
    let uptime = host.read("/proc/uptime").await.ok().flatten().unwrap_or_default();
    let uptime = String::from_utf8_lossy(&uptime).split('.').next().and_then(|seconds| seconds.parse().ok());
    let booted = uptime.and_then(|seconds| SystemTime::now().checked_sub(Duration::from_secs(seconds)));
    let is_new = |entry: std::fs::DirEntry| entry.metadata().and_then(|found| found.modified()).ok() >= booted;
    let entries = |path: &str| std::fs::read_dir(host.path(Path::new(path))).into_iter().flatten().flatten();
    entries(PSTORE).next().is_some() || booted.is_some() && entries(PSTORE_ARCHIVE).any(is_new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::BOOT_DISK_DIR;

    fn boot(host: &Host, id: &str) -> Result<()> {
        std::fs::create_dir_all(host.path("/proc/sys/kernel/random"))?;
        std::fs::write(host.path("/proc/uptime"), "100.23 98.1\n")?;
        std::fs::write(host.path("/proc/sys/kernel/random/boot_id"), id)?;
        Ok(())
    }

    #[tokio::test]
    async fn an_end_is_known_to_every_run_of_the_next_boot() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let mut id = 0;
        for (ends, expected) in [
            (&[][..], None),
            (&[BootEnd::Clean], Some(BootEnd::Cut)),
            (&[BootEnd::Preempted, BootEnd::Clean], Some(BootEnd::Clean)),
            (&[], Some(BootEnd::Preempted)),
            (&[], Some(BootEnd::Cut)),
        ] {
            id += 1;
            boot(&host, &id.to_string())?;
            assert_eq!(begin(&host, &id.to_string()).await, expected, "boot {id}");
            assert_eq!(begin(&host, &id.to_string()).await, expected, "boot {id}, another run");
            for end in ends {
                note_end(&host, *end).await?;
            }
        }
        assert!(host.ledger().borrow().changes.is_empty(), "it is no change of the machine");
        Ok(())
    }

    #[tokio::test]
    async fn nothing_is_left_in_an_image_and_what_cannot_be_read_is_nothing() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        boot(&host, "1")?;
        begin(&host, "1").await;
        std::fs::remove_file(host.path(LAST_BOOT))?;
        note_end(&host, BootEnd::Clean).await?;
        assert!(!host.path(LAST_BOOT).exists(), "sealed");
        std::fs::write(host.path(LAST_BOOT), "{")?;
        assert_eq!(begin(&host, "1").await, None);
        assert_eq!(std::fs::read_dir(host.path(BOOT_DISK_DIR))?.count(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_panic_is_one_whose_words_are_new() -> Result<()> {
        for (place, age, expected) in
            [(PSTORE, 0, true), (PSTORE_ARCHIVE, 0, true), (PSTORE_ARCHIVE, 1000, false), ("/elsewhere", 0, false)]
        {
            let root = tempfile::tempdir()?;
            let host = Host::new(root.path());
            boot(&host, "1")?;
            let words = host.path(place).join("dmesg-efi-1");
            std::fs::create_dir_all(host.path(place))?;
            std::fs::write(&words, "Kernel panic - not syncing")?;
            let file = std::fs::File::options().write(true).open(&words)?;
            file.set_modified(SystemTime::now() - Duration::from_secs(age))?;
            assert_eq!(has_panicked(&host).await, expected, "{place} {age} s old");
        }
        Ok(())
    }

    #[test]
    fn only_what_was_not_clean_is_said() {
        let said: Vec<_> = BootEnd::ALL.into_iter().filter(|end| end.sentence().is_some()).collect();
        assert_eq!(said, [BootEnd::Preempted, BootEnd::Cut, BootEnd::Panic]);
        assert!(BootEnd::ALL.into_iter().all(|end| end.name().parse::<BootEnd>().is_ok_and(|read| read == end)));
    }
}
