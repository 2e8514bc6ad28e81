//! The main job on one machine: first boot, second run, reboots, a newer binary.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::checks::{is_ready, needs_little_memory, units_are_valid};
use super::pages::Block;
use super::readme::Reader;
use super::rig::Rig;
use super::{shield, strangers};
use crate::cloud::content;

const TOKEN: &str = "grep ^OPENCLAW_GATEWAY_TOKEN= /home/node/.openclaw/.env";
const CONTAINER: &str = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' openclaw-gateway";

/// Prints where the secrets can be seen.
const SEARCH_SECRETS: &str = include_str!("../../scripts/main-job/search-secrets.sh");

/// What a person could see of the machine, to be compared before and after.
struct Seen {
    attributes: Value,
    token: String,
    pulls: usize,
    writes: usize,
}

pub(super) fn main_job_reboots_and_updates(rig: &Rig) -> Result<()> {
    let reader = Reader::of(rig)?;
    let up = reader.ends(0, Block::Lab, "")?;
    up.has(&["stage=metadata", "stage=disk", "stage=docker", "stage=image", "stage=gateway", "stage=ready", "18789"])?;
    reader.ends(1, Block::Lab, "")?.has(&["exists; `cargo lab down"])?;
    is_ready(rig)?;
    needs_little_memory(rig)?;
    data_is_on_the_disk(rig).context("the data disk")?;
    uid_is_the_gateways(rig).context("the gateway's uid")?;
    container_keeps_nothing(rig).context("the container's own files")?;
    container_reaches_the_internet(rig).context("forwarding")?;
    shield_holds(rig).context("the metadata shield")?;
    strangers::get_nothing(rig).context("another user of the VM")?;
    units_are_valid(rig)?;
    second_run_changes_nothing(rig).context("a second run")?;
    clean_reboot(rig).context("a clean reboot")?;
    hard_reboot(rig).context("a hard reboot")?;
    binary_gone_then_newer(rig).context("the binary at the URL")?;
    secrets_are_seen_nowhere(rig).context("the secrets")
}

fn data_is_on_the_disk(rig: &Rig) -> Result<()> {
    let mount = rig.shell("findmnt -no FSTYPE,SOURCE /home/node/.openclaw")?;
    ensure!(mount.starts_with("ext4") && mount.contains("/openclaw]"), "findmnt says {mount}");
    let access = rig.shell("stat -c '%u:%g %a' /home/node/.openclaw")?;
    ensure!(access == "1000:1000 700", "access is {access}");
    let published = rig.shell("docker port openclaw-gateway")?;
    ensure!(published == "18789/tcp -> 127.0.0.1:18789", "published as {published}");
    let shown = rig.shell("docker inspect openclaw-gateway")?;
    let token = rig.shell(TOKEN)?;
    let secret = token.split_once('=').map(|(_, secret)| secret).unwrap_or_default();
    ensure!(secret.len() == 64, "the token is not 64 digits");
    ensure!(!shown.contains(secret), "docker inspect shows the token");
    let console = rig.shell("journalctl --no-pager")?;
    ensure!(!console.contains(secret), "the journal shows the token");
    Ok(())
}

/// Whoever gets an account on the VM is not the gateway.
fn uid_is_the_gateways(rig: &Rig) -> Result<()> {
    let account = rig.shell("getent passwd 1000")?;
    ensure!(account.starts_with("openclaw-gateway:x:1000:65534:"), "uid 1000 is {account}");
    let login =
        rig.shell("setpriv --reuid 1000 --clear-groups true && su openclaw-gateway -c true 2>&1 || echo refused")?;
    ensure!(login.contains("not available") && login.ends_with("refused"), "it can log in: {login}");
    let first = rig.shell("useradd --create-home first && id -u first && userdel --remove first 2> /dev/null")?;
    ensure!(first == "1001", "the first account gets uid {first}");
    Ok(())
}

/// After first boot, reboots, an update of the program, and a backup: only `.env` holds the secrets, and Docker what an
/// attribute gave it.
fn secrets_are_seen_nowhere(rig: &Rig) -> Result<()> {
    const FILE: &str = "/root/.secrets";
    rig.attribute("openclaw-env-SECRET_X=canary-4b1d5f0c9a7e2368")?;
    rig.boot(0)?.has(&["openclaw-env-SECRET_X: a secret by its name", "docker inspect"])?;
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "backup"])?;
    let found = rig.script(SEARCH_SECRETS, &[FILE])?;
    ensure!(found.is_empty(), "seen in:\n{found}");
    let secrets = rig.shell(&format!("cat {FILE} && rm {FILE}"))?;
    let outside = [
        ("the guest attributes", rig.guest_attributes()?.to_string()),
        ("the console", String::from_utf8_lossy(&std::fs::read(rig.machine()?.console())?).into_owned()),
        ("a request to the metadata server", rig.lab_ends(0, "requests", &[])?.text),
    ];
    for secret in secrets.lines() {
        for (place, text) in &outside {
            ensure!(!text.is_empty() && !text.contains(secret), "seen in {place}");
        }
    }
    Ok(())
}

