//! The two HTTP clients: one for the metadata server, one for the internet.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Client, RequestBuilder, Response, redirect};
use rustls::{ClientConfig, RootCertStore};

use crate::failpoint;
use crate::host::blocking;

/// The metadata server is one hop away: a connection that takes longer is a link that is not up yet.
const METADATA_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Long enough for a lost SYN or two on the way to a registry.
const INTERNET_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a download may stand still. There is no limit on the whole of it: size and line are unknown.
const INTERNET_READ_TIMEOUT: Duration = Duration::from_secs(60);

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

/// Without a provider every client panics when built, the one for plain HTTP too. A second call finds
/// the provider of the first, which is the same.
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

    #[tokio::test]
    async fn both_clients_can_be_built_more_than_once() -> Result<()> {
        for _ in 0..2 {
            metadata_client()?;
            internet_client().await?;
        }
        Ok(())
    }
}
