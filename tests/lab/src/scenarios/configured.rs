//! The gateway as its users configure it: ready, degraded with a name, or a failure that says which setting it is.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::checks::is_ready;
use super::rig::{CommandOutput, Rig};
use super::settings;

const FILE: &str = "/home/node/.openclaw/openclaw.json";
/// The token and the name under which `.env` has it.
const TOKEN: &str = "grep -o '[A-Z_]*TOKEN=.*' /home/node/.openclaw/.env";
/// Asks the gateway for its health as the engine does.
const HEALTH: &str = "docker exec openclaw-gateway node -e \"$(docker inspect -f '{{index .Config.Healthcheck.Test 3}}' \
    openclaw-gateway)\"";
/// Prints the status of an answer.
const ASK: &str = "curl -s -m 5 -o /dev/null -w '%{http_code}'";
/// A browser's WebSocket from the address in front.
const UPGRADE: &str = "-H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
    -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H 'Origin: https://claw.example.com'";
/// Kills the gateway's process, as the kernel would, and waits until the engine has it serving again.
const CRASH: &str = include_str!("../../scripts/configured/crash.sh");

pub(super) fn every_way_of_use(rig: &Rig) -> Result<()> {
    rig.up(&[])?;
    is_ready(rig)?;
    settings::by_attribute(rig).context("settings by attribute")?;
    public_url(rig).context("an address in front")?;
    time_zone(rig).context("a time zone")?;
    limits(rig).context("limits of the container")?;
    let token = rig.shell(TOKEN)?;
    serves_with_tls_behind_a_proxy(rig).context("TLS and a proxy on the VM")?;
    every_mode_of_authentication(rig, &token).context("modes of authentication")?;
    tailscale_is_named(rig).context("Tailscale")?;
    small_heap_is_named(rig).context("a small heap")?;
    breaker_is_degraded(rig).context("the crash-loop breaker")?;
    write(rig, &json!({}))?;
    rig.boot(0)?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    ensure!(rig.status()?["state"] == "ready", "the status is {}", rig.status()?);
    Ok(())
}

/// Writes `openclaw.json`, with the settings of `gateway` and of `channels` among its own, while nothing runs. Without
/// the `meta` that its tool has written once, the gateway would take the file for a broken one.
fn write(rig: &Rig, added: &Value) -> Result<()> {
    let mut document = json!({"gateway": {"mode": "local", "bind": "lan"}});
    let former = rig.shell(&format!("cat {FILE}"))?;
    if let Some(meta) = serde_json::from_str::<Value>(&former).ok().and_then(|former| former.get("meta").cloned()) {
        document["meta"] = meta;
    }
    for (section, values) in added.as_object().into_iter().flatten() {
        for (key, value) in values.as_object().into_iter().flatten() {
            document[section][key] = value.clone();
        }
    }
    rig.shell(&format!("docker stop --time 30 openclaw-gateway && cat > {FILE} <<'EOF'\n{document}\nEOF")).map(drop)
}

/// It becomes ready with these settings, and the next run finds nothing to do.
fn is_ready_with(rig: &Rig, added: &Value) -> Result<CommandOutput> {
    write(rig, added)?;
    let output = rig.boot(0)?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    let state = rig.status()?["state"].clone();
    ensure!(state == "ready", "with {added} it is {state}");
    Ok(output)
}

/// The same with settings of the attribute, to which a gateway that runs comes without being stopped before.
fn is_ready_by(rig: &Rig, set: &Value) -> Result<()> {
    settings::set(rig, set)?;
    rig.boot(0)?.has(&["result=ready"])?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    let state = rig.status()?["state"].clone();
    ensure!(state == "ready", "with {set} it is {state}");
    Ok(())
}

fn time_zone(rig: &Rig) -> Result<()> {
    rig.attribute("openclaw-timezone=Europe/Madird")?;
    rig.boot(10)?.has(&["openclaw-timezone=Europe/Madird", "no such time zone"])?;
    rig.attribute("openclaw-timezone=Asia/Kathmandu")?;
    rig.boot(0)?.has(&["result=ready"])?;
    let offset = rig.shell("docker exec openclaw-gateway node -p 'new Date().getTimezoneOffset()'")?;
    ensure!(offset == "-345", "the gateway's clock is {offset} minutes ahead of UTC");
    rig.attribute("openclaw-timezone")
}

