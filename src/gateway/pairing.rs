//! Who asks the gateway to be paired, and pairing exactly whom an operator names: by the gateway's own commands, whose
//! every byte is untrusted.
//!
//! A new device asks once, and the gateway forgets that after five minutes. A node asks a second time, when it has
//! connected, for the commands that it wants to be given; that request stays.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::exec::{exec, redaction};
use super::{NAME, cli, logs};
use crate::config::is_request_id;
use crate::docker::Engine;
use crate::document;
use crate::host::Host;
use crate::state::DataDir;
use crate::text::printable;

/// Such a command takes 2 s of a free core, ten times that on a busy shared one; its own limit for each question to the
/// gateway is 10 s.
const TIMEOUT: Duration = Duration::from_secs(90);

/// How long the gateway keeps a device's request.
const KEPT: Duration = Duration::from_secs(300);

/// How many requests of the log are told.
const HINTS_LIMIT: usize = 3;

/// The longest id that is told of: the gateway's own have 36 characters.
const HINT_CHARS: usize = 64;

/// How many bytes of a client's words are told, and how many of those that are a list.
const WORDS_BYTES: usize = 128;
const WORDS_LIMIT: usize = 64;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// To be let in, or in another role than before.
    Device,
    /// A node that is in already: to be given commands.
    Commands,
}

/// A request that waits for an operator, in the client's words: they are not checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request {
    /// The gateway's name for it.
    pub id: String,
    /// What it asks for.
    pub kind: Kind,
    /// Whether the device is paired already.
    pub is_paired: bool,
    /// As what it comes: `node`, `operator`.
    pub roles: Vec<String>,
    /// The rights or commands that it wants.
    pub wants: Vec<String>,
    /// What it calls itself.
    pub name: String,
    /// The digest of its public key.
    pub device: String,
    /// Where it came from, as the gateway saw it.
    pub address: String,
    /// When it last asked.
    pub asked_at: Option<Timestamp>,
}

/// The requests that wait for an operator. A process of the gateway's: not to be asked all the time.
pub async fn pending(host: &Host, engine: &Engine, data: &DataDir) -> Result<Vec<Request>> {
    let doing = "asking the gateway who wants to be paired";
    let answer = ask(host, engine, data, &["devices", "list", "--json"]).await.context(doing)?;
    requests(&answer).ok_or_else(|| anyhow!("it gave no list")).context(doing)
}

/// Approves this request and no other.
pub async fn approve(host: &Host, engine: &Engine, data: &DataDir, request: &Request) -> Result<()> {
    let group = match request.kind {
        Kind::Device => "devices",
        Kind::Commands => "nodes",
    };
    let doing = || format!("approving the request {}", request.id);
    let answer = ask(host, engine, data, &[group, "approve", &request.id, "--json"]).await.with_context(doing)?;
    // Its tool knows cases in which it takes a newer request of the same device.
    let approved = answer["requestId"].as_str().unwrap_or_default();
    if approved != request.id {
        let also = Err(anyhow!("it says that it has approved {approved:?}: see `sudo openclaw devices list`"));
        return also.with_context(doing);
    }
    Ok(())
}

/// What one of the gateway's commands answers, JSON.
async fn ask(host: &Host, engine: &Engine, data: &DataDir, command: &[&str]) -> Result<Value> {
    cli::must_run(engine).await?;
    let (code, output) = exec(engine, command, TIMEOUT).await?;
    if code != 0 {
        let reason = output.reason(&redaction(host, engine, data).await?);
        bail!("`openclaw {}` ended with exit code {code}: {reason}", command[..2].join(" "));
    }
    document::parse(&output.stdout).map_err(|_| anyhow!("its answer is no JSON"))
}

/// The requests in the answer, the oldest first; `None` when it is no such answer.
fn requests(answer: &Value) -> Option<Vec<Request>> {
    let (pending, paired) = (answer["pending"].as_array()?, answer["paired"].as_array()?);
    let known: HashSet<&str> = paired.iter().filter_map(|it| it["deviceId"].as_str()).collect();
    let is_paired = |device: &Value| device["deviceId"].as_str().is_some_and(|id| known.contains(id));
    let devices = pending.iter().filter_map(|it| request(Kind::Device, it, it, is_paired(it)));
    let nodes = paired.iter().filter_map(|it| request(Kind::Commands, &it["pendingNodeSurface"], it, true));
    let mut requests: Vec<Request> = devices.chain(nodes).collect();
    requests.sort_by_key(|request| request.asked_at);
    Some(requests)
}

