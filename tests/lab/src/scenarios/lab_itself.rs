//! The lab itself, with a fake product that only reports: what the other scenarios rely on.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::NamedTempFile;

use super::rig::Rig;
use crate::process::Process;
use crate::program::run;
use crate::state::Lab;

/// Reports like the product.
const FAKE_PRODUCT: &str = include_str!("../../scripts/lab-itself/fake-product.sh");
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
const SECOND_DISK: &str = "/dev/disk/by-id/google-second";

/// Two machines with equal addresses, both ways in, reboot, cut, disks, limits, and nothing left in the end.
pub(super) fn lab_itself(rig: &Rig) -> Result<()> {
    let other = rig.beside("lab-small")?;
    boot(rig, &["--attr", "some-key=some value"])?;
    boot(&other, &["--boot", "script", "--os", "debian-13", "--memory", "1G", "--boot-disk", "6G", "--disk", "none"])?;
    bare_machine(rig).context("the machine")?;
    limits_hold(&other).context("the small machine")?;
    reboots(rig, &other).context("rebooting")?;
    disks_come_and_go(rig).context("disks")?;
    rig.lab_ends(0, "down", &[])?;
    ensure!(rig.machine()?.exists() != other.machine()?.exists(), "both machines are gone");
    orphaned(&other).context("a lab whose keepers were killed")?;
    for lab in [rig.machine()?, other.machine()?] {
        nothing_left(&lab)?;
    }
    Ok(())
}

fn boot(rig: &Rig, options: &[&str]) -> Result<()> {
    let mut file = NamedTempFile::new().context("making the fake product")?;
    file.write_all(FAKE_PRODUCT.as_bytes()).context("writing the fake product")?;
    let executable = fs::Permissions::from_mode(0o755);
    file.as_file().set_permissions(executable).context("making the fake product executable")?;
    let path = file.path().to_str().context("the fake product's path is no text")?;
    let up = rig.lab_ends(0, "up", &[&["--binary", path, "--timeout", "90s"], options].concat())?;
    up.has(&["the fake product runs", "ready"]).map(drop)
}

/// A user's way: fetched once by Google's script runner, attributes readable by name, the disk under its name.
fn bare_machine(rig: &Rig) -> Result<()> {
    let attributes = rig.guest_attributes()?;
    ensure!(attributes["boot-id"] == rig.shell(BOOT_ID)?, "another boot reported: {attributes}");
    let fetched = rig.requests()?.iter().filter(|request| request["host"] == "files").count();
    ensure!(fetched == 1, "the binary was fetched {fetched} times");
    ensure!(metadata(rig, "attributes/some-key")? == "some value", "the attribute has another value");
    let sectors = sectors(rig, "/dev/disk/by-id/google-openclaw-data")?;
    ensure!(sectors == 10 << 21, "the data disk has {sectors} sectors");
    ensure!(rig.shell("systemctl is-system-running --wait")? == "running", "a unit failed");
    ensure!(rig.shell("findmnt --noheadings --output FSTYPE /")? == "ext4", "the root is not ext4");
    Ok(())
}

/// The limits are shown inside and hold.
fn limits_hold(rig: &Rig) -> Result<()> {
    let memory = rig.shell("sed -n 's/^MemTotal: *//p' /proc/meminfo")?;
    ensure!(memory == "1048576 kB", "the machine shows {memory}");
    let disk: u64 = rig.shell("df --output=size / | tail --lines=1")?.parse().context("reading what df prints")?;
    ensure!((5 << 20..6 << 20).contains(&disk), "the boot disk has {disk} KiB");
    rig.shell("! ls /dev/disk/by-id | grep google-").context("no data disk was wanted")?;
    rig.shell("! dd if=/dev/zero of=/dev/null bs=1500M count=1").context("using more memory than there is")?;
    Ok(())
}

