//! The release binary without a machine.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::rig::Rig;
use crate::product::BOOT_HERE;

/// The largest binary that is still fetched in a moment at every boot.
const LIMIT_BYTES: usize = 7_500_000;

pub(super) fn static_small_and_alone(rig: &Rig) -> Result<()> {
    let binary = rig.binary();
    let printed = run(Command::new("ldd").arg(&binary))?;
    ensure!(
        printed.contains("statically linked") || printed.contains("not a dynamic executable"),
        "ldd says {printed}"
    );
    let bytes = std::fs::read(&binary).with_context(|| format!("reading {}", binary.display()))?;
    ensure!(bytes.len() <= LIMIT_BYTES, "the binary has {} bytes", bytes.len());

    let contains = |words: &str| bytes.windows(words.len()).any(|found| found == words.as_bytes());
    ensure!(!contains("/registry/src/"), "it names directories of the machine that built it");

    let empty = tempfile::tempdir().context("making an empty root directory")?;
    std::fs::copy(&binary, empty.path().join("openclaw-init"))?;
    let printed = run(Command::new("chroot").arg(empty.path()).args(["/openclaw-init", "--version"]))?;
    ensure!(printed.contains("openclaw-init"), "in an empty root it says {printed}");

    // It has no tables for a backtrace, and says what is wrong all the same.
    let printed = run(Command::new(&binary).args(["restore", "/nonexistent"]).env("RUST_BACKTRACE", "1"))?;
    ensure!(printed.contains("/nonexistent"), "asked for backtraces it says {printed}");
    Ok(())
}

/// Traces a run that has to look up a name, and fails if our own process opens an NSS module: in a static
/// glibc program that can crash. Programs that it starts may.
pub(super) fn resolves_names_by_itself(rig: &Rig) -> Result<()> {
    rig.shell("apt-get install -qq -y --no-install-recommends strace > /dev/null 2>&1")?;
    let calls = "open,openat,execve";
    rig.shell(&format!(
        "GCE_METADATA_HOST=metadata.google.internal \
         strace -f -e trace={calls} -o /root/trace {BOOT_HERE} > /dev/null 2>&1"
    ))?;
    let trace = rig.shell("cat /root/trace")?;
    let opened = opened_by_the_first_program(&trace);
    ensure!(opened.iter().any(|line| line.contains("/etc/resolv.conf")), "no name was looked up:\n{trace}");
    let nss: Vec<_> = opened.iter().filter(|line| line.contains("libnss_")).collect();
    ensure!(nss.is_empty(), "NSS modules were opened: {nss:?}");
    Ok(())
}

/// The lines of all processes and threads that have not executed another program.
fn opened_by_the_first_program(trace: &str) -> Vec<&str> {
    let mut others = std::collections::HashSet::new();
    let mut seen_first = false;
    let mut ours = Vec::new();
    for line in trace.lines() {
        let pid = line.split_whitespace().next().unwrap_or_default();
        if line.contains("execve(") && std::mem::replace(&mut seen_first, true) {
            others.insert(pid);
        }
        if !others.contains(pid) {
            ours.push(line);
        }
    }
    ours
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    Ok([output.stdout, output.stderr].iter().map(|bytes| String::from_utf8_lossy(bytes)).collect())
}
