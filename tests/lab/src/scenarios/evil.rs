//! A gateway that is the agent's: whatever it does, the host's program ends in time, small, and without a false word.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::rig::{CommandOutput, Rig};

const STATE: &str = "/home/node/.openclaw";
const TOKEN: &str = "grep OPENCLAW_GATEWAY_TOKEN /home/node/.openclaw/.env";
/// The most memory that the program ever needs.
const MEMORY: u64 = 32 << 20;

/// How long a gateway without an answer may be called ready: it is asked every minute, and once more.
const TRUTH: Duration = Duration::from_secs(150);

/// Runs the program with [`MEMORY`] for `seconds` at most: 124 when they were not enough.
fn init(rig: &Rig, seconds: u32, arguments: &str) -> Result<CommandOutput> {
    let limited = format!("systemd-run --quiet --wait --pipe --collect -p MemoryMax={MEMORY} -p MemorySwapMax=0");
    rig.lab("exec", &["--", "sh", "-c", &format!("{limited} timeout {seconds} openclaw-init {arguments} 2>&1")])
}

/// With a fake gateway that is `ready`: it plays all of its tricks at once.
pub(super) fn harms_nobody(rig: &Rig) -> Result<()> {
    let token = rig.shell(TOKEN)?;
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "backup", "--to", "/root/good.tar.gz"])?;
    rig.shell("docker exec --detach openclaw-gateway openclaw evil")?;
    rig.shell(&format!("until [ -p {STATE}/fifo ] || [ -p {STATE}/.env ]; do sleep 0.1; done"))?;
    watcher_is_not_fooled(rig)?;

    // A boot waits for an answer, or says what is wrong with `.env`, whichever it meets.
    for _ in 0..3 {
        let boot = init(rig, 12, "boot --foreground").context("a boot")?;
        ensure!([124, 28].contains(&boot.code), "boot ended with {}:\n{}", boot.code, boot.text);
        ensure!(!boot.text.contains("result=ready"), "it is ready:\n{}", boot.text);
    }
    is_refused(rig, "restore /home/node/.openclaw/fifo", "nothing was changed")?;
    is_refused(rig, "backup --to /root/evil.tar.gz", "directories within each other")?;
    rig.shell(&format!("rm -r {STATE}/deep"))?;
    is_refused(rig, "backup", "backup")?;
    watcher_is_small_and_alive(rig)?;
    clean_again(rig, &token)
}

/// The command ends in time with an error that says `why`, in few words that a terminal can show.
fn is_refused(rig: &Rig, command: &str, why: &str) -> Result<()> {
    let output = init(rig, 60, command)?;
    ensure!(![0, 124, 134, 137].contains(&output.code), "{command} ended with {}:\n{}", output.code, output.text);
    ensure!(output.text.len() < 20_000 && !output.text.contains(['\u{1b}', '\0']), "{command} says {}", output.text);
    output.has(&[why]).map(drop)
}

/// What looks at the gateway all the time soon no longer calls this one ready.
fn watcher_is_not_fooled(rig: &Rig) -> Result<()> {
    let end = Instant::now() + TRUTH;
    while rig.guest_attributes()?["state"] == "ready" {
        ensure!(Instant::now() < end, "the watcher calls it ready: {}", rig.guest_attributes()?);
        thread::sleep(Duration::from_secs(2));
    }
    Ok(())
}

fn watcher_is_small_and_alive(rig: &Rig) -> Result<()> {
    let shown = rig.shell("systemctl show openclaw-watch.service -p ActiveState -p NRestarts")?;
    ensure!(shown.contains("ActiveState=active") && shown.contains("NRestarts=0"), "the watcher is {shown}");
    let peak = "awk '/^VmHWM:/ {print $2}' /proc/$(systemctl show openclaw-watch -p MainPID --value)/status";
    let peak: u64 = rig.shell(peak)?.parse().context("the watcher's memory")?;
    ensure!(peak << 10 < MEMORY, "the watcher has had {peak} KiB");
    Ok(())
}

/// The state of the backup, in a new container: nothing of it all is left.
fn clean_again(rig: &Rig, token: &str) -> Result<()> {
    let restored = init(rig, 240, "restore --replace-newer /root/good.tar.gz")?;
    ensure!(restored.code == 0, "restore ended with {}:\n{}", restored.code, restored.text);
    rig.boot(0)?.has(&["result=ready"])?;
    ensure!(rig.shell(TOKEN)? == token, "the token is another");
    let left = rig.shell(&format!("ls -A {STATE} | grep -e evil -e deep -e fifo || true"))?;
    ensure!(left.is_empty(), "left in the state: {left}");
    let playing = rig.shell("docker top openclaw-gateway | grep 'openclaw evil' || true")?;
    ensure!(playing.is_empty(), "it still plays: {playing}");
    Ok(())
}
