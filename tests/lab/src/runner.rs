//! `cargo lab test`: the project's tests in groups, and one line per part at the end.

use std::env;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cli::Tier;
use crate::{host, scenarios};

/// The parts that need neither root nor network.
const HERMETIC: [(&str, &[&str]); 3] = [
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tests", &["test", "--workspace"]),
];

/// One part that was run.
#[derive(Debug)]
pub struct Part {
    /// What it is called.
    pub name: String,
    /// Whether it passed.
    pub passed: bool,
    /// How long it took.
    pub took: Duration,
}

impl Part {
    /// Runs it; a failure is printed where it happens and does not keep later parts from running.
    pub fn run(name: &str, work: impl FnOnce() -> Result<()>) -> Self {
        println!("== {name}");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        match &result {
            Ok(()) => println!("{name}: ok ({} s)", took.as_secs()),
            Err(error) => println!("{name}: FAILED ({} s): {error:#}", took.as_secs()),
        }
        Self { name: name.to_owned(), passed: result.is_ok(), took }
    }
}

/// Runs one tier, or all; of the machine tier only the scenarios with `only` in their name, the `long` ones
/// only if told so. Returns whether everything passed.
pub fn run(tier: Option<Tier>, only: Option<&str>, long: bool) -> Result<bool> {
    let mut parts = Vec::new();
    if tier != Some(Tier::Machine) {
        let top = host::workspace()?;
        for (name, arguments) in HERMETIC {
            parts.push(Part::run(name, || {
                let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                let mut command = Command::new(cargo);
                let status = command.args(arguments).current_dir(&top).stdin(Stdio::null()).status();
                let status = status.context("starting cargo")?;
                anyhow::ensure!(status.success(), "cargo {} ended with {status}", arguments.join(" "));
                Ok(())
            }));
        }
    }
    if tier != Some(Tier::Hermetic) {
        parts.extend(scenarios::run(only, long)?);
    }
    Ok(summary(&parts))
}

fn summary(parts: &[Part]) -> bool {
    println!();
    for part in parts {
        let verdict = if part.passed { "ok    " } else { "FAILED" };
        println!("{verdict} {:>7.1} s  {}", part.took.as_secs_f32(), part.name);
    }
    let failed = parts.iter().filter(|part| !part.passed).count();
    println!("{} passed, {failed} failed", parts.len() - failed);
    failed == 0
}
