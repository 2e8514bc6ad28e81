//! `openclaw-config`: the operator's part of `openclaw.json`, and everybody else's.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::checks::is_ready;
use super::rig::Rig;
use super::watch::{heals, runs};
use crate::cloud::network;

const FILE: &str = "cat /home/node/.openclaw/openclaw.json";
const STARTED: &str = "docker inspect -f '{{.State.StartedAt}}' openclaw-gateway";
const SET: &str = "docker exec openclaw-gateway node openclaw.mjs config set --strict-json";
const READY: &str = "curl -fsS http://127.0.0.1:18789/readyz";

/// A secret that nothing may repeat.
const CANARY: &str = "canary-5eed5eed";

pub(super) fn by_attribute(rig: &Rig) -> Result<()> {
    let first = file(rig)?;
    rig.shell(&format!("{SET} ui.seamColor '\"#112233\"'"))?;
    let set = json!({"logging": {"level": "debug"}, "agents": {"defaults": {"heartbeat": {"every": "2h"}}}});
    are_merged_while_it_runs(rig, &set).context("merging them")?;
    are_refused_while_it_runs(rig).context("what the gateway refuses")?;
    are_taken_back(rig).context("what it does not start with")?;
    ten_changes_are_one_restart(rig).context("ten changes")?;
    reboot_without_internet(rig).context("a reboot without internet")?;

    rig.attribute("openclaw-config")?;
    rig.boot(0)?.has(&["result=ready"])?;
    let mut last = file(rig)?;
    ensure!(last["ui"]["seamColor"] == "#112233", "the user's setting is gone: {last}");
    for added in ["meta", "ui"] {
        last.as_object_mut().context("it is an object")?.remove(added);
    }
    ensure!(last == first, "it was {first}, and is {last}");
    rig.boot(0)?.has(&["changes=0", "result=ready"]).map(drop)
}

fn file(rig: &Rig) -> Result<Value> {
    let text = rig.shell(FILE)?;
    serde_json::from_str(&text).with_context(|| format!("reading {text}"))
}

pub(super) fn set(rig: &Rig, settings: &Value) -> Result<()> {
    rig.attribute(&format!("openclaw-config={settings}"))
}

/// The paths are the operator's; the rest is not. Nothing of this needs a restart.
fn are_merged_while_it_runs(rig: &Rig, settings: &Value) -> Result<()> {
    let started = rig.shell(STARTED)?;
    set(rig, settings)?;
    let begun = Instant::now();
    rig.boot(0)?.has(&["result=ready"])?;
    println!("settings: applied to a running gateway in {:.1} s", begun.elapsed().as_secs_f32());
    let changes = rig.status()?["changes"]["list"].to_string();
    let words = "set agents.defaults.heartbeat.every, logging.level in openclaw.json";
    ensure!(changes.contains(words), "the changes are {changes}");
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;

    rig.shell(&format!("{SET} logging.level '\"warn\"'"))?;
    rig.boot(0)?.has(&["result=ready"])?;
    let now = file(rig)?;
    ensure!(now["ui"]["seamColor"] == "#112233", "the user's setting is gone: {now}");
    ensure!(now["logging"] == settings["logging"] && now["agents"] == settings["agents"], "it is {now}");
    ensure!(rig.shell(STARTED)? == started, "the gateway was restarted");
    rig.boot(0)?.has(&["changes=0", "result=ready"]).map(drop)
}

fn are_refused_while_it_runs(rig: &Rig) -> Result<()> {
    let (before, started) = (file(rig)?, rig.shell(STARTED)?);
    let wrong = json!({"logging": {"level": "loud"}, "models": {"providers": {"x": {"apiKey": CANARY}}}});
    set(rig, &wrong)?;
    let output = rig.boot(38)?;
    output.has(&["failed:config-refused", "logging.level: Invalid input", "sudo openclaw-init boot"])?;
    set(rig, &json!({"gateway": {"controlUi": {"dangerouslyDisableDeviceAuth": true}}}))?;
    rig.boot(10)?.has(&["failed:config-invalid", "pairing"])?;
    set(rig, &json!({"gateway": {"port": 1, "auth": {"password": CANARY}}}))?;
    let invalid = rig.boot(10)?;
    invalid.has(&["gateway.port", "openclaw-port"])?;
    ensure!(!output.text.contains(CANARY) && !invalid.text.contains(CANARY), "a value was repeated");
    ensure!(file(rig)? == before && rig.shell(STARTED)? == started, "something was changed");
    rig.shell(READY)?;
    let journal = rig.shell(&format!("journalctl --quiet --no-pager | grep -c {CANARY} || true"))?;
    ensure!(journal == "0", "the journal has the value in {journal} lines");
    Ok(())
}

/// Settings that pass the check of the gateway's tool, and with which it does not start.
fn are_taken_back(rig: &Rig) -> Result<()> {
    let before = file(rig)?;
    let tls = json!({"enabled": true, "certPath": "/nowhere.pem", "keyPath": "/nowhere.key"});
    set(rig, &json!({"gateway": {"tls": tls}, "logging": {"level": "debug"}}))?;
    rig.boot(38)?.has(&["failed:config-refused", "tls", "sudo openclaw-init boot"])?;
    ensure!(file(rig)? == before, "it was {before}, and is {}", file(rig)?);
    rig.shell(READY)?;
    let started = rig.shell(STARTED)?;
    rig.boot(38)?.has(&["failed:config-refused", "not tried again", "changes=0"])?;
    ensure!(rig.shell(STARTED)? == started, "it was restarted again");
    let left = rig.shell("find / -xdev -name 'settings-*.json' 2> /dev/null; ls /run/openclaw-init/private")?;
    ensure!(!left.contains("settings-"), "this is left: {left}");
    Ok(())
}

/// Of a kind that a running gateway cannot apply. The watcher sees them.
fn ten_changes_are_one_restart(rig: &Rig) -> Result<()> {
    let (before, started) = (runs(rig)?, rig.shell(STARTED)?);
    for number in 0..10 {
        set(
            rig,
            &json!({"gateway": {"controlUi": {"basePath": format!("/claw-{number}")}}, "logging": {"level": "debug"}}),
        )?;
    }
    let changed = Instant::now();
    heals(rig, &format!("{FILE} | grep -q claw-9 && [ \"$({STARTED})\" != {started} ] && {READY}"))?;
    println!("settings: the last of ten changes was applied after {} s", changed.elapsed().as_secs());
    thread::sleep(Duration::from_secs(20));
    ensure!(runs(rig)? == before + 1, "{} runs instead of one", runs(rig)? - before);
    let ends = rig.shell("docker inspect -f '{{.RestartCount}}' openclaw-gateway")?;
    ensure!(ends == "0", "the gateway has ended {ends} times by itself");
    rig.boot(0)?.has(&["changes=0", "result=ready"]).map(drop)
}

fn reboot_without_internet(rig: &Rig) -> Result<()> {
    let (lab, before) = (rig.machine()?, file(rig)?);
    network::cut_internet(&lab)?;
    rig.lab_ends(0, "reboot", &[])?;
    is_ready(rig)?;
    ensure!(file(rig)? == before, "it was {before}, and is {}", file(rig)?);
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    network::mend_internet(&lab)
}
