//! A gateway that is the agent's: whatever it does, the host's program ends in time, small, and without a false word.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::rig::{CommandOutput, Rig};
use crate::cloud::fake_gateway;

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

/// How long it plays under `--long`.
const LONG_PLAY: Duration = Duration::from_secs(600);
/// What an operator does meanwhile, with the time that it takes at most: each start of a gateway is given a minute.
const WORK: [(&str, u32); 7] = [
    ("boot --foreground", 400),
    ("backup --to /root/evil.tar.gz", 60),
    ("status", 60),
    ("update --to 0.1.2", 600),
    ("rollback --set-newer-state-aside", 600),
    ("restore --replace-newer /home/node/.openclaw/fifo", 60),
    ("restore --replace-newer /root/good.tar.gz", 900),
];
/// The shell's and `timeout`'s words for a program that is killed, gives up in a panic, or does not end.
const CRASHES: [i32; 6] = [101, 124, 132, 134, 137, 139];

/// It plays for ten minutes, whatever is done about it; power cuts are among that. Then a clean gateway on the state of
/// a backup is ready.
pub(super) fn plays_for_ten_minutes(rig: &Rig) -> Result<()> {
    let version = format!("openclaw-version={}", fake_gateway::FIRST);
    rig.up(&["--attr", &version, "--attr", "openclaw-ready-timeout=1m"])?;
    let token = rig.shell(TOKEN)?;
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "backup", "--to", "/root/good.tar.gz"])?;
    let system = "find /etc /usr/local /root -xdev -type f -newer /root/good.tar.gz -not -name '*.tar.gz'";
    let begun = Instant::now();
    for (round, (work, seconds)) in WORK.into_iter().cycle().enumerate() {
        if begun.elapsed() > LONG_PLAY {
            println!("evil: {round} pieces of work in {} s", begun.elapsed().as_secs());
            break;
        }
        // It is there again in every new container.
        rig.shell("docker exec --detach openclaw-gateway openclaw evil || true")?;
        if work == "status" {
            rig.lab("reboot", &["--hard", "--timeout", "3m"])?;
        }
        let done = init(rig, seconds, work).with_context(|| work.to_owned())?;
        println!("evil: {work} ended with {}", done.code);
        ensure!(!CRASHES.contains(&done.code), "{work} ended with {}:\n{}", done.code, done.text);
        ensure!(done.text.len() < 50_000 && !done.text.contains(['\u{1b}', '\0']), "{work} says {}", done.text);
        let is_evil = rig.shell(&format!("test -e {STATE}/evil && echo evil || true"))? == "evil";
        ensure!(!is_evil || !done.text.contains("result=ready") || work == "status", "{work} says {}", done.text);
        watcher_is_small_and_alive(rig)?;
    }
    let changed = rig.shell(system)?;
    ensure!(changed.is_empty(), "the machine's own files changed: {changed}");
    watcher_is_not_fooled(rig)?;
    rig.shell(&format!("rm -rf {STATE}/deep"))?;
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
