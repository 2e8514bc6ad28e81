//! Pairing by an operator's hand: who asks is shown, and exactly who is named or confirmed is let in.

use std::collections::BTreeSet;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::config::is_request_id;
use crate::docker::{Engine, SOCKET};
use crate::error::{Classify as _, Code, RUN_AGAIN, one_line};
use crate::gateway::Gateway;
use crate::gateway::pairing::{self, Kind, Request};
use crate::host::Host;
use crate::lock::{RunLock, require_root};
use crate::state::{self, DataDir, Record};
use crate::text;

/// How often the gateway's log is looked at for somebody who asks, and how often the gateway itself is asked even so.
const LOG_INTERVAL: Duration = Duration::from_secs(2);
const ASK_INTERVAL: Duration = Duration::from_secs(30);

/// How long a gateway that gave no answer is left alone.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How much of what a client says of itself is shown: a device has 64 digits, a node's commands are many.
const SHOWN_BYTES: usize = 64;
const WANTS_BYTES: usize = 2048;

/// The options of `openclaw-init pair`.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Approves these requests, and no other
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Waits up to so long (`90s`, `5m`) for a request, shows it, and asks whether to approve it; with IDs, for these
    #[arg(long, value_name = "TIME")]
    wait: Option<Wait>,
    /// Prints the requests, or those that were approved, as JSON; asks nothing
    #[arg(long)]
    json: bool,
}

/// How long a request is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wait(Duration);

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            [('s', 1), ('m', 60)].into_iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
        let time = parts.and_then(|(number, seconds)| Some(u64::from(number.parse::<u16>().ok()?) * seconds));
        time.map(|seconds| Self(Duration::from_secs(seconds)))
            .ok_or_else(|| "must be a time such as 90s or 5m".to_owned())
    }
}

/// The gateway that runs on this machine.
struct Door<'a> {
    host: &'a Host,
    engine: Engine,
    data: DataDir,
}

/// Lists, waits and approves as the options ask; `show` prints a text, and `confirm`, where there is somebody to be
/// asked, asks a question. False when nobody was waited for with success, or nobody let in who was.
pub async fn run(
    host: &Host,
    options: &Options,
    show: impl Fn(&str),
    confirm: Option<fn(&str) -> io::Result<bool>>,
) -> Result<bool> {
    require_root()?;
    if let Some(bad) = options.ids.iter().find(|id| !is_request_id(id)) {
        return Err(anyhow!("{bad:?} is no id of a request")).classify(Code::ConfigInvalid, LIST);
    }
    let door = Door::find(host).await?;
    let pending = door.wait(options).await?;
    let (named, unknown) = named(&options.ids, &pending);
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        return Err(anyhow!("nothing was approved: no request {unknown} is pending"))
            .classify(Code::ConfigInvalid, LIST);
    }
    if !named.is_empty() {
        for request in &named {
            pairing::approve(host, &door.engine, &door.data, request).await?;
            if !options.json {
                show(&approved(request));
            }
        }
        if options.json {
            show(&json(&named)?);
        }
        return Ok(true);
    }
    if options.json {
        show(&json(&pending.iter().collect::<Vec<_>>())?);
        return Ok(options.wait.is_none() || !pending.is_empty());
    }
    show(&table(&pending, Timestamp::now()));
    match (options.wait, &pending[..]) {
        (None, []) => Ok(true),
        (Some(_), []) => Ok(false),
        (Some(_), [request]) if let Some(confirm) = confirm => {
            let is_wanted = confirm("Approve it? [y/N] ")?;
            if is_wanted {
                pairing::approve(host, &door.engine, &door.data, request).await?;
            }
            show(&if is_wanted { approved(request) } else { "not approved".to_owned() });
            Ok(is_wanted)
        }
        (wait, _) => {
            show("approve one: sudo openclaw-init pair ID");
            Ok(wait.is_none())
        }
    }
}

/// What to do about an id that nobody waits under.
const LIST: &str = "See who asks with `sudo openclaw-init pair`. The gateway forgets a device's request after five \
                    minutes: its next try has another id.";

