//! Another version, and back: image and state always go together.

use anyhow::{Context, Result, ensure};

use super::rig::{CommandOutput, Rig};
use super::{evil, gateway_cli, watch};
use crate::cloud::fake_gateway;
use crate::cloud::images::{GATEWAY_VERSION, OLDER_GATEWAY_VERSION};

const CONTAINER: &str = "docker inspect -f '{{.Id}} {{.State.StartedAt}}' openclaw-gateway";
const TOKEN: &str = "grep OPENCLAW_GATEWAY_TOKEN /home/node/.openclaw/.env";
/// The names of what is beside the state directory.
const KEPT: &str = "ls -d /mnt/disks/openclaw-data/openclaw.* 2>/dev/null | xargs -rn1 basename | sed 's/-2.*//'";

/// Runs `openclaw-init ARGUMENTS` in the machine, which must end with `code`.
fn init(rig: &Rig, code: i32, arguments: &[&str]) -> Result<CommandOutput> {
    rig.lab_ends(code, "exec", &[&["--", "openclaw-init"], arguments].concat())
}

/// The version by the status file: several runs in a minute are more than the guest attributes may tell.
fn runs(rig: &Rig, version: &str) -> Result<()> {
    let (told, status) = (rig.guest_attributes()?, rig.status()?);
    ensure!(told["result"] == "ready" && status["version"] == version, "{version} should be ready: {told} {status}");
    let image = rig.shell("docker inspect -f '{{.Config.Image}}' openclaw-gateway")?;
    ensure!(image.ends_with(&format!(":{version}")), "the container's image is {image} instead of {version}");
    rig.shell("curl -fsS http://127.0.0.1:18789/readyz | grep -q '\"ready\":true'").map(drop)
}

/// The real programs: 2026.9.6 migrates the state of 2026.8.2.
pub(super) fn real_versions_there_and_back(rig: &Rig) -> Result<()> {
    let (old, new) = (OLDER_GATEWAY_VERSION, GATEWAY_VERSION);
    rig.up(&["--attr", &format!("openclaw-version={old}")])?;
    runs(rig, old)?;
    let (token, container) = (rig.shell(TOKEN)?, rig.shell(CONTAINER)?);
    refused_before_anything_is_touched(rig, &container)?;

    // A file is written all the time, also while the state is copied.
    let write = "docker exec openclaw-gateway sh -c \"date +%s%N >> /home/node/.openclaw/log\"";
    rig.shell(&format!("systemd-run --unit=writer sh -c 'while sleep 0.5; do {write}; done'"))?;
    rig.attribute(&format!("openclaw-version={new}"))?;
    let output = rig.boot(0)?;
    output.has(&["stage=update status=ok", &format!("updated OpenClaw {old} to {new}")])?;
    rig.shell("systemctl stop writer")?;
    runs(rig, new)?;
    ensure!(rig.shell(TOKEN)? == token, "the token changed");
    let downtime = rig.status()?["update"]["downtime-ms"].as_u64().context("no downtime is reported")?;
    println!("update: no gateway answered for {downtime} ms between {old} and {new}");
    let lines = |path: &str| -> Result<usize> { Ok(rig.shell(&format!("cat {path} | wc -l"))?.parse()?) };
    let (kept, live) =
        (lines("/mnt/disks/openclaw-data/openclaw.before-update-*/log")?, lines("/home/node/.openclaw/log")?);
    ensure!(kept > 0 && live > kept, "{kept} lines were kept, {live} are in the state");
    ensure!(rig.shell(KEPT)? == "openclaw.before-update", "beside the state: {}", rig.shell(KEPT)?);

    rig.lab_ends(0, "reboot", &[])?;
    runs(rig, new)?;
    let container = rig.shell(CONTAINER)?;
    init(rig, 33, &["rollback"])?.has(&["--set-newer-state-aside", old, "ago"])?;
    ensure!(rig.shell(CONTAINER)? == container, "asking touched the container");
    init(rig, 0, &["rollback", "--set-newer-state-aside"])?.has(&["openclaw.before-rollback-"])?;
    runs(rig, old)?;
    ensure!(lines("/home/node/.openclaw/log")? == kept, "the state is not that of the copy");
    ensure!(lines("/mnt/disks/openclaw-data/openclaw.before-rollback-*/log")? == live, "the newer state is not whole");
    ensure!(rig.shell(TOKEN)? == token, "the token changed");
    rig.lab_ends(0, "reboot", &[])?;
    runs(rig, old)?;
    rig.boot(0)?.has(&["changes=0"])?;
    init(rig, 33, &["rollback", "--set-newer-state-aside"])?.has(&["no update is known"])?;
    Ok(())
}

