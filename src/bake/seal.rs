//! Sealing: what must not be in an image goes, as the last step before the image is made.
//!
//! Two machines of one image must not share an identity, and nobody who gets the image may find a secret, a gateway's
//! state or the story of its making in it. What goes is one table; the rest is done by the programs that own it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::docker::Engine;
use crate::host::{Host, blocking};
use crate::lock::RunLock;
use crate::memory::swap;
use crate::paths::{BOOT_DISK_DATA, FORMER_STATES, LOCK, MACHINE_RECORDS, RUN_DIR_CONTENT};
use crate::{docker, gateway, identity, proxy, state, trust};

/// What goes, and where it is. A pattern with `**` stands for files only: packages want their directories back.
/// systemd's part is its own list for images (its documentation, `BUILDING_IMAGES`).
const TRACES: &[(&str, &str)] = &[
    ("SSH host keys", "/etc/ssh/ssh_host_*"),
    ("SSH keys of people", "/root/.ssh/authorized_keys"),
    ("SSH keys of people", "/home/*/.ssh/authorized_keys"),
    ("D-Bus's machine id", "/var/lib/dbus/machine-id"),
    ("the seed of random numbers", "/var/lib/systemd/random-seed"),
    ("systemd's secret", "/var/lib/systemd/credential.secret"),
    ("Docker's identity", "/etc/docker/key.json"),
    ("Docker's identity", "/var/lib/docker/engine-id"),
    ("Docker's swarm", "/var/lib/docker/swarm/*"),
    ("network leases", "/var/lib/dhcp/*"),
    ("apt's lists", "/var/lib/apt/lists/*"),
    ("apt's caches", "/var/cache/apt/*.bin"),
    ("downloaded packages", "/var/cache/apt/archives/*.deb"),
    ("downloaded packages", "/var/cache/apt/archives/partial/*"),
    ("the journal", "/var/log/journal/*"),
    ("logs", "/var/log/**/*"),
    ("shell history", "/root/.*_history"),
    ("shell history", "/home/*/.*_history"),
    ("this boot's report", RUN_DIR_CONTENT),
];

/// What gateways left on the boot disk. It goes only with `--force`.
const STATES: [(&str, &str); 2] = [("the gateway's state", BOOT_DISK_DATA), ("a former state", FORMER_STATES)];

const MACHINE_ID: &str = "/etc/machine-id";

/// A large disk takes a while.
const TRIM_TIMEOUT: Duration = Duration::from_secs(300);

/// Units that would write such traces anew before the machine is off, or when they are stopped.
const WRITERS: [&str; 6] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "docker.socket",
    "docker.service",
    "containerd.service",
    "systemd-random-seed.service",
];

/// Removes from the boot disk what must not be in an image. Refuses on a machine that has a gateway's container or
/// data, unless `force`: then the container goes, and so does the state on the boot disk; a data disk is only
/// unmounted. Returns the last words for the operator.
pub async fn run(host: &Host, force: bool) -> Result<String> {
    let _lock = RunLock::acquire(&host.path(LOCK)).await?;
    let engine = docker::find(host).await?;
    let found = gateways(host, engine.as_ref()).await?;
    if !found.is_empty() && !force {
        bail!(
            "this machine has a gateway ({}), and nothing was removed. To make an image of it all the same, without \
             that: openclaw-init seal --force, which deletes what of it is on the boot disk",
            found.join(", ")
        );
    }
    if let Some(engine) = engine.filter(|_| force) {
        gateway::purge(host, &engine).await?;
    }
    proxy::remove(host).await?;
    trust::remove(host).await?;
    identity::remove(host).await?;
    if force {
        state::unmount(host).await?;
        for state in STATES {
            remove(host, state).await?;
        }
    }
    stop_writers(host).await?;
    swap::remove(host).await?;
    clean_cloud_init(host).await?;
    empty_machine_id(host).await?;
    remove_all(host).await?;
    trim(host).await;
    Ok("sealed: switch the machine off now and make the image; a boot would make it a machine again".to_owned())
}

/// What a gateway has on this machine.
async fn gateways(host: &Host, engine: Option<&Engine>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if let Some(engine) = engine
        && gateway::exists(engine).await?
    {
        found.push(format!("container {}", gateway::NAME));
    }
    found.extend(state::find(host).await?.iter().map(|path| path.display().to_string()));
    Ok(found)
}

/// Stops [`WRITERS`]; the journal goes on in memory.
async fn stop_writers(host: &Host) -> Result<()> {
    // 5: a unit is not there.
    let stop = host.command("systemctl").arg("stop").args(WRITERS).answers(&[5]);
    stop.run().await.context("stopping what writes on the boot disk")?;
    let relinquish = host.command("journalctl").arg("--relinquish-var").run().await;
    relinquish.context("making the journal leave the boot disk").map(drop)
}

