//! The two HTTP clients, one for the metadata server and one for the internet, and which requests are worth a retry.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::header::HeaderMap;
use reqwest::tls::TlsInfo;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode, redirect};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, RootCertStore};

use crate::failpoint;
use crate::host::blocking;
use crate::text;

/// The metadata server is one hop away: a connection that takes longer is a link that is not up yet.
const METADATA_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Long enough for a lost SYN or two on the way to a registry.
const INTERNET_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a download may stand still.
const INTERNET_READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The server starts, is migrated, limits the rate or cannot be reached yet.
    Yes,
    /// 403: usually a setting, rarely a passing check. One more request, no more.
    Once,
    /// Asking again cannot help.
    No,
}

impl Retry {
    /// What a status means; one that is an answer means [`Retry::No`].
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Self::Yes,
            status if status.is_server_error() => Self::Yes,
            StatusCode::FORBIDDEN => Self::Once,
            _ => Self::No,
        }
    }

    /// What a failed request means. No connection, a connection that broke, a time-out and half a body all pass.
    pub fn of_error(error: &reqwest::Error) -> Self {
        match error.status() {
            Some(status) => Self::of_status(status),
            None if error.is_builder() => Self::No,
            None => Self::Yes,
        }
    }
}

/// A client for the metadata server: never through a proxy, follows no redirect, knows no TLS roots.
pub fn metadata_client() -> Result<Client> {
    install_crypto_provider();
    nearby().tls_certs_only([]).build().context("building the metadata server's HTTP client")
}

/// A client for what listens at a socket of this machine; the host in a URL counts for nothing.
pub fn socket_client(socket: &str) -> Result<Client> {
    install_crypto_provider();
    nearby().tls_certs_only([]).unix_socket(socket).build().context("building an HTTP client for a socket")
}

/// A client's settings for a server that is reached directly, and at once if at all.
fn nearby() -> ClientBuilder {
    Client::builder().no_proxy().redirect(redirect::Policy::none()).connect_timeout(METADATA_CONNECT_TIMEOUT)
}

/// The same for a server of this machine, which may have TLS with any certificate: no name is there to be verified.
pub fn unverified_client() -> Result<Client> {
    unverified(nearby())
}

/// The same for a server that knows its name, found at `address`; an answer has its certificate.
pub fn unverified_client_for(name: &str, address: SocketAddr) -> Result<Client> {
    unverified(nearby().resolve(name, address).tls_info(true))
}

fn unverified(settings: ClientBuilder) -> Result<Client> {
    install_crypto_provider();
    settings.tls_danger_accept_invalid_certs(true).build().context("building an HTTP client for this machine")
}

/// A client for the internet: trusts the compiled-in roots and the machine's own store (a company's
/// proxy may sign with its own), and honours the environment's proxy variables.
pub async fn internet_client() -> Result<Client> {
    install_crypto_provider();
    let roots = blocking(|| Ok(trusted_roots())).await.context("reading the machine's trusted roots")?;
    Client::builder()
        .tls_backend_preconfigured(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
        .connect_timeout(INTERNET_CONNECT_TIMEOUT)
        .read_timeout(INTERNET_READ_TIMEOUT)
        .build()
        .context("building the internet's HTTP client")
}

/// The pause after so many failures in a row: `first`, doubled each time, at most `longest`.
pub(crate) fn backoff(first: Duration, failures: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(longest)
}

/// What one exchange may cost, whatever the other side sends: with its end the request has failed.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// From the connection to the last byte of the answer.
    pub time: Duration,
    /// Of the answer's body.
    pub bytes: u64,
}

/// Sends one request; returns with the head of the answer.
#[expect(clippy::disallowed_methods, reason = "the one place that sends requests, with their limits")]
pub async fn send(request: RequestBuilder, limit: Limit) -> Result<Answer, Failure> {
    let (client, request) = request.timeout(limit.time).build_split();
    let request = request?;
    let failpoint = failpoint::counted(&format!("http-{}", request.method().as_str().to_ascii_lowercase()));
    failpoint.hit_at("before");
    let answer = client.execute(request).await;
    failpoint.hit_at("after");
    Ok(Answer { response: answer?, bytes: limit.bytes, read: 0 })
}

/// An answer whose body is not read yet, and cannot be read beyond its limit.
#[derive(Debug)]
pub struct Answer {
    response: Response,
    bytes: u64,
    read: u64,
}

impl Answer {
    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The server's certificate, for a client that asks for it.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.response.extensions().get::<TlsInfo>()?.peer_certificate()
    }

    /// How long the body will be, if the server says so.
    pub fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// An error for a status that says that there is none.
    pub fn success(self) -> Result<Self, Failure> {
        self.response.error_for_status_ref()?;
        Ok(self)
    }

    /// The next part of the body, `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        let chunk = self.response.chunk().await?;
        self.read += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if self.read.max(self.length().unwrap_or_default()) > self.bytes {
            return Err(Failure::TooLarge(self.bytes));
        }
        Ok(chunk)
    }

    /// The whole body.
    pub async fn body(mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(chunk.as_ref());
        }
        Ok(body)
    }
}

/// Why an exchange failed.
#[derive(Debug)]
pub enum Failure {
    /// On the way, or by its status.
    Transport(reqwest::Error),
    /// The body is larger than so many bytes.
    TooLarge(u64),
}

impl Failure {
    /// Whether the same request may succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Transport(error) => Retry::of_error(error),
            Self::TooLarge(_) => Retry::No,
        }
    }

    /// Whether there was no answer in time.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Transport(error) if error.is_timeout())
    }
}

