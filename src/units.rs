//! The program's own place on the machine: the binary and its two units.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::failure::{Blame, Code};
use crate::host::{Access, Host, sync_dir};
use crate::systemd;

/// Where the program lives.
pub const PROGRAM: &str = "/usr/local/bin/openclaw-init";

/// The unit that does the work at every boot.
pub const BOOT_UNIT: &str = "openclaw-init.service";

/// The unit whose stop is the gateway's clean shutdown.
pub const STOP_UNIT: &str = "openclaw-gateway-stop.service";

/// Runs of one boot after which a failure that might heal is final; `StartLimitBurst=` says the same.
const TRIES: u32 = 3;

/// The units' text, with the permanent exit codes filled in from the one table.
fn unit_files() -> [(&'static str, String); 2] {
    let permanent: Vec<String> =
        Code::ALL.iter().filter(|code| code.is_permanent()).map(|code| code.exit_code().to_string()).collect();
    let boot = include_str!("units/openclaw-init.service")
        .replace("@PERMANENT@", &permanent.join(" "))
        .replace("@TRIES@", &TRIES.to_string());
    [(BOOT_UNIT, boot), (STOP_UNIT, include_str!("units/openclaw-gateway-stop.service").to_owned())]
}

/// Puts the running binary and the units in place and enables them; true when anything changed.
///
/// The carrier's version wins, also downwards. A path that a package owns is refused.
pub async fn install(host: &Host) -> Result<bool> {
    let program = install_program(host).await?;
    let units = if host.path("/run/systemd/system").exists() {
        install_units(host).await?
    } else {
        install_units_offline(host).await?
    };
    Ok(program || units)
}

async fn install_units(host: &Host) -> Result<bool> {
    let mut changed = false;
    for (name, text) in unit_files() {
        changed |= systemd::ensure_unit(host, name, &text).await?;
        changed |= systemd::ensure_enabled(host, name).await?;
    }
    systemd::start_without_waiting(host, STOP_UNIT).await?;
    Ok(changed)
}

/// In the tree of a machine that does not run: an image under construction.
async fn install_units_offline(host: &Host) -> Result<bool> {
    let mut changed = false;
    for (name, text) in unit_files() {
        changed |= host.ensure_file(Path::new("/etc/systemd/system").join(name), text, Access::root(0o644)).await?;
    }
    let enable = host.command("systemctl").args(["enable", BOOT_UNIT, STOP_UNIT]);
    enable.env("SYSTEMD_OFFLINE", "1").run().await.context("enabling the units")?;
    Ok(changed)
}

async fn install_program(host: &Host) -> Result<bool> {
    let running = std::fs::canonicalize("/proc/self/exe").context("finding the running program's file")?;
    let installed = host.path(PROGRAM);
    let (left, right) = (running.clone(), installed.clone());
    if tokio::task::spawn_blocking(move || same_content(&left, &right)).await?? {
        return Ok(false);
    }
    if let Some(package) = package(host).await? {
        return Err(anyhow!("{PROGRAM} belongs to the package {package}")).blame(
            Code::UnsupportedSystem,
            format!("Update it with apt, or remove the package: apt-get remove {package}."),
        );
    }
    tokio::task::spawn_blocking(move || replace_program(&running, &installed))
        .await?
        .with_context(|| format!("installing {PROGRAM}"))?;
    host.changed(format!("installed {PROGRAM}"));
    Ok(true)
}

/// The package that owns the program's path, if any.
async fn package(host: &Host) -> Result<Option<String>> {
    let owner = host.command("dpkg-query").args(["--search", PROGRAM]).answers(&[1]).run().await?;
    Ok((owner.code == 0).then(|| owner.stdout.split(':').next().unwrap_or_default().to_owned()))
}

/// Stops and removes the units, then the program, unless a package owns that.
pub async fn remove(host: &Host) -> Result<()> {
    for unit in [BOOT_UNIT, STOP_UNIT] {
        systemd::remove_unit(host, unit).await?;
    }
    match package(host).await? {
        Some(package) => host.warn(format!("{PROGRAM} stays: remove its package (apt-get remove {package})")),
        None => drop(host.remove_file(PROGRAM).await?),
    }
    Ok(())
}

/// Compares without holding either file in memory.
fn same_content(left: &Path, right: &Path) -> Result<bool> {
    let open = |path: &Path| std::fs::File::open(path).with_context(|| format!("opening {}", path.display()));
    if !right.is_file() || std::fs::metadata(left)?.len() != std::fs::metadata(right)?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (BufReader::new(open(left)?), BufReader::new(open(right)?));
    loop {
        let (ours, theirs) = (left.fill_buf()?, right.fill_buf()?);
        let length = ours.len().min(theirs.len());
        if length == 0 || ours[..length] != theirs[..length] {
            return Ok(ours.is_empty() && theirs.is_empty());
        }
        left.consume(length);
        right.consume(length);
    }
}

/// After a power cut there is the old program or the new one. A running program keeps its old file.
fn replace_program(running: &Path, installed: &Path) -> Result<()> {
    let directory = installed.parent().context("the program has no directory")?;
    std::fs::create_dir_all(directory)?;
    let temporary = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempfile_in(directory)
        .context("creating a temporary file beside it")?;
    let options = fs_extra::file::CopyOptions::new().overwrite(true);
    fs_extra::file::copy(running, temporary.path(), &options).context("copying the program")?;
    std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(0o755))?;
    temporary.as_file().sync_all().context("syncing the copy")?;
    temporary.persist(installed).map_err(|error| error.error).context("renaming the copy")?;
    sync_dir(directory)
}