/// cloud-init knows best which instance it has set up.
async fn clean_cloud_init(host: &Host) -> Result<()> {
    if host.path("/usr/bin/cloud-init").exists() {
        host.command("cloud-init").args(["clean", "--logs"]).run().await.context("cleaning cloud-init")?;
        host.changed("removed cloud-init's instance data and logs");
    }
    Ok(())
}

/// systemd fills an empty file at the next boot. Without the file it would take that for the first boot and set all
/// units to their presets.
async fn empty_machine_id(host: &Host) -> Result<()> {
    if host.read(MACHINE_ID).await?.is_some_and(|id| !id.is_empty()) {
        tokio::fs::write(host.path(MACHINE_ID), "").await.with_context(|| format!("emptying {MACHINE_ID}"))?;
        host.changed(format!("emptied {MACHINE_ID}"));
    }
    Ok(())
}

async fn remove_all(host: &Host) -> Result<()> {
    let records = MACHINE_RECORDS.map(|path| ("what is known of boots and data disks", path));
    for trace in TRACES.iter().chain(&records) {
        remove(host, *trace).await?;
    }
    Ok(())
}

/// On a disk that can, what was deleted is then not even in its free blocks.
async fn trim(host: &Host) {
    let trim = async {
        blocking(|| {
            nix::unistd::sync();
            Ok(())
        })
        .await?;
        host.command("fstrim").arg("/").timeout(TRIM_TIMEOUT).run().await
    };
    match trim.await {
        Ok(_) => host.changed("trimmed the free space"),
        Err(error) => tracing::debug!("{error:#}"),
    }
}

/// Removes everything that the pattern matches, as one change.
async fn remove(host: &Host, (what, pattern): (&str, &str)) -> Result<()> {
    let (root, full, files_only) = (host.path("/"), host.path(pattern), pattern.contains("**"));
    let removed = blocking(move || remove_matches(&full, files_only)).await;
    let removed = removed.with_context(|| format!("removing {what} ({pattern})"))?;
    let names: Vec<_> = removed.iter().map(|path| path.strip_prefix(&root).unwrap_or(path)).collect();
    match &names[..] {
        [] => {}
        [name] => host.changed(format!("removed {what}: /{}", name.display())),
        names => host.changed(format!("removed {what}: {pattern} ({})", names.len())),
    }
    Ok(())
}

fn remove_matches(pattern: &Path, files_only: bool) -> Result<Vec<PathBuf>> {
    let pattern = pattern.to_str().context("the pattern is not text")?;
    let mut removed = Vec::new();
    for path in glob::glob(pattern)? {
        let path = path?;
        let is_dir = std::fs::symlink_metadata(&path)?.is_dir();
        if is_dir && files_only {
            continue;
        }
        let gone = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        gone.with_context(|| format!("removing {}", path.display()))?;
        removed.push(path);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_matches_goes_and_the_rest_stays() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let goes = [
            "etc/ssh/ssh_host_ed25519_key",
            "home/me/.ssh/authorized_keys",
            "etc/ssh/ssh_host_ed25519_key.pub",
            "var/lib/docker/engine-id",
            "var/lib/docker/swarm/state.json",
            "var/lib/apt/lists/a_Packages",
            "var/lib/apt/lists/partial/b",
            "var/cache/apt/archives/docker.io_1.deb",
            "var/log/journal/0123/system.journal",
            "var/log/apt/history.log",
            "var/log/syslog",
            "home/me/.bash_history",
            "root/.python_history",
            "var/lib/openclaw-init/data-disk.json",
            "var/lib/openclaw-init/e2fsck.undo",
        ];
        let stays = [
            "etc/ssh/sshd_config",
            "home/me/.ssh/config",
            "var/lib/docker/image/overlay2/repositories.json",
            "var/lib/docker/overlay2/1/diff/var/log/syslog",
            "home/me/.bashrc",
            "etc/openclaw-init/baked.json",
            "var/lib/openclaw-init/data/openclaw/openclaw.json",
        ];
        for file in goes.iter().chain(&stays) {
            let path = host.path(format!("/{file}"));
            std::fs::create_dir_all(path.parent().context("no parent")?)?;
            std::fs::write(path, "x")?;
        }
        remove_all(&host).await?;
        for (files, exists) in [(&goes[..], false), (&stays[..], true)] {
            for file in files {
                assert_eq!(root.path().join(file).exists(), exists, "{file}");
            }
        }
        assert!(root.path().join("var/log/apt").is_dir(), "packages want their directories back");
        assert!(!root.path().join("var/log/journal/0123").exists(), "its name is the machine id");
        let notes = host.ledger().borrow().changes.clone();
        assert!(
            notes.contains(&(None, "removed Docker's identity: /var/lib/docker/engine-id".to_owned())),
            "{notes:?}"
        );
        Ok(())
    }
}
