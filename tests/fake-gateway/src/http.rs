//! The gateway's probes: `/healthz`, `/startupz`, `/readyz`; everything else is the Control UI.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{Release, directory, evil};

/// While the state has a file of this name, it is what the gateway says of its checks.
const CHOSEN: &str = "readyz.json";

/// Listens on all addresses or on loopback only, and answers until the process ends.
pub(crate) fn serve(lan: bool, port: u16, release: Release, token: Option<String>) -> Result<()> {
    let address = if lan { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
    let listener = TcpListener::bind((address, port)).with_context(|| format!("listening on port {port}"))?;
    let gateway = Gateway { release, token, since: Instant::now() };
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // One that breaks concerns only its client; one that stalls gives way to the next.
            let _ = connection.set_read_timeout(Some(Duration::from_secs(2)));
            let _ = gateway.answer(&connection);
        }
    });
    Ok(())
}

/// The health check of the image: an error unless the gateway in this container lives.
pub(crate) fn ask_health() -> Result<()> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, 18789)).context("reaching the gateway")?;
    write!(connection, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    ensure!(answer.contains(r#""ok":true"#), "the gateway says {answer}");
    Ok(())
}

fn chosen() -> Option<Value> {
    serde_json::from_slice(&fs::read(directory().join(CHOSEN)).ok()?).ok()
}

#[derive(Debug)]
struct Gateway {
    release: Release,
    token: Option<String>,
    since: Instant,
}

impl Gateway {
    fn answer(&self, mut connection: &TcpStream) -> Result<()> {
        let trusted = connection.peer_addr()?.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut lines = BufReader::new(connection).lines();
        let request = lines.next().context("no request")??;
        let mut authorised = false;
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            let bearer = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
            let bearer = bearer.and_then(|(_, value)| value.trim().strip_prefix("Bearer "));
            authorised |= bearer.is_some() && bearer == self.token.as_deref();
        }
        let (method, path) = request.split_once(' ').context("no request")?;
        let path = path.split([' ', '?']).next().unwrap_or_default();
        if evil::is_on() && ["/startupz", "/readyz"].contains(&path) {
            connection
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"ready\":true,\"x\":\"")?;
            return Ok(evil::write(connection)?);
        }
        let (status, kind, body) = match (method, self.probe(path, trusted || authorised)) {
            ("GET" | "HEAD", Some((status, body))) => (status, "application/json; charset=utf-8", body.to_string()),
            ("GET" | "HEAD", None) => ("200 OK", "text/html", "<title>OpenClaw</title>".to_owned()),
            _ => ("405 Method Not Allowed", "text/plain", String::new()),
        };
        let body = if method == "HEAD" { "" } else { &body };
        write!(
            connection,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nCache-Control: no-store\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )?;
        Ok(())
    }

    /// Status and body; `details` are only for who may know them.
    fn probe(&self, path: &str, details: bool) -> Option<(&'static str, Value)> {
        const PENDING: &str = "startup-sidecars";
        let starts = self.release.starts;
        let uptime = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (passes, body) = match (path, details) {
            ("/healthz" | "/health", _) => (true, json!({ "ok": true, "status": "live" })),
            ("/startupz" | "/startup", _) => {
                let mut body = json!({ "ok": starts, "status": if starts { "started" } else { "starting" } });
                if details {
                    body["version"] = json!(self.release.version);
                    body["uptimeMs"] = json!(uptime);
                    body["pendingReason"] = json!((!starts).then_some(PENDING));
                }
                (starts, body)
            }
            ("/readyz" | "/ready", _) => {
                let failing: &[&str] = if starts { &[] } else { &[PENDING] };
                let own = json!({ "ready": starts, "failing": failing, "uptimeMs": uptime });
                let body = chosen().unwrap_or(own);
                let ready = body["ready"] == true;
                (ready, if details { body } else { json!({ "ready": ready }) })
            }
            _ => return None,
        };
        Some((if passes { "200 OK" } else { "503 Service Unavailable" }, body))
    }
}
