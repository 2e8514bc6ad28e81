//! The commands of the pages for later, on machines that other scenarios have booted.

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::pages::Block;
use super::readme::{Reader, saw_the_old_result, twice};
use super::rig::{CommandOutput, Rig};

const NOTE: &str = "/home/node/.openclaw/note";

/// Runs commands of a page on the VM. Who is root in the lab has no sudo.
pub(super) fn on_the_vm(rig: &Rig, commands: &str) -> Result<CommandOutput> {
    rig.lab_ends(0, "exec", &["--", "sh", "-e", "-c", &format!("sudo() {{ \"$@\"; }}\n{commands}")])
}

/// From outside and on the VM; then back to a snapshot.
pub(super) fn looked_at_and_backed_up(reader: &Reader, rig: &Rig) -> Result<()> {
    reader.pastes(&[Block::Look])?.has(&["result   ready", "openclaw: result=ready"])?;
    on_the_vm(rig, &twice(&[Block::Cli, Block::BackUp])?)?;
    // The README names it: what it asks needs a terminal.
    on_the_vm(rig, "sudo openclaw configure --help")?.has(&["configure"])?;
    for directory in ["/mnt/disks/openclaw-data/backups", "/root"] {
        let found = rig.shell(&format!("ls {directory}/*.tar.gz | wc -l"))?;
        ensure!(found == "2", "{found} backups are in {directory}");
    }
    let look = "stat --format %a backup.tar.gz; tar tzf backup.tar.gz";
    reader.does(&[&*Block::TakeOff.twice()?, look].join("\n"))?.has(&["600\n", "state/openclaw.json"])?;
    back_to_a_snapshot(reader, rig).context("snapshots")
}

/// The disk is exchanged while the VM is off. The script's `wait` is not content with the result of the boot before.
fn back_to_a_snapshot(reader: &Reader, rig: &Rig) -> Result<()> {
    reader.pastes(&[Block::Schedule])?;
    rig.shell(&format!("echo before > {NOTE}"))?;
    let printed = reader.does(&[&*Block::Snapshot.twice()?, "echo \"the last is $SNAPSHOT\""].join("\n"))?;
    let snapshot = printed.text.lines().find_map(|line| line.strip_prefix("the last is "));
    let snapshot = snapshot.context("the snapshot has no name")?;
    rig.shell(&format!("echo after > {NOTE}"))?;
    let back = Block::GoBack.twice()?.replace("openclaw-gateway-20260901-030000", snapshot);
    reader.does(&back)?.has(&["booting", "ready after"])?;
    saw_the_old_result(reader, rig, "stop")?;
    is_ready(rig)?;
    let note = rig.shell(&format!("cat {NOTE}"))?;
    ensure!(note == "before", "the note is of {note}");
    Ok(())
}

/// The disk is as it was before its format, and no run formats it again.
pub(super) fn format_taken_back(rig: &Rig) -> Result<()> {
    on_the_vm(rig, &Block::Undo.twice()?)?.has(&["nothing was done"])?;
    let left = rig.shell("blkid -p /dev/disk/by-id/google-openclaw-data || true")?;
    ensure!(left.is_empty(), "the disk has {left}");
    rig.boot(13).map(drop)
}

/// On a VM that can have an account.
pub(super) fn another_machine_and_account(reader: &Reader, rig: &Rig) -> Result<()> {
    reader.pastes(&[Block::Deployer, Block::Registry])?;
    for answer in ["y", ""] {
        reader.ends(0, Block::NoRegistry, answer)?;
    }
    reader.restarts(&twice(&[Block::Larger, Block::VmAccount])?).context("a larger machine with an account")?;

    reader.does(&["echo key-of-a-model > openai.key", &*Block::Secret.twice()?].join("\n"))?;
    rig.boot(0)?;
    let kept = rig.shell("grep ^OPENAI_API_KEY= /home/node/.openclaw/.env")?;
    ensure!(kept.contains("key-of-a-model"), "the secret is {kept}");

    reader.pastes(&[Block::Set])?;
    let set = "curl -s -H 'Metadata-Flavor: Google' -w '%{http_code}' -o /dev/null \
        169.254.169.254/computeMetadata/v1/instance/attributes/openclaw-ready-timeout";
    ensure!(rig.shell(set)? == "200", "the attribute is not set");
    reader.pastes(&[Block::Unset])?;
    ensure!(rig.shell(set)? == "404", "the attribute is not removed");

    reader.pastes(&[Block::Programs, Block::OwnPrograms])?;
    rig.boot(10)?.has(&["the sha256 of notes must be 64 hex digits"]).map(drop)
}
