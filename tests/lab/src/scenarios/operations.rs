//! The commands of `docs/operations.md`, taken out of the page and run on machines that other scenarios have booted.

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::readme::{Block, Reader, blocks};
use super::rig::{CommandOutput, Rig};

const PAGE: &str = include_str!("../../../../docs/operations.md");

/// Words that only the block has that they stand for.
const LOOK: &str = "get-serial-port-output";
const BACK_UP: &str = "to backups/ on the data disk";
const TAKE_OFF: &str = "--command='sudo cat";
const SCHEDULE: &str = "--daily-schedule";
const SNAPSHOT: &str = "snapshots create";
const GO_BACK: &str = "--source-snapshot";
const LARGER: &str = "set-machine-type";
const DEPLOYER: &str = "instanceAdmin";
const REGISTRY: &str = "artifactregistry.reader";
const SECRET: &str = "gcloud secrets create";
const PROGRAMS: &str = "openclaw-binaries=binaries.json";

const NOTE: &str = "/home/node/.openclaw/note";

/// The block that `mark` stands for.
fn block(mark: &str) -> Result<String> {
    let found = blocks(PAGE).into_iter().find(|block| block.contains(mark));
    found.with_context(|| format!("the page has no block with {mark:?}"))
}

/// Runs commands of the page on the VM. Who is root in the lab has no sudo.
fn on_the_vm(rig: &Rig, commands: &str) -> Result<CommandOutput> {
    rig.lab_ends(0, "exec", &["--", "sh", "-e", "-c", &format!("sudo() {{ \"$@\"; }}\n{commands}")])
}

/// From outside and on the VM, each block twice; then back to a snapshot.
pub(super) fn looked_at_and_backed_up(reader: &Reader, rig: &Rig) -> Result<()> {
    let twice = |mark| block(mark).map(|block| [&*block, &block].join("\n"));
    reader.does(&twice(LOOK)?)?.has(&["result   ready", "openclaw: result=ready"])?;
    on_the_vm(rig, &twice(BACK_UP)?)?;
    for directory in ["/mnt/disks/openclaw-data/backups", "/root"] {
        let found = rig.shell(&format!("ls {directory}/*.tar.gz | wc -l"))?;
        ensure!(found == "2", "{found} backups are in {directory}");
    }
    let look = "stat --format %a backup.tar.gz; tar tzf backup.tar.gz";
    reader.does(&[&*twice(TAKE_OFF)?, look].join("\n"))?.has(&["600\n", "state/openclaw.json"])?;
    back_to_a_snapshot(reader, rig).context("snapshots")
}

fn back_to_a_snapshot(reader: &Reader, rig: &Rig) -> Result<()> {
    reader.does(&block(SCHEDULE)?)?;
    rig.shell(&format!("echo before > {NOTE}"))?;
    for line in block(SNAPSHOT)?.lines() {
        if line.contains("# on the VM") {
            on_the_vm(rig, line)?
        } else {
            reader.does(line)?
        };
    }
    rig.shell(&format!("echo after > {NOTE}"))?;
    reader.restarts(&block(GO_BACK)?)?;
    is_ready(rig)?;
    let note = rig.shell(&format!("cat {NOTE}"))?;
    ensure!(note == "before", "the note is of {note}");
    Ok(())
}

/// On a VM with the account and the project of the page on ways in.
pub(super) fn another_machine_and_account(reader: &Reader, rig: &Rig) -> Result<()> {
    let known = Block::Upload.variables()?;
    let filled = |mark| {
        let filled = block(mark)?.replace(":ACCOUNT", ":$ACCOUNT").replace("=ACCOUNT", "=$ACCOUNT");
        anyhow::Ok([&known, &filled.replace("PROJECT", "$PROJECT")].map(String::as_str).join("\n"))
    };
    reader.does(&filled(DEPLOYER)?)?;
    reader.restarts(&block(LARGER)?).context("a larger machine")?;
    reader.restarts(&filled(REGISTRY)?).context("an account for a registry")?;

    reader.does(&format!("OPENAI_API_KEY=key-of-a-model\n{}", filled(SECRET)?))?;
    rig.boot(0)?;
    let kept = rig.shell("grep ^OPENAI_API_KEY= /home/node/.openclaw/.env")?;
    ensure!(kept.contains("key-of-a-model"), "the secret is {kept}");

    let programs = block(PROGRAMS)?;
    reader.does(&[&*programs, &programs].join("\n"))?;
    rig.boot(10)?.has(&["the sha256 of notes must be 64 hex digits"]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: [&str; 11] =
        [LOOK, BACK_UP, TAKE_OFF, SCHEDULE, SNAPSHOT, GO_BACK, LARGER, DEPLOYER, REGISTRY, SECRET, PROGRAMS];

    /// No scenario types these, and why.
    #[rustfmt::skip]
    const NOT_RUN: [(&str, &str); 8] = [
        ("openclaw-init restore FILE", "`backup-restore` does it, with every kind of file"),
        ("--device-name=openclaw-data\ngcloud compute ssh", "`moving-in` does it with the lab's own commands"),
        ("gog auth add", "it needs an account at Google"),
        ("sudo openclaw configure", "it asks; `gateway_cli` runs others in every way"),
        ("openclaw-metadata-account=", "`debian-13` does it with the lab's own commands"),
        ("docker save", "`private-registry` does it with another image"),
        ("google_secret_manager_secret", "Terraform is not here"),
        ("HTTP_PROXY=", "it is a file, not commands"),
    ];

    #[test]
    fn every_block_of_the_page_is_run_or_has_a_reason() {
        let marks: Vec<_> = RUN.into_iter().chain(NOT_RUN.map(|(mark, _)| mark)).collect();
        for block in blocks(PAGE) {
            let known: Vec<_> = marks.iter().filter(|mark| block.contains(**mark)).collect();
            assert_eq!(known.len(), 1, "{known:?} is this block:\n{block}");
        }
        assert_eq!(blocks(PAGE).len(), marks.len());
    }
}