/// `asked`, which `device` has asked. One without an id of the gateway's kind cannot be named, nor approved.
fn request(kind: Kind, asked: &Value, device: &Value, is_paired: bool) -> Option<Request> {
    let words = |text: &str| printable(text, WORDS_BYTES);
    let text = |key: &str| words(asked[key].as_str().or(device[key].as_str()).unwrap_or_default());
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).take(WORDS_LIMIT).map(words).collect()
    };
    let id = asked["requestId"].as_str().filter(|id| is_request_id(id))?.to_owned();
    let mut roles = list(&device["roles"]);
    let role = text("role");
    if !role.is_empty() && !roles.contains(&role) {
        roles.push(role);
    }
    let wants = match kind {
        Kind::Device => list(&asked["scopes"]),
        Kind::Commands => list(&asked["commands"]),
    };
    let asked_at = asked["ts"].as_i64().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let (name, device, address) = (text("displayName"), text("deviceId"), text("remoteIp"));
    Some(Request { id, kind, is_paired, roles, wants, name, device, address, asked_at })
}

/// Who has asked lately, as far as the gateway's log tells it: `ID from ADDRESS`, the latest last. It costs next to
/// nothing, and is only a hint.
pub async fn hints(engine: &Engine) -> Vec<String> {
    let since = Timestamp::now().checked_sub(KEPT).unwrap_or_default();
    hints_in(&logs::read(engine, NAME, since).await)
}

