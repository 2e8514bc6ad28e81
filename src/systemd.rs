//! Units: written, enabled, started, asked about.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

use crate::host::{Access, Command, Host};

/// How long systemd may take to start or stop a unit: above the limits of the engine and of systemd (90 s).
const UNIT_TIMEOUT: Duration = Duration::from_secs(120);

/// How many of a unit's last messages an error quotes.
const QUOTED_LINES: u8 = 3;

/// Where an administrator's units live.
pub const UNIT_DIR: &str = "/etc/systemd/system";

/// Where systemd hears its services; only it names another place, to services in a root of their own.
const NOTIFY_SOCKET: &str = "/run/systemd/notify";

/// Lets the unit whose main process this is take so long from now on. Where there is no such unit nobody listens.
pub fn extend_timeout(host: &Host, time: Duration) {
    let message = format!("EXTEND_TIMEOUT_USEC={}", time.as_micros());
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(message.as_bytes(), host.path(NOTIFY_SOCKET)));
    if let Err(error) = sent {
        tracing::debug!("asking systemd for more time: {error}");
    }
}

/// Makes systemd read its units again.
pub async fn daemon_reload(host: &Host) -> Result<()> {
    run(host, "making systemd read its units again", &["daemon-reload"]).await
}

/// Makes the unit `name` have exactly `content`, and systemd know it; true when the file was changed.
pub async fn ensure_unit(host: &Host, name: &str, content: &str) -> Result<bool> {
    Ok(ensure_known(host, name, content).await?.0)
}

/// The same for a unit that starts at every boot; true when something was changed.
pub async fn ensure_enabled_unit(host: &Host, name: &str, content: &str) -> Result<bool> {
    let (changed, unit) = ensure_known(host, name, content).await?;
    if unit.file == "enabled" {
        return Ok(changed);
    }
    enable(host, name).await.map(|()| true)
}

/// Whether the file was changed, and the unit as it was before systemd read it again.
async fn ensure_known(host: &Host, name: &str, content: &str) -> Result<(bool, Unit)> {
    let changed = host.ensure_file(format!("{UNIT_DIR}/{name}"), content, Access::root(0o644)).await?;
    let [unit] = show(host, [name]).await?;
    // A run that was cut between the two steps left systemd with the old text.
    if changed || unit.needs_reload {
        daemon_reload(host).await?;
    }
    Ok((changed, unit))
}

/// Stops and disables the unit `name` of [`ensure_unit`] and removes it; true when there was one. A mask stays.
pub async fn remove_unit(host: &Host, name: &str) -> Result<bool> {
    let path = format!("{UNIT_DIR}/{name}");
    if host.read(&path).await?.is_none() || is_masked(host, name).await? {
        return Ok(false);
    }
    run(host, &format!("disabling {name}"), &["disable", "--now", name]).await?;
    host.remove_file(&path).await?;
    daemon_reload(host).await?;
    Ok(true)
}

/// Keeps the unit from ever being started, also one that is yet to be installed.
pub async fn ensure_masked(host: &Host, name: &str) -> Result<()> {
    if !is_masked(host, name).await? {
        run(host, &format!("masking {name}"), &["mask", "--quiet", name]).await?;
        host.changed(format!("masked {name}"));
    }
    Ok(())
}

/// Takes a mask away.
pub async fn unmask(host: &Host, name: &str) -> Result<()> {
    run(host, &format!("unmasking {name}"), &["unmask", "--quiet", name]).await
}

/// Whether the unit starts at every boot.
pub async fn is_enabled(host: &Host, name: &str) -> Result<bool> {
    Ok(state(host, "is-enabled", name).await? == "enabled")
}

/// Makes the unit start at every boot; true when something was changed.
pub async fn ensure_enabled(host: &Host, name: &str) -> Result<bool> {
    if is_enabled(host, name).await? {
        return Ok(false);
    }
    enable(host, name).await.map(|()| true)
}

async fn enable(host: &Host, name: &str) -> Result<()> {
    run(host, &format!("enabling {name}"), &["enable", "--quiet", name]).await?;
    host.changed(format!("enabled {name}"));
    Ok(())
}

