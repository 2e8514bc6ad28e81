//! The way to the Control UI: its address with the gateway's token, for a browser at the other end of an SSH tunnel.

use std::io;
use std::time::Duration;

use anyhow::{Result, anyhow};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::docker::{Engine, SOCKET};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::gateway;
use crate::gateway::secrets::{self, Entry};
use crate::host::Host;
use crate::lock::require_root;
use crate::secret::Secret;
use crate::state;

/// How often the gateway is looked at while the link is held.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// What may not stand in a fragment's value as it is (RFC 3986).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where the gateway of this machine is reached, and with what.
#[derive(Debug)]
pub struct Link {
    /// Where a proxy in front of the gateway has it. Such a gateway answers nobody at the end of a tunnel.
    origin: Option<String>,
    port: u16,
    /// None where the gateway asks for something else.
    token: Option<Secret>,
}

impl Link {
    /// Whether the gateway is reached only from this machine, so that a session must stay open for its tunnel.
    pub fn needs_tunnel(&self) -> bool {
        self.origin.is_none()
    }

    /// The address for a browser. The token is in its fragment, which no browser sends to a server.
    pub fn url(&self) -> String {
        let local = || format!("http://localhost:{}", self.port);
        let origin = self.origin.clone().unwrap_or_else(local);
        match &self.token {
            Some(token) => format!("{origin}/#token={}", utf8_percent_encode(token.expose(), RESERVED)),
            None => format!("{origin}/"),
        }
    }
}

/// The link to this machine's gateway, with a proxy in front of it at `origin`. Nothing is changed.
pub async fn find(host: &Host, origin: Option<String>) -> Result<Link> {
    require_root()?;
    let run_first = || format!("See `sudo openclaw-init status`, or run `{RUN_AGAIN}`.");
    let data = state::current(host).await?.ok_or_else(|| anyhow!("there is no gateway's state on this machine"));
    let data = data.classify(Code::GatewayNotReady, run_first())?;
    let address = gateway::published(&Engine::connect(SOCKET).await?).await?;
    let address = address.ok_or_else(|| anyhow!("there is no gateway's container on this machine"));
    let port = address.classify(Code::GatewayNotReady, run_first())?.port();
    let token = match secrets::entry(host, &data).await? {
        Entry::Token(token) => Ok(Some(token)),
        Entry::NoToken => Ok(None),
        Entry::Unknown(error) => Err(error),
    };
    let token = token.classify(
        Code::TokenConflict,
        format!("Open http://localhost:{port}/ at the other end of the tunnel, and enter it there."),
    )?;
    Ok(Link { origin, port, token })
}

/// Tells `show` how the gateway is, once a change, until Ctrl-C or the end of the input: what an SSH session that was
/// closed leaves.
pub async fn hold(link: &Link, show: impl FnMut(&str)) {
    let input = tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink()));
    tokio::select! {
        () = watch(link, show) => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = input => {}
    }
}

async fn watch(link: &Link, mut show: impl FnMut(&str)) {
    let mut shown = String::new();
    loop {
        let state = match look(link).await {
            Ok(state) => state,
            Err(error) => format!("unknown: {error:#}"),
        };
        if state != shown {
            show(&state);
            shown = state;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// How the gateway is, in a few words.
async fn look(link: &Link) -> Result<String> {
    let address = gateway::published(&Engine::connect(SOCKET).await?).await?;
    match address {
        None => Ok("there is no container".to_owned()),
        Some(address) => gateway::describe_health(address, link.token.as_ref()).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_token_is_one_value_of_the_fragment() {
        let cases =
            [("0a1b", "0a1b"), ("a-_.~Z", "a-_.~Z"), ("a+b c&d=#%", "a%2Bb%20c%26d%3D%23%25"), ("\u{fc}", "%C3%BC")];
        for (token, value) in cases {
            let link = Link { origin: None, port: 18790, token: Some(Secret::new(token)) };
            assert_eq!(link.url(), format!("http://localhost:18790/#token={value}"));
            assert!(link.needs_tunnel());
            let proxied = Link { origin: Some("https://claw.example.com".to_owned()), ..link };
            assert_eq!(proxied.url(), format!("https://claw.example.com/#token={value}"));
            assert!(!proxied.needs_tunnel());
            let (link, bare) = (&proxied, Link { origin: None, port: 18790, token: None });
            assert_eq!(bare.url(), "http://localhost:18790/");
            assert!(!format!("{link:?}").contains(token), "{link:?}");
        }
    }
}
