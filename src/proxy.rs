//! HTTPS at a name of the gateway's own: the distribution's Caddy, in a unit, an account and a file of ours.
//!
//! Who may connect is decided by Caddy, from the address of the connection. The gateway stays on 127.0.0.1 and is told
//! by `gateway.trustedProxies` to believe this machine (`config/ingress.rs`). Certificates are on the data disk, so a
//! new VM asks for none. Whatever goes wrong here, the gateway runs: it is told, and tried again by Caddy and systemd.

mod package;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustls::pki_types::UnixTime;

use crate::config::{Domain, OpenPath};
use crate::error::{Classify as _, Code, RUN_AGAIN, one_line};
use crate::host::{Access, Host};
use crate::http::{self, Limit};
use crate::paths::{CADDY_INSTALLED, CADDYFILE, ETC_DIR, PROXY_UNIT};
use crate::state::DataDir;
use crate::systemd;
use crate::text::printable;

/// `@CERTIFICATES@` stands for their directory on the data disk.
const UNIT: &str = include_str!("proxy/openclaw-proxy.service");

/// For all of it, after a gateway that is ready: longer than apt may wait for another.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// How long a certificate is waited for: a CA answers within seconds, if the name leads here.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(45);
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(1);

/// Of Caddy's own answer to this machine; what is in it does not matter.
const LIMIT: Limit = Limit { time: Duration::from_secs(5), bytes: 64 << 10 };

/// How many of Caddy's last messages are searched for an error, and how much of one is told.
const SEARCHED_LINES: u8 = 40;
const TOLD_BYTES: usize = 300;

/// Where the gateway is on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upstream {
    /// The published port.
    pub address: SocketAddr,
    /// It has TLS.
    pub has_tls: bool,
    /// It may take a header's word for who a user is.
    pub may_believe_proxy: bool,
}

/// Whether there is something of the proxy's on this machine.
pub fn exists(host: &Host) -> bool {
    [format!("{}/{PROXY_UNIT}", systemd::UNIT_DIR).as_str(), CADDYFILE, CADDY_INSTALLED]
        .iter()
        .any(|path| host.path(path).symlink_metadata().is_ok())
}

/// Whether there is a proxy that serves otherwise than it should.
pub async fn is_other(host: &Host, domain: &Domain, upstream: Upstream) -> bool {
    let former = host.read(CADDYFILE).await.ok().flatten();
    former.is_some_and(|former| former != caddyfile(domain, upstream).as_bytes())
}

/// What a run does about the proxy at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it is as it should be, or never was.
    Leave,
    /// Nothing, although it should go.
    Keep,
    /// It is made what it should be.
    Ensure,
}

/// `failure`: that of the run. `is_other`: the proxy is there, and serves otherwise than it should.
pub fn decide(failure: Option<Code>, has_domain: bool, is_other: bool) -> Action {
    match failure {
        // With the settings for a domain the gateway refuses the tunnel: this is the only way in.
        Some(_) if !has_domain => Action::Keep,
        None | Some(Code::ConfigRefused) => Action::Ensure,
        // The former gateway may run on, and who may come is not for the failure to decide.
        Some(_) if is_other => Action::Ensure,
        Some(_) => Action::Leave,
    }
}

/// Makes the proxy serve `domain` for the gateway, or leaves nothing of it but its certificates. Returns what the
/// domain lacks: the gateway runs all the same.
pub async fn ensure(host: &Host, served: Option<(&Domain, Upstream)>, data: &DataDir) -> Vec<String> {
    host.extend_deadline(DEADLINE);
    let work = async {
        match served {
            Some((domain, upstream)) => serve(host, domain, upstream, data).await,
            None => remove(host).await.context("removing the proxy of openclaw-domain"),
        }
    };
    let late = |_| Err(anyhow!("not done within {} min, the next run goes on", DEADLINE.as_secs() / 60));
    let done = tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(late);
    done.err().map(|error| format!("{}: {}", Code::ProxyFailed, one_line(&error))).into_iter().collect()
}