/// After so long no other approval is begun: a run has more to do.
const APPROVALS_LIMIT: Duration = Duration::from_secs(120);

/// Approves the requests that an attribute names, once each. What cannot be approved is a warning.
pub async fn approve_named(gateway: Gateway<'_>, ids: &[String], lock: &RunLock) -> Result<()> {
    let Gateway { host, engine, data, .. } = gateway;
    let mut record = Record::read(host, data).await?;
    let (mut done, new): (Vec<_>, Vec<_>) = ids.iter().cloned().partition(|id| record.approved.contains(id));
    let pending = if new.is_empty() { Vec::new() } else { pairing::pending(host, engine, data).await? };
    let (named, unknown) = named(&new, &pending);
    let begun = Instant::now();
    for request in named {
        if begun.elapsed() > APPROVALS_LIMIT {
            host.warn("openclaw-approve: the gateway is slow to answer, the next run goes on".to_owned());
            break;
        }
        match pairing::approve(host, engine, data, request).await {
            Ok(()) => {
                host.changed(approved(request));
                done.push(request.id.clone());
            }
            Err(error) => host.warn(one_line(&error)),
        }
    }
    if !unknown.is_empty() {
        host.warn(format!(
            "openclaw-approve names {}, which nobody asks for now: a device's request ends after five minutes, and its \
             next try has another id, which `detail` and `sudo openclaw-init pair` show",
            unknown.join(", ")
        ));
    }
    if record.approved != done {
        record.approved = done;
        record.write(host, data, lock).await?;
    }
    Ok(())
}

impl<'a> Door<'a> {
    async fn find(host: &'a Host) -> Result<Self> {
        let data = state::current(host).await?.ok_or_else(|| anyhow!("there is no gateway's state on this machine"));
        let data =
            data.classify(Code::GatewayNotReady, format!("See `sudo openclaw-init status`, or run `{RUN_AGAIN}`."))?;
        Ok(Self { host, engine: Engine::connect(SOCKET).await?, data })
    }

    /// The requests, once those are there that are waited for or the time is over. A gateway that does not answer may
    /// be starting: only with the time is that an error.
    async fn wait(&self, options: &Options) -> Result<Vec<Request>> {
        let deadline = options.wait.map(|Wait(time)| Instant::now() + time);
        loop {
            let known = self.hints().await;
            let pending = pairing::pending(self.host, &self.engine, &self.data).await;
            let is_there = pending.as_ref().is_ok_and(|pending| are_there(&options.ids, pending));
            let Some(deadline) = deadline.filter(|deadline| !is_there && Instant::now() < *deadline) else {
                return pending;
            };
            if let Err(error) = &pending {
                tracing::info!("waiting for the gateway: {}", one_line(error));
            }
            let interval = if pending.is_ok() { ASK_INTERVAL } else { RETRY_INTERVAL };
            let until = deadline.min(Instant::now() + interval);
            while Instant::now() < until && self.hints().await.is_subset(&known) {
                tokio::time::sleep_until(until.min(Instant::now() + LOG_INTERVAL)).await;
            }
        }
    }

    async fn hints(&self) -> BTreeSet<String> {
        pairing::hints(&self.engine).await.into_iter().collect()
    }
}

/// The requests that have these ids, and the ids that no request has.
fn named<'a>(ids: &'a [String], pending: &'a [Request]) -> (Vec<&'a Request>, Vec<&'a str>) {
    let (mut found, mut unknown): (Vec<&Request>, Vec<&str>) = (Vec::new(), Vec::new());
    for id in ids {
        match pending.iter().find(|request| request.id == *id) {
            Some(request) if found.contains(&request) => {}
            Some(request) => found.push(request),
            None => unknown.push(id),
        }
    }
    (found, unknown)
}

/// Whether those are there that are waited for: with these ids, else anybody.
fn are_there(ids: &[String], pending: &[Request]) -> bool {
    !pending.is_empty() && named(ids, pending).1.is_empty()
}

fn shown(text: &str) -> String {
    text::printable(text, SHOWN_BYTES)
}

