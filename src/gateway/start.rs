//! Starting the container, and why it did not start.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, anyhow};
use bollard::errors::Error as DockerError;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::{Gateway, NAME};
use crate::config::{GatewayConfig, keys};
use crate::docker::{self, Engine, NO_SPACE};
use crate::error::{Code, Diagnosis, RUN_AGAIN};

/// The engine's words for a port that it holds itself, for a container of its own.
const PORT_ALLOCATED: &str = "port is already allocated";

/// How long an address of the VM may be missing: a VPN or a second network card comes up beside this program.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(60);
const ADDRESS_INTERVAL: Duration = Duration::from_secs(1);

impl Gateway<'_> {
    /// Waits until the address to publish on is one of this VM.
    pub(super) async fn wait_for_address(&self) -> Result<()> {
        let (bind, begun) = (self.config.bind, Instant::now());
        while TcpListener::bind((bind, 0)).is_err() {
            if begun.elapsed() >= ADDRESS_DEADLINE {
                return Err(missing_address(
                    anyhow!("it did not come up within {} s", ADDRESS_DEADLINE.as_secs()),
                    bind,
                ));
            }
            self.host.progress(format!("waiting for the address {bind}, {} s", begun.elapsed().as_secs()));
            tokio::time::sleep(ADDRESS_INTERVAL).await;
        }
        Ok(())
    }

    /// Refuses a port that somebody else listens on, while the gateway's own container is published at `own`.
    pub(super) async fn require_ports(&self, own: &[SocketAddr]) -> Result<()> {
        let is_taken = |at: &SocketAddr| TcpListener::bind(at).is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        let foreign = |port: u16| {
            let own = own.iter().copied().find(|own| own.port() == port);
            foreign(SocketAddr::new(self.config.bind, port), own, addresses_of_vm)
        };
        match ports(self.config).flat_map(foreign).find(is_taken) {
            Some(at) => {
                let holder = publisher(self.engine, at.port()).await?;
                let error = anyhow!("port {} of {} is in use", at.port(), at.ip());
                Err(error).context(taken(self.config, at.port(), holder.as_deref()))
            }
            None => Ok(()),
        }
    }

    /// Starts the container.
    ///
    /// After a power cut while a container starts, the engine can hold its port for no container: it removes the
    /// endpoint when it comes up and keeps the port until it is restarted (seen with 26.1.5 here; moby issue 20486,
    /// libnetwork issue 2448). That restart is done once.
    pub(super) async fn start(&self) -> Result<()> {
        let Self { host, engine, config, .. } = *self;
        let started = match engine.client.start_container(NAME, None).await {
            Err(error) if error.to_string().contains(PORT_ALLOCATED) => {
                if let Some(holder) = publisher(engine, named_port(&error.to_string(), config)).await? {
                    return Err(explain(error, config, Some(&holder)));
                }
                host.progress("restarting the engine, which holds the gateway's port for no container");
                docker::restart(host).await?.client.start_container(NAME, None).await
            }
            started => started,
        };
        started.map_err(|error| explain(error, config, None))?;
        host.changed(format!("started container {NAME}"));
        Ok(())
    }
}

/// The ports of the VM at which the gateway and its channels are published.
fn ports(config: &GatewayConfig) -> impl Iterator<Item = u16> {
    [config.port].into_iter().chain(config.channel_ports.iter().copied())
}

/// Which of them the engine's words are about: `Bind for 127.0.0.1:3978 failed`.
fn named_port(words: &str, config: &GatewayConfig) -> u16 {
    let is_named = |port: &u16| {
        let port = port.to_string();
        words.split(':').skip(1).any(|rest| rest.split(|byte: char| !byte.is_ascii_digit()).next() == Some(&*port))
    };
    config.channel_ports.iter().copied().find(is_named).unwrap_or(config.port)
}

/// The parts of what is `wanted` that a container published at `own` does not hold itself.
fn foreign(wanted: SocketAddr, own: Option<SocketAddr>, all: impl FnOnce() -> Vec<IpAddr>) -> Vec<SocketAddr> {
    let same_family = |ip: &IpAddr| ip.is_ipv4() == wanted.is_ipv4();
    let Some(own) = own.filter(|own| own.port() == wanted.port()) else { return vec![wanted] };
    if own.ip() == wanted.ip() || (own.ip().is_unspecified() && same_family(&own.ip())) {
        return Vec::new();
    }
    if !wanted.ip().is_unspecified() {
        return vec![wanted];
    }
    // One by one: a socket for all of IPv6 is one for IPv4, too.
    let others = all().into_iter().filter(|ip| same_family(ip) && *ip != own.ip());
    others.map(|ip| SocketAddr::new(ip, wanted.port())).collect()
}

/// The addresses of this VM's interfaces; none where the kernel tells none.
fn addresses_of_vm() -> Vec<IpAddr> {
    let addresses = getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    };
    addresses.filter_map(ip).collect()
}

/// The name of a running container, not ours, that publishes `port`.
async fn publisher(engine: &Engine, port: u16) -> Result<Option<String>> {
    let containers = engine.client.list_containers(None).await.context("listing the running containers")?;
    let publishes = |ports: &[bollard::models::PortSummary]| ports.iter().any(|it| it.public_port == Some(port));
    let publishing =
        containers.into_iter().filter(|container| publishes(container.ports.as_deref().unwrap_or_default()));
    let name = |names: Vec<String>| names.into_iter().next().unwrap_or_default().trim_start_matches('/').to_owned();
    let mut names = publishing.map(|container| name(container.names.unwrap_or_default()));
    Ok(names.find(|name| name != NAME))
}

