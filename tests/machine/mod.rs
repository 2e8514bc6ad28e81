//! A machine for the released program: a directory that is its root, in a separate mount namespace.
//!
//! Its mounts end with the process, like those of a machine. The engine is fake, and so are programs that would change
//! more than files.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use openclaw_lab::metadata_server::{Instance, Level, Server};

use crate::fake_engine::{FakeEngine, SERVERS, says};

/// The state directory.
pub(crate) const STATE: &str = "var/lib/openclaw-init/data/openclaw";

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_openclaw-init");

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machine/programs.sh");
const SHIELD: &str = include_str!("../fixtures/nft/shield.json");
/// Also `date`, which has no answer: the clock is that of the machine on which the test runs.
const NAMES: [&str; 10] =
    ["apt-get", "chattr", "date", "dpkg", "dpkg-query", "nft", "sysctl", "systemctl", "apt-cache", "useradd"];

/// Makes the present directory the root, and runs a program there.
const ENTER: &str = include_str!("enter.sh");

/// What the machine talks to.
pub(crate) struct Beside {
    pub(crate) engine: FakeEngine,
    pub(crate) metadata: String,
    pub(crate) server: Arc<Server>,
}

/// Makes an empty directory a bare machine.
pub(crate) fn make(machine: &Path) -> Result<Beside> {
    for directory in
        ["usr", "proc", "dev", "etc/systemd/system", "etc/sysctl.d", "run", "tmp", "var/lib", "programs", "home", "mnt"]
    {
        fs::create_dir_all(machine.join(directory))?;
    }
    fs::write(machine.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n")?;
    fs::write(machine.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\n")?;
    fs::write(machine.join("shield.json"), SHIELD)?;
    fs::write(machine.join("openclaw-init"), "")?;
    fs::copy(PROGRAMS, machine.join("programs/programs.sh"))?;
    NAMES.iter().try_for_each(|name| symlink("programs.sh", machine.join("programs").join(name)))?;
    let engine = FakeEngine::start(machine, &machine.join("run/engine.sock"), says("28.5.2", "1.47"))?;
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
    Ok(Beside { engine, metadata: address.to_string(), server: Arc::new(server) })
}

/// A program with its arguments on the machine, to which something is done before.
pub(crate) fn command(machine: &Path, beside: &Beside, words: [&str; 3]) -> Command {
    let mut command = alone();
    command.args(["sh", "-c", ENTER, "enter"]).arg(machine).args(words);
    command.env("GCE_METADATA_HOST", &beside.metadata);
    command
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

/// Does `work` with each of `items`, so many at the same time. The error has a line for each that failed: name, reason.
pub(crate) fn each<T: Sync>(
    items: &[T],
    side_by_side: usize,
    name: impl Fn(&T) -> String + Sync,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let (left, failed) = (Mutex::new(items.iter()), Mutex::new(Vec::new()));
    thread::scope(|threads| {
        for _ in 0..side_by_side {
            threads.spawn(|| {
                let next = || left.lock().unwrap().next();
                while let Some(item) = next() {
                    if let Err(error) = work(item) {
                        failed.lock().unwrap().push(format!("{}: {error:#}", name(item)));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Whether this user may have namespaces.
pub(crate) fn is_possible() -> Result<bool> {
    let possible = alone().args(["mount", "--bind", "/tmp", "/tmp"]).output().context("running unshare")?;
    if !possible.status.success() {
        println!("SKIPPED: no namespaces for this user: {}", String::from_utf8_lossy(&possible.stderr));
    }
    Ok(possible.status.success())
}
