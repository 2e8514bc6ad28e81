//! A small machine that began on its boot disk gets a data disk.

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::disks::{IDENTITY, TOKEN};
use super::pages::Block;
use super::readme::Reader;
use super::rig::Rig;
use super::sources::is_small;
use crate::product::{BOOT_HERE, FAILPOINT};

/// Makes files that a plain copy would not bring along.
const ODD: &str = include_str!("../../scripts/moving/make-odd-files.sh");

/// What they are.
const LISTED: &str = include_str!("../../scripts/moving/list-odd-files.sh");

/// Between any two of its steps the move is cut, and the next run goes on from there.
const CUTS: [&str; 6] = ["begun", "staged", "copied", "verified", "switched", "kept"];

const FORMER: &str = "/var/lib/openclaw-init/data.moved-to-openclaw-data-*";

pub(super) fn state_moves_to_a_data_disk(rig: &Rig) -> Result<()> {
    rig.up(&["--disk", "none", "--memory", "2G", "--boot-disk", "10G"])?;
    is_ready(rig)?;
    is_small(rig)?;
    let token = rig.shell(TOKEN)?;
    let identity = rig.script(IDENTITY, &[])?;
    rig.script(ODD, &[])?;
    let listed = rig.script(LISTED, &[])?;

    rig.lab_ends(0, "disk", &["attach", "openclaw-data", "2G"])?;
    too_small(rig).context("a disk that is too small")?;
    // A run has made a file system on it before it saw how small it is: what `disk-foreign` says is typed.
    rig.shell("umount /mnt/disks/openclaw-data && rm /var/lib/openclaw-init/data-disk.json")?;
    rig.lab_ends(0, "disk", &["detach", "openclaw-data"])?;
    let (reader, move_in) = (Reader::of(rig)?, Block::MoveIn.text()?);
    let (attach, _) = move_in.split_once("gcloud compute ssh").context("the block does not end with a run")?;
    reader.does(attach.trim_end().trim_end_matches("&&"))?;
    for cut in CUTS {
        let ended = rig.shell(&format!("{FAILPOINT}=state.relocate.{cut} {BOOT_HERE} > /tmp/run 2>&1; echo $?"))?;
        ensure!(ended == "137", "cut at {cut}, it ended with {ended}:\n{}", rig.shell("cat /tmp/run")?);
        let running = rig.shell("docker ps --quiet --filter name=openclaw-gateway")?;
        ensure!(running.is_empty() || cut == "begun", "the gateway runs after the cut at {cut}");
    }
    reader.pastes(&[Block::MoveIn])?;
    is_the_same(rig, &token, &identity, &listed)?;
    ensure!(
        rig.shell(&format!("ls {FORMER}/openclaw/odd/private"))?.lines().count() == 1,
        "the former copy is not kept"
    );
    rig.boot(0)?.has(&["stage=state status=ok changes=0", "changes=0 ms="])?;
    rig.lab_ends(0, "reboot", &[])?;
    is_the_same(rig, &token, &identity, &listed).context("after a reboot")?;
    two_states(rig).context("state on both disks")
}

/// The gateway goes on running.
fn too_small(rig: &Rig) -> Result<()> {
    rig.shell("fallocate -l 2G /var/lib/openclaw-init/data/openclaw/large")?;
    rig.boot(24)?.has(&["gcloud compute disks resize openclaw-data", "openclaw-data-disk=none"])?;
    rig.shell(
        "docker ps --quiet --filter name=openclaw-gateway | grep -q . && rm /var/lib/openclaw-init/data/openclaw/large",
    )
    .map(drop)
}

fn is_the_same(rig: &Rig, token: &str, identity: &str, listed: &str) -> Result<()> {
    is_ready(rig)?;
    let mounts = rig.shell("docker inspect --format '{{json .Mounts}}' openclaw-gateway")?;
    ensure!(mounts.contains("/mnt/disks/openclaw-data/openclaw\""), "the container has {mounts}");
    ensure!(rig.shell("findmnt -no FSTYPE /home/node/.openclaw")? == "ext4", "people do not see the data disk");
    ensure!(rig.shell(TOKEN)? == token, "the token changed");
    let now = rig.script(IDENTITY, &[])?;
    ensure!(now == identity, "the gateway's identity or its devices changed from\n{identity}\nto\n{now}");
    let now = rig.script(LISTED, &[])?;
    ensure!(now == listed, "the files were\n{listed}\nand are\n{now}");
    Ok(())
}

/// A state on the boot disk that no move of ours explains.
fn two_states(rig: &Rig) -> Result<()> {
    rig.shell(&format!("mv {FORMER} /var/lib/openclaw-init/data"))?;
    let output = rig.boot(16)?;
    output.has(&[
        "/var/lib/openclaw-init/data/openclaw, last used 2",
        "/mnt/disks/openclaw-data/openclaw, last used 2",
    ])?;
    rig.shell("mv /var/lib/openclaw-init/data /var/lib/openclaw-init/data.old")?;
    rig.boot(0)?;
    is_ready(rig)
}
