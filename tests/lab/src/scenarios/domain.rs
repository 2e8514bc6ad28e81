//! `openclaw-domain`: HTTPS by a real Caddy with certificates of a real ACME server.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::checks::is_ready;
use super::pages::Block;
use super::pairing;
use super::readme::{Reader, open, opens_without_a_tunnel, twice};
use super::rig::{CommandOutput, Rig};
use crate::cache::Cache;
use crate::cloud::metadata_server::PROJECT;
use crate::cloud::network::GATEWAY;
use crate::cloud::{acme, model_provider};
use crate::workstation::Browser;

const CA: &str = include_str!("../../scripts/domain/ca.sh");
/// Serves the gateway at its name, and says who comes.
const KNOWS_ITS_USERS: &str = include_str!("../../scripts/domain/proxy-that-knows-its-users.sh");
const NAME: &str = "openclaw-domain=claw.example.com";
/// The machine's own address in the place of browsers': what comes from it is let in, what comes from 127.0.0.1 is not.
const ALLOWED: [&str; 2] = ["203.0.113.0/24", "10.128.0.2"];
const DIRECTORY: &str = "openclaw-acme-directory=https://127.0.0.1:14000/dir";

/// A browser that trusts the CA, and prints the status of the answer.
const BROWSE: &str = "curl -s -m 5 -o /tmp/page -w '%{http_code}' --cacert /opt/pebble/root.pem";
const UPGRADE: &str = "--http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
    -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H 'Origin: https://claw.example.com'";
const STRANGER: &str = "--resolve claw.example.com:443:127.0.0.1";
/// How long certificates of the internet's CA are valid. Caddy looks at its certificates every ten minutes, and renews
/// those of which a third is left.
const VALIDITY: Duration = Duration::from_secs(12 * 60);
/// What browsers are shown: an error when it is not valid any more.
const SHOWN: &str = "openssl s_client -connect 127.0.0.1:443 -servername claw.example.com < /dev/null 2> /dev/null \
    > /tmp/shown && openssl x509 -in /tmp/shown -noout -serial -checkend 0";
/// From an address that is neither allowed nor a proxy's.
const PROVIDER: &str = "--resolve claw.example.com:443:10.128.0.77";
const STARTED: &str = "docker inspect -f '{{.State.StartedAt}}' openclaw-gateway";
/// Says what it is asked for, and by whom.
const CHANNEL: &str = "require(\"http\").createServer((request, answer) => \
    answer.end(request.url + \" \" + request.headers[\"x-forwarded-for\"])).listen(3334)";
/// Approves the next one who asks.
const APPROVE: &str = "while :; do id=$(openclaw-init pair --wait 5m --json | grep -m 1 -oE [0-9a-f-]{36}); \
    [ -z \"$id\" ] || openclaw-init pair $id && exit; done";
const CERTIFICATE: &str = "sha256sum /mnt/disks/openclaw-data/certificates-openclaw/caddy/certificates/*/*/*.crt";

/// On a VM that was made by plain commands.
pub(super) fn https_at_a_name(rig: &Rig) -> Result<()> {
    let reader = Reader::of(rig)?;
    reader.pastes(&[Block::PlainRelease, Block::PlainCreate, Block::Wait])?.has(&["ready"])?;
    is_ready(rig)?;
    let visitor = ["curl", "--silent", "--fail"].map(str::to_owned);
    open(&reader, &Block::PlainOpen.text()?, &visitor)?.has(&["<html", "gateway: ready"])?;
    pairing::lets_in_who_is_named(rig).context("pairing")?;
    let before = what_is_there(rig)?;
    rig.script(CA, &[]).context("making a CA")?;
    caddy_of_somebody_else(rig, &reader).context("a Caddy of somebody else's")?;
    without_the_ca(rig).context("a CA that is down")?;
    rig.shell("systemctl start pebble")?;
    listens(rig, 14000)?;
    leads_elsewhere(rig).context("a name that leads elsewhere")?;
    rig.boot(0)?.has(&["result=ready"])?;
    is_whole(rig)?;
    serves_who_may_come(rig).context("a certificate")?;
    refused_without_the_name(rig).context("settings that are refused as the name goes")?;
    let opened = opens_without_a_tunnel(&reader)?;
    ensure!(opened.code == 0, "open ended with {}: {}", opened.code, opened.text);
    opened.has(&["https://claw.example.com/#token="])?;
    webhooks_of_channels(rig).context("openclaw-publish")?;
    taken_port(rig).context("a port that is taken")?;
    reboots(rig).context("a reboot")?;
    is_gone(rig, &before).context("without the attribute")
}

