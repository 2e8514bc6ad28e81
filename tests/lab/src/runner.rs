//! `cargo lab test`: the project's tests in tiers, and one line per test at the end.
//!
//! `libtest-mimic` selects the tests and runs them. What people see is printed here: a test of this size tells when it
//! begins, and says at once why it failed.

mod fuzz;
mod junit;
mod limit;

use std::env;
use std::ffi::OsString;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::cli::{Tests, Tier};
use crate::host;
use crate::scenarios::{Binaries, GATE, LIGHT, LONG, Rig, Scenario};
use crate::watch::Watch;

/// Machines that boot at the same time, beside what mostly waits; more would only wait for the two cores that a gate
/// has.
const SIDE_BY_SIDE: usize = 3;

/// Parts of the hermetic tier at the same time: tests wait now and then, and what fuzzes has a build of its own. cargo
/// sees to it that builds in one directory are one after the other.
const PARTS_SIDE_BY_SIDE: usize = 2;

/// For one part of the hermetic tier, which may have to build everything.
const PART_TIME_LIMIT: Duration = Duration::from_secs(60 * 60);
/// For one scenario. The whole gate takes less.
const SCENARIO_TIME_LIMIT: Duration = Duration::from_secs(45 * 60);
/// For one of the long scenarios: a sweep over every failpoint takes hours.
const LONG_TIME_LIMIT: Duration = Duration::from_secs(8 * 60 * 60);

/// A part of the hermetic tier.
struct Part {
    name: &'static str,
    work: Work,
}

enum Work {
    /// A command of cargo's: its arguments and its environment.
    Cargo(&'static [&'static str], &'static [(&'static str, &'static str)]),
    /// What takes longer under `--long`.
    Own(fn(&Arc<Watch>, bool) -> Result<()>),
}

/// The parts that need neither root nor network, in the order in which they begin.
#[rustfmt::skip]
const HERMETIC: [Part; 6] = [
    Part { name: "format", work: Work::Cargo(&["fmt", "--all", "--check"], &[]) },
    Part { name: "lints", work: Work::Cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]) },
    Part { name: "tests", work: Work::Cargo(&["test", "--workspace"], &[]) },
    Part { name: "docs", work: Work::Cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"], &[("RUSTDOCFLAGS", "-D warnings")]) },
    Part { name: LICENCES, work: Work::Cargo(&["deny", "--locked", "check", "bans", "licenses", "sources"], &[]) },
    Part { name: "fuzz", work: Work::Own(fuzz::run) },
];

/// The part that needs a program which cargo does not bring: `cargo install --locked cargo-deny`.
const LICENCES: &str = "licences";

/// A test that was run.
#[derive(Debug)]
struct Outcome {
    tier: &'static str,
    name: &'static str,
    took: Duration,
    /// Why it failed, if it did.
    failure: Option<String>,
}

/// What was run so far, shared with the tests that run.
#[derive(Debug, Clone, Default)]
struct Outcomes(Arc<Mutex<Vec<Outcome>>>);

/// Runs the selected tests. Returns whether all passed; an error means that they could not be run.
pub fn run(options: &Tests) -> Result<bool> {
    let mut parts = if options.tier == Some(Tier::Machine) { Vec::new() } else { parts(options) };
    let scenarios = if options.tier == Some(Tier::Hermetic) { Vec::new() } else { scenarios(options)? };
    if options.list {
        let names = parts.iter().map(|part| part.name).chain(scenarios.iter().map(|(scenario, _)| scenario.0));
        let list = Arguments { list: true, ..Arguments::default() };
        drop(libtest_mimic::run(&list, names.map(|name| Trial::test(name, || Ok(()))).collect()));
        return Ok(true);
    }
    let wanted = parts.len();
    parts.retain(|part| part.name != LICENCES || has_cargo_deny());
    let skipped = wanted - parts.len();
    let outcomes = Outcomes::default();
    let trials = parts.into_iter().map(|part| outcomes.part(part, options)).collect();
    // The linker works on one core, beside these parts.
    let build = (!scenarios.is_empty()).then(|| thread::spawn(host::binary));
    // The outcomes tell more than what it concludes.
    drop(libtest_mimic::run(&silent(PARTS_SIDE_BY_SIDE), trials));
    if let Some(build) = build {
        build.join().map_err(|_| anyhow!("the build ended in a panic"))??;
        host::require_root()?;
        host::install_tools()?;
        let binaries = Arc::new(Binaries::build()?);
        let is_light = |(scenario, _): &(&Scenario, _)| LIGHT.iter().any(|light| light.0 == scenario.0);
        let (light, heavy): (Vec<_>, Vec<_>) = scenarios.into_iter().partition(is_light);
        thread::scope(|scope| {
            for (scenarios, side_by_side) in [(light, 1), (heavy, SIDE_BY_SIDE)] {
                let trials =
                    scenarios.into_iter().map(|(scenario, limit)| outcomes.scenario(scenario, limit, &binaries));
                let trials = trials.collect();
                scope.spawn(move || drop(libtest_mimic::run(&silent(side_by_side), trials)));
            }
        });
    }
    let outcomes = outcomes.0.lock().unwrap_or_else(PoisonError::into_inner);
    options.junit.as_deref().map_or(Ok(()), |file| junit::write(file, &outcomes))?;
    Ok(summary(&outcomes, skipped))
}