/// A container's request to the metadata server crosses the forward hook: with our table it ends there, without it, it
/// arrives. A flushed table comes back by itself. Where it cannot, the gateway ends, and nobody can start it.
fn shield_holds(rig: &Rig) -> Result<()> {
    rig.shell("docker exec openclaw-gateway getent hosts metadata.google.internal").context("DNS in a container")?;
    let cloud = shield::Cloud::open(rig, "$(docker inspect -f '{{.Image}}' openclaw-gateway)")?;
    rig.shell(&format!("nft delete table inet openclaw_init; {}", shield::SETTLE))?;
    shield::outlives_other_tools(rig)?;
    rig.boot(0)?.has(&["stage=shield status=ok changes=0"])?;
    shield_fails_closed(rig)?;
    cloud.close(rig)
}

fn shield_fails_closed(rig: &Rig) -> Result<()> {
    let is_down = |when: &str| {
        let running = "docker ps -q --filter name=openclaw-gateway | grep -q . && echo running || echo down";
        rig.shell(&format!("for i in $(seq 20); do [ \"$({running})\" = down ] && break; sleep 0.5; done"))?;
        let started = rig.shell("docker start openclaw-gateway 2>&1 || echo refused")?;
        ensure!(started.contains("in-force") && started.ends_with("refused"), "{when}, docker start says {started}");
        Ok(())
    };
    // The package is damaged: from now on nothing loads a table.
    rig.shell("printf '#!/bin/sh\nexit 1\n' > /usr/local/sbin/nft; chmod +x /usr/local/sbin/nft")?;
    // A gateway that hears no signal has no grace either.
    rig.shell("kill -STOP $(docker inspect -f '{{.State.Pid}}' openclaw-gateway)")?;
    rig.shell("/usr/sbin/nft delete table inet openclaw_init")?;
    is_down("after a flush")?;
    rig.lab("reboot", &["--hard"])?.has(&["unsupported-system", "openclaw-metadata-access=allow"])?;
    is_down("after a power cut")?;

    // Without its unit, which tries again every 5 s, a container that does not depend on it arrives: the network itself
    // is not what stops it.
    rig.shell("systemctl stop openclaw-shield.service && rm /usr/local/sbin/nft")?;
    shield::is_open_after_a_power_cut(rig)?;
    rig.boot(0)?.has(&["stage=shield status=ok changes=1"])?;
    shield::is_closed_to_builds_too(rig, "after a run")
}

/// Google's own `sysctl --system` switches forwarding off, and with it the container's internet.
fn container_reaches_the_internet(rig: &Rig) -> Result<()> {
    let off = "net.ipv4.ip_forward = 0";
    rig.shell(&format!("echo {off} > /etc/sysctl.d/60-gce-network-security.conf; sysctl -w net.ipv4.ip_forward=0"))?;
    rig.boot(0)?.has(&["result=ready", "changes=1"])?;
    rig.shell("sysctl --system")?;
    ensure!(rig.shell("cat /proc/sys/net/ipv4/ip_forward")? == "1", "sysctl --system switches forwarding off");
    rig.boot(0)?.has(&["changes=0"])?;
    rig.shell("docker exec openclaw-gateway getent hosts host.docker.internal").context("the VM's own name")?;
    Ok(())
}

/// What a program in the container changes is gone when it starts anew, and cannot fill the boot disk.
fn container_keeps_nothing(rig: &Rig) -> Result<()> {
    let inside = |command: &str| rig.shell(&format!("docker exec openclaw-gateway sh -c '{command}' 2>&1 || true"));
    for path in ["/app/openclaw.mjs", "/usr/local/bin/node", "/home/node/.bashrc"] {
        let written = inside(&format!("echo x >> {path}"))?;
        ensure!(
            written.contains("Read-only file system") || written.contains("Permission denied"),
            "{path}: {written}"
        );
    }
    let full = inside("cat /dev/zero > /tmp/full; ls -s /tmp/full; rm /tmp/full")?;
    ensure!(full.contains("No space left on device"), "/tmp has no limit: {full}");
    let changed = rig.shell("docker diff openclaw-gateway")?;
    ensure!(changed.lines().all(|line| !line.starts_with("A /app") && !line.starts_with("C /app")), "{changed}");
    Ok(())
}