async fn serve(host: &Host, domain: &Domain, upstream: Upstream, data: &DataDir) -> Result<()> {
    if systemd::is_masked(host, PROXY_UNIT).await? {
        return Err(anyhow!("{PROXY_UNIT} is masked")).classify(
            Code::ProxyFailed,
            format!("If it may run: `sudo systemctl unmask {PROXY_UNIT}`, then `{RUN_AGAIN}`."),
        );
    }
    if upstream.may_believe_proxy {
        systemd::stop(host, PROXY_UNIT).await?;
        return Err(anyhow!(
            "openclaw.json may have the gateway believe a proxy who its users are, and this one passes on what anybody \
             says: gateway.auth.mode is neither token nor password, or in another file"
        ))
        .classify(
            Code::ProxyFailed,
            format!(
                "Remove gateway.auth.mode, or set openclaw-public-url in the place of openclaw-domain to the address of \
                 a proxy that knows its users; then run `{RUN_AGAIN}`."
            ),
        );
    }
    host.progress(format!("serving https://{}", domain.name));
    package::ensure(host).await.context("installing Caddy")?;
    let account = package::ensure_account(host).await?;
    host.ensure_dir(&data.certificates, account).await?;
    host.ensure_dir(ETC_DIR, Access::root(0o755)).await?;
    let file = caddyfile(domain, upstream);
    let unit = UNIT.replace("@CERTIFICATES@", &data.certificates.display().to_string());
    let (former, former_unit) =
        (host.read(CADDYFILE).await?, host.read(format!("{}/{PROXY_UNIT}", systemd::UNIT_DIR)).await?);
    if former.as_deref() != Some(file.as_bytes()) || former_unit.as_deref() != Some(unit.as_bytes()) {
        // A run that is cut after this leaves no Caddy that goes on with what it had: the next one starts it.
        systemd::stop(host, PROXY_UNIT).await?;
    }
    host.ensure_file(CADDYFILE, file, Access::root(0o644)).await?;
    systemd::ensure_unit(host, PROXY_UNIT, &unit).await?;
    if !is_serving(host, &domain.name).await? {
        start(host).await?;
    }
    wait_for_certificate(host, domain).await
}

/// Whether Caddy runs and does not refuse the name. After a failure it waits before it asks the CA again, in the end
/// for hours; who starts a run has mended what was wrong.
async fn is_serving(host: &Host, name: &str) -> Result<bool> {
    if !systemd::is_active(host, PROXY_UNIT).await? {
        return Ok(false);
    }
    // One that is slow may serve others.
    let is_slow = |error: anyhow::Error| error.downcast_ref().is_some_and(http::Failure::is_timeout);
    Ok(has_valid_certificate(name).await.unwrap_or_else(is_slow))
}

async fn start(host: &Host) -> Result<()> {
    let Err(error) = systemd::restart(host, PROXY_UNIT).await else { return Ok(()) };
    Err(error.context(format!("Caddy does not start{}", last_error(host).await))).classify(
        Code::ProxyFailed,
        format!(
            "It is tried again every ten seconds. If another program has port 80 or 443 (`sudo ss -ltnp`), stop it, then \
             run `{RUN_AGAIN}`."
        ),
    )
}

async fn wait_for_certificate(host: &Host, domain: &Domain) -> Result<()> {
    let begun = Instant::now();
    while let Some(lack) = lack(host, &domain.name).await {
        if begun.elapsed() >= CERTIFICATE_DEADLINE {
            return Err(anyhow!("{lack}")).classify(
                Code::ProxyFailed,
                format!(
                    "The name must lead to this VM's external address, and its firewall must let port 80 in from \
                     everywhere. Caddy goes on trying, more and more rarely; `{RUN_AGAIN}` makes it try at once. \
                     See `sudo journalctl --unit {PROXY_UNIT}`."
                ),
            );
        }
        host.progress(format!("waiting for a certificate for {}", domain.name));
        tokio::time::sleep(CERTIFICATE_INTERVAL).await;
    }
    Ok(())
}

