//! cloud-init as the way in, alone and beside a startup script; carriers of other versions, at other times.

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::pages::Block;
use super::readme::Reader;
use super::rig::Rig;
use crate::product::LOADER;

const INSTALLED: &str = "sha256sum < /usr/local/bin/openclaw-init";
/// Which run of the unit it is.
const RUN: &str = "systemctl show --property=InvocationID openclaw-init.service";
/// Waits for both carriers of a boot: the later one comes after the target that waits for the earlier.
const CARRIERS_END: &str = "cloud-init status --wait";

pub(super) fn boots_and_other_carriers(rig: &Rig) -> Result<()> {
    Reader::of(rig)?.pastes(&[Block::Upload, Block::CloudInitWay, Block::Wait])?;
    is_ready(rig)?;
    cloud_init_is_content(rig, 1)?;
    rig.lab_ends(0, "reboot", &[])?;
    is_ready(rig).context("after a reboot")?;

    rig.attribute(&format!("startup-script={LOADER}"))?;
    rig.lab_ends(0, "reboot", &["--hard"])?;
    cloud_init_is_content(rig, 2).context("beside a startup script")?;
    is_ready(rig)?;
    one_result(rig)?;
    carriers_during_a_run(rig).context("carriers during a run")?;
    carriers_of_other_versions(rig).context("carriers of other versions")
}

/// The user-data is valid, the last stage ended well, and every one of the carriers told the result of the one run.
fn cloud_init_is_content(rig: &Rig, carriers: usize) -> Result<()> {
    let output = rig.shell(CARRIERS_END)?;
    ensure!(output.contains("status: done"), "cloud-init says {output}");
    rig.shell("cloud-init schema --system")?;
    let results = rig.shell("journalctl -b -o cat | grep result=")?;
    let ready = results.lines().filter(|line| line.contains("result=ready")).count();
    ensure!(ready == results.lines().count() && ready == carriers + 1, "run and carriers say {results}");
    let cycles = rig.shell("journalctl -b | grep -i 'ordering cycle' || true")?;
    ensure!(cycles.is_empty(), "systemd says {cycles}");
    Ok(())
}

fn one_result(rig: &Rig) -> Result<()> {
    let writes = rig.writes()?;
    let start = writes.iter().rposition(|write| write == "DELETE result").context("result was not deleted")?;
    let results = writes[start..].iter().filter(|write| *write == "PUT result").count();
    ensure!(results == 1, "{results} results: {writes:?}");
    Ok(())
}

/// Two carriers of the same version follow the run that is in progress; they start none.
fn carriers_during_a_run(rig: &Rig) -> Result<()> {
    rig.lab_ends(0, "metadata", &["fault", "delay=5s,times=1"])?;
    rig.shell("systemctl restart --no-block openclaw-init.service; sleep 1")?;
    let run = rig.shell(RUN)?;
    let output = rig.shell("openclaw-init > /root/first 2>&1 & openclaw-init 2>&1; wait; cat /root/first")?;
    ensure!(output.matches("result=ready").count() == 2, "the carriers say {output}");
    ensure!(rig.shell(RUN)? == run, "a carrier started another run");
    Ok(())
}

/// The carrier's version wins, also downwards, and never in the middle of a run.
fn carriers_of_other_versions(rig: &Rig) -> Result<()> {
    std::fs::copy(rig.newer_binary(), rig.machine()?.files().join("newer"))?;
    rig.shell("cp /usr/local/bin/openclaw-init /root/older")?;
    rig.shell("curl -sfo /root/newer http://198.18.0.4/newer && chmod +x /root/newer")?;
    rig.lab_ends(0, "metadata", &["fault", "delay=5s,times=1"])?;
    rig.shell("systemctl restart --no-block openclaw-init.service; sleep 1")?;
    let output = rig.shell("/root/newer 2>&1")?;
    ensure!(output.contains("waiting for the run of the previous version"), "it did not wait: {output}");
    for version in ["newer", "older"] {
        let output = rig.shell(&format!("/root/{version} 2>&1"))?;
        ensure!(output.contains("result=ready"), "the {version} says {output}");
        ensure!(rig.shell(INSTALLED)? == rig.shell(&format!("sha256sum < /root/{version}"))?, "not the {version} one");
        is_ready(rig).with_context(|| format!("with the {version} one"))?;
    }
    Ok(())
}
