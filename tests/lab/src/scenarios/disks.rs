//! The data disk through the life of its machines: away and back, with a great many files, on a new machine.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::checks::is_ready;
use super::rig::Rig;
use crate::cloud::content;
use crate::cloud::images::GATEWAY_VERSION;
use crate::host;

pub(super) const TOKEN: &str = "grep ^OPENCLAW_GATEWAY_TOKEN= /home/node/.openclaw/.env";
/// Who the gateway is, and which devices it knows.
pub(super) const IDENTITY: &str = include_str!("../../scripts/disks/show-identity.sh");

/// The disk stage against every kind of disk, in a mount namespace on this machine.
pub(super) fn every_kind_of_disk(rig: &Rig) -> Result<()> {
    host::install(&host::DISK_TOOLS)?;
    ignored_tests(rig, &["--test", "disk", "--", "--test-threads", "1", "--skip", SLOW, "--skip", MORE])?;
    ignored_tests(rig, &["--lib", "--", "--exact", &format!("{PROOF}wherever_it_is")])
}

/// The same with disks that are slow, or fail where they are read.
pub(super) fn slow_and_failing_disks(rig: &Rig) -> Result<()> {
    host::install(&host::DISK_TOOLS)?;
    ignored_tests(rig, &["--test", "disk", SLOW, "--", "--test-threads", "1", "--skip", VAST])
}

/// The test with every format at places where the rest of the corpus is not.
const MORE: &str = "at_more_places";

/// The module of the tests that mostly wait for their disks.
const SLOW: &str = "slow::";

/// The tests of the proof that read holes for minutes, and for longer.
const PROOF: &str = "disk::proof::tests::somebodys_data_is_found_";

/// The test with the largest disk, which takes minutes.
const VAST: &str = "slow::a_vast_disk_is_formatted_after_samples";

/// The proof on a thousand disks of 10 GiB, on 200 of 100 GiB, and on one of 16 TiB; every format at every place.
pub(super) fn data_on_a_thousand_disks(rig: &Rig) -> Result<()> {
    host::install(&host::DISK_TOOLS)?;
    ignored_tests(rig, &["--test", "disk", "--", "--exact", VAST])?;
    ignored_tests(rig, &["--test", "disk", MORE, "--"])?;
    ignored_tests(rig, &["--lib", "--", "--exact", &format!("{PROOF}on_a_thousand_disks")])
}

fn ignored_tests(rig: &Rig, which: &[&str]) -> Result<()> {
    let mut tests = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    tests.args(["test", "--quiet", "--package", "openclaw-init"]).args(which).arg("--ignored");
    let status = rig.watch().status(tests.current_dir(host::workspace()?))?;
    ensure!(status.success(), "the tests {which:?} ended with {status}");
    Ok(())
}

/// One disk: missing for a boot, then full of files, finally on another machine.
pub(super) fn data_disk_outlives_its_machine(rig: &Rig) -> Result<()> {
    rig.up(&[])?;
    is_ready(rig)?;
    let token = rig.shell(TOKEN)?;
    rig.shell("docker exec openclaw-gateway sh -c 'echo kept > /home/node/.openclaw/kept'")?;
    away_and_back(rig).context("a missing disk")?;
    is_the_same_state(rig, &token).context("the disk is back")?;
    many_files_cost_nothing(rig).context("200,000 files")?;

    let identity = rig.script(IDENTITY, &[])?;
    let directory = TempDir::new().context("making a directory for the disk")?;
    let kept = directory.path().join("kept.img");
    let kept = kept.to_str().context("the disk's path is no text")?;
    rig.lab_ends(0, "down", &["--keep-disk", kept])?;
    let successor = rig.beside("data-disk-2")?;
    successor.up(&["--disk", kept])?;
    names_its_machine(&successor)?;
    pulled_by_digest(&successor).context("the image of the new machine")?;
    is_the_same_state(&successor, &token).context("on a new machine")?;
    let now = successor.script(IDENTITY, &[])?;
    ensure!(now == identity, "the gateway's identity or its devices changed from\n{identity}\nto\n{now}");
    Ok(())
}