/// What keeps browsers from reaching the gateway at `name`, seen from this machine; `None` when nothing does.
pub async fn lack(host: &Host, name: &str) -> Option<String> {
    match systemd::is_active(host, PROXY_UNIT).await {
        Ok(true) => {}
        Ok(false) => return Some(format!("{PROXY_UNIT} does not run{}", last_error(host).await)),
        Err(error) => return Some(format!("{error:#}")),
    }
    match has_valid_certificate(name).await {
        Ok(true) => None,
        Ok(false) => Some(format!("the certificate for {name} has expired{}", last_error(host).await)),
        Err(error) => {
            tracing::debug!("asking the proxy for {name}: {error:#}");
            Some(format!("there is no certificate for {name} yet{}", last_error(host).await))
        }
    }
}

/// Any answer will do: without a certificate Caddy speaks no TLS. To this machine it is mostly a refusal. Who signed it
/// is for browsers to judge; one from the data disk may have expired.
async fn has_valid_certificate(name: &str) -> Result<bool> {
    let client = http::unverified_client_for(name, SocketAddr::from(([127, 0, 0, 1], 443)))?;
    let answer = http::send(client.get(format!("https://{name}/healthz")), LIMIT).await?;
    let certificate = answer.certificate().context("the answer came without a certificate")?;
    Ok(!http::is_expired(certificate, UnixTime::now()))
}

/// The last error in Caddy's log, as the end of a sentence; empty when there is none.
async fn last_error(host: &Host) -> String {
    told(&systemd::last_messages(host, PROXY_UNIT, SEARCHED_LINES).await)
}

/// What `log`, lines of JSON with slashes between them, says last of an error. What Caddy cannot begin with is plain.
fn told(log: &str) -> String {
    let error = log.rsplit(" / ").find_map(|line| {
        let Ok(entry) = serde_json::from_str::<serde_json::Value>(line) else {
            return line.strip_prefix("Error: ").map(str::to_owned);
        };
        let field = |name: &str| entry.get(name).and_then(serde_json::Value::as_str);
        let words = || [field("msg"), field("error")].into_iter().flatten().collect::<Vec<_>>().join(": ");
        (field("level") == Some("error")).then(words)
    });
    error.map(|error| format!(" ({})", printable(&error, TOLD_BYTES))).unwrap_or_default()
}

/// Takes everything of the proxy's away but the certificates on the data disk.
pub async fn remove(host: &Host) -> Result<()> {
    systemd::remove_unit(host, PROXY_UNIT).await?;
    package::remove_account(host).await?;
    package::remove(host).await?;
    // The last: while it is there, a run that was cut is gone on with.
    host.remove_file(CADDYFILE).await.map(drop)
}

/// Stops it, and with it what holds the data disk; fine when nothing runs.
pub async fn stop(host: &Host) -> Result<()> {
    if exists(host) { systemd::stop(host, PROXY_UNIT).await } else { Ok(()) }
}

/// Its values have been checked: none can end a word or a line.
fn caddyfile(domain: &Domain, upstream: Upstream) -> String {
    let directory = domain.acme_directory.iter().map(|url| format!("\tacme_ca {url}\n")).collect::<String>();
    let scheme = if upstream.has_tls { "https://" } else { "" };
    let transport = if upstream.has_tls { TRANSPORT } else { "" };
    let open_paths = domain.open_paths.iter().enumerate().map(|(number, open)| open_path(number, open, upstream));
    CADDYFILE_TEMPLATE
        .replace("@OPEN@", &open_paths.collect::<String>())
        .replace("@ACME@", &directory)
        .replace("@NAME@", &domain.name)
        .replace("@NETWORKS@", &domain.allow_from.join(" "))
        .replace("@UPSTREAM@", &format!("{scheme}{}", upstream.address))
        .replace("@TRANSPORT@", transport)
}