fn has_cargo_deny() -> bool {
    let found = Command::new(cargo()).args(["deny", "--version"]).output().is_ok_and(|asked| asked.status.success());
    if !found {
        println!("{LICENCES}: SKIPPED, there is no cargo-deny (cargo install --locked cargo-deny)");
    }
    found
}

fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The selected parts of the hermetic tier: all but those that are left out. A filter is for scenarios, unless this
/// tier alone is wanted.
fn parts(options: &Tests) -> Vec<&'static Part> {
    let filter = options.only.clone().filter(|_| options.tier == Some(Tier::Hermetic));
    let arguments = Arguments { filter, skip: options.skip.clone(), exact: options.exact, ..Arguments::default() };
    HERMETIC.iter().filter(|part| is_selected(&arguments, part.name)).collect()
}

/// The selected scenarios with their time limits, the long ones only if they are wanted.
fn scenarios(options: &Tests) -> Result<Vec<(&'static Scenario, Duration)>> {
    let arguments = Arguments {
        filter: options.only.clone(),
        skip: options.skip.clone(),
        exact: options.exact,
        ..Arguments::default()
    };
    let long = if options.long { LONG } else { &[] };
    let long = long.iter().map(|scenario| (scenario, LONG_TIME_LIMIT));
    let gate = GATE.iter().chain(LIGHT);
    let all = long.chain(gate.map(|scenario| (scenario, SCENARIO_TIME_LIMIT)));
    let all = all.map(|(scenario, limit)| (scenario, options.time_limit.unwrap_or(limit)));
    let selected: Vec<_> = all.filter(|(scenario, _)| is_selected(&arguments, scenario.0)).collect();
    let only = options.only.as_deref().unwrap_or_default();
    ensure!(!selected.is_empty(), "no scenario has {only} in its name (`--long` adds some)");
    Ok(selected)
}

fn is_selected(arguments: &Arguments, name: &str) -> bool {
    !arguments.is_filtered_out(&Trial::test(name, || Ok(())))
}

/// Runs tests on `threads` threads, and prints nothing.
fn silent(threads: usize) -> Arguments {
    Arguments { test_threads: Some(threads), logfile: Some("/dev/null".to_owned()), ..Arguments::default() }
}

impl Outcomes {
    fn part(&self, part: &'static Part, options: &Tests) -> Trial {
        let (long, limit) = (options.long, options.time_limit.unwrap_or(PART_TIME_LIMIT));
        self.trial("hermetic", part.name, limit, move |watch| match part.work {
            Work::Own(work) => work(watch, long),
            Work::Cargo(arguments, environment) => {
                let mut cargo = Command::new(cargo());
                cargo.args(arguments).envs(environment.iter().copied()).current_dir(host::workspace()?);
                let status = watch.status(&mut cargo)?;
                ensure!(status.success(), "cargo {} ended with {status}", arguments.join(" "));
                Ok(())
            }
        })
    }

    fn scenario(&self, scenario: &'static Scenario, limit: Duration, binaries: &Arc<Binaries>) -> Trial {
        let (name, work) = *scenario;
        let binaries = Arc::clone(binaries);
        self.trial("machine", name, limit, move |watch| work(&Rig::new(name, &binaries, watch)?))
    }