/// From the top of its page to the bottom.
pub(super) fn plain_commands(rig: &Rig) -> Result<()> {
    let reader = Reader::of(rig)?;
    reader.pastes(&[Block::PlainRelease, Block::PlainCreate, Block::Wait])?.has(&["ready"])?;
    updated_and_deleted(rig, &reader)
}

fn updated_and_deleted(rig: &Rig, reader: &Reader) -> Result<()> {
    let release = Block::PlainRelease.text()?;
    reader.does(&[release, twice(&[Block::PlainUpdate, Block::Wait])?].join("\n"))?.has(&["ready"])?;
    is_ready(rig)?;
    for (block, ask) in [(Block::PlainDelete, "y"), (Block::PlainDelete, ""), (Block::PlainDeleteDisk, "y")] {
        reader.ends(0, block, ask)?;
    }
    reader.ends(0, Block::PlainDeleteDisk, "").map(drop)
}

/// By attributes alone: a model provider, a token of Secret Manager, a name. A browser on the internet writes to the
/// gateway at that name and sees the model's answer; later the certificate is another one, before it ends.
pub(super) fn conversation_at_the_gateways_own_address(rig: &Rig) -> Result<()> {
    let browser = Browser::prepare(&Cache::from_env()?)?;
    let secret = |name: &str| format!("secret:projects/{PROJECT}/secrets/{name}");
    let attributes = [
        NAME.to_owned(),
        format!("openclaw-allow-from={GATEWAY}"),
        format!("openclaw-acme-directory=https://{}/dir", acme::NAME),
        format!("openclaw-gateway-token={}", secret("token")),
        format!("openclaw-config={}", model_provider::settings(&secret("model-key"))),
    ];
    let (validity, key) = (format!("{}s", VALIDITY.as_secs()), format!("model-key={}", model_provider::KEY));
    let token = format!("token={}", "0123456789abcdef".repeat(4));
    let lab = ["--acme", &validity, "--secret", &token, "--secret", &key];
    let attributes = attributes.iter().flat_map(|attribute| ["--attr", attribute]);
    rig.up(&lab.into_iter().chain(attributes).collect::<Vec<_>>())?;
    let begun = Instant::now();
    let status = rig.status()?;
    ensure!(status["state"] == "ready", "the status is {status}");
    let first = rig.shell(SHOWN)?;
    let message = "the internet says this";
    writes(rig, &browser, "", message, 1)?;
    while rig.shell(SHOWN).context("a certificate that is valid")? == first {
        ensure!(begun.elapsed() < VALIDITY, "the certificate was not renewed");
        thread::sleep(Duration::from_secs(5));
    }
    println!("own-address: another certificate after {} s of {}", begun.elapsed().as_secs(), VALIDITY.as_secs());
    is_whole(rig)
}

/// Each mode of authentication, and TLS of the gateway's own: a browser on the internet writes through the proxy that
/// belongs to it. The one that knows its users is somebody's own, on the VM.
pub(super) fn every_mode_in_a_browser(rig: &Rig) -> Result<()> {
    let browser = Browser::prepare(&Cache::from_env()?)?;
    let password = "a password of mine";
    let settings = |gateway: Value| {
        let mut settings = model_provider::settings(model_provider::KEY);
        settings["gateway"] = gateway;
        format!("openclaw-config={settings}")
    };
    let directory = format!("https://{}/dir", acme::NAME);
    let attributes = [
        NAME.to_owned(),
        format!("openclaw-allow-from={GATEWAY}"),
        format!("openclaw-acme-directory={directory}"),
        settings(json!({"auth": {"mode": "password", "password": password}})),
    ];
    let attributes = attributes.iter().flat_map(|attribute| ["--attr", attribute]);
    rig.up(&["--acme", "24h"].into_iter().chain(attributes).collect::<Vec<_>>())?;
    writes(rig, &browser, password, "a password", 1).context("a password")?;

    rig.attribute(&settings(json!({"tls": {"enabled": true}})))?;
    rig.boot(0)?.has(&["result=ready"])?;
    writes(rig, &browser, "", "TLS", 2).context("TLS")?;

    for attribute in ["openclaw-domain", "openclaw-allow-from", "openclaw-acme-directory"] {
        rig.attribute(attribute)?;
    }
    rig.attribute("openclaw-public-url=https://claw.example.com")?;
    let known = json!({"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-forwarded-user"}});
    rig.attribute(&settings(json!({"auth": known})))?;
    rig.boot(0)?.has(&["result=ready"])?;
    rig.script(KNOWS_ITS_USERS, &[&directory]).context("a proxy that knows its users")?;
    writes(rig, &browser, "", "a person whom the proxy knows", 3).context("a trusted proxy")?;
    is_whole(rig)
}

