//! A machine that began on its boot disk gets a data disk.

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::disks::{IDENTITY, TOKEN};
use super::rig::Rig;

/// Files that a plain copy would not bring along.
const ODD: &str = r"
mkdir -p /home/node/.openclaw/odd/inner && cd /home/node/.openclaw/odd
echo private > private && chmod 600 private && chown 1000:1000 private
echo program > program && chown 1000:1001 program && chmod 6755 program
ln private inner/same && ln -s /etc/shadow absolute && ln -s nowhere dangling && ln -s loop loop
truncate -s 1G hole && printf x >> hole && setfattr -n user.kept -v yes private 2> /dev/null
touch -d '2001-02-03 04:05:06.789' private && touch -h -d '2002-03-04' dangling
chown -R --no-dereference 1000:1000 inner && touch -d '2003-04-05' inner .
";

/// What they are: names, kinds, owners, modes, numbers of links, targets, times, sizes, blocks, content.
const LISTED: &str = r"
cd /home/node/.openclaw/odd && find . -printf '%P %y %U:%G %m %n %l %T@ %s\n' | sort
du hole | cut -f 1; sha256sum private program inner/same
";

/// Between any two of its steps the move is cut, and the next run goes on from there.
const CUTS: [&str; 6] = ["intended", "parked", "copied", "verified", "switched", "kept"];

const FORMER: &str = "/var/lib/openclaw-init/data.moved-to-openclaw-data-*";

pub(super) fn state_moves_to_a_data_disk(rig: &Rig) -> Result<()> {
    rig.up(&["--disk", "none"])?;
    is_ready(rig)?;
    let token = rig.shell(TOKEN)?;
    let identity = rig.shell(IDENTITY)?;
    rig.shell(ODD)?;
    let listed = rig.shell(LISTED)?;

    rig.lab_ends(0, "disk", &["attach", "openclaw-data", "2G"])?;
    too_small(rig).context("a disk that is too small")?;
    for cut in CUTS {
        let ended = rig.shell(&format!("OPENCLAW_INIT_CUT=move.{cut} openclaw-init boot > /tmp/run 2>&1; echo $?"))?;
        ensure!(ended == "137", "cut at move.{cut}, it ended with {ended}:\n{}", rig.shell("cat /tmp/run")?);
        let running = rig.shell("docker ps --quiet --filter name=openclaw-gateway")?;
        ensure!(running.is_empty() || cut == "intended", "the gateway runs after the cut at move.{cut}");
    }
    rig.boot(0)?;
    is_the_same(rig, &token, &identity, &listed)?;
    ensure!(
        rig.shell(&format!("ls {FORMER}/openclaw/odd/private"))?.lines().count() == 1,
        "the former copy is not kept"
    );
    rig.boot(0)?.has(&["stage=move status=ok changes=0", "changes=0 ms="])?;
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
    let now = rig.shell(IDENTITY)?;
    ensure!(now == identity, "the gateway's identity or its devices changed from\n{identity}\nto\n{now}");
    let now = rig.shell(LISTED)?;
    ensure!(now == listed, "the files were\n{listed}\nand are\n{now}");
    Ok(())
}

/// A state on the boot disk that no move of ours explains.
fn two_states(rig: &Rig) -> Result<()> {
    rig.shell(&format!("mv {FORMER} /var/lib/openclaw-init/data"))?;
    let said = rig.boot(16)?;
    said.has(&["/var/lib/openclaw-init/data/openclaw, last used 2", "/mnt/disks/openclaw-data/openclaw, last used 2"])?;
    rig.shell("mv /var/lib/openclaw-init/data /var/lib/openclaw-init/data.old")?;
    rig.boot(0)?;
    is_ready(rig)
}
