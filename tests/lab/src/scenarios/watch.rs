//! Between boots: what happens to the gateway is told within 90 s, and what a run can heal is healed.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::checks::PEAK_MEMORY_KIB;
use super::rig::Rig;
use crate::cloud::fake_gateway;
use crate::host;

/// How long the state may be another than the gateway's.
const TRUTH: Duration = Duration::from_secs(90);

/// How long what heals may take until it has healed.
const HEALING: Duration = Duration::from_secs(180);

/// How many requests in a minute the watcher may make to a server that does not answer.
const REQUESTS_LIMIT: usize = 15;

/// Whether root cannot set the clock (`CAP_SYS_TIME` is bit 25).
const NO_SYS_TIME: &str = "test $(( 0x$(grep CapEff /proc/self/status | cut -f 2) >> 25 & 1 )) = 0";

/// Holds dpkg's lock as apt does, for as long as it runs; in Perl.
macro_rules! hold_dpkg {
    () => {
        "use Fcntl; open my $f, '+<', '/var/lib/dpkg/lock-frontend' or die; \
         my $l = pack 's s x4 q q i x4', F_WRLCK, 0, 0, 0, 0; fcntl $f, F_SETLK, $l or die; sleep"
    };
}
pub(super) use hold_dpkg;

pub(super) fn what_happens_between_boots(rig: &Rig) -> Result<()> {
    rig.up(&["--attr", &format!("openclaw-version={}", fake_gateway::FIRST)])?;
    rig.shell("systemctl is-active openclaw-watch")?;
    killed_and_not_forwarded(rig).context("a killed gateway, and forwarding off")?;
    removed(rig).context("a removed container")?;
    rules_flushed(rig).context("flushed rules")?;
    engine_down_in_an_upgrade(rig).context("an engine that an upgrade stopped")?;
    engine_stopped_by_hand(rig).context("an engine that somebody stopped")?;
    stopped_by_hand(rig).context("a gateway that somebody stopped")?;
    super::status::what_is_now(rig).context("the status")?;
    start_again(rig)?;
    attributes_change(rig).context("changed attributes")?;
    project_attributes_change(rig).context("changed attributes of the project")?;
    only_at_boot(rig).context("an attribute for the next boot")?;
    clock_far_off(rig).context("a clock that is far off")?;
    runs_within_a_minute(rig).context("several runs within a minute")?;
    watcher_in_trouble(rig).context("the watcher itself")?;
    rig.boot(0)?.has(&["result=ready", "changes=0"]).map(drop)
}

/// A gateway that hangs is restarted by a run. Its start is left alone for five minutes.
pub(super) fn a_gateway_that_hangs_is_restarted(rig: &Rig) -> Result<()> {
    rig.up(&["--attr", &format!("openclaw-version={}", fake_gateway::FIRST)])?;
    rig.shell("for p in $(docker top openclaw-gateway -o pid | tail -n +2); do kill -STOP $p; done")?;
    becomes(rig, "failed", "gives no answer", 2 * TRUTH)?;
    becomes(rig, "ready", "", Duration::from_secs(900))?;
    ensure!(reason(rig)?.contains("hangs"), "the run's reason is {}", reason(rig)?);
    rig.boot(0)?.has(&["changes=0"]).map(drop)
}

/// What Docker heals needs no run. What a run heals gets one.
fn killed_and_not_forwarded(rig: &Rig) -> Result<()> {
    rig.shell("sysctl -w net.ipv4.ip_forward=0; kill -9 $(docker inspect -f '{{.State.Pid}}' openclaw-gateway)")?;
    heals(rig, "test $(cat /proc/sys/net/ipv4/ip_forward) = 1")?;
    ensure!(reason(rig)?.contains("ip_forward"), "the run's reason is {}", reason(rig)?);
    ensure!(runs(rig)? == 1, "a killed gateway costs a run: {}", reason(rig)?);
    becomes(rig, "ready", "", TRUTH)
}

fn removed(rig: &Rig) -> Result<()> {
    let before = runs(rig)?;
    rig.shell("docker rm -f openclaw-gateway && nft delete table inet openclaw_init")?;
    heals(rig, "curl -fsS http://127.0.0.1:18789/readyz")?;
    becomes(rig, "ready", "", TRUTH)?;
    ensure!(reason(rig)?.contains("container is gone"), "the run's reason is {}", reason(rig)?);
    ensure!(runs(rig)? == before + 1, "{} runs instead of one", runs(rig)? - before);
    rig.shell("nft list table inet openclaw_init").map(drop)
}

/// With them goes the engine's own way to the internet, which it makes when it starts.
fn rules_flushed(rig: &Rig) -> Result<()> {
    let before = runs(rig)?;
    rig.shell("nft flush ruleset; systemctl restart nftables")?;
    heals(rig, "nft list table ip nat | grep -qi masquerade && nft list table inet openclaw_init")?;
    heals(rig, "curl -fsS http://127.0.0.1:18789/readyz")?;
    becomes(rig, "ready", "", TRUTH)?;
    ensure!(reason(rig)?.contains("packet filter"), "the run's reason is {}", reason(rig)?);
    ensure!(runs(rig)? == before + 1, "{} runs instead of one", runs(rig)? - before);
    Ok(())
}

