//! The gateway's own answer to "are you ready": the JSON bodies of `/startupz` and `/readyz`.
//!
//! The HTTP status says little: unknown paths answer 200 with the Control UI's HTML, so an image older than 2026.8.1
//! seems to know `/startupz`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use reqwest::{Client, StatusCode};
use serde_json::Value;

use crate::http::{self, Failure, Limit};
use crate::secret::Secret;
use crate::text::printable;

/// A starting gateway's event loop is busy for seconds at a time. An answer has some hundred bytes.
const LIMIT: Limit = Limit { time: Duration::from_secs(5), bytes: 64 << 10 };

/// How many failing checks are named, and how many bytes of each name: they go into the report.
const CHECKS_LIMIT: usize = 16;
const NAME_BYTES: usize = 64;

/// The check that fails until the gateway has started, in `/readyz` of every version.
const STARTING: &str = "startup-sidecars";

/// An address that is nobody's (RFC 5737): a client's, for a gateway that takes this machine's own for a proxy's.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Others (RFC 3849, too): the kernel is asked which address of this machine would reach them.
const ELSEWHERE: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];

/// The header with which a proxy names its client.
const FORWARDED_FOR: &str = "X-Forwarded-For";

/// What to do about channels that the gateway's breaker keeps off.
const START_CHANNELS: &str = "the gateway crashed several times within minutes and starts them again when it has run \
    for 5 minutes; at once: `sudo openclaw-init cli gateway call channels.start \
    --params '{\"channel\":\"NAME\"}'`";

/// What a gateway is missing that answers every question with 403.
const CLOSED: &str = "it answers everybody with 403: gateway.trustedProxies in openclaw.json must hold the addresses of \
    proxies and no others";

/// How the gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does not answer, or not as a gateway.
    Silent,
    /// It starts, and waits for this.
    Starting(String),
    /// It runs, and some of its checks fail.
    Unhealthy {
        /// The failing checks.
        failing: Vec<String>,
        /// How long it has been running, where it says so.
        uptime: Option<Duration>,
        /// Its version, where it says so.
        version: Option<String>,
    },
    /// All of its checks pass.
    Ready {
        /// Its version, where it says so.
        version: Option<String>,
        /// The channels that it keeps off, and until when.
        suppressed: Option<String>,
    },
}

/// Asks one gateway, through its published port.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    client: Client,
    address: SocketAddr,
    token: &'a Secret,
    way: Option<Way>,
}

/// How a gateway lets itself be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    scheme: &'static str,
    /// The client in whose name a proxy would ask: a gateway that trusts our address refuses what names none.
    client: Option<IpAddr>,
}

impl<'a> Probe<'a> {
    /// Of the gateway that is published at `address`.
    pub(super) fn new(address: SocketAddr, token: &'a Secret) -> Result<Self> {
        Ok(Self { client: http::unverified_client()?, address: asked_at(address), token, way: None })
    }

    /// Asks there from now on.
    pub(super) fn at(&mut self, address: SocketAddr) {
        let address = asked_at(address);
        if self.address != address {
            (self.address, self.way) = (address, None);
        }
    }

    /// Asks both questions, the second only when the first says that the gateway has started.
    pub(super) async fn ask(&mut self) -> Health {
        if self.way.is_none() {
            self.way = self.find_way().await;
        }
        let Some(way) = self.way else { return Health::Silent };
        let startup = self.get(way, "startupz").await;
        let health = match &startup {
            Answer::None => Health::Silent,
            Answer::Json(body) if body["status"] != "started" => {
                Health::Starting(name(&body["pendingReason"]).unwrap_or_else(|| "starting".to_owned()))
            }
            Answer::Json(_) | Answer::Other | Answer::Forbidden => judge(&startup, &self.get(way, "readyz").await),
        };
        if health == Health::Silent || startup == Answer::Forbidden {
            // It may be asked in another way when it has started anew.
            self.way = None;
        }
        health
    }

