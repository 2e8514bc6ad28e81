//! The server: one request a connection and a thread, each with limits of size and time. Who asks is not trusted.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use reqwest::StatusCode;
use sd_notify::NotifyState;

use super::Identity;
use super::answer::{Answer, Request, decide};
use super::token::{Lack, Tokens};
use crate::host::blocking;
use crate::metadata::Client;

/// How many are served at once; the next ones wait, as many again in the kernel. The unit has a limit of threads.
const CONNECTIONS: u8 = 16;

/// The head of a request. Those of Google's clients have some hundred bytes.
const HEAD_BYTES: usize = 8 << 10;

/// How long the head of a request may take, and how long what a client sends after it is taken, so that it gets to read
/// its answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked whether there is room for another connection.
const ROOM_INTERVAL: Duration = Duration::from_millis(10);

struct Server {
    identity: Identity,
    tokens: Tokens,
}

/// Serves for ever, and tells systemd when it begins.
pub(super) async fn run(identity: Identity, metadata: Client) -> Result<()> {
    let listener = open(identity.listen).with_context(|| format!("listening on {}", identity.listen))?;
    tracing::info!("tokens of {} for containers at {}", identity.account, identity.listen);
    sd_notify::notify(&[NotifyState::Ready]).context("telling systemd")?;
    let tokens = Tokens::new(metadata, identity.account.clone());
    let server = Arc::new(Server { identity, tokens });
    blocking(move || serve(&listener, &server)).await
}

/// Listens at an address that the machine may get later: the bridge's, from the engine.
fn open(address: SocketAddrV4) -> Result<TcpListener> {
    let opened = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&opened, sockopt::ReuseAddr, &true)?;
    setsockopt(&opened, sockopt::IpFreebind, &true)?;
    bind(opened.as_raw_fd(), &SockaddrIn::from(address))?;
    listen(&opened, Backlog::new(CONNECTIONS)?)?;
    Ok(opened.into())
}

fn serve(listener: &TcpListener, server: &Arc<Server>) -> Result<()> {
    loop {
        while Arc::strong_count(server) > CONNECTIONS.into() {
            thread::sleep(ROOM_INTERVAL);
        }
        // A failure is a client that is gone already, or one file too many.
        let (Ok((stream, _)), server) = (listener.accept(), Arc::clone(server)) else {
            thread::sleep(ROOM_INTERVAL);
            continue;
        };
        let spawned = thread::Builder::new().spawn(move || {
            if let Err(error) = server.exchange(stream) {
                tracing::debug!("serving a container: {error:#}");
            }
        });
        if let Err(error) = spawned {
            tracing::debug!("starting a thread: {error}");
        }
    }
}

impl Server {
    /// One request and its answer.
    fn exchange(&self, mut stream: TcpStream) -> Result<()> {
        let mut buffer = [0; HEAD_BYTES];
        stream.set_write_timeout(Some(HEAD_TIMEOUT))?;
        let head = receive(&mut stream, &mut buffer)?;
        let answer = self.answer(head, &stream);
        stream.write_all(answer.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        read_until(&mut stream, &mut buffer, Instant::now() + REST_TIMEOUT, |_| false).map(drop)
    }

    fn answer(&self, head: &[u8], stream: &TcpStream) -> String {
        let Some(request) = str::from_utf8(head).ok().and_then(parse) else {
            return error_of(StatusCode::BAD_REQUEST);
        };
        match decide(&self.identity, request) {
            Answer::Content(kind, content) => response(StatusCode::OK, kind, &content),
            Answer::Refused(status) => error_of(status),
            Answer::Token => self.token(stream),
        }
    }

    /// Each token is noted with the address that got it.
    fn token(&self, stream: &TcpStream) -> String {
        let (token, left) = match (self.tokens.get(), stream.peer_addr()) {
            (Ok((token, left)), Ok(client)) => {
                let (account, ip, left) = (&self.identity.account, client.ip(), left.as_secs());
                tracing::info!("a token of {account} for {ip}, good for {left} s");
                (token, left)
            }
            (Err(Lack::Denied), _) => return error_of(StatusCode::FORBIDDEN),
            _ => return error_of(StatusCode::SERVICE_UNAVAILABLE),
        };
        // Nothing in a token has a meaning in JSON.
        let token = token.expose();
        let content = format!("{{\"access_token\":\"{token}\",\"expires_in\":{left},\"token_type\":\"Bearer\"}}");
        response(StatusCode::OK, "application/json", &content)
    }
}

/// The head of a request.
fn receive<'a>(stream: &mut TcpStream, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
    let is_whole = |head: &[u8]| head.windows(4).any(|end| end == b"\r\n\r\n");
    let length = read_until(stream, buffer, Instant::now() + HEAD_TIMEOUT, is_whole)?;
    let head = &buffer[..length];
    ensure!(is_whole(head) || length == HEAD_BYTES, "no whole request in time");
    Ok(head)
}

