//! The kernel forwards packets: without it, containers have no network but their own.
//!
//! The engine switches it on when it starts. Google's images switch it off at every `sysctl --system`
//! (`60-gce-network-security.conf`), which a package's installation can run at any time.

use anyhow::{Context, Result};

use crate::host::{Access, Host};
use crate::paths::SYSCTL;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether the kernel does not forward packets.
pub(super) async fn is_off(host: &Host) -> Result<bool> {
    Ok(host.read(IP_FORWARD).await?.is_some_and(|value| value.starts_with(b"0")))
}

/// A file of ours that is read after Google's keeps it on; where it is off, it is switched on.
pub(super) async fn ensure(host: &Host) -> Result<()> {
    host.ensure_dir("/etc/sysctl.d", Access::root(0o755)).await?;
    host.ensure_file(SYSCTL, "# Written by openclaw-init.\nnet.ipv4.ip_forward = 1\n", Access::root(0o644)).await?;
    if is_off(host).await? {
        let load = host.command("sysctl").args(["--quiet", "--load", SYSCTL]).run().await;
        load.context("switching the forwarding of packets on")?;
        host.changed("switched the forwarding of packets on");
    }
    Ok(())
}