    /// Without the token: it never goes over a connection without TLS to a gateway that has it.
    async fn find_way(&self) -> Option<Way> {
        for scheme in ["http", "https"] {
            let plain = Way { scheme, client: None };
            match self.status(plain).await {
                Ok(StatusCode::FORBIDDEN) => {}
                Ok(status) if status.is_success() || status == StatusCode::SERVICE_UNAVAILABLE => return Some(plain),
                // Who gives no answer at all gives none with TLS.
                Err(failure) if failure.is_timeout() => return None,
                _ => continue,
            }
            for client in own_address().into_iter().chain([NOBODY]) {
                let forwarded = Way { scheme, client: Some(client) };
                if self.status(forwarded).await.is_ok_and(|status| status != StatusCode::FORBIDDEN) {
                    return Some(forwarded);
                }
            }
            return Some(plain);
        }
        None
    }

    async fn status(&self, way: Way) -> Result<StatusCode, Failure> {
        let answer = http::send(self.request(way, "startupz"), LIMIT).await;
        let answer = answer.inspect_err(|error| tracing::trace!("asking the gateway by {}: {error}", way.scheme));
        answer.map(|it| it.status())
    }

    async fn get(&self, way: Way, path: &str) -> Answer {
        // Without the token the gateway tells a peer behind the published port no details.
        let request = self.request(way, path).bearer_auth(self.token.expose());
        let body = async {
            let answer = http::send(request, LIMIT).await?;
            Ok::<_, Failure>((answer.status(), answer.body().await?))
        };
        match body.await {
            Ok((StatusCode::FORBIDDEN, _)) => Answer::Forbidden,
            Ok((_, body)) => answer(&body),
            Err(error) => {
                tracing::trace!("asking the gateway's /{path}: {error}");
                Answer::None
            }
        }
    }

    fn request(&self, way: Way, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.get(format!("{}://{}/{path}", way.scheme, self.address));
        match way.client {
            Some(client) => request.header(FORWARDED_FOR, client.to_string()),
            None => request,
        }
    }
}

/// Where a program on this machine asks what is published at `address`.
fn asked_at(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(reachable(address.ip()), address.port())
}

/// Where a program on this machine reaches a port published on `bind`.
fn reachable(bind: IpAddr) -> IpAddr {
    match bind {
        IpAddr::V4(bind) if bind.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(bind) if bind.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        bind => bind,
    }
}

