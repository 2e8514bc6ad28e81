//! The machine: a real Debian with systemd as PID 1, in systemd-nspawn, with Docker-ready privileges.
//!
//! A supervisor process keeps it. It holds the boot disk's mount in a private mount namespace, and the disks' block
//! devices. It starts the machine again when that reboots, and ends when the machine is off. When the supervisor is
//! killed, the kernel takes back mounts and block devices.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use super::{control_group, disks};
use crate::background;
use crate::cloud::network;
use crate::process::Process;
use crate::program::run;
use crate::state::{Lab, Spec};

/// The exit status of systemd-nspawn when the machine asked for a reboot (its manual, "Exit status").
const REBOOT: i32 = 133;
/// The calls that Docker needs beyond nspawn's own list: session keyrings and device filters.
const CALLS: &str = "add_key keyctl request_key bpf perf_event_open";
/// Where the machine finds the file that becomes its `/proc/meminfo`.
const MEMINFO: &str = "/run/host/meminfo";
/// A clean stop may take as long as Compute Engine gives it.
const STOP_LIMIT: Duration = Duration::from_secs(90);
const START_LIMIT: Duration = Duration::from_secs(30);

/// Switches the machine on; returns when its PID 1 runs.
pub fn start(lab: &Lab) -> Result<()> {
    let mut child = background::start(lab, "supervise", &[])?;
    let deadline = Instant::now() + START_LIMIT;
    while pid_one(lab).is_none() {
        let ended = child.try_wait().context("looking at the machine's supervisor")?;
        if ended.is_some() || Instant::now() > deadline {
            let said = [lab.path("supervise.log"), lab.console()].map(fs::read_to_string);
            let said = said.into_iter().flatten().collect::<String>();
            bail!("the machine did not start: {}", said.trim());
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether it is on.
pub fn runs(lab: &Lab) -> bool {
    supervisor(lab).is_some()
}

/// The machine's PID 1 as this machine sees it, while it is on.
pub fn pid_one(lab: &Lab) -> Option<Process> {
    Process::recall(&lab.process_file("machine"))
}

/// The beginning of a command that runs inside the machine: append program and arguments.
pub fn inside(lab: &Lab) -> Result<Command> {
    let process = pid_one(lab).with_context(|| format!("the machine of lab `{}` is off", lab.name()))?;
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_time", "nsenter", "--target", &process.pid().to_string()]);
    command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wdns=/root", "--"]);
    // What a login gives; nothing of the caller's environment gets in.
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/root").env("LANG", "C.UTF-8").env("TERM", "dumb");
    Ok(command)
}

/// Asks the machine to reboot; returns when the next PID 1 runs.
pub fn reboot(lab: &Lab) -> Result<()> {
    let before = pid_one(lab);
    run(inside(lab)?.args(["systemctl", "reboot"])).context("asking the machine to reboot")?;
    let deadline = Instant::now() + STOP_LIMIT + START_LIMIT;
    loop {
        match pid_one(lab) {
            now @ Some(_) if now != before => return Ok(()),
            _ if !runs(lab) => bail!("the machine went off instead of rebooting"),
            _ if Instant::now() > deadline => bail!("the machine did not reboot in {} s", STOP_LIMIT.as_secs()),
            _ => sleep(Duration::from_millis(100)),
        }
    }
}

/// Switches it off cleanly, as `gcloud compute instances stop` does: cut off when it takes too long.
pub fn stop(lab: &Lab) -> Result<()> {
    let Some(supervisor) = supervisor(lab) else { return Ok(()) };
    if let Some(nspawn) = Process::recall(&lab.process_file("nspawn")) {
        nspawn.signal(Signal::SIGTERM)?;
    }
    if supervisor.wait(STOP_LIMIT).is_ok() { Ok(()) } else { cut(lab) }
}

/// Cuts the power: every process of the machine is gone at once. What they had written to a file survives in the
/// page cache, unlike on real hardware.
pub fn cut(lab: &Lab) -> Result<()> {
    let Some(supervisor) = supervisor(lab) else { return Ok(()) };
    if let Some(process) = pid_one(lab) {
        process.signal(Signal::SIGKILL)?;
    }
    if supervisor.wait(Duration::from_secs(20)).is_err() {
        supervisor.end(Duration::from_secs(5))?;
    }
    Ok(())
}

fn supervisor(lab: &Lab) -> Option<Process> {
    Process::recall(&lab.process_file("supervisor"))
}

/// Gives this process a mount namespace from which nothing reaches the development machine.
pub(super) fn leave_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a private mount namespace")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("making all mounts private")?;
    // systemd-nspawn takes its own propagation directory apart at the end; it must be a mount of its own.
    let own = "/run/systemd/nspawn";
    fs::create_dir_all(own).with_context(|| format!("creating {own}"))?;
    mount(Some("tmpfs"), own, Some("tmpfs"), MsFlags::empty(), None::<&str>).with_context(|| format!("mounting {own}"))
}

/// Mounts the boot disk. The block device goes with the mount.
pub(super) fn mount_root(lab: &Lab) -> Result<()> {
    let node = disks::attach_cached(&lab.boot_disk(), false)?;
    let mounted = mount(Some(&node), &lab.root(), Some("ext4"), MsFlags::empty(), None::<&str>);
    disks::release(&node)?;
    mounted.with_context(|| format!("mounting the boot disk {}", node.display()))
}

/// The supervisor's whole life: the machine from power-on to power-off.
pub fn supervise(lab: &Lab) -> Result<()> {
    Process::me()?.remember(&lab.process_file("supervisor"))?;
    leave_mounts()?;
    let memory = lab.load()?.memory;
    control_group::enter(lab, memory)?;
    mount_root(lab)?;
    while boot(lab, &lab.load()?)?.code() == Some(REBOOT) {}
    Ok(())
}

/// One boot, from PID 1's start to its end.
fn boot(lab: &Lab, spec: &Spec) -> Result<ExitStatus> {
    let disks = attach_all(lab, spec)?;
    let console = background::append(&lab.console())?;
    let errors = console.try_clone().context("sharing the console")?;
    let mut command = nspawn(lab, spec, disks.iter().map(|(node, _)| node.as_path()))?;
    let mut child = command.stdin(Stdio::null()).stdout(console).stderr(errors).spawn().context("starting nspawn")?;
    let nspawn = i32::try_from(child.id()).context("reading nspawn's process id")?;
    Process::of(nspawn)?.remember(&lab.process_file("nspawn"))?;
    if let Some(first) = wait_for_pid_one(&mut child, nspawn)? {
        first.remember(&lab.process_file("machine"))?;
        if spec.memory.is_some() {
            // nspawn itself would look for the file after it has left the development machine's tree.
            let mount = ["mount", "--bind", MEMINFO, "/proc/meminfo"];
            run(inside(lab)?.args(mount)).context("showing the machine its memory")?;
        }
    }
    child.wait().context("waiting for the machine")
}

/// Attaches the data disks; each block device lives as long as the file that is returned with its node.
fn attach_all(lab: &Lab, spec: &Spec) -> Result<Vec<(PathBuf, File)>> {
    disks::unlink_all(lab)?;
    let mut attached = Vec::new();
    for disk in &spec.disks {
        disks::detach(&disk.file)?;
        let node = disks::attach(&disk.file, disk.read_only)?;
        let held = File::open(&node).with_context(|| format!("opening {}", node.display()))?;
        disks::release(&node)?;
        disks::link(lab, disk, &node)?;
        attached.push((node, held));
    }
    Ok(attached)
}

fn nspawn<'a>(lab: &Lab, spec: &Spec, disks: impl Iterator<Item = &'a Path>) -> Result<Command> {
    let mut command = Command::new("systemd-nspawn");
    command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1");
    command.args(["--boot", "--quiet", "--register=no", "--keep-unit", "--capability=all", "--console=read-only"]);
    // The kernel has one clock for all machines: it is nobody's to set here, nor for what enters this one.
    command.arg("--drop-capability=CAP_SYS_TIME");
    command.args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"]);
    command.arg("--directory").arg(lab.root());
    command.arg(format!("--machine={}", lab.machine())).arg(format!("--hostname={}", lab.name()));
    command.arg(format!("--system-call-filter={CALLS}"));
    command.arg(format!("--network-namespace-path={}", network::path(&lab.machine()).display()));
    command.arg(format!("--bind={}:/dev/disk", lab.device_links().display()));
    for node in disks.chain([Path::new("/dev/fuse")]).filter(|node| node.exists()) {
        command.arg(format!("--bind={}", node.display()));
    }
    if let Some(limit) = spec.memory {
        let file = lab.path("meminfo");
        fs::write(&file, control_group::meminfo(limit)?).with_context(|| format!("writing {}", file.display()))?;
        command.arg(format!("--bind-ro={}:{MEMINFO}", file.display()));
    }
    Ok(command)
}

/// nspawn's child that is process 1 of its own namespace; none when the start failed.
fn wait_for_pid_one(nspawn: &mut Child, pid: i32) -> Result<Option<Process>> {
    while nspawn.try_wait().context("looking at nspawn")?.is_none() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let mut children = children.split_whitespace().filter_map(|child| child.parse::<i32>().ok());
        if let Some(first) = children.find(|child| is_init(*child)) {
            return Process::of(first).map(Some);
        }
        sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Whether a process is systemd and number 1 of a namespace below ours.
fn is_init(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let mut numbers = field("NSpid:").split_whitespace();
    field("Name:").trim() == "systemd" && numbers.next().is_some() && numbers.next_back() == Some("1")
}
