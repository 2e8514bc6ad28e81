//! The server: one request a connection, each with limits of size and time. Who asks is not trusted.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt::IpFreebind};
use reqwest::StatusCode;
use sd_notify::NotifyState;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Identity;
use super::answer::{Answer, Request, decide};
use super::token::{Lack, Tokens};
use crate::metadata::Client;

/// How many are served at once; the next ones wait, as many again in the kernel.
const CONNECTIONS: u16 = 32;

/// The head of a request. Those of Google's clients have some hundred bytes.
const HEAD_BYTES: usize = 8 << 10;

/// More than these clients send.
const HEADERS: usize = 32;

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all of it may take, a token from Google's IAM included.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long, and for how many bytes, what a client still sends is taken, so that it gets to read its answer.
const REST_TIMEOUT: Duration = Duration::from_secs(1);
const REST_BYTES: usize = 64 << 10;

/// How long nothing is accepted after a failure: the process has too many open files, say.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

struct Server {
    identity: Identity,
    tokens: Tokens,
}

/// Serves for ever, and tells systemd when it begins.
pub(super) async fn run(identity: Identity, metadata: Client) -> Result<()> {
    let listener = listen(identity.listen).with_context(|| format!("listening on {}", identity.listen))?;
    tracing::info!("tokens of {} for containers at {}", identity.account, identity.listen);
    sd_notify::notify(&[NotifyState::Ready]).context("telling systemd")?;
    serve(&listener, identity, metadata).await
}

/// At an address that the machine may get later: the bridge's, from the engine.
fn listen(address: SocketAddrV4) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, IpFreebind, &true)?;
    socket.bind(address.into())?;
    Ok(socket.listen(CONNECTIONS.into())?)
}

