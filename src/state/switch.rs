//! Putting another state in the place of the current one, whole or not at all.
//!
//! The new directories are prepared beside the current ones. Then the journal names every rename, and from that
//! moment the switch is only ever completed, never undone: [`replace`] carries it out at once, and if it is cut,
//! [`complete_pending`] does the rest at the next boot, before anything else looks at the state. The current
//! directories are renamed aside and stay; their new names end in `.before-<purpose>-<time>`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;

use super::operation::{Move, Operation, Pending, Purpose, Switch};
use super::settings::settings_trial;
use super::{DataDir, Record, unpublish};
use crate::failpoint::{self, Failpoint};
use crate::host::{Host, blocking, sync_dir};
use crate::lock::RunLock;
use crate::text::{file_time, join_paths};

/// What takes the place of the current data: prepared beside it, on the same file system.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// The directory that becomes the state directory.
    pub state: PathBuf,
    /// The directory that becomes the one of `/home/node/.config/openclaw`; `None` leaves the current one.
    pub config: Option<PathBuf>,
    /// The record that belongs to it: the next boot runs this version.
    pub record: Record,
}

/// Switches to `prepared` and returns where the former directories are now. The gateway must be stopped; the
/// prepared files need not be synced yet.
///
/// An error before the journal is durable leaves everything as it was; after it, the next boot completes.
pub(crate) async fn replace(
    host: &Host,
    data: &DataDir,
    purpose: Purpose,
    prepared: &Prepared,
    lock: &RunLock,
) -> Result<Vec<PathBuf>> {
    let switch = Switch::new(data, purpose, prepared, &file_time(Timestamp::now()))?;
    let root = host.path(data.root()?);
    blocking(move || sync_all(&root)).await.context("syncing what was prepared")?;
    Operation::Switch(switch.clone()).write(host, data, lock).await?;
    let aside = switch.carry_out(host, data, lock).await?;
    Operation::forget(host, data, lock).await?;
    Ok(aside)
}

/// Completes a switch that was cut, if there is one; any other operation waits for [`super::recover()`].
pub(super) async fn complete_pending(host: &Host, data: &DataDir, lock: &RunLock) -> Result<()> {
    let Some(pending) = Pending::read(host, data).await? else { return Ok(()) };
    let Operation::Switch(switch) = &pending.operation else { return Ok(()) };
    let aside = switch.carry_out(host, data, lock).await?;
    host.warn(format!(
        "completed a {} that was interrupted; what was there before is in {}",
        switch.purpose.name(),
        join_paths(&aside)
    ));
    pending.forget(host, lock).await
}

impl Switch {
    fn new(data: &DataDir, purpose: Purpose, prepared: &Prepared, time: &str) -> Result<Self> {
        let name = |path: &Path| {
            let beside = path.parent() == data.state.parent();
            let name = path.file_name().filter(|_| beside).and_then(|name| name.to_str()).map(str::to_owned);
            name.ok_or_else(|| anyhow!("{} is not beside {}", path.display(), data.state.display()))
        };
        let config = prepared.config.iter().map(|config| (&data.config, config));
        let moves = [(&data.state, &prepared.state)].into_iter().chain(config).map(|(current, prepared)| {
            let current = name(current)?;
            let aside = format!("{current}.before-{}-{time}", purpose.name());
            Ok(Move { aside, prepared: name(prepared)?, current })
        });
        Ok(Self { purpose, moves: moves.collect::<Result<_>>()?, record: prepared.record.clone() })
    }

    /// Does what is still to be done. Returns where the former directories are.
    async fn carry_out(&self, host: &Host, data: &DataDir, lock: &RunLock) -> Result<Vec<PathBuf>> {
        unpublish(host).await?;
        let root = data.root()?;
        let mut aside = Vec::new();
        for step in &self.moves {
            let (at, step, renames) = (host.path(root), step.clone(), failpoint::counted("rename"));
            let doing = format!("putting {} in the place of {}", root.join(&step.prepared).display(), step.current);
            let former = blocking(move || step.make(&at, &renames)).await.context(doing)?;
            aside.extend(former.map(|name| root.join(name)));
        }
        self.record.write(host, data, lock).await?;
        host.remove_file(settings_trial(data)).await?;
        host.changed(format!("switched to the prepared state ({})", self.purpose.name()));
        Ok(aside)
    }
}

impl Move {
    /// Renames what is not yet renamed. Each rename is durable before the next, so what is still there under
    /// the prepared name tells how far it is. Returns the former directory's name, if there was one.
    fn make(&self, root: &Path, renames: &Failpoint) -> Result<Option<String>> {
        let (current, aside, prepared) = (root.join(&self.current), root.join(&self.aside), root.join(&self.prepared));
        if exists(&prepared)? {
            renames.hit_at("before");
            if exists(&current)? {
                if exists(&aside)? {
                    bail!("both {} and {} are there", current.display(), aside.display());
                }
                std::fs::rename(&current, &aside).with_context(|| format!("renaming it to {}", self.aside))?;
                sync_dir(root)?;
                renames.hit_at("aside");
            }
            std::fs::rename(&prepared, &current).context("renaming it")?;
            sync_dir(root)?;
            renames.hit_at("after");
        } else if !exists(&current)? {
            bail!("neither is there");
        }
        Ok(exists(&aside)?.then(|| self.aside.clone()))
    }
}