/// What the container may take, as the engine and the container itself see it. An engine in a machine that has no such
/// control group keeps no limit, which is warned about.
fn limits(rig: &Rig) -> Result<()> {
    const SEEN: &str = "docker inspect -f '{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}' openclaw-gateway; \
                        docker exec openclaw-gateway df --block-size=1M --output=size /tmp | tail -n 1 | tr -d ' '; \
                        docker exec openclaw-gateway printenv NODE_OPTIONS";
    let before = rig.shell(SEEN)?;
    rig.attribute("openclaw-memory=30000000M")?;
    rig.boot(10)?.has(&["openclaw-memory is more than the", "of memory that this VM has"])?;
    for attribute in ["openclaw-memory=1G", "openclaw-pids=400", "openclaw-tmp=96M"] {
        rig.attribute(attribute)?;
    }
    let output = rig.boot(0)?;
    output.has(&["result=ready"])?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    let kept = rig.shell("docker info -f '{{.MemoryLimit}} {{.PidsLimit}}'")?;
    let expected = match kept.split_once(' ') {
        Some(("true", "true")) => "1073741824 400",
        Some(("true", _)) => "1073741824 <nil>",
        Some((_, "true")) => "0 400",
        _ => "0 <nil>",
    };
    let seen = rig.shell(SEEN)?;
    ensure!(seen == format!("{expected}\n96\n--max-old-space-size=512"), "it is {seen}, and was {before}");
    for (attribute, is_kept) in ["openclaw-memory", "openclaw-pids"].into_iter().zip(kept.split(' ')) {
        let is_warned = output.text.contains(&format!("{attribute} has no effect"));
        ensure!(is_warned == (is_kept == "false"), "the engine says {kept}, and the run: {}", output.text);
    }
    for attribute in ["openclaw-memory", "openclaw-pids", "openclaw-tmp"] {
        rig.attribute(attribute)?;
    }
    rig.boot(0)?.has(&["result=ready"])?;
    let seen = rig.shell(SEEN)?;
    ensure!(seen == before, "it is {seen}, and was {before}");
    Ok(())
}

/// Only who comes through a proxy gets in, from the address in front; without it everything is as before.
fn public_url(rig: &Rig) -> Result<()> {
    let before = rig.shell(&format!("cat {FILE}"))?;
    let answers = |options: &str, code: &str| {
        // A running gateway takes a changed setting when it sees it; a WebSocket stays open until curl gives up.
        let ask = format!("{ASK} {options} http://127.0.0.1:18789/");
        let answer =
            rig.shell(&format!("for i in $(seq 30); do a=$({ask}); [ $a = {code} ] && break; sleep 1; done; echo $a"))?;
        ensure!(answer == code, "{options}: {answer} instead of {code}");
        Ok(())
    };
    rig.attribute("openclaw-public-url=https://claw.example.com")?;
    rig.boot(0)?.has(&["result=ready"])?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    let document: Value = serde_json::from_str(&rig.shell(&format!("cat {FILE}"))?)?;
    let origins = ["https://claw.example.com", "http://localhost:18789", "http://127.0.0.1:18789"];
    ensure!(document["gateway"]["controlUi"]["allowedOrigins"] == json!(origins), "it is {document}");
    ensure!(document["gateway"]["trustedProxies"] == json!(["172.17.0.1"]), "it is {document}");
    let forwarded = "-H 'X-Forwarded-For: 203.0.113.9'";
    for (options, code) in [("", "403"), (forwarded, "200"), (&format!("{UPGRADE} {forwarded}"), "101")] {
        answers(options, code)?;
    }
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "link"])?.has(&["https://claw.example.com/#token="])?;

    rig.attribute("openclaw-public-url")?;
    rig.boot(0)?.has(&["result=ready"])?;
    let mut after: Value = serde_json::from_str(&rig.shell(&format!("cat {FILE}"))?)?;
    let mut before: Value = serde_json::from_str(&before)?;
    for document in [&mut after, &mut before] {
        document.as_object_mut().context("it is an object")?.remove("meta");
    }
    ensure!(after == before, "it was {before}, and is {after}");
    answers("", "200").context("the tunnel")?;
    rig.boot(0)?.has(&["changes=0", "result=ready"]).map(drop)
}

