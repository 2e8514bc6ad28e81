//! The power is cut at the program's named points (`src/cut.rs`), and the next run completes what was begun.
//!
//! The product's units are not on these machines: every run is one of the scenario's, so that a machine that comes up
//! again after a cut waits for it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::rig::Rig;
use crate::stand_in;

/// What no cut can make a difference to: what only looks, and the report, which is about the run.
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
    name: &'static str,
    /// Brings the machine there.
    begin: fn(&Rig) -> Result<()>,
    /// The arguments of the run that is cut; the next one is always `boot`.
    run: &'static str,
    /// Which points of it are of interest: those with this in their names.
    of: &'static str,
    /// The points of the gate; the sweep takes all that it finds.
    chosen: &'static [&'static str],
}

const COURSES: [Course; 4] = [
    Course {
        name: "first boot",
        begin: with_a_blank_disk,
        run: "boot",
        of: "",
        chosen: &["disk.mkfs.ext4#1.after", "disk.changed#5", "secrets.write#1.written", "gateway.changed#2"],
    },
    Course { name: "reboot", begin: power_cut, run: "boot", of: "", chosen: &["disk.changed#1"] },
    Course { name: "another container", begin: with_another_port, run: "boot", of: "", chosen: &["gateway.changed#2"] },
    Course { name: "bare machine", begin: bare, run: "boot", of: "docker.", chosen: &[] },
];

/// A few points of everything.
pub(super) fn at_chosen_points(rig: &Rig) -> Result<()> {
    ready(rig)?;
    for course in &COURSES {
        sweep(rig, course, course.chosen)?;
    }
    Ok(())
}

/// All points of everything.
pub(super) fn at_every_point(rig: &Rig) -> Result<()> {
    ready(rig)?;
    for course in &COURSES {
        let points = points(rig, course).with_context(|| format!("an uncut run of {}", course.name))?;
        sweep(rig, course, &points.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The points of an uncut run that can make a difference.
fn points(rig: &Rig, course: &Course) -> Result<Vec<String>> {
    (course.begin)(rig)?;
    rig.shell(&format!("rm -f /root/points; OPENCLAW_INIT_CUT_LOG=/root/points openclaw-init {} 2>&1", course.run))?;
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
            println!("{}, cut at {point}: {error:#}", course.name);
            failed.push(*point);
        }
    }
    println!("{}: cut at {} points in {} s", course.name, points.len(), start.elapsed().as_secs());
    ensure!(failed.is_empty(), "{} is not completed after a cut at {}", course.name, failed.join(", "));
    Ok(())
}

fn cut_at(rig: &Rig, course: &Course, point: &str) -> Result<()> {
    (course.begin)(rig).context("getting there")?;
    let run = format!("OPENCLAW_INIT_CUT={point} openclaw-init {} > /root/cut.log 2>&1; echo $?", course.run);
    let code = rig.shell(&run)?;
    ensure!(code == KILLED, "the run was not cut there, it ended with {code}: {}", rig.shell("cat /root/cut.log")?);
    let state = rig.shell(STATE)?;
    power_cut(rig)?;
    rig.boot(0).context("the next run")?;
    ensure!(rig.shell(STATE)?.contains(&state), "the state is not what it was: {state}");
    let containers = rig.shell("docker ps --all --format '{{.Names}} {{.State}}'")?;
    ensure!(containers == "openclaw-gateway running", "the containers are {containers}");
    rig.boot(0)?.has(&["result=ready", " changes=0"]).context("one more run").map(drop)
}

/// Killed by SIGKILL, as a shell says it.
const KILLED: &str = "137";

/// What must outlive everything: a file of the state, and the token. Empty while there is neither.
const STATE: &str = "cd /mnt/disks/openclaw-data/openclaw 2> /dev/null && \
                     { cat kept; grep ^OPENCLAW_GATEWAY_TOKEN= .env; } 2> /dev/null || true";

const FETCH: &str = "curl -fsS -o /usr/local/bin/openclaw-init http://198.18.0.4/openclaw-init && \
                     chmod 0755 /usr/local/bin/openclaw-init";

/// Docker and a ready gateway.
fn ready(rig: &Rig) -> Result<()> {
    bare(rig)?;
    rig.boot(0).map(drop)
}

/// A new machine with nothing but the program.
fn bare(rig: &Rig) -> Result<()> {
    rig.lab_ends(0, "down", &[])?;
    let version = format!("openclaw-version={}", stand_in::FIRST);
    rig.up_ends(1, &["--boot", "nothing", "--attr", &version])?;
    rig.shell(FETCH).map(drop)
}

/// Everything that the product made is gone but Docker; the disk is blank.
fn with_a_blank_disk(rig: &Rig) -> Result<()> {
    rig.shell(&format!(
        "set -e
         openclaw-init uninstall 2>&1
         docker image ls --quiet | xargs -r docker image rm --force
         rm -rf /var/lib/openclaw-init
         blkdiscard --force /dev/disk/by-id/google-openclaw-data 2>&1
         {FETCH}"
    ))
    .map(drop)
}

/// The machine comes up again, and nothing of the product's starts by itself.
fn power_cut(rig: &Rig) -> Result<()> {
    rig.lab_ends(1, "reboot", &["--hard"])?.has(&["there is no openclaw-init.service"]).map(drop)
}

/// The gateway is to be published on the other one of two ports.
fn with_another_port(rig: &Rig) -> Result<()> {
    rig.shell("date > /mnt/disks/openclaw-data/openclaw/kept")?;
    let other = if rig.shell("docker port openclaw-gateway")?.ends_with(":18789") { 18790 } else { 18789 };
    rig.attribute(&format!("openclaw-port={other}"))
}
