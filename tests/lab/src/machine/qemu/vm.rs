//! One machine in QEMU, with the disks and the firmware data of Compute Engine, in the network of its lab's cloud.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::json;

use super::agent::Json;
use crate::cloud::network;
use crate::host;
use crate::process::Process;
use crate::size::Size;
use crate::state::Lab;

/// The programs that such a machine needs.
const TOOLS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("extlinux", "extlinux"),
];
const MEMORY: &str = "1536";
const SOCKET_LIMIT: Duration = Duration::from_secs(20);

/// What becomes of writes that the guest has not flushed when the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// They are kept, in this machine's page cache: the disk can be enlarged while it is in use.
    Kept,
    /// They are lost: the disk has a write cache that only a flush empties into the file.
    Volatile,
}

/// A disk as it is attached.
#[derive(Debug, Clone)]
pub struct Drive {
    /// The device name, which is also its serial number.
    pub device_name: String,
    /// The file that holds it, raw.
    pub file: PathBuf,
    /// How it keeps what is written.
    pub writes: Writes,
}

/// A machine that is on; off, as if its plug were pulled, when this goes away.
#[derive(Debug)]
pub struct Vm {
    lab: Lab,
    qemu: Child,
    /// The programs behind the disks with a volatile cache.
    disks: Vec<Child>,
    /// One such machine at a time: two would only wait for each other.
    _only_one: Flock<File>,
}

/// Installs what machines in QEMU need.
pub fn install_tools() -> Result<()> {
    host::install(&TOOLS)
}

impl Vm {
    /// Switches a machine on; the first drive is its boot disk. Waits while another one is on.
    pub fn start(lab: &Lab, drives: &[Drive]) -> Result<Self> {
        let lock = lab.directory().with_file_name("qemu.lock");
        let lock = File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
        let only_one = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        let only_one = only_one.context("waiting for another machine in QEMU")?;
        let (mut disks, mut attached) = (Vec::new(), Vec::new());
        for (drive, index) in drives.iter().zip(0..) {
            let file = match drive.writes {
                Writes::Kept => format!("file.driver=file,file.filename={}", drive.file.display()),
                Writes::Volatile => {
                    let socket = lab.path(&format!("disk{index}.sock"));
                    disks.push(volatile(lab, &drive.file, &socket)?);
                    format!("file.driver=nbd,file.server.type=unix,file.server.path={}", socket.display())
                }
            };
            attached.push((file, drive.device_name.as_str()));
        }
        let log = File::options().create(true).append(true).open(lab.path("qemu.log")).context("opening QEMU's log")?;
        let qemu = command(lab, &attached).stdin(Stdio::null()).stderr(log).spawn().context("starting QEMU")?;
        let machine = Self { lab: lab.clone(), qemu, disks, _only_one: only_one };
        wait_for(&machine.monitor_socket())?;
        Ok(machine)
    }

    /// Runs a shell line as root in the machine, see [`Json::shell`].
    pub fn shell(&self, line: &str, limit: Duration) -> Result<String> {
        Json::guest(&agent_socket(&self.lab))?.shell(line, limit)
    }

    /// Asks the machine to reboot, and does not wait for it.
    pub fn reboot(&self) -> Result<()> {
        Json::guest(&agent_socket(&self.lab))?.begin("systemctl --no-block reboot").map(drop)
    }

    /// Makes the disk of a device name larger while the machine is on.
    pub fn resize(&self, device_name: &str, size: Size) -> Result<()> {
        let resize = json!({ "node-name": node(device_name), "size": size.0 });
        Json::monitor(&self.monitor_socket())?.ask("block_resize", &resize).map(drop)
    }