/// Writes the conversation's `count`th message at the link that the machine prints; the model's answer must be shown.
fn writes(rig: &Rig, browser: &Browser, password: &str, message: &str, count: usize) -> Result<()> {
    let link = rig.shell("openclaw-init link")?;
    ensure!(link.starts_with("https://claw.example.com/"), "the link is another");
    let command = browser.chat(
        Some(&rig.machine()?),
        password,
        &[model_provider::MARK, message].concat(),
        &model_provider::answer(count, message),
    );
    // A browser that comes from beyond the VM asks to be approved once.
    rig.shell(&format!("systemd-run --quiet --collect --unit=approve-{count} sh -c '{APPROVE}'"))?;
    let [program, arguments @ ..] = &command[..] else { unreachable!("a command has a program") };
    let output = rig.watch().output(Command::new(program).args(arguments).arg(link))?;
    let picture = browser.keep_picture(&format!("openclaw-lab-{}-{count}.png", rig.machine()?.name()));
    let page = CommandOutput::of(&output);
    ensure!(page.code == 0, "the page shows {}", page.text);
    println!("the page after message {count} is in {}", picture?.display());
    Ok(())
}

fn is_whole(rig: &Rig) -> Result<()> {
    let status = rig.status()?;
    ensure!(status["state"] == "ready" && status["result"] == "ready", "the status is {status}");
    rig.boot(0)?.has(&["changes=0", "result=ready"]).map(drop)
}

/// The gateway is ready, and what it lacks is told with its code.
fn is_degraded(rig: &Rig, word: &str) -> Result<()> {
    rig.boot(0)?.has(&["result=ready", "proxy-failed", word])?;
    let status = rig.status()?;
    ensure!(status["state"] == "degraded" && status["result"] == "ready", "the status is {status}");
    Ok(())
}

/// What may be left of the proxy outside of the data disk.
fn what_is_there(rig: &Rig) -> Result<String> {
    rig.shell(
        "getent passwd | grep -c proxy; dpkg -l caddy 2> /dev/null | grep -c ^ii; ls /run/openclaw-proxy 2> /dev/null
        find /etc/systemd /etc/openclaw-init /var/lib/openclaw-init -newer /etc/hostname | grep -iE 'caddy|proxy'
        grep -A2 -E 'trustedProxies|allowedOrigins' /home/node/.openclaw/openclaw.json; true",
    )
}

fn caddy_of_somebody_else(rig: &Rig, reader: &Reader) -> Result<()> {
    rig.shell("DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends caddy")?;
    rig.attribute(DIRECTORY)?;
    let named = Block::Https.twice()?.replace(ALLOWED[0], ALLOWED[1]);
    reader.does(&[Block::HttpsAddress.twice()?, named].join("\n"))?.has(&["203.0.113.7"])?;
    is_degraded(rig, "caddy.service")?;
    // As a try of ours that apt refused, before they installed it.
    rig.shell("echo caddy.service > /var/lib/openclaw-init/caddy-installed")?;
    is_degraded(rig, "caddy.service")?;
    ensure!(rig.shell("systemctl is-active caddy")? == "active", "it was stopped");
    rig.shell("rm /var/lib/openclaw-init/caddy-installed")?;
    rig.shell("DEBIAN_FRONTEND=noninteractive apt-get purge -y -q caddy").map(drop)
}

