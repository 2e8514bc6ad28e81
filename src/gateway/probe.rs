//! The gateway's own answer to "are you ready": the JSON bodies of `/startupz` and `/readyz`.
//!
//! The HTTP status says nothing: unknown paths answer 200 with the Control UI's HTML, so an image older than 2026.8.1
//! seems to know `/startupz`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use reqwest::Client;
use serde_json::Value;

use crate::config::GatewayConfig;
use crate::http::{self, Limit};
use crate::secret::Secret;
use crate::text::printable;

/// A starting gateway's event loop is busy for seconds at a time. An answer has some hundred bytes.
const LIMIT: Limit = Limit { time: Duration::from_secs(5), bytes: 64 << 10 };

/// How many failing checks are named, and how many bytes of each name: they go into the report.
const CHECKS_LIMIT: usize = 16;
const NAME_BYTES: usize = 64;

/// The check that fails until the gateway has started, in `/readyz` of every version.
const STARTING: &str = "startup-sidecars";

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
    },
}

/// Asks one gateway, through its published port.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    client: Client,
    address: SocketAddr,
    token: &'a Secret,
}

impl<'a> Probe<'a> {
    pub(super) fn new(config: &GatewayConfig, token: &'a Secret) -> Result<Self> {
        let address = SocketAddr::new(reachable(config.bind), config.port);
        // The metadata server's client fits: plain HTTP, no redirects, never through a proxy.
        Ok(Self { client: http::metadata_client()?, address, token })
    }

    /// Asks both questions, the second only when the first says that the gateway has started.
    pub(super) async fn ask(&self) -> Health {
        let startup = self.get("startupz").await;
        match &startup {
            Answer::None => return Health::Silent,
            Answer::Json(body) if body["status"] != "started" => {
                return Health::Starting(name(&body["pendingReason"]).unwrap_or_else(|| "starting".to_owned()));
            }
            Answer::Json(_) | Answer::Other => {}
        }
        judge(&startup, &self.get("readyz").await)
    }

    async fn get(&self, path: &str) -> Answer {
        // Without the token the gateway tells a peer behind the published port no details.
        let request = self.client.get(format!("http://{}/{path}", self.address)).bearer_auth(self.token.expose());
        let body = async { http::send(request, LIMIT).await?.body().await };
        match body.await {
            Ok(body) => match serde_json::from_slice(&body) {
                Ok(body @ Value::Object(_)) => Answer::Json(body),
                _ => Answer::Other,
            },
            Err(error) => {
                tracing::trace!("asking the gateway's /{path}: {error}");
                Answer::None
            }
        }
    }
}

/// Where a program on this machine reaches a port published on `bind`.
fn reachable(bind: IpAddr) -> IpAddr {
    match bind {
        IpAddr::V4(bind) if bind.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(bind) if bind.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        bind => bind,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    None,
    Other,
    Json(Value),
}

/// Puts both answers together. `startup` is that of a gateway that has started, or is too old to have one.
fn judge(startup: &Answer, ready: &Answer) -> Health {
    let Answer::Json(body) = ready else { return Health::Silent };
    let version = match startup {
        Answer::Json(startup) => name(&startup["version"]),
        Answer::None | Answer::Other => None,
    };
    if body["ready"] == true {
        return Health::Ready { version };
    }
    let failing: Vec<String> =
        body["failing"].as_array().into_iter().flatten().filter_map(name).take(CHECKS_LIMIT).collect();
    if failing.iter().any(|check| check == STARTING) {
        return Health::Starting(STARTING.to_owned());
    }
    let failing = if failing.is_empty() { vec!["readyz".to_owned()] } else { failing };
    Health::Unhealthy { failing, uptime: body["uptimeMs"].as_u64().map(Duration::from_millis), version }
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
        let unhealthy = |failing: &str, uptime: Option<u64>, version| Health::Unhealthy {
            failing: vec![failing.to_owned()],
            uptime: uptime.map(Duration::from_millis),
            version,
        };
        #[rustfmt::skip]
        let cases = [
            (&started, ready(), Health::Ready { version: version() }),
            (&short, ready(), Health::Ready { version: None }),
            (&Answer::Other, ready(), Health::Ready { version: None }),
            (&started, Answer::Json(json!({"ready": false, "failing": ["telegram:main"], "uptimeMs": 7})), unhealthy("telegram:main", Some(7), version())),
            (&short, Answer::Json(json!({"ready": false})), unhealthy("readyz", None, None)),
            (&Answer::Other, Answer::Json(json!({"ready": false, "failing": ["startup-sidecars"]})), Health::Starting(STARTING.to_owned())),
            (&Answer::Other, Answer::Other, Health::Silent),
            (&started, Answer::None, Health::Silent),
        ];
        for (startup, ready, health) in cases {
            assert_eq!(judge(startup, &ready), health, "{startup:?} {ready:?}");
        }
    }

    #[test]
    fn hostile_names_are_few_short_and_printable() {
        let evil = format!("\u{1b}[2K\nresult=ready {}", "x".repeat(3 << 20));
        let startup = Answer::Json(json!({"status": "started", "version": evil}));
        let ready = Answer::Json(json!({"ready": false, "failing": vec![evil.as_str(); 1000]}));
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
            let config = GatewayConfig { port: address.port(), bind: address.ip(), ..GatewayConfig::default() };
            let health = Probe::new(&config, &secret)?.ask().await;
            assert_eq!(health, Health::Silent, "{what}");
            let taken = taken.load(Ordering::Relaxed);
            assert!(taken < 16 << 20, "{what}: {taken} bytes");
        }
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
