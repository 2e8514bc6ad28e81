//! The whole first boot of the released program, with the state on the boot disk.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use openclaw_lab::metadata_server::Level;
use openclaw_lab::product::{FAILPOINT, FAILPOINT_LOG};

use crate::fake_engine::OF_VERSION;
use crate::machine::{self, Beside, PROGRAM, STATE, is_possible};
use crate::sweep::{POINTS, Work, sweep};

/// How version 0.1.0 is told where to be cut, and where to note its points.
const PREVIOUS_CUT: &str = "OPENCLAW_INIT_CUT";
const PREVIOUS_LOG: &str = "OPENCLAW_INIT_CUT_LOG";

/// A program of version 0.1.0, for the sweeps that it begins and the program under test ends.
const PREVIOUS: &str = "OPENCLAW_INIT_PREVIOUS";

/// Boots of one machine, of which the last one is cut.
struct Boots {
    /// What an operator has asked for before each of them.
    requests: &'static [&'static str],
    /// An attribute that is set before the last of them.
    attribute: Option<(&'static str, String)>,
    /// What the points have in their names.
    of: &'static str,
    /// The program that is cut, when it is not the one under test.
    previous: Option<String>,
}

const NOTHING: &str = "";

impl Work for Boots {
    type Beside = Beside;

    fn prepare(&self, machine: &Path) -> Result<Beside> {
        let beside = machine::make(machine)?;
        let (last, before) = self.requests.split_last().context("no boots")?;
        for request in before {
            ask(machine, request)?;
            let booted = self.process(machine, &beside)?.output()?;
            ensure!(booted.status.success(), "{}", String::from_utf8_lossy(&booted.stderr));
            fs::write(machine.join(STATE).join("kept"), "kept")?;
            fs::remove_file(machine.join(POINTS))?;
        }
        ask(machine, last)?;
        if let Some((key, value)) = &self.attribute {
            beside.server.set_attribute(Level::Instance, key, value)?;
        }
        Ok(beside)
    }

    fn process(&self, machine: &Path, beside: &Beside) -> Result<Command> {
        Ok(match &self.previous {
            Some(previous) => {
                let mut boot = command(machine, beside, [previous, "boot", ""]);
                boot.env(PREVIOUS_LOG, format!("/{POINTS}"));
                boot
            }
            None => self.process_after(machine, beside)?,
        })
    }

    fn process_after(&self, machine: &Path, beside: &Beside) -> Result<Command> {
        Ok(command(machine, beside, [PROGRAM, "boot --foreground", ""]))
    }