/// Files survive both kinds of reboot, each boot has an id of its own, the other machine does not notice.
fn reboots(rig: &Rig, other: &Rig) -> Result<()> {
    let others = other.shell(BOOT_ID)?;
    let mut boots = vec![others.clone(), rig.shell(BOOT_ID)?];
    rig.shell("echo kept > /var/lib/kept && sync")?;
    for options in [&[] as &[&str], &["--hard"]] {
        rig.lab_ends(0, "reboot", options)?;
        ensure!(rig.shell("cat /var/lib/kept")? == "kept", "a file was lost");
        let boot = rig.shell(BOOT_ID)?;
        ensure!(!boots.contains(&boot), "the boot id {boot} came twice");
        boots.push(boot);
    }
    ensure!(other.shell(BOOT_ID)? == others, "the other machine was rebooted, too");
    Ok(())
}

/// In the devices and in the metadata, while the machine runs.
fn disks_come_and_go(rig: &Rig) -> Result<()> {
    rig.lab_ends(0, "disk", &["attach", "second", "1G"])?;
    ensure!(sectors(rig, SECOND_DISK)? == 1 << 21, "the new disk has another size");
    ensure!(metadata(rig, "disks/2/device-name")? == "second", "the new disk is not in the metadata");
    rig.shell(&format!("mkfs.ext4 -q {SECOND_DISK}"))?;
    rig.lab_ends(0, "disk", &["resize", "second", "2G"])?;
    ensure!(sectors(rig, SECOND_DISK)? == 2 << 21, "the disk did not grow");
    rig.lab_ends(0, "reboot", &[])?;
    let kind = rig.shell(&format!("blkid -o value -s TYPE {SECOND_DISK}"))?;
    ensure!(kind == "ext4", "the disk's content became {kind:?}");
    rig.lab_ends(0, "disk", &["detach", "second"])?;
    rig.shell(&format!("! ls {SECOND_DISK}")).context("the disk should be gone")?;
    let kept = NamedTempFile::new().context("making a file for the disk")?;
    let path = kept.path().to_str().context("the file's path is no text")?;
    rig.lab_ends(0, "down", &["--keep-disk", path])?;
    let length = kept.as_file().metadata().context("reading the kept disk's size")?.len();
    ensure!(length == 10 << 30, "the kept disk has {length} bytes");
    Ok(())
}

/// Whatever ended the lab's own processes, `down` still finds the rest.
fn orphaned(rig: &Rig) -> Result<()> {
    let lab = rig.machine()?;
    for keeper in ["supervisor", "cloud"] {
        let process = Process::recall(&lab.process_file(keeper)).with_context(|| format!("there is no {keeper}"))?;
        process.signal(Signal::SIGKILL)?;
    }
    rig.lab_ends(0, "down", &[]).map(drop)
}

/// No directory, process, block device, mount, namespace or control group.
fn nothing_left(lab: &Lab) -> Result<()> {
    let directory = lab.directory().display().to_string();
    ensure!(!lab.exists(), "{directory} is still there");
    let read = |file: &str| fs::read_to_string(file).with_context(|| format!("reading {file}"));
    let devices = run(Command::new("losetup").args(["--noheadings", "--list", "--output", "BACK-FILE"]))?;
    for (what, list) in [("block device", devices), ("mount", read("/proc/self/mounts")?)] {
        ensure!(!list.contains(&format!("{directory}/")), "a {what} is still there:\n{list}");
    }
    for namespace in [lab.machine(), lab.cloud()] {
        ensure!(!Path::new("/run/netns").join(&namespace).exists(), "the namespace {namespace} is still there");
    }
    let groups = run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", &lab.machine()]))?;
    ensure!(groups.is_empty(), "control groups are still there: {groups}");
    let processes = run(Command::new("ps").args(["-e", "-o", "args="]))?;
    let ours = [format!("{directory}/"), format!("--name {} ", lab.name())];
    let left = processes.lines().find(|line| ours.iter().any(|part| format!("{line} ").contains(part)));
    ensure!(left.is_none(), "a process is still there: {}", left.unwrap_or_default());
    Ok(())
}

fn metadata(rig: &Rig, path: &str) -> Result<String> {
    rig.shell(&format!("curl -sH Metadata-Flavor:Google http://metadata/computeMetadata/v1/instance/{path}"))
}

fn sectors(rig: &Rig, link: &str) -> Result<u64> {
    let size = rig.shell(&format!("cat /sys/class/block/$(basename $(readlink -f {link}))/size"))?;
    size.parse().with_context(|| format!("reading the size {size:?}"))
}
