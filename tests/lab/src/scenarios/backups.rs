//! A backup of a gateway that runs and of one that is stopped, restored on its own machine and on a new one.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::operations::on_the_vm;
use super::pages::Block;
use super::rig::Rig;
use crate::product::FAILPOINT;

/// Run in the container, as the next one.
const FILL: &str = include_str!("../../scripts/backups/fill-state.sh");

const CHANGE: &str = include_str!("../../scripts/backups/change-state.sh");

/// What must come back, one line each.
const LOOK: &str = include_str!("../../scripts/backups/show-state.sh");

const CONTAINER: &str = "docker inspect --format '{{.Id}} {{.State.StartedAt}} {{.RestartCount}}' openclaw-gateway";
const DATA: &str = "/mnt/disks/openclaw-data";

pub(super) fn backup_and_restore(rig: &Rig) -> Result<()> {
    rig.up(&[])?;
    in_container(rig, FILL)?;
    let before = rig.script(LOOK, &[])?;
    let backup = back_up(rig, &[], "gateway").context("the backup")?;
    in_container(rig, CHANGE)?;
    ensure!(rig.script(LOOK, &[])? != before, "nothing changed");
    refused(rig, &backup).context("what must not be restored")?;
    restored(rig, &backup, &before).context("restored")?;
    on_a_new_machine(rig, &backup, &before).context("restored on a new machine")?;
    cut_anywhere(rig, &backup, &before).context("a restore that is cut")?;
    of_a_stopped_gateway(rig).context("the backup of a stopped gateway")
}

fn in_container(rig: &Rig, line: &str) -> Result<()> {
    rig.lab_ends(0, "exec", &["--", "docker", "exec", "openclaw-gateway", "sh", "-c", line]).map(drop)
}

