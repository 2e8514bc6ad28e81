//! The fuzz targets of `fuzz/`: all of them for a minute in the gate, a million inputs each under `--long`.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use super::cargo;
use crate::host;
use crate::watch::Watch;

/// What `cargo fuzz` passes, with the pinned toolchain: coverage that libFuzzer reads, and no sanitizer. The program is
/// Rust without `unsafe`: what is left to find is a panic, an overflow, and memory or time without end. They take
/// the place of the workspace's own flags: in a static program libFuzzer finds no functions of libc's.
const FLAGS: &str = "--cfg=fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// For all targets together.
const SECONDS: usize = 60;
/// Of each target.
const LONG_RUNS: u32 = 1_000_000;
/// Targets that run at the same time.
const SIDE_BY_SIDE: usize = 2;

/// An input that takes longer, in seconds, or a target that takes more memory, in MiB, is a finding.
const INPUT_SECONDS: u32 = 5;
const MEMORY: u32 = 512;

/// Builds the targets and runs each, from its corpus; what they find new is not kept.
pub(super) fn run(watch: &Arc<Watch>, long: bool) -> Result<()> {
    let directory = host::workspace()?.join("fuzz");
    let (profile, directory_name) = if long { ("long", "long") } else { ("dev", "debug") };
    let mut build = Command::new(cargo());
    build.args(["build", "--quiet", "--locked", "--profile", profile]).current_dir(&directory);
    build.env("RUSTFLAGS", FLAGS);
    build.env_remove("CARGO_TARGET_DIR");
    let status = watch.status(&mut build)?;
    ensure!(status.success(), "building the fuzz targets ended with {status}");
    let programs = directory.join("target/x86_64-unknown-linux-gnu").join(directory_name);
    let targets = targets(&directory)?;
    let seconds = (SECONDS / targets.len()).max(1);
    let limit = if long { format!("-runs={LONG_RUNS}") } else { format!("-max_total_time={seconds}") };
    // The gate judges a change, and not its luck: what is random is for the long run.
    let seed = if long { "-seed=0" } else { "-seed=1" };
    let (left, failures) = (Mutex::new(VecDeque::from(targets)), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some(target) = next(&left) {
                    if let Err(error) = one(watch, &directory, &programs, &target, &[&limit, seed]) {
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failures.is_empty() { Ok(()) } else { Err(anyhow!(failures.join("; "))) }
}

fn next(left: &Mutex<VecDeque<String>>) -> Option<String> {
    left.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// The names of the targets: each has a file, and a corpus.
fn targets(directory: &Path) -> Result<Vec<String>> {
    let files = fs::read_dir(directory.join("fuzz_targets")).context("looking for fuzz targets")?;
    let stems = files.map(|file| Ok(file?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned())));
    let mut targets = stems.collect::<Result<Option<Vec<_>>>>()?.unwrap_or_default();
    targets.sort();
    ensure!(!targets.is_empty(), "there are no fuzz targets");
    for target in &targets {
        ensure!(corpus(directory, target).is_dir(), "the fuzz target {target} has no corpus");
    }
    Ok(targets)
}

fn corpus(directory: &Path, target: &str) -> PathBuf {
    directory.join("corpus").join(target)
}

/// Runs one target; prints how far it got. A finding is an error that names the input.
fn one(watch: &Watch, directory: &Path, programs: &Path, target: &str, options: &[&str]) -> Result<()> {
    let (new, artifacts) = (tempfile::tempdir()?, directory.join("artifacts").join(target));
    fs::create_dir_all(&artifacts)?;
    let mut fuzz = Command::new(programs.join(target));
    fuzz.args(options)
        .args(["-print_final_stats=1", &format!("-timeout={INPUT_SECONDS}"), &format!("-rss_limit_mb={MEMORY}")])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([new.path(), &corpus(directory, target)]);
    let output = watch.output(&mut fuzz).with_context(|| format!("fuzzing {target}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let figure = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
    println!(
        "fuzz: {target}: {} inputs, {} MiB at most",
        figure("stat::number_of_executed_units:"),
        figure("stat::peak_rss_mb:")
    );
    let last = || text.lines().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    ensure!(output.status.success(), "fuzzing {target} ended with {}:\n{}", output.status, last());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_and_has_a_corpus() -> Result<()> {
        let directory = host::workspace()?.join("fuzz");
        let manifest = fs::read_to_string(directory.join("Cargo.toml"))?;
        let built: Vec<_> = manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")).collect();
        let files: Vec<_> = targets(&directory)?.iter().map(|target| format!("{target}.rs\"")).collect();
        assert_eq!(built, files);
        Ok(())
    }
}
