//! `openclaw-init status` says what is now, whatever the watcher and the last run have written.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::rig::Rig;
use super::watch::heals;

/// What `status` may take on a machine where something gives no answer, with the way into the machine.
const LIMIT: Duration = Duration::from_secs(20);

const READY: &str = "curl -fsS http://127.0.0.1:18789/readyz";

/// Every process of the gateway gets a signal.
const SIGNAL: &str = "for p in $(docker top openclaw-gateway -o pid | tail -n +2); do kill -$1 $p; done";

/// On a machine that is ready, and is so again afterwards. The watcher stands still meanwhile.
pub(super) fn what_is_now(rig: &Rig) -> Result<()> {
    rig.shell("systemctl stop openclaw-watch")?;
    says(rig, 0, &["result=ready", "address: 127.0.0.1:18789", "next: sudo openclaw-init link"])?;
    let signal = |name: &str| rig.shell(&format!("set -- {name}; {SIGNAL}"));
    signal("STOP")?;
    says(rig, 29, &["state=failed", "the gateway gives no answer"]).context("a gateway that hangs")?;
    signal("CONT")?;
    says(rig, 0, &["result=ready"]).context("the same gateway")?;
    rig.shell("docker kill openclaw-gateway")?;
    says(rig, 29, &["state=stopped", "stopped by hand", "next: sudo openclaw-init boot"]).context("docker kill")?;
    rig.shell("docker start openclaw-gateway")?;
    heals(rig, READY)?;
    says(rig, 0, &["result=ready"]).context("docker start")?;
    rig.shell("openclaw-init stop && docker start openclaw-gateway")?;
    heals(rig, READY)?;
    says(rig, 0, &["result=ready"]).context("a start that nobody reported")?;
    rig.shell("systemctl stop docker")?;
    says(rig, 29, &["state=stopped", "docker.service was stopped"]).context("a stopped engine")?;
    rig.shell("systemctl start docker && docker start openclaw-gateway")?;
    heals(rig, READY)?;
    while_a_run_holds_its_lock(rig).context("beside a run")?;
    as_somebody_else(rig).context("as another user")?;
    what_takes_room(rig).context("what is kept")?;
    rig.shell("systemctl start openclaw-watch").map(drop)
}

/// Runs it, with a limit; it must end with `code` and say all of `words`.
fn says(rig: &Rig, code: i32, words: &[&str]) -> Result<()> {
    let begun = Instant::now();
    rig.lab_ends(code, "exec", &["--", "openclaw-init", "status"])?.has(words)?;
    ensure!(begun.elapsed() < LIMIT, "it took {} s", begun.elapsed().as_secs());
    Ok(())
}

fn while_a_run_holds_its_lock(rig: &Rig) -> Result<()> {
    let lock = "flock --exclusive /run/openclaw-init/private/lock sleep 600";
    rig.shell(&format!(
        "systemd-run --unit=holder {lock}; sleep 1; ! flock --nonblock /run/openclaw-init/private/lock true"
    ))?;
    says(rig, 0, &["result=ready"])?;
    rig.shell("systemctl stop holder").map(drop)
}

/// It says what was reported, and in one sentence how to learn more.
fn as_somebody_else(rig: &Rig) -> Result<()> {
    let status = "setpriv --reuid=nobody --regid=nogroup --clear-groups openclaw-init status || test $? = 29";
    let printed = rig.shell(status)?;
    // The stop before the start that nobody reported.
    ensure!(
        printed.contains("state=stopped") && printed.contains("`sudo openclaw-init status` asks"),
        "it says {printed}"
    );
    ensure!(printed.matches("note:").count() == 1, "it says {printed}");
    Ok(())
}

fn what_takes_room(rig: &Rig) -> Result<()> {
    const ASIDE: &str = "/mnt/disks/openclaw-data/openclaw.before-update-20260101T000000Z";
    rig.shell(&format!("mkdir {ASIDE} && head --bytes=8M /dev/urandom > {ASIDE}/file && sync"))?;
    says(rig, 0, &[&format!("kept: {ASIDE} (8.")])?;
    let seen: Value = serde_json::from_str(&rig.shell("openclaw-init status --json")?)?;
    let now = &seen["now"];
    ensure!(now["address"] == "127.0.0.1:18789" && now["is-asked"] == true, "it says {now}");
    ensure!(now["kept"][0]["what"] == ASIDE && now["kept"][0]["bytes"].as_u64() > Some(8 << 20), "it says {now}");
    ensure!(seen["state"] == "ready" && seen["boot-id"].is_string(), "it says {seen}");
    rig.shell(&format!("rm -r {ASIDE}")).map(drop)
}