fn refused_before_anything_is_touched(rig: &Rig, container: &str) -> Result<()> {
    init(rig, 20, &["update", "--to", "2026.9.999"])?.has(&["2026.9.999"])?;
    init(rig, 33, &["update", "--to", "2026.1.1"])?.has(&["older than", "rollback"])?;
    ensure!(rig.shell(CONTAINER)? == container, "the container was touched");
    rig.attribute("openclaw-version=2026.9.999")?;
    rig.boot(0)?.has(&["warning:", "2026.9.999"])?;
    // It is tried once. From now on a run only says so.
    rig.boot(0)?.has(&["openclaw-version=2026.9.999 is not followed", "changes=0"])?;
    ensure!(rig.shell(CONTAINER)? == container, "the container was touched");
    Ok(())
}

/// With the fake gateway: a version that migrates the state and never becomes ready is undone. A version that asks for
/// its doctor is kept. What an evil version does stays inside.
pub(super) fn broken_versions_are_undone(rig: &Rig) -> Result<()> {
    let version = format!("openclaw-version={}", fake_gateway::FIRST);
    // What is read between two runs must not be of a third one.
    let attributes = ["--attr", &version, "--attr", "openclaw-ready-timeout=1m", "--attr", "openclaw-apply=boot"];
    rig.up(&attributes)?;
    runs(rig, fake_gateway::FIRST)?;
    rig.shell("echo kept > /home/node/.openclaw/kept")?;
    let token = rig.shell(TOKEN)?;

    rig.attribute(&format!("openclaw-version={}", fake_gateway::NEVER_READY))?;
    rig.boot(0)?.has(&["was undone", "openclaw.before-rollback-", "did not become ready"])?;
    runs(rig, fake_gateway::FIRST)?;
    is_first_state(rig, &token)?;
    let detail = rig.status()?["detail"].to_string();
    ensure!(detail.contains("update-failed") && detail.contains("was undone"), "the report says {detail}");
    let downtime = rig.status()?["update"]["downtime-ms"].as_u64().context("no downtime is reported")?;
    println!("undone update: no gateway answered for {downtime} ms");
    rig.lab_ends(0, "reboot", &[])?;
    runs(rig, fake_gateway::FIRST)?;
    let told = rig.status()?["detail"]["warnings"].to_string();
    ensure!(told.contains("is not followed"), "the warnings are {told}");
    rig.boot(0)?.has(&["changes=0"])?;

    // An update by hand wins over the attribute. Without its doctor this version would not start.
    init(rig, 0, &["update", "--to", fake_gateway::WANTS_DOCTOR])?.has(&["updated OpenClaw"])?;
    rig.lab_ends(0, "reboot", &[])?;
    runs(rig, fake_gateway::WANTS_DOCTOR)?;
    init(rig, 0, &["rollback", "--set-newer-state-aside"])?;
    rig.lab_ends(0, "reboot", &[])?;
    runs(rig, fake_gateway::FIRST)?;
    is_first_state(rig, &token)?;

    // A start that a cold disk makes fail is repeated, whatever its exit code.
    for version in fake_gateway::COLD {
        init(rig, 0, &["update", "--to", version])?.has(&["updated OpenClaw"])?;
        let restarts = rig.shell("docker inspect -f '{{.RestartCount}}' openclaw-gateway")?;
        ensure!(restarts == "2", "{version} was started again {restarts} times");
    }
    loses_no_plugin(rig).context("a version without a plugin")?;
    begins_anew_at_every_boot(rig).context("a writable container")?;
    gateway_cli::runs_whatever_the_gateway_does(rig).context("the gateway's own commands")?;
    evil::harms_nobody(rig).context("an evil gateway")
}