impl From<reqwest::Error> for Failure {
    /// Without the URL: who asks knows it, and it may hold a signature.
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(error.without_url())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(out),
            Self::TooLarge(limit) => write!(out, "the answer is larger than {}", text::size(*limit)),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Transport(error) => error.source(),
            Self::TooLarge(_) => None,
        }
    }
}

/// Without a provider every client panics when it is built, the one for plain HTTP too. A second call finds the
/// provider of the first.
fn install_crypto_provider() {
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// Whether the certificate, whoever signed it, is not valid any more at `now`.
pub fn is_expired(certificate: &[u8], now: UnixTime) -> bool {
    // Its end is looked at before its issuer: any root will do.
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS[..1].to_vec() };
    let provider = rustls::crypto::ring::default_provider();
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.into()).build() else {
        return false;
    };
    let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
    let outcome = verifier.verify_server_cert(&certificate.into(), &[], &name, &[], now);
    let expired = |error: &_| matches!(error, CertificateError::Expired | CertificateError::ExpiredContext { .. });
    matches!(outcome, Err(rustls::Error::InvalidCertificate(ref error)) if expired(error))
}

fn trusted_roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let own = rustls_native_certs::load_native_certs();
    for error in &own.errors {
        tracing::debug!("the machine's trust store: {error}");
    }
    roots.add_parsable_certificates(own.certs);
    Arc::new(roots)
}

/// A server whose answers have no end.
#[cfg(test)]
pub(crate) mod endless {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// After the head come the parts, for as long as somebody takes them. Returns the address, and the counter of the
    /// bytes that were taken.
    pub(crate) fn serve(head: &str, part: &str) -> std::io::Result<(SocketAddr, Arc<AtomicU64>)> {
        let (listener, taken) = (TcpListener::bind("127.0.0.1:0")?, Arc::new(AtomicU64::new(0)));
        let (head, part, count) = (head.to_owned(), part.to_owned(), taken.clone());
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            for mut peer in listener.incoming().flatten() {
                let (head, part, count) = (head.clone(), part.clone(), count.clone());
                std::thread::spawn(move || {
                    let mut is_taken = peer.read(&mut [0; 4096]).and_then(|_| peer.write_all(head.as_bytes()));
                    while is_taken.is_ok() {
                        // As fast as it can, or as slowly as it must not matter.
                        if part.len() < 1 << 10 {
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                        is_taken = peer.write_all(part.as_bytes());
                        count.fetch_add(part.len() as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        Ok((address, taken))
    }

    /// Every way in which an answer may have no end: a name, its head, and what follows again and again.
    pub(crate) fn answers() -> [(&'static str, &'static str, String); 5] {
        const FLAVOR: &str = "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n\r\n{\"a\": \"";
        const LENGTH: &str = "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: 99999999999\r\n\r\n[";
        const CHUNKED: &str =
            "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n";
        let text = "[".repeat(1 << 16);
        [
            ("plain", FLAVOR, text.clone()),
            ("with a length", LENGTH, text.clone()),
            ("chunked", CHUNKED, format!("10000\r\n{text}\r\n")),
            ("headers", "HTTP/1.1 200 OK\r\n", format!("X-A: {text}\r\n")),
            ("100 Continue", "", "HTTP/1.1 100 Continue\r\n\r\n".repeat(10)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn statuses_are_retried_as_documented() {
        let table = [
            (200, Retry::No),
            (301, Retry::No),
            (400, Retry::No),
            (403, Retry::Once),
            (404, Retry::No),
            (408, Retry::Yes),
            (429, Retry::Yes),
            (500, Retry::Yes),
            (503, Retry::Yes),
            (504, Retry::Yes),
        ];
        for (status, retry) in table {
            assert_eq!(StatusCode::from_u16(status).map(Retry::of_status).ok(), Some(retry), "{status}");
        }
    }

    /// Made for a hundred years, one of a CA and one that it did not sign.
    #[test]
    fn a_certificate_that_has_expired_is_told_from_one_that_nobody_knows() {
        let year = |year: u64| UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_556_952));
        for pem in [include_str!("config/ca/ca.pem"), include_str!("config/ca/server.pem")] {
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("{error:?}"));
            let certificate = certificate.unwrap_or_else(|error| panic!("{error}"));
            assert!(!is_expired(&certificate, year(2100)) && is_expired(&certificate, year(2200)));
        }
        assert!(!is_expired(b"no certificate", year(2200)));
    }

    /// What the kernel's buffers hold of a connection is taken, too.
    #[tokio::test]
    async fn an_answer_without_end_costs_no_more_than_its_limit() -> Result<()> {
        let limit = Limit { time: Duration::from_secs(3), bytes: 1 << 20 };
        for (what, head, part) in endless::answers() {
            for method in [reqwest::Method::GET, reqwest::Method::PUT] {
                let (address, taken) = endless::serve(head, &part)?;
                let (request, begun) =
                    (metadata_client()?.request(method, format!("http://{address}/")), Instant::now());
                let read = async { send(request, limit).await?.body().await };
                assert!(read.await.is_err(), "{what}");
                assert!(begun.elapsed() < 3 * limit.time, "{what}: {:?}", begun.elapsed());
                let taken = taken.load(Ordering::Relaxed);
                assert!(taken < 16 << 20, "{what}: {taken} bytes");
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn both_clients_can_be_built_more_than_once() -> Result<()> {
        for _ in 0..2 {
            metadata_client()?;
            internet_client().await?;
        }
        Ok(())
    }
}