fn engine_down_in_an_upgrade(rig: &Rig) -> Result<()> {
    let before = runs(rig)?;
    rig.lab_ends(0, "exec", &["--", "systemd-run", "--unit=apt", "perl", "-e", hold_dpkg!()])?;
    rig.shell("sleep 1; systemctl is-active apt && systemctl stop docker")?;
    becomes(rig, "stopped", "when apt has ended", TRUTH)?;
    ensure!(runs(rig)? == before, "a run was started beside apt");
    rig.shell("systemctl stop apt")?;
    heals(rig, "systemctl is-active docker && curl -fsS http://127.0.0.1:18789/readyz")?;
    becomes(rig, "ready", "", TRUTH)
}

fn engine_stopped_by_hand(rig: &Rig) -> Result<()> {
    let before = runs(rig)?;
    rig.shell("systemctl stop docker")?;
    becomes(rig, "stopped", "a run sees to it at", TRUTH)?;
    thread::sleep(Duration::from_secs(15));
    ensure!(rig.shell("systemctl is-active docker || true")? == "inactive", "the engine was started");
    ensure!(runs(rig)? == before, "a run was started");
    start_again(rig)
}

fn stopped_by_hand(rig: &Rig) -> Result<()> {
    let before = runs(rig)?;
    rig.shell("docker stop openclaw-gateway")?;
    becomes(rig, "stopped", "stopped by hand", TRUTH)?;
    says_stopped(rig)?;
    start_again(rig)?;
    rig.shell("openclaw-init stop")?;
    says_stopped(rig)?;
    becomes(rig, "stopped", "stopped by hand", TRUTH)?;
    thread::sleep(Duration::from_secs(20));
    ensure!(runs(rig)? == before, "a run was started against an operator");
    start_again(rig)
}

fn says_stopped(rig: &Rig) -> Result<()> {
    let output = rig.lab_ends(29, "exec", &["--", "openclaw-init", "status"])?;
    output.has(&["state=stopped", "stopped by hand", "sudo openclaw-init boot"])?;
    ensure!(!output.text.contains("ready"), "status says {}", output.text);
    Ok(())
}

fn start_again(rig: &Rig) -> Result<()> {
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "boot"])?.has(&["result=ready"])?;
    becomes(rig, "ready", "", TRUTH)
}

/// One change is applied, and so are many: once.
fn attributes_change(rig: &Rig) -> Result<()> {
    let before = runs(rig)?;
    for value in 0..10 {
        rig.attribute(&format!("openclaw-env-CHANGED={value}"))?;
    }
    let changed = Instant::now();
    heals(rig, "docker inspect openclaw-gateway | grep -q CHANGED=9")?;
    println!("watch: the last of ten changes was applied after {} s", changed.elapsed().as_secs());
    becomes(rig, "ready", "", TRUTH)?;
    ensure!(reason(rig)?.contains("openclaw-env-CHANGED"), "the run's reason is {}", reason(rig)?);
    thread::sleep(Duration::from_secs(20));
    ensure!(runs(rig)? == before + 1, "{} runs instead of one", runs(rig)? - before);
    Ok(())
}

/// A change of the project's waits for a part of the spread, and is told; no spread, no wait.
fn project_attributes_change(rig: &Rig) -> Result<()> {
    const SPREAD: Duration = Duration::from_secs(20);
    let set = |change: &str| rig.lab_ends(0, "metadata", &["set", "--project", change]).map(drop);
    set("openclaw-apply-spread=24h")?;
    set("openclaw-env-FLEET=1")?;
    // Of a day's part nobody sees the end; one VM in 500 has less than three minutes.
    becomes(rig, "ready", "openclaw-env-FLEET (since", TRUTH)?;
    let before = runs(rig)?;
    thread::sleep(SPREAD);
    ensure!(runs(rig)? == before, "a run was started: {}", reason(rig)?);
    let status = rig.lab_ends(0, "exec", &["--", "openclaw-init", "status"])?;
    status.has(&[
        "changed attributes: ",
        "openclaw-env-FLEET",
        "a run applies it within",
        "sudo openclaw-init boot",
    ])?;
    set(&format!("openclaw-apply-spread={}s", SPREAD.as_secs()))?;
    heals(rig, "docker inspect openclaw-gateway | grep -q FLEET=1")?;
    becomes(rig, "ready", "", TRUTH)?;
    ensure!(runs(rig)? == before + 1, "{} runs instead of one", runs(rig)? - before);
    for key in ["openclaw-env-FLEET", "openclaw-apply-spread"] {
        rig.lab_ends(0, "metadata", &["unset", "--project", key])?;
    }
    start_again(rig)
}