async fn serve(listener: &TcpListener, identity: Identity, metadata: Client) -> Result<()> {
    let tokens = Tokens::new(metadata, identity.account.clone());
    let (server, free) = (Arc::new(Server { identity, tokens }), Arc::new(Semaphore::new(CONNECTIONS.into())));
    loop {
        let place = Arc::clone(&free).acquire_owned().await.context("waiting for a free connection")?;
        let (stream, server) = match listener.accept().await {
            Ok((stream, _)) => (stream, Arc::clone(&server)),
            Err(error) => {
                tracing::debug!("accepting a connection: {error}");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        tokio::spawn(async move {
            let served = timeout(EXCHANGE_TIMEOUT, server.exchange(stream)).await;
            if let Err(error) = served.unwrap_or_else(|late| Err(late.into())) {
                tracing::debug!("serving a container: {error:#}");
            }
            drop(place);
        });
    }
}

impl Server {
    /// One request and its answer.
    async fn exchange(&self, mut stream: TcpStream) -> Result<()> {
        let mut head = [0; HEAD_BYTES];
        let read = timeout(HEAD_TIMEOUT, receive(&mut stream, &mut head)).await;
        let answer = match read.context("the head of a request takes too long")? {
            Ok(length) => self.answer(&head[..length], &stream).await,
            Err(error) => {
                tracing::debug!("{error:#}");
                error_of(StatusCode::BAD_REQUEST)
            }
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let rest = async {
            let mut left = REST_BYTES;
            while left > 0
                && let Ok(read @ 1..) = stream.read(&mut head).await
            {
                left = left.saturating_sub(read);
            }
        };
        drop(timeout(REST_TIMEOUT, rest).await);
        Ok(())
    }

    async fn answer(&self, head: &[u8], stream: &TcpStream) -> String {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let (Ok(_), Some(method), Some(target)) = (parsed.parse(head), parsed.method, parsed.path) else {
            return error_of(StatusCode::BAD_REQUEST);
        };
        let has = |name: &str, is_right: fn(&[u8]) -> bool| {
            parsed.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name) && is_right(header.value))
        };
        let request = Request {
            method,
            target,
            has_flavor: has("Metadata-Flavor", |value| value == b"Google"),
            is_forwarded: has("X-Forwarded-For", |value| !value.is_empty()),
        };
        match decide(&self.identity, request) {
            Answer::Content(kind, content) => response(StatusCode::OK, kind, &content),
            Answer::Refused(status) => error_of(status),
            Answer::Token => self.token(stream).await,
        }
    }

    /// Each token is noted with the address that got it.
    async fn token(&self, stream: &TcpStream) -> String {
        let (token, left) = match self.tokens.get().await {
            Ok(found) => found,
            Err(Lack::Denied) => return error_of(StatusCode::FORBIDDEN),
            Err(Lack::Unreachable) => return error_of(StatusCode::SERVICE_UNAVAILABLE),
        };
        let Ok(client) = stream.peer_addr() else { return error_of(StatusCode::SERVICE_UNAVAILABLE) };
        tracing::info!("a token of {} for {}, good for {} s", self.identity.account, client.ip(), left.as_secs());
        let content = serde_json::json!({
            "access_token": token.expose(),
            "expires_in": left.as_secs(),
            "token_type": "Bearer",
        });
        response(StatusCode::OK, "application/json", &content.to_string())
    }
}

/// Reads to the end of a request's head; how long it is.
async fn receive(stream: &mut TcpStream, head: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < head.len() {
        let read = stream.read(&mut head[length..]).await?;
        ensure!(read > 0, "the connection ends within a request");
        length += read;
        if head[..length].windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(length);
        }
    }
    bail!("the head of a request is longer than {HEAD_BYTES} bytes")
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

    use super::*;

    const FLAVOR: &str = "metadata-flavor: Google\r\n";

    /// Sends `parts`, one after the other; what comes back.
    async fn ask(parts: &[&str]) -> Result<String> {
        let listener = listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let identity = Identity {
            account: "agent@p.iam.gserviceaccount.com".to_owned(),
            project_id: "p".to_owned(),
            project_number: 123,
            zone: "z".to_owned(),
            listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
        };
        let metadata = Client::new(Some("127.0.0.1:1"))?;
        let served = serve(&listener, identity, metadata);
        let client = async {
            let mut stream = TcpStream::connect(address).await?;
            for part in parts {
                stream.write_all(part.as_bytes()).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        tokio::select! {
            ended = served => ended.map(|()| String::new()),
            answer = client => answer,
        }
    }

    #[tokio::test]
    async fn a_request_has_one_answer_however_it_comes() -> Result<()> {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(2 * HEAD_BYTES));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(2 * HEADERS));
        let get = "GET /computeMetadata/v1/project/project-id HTTP/1.1\r\n";
        let flavored = format!("{get}{FLAVOR}\r\n");
        let twice = flavored.repeat(2);
        let forwarded = format!("{get}{FLAVOR}x-forwarded-for: 10.0.0.1\r\n\r\n");
        let other = format!("{get}metadata-flavor: Other\r\n\r\n");
        let (bare, body) = (format!("{get}\r\n"), "x".repeat(32 << 10));
        #[rustfmt::skip]
        let cases: [(&[&str], &str); 11] = [
            (&[&flavored], "200 OK"),
            (&["GET /computeMetadata/v1/proj", "ect/project-id HTTP/1.1\r\n", FLAVOR, "\r\n"], "200 OK"),
            (&["GET / HTTP/1.0\r\n\r\n"], "200 OK"),
            (&[&twice], "200 OK"),
            (&[&bare], "403 Forbidden"),
            (&[&other], "403 Forbidden"),
            (&[&forwarded], "403 Forbidden"),
            (&["POST / HTTP/1.1\r\ncontent-length: 32768\r\n\r\n", &body], "405 Method Not Allowed"),
            (&["\u{1}\r\n\r\n"], "400 Bad Request"),
            (&[&long], "400 Bad Request"),
            (&[&many], "400 Bad Request"),
        ];
        for (parts, status) in cases {
            let answer = ask(parts).await?;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\nMetadata-Flavor: Google\r\n")), "{answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
            assert_eq!(answer.ends_with("\r\n\r\np"), answer.contains("Content-Length: 1\r\n"), "{answer}");
        }
        Ok(())
    }
}
