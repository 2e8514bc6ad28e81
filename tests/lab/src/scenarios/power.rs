//! Power cuts of machines in QEMU, which lose what was not flushed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::random::Random;
use super::rig::Rig;
use super::vm_bench::{COMMAND_LIMIT, VmBench};
use crate::machine::qemu::vm::Writes;

/// How long after the usual time of a boot the power may still be cut.
const AFTER: Duration = Duration::from_secs(10);

/// Three cuts each: in a first boot, in a reboot, while the state moves in.
const ROUNDS: usize = 10;

pub(super) fn state_survives_cuts_at_any_moment(rig: &Rig) -> Result<()> {
    let mut random = Random::new()?;
    let mut bench = VmBench::new(rig, Writes::Volatile)?;
    bench.fresh(true)?;
    let machine = bench.start()?;
    let boot = bench.until_ready()?;
    println!("without a cut, a first boot takes {} s from its init to ready", boot.as_secs());
    let boot = boot + AFTER;
    drop(machine);
    let mut failed = Vec::new();
    for round in 1..=ROUNDS {
        // One that fails does not keep the others from being tried.
        match three_cuts(&mut bench, || random.up_to(boot)) {
            Ok(()) => println!("round {round} of {ROUNDS} passed"),
            Err(error) => {
                println!("round {round}: {error:#}");
                failed.push(round);
            }
        }
    }
    ensure!(failed.is_empty(), "of {ROUNDS} rounds of three cuts these failed: {failed:?}");
    Ok(())
}

fn three_cuts(bench: &mut VmBench, mut moment: impl FnMut() -> Duration) -> Result<()> {
    bench.fresh(true)?;
    let machine = bench.start()?;
    bench.until_init()?;
    let machine = bench.cut(machine, moment()).context("a cut in the first boot")?;
    machine.reboot()?;
    let machine = bench.cut(machine, moment()).context("a cut in a reboot")?;
    machine.cut()?;

    bench.fresh(false)?;
    let machine = bench.start()?;
    bench.until_ready().context("on the boot disk")?;
    machine.stop(COMMAND_LIMIT)?;
    bench.attach()?;
    let machine = bench.start()?;
    bench.until_init()?;
    let machine = bench.cut(machine, moment()).context("a cut while moving in")?;
    let place = machine.shell("findmnt -no TARGET /mnt/disks/openclaw-data", COMMAND_LIMIT);
    place.context("the state did not move")?;
    machine.cut()
}