/// Says so when a disk of the engine is full.
pub(super) fn explain_creation(error: DockerError) -> Error {
    let is_full = error.to_string().contains(NO_SPACE);
    let error = Error::from(error).context(format!("creating container {NAME}"));
    if is_full { full(error) } else { error }
}

fn explain(error: DockerError, config: &GatewayConfig, holder: Option<&str>) -> Error {
    let text = error.to_string();
    let error = Error::from(error).context(format!("starting container {NAME}"));
    if text.contains(NO_SPACE) {
        full(error)
    } else if text.contains(PORT_ALLOCATED) || text.contains("address already in use") {
        error.context(taken(config, named_port(&text, config), holder))
    } else if text.contains("cannot assign requested address") {
        missing_address(error, config.bind)
    } else if text.contains("OCI runtime") {
        let remedy = format!("See `sudo docker info` and `sudo journalctl --unit docker`, then run `{RUN_AGAIN}`.");
        error.context(Diagnosis { code: Code::DockerUnusable, remedy })
    } else {
        error
    }
}

fn taken(config: &GatewayConfig, port: u16, holder: Option<&str>) -> Diagnosis {
    let bind = config.bind;
    let attribute = if port == config.port { keys::PORT } else { keys::PUBLISH };
    let found = match holder {
        Some(holder) => format!("Container {holder} publishes port {port}: `sudo docker stop {holder}`"),
        None => format!(
            "Another program listens on port {port} of {bind}: find it with `sudo ss -ltnp 'sport = :{port}'` and stop it"
        ),
    };
    let remedy = format!("{found}, or choose another port with the attribute {attribute}.");
    Diagnosis { code: Code::PortTaken, remedy }
}

fn full(error: Error) -> Error {
    let remedy = format!(
        "Make room on the disk of the engine, mostly the boot disk (`df -h /var/lib/docker`, `df -i /var/lib/docker`), or \
         enlarge it, then run `{RUN_AGAIN}`."
    );
    error.context(Diagnosis { code: Code::NoSpace, remedy })
}

/// Not [`Code::ConfigInvalid`]: what is no address of this VM now may be one later.
fn missing_address(error: Error, bind: IpAddr) -> Error {
    let remedy = format!(
        "Bring up what has the address (see `ip address`), or correct the attribute openclaw-bind, then run `{RUN_AGAIN}`."
    );
    let error = error.context(format!("{bind} is no address of this VM"));
    error.context(Diagnosis { code: Code::GatewayNotReady, remedy })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::{code_of, one_line};

    #[test]
    fn what_the_running_container_holds_itself_is_not_asked_for() {
        let all = || ["127.0.0.1", "::1", "10.0.0.2"].map(|ip| ip.parse().unwrap()).to_vec();
        for (wanted, own, asked) in [
            ("127.0.0.1:1", None, &["127.0.0.1:1"][..]),
            ("127.0.0.1:1", Some("127.0.0.1:1"), &[]),
            ("127.0.0.1:2", Some("127.0.0.1:1"), &["127.0.0.1:2"]),
            ("10.0.0.2:1", Some("127.0.0.1:1"), &["10.0.0.2:1"]),
            ("10.0.0.2:1", Some("0.0.0.0:1"), &[]),
            ("0.0.0.0:1", Some("127.0.0.1:1"), &["10.0.0.2:1"]),
            ("0.0.0.0:2", Some("127.0.0.1:1"), &["0.0.0.0:2"]),
            ("[::1]:1", Some("127.0.0.1:1"), &["[::1]:1"]),
            ("[::]:1", Some("127.0.0.1:1"), &["[::1]:1"]),
            ("[::]:1", Some("0.0.0.0:1"), &["[::1]:1"]),
            ("[::1]:1", Some("0.0.0.0:1"), &["[::1]:1"]),
        ] {
            let found = foreign(wanted.parse().unwrap(), own.map(|own| own.parse().unwrap()), all);
            let asked: Vec<SocketAddr> = asked.iter().map(|at| at.parse().unwrap()).collect();
            assert_eq!(found, asked, "{wanted} beside {own:?}");
        }
        assert!(addresses_of_vm().contains(&IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn a_start_that_failed_is_classified_by_the_engines_words() {
        let config = GatewayConfig { channel_ports: vec![3978], ..GatewayConfig::default() };
        let taken = "driver failed programming external connectivity: Bind for 127.0.0.1:18789 failed: port is already allocated";
        #[rustfmt::skip]
        let cases = [
            (taken, None, Code::PortTaken, "ss -ltnp"),
            (taken, Some("other"), Code::PortTaken, "docker stop other"),
            (taken, None, Code::PortTaken, "attribute openclaw-port"),
            ("listen tcp4 127.0.0.1:3978: bind: address already in use", None, Code::PortTaken, "attribute openclaw-publish"),
            ("listen tcp4 127.0.0.1:18789: bind: address already in use", None, Code::PortTaken, "ss -ltnp"),
            ("listen tcp4 10.9.9.9:18789: bind: cannot assign requested address", None, Code::GatewayNotReady, "openclaw-bind"),
            ("OCI runtime create failed: write /run/x: no space left on device", None, Code::NoSpace, "df -h"),
            ("OCI runtime create failed: exec: \"runc\": executable file not found", None, Code::DockerUnusable, "docker info"),
            ("context deadline exceeded", None, Code::Internal, "starting container"),
        ];
        for (message, holder, code, words) in cases {
            let error = DockerError::DockerResponseServerError { status_code: 500, message: message.to_owned() };
            let error = explain(error, &config, holder);
            assert_eq!(code_of(&error), code, "{message}");
            assert!(one_line(&error).contains(words), "{}", one_line(&error));
        }
    }
}
