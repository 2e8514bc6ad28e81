//! The gateway as its users configure it: ready, degraded with a name, or a failure that says which setting it is.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::checks::is_ready;
use super::rig::{Rig, Said};

const FILE: &str = "/home/node/.openclaw/openclaw.json";
/// The token and the name under which `.env` has it.
const TOKEN: &str = "grep -o '[A-Z_]*TOKEN=.*' /home/node/.openclaw/.env";
/// Asks the gateway for its health as the engine does.
const HEALTH: &str = "docker exec openclaw-gateway node -e \"$(docker inspect -f '{{index .Config.Healthcheck.Test 3}}' \
    openclaw-gateway)\"";
/// Kills the gateway's process, as the kernel would, and waits until the engine has it serving again.
const CRASH: &str = include_str!("../../scripts/configured/crash.sh");

pub(super) fn every_way_of_use(rig: &Rig) -> Result<()> {
    rig.up(&[])?;
    is_ready(rig)?;
    let token = rig.shell(TOKEN)?;
    serves_with_tls_behind_a_proxy(rig).context("TLS and a proxy on the VM")?;
    every_mode_of_authentication(rig, &token).context("modes of authentication")?;
    tailscale_is_named(rig).context("Tailscale")?;
    small_heap_is_named(rig).context("a small heap")?;
    breaker_is_degraded(rig).context("the crash-loop breaker")?;
    settings(rig, &json!({}))?;
    rig.boot(0)?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    ensure!(rig.status()?["state"] == "ready", "the status is {}", rig.status()?);
    Ok(())
}

/// Writes `openclaw.json`, with the settings of `gateway` and of `channels` among its own, while nothing runs.
fn settings(rig: &Rig, added: &Value) -> Result<()> {
    let mut document = json!({"gateway": {"mode": "local", "bind": "lan"}});
    for (section, values) in added.as_object().into_iter().flatten() {
        for (key, value) in values.as_object().into_iter().flatten() {
            document[section][key] = value.clone();
        }
    }
    rig.shell(&format!("docker stop --time 30 openclaw-gateway && cat > {FILE} <<'EOF'\n{document}\nEOF")).map(drop)
}

/// It becomes ready with these settings, and the next run finds nothing to do.
fn is_ready_with(rig: &Rig, added: &Value) -> Result<Said> {
    settings(rig, added)?;
    let said = rig.boot(0)?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    let state = rig.status()?["state"].clone();
    ensure!(state == "ready", "with {added} it is {state}");
    Ok(said)
}

fn serves_with_tls_behind_a_proxy(rig: &Rig) -> Result<()> {
    is_ready_with(rig, &json!({"gateway": {"tls": {"enabled": true}, "trustedProxies": ["172.17.0.1"]}}))?;
    let probe = rig.shell("curl -sk -o /dev/null -w '%{http_code}' https://127.0.0.1:18789/readyz")?;
    ensure!(probe == "403", "a request that names no client is answered with {probe}");
    rig.shell(HEALTH).context("the container's health").map(drop)
}

fn every_mode_of_authentication(rig: &Rig, token: &str) -> Result<()> {
    let proxy = json!({"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-forwarded-user"}});
    is_ready_with(rig, &json!({"gateway": {"auth": proxy, "trustedProxies": ["172.17.0.1"]}}))?;
    let kept = rig.shell(TOKEN)?;
    ensure!(!kept.contains("GATEWAY_TOKEN") && kept.ends_with(secret(token)), "the token is not kept");
    is_ready_with(rig, &json!({"gateway": {"auth": {"mode": "token"}}}))?;
    ensure!(rig.shell(TOKEN)? == token, "the token did not come back");
    is_ready_with(rig, &json!({"gateway": {"auth": {"mode": "password", "password": "a password of mine"}}}))?;
    ensure!(rig.shell(TOKEN)? == token, "the token is gone");

    settings(rig, &json!({"gateway": {"auth": {"mode": "none"}}}))?;
    rig.boot(28)?.has(&["gateway.auth.mode"])?;
    let own = "0123456789abcdef".repeat(4);
    let said = is_ready_with(rig, &json!({"gateway": {"auth": {"mode": "token", "token": own}}}))?;
    said.has(&["gateway.auth.token", "from now on"])?;
    ensure!(secret(&rig.shell(TOKEN)?) == own, "the wizard's token is not in .env");
    ensure!(!said.text.contains(&own), "the token was printed");
    Ok(())
}

fn secret(line: &str) -> &str {
    line.split_once('=').map_or("", |(_, secret)| secret)
}

fn tailscale_is_named(rig: &Rig) -> Result<()> {
    settings(rig, &json!({"gateway": {"bind": "loopback", "tailscale": {"mode": "serve"}}}))?;
    rig.boot(28)?.has(&["gateway.tailscale.mode to off", "sudo openclaw-init boot"]).map(drop)
}

fn small_heap_is_named(rig: &Rig) -> Result<()> {
    settings(rig, &json!({}))?;
    rig.attribute("openclaw-env-NODE_OPTIONS=--max-old-space-size=100")?;
    let said = rig.boot(23)?;
    said.has(&["openclaw-env-NODE_OPTIONS", "heap out of memory"])?;
    ensure!(!said.text.contains(": 0x"), "addresses are told:\n{}", said.text);
    rig.attribute("openclaw-env-NODE_OPTIONS")
}

/// After three crashes within five minutes the gateway keeps its channels off, and calls itself ready.
fn breaker_is_degraded(rig: &Rig) -> Result<()> {
    let telegram = json!({"enabled": true, "botToken": "1:dummy", "apiRoot": "http://127.0.0.1:9"});
    settings(rig, &json!({"channels": {"telegram": telegram}}))?;
    rig.boot(0)?;
    for _ in 0..3 {
        rig.script(CRASH, &[]).context("killing the gateway")?;
    }
    rig.boot(0)?.has(&["degraded: telegram kept off", "channels.start"])?;
    let status = rig.status()?;
    ensure!(status["state"] == "degraded" && status["result"] == "ready", "the status is {status}");
    Ok(())
}
