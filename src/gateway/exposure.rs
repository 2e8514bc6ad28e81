//! Whether something lets others in where nobody published the gateway.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use nix::ifaddrs::getifaddrs;
use tokio::net::TcpStream;

use super::Gateway;

/// The machine answers itself at once.
const TIMEOUT: Duration = Duration::from_millis(200);

impl Gateway<'_> {
    /// Warns when a gateway that is published on the VM alone can be reached at another of its addresses: a rule or a
    /// proxy of somebody's.
    pub async fn warn_if_exposed(&self) {
        if !self.config.bind.is_loopback() {
            return;
        }
        let asked = others().into_iter().map(async |address| {
            let address = SocketAddr::new(address, self.config.port);
            (address, tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await)
        });
        for (address, answer) in join_all(asked).await {
            if matches!(answer, Ok(Ok(_))) {
                self.host.warn(format!(
                    "something answers at {address}, although openclaw-bind publishes the gateway on this VM alone: see \
                     `sudo ss -ltnp sport = {}`",
                    self.config.port
                ));
            }
        }
    }
}

/// The addresses of this machine that others may reach; none when it does not say.
fn others() -> Vec<IpAddr> {
    let storages = getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    let addresses = storages.filter_map(|storage| {
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let is_reachable = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    };
    addresses.filter(is_reachable).collect()
}