fn exists(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

/// Writes the whole file system to its disk.
fn sync_all(root: &Path) -> Result<()> {
    let directory = std::fs::File::open(root)?;
    Ok(nix::unistd::syncfs(&directory)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Owner, recover};
    use super::*;

    fn data() -> DataDir {
        DataDir::at("/data", false)
    }

    fn prepared() -> Prepared {
        Prepared {
            state: "/data/openclaw.restoring".into(),
            config: Some("/data/config-openclaw.restoring".into()),
            record: Record { owner: Owner::Version("2026.9.5".into()), ..Record::default() },
        }
    }

    /// A machine with a current and a prepared state; every directory's file says what it was.
    fn machine() -> Result<(tempfile::TempDir, Host)> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        fs::create_dir_all(host.path("/proc/self"))?;
        fs::write(host.path("/proc/self/mountinfo"), "")?;
        fs::create_dir_all(host.path("/data/openclaw-init"))?;
        for name in ["openclaw", "config-openclaw", "openclaw.restoring", "config-openclaw.restoring"] {
            fs::create_dir(host.path("/data").join(name))?;
            fs::write(host.path("/data").join(name).join("is"), name)?;
        }
        Ok((root, host))
    }

    async fn is_switched(host: &Host) -> Result<()> {
        let is = |name: &str| fs::read_to_string(host.path("/data").join(name).join("is"));
        assert_eq!(is("openclaw")?, "openclaw.restoring");
        assert_eq!(is("config-openclaw")?, "config-openclaw.restoring");
        assert_eq!(is("openclaw.before-restore-T")?, "openclaw");
        assert_eq!(is("config-openclaw.before-restore-T")?, "config-openclaw");
        assert!(!host.path("/data/openclaw-init").join("operation.json").exists());
        let record = Record::read(host, &data()).await?;
        assert_eq!(record.owner, Owner::Version("2026.9.5".into()));
        Ok(())
    }

    #[tokio::test]
    async fn a_switch_leaves_both_states_whole() -> Result<()> {
        let ((_root, host), lock) = (machine()?, RunLock::of_a_test());
        let aside = replace(&host, &data(), Purpose::Restore, &prepared(), &lock).await?;
        let [state, config] = &aside[..] else { bail!("{aside:?}") };
        assert!(state.to_string_lossy().starts_with("/data/openclaw.before-restore-2"), "{aside:?}");
        assert!(config.to_string_lossy().starts_with("/data/config-openclaw.before-restore-2"), "{aside:?}");
        assert_eq!(fs::read_to_string(host.path(state).join("is"))?, "openclaw");
        assert_eq!(fs::read_to_string(host.path("/data/openclaw/is"))?, "openclaw.restoring");
        recover(&host, &data(), None, &lock, &async || Ok(())).await?;
        assert_eq!(fs::read_to_string(host.path("/data/openclaw/is"))?, "openclaw.restoring", "nothing is left to do");
        Ok(())
    }

    /// After the intent was written, there are so many renames; a cut may come before and after each.
    #[tokio::test]
    async fn a_switch_that_was_cut_anywhere_is_completed() -> Result<()> {
        let renames = [
            ("openclaw", "openclaw.before-restore-T"),
            ("openclaw.restoring", "openclaw"),
            ("config-openclaw", "config-openclaw.before-restore-T"),
            ("config-openclaw.restoring", "config-openclaw"),
        ];
        for done in 0..=renames.len() {
            let ((_root, host), lock) = (machine()?, RunLock::of_a_test());
            let switch = Switch::new(&data(), Purpose::Restore, &prepared(), "T")?;
            Operation::Switch(switch).write(&host, &data(), &lock).await?;
            for (from, to) in &renames[..done] {
                fs::rename(host.path("/data").join(from), host.path("/data").join(to))?;
            }
            recover(&host, &data(), None, &lock, &async || Ok(()))
                .await
                .with_context(|| format!("after {done} renames"))?;
            is_switched(&host).await.with_context(|| format!("after {done} renames"))?;
            let warnings = host.ledger().borrow().warnings.clone();
            assert!(warnings.iter().any(|warning| warning.contains("/data/openclaw.before-restore-T")), "{warnings:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn without_an_intent_nothing_happens() -> Result<()> {
        let ((_root, host), lock) = (machine()?, RunLock::of_a_test());
        recover(&host, &data(), None, &lock, &async || Ok(())).await?;
        assert_eq!(fs::read_to_string(host.path("/data/openclaw/is"))?, "openclaw");
        assert_eq!(host.ledger().borrow().changes, []);
        Ok(())
    }

    #[test]
    fn only_what_is_beside_can_be_switched_to() {
        let elsewhere = Prepared { state: "/elsewhere/openclaw".into(), ..prepared() };
        assert!(Switch::new(&data(), Purpose::Restore, &elsewhere, "T").is_err());
    }
}