/// As what it asks: `node`, `operator`; what it is not yet, or what it wants beside that.
fn role(request: &Request) -> String {
    let roles = shown(&request.roles.join("+"));
    match (request.kind, request.is_paired) {
        (Kind::Device, false) => roles,
        (Kind::Device, true) => format!("{roles}, paired before"),
        (Kind::Commands, _) => format!("{roles}, for commands"),
    }
}

fn approved(request: &Request) -> String {
    let next = match request.kind {
        Kind::Device if request.roles.iter().any(|role| role == "node") => {
            "; once it has connected, it asks for its commands, too"
        }
        _ => "",
    };
    let (name, role, address) = (shown(&request.name), role(request), shown(&request.address));
    format!("approved {}: {name} ({role}) from {address}{next}", request.id)
}

fn json(requests: &[&Request]) -> Result<String> {
    Ok(serde_json::to_string_pretty(requests)?)
}

/// The requests, one paragraph each: nothing that a client says can look like another request.
fn table(requests: &[Request], now: Timestamp) -> String {
    if requests.is_empty() {
        return "nobody asks to be paired".to_owned();
    }
    let paragraph = |request: &Request| {
        let asked = request.asked_at.map(|at| format!("{} ago", text::age(at, now))).unwrap_or_default();
        let wants = text::printable(&request.wants.join(" "), WANTS_BYTES);
        let rows = [
            ("asks as", role(request)),
            ("name", shown(&request.name)),
            ("address", shown(&request.address)),
            ("asked", asked),
            ("wants", wants),
            ("device", shown(&request.device)),
        ];
        let rows = rows.iter().filter(|(_, value)| !value.is_empty());
        let rows: String = rows.map(|(name, value)| format!("\n  {name:<8} {value}")).collect();
        format!("{}{rows}", request.id)
    };
    requests.iter().map(paragraph).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn request(id: &str, kind: Kind, name: &str) -> Request {
        Request {
            id: id.to_owned(),
            kind,
            is_paired: kind == Kind::Commands,
            roles: vec!["node".to_owned()],
            wants: Vec::new(),
            name: name.to_owned(),
            device: "cf01e42b".to_owned(),
            address: "10.9.9.2".to_owned(),
            asked_at: Timestamp::from_second(0).ok(),
        }
    }

    #[test]
    fn a_time_has_a_unit() {
        for (text, seconds) in
            [("90s", Some(90)), ("5m", Some(300)), ("5", None), ("m", None), ("-1s", None), ("5h", None)]
        {
            assert_eq!(text.parse::<Wait>().ok(), seconds.map(|it| Wait(Duration::from_secs(it))), "{text}");
        }
    }

    #[test]
    fn only_who_is_named_is_found() {
        let pending = ["a", "ab", "b"].map(|id| request(id, Kind::Device, ""));
        for (ids, found, unknown) in [
            (vec![], vec![], vec![]),
            (vec!["a"], vec!["a"], vec![]),
            (vec!["b", "b", "c", "A"], vec!["b"], vec!["c", "A"]),
        ] {
            let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
            let named = named(&ids, &pending);
            assert_eq!(named.0.iter().map(|request| request.id.as_str()).collect::<Vec<_>>(), found);
            assert_eq!(named.1, unknown);
        }
    }

    #[test]
    fn what_a_client_says_moves_no_cursor() {
        let mut commands = request("b", Kind::Commands, "kitchen");
        commands.wants = vec!["system.run".to_owned(), "\u{202e}".to_owned()];
        let requests = [request("a", Kind::Device, "evil\u{1b}[2J\nc\n  name x"), commands];
        let now = Timestamp::from_second(35).unwrap_or_default();
        expect![[r"
            a
              asks as  node
              name     evil\u{1b}[2J\nc\n  name x
              address  10.9.9.2
              asked    35 seconds ago
              device   cf01e42b
            b
              asks as  node, for commands
              name     kitchen
              address  10.9.9.2
              asked    35 seconds ago
              wants    system.run \u{202e}
              device   cf01e42b"]]
        .assert_eq(&table(&requests, now));
        assert_eq!(table(&[], now), "nobody asks to be paired");
        assert!(!approved(&requests[0]).contains(char::is_control));
    }
}