fn hints_in(log: &str) -> Vec<String> {
    // Each with the device that asks, or what a node's second request is called.
    let mut hints: Vec<(&str, String)> = Vec::new();
    for line in log.lines() {
        // What the gateway says of itself comes first; a client's words stand behind it.
        let line = line.find('[').map_or(line, |at| &line[at..]);
        let (device, hint) = if let Some(rest) = line.strip_prefix("[gateway] device pairing approved device=") {
            (first_word(rest), None)
        } else if line.starts_with("[ws] ⇄ res ")
            && let Some((_, rest)) = line.split_once("awaiting operator approval; run `openclaw nodes approve ")
        {
            let id = rest.split_once('`').map_or("", |(id, _)| id);
            (id, hint(id, None))
        } else if line.starts_with("[ws] closed before connect ")
            && let Some((before, after)) = line.rsplit_once(" cause=pairing-required ")
            && !after.contains(" cause=")
        {
            // What a client says of itself stands between the gateway's own words.
            // Behind a proxy that is the proxy's.
            let own = |key| before.split_once(key).map_or("", |(_, rest)| first_word(rest));
            let address = own(" remote=").parse().ok().filter(|_| own(" fwd=") == "n/a");
            let last = |key| after.rsplit_once(key).map_or("", |(_, rest)| first_word(rest));
            (last(" deviceId="), hint(last(" requestId="), address))
        } else {
            continue;
        };
        hints.retain(|(known, _)| *known != device);
        hints.extend(hint.map(|hint| (device, hint)));
    }
    hints.drain(..hints.len().saturating_sub(HINTS_LIMIT));
    hints.into_iter().map(|(_, hint)| hint).collect()
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

fn hint(id: &str, address: Option<IpAddr>) -> Option<String> {
    let from = address.map(|address| format!(" from {address}")).unwrap_or_default();
    (is_request_id(id) && id.len() <= HINT_CHARS).then(|| format!("{id}{from}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Recorded from 2026.9.6.
    const DEVICE: &str = include_str!("../../tests/fixtures/pairing/device.json");
    const COMMANDS: &str = include_str!("../../tests/fixtures/pairing/commands.json");
    const ASKED: &str = include_str!("../../tests/fixtures/pairing/asked.log");
    const APPROVED: &str = include_str!("../../tests/fixtures/pairing/approved.log");

    const KITCHEN: &str = "cf01e42bca8964135752cab1b12436eab2e9f25544a4ac5213e3d6a0b52029c7";

    #[test]
    fn both_requests_of_a_node_are_read() -> Result<()> {
        let device = requests(&serde_json::from_str(DEVICE)?).context("it is a list")?;
        let [device] = &device[..] else { panic!("{device:?}") };
        assert_eq!((device.id.as_str(), device.kind), ("c434ad0b-e4fc-4f91-a335-d49ad856bad2", Kind::Device));
        assert_eq!((&device.roles[..], device.is_paired), (&["node".to_owned()][..], false));
        assert_eq!((device.name.as_str(), device.address.as_str()), ("evil\\u{1b}[2J\\nx", "10.9.9.2"));
        assert_eq!(device.asked_at.map(jiff::Timestamp::as_millisecond), Some(1_795_807_297_510));
        assert!(device.device.starts_with("ce620d75a0cd") && device.wants.is_empty(), "{device:?}");

        let commands = requests(&serde_json::from_str(COMMANDS)?).context("it is a list")?;
        let [commands] = &commands[..] else { panic!("{commands:?}") };
        assert_eq!((commands.id.as_str(), commands.kind), ("91570d41-2969-4e77-8a18-644ce2b404d5", Kind::Commands));
        assert_eq!((commands.device.as_str(), commands.is_paired), (KITCHEN, true));
        assert_eq!((commands.wants.len(), commands.wants[9].as_str()), (13, "system.run"));
        Ok(())
    }

    #[test]
    fn an_answer_of_another_kind_has_no_requests() {
        for answer in [json!(null), json!([]), json!({"pending": {}}), json!({"ok": false}), json!({"pending": []})] {
            assert_eq!(requests(&answer), None, "{answer}");
        }
        let id = |id: Value| json!({"pending": [{"requestId": id}], "paired": [1, null, {"pendingNodeSurface": 1}]});
        for bad in [json!(null), json!(1), json!(""), json!("--latest"), json!("a b"), json!("a\u{1b}"), json!("a;b")] {
            assert_eq!(requests(&id(bad.clone())), Some(Vec::new()), "{bad}");
        }
        assert_eq!(requests(&id(json!("a"))).map(|it| it.len()), Some(1), "nothing else is needed");
    }

    #[test]
    fn a_device_that_is_paired_may_ask_for_more() {
        let paired = json!({"deviceId": "d", "roles": ["operator"]});
        let asks = json!({"requestId": "a", "deviceId": "d", "role": "operator", "scopes": ["operator.admin", 1]});
        let found = requests(&json!({"pending": [asks], "paired": [paired]})).unwrap_or_default();
        let [found] = &found[..] else { panic!("{found:?}") };
        assert!(found.is_paired && found.wants == ["operator.admin"] && found.roles == ["operator"], "{found:?}");
    }

    #[test]
    fn the_log_tells_who_asks_and_whom_somebody_has_let_in() {
        let asked = "a50129ea-d1b5-402d-97fc-ee0a17cdb4ed from 10.9.9.2";
        assert_eq!(hints_in(ASKED), [asked]);
        assert_eq!(hints_in(&format!("{ASKED}{APPROVED}")), ["91570d41-2969-4e77-8a18-644ce2b404d5"]);
        let line = |remote: &str, ua: &str, device: &str, id: &str| {
            format!(
                "[ws] closed before connect conn=1 peer=a->b remote={remote} fwd=n/a host=h ua={ua} code=1008 \
                 reason=pairing required phase=auth_validated cause=pairing-required handshake=failed host=h \
                 deviceId={device} requestId={id} reason=not-paired\n"
            )
        };
        let ua = "x remote=1.1.1.1 cause=pairing-required deviceId=d requestId=evil y";
        for (log, expected) in [
            (line("::1", ua, "d", "a"), vec!["a from ::1"]),
            (line("$(reboot)", "n/a", "d", "a"), vec!["a"]),
            (line("::1", "n/a", "d", "a\u{202e}"), vec![]),
            (line("::1", "n/a", "d", &"a".repeat(65)), vec![]),
            (line("::1", "n/a", "d", "a") + &line("::1", "n/a", "d", "b"), vec!["b from ::1"]),
            (["a", "b", "c", "d"].map(|id| line("::1", "n/a", id, id)).concat(), vec!["b", "c", "d"]),
            ("[gateway] ready\n\n cause=pairing-required \n".to_owned(), vec![]),
            (line("::1", "n/a", "d", "a").replace("fwd=n/a", "fwd=203.0.113.9"), vec!["a"]),
            (line("::1", "x", "d", "a").replace("[ws] closed", "[ws] connected; closed"), vec![]),
            (line("::1", "n/a", "d", "a").replace("handshake=", "ua= cause=unauthorized handshake="), vec![]),
        ] {
            let found = hints_in(&log);
            let is_as_expected = |(found, expected): (&String, &&str)| found.starts_with(*expected);
            assert!(
                found.len() == expected.len() && found.iter().zip(&expected).all(is_as_expected),
                "{log}: {found:?}"
            );
        }
    }
}