/// The tag may have been moved since: what the record names is what is asked for.
fn pulled_by_digest(rig: &Rig) -> Result<()> {
    let requests = content::requests(&rig.machine()?.content())?;
    let asked =
        |what: &str| requests.iter().any(|request| request.path.contains(&format!("openclaw/manifests/{what}")));
    ensure!(asked("sha256:") && !asked(GATEWAY_VERSION), "the registry was asked for {requests:?}");
    let digest = rig.shell("grep digest /mnt/disks/openclaw-data/openclaw-init/record.json")?;
    ensure!(digest.contains(&format!("ghcr.io/openclaw/openclaw:{GATEWAY_VERSION}@sha256:")), "recorded is {digest}");
    Ok(())
}

/// The disk's own record says which instance uses it.
fn names_its_machine(rig: &Rig) -> Result<()> {
    let marker = rig.shell("cat /mnt/disks/openclaw-data/openclaw-init/disk.json")?;
    let id = rig.shell("curl -sH Metadata-Flavor:Google http://metadata/computeMetadata/v1/instance/id")?;
    ensure!(marker.contains(&id), "the disk's marker names another instance than {id}: {marker}");
    Ok(())
}

fn away_and_back(rig: &Rig) -> Result<()> {
    let file = rig.machine()?.path("openclaw-data.img");
    let file = file.to_str().context("the disk's path is no text")?;
    rig.lab_ends(0, "disk", &["detach", "openclaw-data"])?;
    let output = rig.lab_ends(1, "reboot", &[])?;
    output.has(&["failed:disk-missing", "the data disk openclaw-data is not attached", "attach-disk"])?;
    rig.boot(12)?;
    let written =
        rig.shell("find /mnt/disks /home/node/.openclaw /var/lib/openclaw-init/data -type f 2> /dev/null || true")?;
    ensure!(written.is_empty(), "on the boot disk there is now:\n{written}");
    let started = rig.shell("docker start openclaw-gateway 2>&1 || true")?;
    ensure!(started.contains("does not exist"), "starting the container says {started}");
    rig.lab_ends(0, "disk", &["attach", "openclaw-data", file])?;
    rig.lab_ends(0, "reboot", &[]).map(drop)
}

fn is_the_same_state(rig: &Rig, token: &str) -> Result<()> {
    is_ready(rig)?;
    ensure!(rig.shell(TOKEN)? == token, "the token changed");
    ensure!(rig.shell("cat /home/node/.openclaw/kept")? == "kept", "a file was lost");
    Ok(())
}

/// Runs that change nothing, by turns with and without 200,000 files in the state directory; each run's ms.
const TURNS: &str = include_str!("../../scripts/disks/time-idle-runs.sh");

fn many_files_cost_nothing(rig: &Rig) -> Result<()> {
    rig.boot(0)?;
    let output = rig.script(TURNS, &[])?;
    let (empty, full) = (times(&output, "aside")?, times(&output, "openclaw/aside")?);
    println!("runs that change nothing, fastest and median in ms: {empty:?}; with 200,000 files {full:?}");
    // Other machines disturb the times. A walk over the files would multiply them.
    ensure!(full.0 <= 1.5 * empty.0, "{full:?} ms instead of {empty:?} ms");
    Ok(())
}

/// The fastest and the median of the times measured at `place`.
fn times(output: &str, place: &str) -> Result<(f64, f64)> {
    let times = output.lines().filter_map(|line| line.strip_prefix(place)?.strip_prefix(' '));
    let mut times: Vec<f64> = times.map(str::parse).collect::<Result<_, _>>()?;
    times.sort_by(f64::total_cmp);
    let at = |index: usize| times.get(index).copied().with_context(|| format!("no times in:\n{output}"));
    Ok((at(0)?, at(times.len() / 2)?))
}
