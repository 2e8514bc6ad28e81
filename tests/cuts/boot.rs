//! The whole first boot of the released program, with the state on the boot disk.
//!
//! The program runs as root, with a directory as its root, in a separate mount namespace. Its mounts end with it, like
//! those of a machine. The engine is fake, and so are programs that would change more than files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use openclaw_lab::metadata_server::{Instance, Level, Server};
use openclaw_lab::product::{FAILPOINT, FAILPOINT_LOG};

use crate::fake_engine::{FakeEngine, OF_VERSION, SERVERS, says};
use crate::sweep::{POINTS, Work, sweep};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuts/programs.sh");
/// The state directory.
const STATE: &str = "var/lib/openclaw-init/data/openclaw";
const SHIELD: &str = include_str!("../fixtures/nft/shield.json");
const NAMES: [&str; 7] = ["apt-get", "chattr", "dpkg", "dpkg-query", "nft", "systemctl", "apt-cache"];

/// Makes the present directory the root, and boots there.
const ENTER: &str = include_str!("enter.sh");

/// How version 0.1.0 is told where to be cut, and where to note its points.
const PREVIOUS_CUT: &str = "OPENCLAW_INIT_CUT";
const PREVIOUS_LOG: &str = "OPENCLAW_INIT_CUT_LOG";

/// A program of version 0.1.0, for the sweeps that it begins and the program under test ends.
const PREVIOUS: &str = "OPENCLAW_INIT_PREVIOUS";

/// Boots of one machine, of which the last one is cut.
struct Boots {
    /// What an operator has asked for before each of them.
    requests: &'static [&'static str],
    /// What the points have in their names.
    of: &'static str,
    /// The program that is cut, when it is not the one under test.
    previous: Option<String>,
}

const NOTHING: &str = "";

struct Beside {
    engine: FakeEngine,
    metadata: String,
    _server: Arc<Server>,
}

impl Work for Boots {
    type Beside = Beside;

    fn prepare(&self, machine: &Path) -> Result<Beside> {
        for directory in
            ["usr", "proc", "dev", "etc/systemd/system", "run", "tmp", "var/lib", "programs", "home", "mnt"]
        {
            fs::create_dir_all(machine.join(directory))?;
        }
        fs::write(machine.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\n")?;
        fs::write(machine.join("shield.json"), SHIELD)?;
        fs::write(machine.join("openclaw-init"), "")?;
        fs::copy(PROGRAMS, machine.join("programs/programs.sh"))?;
        NAMES.iter().try_for_each(|name| symlink("programs.sh", machine.join("programs").join(name)))?;
        let engine = FakeEngine::start(machine, &machine.join("run/engine.sock"), says("28.5.2", "1.47", "Engine"))?;
        let (server, address) = SERVERS.block_on(Server::spawn(Instance::default()))?;
        let port = engine.port.to_string();
        for (key, value) in [
            ("openclaw-docker", "distro"),
            ("openclaw-data-disk", "none"),
            ("openclaw-swap", "off"),
            ("openclaw-version", "2026.9.6"),
            ("openclaw-port", &port),
        ] {
            server.set_attribute(Level::Instance, key, value)?;
        }
        let beside = Beside { engine, metadata: address.to_string(), _server: Arc::new(server) };
        let (last, before) = self.requests.split_last().context("no boots")?;
        for request in before {
            ask(machine, request)?;
            let booted = self.process(machine, &beside)?.output()?;
            ensure!(booted.status.success(), "{}", String::from_utf8_lossy(&booted.stderr));
            fs::write(machine.join(STATE).join("kept"), "kept")?;
            fs::remove_file(machine.join(POINTS))?;
        }
        ask(machine, last)?;
        Ok(beside)
    }

    fn process(&self, machine: &Path, beside: &Beside) -> Result<Command> {
        Ok(match &self.previous {
            Some(previous) => {
                let mut boot = boot(machine, beside, previous, "");
                boot.env(PREVIOUS_LOG, format!("/{POINTS}"));
                boot
            }
            None => self.process_after(machine, beside)?,
        })
    }

    fn process_after(&self, machine: &Path, beside: &Beside) -> Result<Command> {
        Ok(boot(machine, beside, env!("CARGO_BIN_EXE_openclaw-init"), "--foreground"))
    }

    fn cut_variable(&self) -> &'static str {
        if self.previous.is_some() { PREVIOUS_CUT } else { FAILPOINT }
    }

    fn power_fails(&self, machine: &Path) -> Result<()> {
        for gone in ["run/docker.sock", "run/programs", "run/openclaw-init"] {
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
        let version = fs::read_to_string(state.join(OF_VERSION))?;
        let record = fs::read_to_string(records.join("record.json"))?;
        let half_done =
            ["operation.json", "update.json", "switch.json"].into_iter().find(|file| records.join(file).exists());
        ensure!(half_done.is_none(), "there is still {half_done:?}");
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

fn boot(machine: &Path, beside: &Beside, program: &str, flag: &str) -> Command {
    let mut boot = alone();
    boot.args(["sh", "-c", ENTER, "enter"]).arg(machine).args([program, flag]);
    boot.env("GCE_METADATA_HOST", &beside.metadata).env(FAILPOINT_LOG, format!("/{POINTS}"));
    boot
}

/// Leaves what `openclaw-init update` and `rollback` leave for the next run.
fn ask(machine: &Path, request: &str) -> Result<()> {
    let directory = machine.join("run/openclaw-init/private");
    fs::create_dir_all(&directory)?;
    if request.is_empty() { Ok(()) } else { Ok(fs::write(directory.join("request.json"), request)?) }
}

/// The beginning of a command in a separate mount namespace, as root there.
fn alone() -> Command {
    #[expect(clippy::disallowed_methods, reason = "a test starts the program under test")]
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    }
    command
}

/// Sweeps, and checks that every one of the stages has points; nothing when this user may not have namespaces.
fn every_point(boots: &Boots, stages: &[&str]) -> Result<()> {
    let possible = alone().args(["mount", "--bind", "/tmp", "/tmp"]).output().context("running unshare")?;
    if !possible.status.success() {
        println!("SKIPPED: no namespaces for this user: {}", String::from_utf8_lossy(&possible.stderr));
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
    let stages = ["docker", "disk", "shield", "secrets", "image", "gateway", "ready", "run"];
    every_point(&Boots { requests: &[NOTHING], of: "", previous: None }, &stages)
}

const UPDATE: &str = r#"{"update":{"to":"2026.9.7"}}"#;
const ROLLBACK: &str = r#"{"rollback":{"set_newer_state_aside":true}}"#;

/// To [`BROKEN`](crate::fake_engine::BROKEN): it is undone, or was never begun.
const FUTILE: &str = r#"{"update":{"to":"2026.9.66"}}"#;

#[test]
fn every_point_of_an_update_that_is_undone() -> Result<()> {
    every_point(&Boots { requests: &[NOTHING, FUTILE], of: "update.", previous: None }, &["update"])
}

#[test]
fn every_point_of_an_update() -> Result<()> {
    every_point(&Boots { requests: &[NOTHING, UPDATE], of: "update.", previous: None }, &["update"])
}

#[test]
fn every_point_of_a_rollback() -> Result<()> {
    every_point(&Boots { requests: &[NOTHING, UPDATE, ROLLBACK], of: "update.", previous: None }, &["update"])
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
        every_point(&Boots { requests, of, previous: Some(previous.clone()) }, &[])?;
    }
    Ok(())
}
