//! `cargo lab bench`: this program beside what an expert does by hand, on equal machines, by turns.
//!
//! A time says little on a machine that others use. The ratio of two that were measured by turns says more.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::rig::{Binaries, Rig};
use crate::cli::Comparison;
use crate::cloud::network::STORAGE;
use crate::machine;
use crate::product::{BINARY, BOOT_HERE};
use crate::watch::Watch;

const IMAGE: &str = "ghcr.io/openclaw/openclaw:2026.9.6";
const EXPERT: &str = include_str!("../../scripts/bench/expert.sh");
const PROGRAM: &str = include_str!("../../scripts/bench/program.sh");
const COMPOSE: &str = include_str!("../../scripts/bench/compose.sh");
const TIME: &str = include_str!("../../scripts/bench/time.sh");

/// The gateway serves.
const IS_READY: &str = "curl -fsS -m 5 http://127.0.0.1:18789/readyz | grep -q '\"ready\":true'";
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// No machine takes longer, busy as it may be.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// What one way took, round by round.
#[derive(Debug, Default)]
struct Times(Vec<Duration>);

/// Compares the two ways as often as wanted. Prints what each round took; returns all of it.
pub(crate) fn compare(comparison: Comparison, rounds: usize) -> Result<Value> {
    let (binaries, watch) = (Arc::new(Binaries::build()?), Arc::new(Watch::default()));
    let rig = |name| Rig::new(name, &binaries, &watch);
    let (ours, theirs) = (rig("bench-program")?, rig("bench-expert")?);
    let ways = [(&ours, Way::Program), (&theirs, Way::Expert)];
    let mut times = [Times::default(), Times::default()];
    if comparison != Comparison::FirstBoot {
        for (rig, way) in ways {
            way.first_boot(rig)?;
        }
    }
    if comparison == Comparison::Idle {
        theirs.script(COMPOSE, &[IMAGE]).context("handing the gateway to Compose")?;
        until_ready(&theirs)?;
    }
    for round in 1..=rounds {
        // Who comes second finds the machine's caches warmer.
        let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
        for index in order {
            let (rig, way) = ways[index];
            let took = match comparison {
                Comparison::FirstBoot => way.first_boot(rig)?,
                Comparison::Reboot => reboot(rig)?,
                Comparison::Idle => way.idle(rig)?,
            };
            println!("round {round}: {} {:.3} s", way.name(), took.as_secs_f64());
            times[index].0.push(took);
        }
    }
    let [ours, theirs] = times;
    ours.beside(&theirs, comparison)
}

/// Who brings the gateway up.
#[derive(Debug, Clone, Copy)]
enum Way {
    Program,
    Expert,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Program => "openclaw-init",
            Self::Expert => "expert",
        }
    }

    /// From a bare machine that has booted to a gateway that serves.
    fn first_boot(self, rig: &Rig) -> Result<Duration> {
        rig.lab_ends(0, "down", &[])?;
        rig.up_ends(1, &["--boot", "nothing"])?;
        let begun = Instant::now();
        match self {
            Self::Program => rig.script(PROGRAM, &[&format!("http://{STORAGE}/{BINARY}")])?,
            Self::Expert => rig.script(EXPERT, &[IMAGE])?,
        };
        until_ready(rig)?;
        Ok(begun.elapsed())
    }

    /// One more time with nothing to do; the median of several.
    fn idle(self, rig: &Rig) -> Result<Duration> {
        let command = match self {
            Self::Program => BOOT_HERE,
            Self::Expert => "docker compose --file /root/compose.yaml up --detach",
        };
        let printed = rig.script(TIME, &[command])?;
        let times = printed.lines().map(|line| Ok(Duration::from_nanos(line.parse()?))).collect::<Result<_>>();
        Times(times.with_context(|| format!("reading {printed}"))?).median()
    }
}

/// From the moment in which the power is back after a cut.
fn reboot(rig: &Rig) -> Result<Duration> {
    let lab = rig.machine()?;
    machine::cut(&lab)?;
    let begun = Instant::now();
    machine::start(&lab)?;
    until_ready(rig)?;
    let took = begun.elapsed();
    // What the machine does besides is over when the next one is measured.
    thread::sleep(Duration::from_secs(10));
    Ok(took)
}

fn until_ready(rig: &Rig) -> Result<()> {
    let begun = Instant::now();
    while rig.lab("exec", &["--", "sh", "-c", IS_READY])?.code != 0 {
        ensure!(begun.elapsed() < DEADLINE, "no gateway serves after {} min", DEADLINE.as_secs() / 60);
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}

impl Times {
    fn median(&self) -> Result<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied().context("nothing was measured")
    }

    fn figures(&self) -> Result<Value> {
        let seconds: Vec<f64> = self.0.iter().map(Duration::as_secs_f64).collect();
        let (least, most) = (self.0.iter().min(), self.0.iter().max());
        Ok(json!({
            "median": self.median()?.as_secs_f64(),
            "min": least.map(Duration::as_secs_f64),
            "max": most.map(Duration::as_secs_f64),
            "rounds": seconds,
        }))
    }

    fn beside(&self, theirs: &Self, comparison: Comparison) -> Result<Value> {
        let ratio = self.median()?.as_secs_f64() / theirs.median()?.as_secs_f64();
        Ok(json!({
            "comparison": format!("{comparison:?}"),
            "seconds": { Way::Program.name(): self.figures()?, Way::Expert.name(): theirs.figures()? },
            "ratio": ratio,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(seconds: &[u64]) -> Times {
        Times(seconds.iter().copied().map(Duration::from_secs).collect())
    }

    #[test]
    fn medians_are_compared() -> Result<()> {
        let told = times(&[9, 1, 3]).beside(&times(&[12, 2, 6]), Comparison::Idle)?;
        assert_eq!((&told["ratio"], &told["comparison"]), (&json!(0.5), &json!("Idle")));
        assert_eq!(
            told["seconds"]["expert"],
            json!({"median": 6.0, "min": 2.0, "max": 12.0, "rounds": [12.0, 2.0, 6.0]})
        );
        assert!(times(&[]).beside(&times(&[1]), Comparison::Idle).is_err());
        Ok(())
    }
}