    /// A failure is printed where it happens, and does not keep later tests from running.
    fn trial(
        &self,
        tier: &'static str,
        name: &'static str,
        limit: Duration,
        work: impl FnOnce(&Arc<Watch>) -> Result<()> + Send + 'static,
    ) -> Trial {
        let outcomes = self.clone();
        Trial::test(name, move || {
            println!("== {name}");
            let start = Instant::now();
            let failure = limit::within(limit, work).err().map(|error| format!("{error:#}"));
            let took = start.elapsed();
            match &failure {
                None => println!("{name}: ok ({} s)", took.as_secs()),
                Some(failure) => println!("{name}: FAILED ({} s): {failure}", took.as_secs()),
            }
            let result = failure.clone().map_or(Ok(()), |failure| Err(Failed::from(failure)));
            let outcome = Outcome { tier, name, took, failure };
            outcomes.0.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
            result
        })
    }
}

/// Why tests failed is said again, beside each other. The last line stands alone: `N passed, N failed`, and what was
/// skipped, if anything was.
fn summary(outcomes: &[Outcome], skipped: usize) -> bool {
    println!();
    for outcome in outcomes {
        let verdict = if outcome.failure.is_none() { "ok    " } else { "FAILED" };
        println!("{verdict} {:>7.1} s  {}", outcome.took.as_secs_f32(), outcome.name);
    }
    for (outcome, failure) in outcomes.iter().filter_map(|outcome| Some((outcome, outcome.failure.as_ref()?))) {
        println!("\n{}: {failure}", outcome.name);
    }
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    println!("{} passed, {failed} failed{skipped}", outcomes.len() - failed);
    failed == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use clap::Parser as _;

    use super::*;
    use crate::cli::{Action, Cli};

    fn options(line: &str) -> Tests {
        match Cli::parse_from(line.split(' ')).action {
            Action::Test(options) => options,
            _ => unreachable!("{line} is another command"),
        }
    }

    fn names(line: &str) -> Vec<&'static str> {
        scenarios(&options(line)).unwrap().iter().map(|(scenario, _)| scenario.0).collect()
    }

    #[test]
    fn scenarios_are_selected_by_their_names() {
        assert_eq!(names("lab test --only binar"), ["binary-way", "binaries", "binary"]);
        assert_eq!(names("lab test --only binary --exact"), ["binary"]);
        assert_eq!(names("lab test --only binar --skip way"), ["binaries", "binary"]);
        assert_eq!(names("lab test --only sweep-reboot --long"), ["sweep-reboot"]);
        assert_eq!(names("lab test").len(), GATE.len() + LIGHT.len());
        assert!(scenarios(&options("lab test --only sweep-reboot")).is_err());
    }

    #[test]
    fn only_selects_of_the_hermetic_tier_where_it_is_named() {
        let names = |line: &str| parts(&options(line)).iter().map(|part| part.name).collect::<Vec<_>>();
        assert_eq!(names("lab test --only binary"), ["format", "lints", "tests", "docs", "licences", "fuzz"]);
        assert_eq!(names("lab test hermetic --only fuzz"), ["fuzz"]);
        assert_eq!(names("lab test hermetic --skip lints"), ["format", "tests", "docs", "licences", "fuzz"]);
    }

    #[test]
    fn no_name_is_used_twice() {
        let all: Vec<_> = GATE.iter().chain(LIGHT).chain(LONG).map(|scenario| scenario.0).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn an_outcome_is_kept_and_told_to_the_harness() {
        let outcomes = Outcomes::default();
        let limit = Duration::from_secs(10);
        let trials = vec![
            outcomes.trial("t", "good", limit, |_| Ok(())),
            outcomes.trial("t", "bad", limit, |_| anyhow::bail!("a reason")),
        ];
        let conclusion = libtest_mimic::run(&silent(1), trials);
        assert_eq!((conclusion.num_passed, conclusion.num_failed), (1, 1));
        let outcomes = outcomes.0.lock().unwrap();
        assert_eq!(outcomes[0].failure, None);
        assert_eq!(outcomes[1].failure.as_deref(), Some("a reason"));
        assert!(!summary(&outcomes, 0));
    }
}
