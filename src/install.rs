//! The program's own place on the machine: the binary and its units.

pub mod launcher;
pub mod uninstall;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::account;
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Access, Host, blocking, sync_dir};
use crate::paths::{BOOT_UNIT, GATEWAY_CLI, PROGRAM, STOP_UNIT, WATCH_UNIT};
use crate::systemd;

/// Where another program of the gateway's name would be hidden by our link, or hide it.
const OTHER_PLACES: [&str; 3] = ["/usr/local/sbin/openclaw", "/usr/bin/openclaw", "/bin/openclaw"];

/// The units and their texts: the one list that installing, baking and uninstalling walk. Every exit status but
/// [`TRY_AGAIN`](crate::error::TRY_AGAIN) is final: a oneshot service cannot name the one after which it runs again.
fn units() -> [(&'static str, String); 3] {
    let codes: Vec<String> = Code::ALL.iter().map(|code| code.exit_code().to_string()).collect();
    let boot = include_str!("install/openclaw-init.service").replace("@FINAL@", &codes.join(" "));
    [
        (BOOT_UNIT, boot),
        (STOP_UNIT, include_str!("install/openclaw-gateway-stop.service").to_owned()),
        (WATCH_UNIT, include_str!("install/openclaw-watch.service").to_owned()),
    ]
}

/// Puts the running binary and the units in place and enables them; true when anything changed.
///
/// The running program replaces the installed one, also a newer one. A path that a package owns is refused, and so is
/// everything while a unit is masked.
pub async fn install(host: &Host) -> Result<bool> {
    let is_running = host.path("/run/systemd/system").exists();
    if is_running {
        refuse_masked(host).await?;
    }
    account::ensure(host).await;
    let program = install_program(host).await? | install_gateway_cli(host).await?;
    let units = if is_running { install_units(host).await? } else { install_units_offline(host).await? };
    Ok(program || units)
}

/// An administrator who masks a unit does not want it to start. Writing it would take the mask away.
async fn refuse_masked(host: &Host) -> Result<()> {
    for (name, _) in units() {
        if systemd::is_masked(host, name).await? {
            return Err(anyhow!("{name} is masked, so nothing was installed or started")).classify(
                Code::UnitMasked,
                format!("If it may run: `sudo systemctl unmask {name}`, then `{RUN_AGAIN}`."),
            );
        }
    }
    Ok(())
}

async fn install_units(host: &Host) -> Result<bool> {
    let mut changed = false;
    for (name, text) in units() {
        changed |= systemd::ensure_enabled_unit(host, name, &text).await?;
    }
    systemd::start_without_waiting(host, STOP_UNIT).await?;
    Ok(changed)
}

/// For a machine that does not run: an image under construction.
async fn install_units_offline(host: &Host) -> Result<bool> {
    let mut changed = false;
    for (name, text) in units() {
        changed |= host.ensure_file(Path::new(systemd::UNIT_DIR).join(name), text, Access::root(0o644)).await?;
    }
    let enable = host.command("systemctl").arg("enable").args(units().map(|(name, _)| name));
    enable.env("SYSTEMD_OFFLINE", "1").run().await.context("enabling the units")?;
    Ok(changed)
}

async fn install_program(host: &Host) -> Result<bool> {
    let running = std::fs::canonicalize("/proc/self/exe").context("finding the running program's file")?;
    let installed = host.path(PROGRAM);
    let (left, right) = (running.clone(), installed.clone());
    if blocking(move || same_content(&left, &right)).await? {
        return Ok(false);
    }
    if let Some(package) = package(host).await? {
        return Err(anyhow!("{PROGRAM} belongs to the package {package}")).classify(
            Code::UnsupportedSystem,
            format!("Update it with apt, or remove the package: apt-get remove {package}."),
        );
    }
    let replaced = blocking(move || replace_program(&running, &installed)).await;
    replaced.with_context(|| format!("installing {PROGRAM}"))?;
    host.changed(format!("installed {PROGRAM}"));
    Ok(true)
}

/// Gives the program its second name, unless another program has it, here or where a shell looks for programs.
async fn install_gateway_cli(host: &Host) -> Result<bool> {
    if has_gateway_cli(host).await {
        return Ok(false);
    }
    for place in [GATEWAY_CLI].into_iter().chain(OTHER_PLACES) {
        if tokio::fs::symlink_metadata(host.path(place)).await.is_ok() {
            host.warn(format!(
                "{place} is another program: the gateway's own commands are `sudo openclaw-init cli ARGUMENTS`"
            ));
            return Ok(false);
        }
    }
    let link = host.path(GATEWAY_CLI);
    tokio::fs::symlink(PROGRAM, &link).await.with_context(|| format!("making {}", link.display()))?;
    host.changed(format!("made {GATEWAY_CLI}, the gateway's own commands"));
    Ok(true)
}

async fn has_gateway_cli(host: &Host) -> bool {
    tokio::fs::read_link(host.path(GATEWAY_CLI)).await.is_ok_and(|target| target == Path::new(PROGRAM))
}

async fn remove_gateway_cli(host: &Host) -> Result<()> {
    if has_gateway_cli(host).await {
        host.remove_file(GATEWAY_CLI).await?;
    }
    Ok(())
}

/// The package that owns the program's path, if any.
async fn package(host: &Host) -> Result<Option<String>> {
    let owner = host.command("dpkg-query").args(["--search", PROGRAM]).answers(&[1]).run().await?;
    Ok((owner.code == 0).then(|| owner.stdout.split(':').next().unwrap_or_default().to_owned()))
}

/// Stops and removes the units, then the program, unless a package owns that.
pub async fn remove(host: &Host) -> Result<()> {
    for (name, _) in units() {
        systemd::remove_unit(host, name).await?;
    }
    remove_gateway_cli(host).await?;
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

/// After a power cut the old program or the new one is there. A running program keeps its old file.
fn replace_program(running: &Path, installed: &Path) -> Result<()> {
    let directory = installed.parent().context("the program has no directory")?;
    std::fs::create_dir_all(directory)?;
    let temporary = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempfile_in(directory)
        .context("creating a temporary file beside it")?;
    std::fs::copy(running, temporary.path()).context("copying the program")?;
    std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(0o755))?;
    temporary.as_file().sync_all().context("syncing the copy")?;
    temporary.persist(installed).map_err(|error| error.error).context("renaming the copy")?;
    sync_dir(directory)
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;
    use crate::error::TRY_AGAIN;

    #[tokio::test]
    async fn the_second_name_is_taken_from_nobody() -> Result<()> {
        for (theirs, is_made) in [
            (None, true),
            (Some(GATEWAY_CLI), false),
            (Some("/usr/local/sbin/openclaw"), false),
            (Some("/usr/bin/openclaw"), false),
            (Some("/bin/openclaw"), false),
            (Some("/opt/openclaw"), true),
        ] {
            let root = tempfile::tempdir()?;
            let host = Host::new(root.path());
            for directory in ["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/bin", "/opt"] {
                std::fs::create_dir_all(host.path(directory))?;
            }
            if let Some(theirs) = theirs {
                std::fs::write(host.path(theirs), "theirs")?;
            }
            assert_eq!(install_gateway_cli(&host).await?, is_made, "{theirs:?}");
            assert!(!install_gateway_cli(&host).await?, "{theirs:?}: made again");
            let warnings = host.ledger().borrow().warnings.clone();
            let names_it = |warning: &String| warning.contains(theirs.unwrap_or_default());
            assert_eq!(warnings.is_empty(), is_made, "{warnings:?}");
            assert!(warnings.iter().all(|it| names_it(it) && it.contains("openclaw-init cli")), "{warnings:?}");
            remove_gateway_cli(&host).await?;
            assert!(theirs.is_none_or(|theirs| host.path(theirs).exists()), "{theirs:?} was removed");
            assert!(std::fs::read_link(host.path(GATEWAY_CLI)).is_err(), "our link stays");
        }
        Ok(())
    }

    #[test]
    fn the_units_agree_with_this_program() {
        let [(_, boot), (_, stop), (_, watch)] = units();
        expect_file!["install/golden/openclaw-init.service"].assert_eq(&boot);
        assert!(!watch.contains("\nRestrictSUIDSGID=yes"), "it takes openat2 away");
        for (unit, command) in [(&boot, "ExecStart="), (&stop, "ExecStop="), (&watch, "ExecStart=")] {
            let runs = format!("{command}{PROGRAM} ");
            assert!(unit.lines().any(|line| line.starts_with(&runs)), "{unit}");
        }
        let line = boot.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).unwrap_or_default();
        let last: Vec<&str> = line.split(' ').collect();
        assert!(Code::ALL.iter().all(|code| last.contains(&code.exit_code().to_string().as_str())), "{line}");
        assert!(!last.contains(&TRY_AGAIN.to_string().as_str()), "{line}");
    }
}