fn only_at_boot(rig: &Rig) -> Result<()> {
    let before = runs(rig)?;
    rig.attribute("openclaw-swap=64M")?;
    becomes(rig, "degraded", "reboot to apply openclaw-swap", TRUTH)?;
    rig.attribute("openclaw-swap")?;
    becomes(rig, "ready", "", TRUTH)?;
    ensure!(runs(rig)? == before, "a run was started");
    Ok(())
}

/// This machine may not set its clock, which the run says: it is the server's that is another.
fn clock_far_off(rig: &Rig) -> Result<()> {
    for way in ["sh -c", "systemd-run --quiet --wait --pipe sh -c"] {
        rig.shell(&format!("{way} '{NO_SYS_TIME}'")).context("the machine may set the clock of its host")?;
    }
    rig.lab_ends(0, "metadata", &["fault", "date=150m"])?;
    // It asks for the metadata at once.
    rig.shell("systemctl restart openclaw-watch")?;
    becomes(rig, "degraded", "the clock is 2 hours behind", TRUTH)?;
    heals(rig, "openclaw-init status --json | grep -q 'cannot be set'")?;
    ensure!(reason(rig)?.contains("the clock is 2 hours behind"), "the run's reason is {}", reason(rig)?);
    rig.lab_ends(0, "metadata", &["fault", "clear"])?;
    rig.shell("systemctl restart openclaw-watch")?;
    becomes(rig, "ready", "", TRUTH)
}

/// The first ones use up what may be written in a minute. What the last one says is told all the same, as a whole.
fn runs_within_a_minute(rig: &Rig) -> Result<()> {
    for (port, code) in [("banana", 10), ("18789", 0), ("mango", 10)] {
        rig.attribute(&format!("openclaw-port={port}"))?;
        rig.lab_ends(code, "exec", &["--", "openclaw-init", "boot"])?;
    }
    becomes_with(rig, "failed", "mango", "failed:config-invalid", TRUTH)?;
    let detail = rig.guest_attributes()?["detail"].to_string();
    ensure!(detail.contains("config-invalid") && !detail.contains("banana"), "the detail is {detail}");
    rig.attribute("openclaw-port")?;
    start_again(rig)
}

/// It comes back, asks a silent server rarely, and is small.
fn watcher_in_trouble(rig: &Rig) -> Result<()> {
    rig.shell("systemctl kill --signal=KILL openclaw-watch; sleep 15; systemctl is-active openclaw-watch")?;
    rig.lab_ends(0, "metadata", &["fault", "status=503,for=60s"])?;
    let before = requests(rig)?;
    thread::sleep(Duration::from_secs(60));
    let requests = requests(rig)? - before;
    ensure!(requests <= REQUESTS_LIMIT, "{requests} requests in a minute");
    let memory = "grep VmRSS /proc/$(systemctl show -p MainPID --value openclaw-watch)/status | tr -dc 0-9";
    let memory: u64 = rig.shell(memory)?.parse().context("reading the watcher's memory")?;
    println!("watch: {requests} requests in a minute without an answer, {memory} KiB of memory");
    ensure!(host::profile() != "release" || memory <= PEAK_MEMORY_KIB / 2, "the watcher needs {memory} KiB");
    Ok(())
}

/// How many requests this program has made: Google's own programs give their names.
fn requests(rig: &Rig) -> Result<usize> {
    Ok(rig.requests()?.iter().filter(|request| request["user_agent"].is_null()).count())
}

/// How many runs the watcher has started.
pub(super) fn runs(rig: &Rig) -> Result<usize> {
    let journal =
        "journalctl --boot --quiet --no-pager --unit openclaw-watch | grep -c 'starting openclaw-init' || true";
    Ok(rig.shell(journal)?.parse()?)
}

fn reason(rig: &Rig) -> Result<String> {
    Ok(rig.status()?["reason"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the command succeeds.
pub(super) fn heals(rig: &Rig, command: &str) -> Result<()> {
    let seconds = HEALING.as_secs();
    let wait = format!("for i in $(seq {seconds}); do ({command}) > /dev/null 2>&1 && exit 0; sleep 1; done; exit 1");
    rig.shell(&wait).with_context(|| format!("waiting for {command}")).map(drop)
}

/// Waits until the guest attributes and the status file say `state`, with this in the detail; the boot ended ready.
fn becomes(rig: &Rig, state: &str, word: &str, within: Duration) -> Result<()> {
    becomes_with(rig, state, word, "ready", within)
}

/// The same with the `result` of the latest run that was asked for.
fn becomes_with(rig: &Rig, state: &str, word: &str, result: &str, within: Duration) -> Result<()> {
    let begun = Instant::now();
    let says = |attributes: &Value| {
        attributes["state"] == state && attributes["detail"].as_str().is_some_and(|detail| detail.contains(word))
    };
    loop {
        let (attributes, status) = (rig.guest_attributes()?, rig.status()?);
        if says(&attributes) && status["state"] == state && attributes["result"] == result {
            return Ok(());
        }
        ensure!(begun.elapsed() < within, "{state} ({word}) is not said, but {attributes} and {status}");
        thread::sleep(Duration::from_secs(2));
    }
}
