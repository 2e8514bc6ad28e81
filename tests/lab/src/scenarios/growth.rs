//! A data disk in QEMU, with a kernel that tells of its new size, is enlarged under the running gateway.

use anyhow::{Result, ensure};

use super::bench::{Bench, COMMAND_LIMIT, DATA_DISK, GIB};
use super::rig::Rig;
use crate::qemu::machine::Writes;
use crate::size::Size;

pub(super) fn data_disk_grows_while_it_is_used(rig: &Rig) -> Result<()> {
    const CONTAINER: &str = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' openclaw-gateway";
    const CAPACITY: &str = "df --output=size -BM /mnt/disks/openclaw-data | tail -1 | tr -dc 0-9";
    let mut bench = Bench::new(rig, Writes::Kept)?;
    bench.fresh(true)?;
    let machine = bench.start()?;
    bench.until_ready()?;
    let shell = |line| machine.shell(line, COMMAND_LIMIT);
    let (container, before) = (shell(CONTAINER)?, shell(CAPACITY)?);
    machine.resize(DATA_DISK, Size(20 * GIB))?;
    let said = shell("openclaw-init boot 2>&1")?;
    ensure!(said.contains("stage=disk status=ok changes=1") && said.contains("result=ready"), "the run says {said}");
    let (before, after): (u64, u64) = (before.parse()?, shell(CAPACITY)?.parse()?);
    ensure!(before < 10 * 1024 && after > 19 * 1024, "from {before} MiB it grew to {after} MiB");
    ensure!(shell(CONTAINER)? == container, "the gateway was touched");
    println!("{DATA_DISK} grew from {before} to {after} MiB under the running gateway");
    let again = shell("openclaw-init boot 2>&1")?;
    ensure!(again.contains("result=ready") && again.contains("changes=0"), "the next run says {again}");
    machine.stop(COMMAND_LIMIT)
}
