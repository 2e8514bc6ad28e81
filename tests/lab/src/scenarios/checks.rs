//! What more than one scenario expects of a machine.

use anyhow::{Context, Result, ensure};

use super::rig::Rig;
use crate::host;

/// The most memory that a run may ever need, in KiB.
pub(super) const PEAK_MEMORY_KIB: u64 = 20 * 1024;

pub(super) fn is_ready(rig: &Rig) -> Result<()> {
    let attributes = rig.guest_attributes()?;
    ensure!(attributes["state"] == "ready" && attributes["result"] == "ready", "not ready: {attributes}");
    ensure!(attributes["version"] == "2026.9.6", "wrong version: {attributes}");
    let boot_id = rig.shell("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(attributes["boot-id"] == boot_id.as_str(), "boot id {boot_id} is not in {attributes}");
    let probe = rig.shell("curl -s http://127.0.0.1:18789/readyz")?;
    ensure!(probe.contains("\"ready\":true"), "readyz says {probe}");
    Ok(())
}

/// What the last run needed. Programs that are not optimised may need more.
pub(super) fn needs_little_memory(rig: &Rig) -> Result<()> {
    let peak = rig.status()?["peak-memory-kib"].as_u64().context("the peak memory is missing")?;
    ensure!(host::profile() != "release" || (1..=PEAK_MEMORY_KIB).contains(&peak), "it needed {peak} KiB of memory");
    Ok(())
}

pub(super) fn units_are_valid(rig: &Rig) -> Result<()> {
    let units = "openclaw-init.service openclaw-gateway-stop.service openclaw-watch.service";
    let output = rig.shell(&format!("systemd-analyze verify {units} 2>&1 | grep openclaw || true"))?;
    ensure!(output.is_empty(), "systemd-analyze verify says {output}");
    rig.shell(&format!("systemctl is-enabled {units}")).map(|_| ())
}