    /// Switches it off cleanly and waits until it is off.
    pub fn stop(mut self, limit: Duration) -> Result<()> {
        Json::guest(&agent_socket(&self.lab))?.begin("systemctl --no-block poweroff")?;
        let deadline = Instant::now() + limit;
        while self.qemu.try_wait().context("looking at QEMU")?.is_none() {
            ensure!(Instant::now() < deadline, "the machine is still on after {} s", limit.as_secs());
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Pulls the plug.
    pub fn cut(mut self) -> Result<()> {
        self.pull()
    }

    /// Stops the processor, then ends the disks, then the rest. In any other order a disk's program could still empty
    /// its cache into the file.
    fn pull(&mut self) -> Result<()> {
        if let Ok(qemu) = Process::of(i32::try_from(self.qemu.id()).context("reading QEMU's process id")?) {
            qemu.signal(Signal::SIGSTOP)?;
        }
        for child in self.disks.iter_mut().chain([&mut self.qemu]) {
            child.kill().and_then(|()| child.wait()).context("cutting the power")?;
        }
        Ok(())
    }

    fn monitor_socket(&self) -> PathBuf {
        monitor_socket(&self.lab)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Err(error) = self.pull() {
            println!("{}: {error:#}", self.lab.name());
        }
    }
}

/// What the machine writes to its second serial port, all boots.
pub fn second_port(lab: &Lab) -> PathBuf {
    lab.path("second-port.log")
}

fn monitor_socket(lab: &Lab) -> PathBuf {
    lab.path("monitor.sock")
}

fn agent_socket(lab: &Lab) -> PathBuf {
    lab.path("agent.sock")
}

/// The name of a disk's block node. Device names may be longer than QEMU's 31 characters; those of the lab are not.
fn node(device_name: &str) -> String {
    format!("n-{device_name}")
}

/// A disk whose writes stay in its own cache until the guest flushes them (nbdkit's cache filter, `cache=writeback`).
fn volatile(lab: &Lab, file: &Path, socket: &Path) -> Result<Child> {
    // A socket that a cut left behind cannot be bound again.
    drop(std::fs::remove_file(socket));
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--filter=cache", "--unix"]).arg(socket);
    command.arg("file").arg(file).arg("cache=writeback");
    let child = command.env("TMPDIR", lab.directory()).stdin(Stdio::null()).spawn().context("starting nbdkit")?;
    wait_for(socket)?;
    Ok(child)
}

fn wait_for(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + SOCKET_LIMIT;
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "{} does not appear", socket.display());
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn command(lab: &Lab, disks: &[(String, &str)]) -> Command {
    drop(std::fs::remove_file(monitor_socket(lab)));
    drop(std::fs::remove_file(agent_socket(lab)));
    let mut command = Command::new("nsenter");
    command.arg(network::net_of(&lab.cloud())).args(["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]);
    // The guest's clock counts its instructions, 4 ns each: on a busy machine an emulated processor would exceed every
    // time limit in the guest.
    command.args(["-machine", "q35", "-accel", "tcg", "-icount", "shift=2", "-cpu", "max", "-m", MEMORY]);
    command.args(["-nodefaults", "-display", "none", "-device", "virtio-rng-pci"]);
    command.args(["-smbios", "type=1,manufacturer=Google,product=Google Compute Engine,serial=GoogleCloud-LAB"]);
    // The guest's packets leave as connections of this process: what the cloud's namespace reaches, it reaches.
    command.args(["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"]);
    for port in [lab.console(), second_port(lab)] {
        let id = if port == lab.console() { "first" } else { "second" };
        command.args(["-chardev", &format!("file,id={id},append=on,path={}", port.display())]);
        command.args(["-serial", &format!("chardev:{id}")]);
    }
    let socket = |path: PathBuf| format!("socket,server=on,wait=off,path={}", path.display());
    command.args([
        "-chardev",
        &format!("{},id=monitor", socket(monitor_socket(lab))),
        "-mon",
        "chardev=monitor,mode=control",
    ]);
    command.args(["-chardev", &format!("{},id=agent", socket(agent_socket(lab))), "-device", "virtio-serial-pci"]);
    command.args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
    command.args(["-device", "virtio-scsi-pci,id=scsi0"]);
    for ((file, name), index) in disks.iter().zip(1..) {
        let id = node(name);
        command.args(["-blockdev", &format!("driver=raw,node-name={id},discard=unmap,{file}")]);
        command.args([
            "-device",
            &format!(
                "scsi-hd,drive={id},bootindex={index},vendor=Google,product=PersistentDisk,ver=1,serial={name},device_id={name}"
            ),
        ]);
    }
    command
}