/// The address of this machine in its own network. Nothing is sent: the kernel only looks for the way.
fn own_address() -> Option<IpAddr> {
    ELSEWHERE.iter().find_map(|(any, elsewhere)| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(elsewhere).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    None,
    Other,
    Forbidden,
    Json(Value),
}

/// What a body is: the gateway's own are objects.
pub(super) fn answer(body: &[u8]) -> Answer {
    match serde_json::from_slice(body) {
        Ok(body @ Value::Object(_)) => Answer::Json(body),
        _ => Answer::Other,
    }
}

/// Puts both answers together. `startup` is that of a gateway that has started, or is too old to have one.
pub(super) fn judge(startup: &Answer, ready: &Answer) -> Health {
    let body = match ready {
        Answer::Json(body) => body,
        Answer::Forbidden => {
            return Health::Unhealthy { failing: vec![CLOSED.to_owned()], uptime: None, version: None };
        }
        Answer::None | Answer::Other => return Health::Silent,
    };
    let version = match startup {
        Answer::Json(startup) => name(&startup["version"]),
        Answer::None | Answer::Other | Answer::Forbidden => None,
    };
    let suppressed = suppressed(body);
    if body["ready"] == true {
        return Health::Ready { version, suppressed };
    }
    let mut failing = names(&body["failing"]);
    if failing.iter().any(|check| check == STARTING) {
        return Health::Starting(STARTING.to_owned());
    }
    if failing.is_empty() {
        failing.push("readyz".to_owned());
    }
    failing.extend(suppressed);
    Health::Unhealthy { failing, uptime: body["uptimeMs"].as_u64().map(Duration::from_millis), version }
}

/// The channels that the gateway keeps off after crashes, which none of its checks counts as failing.
fn suppressed(body: &Value) -> Option<String> {
    let channels = names(&body["suppressed"]);
    (!channels.is_empty()).then(|| format!("{} kept off: {START_CHANNELS}", channels.join(", ")))
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(name).take(CHECKS_LIMIT).collect()
}

/// A name in the gateway's words.
fn name(value: &Value) -> Option<String> {
    value.as_str().map(|name| printable(name, NAME_BYTES))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_gateways_own_words_make_it_ready() {
        let started = Answer::Json(json!({"ok": true, "status": "started", "version": "2026.9.6", "new": 1}));
        let short = Answer::Json(json!({"ok": true, "status": "started"}));
        let ready = || Answer::Json(json!({"ready": true, "failing": []}));
        let version = || Some("2026.9.6".to_owned());
        let is_ready = |version| Health::Ready { version, suppressed: None };
        let unhealthy = |failing: &str, uptime: Option<u64>, version| Health::Unhealthy {
            failing: vec![failing.to_owned()],
            uptime: uptime.map(Duration::from_millis),
            version,
        };
        #[rustfmt::skip]
        let cases = [
            (&started, ready(), is_ready(version())),
            (&short, ready(), is_ready(None)),
            (&Answer::Other, ready(), is_ready(None)),
            (&started, Answer::Json(json!({"ready": false, "failing": ["telegram:main"], "uptimeMs": 7})), unhealthy("telegram:main", Some(7), version())),
            (&short, Answer::Json(json!({"ready": false})), unhealthy("readyz", None, None)),
            (&Answer::Other, Answer::Json(json!({"ready": false, "failing": ["startup-sidecars"]})), Health::Starting(STARTING.to_owned())),
            (&Answer::Forbidden, Answer::Forbidden, unhealthy(CLOSED, None, None)),
            (&Answer::Other, Answer::Other, Health::Silent),
            (&started, Answer::None, Health::Silent),
        ];
        for (startup, ready, health) in cases {
            assert_eq!(judge(startup, &ready), health, "{startup:?} {ready:?}");
        }
    }

    #[test]
    fn channels_that_the_breaker_keeps_off_are_named_whatever_else_fails() {
        let started = Answer::Json(json!({"status": "started"}));
        let words = |health| match health {
            Health::Ready { suppressed, .. } => suppressed.into_iter().collect(),
            Health::Unhealthy { failing, .. } => failing,
            health => panic!("{health:?}"),
        };
        let cases = [
            (json!({"ready": true, "suppressed": []}), 0, ""),
            (json!({"ready": true, "suppressed": {"telegram": 1}}), 0, ""),
            (json!({"ready": true, "suppressed": ["telegram", "slack"]}), 1, "telegram, slack kept off"),
            (json!({"ready": false, "failing": ["db"], "suppressed": ["telegram"]}), 2, "telegram kept off"),
        ];
        for (ready, count, part) in cases {
            let words = words(judge(&started, &Answer::Json(ready.clone())));
            assert_eq!(words.len(), count, "{ready}");
            assert!(
                words.last().is_none_or(|last| last.starts_with(part) && last.contains("channels.start")),
                "{words:?}"
            );
        }
    }

    #[test]
    fn hostile_names_are_few_short_and_printable() {
        let evil = format!("\u{1b}[2K\nresult=ready {}", "x".repeat(3 << 20));
        let startup = Answer::Json(json!({"status": "started", "version": evil}));
        let many = vec![evil.as_str(); 1000];
        let ready = Answer::Json(json!({"ready": false, "failing": many}));
        let Health::Unhealthy { failing, version, .. } = judge(&startup, &ready) else { panic!("it is not unhealthy") };
        assert_eq!(failing.len(), CHECKS_LIMIT);
        for name in failing.into_iter().chain(version) {
            assert!(name.len() < 100 && !name.contains(char::is_control), "{name}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_end_is_none() -> Result<()> {
        let secret = Secret::new("t");
        for (what, head, part) in http::endless::answers() {
            let (address, taken) = http::endless::serve(head, &part)?;
            let health = Probe::new(address, &secret)?.ask().await;
            assert_eq!(health, Health::Silent, "{what}");
            let taken = taken.load(Ordering::Relaxed);
            assert!(taken < 16 << 20, "{what}: {taken} bytes");
        }
        Ok(())
    }

    /// It is asked once, not with TLS, too.
    #[tokio::test]
    async fn who_does_not_answer_in_time_is_silent() -> Result<()> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let (token, begun) = (Secret::new("token"), std::time::Instant::now());
        assert_eq!(Probe::new(listener.local_addr()?, &token)?.ask().await, Health::Silent);
        assert!(begun.elapsed() < LIMIT.time * 2, "{:?}", begun.elapsed());
        Ok(())
    }

    #[test]
    fn a_wildcard_is_asked_at_its_loopback() {
        let cases = [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.2", "10.0.0.2")];
        for (bind, expected) in cases {
            assert_eq!(bind.parse().map(reachable), expected.parse(), "{bind}");
        }
    }
}
