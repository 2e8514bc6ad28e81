//! Units: written, enabled, started, asked about.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::{Access, Host};

/// How long a unit may take to start: above the limit of the engine and of systemd (90 s).
const START_LIMIT: Duration = Duration::from_secs(120);

/// Where an administrator's units live.
const UNIT_DIRECTORY: &str = "/etc/systemd/system";

/// Makes systemd read its units again.
pub async fn daemon_reload(host: &Host) -> Result<()> {
    host.command("systemctl").arg("daemon-reload").run().await.context("making systemd read its units again")?;
    Ok(())
}

/// Makes the unit `name` have exactly `content`, and systemd know it; true when the file was changed.
pub async fn ensure_unit(host: &Host, name: &str, content: &str) -> Result<bool> {
    let changed = host.ensure_file(format!("{UNIT_DIRECTORY}/{name}"), content, Access::root(0o644)).await?;
    // A run that was cut between the two steps left systemd with the old text.
    if changed || property(host, name, "NeedDaemonReload").await? == "yes" {
        daemon_reload(host).await?;
    }
    Ok(changed)
}

/// Stops and disables the unit `name` of [`ensure_unit`] and removes it; true when it was there.
pub async fn remove_unit(host: &Host, name: &str) -> Result<bool> {
    let path = format!("{UNIT_DIRECTORY}/{name}");
    if host.read(&path).await?.is_none() {
        return Ok(false);
    }
    let disable = host.command("systemctl").args(["disable", "--now", name]);
    disable.run().await.with_context(|| format!("disabling {name}"))?;
    host.remove_file(&path).await?;
    daemon_reload(host).await?;
    Ok(true)
}

/// Makes the unit start at every boot; true when something was changed.
pub async fn ensure_enabled(host: &Host, name: &str) -> Result<bool> {
    if word(host, "is-enabled", name).await? == "enabled" {
        return Ok(false);
    }
    let enable = host.command("systemctl").args(["enable", "--quiet", name]);
    enable.run().await.with_context(|| format!("enabling {name}"))?;
    host.changed(format!("enabled {name}"));
    Ok(true)
}

/// Makes the unit run, waiting until systemd calls it started; true when it did not run before.
pub async fn ensure_started(host: &Host, name: &str) -> Result<bool> {
    if is_active(host, name).await? {
        return Ok(false);
    }
    let start = host.command("systemctl").args(["start", name]).timeout(START_LIMIT);
    start.run().await.with_context(|| format!("starting {name}"))?;
    host.changed(format!("started {name}"));
    Ok(true)
}

/// Asks systemd to start the unit and does not wait for it; fine when it runs or starts already.
pub async fn start_without_waiting(host: &Host, name: &str) -> Result<()> {
    let start = host.command("systemctl").args(["start", "--no-block", name]);
    start.run().await.with_context(|| format!("starting {name}"))?;
    Ok(())
}

/// Starts the unit anew, waiting until systemd calls it started.
pub async fn restart(host: &Host, name: &str) -> Result<()> {
    let restart = host.command("systemctl").args(["restart", name]).timeout(START_LIMIT);
    restart.run().await.with_context(|| format!("restarting {name}"))?;
    host.changed(format!("restarted {name}"));
    Ok(())
}

/// Asks systemd to start the unit anew, also when it ran or failed before, and does not wait for it.
pub async fn restart_without_waiting(host: &Host, name: &str) -> Result<()> {
    // Starts that an operator asks for do not count towards the start limit.
    let forget = host.command("systemctl").args(["reset-failed", name]).answers(&[1]);
    forget.run().await.with_context(|| format!("forgetting failures of {name}"))?;
    let restart = host.command("systemctl").args(["restart", "--no-block", name]);
    restart.run().await.with_context(|| format!("restarting {name}"))?;
    Ok(())
}

/// Whether the unit is active (not: starting, failed, unknown).
pub async fn is_active(host: &Host, name: &str) -> Result<bool> {
    Ok(word(host, "is-active", name).await? == "active")
}

/// A property of the unit (`systemctl show`), empty when it has none; also for units that do not exist.
pub async fn property(host: &Host, name: &str, property: &str) -> Result<String> {
    let show = host.command("systemctl").args(["show", "--value", "--property", property, name]);
    let output = show.run().await.with_context(|| format!("asking systemd about {name}"))?;
    Ok(output.stdout.trim().to_owned())
}

/// The last `lines` messages of the unit in this boot, on one line; empty when there are none.
pub async fn last_messages(host: &Host, name: &str, lines: u8) -> String {
    let journal = host.command("journalctl").args(["--boot", "--quiet", "--no-pager", "--output=cat"]);
    let journal = journal.args(["--unit", name, "--lines", &lines.to_string()]);
    match journal.run().await {
        Ok(output) => output.stdout.lines().map(str::trim).collect::<Vec<_>>().join(" / "),
        Err(error) => {
            tracing::debug!("reading the messages of {name}: {error:#}");
            String::new()
        }
    }
}

/// One of systemctl's one-word answers; its exit code repeats the word.
async fn word(host: &Host, question: &str, name: &str) -> Result<String> {
    let ask = host.command("systemctl").args([question, name]).answers(&[1, 3, 4]);
    let output = ask.run().await.with_context(|| format!("asking systemd about {name}"))?;
    Ok(output.stdout.trim().to_owned())
}
