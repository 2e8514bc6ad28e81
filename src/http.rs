//! The two HTTP clients, one for the metadata server and one for the internet, and which requests are worth a retry.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Client, RequestBuilder, Response, StatusCode, redirect};
use rustls::{ClientConfig, RootCertStore};

use crate::failpoint;
use crate::host::blocking;

/// The metadata server is one hop away: a connection that takes longer is a link that is not up yet.
const METADATA_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Long enough for a lost SYN or two on the way to a registry.
const INTERNET_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a download may stand still. The whole of it has no limit: neither its size nor the line is known.
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
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .tls_certs_only([])
        .connect_timeout(METADATA_CONNECT_TIMEOUT)
        .build()
        .context("building the metadata server's HTTP client")
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

/// Sends one request; returns with the head of the answer.
#[expect(clippy::disallowed_methods, reason = "the one place that sends requests")]
pub async fn send(request: RequestBuilder) -> reqwest::Result<Response> {
    let (client, request) = request.build_split();
    let request = request?;
    let failpoint = failpoint::counted(&format!("http-{}", request.method().as_str().to_ascii_lowercase()));
    failpoint.hit_at("before");
    let answer = client.execute(request).await;
    failpoint.hit_at("after");
    answer
}

/// Without a provider every client panics when it is built, the one for plain HTTP too. A second call finds the
/// provider of the first.
fn install_crypto_provider() {
    drop(rustls::crypto::ring::default_provider().install_default());
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

#[cfg(test)]
mod tests {
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

    #[tokio::test]
    async fn both_clients_can_be_built_more_than_once() -> Result<()> {
        for _ in 0..2 {
            metadata_client()?;
            internet_client().await?;
        }
        Ok(())
    }
}