/// A start that may take long is waited for, by the run and by the watcher: it is neither hung nor undone.
pub(super) fn a_slow_start_is_waited_for(rig: &Rig) -> Result<()> {
    let first = format!("openclaw-version={}", fake_gateway::FIRST);
    rig.up(&["--attr", &first, "--attr", "openclaw-ready-timeout=10m"])?;
    init(rig, 0, &["update", "--to", fake_gateway::SLOW])?.has(&["updated OpenClaw"])?;
    runs(rig, fake_gateway::SLOW)?;
    // The engine starts it again, and a watcher alone looks on: at 300 s it would be called hung.
    let before = watch::runs(rig)?;
    rig.shell("docker restart --time 5 openclaw-gateway")?;
    let ready = "for i in $(seq 500); do curl -fsS http://127.0.0.1:18789/readyz && exit 0; sleep 1; done; exit 1";
    rig.shell(ready)?;
    ensure!(watch::runs(rig)? == before, "the watcher has started a run");
    let started = "docker inspect -f '{{.RestartCount}} {{.State.StartedAt}}' openclaw-gateway";
    let started = rig.shell(started)?;
    rig.boot(0)?.has(&["changes=0"])?;
    ensure!(started.starts_with('0'), "it was started again: {started}");
    Ok(())
}

/// What a version does not load any more is named, and undoes the update unless the operator takes the loss; then the
/// gateway is ready without it. Nobody misses a plugin that `openclaw.json` does not ask for.
fn loses_no_plugin(rig: &Rig) -> Result<()> {
    let (version, last) = (fake_gateway::WITHOUT_PLUGIN, fake_gateway::COLD[1]);
    let entries = |entries: &str| {
        rig.shell(&format!(
            "openclaw config set --batch-json '[{{\"path\": \"plugins.entries\", \"value\": {entries}}}]'"
        ))
    };
    entries(r#"{"pigeon": {"enabled": true}}"#)?;
    let undone = init(rig, 33, &["update", "--to", version])?;
    undone.has(&["does not load pigeon", "openclaw-update-accept=loss", "was undone"])?;
    runs(rig, last)?;
    ensure!(rig.status()?["state"] == "ready", "the status is {}", rig.status()?);

    rig.attribute("openclaw-update-accept=loss")?;
    rig.boot(0)?;
    init(rig, 0, &["update", "--to", version])?
        .has(&[&format!("updated OpenClaw {last} to {version} without pigeon")])?;
    rig.boot(0)?.has(&["changes=0"])?;
    ensure!(rig.status()?["state"] == "ready", "the status is {}", rig.status()?);
    rig.attribute("openclaw-update-accept")?;
    rig.boot(0)?;
    is_missed_until_nobody_asks(rig, entries)
}

/// What was changed in a container that can be is gone after a power cut, and never starts again.
fn begins_anew_at_every_boot(rig: &Rig) -> Result<()> {
    rig.attribute("openclaw-container-root=writable")?;
    rig.boot(0)?;
    rig.shell("docker cp /etc/hostname openclaw-gateway:/app/mark && sync")?;
    rig.lab_ends(0, "reboot", &["--hard"])?;
    let engine = rig.shell("journalctl --boot --unit docker --no-pager | grep -c openclaw-init/this-boot || true")?;
    ensure!(engine != "0", "the engine started the container of the boot before");
    let copied = rig.shell("docker cp openclaw-gateway:/app/mark - > /dev/null 2>&1; echo $?")?;
    ensure!(copied != "0", "the change outlived the boot");
    rig.attribute("openclaw-container-root")?;
    rig.boot(0)?;
    rig.boot(0)?.has(&["changes=0"]).map(drop)
}

/// The record of a machine on which the plugin was loaded, as after a restore.
fn is_missed_until_nobody_asks(rig: &Rig, entries: impl Fn(&str) -> Result<String>) -> Result<()> {
    let record = "/mnt/disks/openclaw-data/openclaw-init/record.json";
    rig.shell(&format!("sed -i 's/\"openai\"/\"openai\", \"pigeon\"/' {record}"))?;
    for _ in 0..2 {
        rig.boot(0)?.has(&["the plugin pigeon is not loaded", "openclaw plugins list"])?;
        ensure!(rig.status()?["state"] == "degraded", "the status is {}", rig.status()?);
    }
    entries("{}")?;
    rig.boot(0)?;
    ensure!(rig.status()?["state"] == "ready", "the status is {}", rig.status()?);
    rig.boot(0)?.has(&["changes=0"]).map(drop)
}

fn is_first_state(rig: &Rig, token: &str) -> Result<()> {
    ensure!(rig.shell("cat /home/node/.openclaw/kept")? == "kept", "a file is gone");
    ensure!(rig.shell(TOKEN)? == token, "the token changed");
    let state = rig.shell("cat /home/node/.openclaw/state/fake-gateway.json")?;
    ensure!(state.contains("\"schema\":1"), "the state is {state}");
    Ok(())
}