/// Makes the unit run and waits until systemd calls it started; true when it did not run before.
pub async fn ensure_started(host: &Host, name: &str) -> Result<bool> {
    if is_active(host, name).await? {
        return Ok(false);
    }
    run(host, &format!("starting {name}"), &["start", name]).await?;
    host.changed(format!("started {name}"));
    Ok(true)
}

/// Has systemd start the unit without waiting for it; fine when it runs or starts already.
pub async fn start_without_waiting(host: &Host, name: &str) -> Result<()> {
    run(host, &format!("starting {name}"), &["start", "--no-block", name]).await
}

/// Starts the unit anew and waits until systemd calls it started.
pub async fn restart(host: &Host, name: &str) -> Result<()> {
    run(host, &format!("restarting {name}"), &["restart", name]).await?;
    host.changed(format!("restarted {name}"));
    Ok(())
}

/// The same; an error begins with what was being `done`, and quotes the unit's last messages.
pub async fn restart_quoting(host: &Host, name: &str, done: &str) -> Result<()> {
    let Err(error) = restart(host, name).await else { return Ok(()) };
    let reason = last_messages(host, name, QUOTED_LINES).await;
    Err(error.context(format!("{done} ({reason})")))
}

/// Stops the unit; fine when it does not run, or does not exist.
pub async fn stop(host: &Host, name: &str) -> Result<()> {
    let stop = systemctl(host, &["stop", name]).answers(&[5]);
    stop.run().await.with_context(|| format!("stopping {name}")).map(drop)
}

/// Starts the unit anew if it runs; one that does not exist is fine.
pub async fn restart_if_active(host: &Host, name: &str) -> Result<()> {
    let restart = systemctl(host, &["try-restart", name]).answers(&[5]);
    restart.run().await.with_context(|| format!("restarting {name}")).map(drop)
}

/// Has systemd start the unit anew, also one that runs or has failed, without waiting for it.
pub async fn restart_without_waiting(host: &Host, name: &str) -> Result<()> {
    // Starts that an operator asks for do not count towards the start limit. 1: the unit is not loaded.
    let reset = systemctl(host, &["reset-failed", name]).answers(&[1]);
    reset.run().await.with_context(|| format!("forgetting failures of {name}"))?;
    run(host, &format!("restarting {name}"), &["restart", "--no-block", name]).await
}

/// Whether the unit is active (not: starting, failed, unknown).
pub async fn is_active(host: &Host, name: &str) -> Result<bool> {
    Ok(state(host, "is-active", name).await? == "active")
}

/// How a unit is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `active`, `inactive`, `failed`, `activating`, …
    pub active: String,
    /// How it last ended: `success`, `exit-code`, `timeout`, …
    pub result: String,
    /// It is about to be started or stopped.
    pub has_job: bool,
    /// The process that systemd takes for the service, if one runs.
    pub main_pid: Option<u32>,
    /// Whether it starts at every boot: `enabled`, `disabled`, `static`, …
    file: String,
    /// When its latest start began and when systemd called it started, on the kernel's clock.
    start: Option<(Duration, Duration)>,
    /// Its file is another than systemd has read.
    needs_reload: bool,
}

/// How several units are, in one question.
pub async fn show<const N: usize>(host: &Host, names: [&str; N]) -> Result<[Unit; N]> {
    let properties = "--property=LoadState,ActiveState,Result,Job,MainPID,UnitFileState,NeedDaemonReload,\
                      ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic";
    let show = systemctl(host, &["show", properties]).args(names);
    let output = show.run().await.with_context(|| format!("asking systemd about {}", names.join(", ")))?;
    let mut units = output.stdout.split("\n\n").map(Unit::parse);
    Ok(names.map(|_| units.next().unwrap_or_default()))
}

impl Unit {
    fn parse(properties: &str) -> Self {
        let value = |key: &str| properties.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        let time = |key: &str| Some(Duration::from_micros(value(key).parse().ok().filter(|micros| *micros > 0)?));
        let begun = time("ExecMainStartTimestampMonotonic=");
        Self {
            load: value("LoadState=").to_owned(),
            active: value("ActiveState=").to_owned(),
            result: value("Result=").to_owned(),
            has_job: !matches!(value("Job="), "" | "0"),
            main_pid: value("MainPID=").parse().ok().filter(|pid| *pid > 0),
            file: value("UnitFileState=").to_owned(),
            start: begun.zip(time("ActiveEnterTimestampMonotonic=")),
            needs_reload: value("NeedDaemonReload=") == "yes",
        }
    }