/// Reads until there is enough, the buffer is full, the client has nothing more, or the time is over.
fn read_until(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    deadline: Instant,
    is_enough: impl Fn(&[u8]) -> bool,
) -> Result<usize> {
    let mut length = 0;
    while length < buffer.len() && !is_enough(&buffer[..length]) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(length)
}

/// A whole head of HTTP/1, as far as it counts.
fn parse(head: &str) -> Option<Request<'_>> {
    let (head, _) = head.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !version.starts_with("HTTP/1.") {
        return None;
    }
    let has = |name: &str, is_right: fn(&str) -> bool| {
        let mut headers = lines.clone().filter_map(|line| line.split_once(':'));
        headers.any(|(key, value)| key.trim().eq_ignore_ascii_case(name) && is_right(value.trim()))
    };
    Some(Request {
        method,
        target,
        has_flavor: has("Metadata-Flavor", |value| value == "Google"),
        is_forwarded: has("X-Forwarded-For", |value| !value.is_empty()),
    })
}

fn error_of(status: StatusCode) -> String {
    response(status, "text/html; charset=UTF-8", &format!("{status}\n"))
}

/// With the headers by which clients know the metadata server.
fn response(status: StatusCode, kind: &str, content: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nMetadata-Flavor: Google\r\nServer: Metadata Server for VM\r\nContent-Type: {kind}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{content}",
        content.len()
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const FLAVOR: &str = "metadata-flavor: Google\r\n";

    /// A server at a free port; the test's end does not wait for it.
    fn spawn() -> Result<std::net::SocketAddr> {
        let listen = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let identity = Identity {
            account: "agent@p.iam.gserviceaccount.com".to_owned(),
            project_id: "p".to_owned(),
            project_number: 123,
            zone: "z".to_owned(),
            listen,
        };
        let listener = open(listen)?;
        let address = listener.local_addr()?;
        let tokens = Tokens::new(Client::new(Some("127.0.0.1:1"))?, identity.account.clone());
        thread::spawn(move || serve(&listener, &Arc::new(Server { identity, tokens })));
        Ok(address)
    }

    #[tokio::test]
    async fn a_request_has_one_answer_however_it_comes() -> Result<()> {
        let address = spawn()?;
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(2 * HEAD_BYTES));
        let get = "GET /computeMetadata/v1/project/project-id HTTP/1.1\r\n";
        let flavored = format!("{get}{FLAVOR}\r\n");
        let twice = flavored.repeat(2);
        let forwarded = format!("{get}{FLAVOR}x-forwarded-for: 10.0.0.1\r\n\r\n");
        let other = format!("{get}metadata-flavor: Other\r\n\r\n");
        let (bare, body) = (format!("{get}\r\n"), "x".repeat(4 << 10));
        #[rustfmt::skip]
        let cases: [(&[&str], &str); 12] = [
            (&[&flavored], "200 OK"),
            (&["GET /computeMetadata/v1/proj", "ect/project-id HTTP/1.1\r\n", FLAVOR, "\r\n"], "200 OK"),
            (&["GET / HTTP/1.0\r\n\r\n"], "200 OK"),
            (&[&twice], "200 OK"),
            (&[&bare], "403 Forbidden"),
            (&[&other], "403 Forbidden"),
            (&[&forwarded], "403 Forbidden"),
            (&["POST / HTTP/1.1\r\ncontent-length: 4096\r\n\r\n", &body], "405 Method Not Allowed"),
            (&["\u{1}\r\n\r\n"], "400 Bad Request"),
            (&["GET  / HTTP/1.1\r\n\r\n"], "400 Bad Request"),
            (&["GET / HTTP/2\r\n\r\n"], "400 Bad Request"),
            (&[&long], "400 Bad Request"),
        ];
        for (parts, status) in cases {
            let mut stream = TcpStream::connect(address)?;
            for part in parts {
                stream.write_all(part.as_bytes())?;
                thread::sleep(Duration::from_millis(20));
            }
            let (mut answer, mut part) = (String::new(), [0; 4096]);
            // What was not taken of a request that is too long ends the connection.
            while let Ok(read @ 1..) = stream.read(&mut part) {
                answer.push_str(&String::from_utf8_lossy(&part[..read]));
            }
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\nMetadata-Flavor: Google\r\n")), "{answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
            assert_eq!(answer.ends_with("\r\n\r\np"), answer.contains("Content-Length: 1\r\n"), "{answer}");
        }
        Ok(())
    }

    /// As many as are served at once say nothing; the next one is served when their time is over.
    #[tokio::test]
    async fn who_says_nothing_holds_up_nobody_for_long() -> Result<()> {
        let (address, begun) = (spawn()?, Instant::now());
        let silent: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect(address)).collect();
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(begun.elapsed() < 3 * HEAD_TIMEOUT, "{:?}", begun.elapsed());
        drop(silent);
        Ok(())
    }

    proptest! {
        #[test]
        fn any_head_is_a_request_or_none(head in "[ -~\r\n:]{0,200}") {
            let _ = parse(&head);
        }
    }
}