/// Makes a backup; its file. The gateway does not notice.
fn back_up(rig: &Rig, options: &[&str], how: &str) -> Result<String> {
    let container = rig.shell(CONTAINER)?;
    let arguments = ["--", "sh", "-c", r#"openclaw-init backup --json "$@" 2> /tmp/said"#, "backup"];
    let output = rig.lab_ends(0, "exec", &[&arguments, options].concat())?;
    let made: Value = serde_json::from_str(&output.text).with_context(|| format!("reading {}", output.text))?;
    let file = made["file"].as_str().context("no file")?.to_owned();
    println!("{} bytes of {} in {} s: {file}", made["file-bytes"], made["bytes"], made["seconds"]);
    ensure!(made["how"] == how && made["record"]["version"] == "2026.9.6", "it is {made}");
    ensure!(rig.shell(&format!("stat -c '%a %u:%g' {file}"))? == "600 0:0", "anybody can read {file}");
    let listed = rig.shell(&format!("tar tzf {file}"))?;
    for part in ["state/.env", "state/openclaw.json", "state/state/openclaw.sqlite", "config/keyring"] {
        ensure!(listed.lines().any(|line| line == part), "{part} is not in it:\n{listed}");
    }
    ensure!(rig.shell(CONTAINER)? == container, "the gateway was restarted");
    let left = rig.shell(&format!("find {DATA}/backups {DATA}/config-openclaw -name '.openclaw*'"))?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(file)
}

/// Each of these is refused with a sentence, and the gateway runs on as it was.
fn refused(rig: &Rig, backup: &str) -> Result<()> {
    rig.shell(&format!("cd /root && cp {backup} whole && head -c 20000 whole > short"))?;
    rig.shell("cd /root && cp whole flipped && printf X | dd of=flipped bs=1 seek=9000 conv=notrunc status=none")?;
    let forge = "cd /root && tar xzf whole openclaw-backup.json && echo evil > evil && \
                 tar czPf evil.tar.gz --transform 's,^evil,state/../../evil,' openclaw-backup.json evil";
    rig.shell(forge)?;
    let (look, container) = (rig.script(LOOK, &[])?, rig.shell(CONTAINER)?);
    let cases = [
        ("short", "nothing was changed"),
        ("flipped", "nothing was changed"),
        ("evil.tar.gz", "leads out of the archive"),
        ("evil", "no tar archive"),
        ("missing", "No such file"),
        ("whole", "used after the backup was made"),
    ];
    for (file, why) in cases {
        let output = rig.lab("exec", &["--", "openclaw-init", "restore", &format!("/root/{file}")])?;
        ensure!(output.code != 0, "{file} was restored");
        output.has(&[why]).with_context(|| file.to_owned())?;
        ensure!(rig.script(LOOK, &[])? == look && rig.shell(CONTAINER)? == container, "{file} changed something");
    }
    let left = rig.shell(&format!("ls {DATA} | grep -e restor || true"))?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

fn restore(rig: &Rig, backup: &str) -> Result<()> {
    let output = rig.lab_ends(0, "exec", &["--", "openclaw-init", "restore", "--replace-newer", backup])?;
    output.has(&["result=ready", "kept what was there before"]).map(drop)
}

fn restored(rig: &Rig, backup: &str, before: &str) -> Result<()> {
    restore(rig, backup)?;
    is_as(rig, before)?;
    let aside = rig.shell(&format!(
        "cat {DATA}/openclaw.before-restore-*/workspace/note.md {DATA}/config-openclaw.before-restore-*/keyring"
    ))?;
    ensure!(aside == "after\nother", "aside there is {aside}");
    rig.boot(0)?.has(&["changes=0"]).map(drop)
}

fn is_as(rig: &Rig, before: &str) -> Result<()> {
    let now = rig.script(LOOK, &[])?;
    ensure!(now == before, "it was\n{before}\nand is\n{now}");
    let found = rig.shell("docker exec openclaw-gateway sh -c 'cat /home/node/.openclaw/workspace/note.md'")?;
    ensure!(found == "before", "in the container there is {found}");
    Ok(())
}

/// With nothing of the old machine but the file.
fn on_a_new_machine(rig: &Rig, backup: &str, before: &str) -> Result<()> {
    let successor = rig.beside("backup-restore-2")?;
    successor.up(&[])?;
    fs::write(successor.machine()?.files().join("backup"), fetch(rig, backup)?).context("handing the file over")?;
    successor.shell("curl -fsS -o /root/backup http://198.18.0.4/backup")?;
    restore(&successor, "/root/backup")?;
    let plugins = successor.shell("openclaw plugins list --json < /dev/null")?;
    ensure!(plugins.contains("\"echo-plugin\""), "the plugin that was installed is not known any more");
    is_as(&successor, before)
}

/// A file's bytes, through a command that prints text.
fn fetch(rig: &Rig, file: &str) -> Result<Vec<u8>> {
    let digits = rig.shell(&format!("od -An -v -tx1 {file}"))?;
    let bytes = digits.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
    bytes.collect::<Result<_, _>>().context("reading what od prints")
}

/// A cut before the intent leaves the whole old state. After it, the next boot completes the new one.
fn cut_anywhere(rig: &Rig, backup: &str, before: &str) -> Result<()> {
    in_container(rig, "echo cut > /home/node/.openclaw/workspace/note.md")?;
    let cut = |point: &str| {
        let line = format!("{FAILPOINT}={point} openclaw-init restore --replace-newer {backup}; echo ended $?");
        rig.shell(&line).and_then(|output| {
            ensure!(output.contains("ended 137"), "it was not cut at {point}:\n{output}");
            Ok(())
        })
    };
    cut("restore.unpacked")?;
    ensure!(rig.shell("cat /home/node/.openclaw/workspace/note.md")? == "cut", "the state changed before the intent");
    rig.boot(0)?.has(&["result=ready"])?;
    cut("disk.rename#1.aside")?;
    rig.boot(0)?.has(&["result=ready", "completed a restore that was interrupted"])?;
    is_as(rig, before).context("cut between the renames")?;

    in_container(rig, "echo cut > /home/node/.openclaw/workspace/note.md")?;
    cut("disk.rename#1.after")?;
    rig.lab_ends(0, "reboot", &["--hard"])?;
    is_as(rig, before).context("cut between state and config")?;
    let left = rig.shell(&format!("ls {DATA} {DATA}/openclaw-init | grep -e restoring -e switch || true"))?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

fn of_a_stopped_gateway(rig: &Rig) -> Result<()> {
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "stop"])?;
    let look = rig.script(LOOK, &[])?;
    let backup = back_up(rig, &["--to", "/root/stopped.tar.gz"], "stopped")?;
    ensure!(backup == "/root/stopped.tar.gz", "it is in {backup}");
    // Nothing has used the state since: no flag is needed.
    let restore = Block::Restore.text()?.replace("FILE", &backup);
    on_the_vm(rig, &restore)?.has(&["result=ready"])?;
    is_as(rig, &look)?;
    let again = rig.lab("exec", &["--", "sh", "-c", &restore.replace("sudo ", "")])?;
    ensure!(again.code != 0, "what was used since was put aside unasked: {}", again.text);
    again.has(&["used after the backup was made"])?;
    is_as(rig, &look)
}