/// A path for everybody. Caddy takes a path apart before it compares it, and passes it on as it came: what another
/// program may read as another path (`//a`, `%2f`) is not open. Of the gateway's own port only plain requests are
/// passed on: with a WebSocket a stranger would speak to the gateway itself.
fn open_path(number: usize, OpenPath { path, port }: &OpenPath, gateway: Upstream) -> String {
    let template = if port.is_some() { CHANNEL_TEMPLATE } else { WEBHOOK_TEMPLATE };
    let channel = port.map(|port| SocketAddr::new(gateway.address.ip(), port).to_string());
    template
        .replace("@NUMBER@", &number.to_string())
        .replace("@PATTERN@", &path.replace('.', "[.]"))
        .replace("@PATH@", path)
        .replace("@CHANNEL@", &channel.unwrap_or_default())
}

/// What a channel has on a port of its own.
const CHANNEL_TEMPLATE: &str = include_str!("proxy/channel.Caddyfile");

/// What the gateway has for a channel.
const WEBHOOK_TEMPLATE: &str = include_str!("proxy/webhook.Caddyfile");

const CADDYFILE_TEMPLATE: &str = include_str!("proxy/Caddyfile");

/// The gateway's own certificate is of no use on 127.0.0.1.
const TRANSPORT: &str = "\t\ttransport http {\n\t\t\ttls_insecure_skip_verify\n\t\t}\n";

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;

    #[test]
    fn a_run_that_fails_closes_no_way_in_and_leaves_none_too_wide() {
        use Action::{Ensure, Keep, Leave};
        let denied = Some(Code::SecretDenied);
        let refused = Some(Code::ConfigRefused);
        for (failure, has_domain, is_other, expected) in [
            (None, true, false, Ensure),
            (None, false, true, Ensure),
            (refused, true, false, Ensure),
            (refused, false, true, Keep),
            (denied, true, false, Leave),
            (denied, true, true, Ensure),
            (denied, false, true, Keep),
        ] {
            assert_eq!(decide(failure, has_domain, is_other), expected, "{failure:?} {has_domain} {is_other}");
        }
    }

    #[test]
    fn the_file_of_ours_is_what_it_was() {
        let domain = Domain {
            name: "claw.example.com".to_owned(),
            allow_from: vec!["203.0.113.0/24".to_owned(), "2001:db8::7".to_owned()],
            acme_directory: None,
            open_paths: Vec::new(),
        };
        let upstream = |has_tls| Upstream {
            address: SocketAddr::from(([127, 0, 0, 1], 18789)),
            has_tls,
            may_believe_proxy: false,
        };
        let open = |path: &str, port| OpenPath { path: path.to_owned(), port };
        let private = Domain {
            acme_directory: Some("https://ca.example.com/dir".to_owned()),
            open_paths: vec![open("/voice", Some(3334)), open("/googlechat", None)],
            ..domain.clone()
        };
        let public = caddyfile(&domain, upstream(false));
        expect_file!["proxy/golden/Caddyfile"].assert_eq(&public);
        let private = caddyfile(&private, upstream(true));
        expect_file!["proxy/golden/Caddyfile.private"].assert_eq(&private);
    }

    #[test]
    fn of_caddys_log_the_last_error_is_told() {
        let info = r#"{"level":"info","msg":"serving initial configuration"}"#;
        let refused = r#"{"level":"error","logger":"tls.obtain","msg":"could not get certificate from issuer","error":"HTTP 400: no A record"}"#;
        for (log, expected) in [
            (String::new(), ""),
            (info.to_owned(), ""),
            (
                format!("Error: an older one / {refused} / {info}"),
                " (could not get certificate from issuer: HTTP 400: no A record)",
            ),
            (
                format!("{info} / Error: loading: listening on :443: address already in use"),
                " (loading: listening on :443: address already in use)",
            ),
        ] {
            assert_eq!(told(&log), expected, "{log}");
        }
    }
}
