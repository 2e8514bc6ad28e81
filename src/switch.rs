//! Putting another state in the place of the present one, whole or not at all.
//!
//! The new directories are prepared beside the present ones. Then a durable intent names every rename, and
//! from that moment the switch is only ever completed, never undone: [`replace`] carries it out at once, and
//! if it is cut, [`complete`] does the rest at the next boot, before anything else looks at the state. The
//! present directories are renamed aside and stay; their new names end in `.before-<what>-<time>`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::cut;
use crate::disk::{self, DataDir, blocking};
use crate::failure::{Blame as _, Code};
use crate::host::{Access, Host, sync_dir};
use crate::record::Record;

/// The durable intent, beside the record.
const INTENT: &str = "switch.json";

/// What takes the place of the present data: prepared beside it, on the same file system.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The directory that becomes the state directory.
    pub state: PathBuf,
    /// The directory that becomes the one of `/home/node/.config/openclaw`; `None` leaves the present one.
    pub config: Option<PathBuf>,
    /// The record that belongs to it: the next boot runs this version.
    pub record: Record,
}

/// What is being done, by the names of directories beside each other: the disk may be on another machine when
/// it is completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Intent {
    /// What for, for example `restore`.
    what: String,
    moves: Vec<Move>,
    record: Record,
}

/// First `present` becomes `aside`, then `prepared` becomes `present`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Move {
    present: String,
    aside: String,
    prepared: String,
}

/// Switches to `prepared` for the sake of `what` (`restore`, `rollback`) and returns where the present
/// directories are now. The gateway must be stopped; the prepared files need not be synced yet.
///
/// An error before the intent is durable leaves everything as it was; after it, the next boot completes.
pub async fn replace(host: &Host, data: &DataDir, what: &str, prepared: &Prepared) -> Result<Vec<PathBuf>> {
    let intent = intend(data, what, prepared, &jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string())?;
    let root = host.path(data.root()?);
    blocking(move || sync_all(&root)).await.context("syncing what was prepared")?;
    let bytes = serde_json::to_vec_pretty(&intent).context("writing the switch as JSON")?;
    host.ensure_file(data.records.join(INTENT), bytes, Access::root(0o600)).await?;
    carry_out(host, data, &intent).await
}

/// Completes a switch that was cut, if there is one: before anything else looks at the state at a boot.
pub async fn complete(host: &Host, data: &DataDir) -> Result<()> {
    let path = data.records.join(INTENT);
    let Some(bytes) = host.read(&path).await? else { return Ok(()) };
    let intent: Intent = serde_json::from_slice(&bytes)
        .with_context(|| format!("reading {}", path.display()))
        .blame(Code::DiskDamaged, format!("See which of the directories beside it is the wanted state, give it the name openclaw, remove {} and run `openclaw-init boot`.", path.display()))?;
    let aside = carry_out(host, data, &intent).await?;
    let aside: Vec<_> = aside.iter().map(|path| path.display().to_string()).collect();
    host.warn(format!(
        "completed a {} that was interrupted; what was there before is in {}",
        intent.what,
        aside.join(", ")
    ));
    Ok(())
}

fn intend(data: &DataDir, what: &str, prepared: &Prepared, time: &str) -> Result<Intent> {
    let name = |path: &Path| {
        let beside = path.parent() == data.state.parent();
        let name = path.file_name().filter(|_| beside).and_then(|name| name.to_str()).map(str::to_owned);
        name.ok_or_else(|| anyhow!("{} is not beside {}", path.display(), data.state.display()))
    };
    let config = prepared.config.iter().map(|config| (&data.config, config));
    let moves = [(&data.state, &prepared.state)].into_iter().chain(config).map(|(present, prepared)| {
        let present = name(present)?;
        Ok(Move { aside: format!("{present}.before-{what}-{time}"), prepared: name(prepared)?, present })
    });
    Ok(Intent { what: what.to_owned(), moves: moves.collect::<Result<_>>()?, record: prepared.record.clone() })
}