fn second_run_changes_nothing(rig: &Rig) -> Result<()> {
    // What the runs before were not allowed to say within a minute is said by the first one after it.
    thread::sleep(Duration::from_secs(61));
    rig.boot(0)?;
    let (container, writes, pulls) = (rig.shell(CONTAINER)?, rig.writes()?, pulls(rig)?);
    let packages = rig.shell("stat -c %Y /var/log/dpkg.log")?;
    rig.boot(0)?.has(&["result=ready", "changes=0"])?;
    ensure!(rig.shell(CONTAINER)? == container, "the container was touched");
    ensure!(rig.writes()? == writes, "guest attributes were written: {:?}", rig.writes()?);
    ensure!(pulls == self::pulls(rig)?, "an image was pulled");
    ensure!(rig.shell("stat -c %Y /var/log/dpkg.log")? == packages, "packages were touched");
    rig.lab_ends(0, "exec", &["--", "openclaw-init"])?.has(&["ready"])?;
    ensure!(rig.shell(CONTAINER)? == container, "the carrier touched the container");
    Ok(())
}

fn clean_reboot(rig: &Rig) -> Result<()> {
    let before = look(rig)?;
    rig.shell("docker exec openclaw-gateway sh -c 'echo kept > /home/node/.openclaw/kept'")?;
    let output = rig.lab_ends(0, "reboot", &[])?;
    output.has(&["exit code 0"]).context("the gateway's exit code at shutdown")?;
    last_boot_ended(rig, "clean", false)?;
    is_the_same_gateway(rig, &before)
}

/// By the report, which says a word of it only when it was not clean.
fn last_boot_ended(rig: &Rig, end: &str, is_said: bool) -> Result<()> {
    let status = rig.status()?;
    ensure!(status["last-boot"] == end, "the last boot was not {end}: {status}");
    let detail = rig.guest_attributes()?["detail"].to_string();
    let said = rig.lab_ends(0, "exec", &["--", "openclaw-init", "status"])?.text;
    for text in [detail, said] {
        ensure!(text.contains("boot before this one") == is_said, "it says {text}");
    }
    Ok(())
}

fn hard_reboot(rig: &Rig) -> Result<()> {
    let before = look(rig)?;
    rig.lab_ends(0, "reboot", &["--hard"])?;
    last_boot_ended(rig, "cut", true)?;
    is_the_same_gateway(rig, &before)
}

fn look(rig: &Rig) -> Result<Seen> {
    let writes = rig.writes()?.len();
    Ok(Seen { attributes: rig.guest_attributes()?, token: rig.shell(TOKEN)?, pulls: pulls(rig)?, writes })
}

fn is_the_same_gateway(rig: &Rig, before: &Seen) -> Result<()> {
    is_ready(rig)?;
    let after = look(rig)?;
    ensure!(after.attributes["boot-id"] != before.attributes["boot-id"], "the boot id is the old one");
    ensure!(after.token == before.token, "the token changed");
    ensure!(after.pulls == before.pulls, "the image was pulled again");
    ensure!(rig.shell("cat /home/node/.openclaw/kept")? == "kept", "a file in the state directory is gone");
    // Of this boot's writes the deletion is the first, and the one result the last. Before it the shutdown
    // may have said `stopping`.
    let writes = &rig.writes()?[before.writes..];
    let writes = writes.strip_prefix(&["PUT state".to_owned()]).unwrap_or(writes);
    ensure!(writes.first().map(String::as_str) == Some("DELETE result"), "the first write is another: {writes:?}");
    ensure!(writes.last().map(String::as_str) == Some("PUT result"), "the last write is another: {writes:?}");
    ensure!(writes.iter().filter(|write| *write == "PUT result").count() == 1, "two results: {writes:?}");
    Ok(())
}

/// Requests for image content that the registry got.
fn pulls(rig: &Rig) -> Result<usize> {
    let requests = content::requests(&rig.machine()?.content())?;
    let is_content = |path: &str| path.contains("/manifests/") || path.contains("/blobs/");
    Ok(requests.iter().filter(|request| is_content(&request.path)).count())
}

fn binary_gone_then_newer(rig: &Rig) -> Result<()> {
    let url = "startup-script-url=http://198.18.0.4";
    rig.attribute(&format!("{url}/gone"))?;
    rig.lab_ends(0, "reboot", &[])?;
    is_ready(rig)?;
    let installed = rig.shell("sha256sum /usr/local/bin/openclaw-init")?;
    std::fs::copy(rig.newer_binary(), rig.machine()?.files().join("newer"))?;
    rig.attribute(&format!("{url}/newer"))?;
    let before = look(rig)?;
    rig.lab_ends(0, "reboot", &[])?;
    let carrier = "journalctl -b -u google-startup-scripts --no-pager | grep -c 'exit status' || true";
    rig.shell(&format!("for i in $(seq 120); do [ \"$({carrier})\" != 0 ] && break; sleep 1; done"))?;
    is_the_same_gateway(rig, &before).context("after a newer binary, whose default version is newer")?;
    ensure!(rig.shell("sha256sum /usr/local/bin/openclaw-init")? != installed, "the newer binary was not installed");
    Ok(())
}
