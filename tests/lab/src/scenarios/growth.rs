//! What needs a kernel of its own, in QEMU: a data disk that is enlarged under the running gateway, and swap.

use anyhow::{Result, ensure};

use super::rig::Rig;
use super::vm_bench::{COMMAND_LIMIT, GIB, VmBench};
use crate::machine::qemu::vm::{Vm, Writes};
use crate::product::{BOOT_HERE, DATA_DISK};
use crate::size::Size;

pub(super) fn data_disk_grows_while_it_is_used(rig: &Rig) -> Result<()> {
    const CONTAINER: &str = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' openclaw-gateway";
    const CAPACITY: &str = "df --output=size -BM /mnt/disks/openclaw-data | tail -1 | tr -dc 0-9";
    let mut bench = VmBench::new(rig, Writes::Kept)?;
    bench.fresh(true)?;
    let machine = bench.start()?;
    bench.until_ready()?;
    let shell = |line: &str| machine.shell(line, COMMAND_LIMIT);
    let (container, before) = (shell(CONTAINER)?, shell(CAPACITY)?);
    machine.resize(DATA_DISK, Size(20 * GIB))?;
    let printed = shell(&format!("{BOOT_HERE} 2>&1"))?;
    ensure!(
        printed.contains("stage=disk status=ok changes=1") && printed.contains("result=ready"),
        "the run says {printed}"
    );
    let (before, after): (u64, u64) = (before.parse()?, shell(CAPACITY)?.parse()?);
    ensure!(before < 10 * 1024 && after > 19 * 1024, "from {before} MiB it grew to {after} MiB");
    ensure!(shell(CONTAINER)? == container, "the gateway was touched");
    println!("{DATA_DISK} grew from {before} to {after} MiB under the running gateway");
    let again = shell(&format!("{BOOT_HERE} 2>&1"))?;
    ensure!(again.contains("result=ready") && again.contains("changes=0"), "the next run says {again}");
    swap_comes_and_goes(&bench, &machine)?;
    machine.stop(COMMAND_LIMIT)
}

/// A machine with less than 4 GiB of memory has made its swap at the first boot.
fn swap_comes_and_goes(bench: &VmBench, machine: &Vm) -> Result<()> {
    const AREAS: &str = "swapon --noheadings --bytes --show=NAME,SIZE; stat --format=%a%u /var/lib/openclaw-init/swap";
    let areas = || machine.shell(AREAS, COMMAND_LIMIT);
    let run = || machine.shell(&format!("{BOOT_HERE} 2>&1"), COMMAND_LIMIT);
    let automatic = areas()?;
    ensure!(
        automatic.starts_with("/var/lib/openclaw-init/swap ") && automatic.ends_with("\n6000"),
        "it has {automatic}"
    );
    bench.attribute("openclaw-swap", "256M")?;
    let printed = run()?;
    ensure!(printed.contains("stage=swap status=ok") && printed.contains("result=ready"), "the run says {printed}");
    // The first page of the file is its header.
    let chosen = areas()?;
    let size = (256 << 20) - 4096;
    ensure!(chosen == format!("/var/lib/openclaw-init/swap {size}\n6000"), "it has {chosen}");
    println!("swap: {automatic:?}, then {chosen:?}");
    bench.attribute("openclaw-swap", "off")?;
    run()?;
    let none = machine.shell("swapon --noheadings; ls /var/lib/openclaw-init", COMMAND_LIMIT)?;
    ensure!(!none.contains("swap"), "it still has {none}");
    let again = run()?;
    ensure!(again.contains("result=ready") && again.contains("changes=0"), "the next run says {again}");
    Ok(())
}