    /// Whether its latest start was under way at that time.
    pub fn was_starting_at(&self, time: Timestamp) -> bool {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).ok();
        let now = now.and_then(|now| SignedDuration::try_from(now).ok());
        now.is_some_and(|now| self.was_starting(now - Timestamp::now().duration_since(time)))
    }

    fn was_starting(&self, time: SignedDuration) -> bool {
        let is_within = |(begun, started)| Duration::try_from(time).is_ok_and(|time| begun <= time && time <= started);
        self.start.is_some_and(is_within)
    }

    /// It is starting, stopping, or waiting for its next try.
    pub fn is_busy(&self) -> bool {
        self.has_job || !matches!(self.active.as_str(), "active" | "inactive" | "failed")
    }
}

/// Whether the system is on its way down.
pub async fn is_ending(host: &Host) -> bool {
    let running = query(systemctl(host, &["is-system-running"]).answers(&[1]), "the system").await;
    running.is_ok_and(|running| running == "stopping")
}

/// Whether systemd has read the unit's file.
pub async fn is_loaded(host: &Host, name: &str) -> Result<bool> {
    let [unit] = show(host, [name]).await?;
    Ok(unit.load == "loaded")
}

/// Whether an administrator has forbidden the unit.
pub async fn is_masked(host: &Host, name: &str) -> Result<bool> {
    let [unit] = show(host, [name]).await?;
    Ok(unit.load == "masked")
}

/// The last `lines` messages of the unit in this boot, on one line; empty when there are none.
///
/// Those of its own programs if there are any: what systemd says of a failed unit comes last and names no cause.
pub async fn last_messages(host: &Host, name: &str, lines: u8) -> String {
    for filter in [format!("_SYSTEMD_UNIT={name}"), format!("--unit={name}")] {
        let journal = host.command("journalctl").args(["--boot", "--quiet", "--no-pager", "--output=cat"]);
        let journal = journal.args(["--lines", &lines.to_string(), &filter]);
        match journal.run().await {
            Ok(output) if output.stdout.trim().is_empty() => {}
            Ok(output) => return output.stdout.lines().map(str::trim).collect::<Vec<_>>().join(" / "),
            Err(error) => tracing::debug!("reading the messages of {name}: {error:#}"),
        }
    }
    String::new()
}

/// One of systemctl's one-word answers; its exit code repeats the word.
async fn state(host: &Host, question: &str, name: &str) -> Result<String> {
    query(systemctl(host, &[question, name]).answers(&[1, 3, 4]), name).await
}

async fn query(command: Command, name: &str) -> Result<String> {
    let output = command.run().await.with_context(|| format!("asking systemd about {name}"))?;
    Ok(output.stdout.trim().to_owned())
}

/// Runs systemctl; `doing` begins the error.
async fn run(host: &Host, doing: &str, arguments: &[&str]) -> Result<()> {
    systemctl(host, arguments).run().await.with_context(|| doing.to_owned()).map(drop)
}

fn systemctl(host: &Host, arguments: &[&str]) -> Command {
    host.command("systemctl").args(arguments).timeout(UNIT_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_while_a_unit_started_is_told_from_what_happened_before_and_after() {
        let start = "ExecMainStartTimestampMonotonic=7000000\nActiveEnterTimestampMonotonic=9000000\n";
        let never = "ExecMainStartTimestampMonotonic=0\nActiveEnterTimestampMonotonic=0\n";
        for (properties, seconds, expected) in [
            (start, 6, false),
            (start, 8, true),
            (start, 10, false),
            (start, -8, false),
            (never, 0, false),
            ("", 8, false),
        ] {
            let unit = Unit::parse(properties);
            assert_eq!(unit.was_starting(SignedDuration::from_secs(seconds)), expected, "{properties} {seconds}");
        }
        let started = Unit { start: Some((Duration::ZERO, Duration::MAX)), ..Unit::default() };
        assert!(started.was_starting_at(Timestamp::now()) && !Unit::default().was_starting_at(Timestamp::now()));
    }
}
