//! The power is cut at the product's failpoints, and the next run completes what was begun.
//!
//! These machines do not have the product's units: after a cut, a machine that comes up again waits for the scenario's
//! next run.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::rig::Rig;
use crate::cloud::fake_gateway;
use crate::product::{BOOT_HERE, FAILPOINT, FAILPOINT_LOG};

/// Points at which a cut makes no difference: reads, and the report of the run itself.
const LOOKS: [&str; 10] = [
    "run.",
    "metadata.",
    "-get#",
    ".blkid#",
    ".dpkg#",
    ".dpkg-query#",
    ".apt-cache#",
    ".udevadm#",
    ".debugfs#",
    ".lsattr#",
];

/// Work that is cut: each time from the same beginning.
struct Course {
    /// Brings the machine there.
    begin: fn(&Rig) -> Result<()>,
    /// What is cut.
    run: &'static str,
    /// Which of its points are of interest: those with this in their names.
    of: &'static str,
    /// The points of the gate; the sweep takes all that it finds.
    chosen: &'static [&'static str],
}

const FIRST_BOOT: Course = Course {
    begin: with_a_blank_disk,
    run: BOOT,
    of: "",
    chosen: &[
        "disk.mkfs.ext4#1.after",
        "disk.changed#5",
        "secrets.write#1.written",
        "gateway.write#1.written",
        "gateway.docker-post#2.before",
    ],
};

const REBOOT: Course = Course { begin: power_cut, run: BOOT, of: "", chosen: &["disk.changed#1"] };

const ANOTHER_CONTAINER: Course =
    Course { begin: with_another_port, run: BOOT, of: "", chosen: &["gateway.changed#2"] };

/// Only a machine without Docker shows what its stage does.
const BARE_MACHINE: Course = Course { begin: bare, run: BOOT, of: "docker.", chosen: &[] };

const UPDATE: Course = Course {
    begin: with_an_update_asked_for,
    run: BOOT,
    of: "update.",
    chosen: &["update.copy#3.before", "update.changed#9"],
};

const ROLLBACK: Course =
    Course { begin: with_a_rollback_asked_for, run: BOOT, of: "update.", chosen: &["update.rename#1.aside"] };

/// Its steps are cut in the gate by the scenario `moving-in`.
const MOVING_IN: Course = Course { begin: with_a_disk_for_the_state, run: BOOT, of: "state.", chosen: &[] };

/// Its steps are cut in the gate by the scenario `backup-restore`.
const RESTORE: Course = Course {
    begin: with_a_backup,
    run: "openclaw-init restore --replace-newer /root/backup.tar.gz",
    of: "disk.",
    chosen: &[],
};

/// A few points of everything.
pub(super) fn at_chosen_points(rig: &Rig) -> Result<()> {
    ready(rig)?;
    [FIRST_BOOT, REBOOT, ANOTHER_CONTAINER, UPDATE, ROLLBACK]
        .iter()
        .try_for_each(|course| sweep(rig, course, course.chosen))
}

pub(super) fn all_of_a_first_boot(rig: &Rig) -> Result<()> {
    at_every_point(rig, &FIRST_BOOT)
}

pub(super) fn all_of_a_reboot(rig: &Rig) -> Result<()> {
    at_every_point(rig, &REBOOT)
}

pub(super) fn all_of_another_container(rig: &Rig) -> Result<()> {
    at_every_point(rig, &ANOTHER_CONTAINER)
}

pub(super) fn all_of_a_bare_machine(rig: &Rig) -> Result<()> {
    at_every_point(rig, &BARE_MACHINE)
}

pub(super) fn all_of_an_update(rig: &Rig) -> Result<()> {
    at_every_point(rig, &UPDATE)
}

pub(super) fn all_of_a_rollback(rig: &Rig) -> Result<()> {
    at_every_point(rig, &ROLLBACK)
}

pub(super) fn all_of_moving_in(rig: &Rig) -> Result<()> {
    at_every_point(rig, &MOVING_IN)
}

pub(super) fn all_of_a_restore(rig: &Rig) -> Result<()> {
    at_every_point(rig, &RESTORE)
}