fn without_the_ca(rig: &Rig) -> Result<()> {
    is_degraded(rig, "there is no certificate for claw.example.com yet (")?;
    let probe = rig.shell("curl -s -H 'X-Forwarded-For: 203.0.113.9' http://127.0.0.1:18789/readyz")?;
    ensure!(probe.contains("\"ready\":true"), "readyz says {probe}");
    let units = rig.shell("systemctl is-active caddy openclaw-proxy; ss -Hltn 'sport = 2019'; true")?;
    ensure!(units == "inactive\nactive", "the units are {units}");
    Ok(())
}

/// The CA finds another web server at the name.
fn leads_elsewhere(rig: &Rig) -> Result<()> {
    rig.shell("cp /etc/hosts /root/hosts && echo '198.18.0.4 claw.example.com' >> /etc/hosts")?;
    is_degraded(rig, "there is no certificate for claw.example.com yet (")?;
    rig.shell("cp /root/hosts /etc/hosts").map(drop)
}

fn serves_who_may_come(rig: &Rig) -> Result<()> {
    rig.shell("curl -sk -o /opt/pebble/root.pem https://127.0.0.1:15000/roots/0")?;
    let url = "https://claw.example.com/";
    for (options, url, code) in [
        ("", url, "200"),
        (UPGRADE, url, "101"),
        (STRANGER, url, "403"),
        ("-H 'X-Forwarded-For: 10.128.0.2' --resolve claw.example.com:443:127.0.0.1", url, "403"),
        ("", "http://claw.example.com/x", "308"),
    ] {
        // A WebSocket stays open until curl gives up.
        let answer = rig.shell(&format!("{BROWSE} {options} {url} || true"))?;
        ensure!(answer == code, "{options} {url}: {answer} instead of {code}");
    }
    let page = rig.shell(&format!("{BROWSE} {url} && grep -c control-ui /tmp/page"))?;
    ensure!(page.starts_with("200"), "it is another page: {page}");
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "link"])?.has(&["https://claw.example.com/#token="])?;
    let published = rig.shell("docker port openclaw-gateway")?;
    ensure!(published.ends_with("-> 127.0.0.1:18789"), "it is published at {published}");
    let owner = rig.shell("ps -o user:20= -C caddy; stat -c '%U %a' /mnt/disks/openclaw-data/certificates-openclaw")?;
    ensure!(owner == "openclaw-proxy\nopenclaw-proxy 700", "it runs as {owner}");
    Ok(())
}

/// The gateway runs on with the settings for the name: it is served there until a run succeeds, and none between two of
/// these attributes does.
fn refused_without_the_name(rig: &Rig) -> Result<()> {
    let allow_from = format!("openclaw-allow-from={}", ALLOWED[1]);
    let change = |attributes: [&str; 4]| attributes.iter().try_for_each(|attribute| rig.attribute(attribute));
    change([
        r#"openclaw-config={"logging": {"level": "loud"}}"#,
        "openclaw-allow-from",
        "openclaw-acme-directory",
        "openclaw-domain",
    ])?;
    rig.boot(38)?.has(&["failed:config-refused", "openclaw-domain is gone, and its proxy serves on"])?;
    let answer = rig.shell(&format!("{BROWSE} https://claw.example.com/"))?;
    ensure!(answer == "200", "the answer is {answer}");
    change([NAME, DIRECTORY, &allow_from, "openclaw-config"])?;
    rig.boot(0)?.has(&["result=ready"])?;
    is_whole(rig)
}