/// What systemd says of the boot unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// It has not been started in this boot.
    NotStarted,
    /// It is working, queued, or waiting for its next try.
    InProgress,
    /// It ended well.
    Succeeded,
    /// It ended with a failure that nobody tries again.
    Failed,
}

/// How the boot unit's run stands.
pub async fn observe(host: &Host) -> Result<Run> {
    let show = host.command("systemctl").args(["show", "--property=ActiveState,Job", BOOT_UNIT]);
    let output = show.run().await.with_context(|| format!("asking systemd about {BOOT_UNIT}"))?;
    Ok(parse_run(&output.stdout))
}

fn parse_run(shown: &str) -> Run {
    let value = |key: &str| shown.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    match value("ActiveState=") {
        _ if !matches!(value("Job="), "" | "0") => Run::InProgress,
        "active" => Run::Succeeded,
        "failed" => Run::Failed,
        "inactive" => Run::NotStarted,
        _ => Run::InProgress,
    }
}

/// Whether systemd will not start another run after this one fails.
pub async fn is_last_try(host: &Host) -> bool {
    let restarts = systemd::property(host, BOOT_UNIT, "NRestarts").await;
    // Without an answer it is better to report a failure too early than never.
    restarts.ok().and_then(|text| text.parse::<u32>().ok()).is_none_or(|restarts| restarts + 1 >= TRIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_holds_no_placeholder_and_every_permanent_code() {
        let [(_, boot), (_, stop)] = unit_files();
        assert!(!boot.contains('@') && !stop.contains('@'));
        let line = boot.lines().find(|line| line.starts_with("RestartPreventExitStatus=")).unwrap_or_default();
        let listed: Vec<&str> = line.trim_start_matches("RestartPreventExitStatus=").split(' ').collect();
        for code in Code::ALL {
            assert_eq!(listed.contains(&code.exit_code().to_string().as_str()), code.is_permanent(), "{code}");
        }
    }

    #[test]
    fn a_run_is_judged_by_its_state_and_its_job() {
        let cases = [
            ("ActiveState=inactive\n", Run::NotStarted),
            ("Job=41\nActiveState=inactive\n", Run::InProgress),
            ("ActiveState=activating\n", Run::InProgress),
            ("ActiveState=active\n", Run::Succeeded),
            ("Job=0\nActiveState=active\n", Run::Succeeded),
            ("Job=77\nActiveState=active\n", Run::InProgress),
            ("ActiveState=failed\n", Run::Failed),
        ];
        for (shown, expected) in cases {
            assert_eq!(parse_run(shown), expected, "{shown}");
        }
    }
}