fn at_every_point(rig: &Rig, course: &Course) -> Result<()> {
    ready(rig)?;
    let points = points(rig, course).context("a run that is not cut")?;
    sweep(rig, course, &points.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The points of an uncut run that can make a difference.
fn points(rig: &Rig, course: &Course) -> Result<Vec<String>> {
    (course.begin)(rig)?;
    rig.shell(&format!("rm -f /root/points; {FAILPOINT_LOG}=/root/points {} 2>&1", course.run))?;
    let passed = rig.shell("cat /root/points")?;
    let of_interest = |point: &&str| point.contains(course.of) && !LOOKS.iter().any(|looks| point.contains(looks));
    Ok(passed.lines().filter(of_interest).map(str::to_owned).collect())
}

/// Cuts at each of the points. One that fails does not keep the others from being tried.
fn sweep(rig: &Rig, course: &Course, points: &[&str]) -> Result<()> {
    let start = Instant::now();
    let mut failed = Vec::new();
    for point in points {
        if let Err(error) = cut_at(rig, course, point) {
            println!("cut at {point}: {error:#}");
            failed.push(*point);
        }
    }
    println!("cut at {} points in {} s", points.len(), start.elapsed().as_secs());
    ensure!(failed.is_empty(), "not completed after a cut at {}", failed.join(", "));
    Ok(())
}

fn cut_at(rig: &Rig, course: &Course, point: &str) -> Result<()> {
    (course.begin)(rig).context("getting there")?;
    let begun = rig.script(STATE, &[])?;
    let code = rig.shell(&format!("{FAILPOINT}={point} {} > /root/cut.log 2>&1; echo $?", course.run))?;
    ensure!(code == KILLED, "the run was not cut there, it ended with {code}: {}", rig.shell("cat /root/cut.log")?);
    let cut = rig.script(STATE, &[])?;
    power_cut(rig)?;
    rig.boot(0).context("the next run")?;
    let state = rig.script(STATE, &[])?;
    ensure!(state.contains(&begun) && state.contains(&cut), "the state was\n{begun}\n{cut}\nand is\n{state}");
    one_version(rig)?;
    let containers = rig.shell("docker ps --all --format '{{.Names}} {{.State}}'")?;
    ensure!(containers == "openclaw-gateway running", "the containers are {containers}");
    rig.boot(0)?.has(&["result=ready", " changes=0"]).context("one more run").map(drop)
}

/// Image, record and state are of the same version, and nothing is half done.
fn one_version(rig: &Rig) -> Result<()> {
    let image = rig.shell("docker inspect --format '{{.Config.Image}}' openclaw-gateway")?;
    let version = image.rsplit(':').next().unwrap_or_default();
    let schema = if version == fake_gateway::FIRST { 1 } else { 2 };
    let found = rig.script(RECORDS, &[])?;
    let expected = [format!("\"schema\":{schema}"), format!("\"version\": \"{version}\"")];
    let ours = expected.iter().all(|part| found.contains(part)) && !found.contains("openclaw-init/");
    ensure!(ours, "the gateway is {image}, and its state:\n{found}");
    Ok(())
}

const BOOT: &str = BOOT_HERE;

/// Killed by SIGKILL, as a shell says it.
const KILLED: &str = "137";

/// What must outlive everything.
const STATE: &str = include_str!("../../scripts/cuts/show-state.sh");
/// Of which version state and record are, and what is half done.
const RECORDS: &str = include_str!("../../scripts/cuts/show-records.sh");
/// Leaves a machine with Docker and a blank disk.
const BLANK: &str = include_str!("../../scripts/cuts/blank-machine.sh");

/// Docker and a ready gateway.
fn ready(rig: &Rig) -> Result<()> {
    bare(rig)?;
    rig.boot(0).map(drop)
}

/// A new machine with nothing but the program.
fn bare(rig: &Rig) -> Result<()> {
    rig.lab_ends(0, "down", &[])?;
    let version = format!("openclaw-version={}", fake_gateway::FIRST);
    rig.up_ends(1, &["--boot", "nothing", "--attr", &version])?;
    rig.fetch("/usr/local/bin/openclaw-init")
}

/// Everything that the product made is gone but Docker; the disk is blank.
fn with_a_blank_disk(rig: &Rig) -> Result<()> {
    rig.script(BLANK, &[])?;
    rig.fetch("/usr/local/bin/openclaw-init")
}

/// The machine comes up again, and nothing starts the product.
fn power_cut(rig: &Rig) -> Result<()> {
    rig.lab_ends(1, "reboot", &["--hard"])?.has(&["there is no openclaw-init.service"]).map(drop)
}

/// Asks for the gateway's other one of two ports.
fn with_another_port(rig: &Rig) -> Result<()> {
    rig.shell("date > /mnt/disks/openclaw-data/openclaw/kept")?;
    let other = if rig.shell("docker port openclaw-gateway")?.ends_with(":18789") { 18790 } else { 18789 };
    rig.attribute(&format!("openclaw-port={other}"))
}

/// The state is on the boot disk, and a blank data disk is there.
fn with_a_disk_for_the_state(rig: &Rig) -> Result<()> {
    with_a_blank_disk(rig)?;
    rig.attribute("openclaw-data-disk=none")?;
    rig.boot(0)?;
    rig.shell("date > /home/node/.openclaw/kept")?;
    rig.attribute("openclaw-data-disk")
}

/// The state was used after its backup.
fn with_a_backup(rig: &Rig) -> Result<()> {
    with_a_blank_disk(rig)?;
    rig.boot(0)?;
    rig.shell(
        "cd /home/node/.openclaw && date > kept && rm -f /root/backup.tar.gz && \
         openclaw-init backup --to /root/backup.tar.gz 2>&1 && date > used",
    )
    .map(drop)
}

/// What `openclaw-init update --to …` leaves for the run that carries it out.
fn with_an_update_asked_for(rig: &Rig) -> Result<()> {
    with_a_blank_disk(rig)?;
    rig.boot(0)?;
    rig.shell("date > /mnt/disks/openclaw-data/openclaw/kept")?;
    ask(rig, &format!("{{\"update\":{{\"to\":\"{}\"}}}}", fake_gateway::SECOND))
}

/// The same of `openclaw-init rollback`, after an update.
fn with_a_rollback_asked_for(rig: &Rig) -> Result<()> {
    with_an_update_asked_for(rig)?;
    rig.boot(0)?;
    ask(rig, "{\"rollback\":{\"set_newer_state_aside\":true}}")
}

fn ask(rig: &Rig, request: &str) -> Result<()> {
    rig.shell(&format!("echo '{request}' > /run/openclaw-init/private/request.json")).map(drop)
}