    fn cut_variable(&self) -> &'static str {
        if self.previous.is_some() { PREVIOUS_CUT } else { FAILPOINT }
    }

    fn power_fails(&self, machine: &Path) -> Result<()> {
        for gone in ["run/docker.sock", "run/programs", "run/openclaw-init", "run/openclaw-shield"] {
            let gone = machine.join(gone);
            drop(fs::remove_file(&gone).or_else(|_| fs::remove_dir_all(&gone)));
        }
        Ok(())
    }

    fn check(&self, machine: &Path, beside: &Beside) -> Result<()> {
        let status = fs::read_to_string(machine.join("run/openclaw-init/status.json"))?;
        ensure!(status.contains(r#""result": "ready""#), "{status}");
        let containers = beside.engine.containers();
        let [(name, image, "running")] = &containers[..] else { bail!("the containers are {containers:?}") };
        ensure!(name == "openclaw-gateway", "the container is {name}");
        let (state, records) = (machine.join(STATE), machine.join(STATE).join("../openclaw-init"));
        ensure!(fs::read_to_string(state.join(".env"))?.contains("OPENCLAW_GATEWAY_TOKEN="));
        ensure!(self.requests.len() == 1 || state.join("kept").exists(), "a file of the state is gone");
        ensure!(
            fs::read_to_string(machine.join("etc/passwd"))?.contains("openclaw-gateway:x:1000:"),
            "uid 1000 is free"
        );
        let version = fs::read_to_string(state.join(OF_VERSION))?;
        let record = fs::read_to_string(records.join("record.json"))?;
        let half_done = ["operation.json", "update.json", "switch.json", "settings-trial.json"]
            .into_iter()
            .find(|file| records.join(file).exists());
        ensure!(half_done.is_none(), "there is still {half_done:?}");
        if self.attribute.as_ref().is_some_and(|(key, _)| *key == "openclaw-config") {
            let file = fs::read_to_string(state.join("openclaw.json"))?;
            ensure!(file.contains("debug") && file.contains("mode"), "openclaw.json is {file}");
            ensure!(record.contains(r#""logging""#), "the record is {record}");
        }
        ensure!(image.ends_with(&format!(":{version}")), "{image} runs on the state of {version}");
        ensure!(
            record.contains(&format!(r#""version": "{version}""#)),
            "the state is {version}'s and the record {record}"
        );
        Ok(())
    }

    fn is_of_interest(&self, point: &str) -> bool {
        // How often the gateway is asked depends on how busy this machine is; that it is asked does not.
        let asks = ["ready.http-get#", "ready.docker-get#"];
        let again = asks.iter().any(|asks| point.strip_prefix(asks).is_some_and(|rest| !rest.starts_with("1.")));
        point.contains(self.of) && !again
    }
}

/// A program with its arguments on the machine, to which something is done before; it notes its points.
fn command(machine: &Path, beside: &Beside, words: [&str; 3]) -> Command {
    let mut command = machine::command(machine, beside, words);
    command.env(FAILPOINT_LOG, format!("/{POINTS}"));
    command
}

/// Leaves what `openclaw-init update` and `rollback` leave for the next run.
fn ask(machine: &Path, request: &str) -> Result<()> {
    let directory = machine.join("run/openclaw-init/private");
    fs::create_dir_all(&directory)?;
    if request.is_empty() { Ok(()) } else { Ok(fs::write(directory.join("request.json"), request)?) }
}

/// Sweeps, and checks that every one of the stages has points; nothing when this user may not have namespaces.
fn every_point(boots: &Boots, stages: &[&str]) -> Result<()> {
    if !is_possible()? {
        return Ok(());
    }
    let points = sweep(boots)?;
    for stage in stages {
        ensure!(points.iter().any(|point| point.starts_with(&format!("{stage}."))), "no point of {stage}: {points:?}");
    }
    Ok(())
}

#[test]
fn every_point_of_a_first_boot() -> Result<()> {
    // The directory of a volume on the boot disk is there since the boot's mark was made.
    let stages = ["docker", "shield", "secrets", "image", "gateway", "ready", "run"];
    every_point(&Boots { requests: &[NOTHING], of: "", attribute: None, previous: None }, &stages)
}

const UPDATE: &str = r#"{"update":{"to":"2026.9.7"}}"#;
const ROLLBACK: &str = r#"{"rollback":{"set_newer_state_aside":true}}"#;

/// To [`BROKEN`](crate::fake_engine::BROKEN): it is undone, or was never begun.
const FUTILE: &str = r#"{"update":{"to":"2026.9.66"}}"#;

#[test]
fn every_point_of_an_update_that_is_undone() -> Result<()> {
    every_point(&Boots { requests: &[NOTHING, FUTILE], of: "update.", attribute: None, previous: None }, &["update"])
}

#[test]
fn every_point_of_an_update() -> Result<()> {
    every_point(&Boots { requests: &[NOTHING, UPDATE], of: "update.", attribute: None, previous: None }, &["update"])
}

#[test]
fn every_point_of_a_rollback() -> Result<()> {
    every_point(
        &Boots { requests: &[NOTHING, UPDATE, ROLLBACK], of: "update.", attribute: None, previous: None },
        &["update"],
    )
}

#[test]
fn every_point_of_another_container() -> Result<()> {
    let attribute = Some(("openclaw-env-A", "b".to_owned()));
    every_point(&Boots { requests: &[NOTHING, NOTHING], of: "", attribute, previous: None }, &["gateway", "ready"])
}

#[test]
fn every_point_of_other_settings() -> Result<()> {
    let attribute = Some(("openclaw-config", r#"{"logging":{"level":"debug"}}"#.to_owned()));
    every_point(&Boots { requests: &[NOTHING, NOTHING], of: "", attribute, previous: None }, &["gateway", "ready"])
}

/// The gateway that ran before is the gateway that runs, whatever is wrong with the container that was to come.
#[test]
fn a_container_that_fails_leaves_the_former_one() -> Result<()> {
    if !is_possible()? {
        return Ok(());
    }
    let squatter = TcpListener::bind("127.0.0.1:0")?;
    let port = squatter.local_addr()?.port().to_string();
    let cases = [
        ("openclaw-env-FAULT", "start", "docker-unusable", true),
        ("openclaw-env-FAULT", "ready", "gateway-not-ready", true),
        ("openclaw-port", port.as_str(), "port-taken", false),
    ];
    for (key, value, code, stops) in cases {
        let attribute = Some((key, value.to_owned()));
        let boots = Boots { requests: &[NOTHING, NOTHING], of: "", attribute, previous: None };
        let directory = tempfile::tempdir()?;
        let (machine, beside) = (directory.path(), boots.prepare(directory.path())?);
        let stopped = || beside.engine.requests().iter().filter(|request| request.ends_with("/stop")).count();
        let before = (beside.engine.gateway(), beside.engine.containers(), stopped());
        let failed = boots.process(machine, &beside)?.output()?;
        ensure!(!failed.status.success(), "{key}={value} ended well");
        let status = fs::read_to_string(machine.join("run/openclaw-init/status.json"))?;
        ensure!(status.contains(&format!(r#""code": "{code}""#)), "{key}={value}: {status}");
        ensure!(before.0 == beside.engine.gateway(), "{key}={value}: another container is there");
        ensure!(before.1 == beside.engine.containers(), "{key}={value}: {:?}", beside.engine.containers());
        ensure!((stopped() > before.2) == stops, "{key}={value}: {:?}", beside.engine.requests());
        beside.server.unset_attribute(Level::Instance, key);
        beside.server.set_attribute(Level::Instance, "openclaw-port", &beside.engine.port.to_string())?;
        ensure!(boots.process(machine, &beside)?.status()?.success(), "{key}={value} leaves something behind");
        ensure!(before.0 == beside.engine.gateway(), "{key}={value}: the container was replaced for nothing");
    }
    Ok(())
}

/// Where not even a run can start, the guest attributes say so all the same.
#[test]
fn a_failure_outside_of_a_run_is_reported() -> Result<()> {
    if !is_possible()? {
        return Ok(());
    }
    let cases = [
        ("mount -t tmpfs -o nr_inodes=1 full run", "boot --unit", "no-space", 24),
        ("mount -t tmpfs -o nr_inodes=1 full usr/local/bin", "", "no-space", 24),
        ("mount -t tmpfs -o ro full usr/local/bin", "", "disk-readonly", 15),
        ("mount -t tmpfs full usr/local/bin; echo masked > var/lib/programs/load-state", "", "unit-masked", 36),
    ];
    for (before, arguments, code, exit) in cases {
        let boots = Boots { requests: &[NOTHING], of: "", attribute: None, previous: None };
        let directory = tempfile::tempdir()?;
        let (machine, beside) = (directory.path(), boots.prepare(directory.path())?);
        for made in ["run/systemd/system", "var/lib/programs"] {
            fs::create_dir_all(machine.join(made))?;
        }
        beside.server.set_attribute(Level::Instance, "enable-guest-attributes", "TRUE")?;
        let ended = command(machine, &beside, [PROGRAM, arguments, before]).output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.code() == Some(exit), "{before}: {}: {said}", ended.status);
        let attributes = beside.server.guest_attributes("openclaw");
        ensure!(attributes.get("result") == Some(&format!("failed:{code}")), "{before}: {attributes:?}: {said}");
        ensure!(attributes["detail"].contains("openclaw-init"), "{before}: {attributes:?}");
        ensure!(!machine.join("etc/systemd/system/openclaw-init.service").exists(), "{before}: a unit was written");
    }
    Ok(())
}

/// What version 0.1.0 left half done is completed or undone. Needs a program of that version, built from its commit,
/// in the variable `OPENCLAW_INIT_PREVIOUS`.
#[test]
fn every_point_of_the_previous_version() -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "how a developer names the other program")]
    let Ok(previous) = std::env::var(PREVIOUS) else {
        println!("SKIPPED: {PREVIOUS} names no program of version 0.1.0");
        return Ok(());
    };
    for requests in [&[NOTHING][..], &[NOTHING, FUTILE], &[NOTHING, UPDATE], &[NOTHING, UPDATE, ROLLBACK]] {
        let of = if requests.len() == 1 { "" } else { "update." };
        every_point(&Boots { requests, of, attribute: None, previous: Some(previous.clone()) }, &[])?;
    }
    Ok(())
}
