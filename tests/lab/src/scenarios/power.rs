//! Power cuts of machines in QEMU, which lose what was not flushed.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::rig::Rig;
use super::vm_bench::{COMMAND_LIMIT, VmBench};
use crate::machine::qemu::vm::Writes;

/// How long after the usual time of a boot the power may still be cut.
const AFTER: Duration = Duration::from_secs(10);

/// Three cuts each: in a first boot, in a reboot, while the state moves in.
const ROUNDS: usize = 10;
/// Names the seed of the random moments, to see the same ones again.
const SEED: &str = "OPENCLAW_LAB_SEED";

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

/// Random moments that can be seen again: the generator `SplitMix64`.
struct Random(u64);

impl Random {
    fn new() -> Result<Self> {
        let seed = match env::var(SEED) {
            Ok(seed) => seed.parse().with_context(|| format!("reading {SEED}"))?,
            Err(_) => u64::try_from(jiff::Timestamp::now().as_microsecond()).context("the clock is out of range")?,
        };
        println!("{SEED}={seed}");
        Ok(Self(seed))
    }

    fn up_to(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        limit.mul_f64(f64::from(u32::try_from(mixed >> 32).unwrap_or(0)) / f64::from(u32::MAX))
    }
}