/// Providers may come from anywhere; they reach what was named and nothing beside it. A port is free before the gateway
/// is stopped for it.
fn webhooks_of_channels(rig: &Rig) -> Result<()> {
    rig.shell("systemd-run --unit taken caddy respond --listen 127.0.0.1:3334")?;
    listens(rig, 3334)?;
    let started = rig.shell(STARTED)?;
    rig.attribute("openclaw-publish=/voice:3334,/googlechat")?;
    rig.boot(27)?.has(&["port 3334 of 127.0.0.1 is in use", "openclaw-publish"])?;
    ensure!(rig.shell(STARTED)? == started, "the gateway was stopped for a port that is taken");
    rig.shell("systemctl stop taken")?;
    rig.boot(0)?.has(&["result=ready"])?;
    is_whole(rig)?;
    rig.shell(&format!("docker exec -d openclaw-gateway node -e '{CHANNEL}'; ip address add 10.128.0.77/32 dev lo"))?;
    rig.shell("timeout 30 sh -c 'until curl -fs http://127.0.0.1:3334; do sleep 0.2; done'")?;
    for (options, path, code) in [
        (PROVIDER, "voice/webhook?a=1", "200"),
        (PROVIDER, "voicemail", "403"),
        (PROVIDER, "googlechat", "200"),
        (PROVIDER, "googlechat/../", "403"),
        (PROVIDER, "googlechat/%2e%2e/api", "403"),
        (PROVIDER, "/googlechat/tools/invoke", "403"),
        (PROVIDER, "googlechat//x", "403"),
        (PROVIDER, "sessions/..%2f..%2fgooglechat%2fx", "403"),
        (&format!("{PROVIDER} -X PUT"), "googlechat", "403"),
        (&format!("{PROVIDER} {UPGRADE}"), "googlechat", "403"),
        ("", "", "200"),
        (PROVIDER, "", "403"),
    ] {
        let command = format!("{BROWSE} --path-as-is {options} 'https://claw.example.com/{path}' || true");
        let answer = rig.shell(&command)?;
        ensure!(answer == code, "{options} {path}: {answer} instead of {code}");
    }
    let seen =
        rig.shell(&format!("{BROWSE} {PROVIDER} 'https://claw.example.com/voice/webhook?a=1' && cat /tmp/page"))?;
    ensure!(seen.ends_with("/voice/webhook?a=1 10.128.0.77"), "the channel sees {seen}");
    rig.attribute("openclaw-publish")?;
    rig.boot(0)?.has(&["result=ready"])?;
    let published = rig.shell("docker port openclaw-gateway")?;
    ensure!(published == "18789/tcp -> 127.0.0.1:18789", "it is published at {published}");
    is_whole(rig)
}

fn taken_port(rig: &Rig) -> Result<()> {
    for port in [80, 443] {
        let respond = format!("systemd-run --unit taken caddy respond --listen :{port}");
        rig.shell(&format!("systemctl stop openclaw-proxy && {respond}"))?;
        listens(rig, port)?;
        is_degraded(rig, "address already in use")?;
        rig.shell("systemctl stop taken")?;
        rig.boot(0)?.has(&["result=ready"])?;
    }
    is_whole(rig)
}

/// Waits until a program that was started listens at the port.
fn listens(rig: &Rig, port: u16) -> Result<()> {
    let look = format!("ss -Hltn 'sport = {port}' | grep -q .");
    rig.shell(&format!("timeout 60 sh -c \"until {look}; do sleep 0.2; done\"")).map(drop)
}

/// The CA does not run any more, and nobody asks it for anything.
fn reboots(rig: &Rig) -> Result<()> {
    let before = rig.shell(CERTIFICATE)?;
    rig.lab_ends(0, "reboot", &[])?;
    is_whole(rig)?;
    ensure!(rig.shell(CERTIFICATE)? == before, "it is another certificate");
    let answer = rig.shell(&format!("{BROWSE} https://claw.example.com/"))?;
    ensure!(answer == "200", "the answer is {answer}");
    Ok(())
}

fn is_gone(rig: &Rig, before: &str) -> Result<()> {
    for attribute in ["openclaw-domain", "openclaw-allow-from", "openclaw-acme-directory"] {
        rig.attribute(attribute)?;
    }
    rig.boot(0)?.has(&["result=ready"])?;
    // A running gateway takes a changed setting when it sees it.
    rig.shell("timeout 60 sh -c 'until curl -fsS http://127.0.0.1:18789/readyz; do sleep 1; done'")?;
    is_ready(rig)?;
    ensure!(what_is_there(rig)? == before, "it was {before}, and is {}", what_is_there(rig)?);
    let units = rig.shell("systemctl list-unit-files 'caddy*' 'openclaw-proxy*' --no-legend || true")?;
    ensure!(units.is_empty(), "these units are left: {units}");
    rig.shell(CERTIFICATE)?;
    is_whole(rig)
}