fn serves_with_tls_behind_a_proxy(rig: &Rig) -> Result<()> {
    is_ready_by(rig, &json!({"gateway": {"tls": {"enabled": true}, "trustedProxies": ["172.17.0.1"]}}))?;
    let probe = rig.shell("curl -sk -o /dev/null -w '%{http_code}' https://127.0.0.1:18789/readyz")?;
    ensure!(probe == "403", "a request that names no client is answered with {probe}");
    rig.shell(HEALTH).context("the container's health").map(drop)
}

/// By attribute and by file; what no gateway starts with is refused.
fn every_mode_of_authentication(rig: &Rig, token: &str) -> Result<()> {
    write(rig, &json!({"gateway": {"auth": {"mode": "none"}}}))?;
    rig.boot(28)?.has(&["gateway.auth.mode"])?;
    write(rig, &json!({}))?;
    let proxy = json!({"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-forwarded-user"}});
    rig.attribute("openclaw-public-url=https://claw.example.com")?;
    is_ready_by(rig, &json!({"gateway": {"auth": proxy}}))?;
    let kept = rig.shell(TOKEN)?;
    ensure!(!kept.contains("GATEWAY_TOKEN") && kept.ends_with(secret(token)), "the token is not kept");
    rig.attribute("openclaw-public-url")?;
    is_ready_by(rig, &json!({"gateway": {"auth": {"mode": "password", "password": "a password of mine"}}}))?;
    ensure!(rig.shell(TOKEN)? == token, "the token did not come back");
    ensure!(rig.shell("openclaw-init link")? == "http://localhost:18789/", "the link has a token");
    settings::set(rig, &json!({"gateway": {"auth": {"mode": "none"}}}))?;
    rig.boot(10)?.has(&["gateway.auth.mode must be token, password, trusted-proxy"])?;
    rig.attribute("openclaw-config")?;
    let own = "0123456789abcdef".repeat(4);
    let output = is_ready_with(rig, &json!({"gateway": {"auth": {"mode": "token", "token": own}}}))?;
    output.has(&["gateway.auth.token", "from now on"])?;
    ensure!(secret(&rig.shell(TOKEN)?) == own, "the wizard's token is not in .env");
    ensure!(!output.text.contains(&own), "the token was printed");
    Ok(())
}

fn secret(line: &str) -> &str {
    line.split_once('=').map_or("", |(_, secret)| secret)
}

fn tailscale_is_named(rig: &Rig) -> Result<()> {
    write(rig, &json!({"gateway": {"bind": "loopback", "tailscale": {"mode": "serve"}}}))?;
    rig.boot(28)?.has(&["gateway.tailscale.mode to off", "sudo openclaw-init boot"]).map(drop)
}

fn small_heap_is_named(rig: &Rig) -> Result<()> {
    write(rig, &json!({}))?;
    rig.attribute("openclaw-env-NODE_OPTIONS=--max-old-space-size=100")?;
    let output = rig.boot(38)?;
    output.has(&["openclaw-env-NODE_OPTIONS", "heap out of memory"])?;
    ensure!(!output.text.contains(": 0x"), "addresses are told:\n{}", output.text);
    rig.attribute("openclaw-env-NODE_OPTIONS")
}

/// After three crashes within five minutes the gateway keeps its channels off, and calls itself ready.
fn breaker_is_degraded(rig: &Rig) -> Result<()> {
    let telegram = json!({"enabled": true, "botToken": "1:dummy", "apiRoot": "http://127.0.0.1:9"});
    write(rig, &json!({"channels": {"telegram": telegram}}))?;
    rig.boot(0)?;
    for _ in 0..3 {
        rig.script(CRASH, &[]).context("killing the gateway")?;
    }
    rig.boot(0)?.has(&["degraded: telegram kept off", "channels.start"])?;
    let status = rig.status()?;
    ensure!(status["state"] == "degraded" && status["result"] == "ready", "the status is {status}");
    Ok(())
}