/// Does what is still to be done, and forgets the intent. Returns where the former directories are.
async fn carry_out(host: &Host, data: &DataDir, intent: &Intent) -> Result<Vec<PathBuf>> {
    disk::hide(host).await?;
    let root = data.root()?;
    let mut aside = Vec::new();
    for step in &intent.moves {
        let (at, step, renames) = (host.path(root), step.clone(), cut::step("rename"));
        let shown = format!("putting {} in the place of {}", root.join(&step.prepared).display(), step.present);
        aside.extend(
            blocking(move || step.make(&at, &renames))
                .await
                .with_context(|| shown.clone())?
                .map(|name| root.join(name)),
        );
    }
    intent.record.write(host, data).await?;
    host.remove_file(data.records.join(INTENT)).await?;
    // Found again, it would overwrite a later record.
    let records = host.path(&data.records);
    blocking(move || sync_dir(&records)).await?;
    host.changed(format!("switched to the prepared state ({})", intent.what));
    Ok(aside)
}

impl Move {
    /// Renames what is not yet renamed. Each rename is durable before the next, so what is still there under
    /// the prepared name tells how far it is. Returns the former directory's name, if there was one.
    fn make(&self, root: &Path, renames: &cut::Step) -> Result<Option<String>> {
        let (present, aside, prepared) = (root.join(&self.present), root.join(&self.aside), root.join(&self.prepared));
        if exists(&prepared)? {
            renames.at("before");
            if exists(&present)? {
                if exists(&aside)? {
                    bail!("both {} and {} are there", present.display(), aside.display());
                }
                std::fs::rename(&present, &aside).with_context(|| format!("renaming it to {}", self.aside))?;
                sync_dir(root)?;
                renames.at("aside");
            }
            std::fs::rename(&prepared, &present).context("renaming it")?;
            sync_dir(root)?;
            renames.at("after");
        } else if !exists(&present)? {
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

    use super::*;

    fn data() -> DataDir {
        let below = |name: &str| PathBuf::from("/data").join(name);
        DataDir {
            state: below("openclaw"),
            config: below("config-openclaw"),
            records: below("openclaw-init"),
            backups: below("backups"),
            on_boot_disk: false,
        }
    }

    fn prepared() -> Prepared {
        Prepared {
            state: "/data/openclaw.restoring".into(),
            config: Some("/data/config-openclaw.restoring".into()),
            record: Record { version: Some("2026.9.5".into()), ..Record::default() },
        }
    }

    /// A machine with a present and a prepared state; every directory's file says what it was.
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
        assert!(!host.path("/data/openclaw-init").join(INTENT).exists());
        let record = Record::read(host, &data()).await?;
        assert_eq!(record.version.as_deref(), Some("2026.9.5"));
        Ok(())
    }

    #[tokio::test]
    async fn a_switch_leaves_both_states_whole() -> Result<()> {
        let (_root, host) = machine()?;
        let aside = replace(&host, &data(), "restore", &prepared()).await?;
        let [state, config] = &aside[..] else { bail!("{aside:?}") };
        assert!(state.to_string_lossy().starts_with("/data/openclaw.before-restore-2"), "{aside:?}");
        assert!(config.to_string_lossy().starts_with("/data/config-openclaw.before-restore-2"), "{aside:?}");
        assert_eq!(fs::read_to_string(host.path(state).join("is"))?, "openclaw");
        assert_eq!(fs::read_to_string(host.path("/data/openclaw/is"))?, "openclaw.restoring");
        complete(&host, &data()).await?;
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
            let (_root, host) = machine()?;
            let intent = intend(&data(), "restore", &prepared(), "T")?;
            fs::write(host.path("/data/openclaw-init").join(INTENT), serde_json::to_vec(&intent)?)?;
            for (from, to) in &renames[..done] {
                fs::rename(host.path("/data").join(from), host.path("/data").join(to))?;
            }
            complete(&host, &data()).await.with_context(|| format!("after {done} renames"))?;
            is_switched(&host).await.with_context(|| format!("after {done} renames"))?;
            let warnings = host.notes().borrow().warnings.clone();
            assert!(warnings.iter().any(|warning| warning.contains("/data/openclaw.before-restore-T")), "{warnings:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn without_an_intent_nothing_happens() -> Result<()> {
        let (_root, host) = machine()?;
        complete(&host, &data()).await?;
        assert_eq!(fs::read_to_string(host.path("/data/openclaw/is"))?, "openclaw");
        assert_eq!(host.notes().borrow().changes, []);
        Ok(())
    }

    #[test]
    fn only_what_is_beside_can_be_switched_to() {
        let elsewhere = Prepared { state: "/elsewhere/openclaw".into(), ..prepared() };
        assert!(intend(&data(), "restore", &elsewhere, "T").is_err());
    }
}
