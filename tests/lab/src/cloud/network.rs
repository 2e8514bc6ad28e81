//! The network of one lab: a namespace that plays the cloud, one for the machine, a cable between them.
//!
//! The cloud owns 169.254.169.254 and the way out, the machine only reaches things through it, so a container's
//! request to the metadata server is *forwarded* by the machine as on Compute Engine, and nothing in the lab can
//! reach a real metadata server: the whole link-local block ends in the cloud.
//! Both namespaces are the lab's own, so two labs may use the same addresses.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::program::run;
use crate::state::Lab;

/// Metadata server and name server of every Compute Engine VM.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The public image registries (of the block that is reserved for benchmarks, like the next ones).
pub const REGISTRY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Docker's package repository.
pub const DOCKER_REPOSITORY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);
/// Cloud Storage and all other Google APIs; the lab's web server.
pub const STORAGE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 4);
/// Artifact Registry.
pub const ARTIFACT_REGISTRY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 5);
/// Where upstream publishes source and programs; the lab's web server with certificates of its own.
pub const FORGE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 6);
/// A provider of models.
pub const MODEL_PROVIDER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);
/// A CA.
pub const CERTIFICATES: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 8);
/// The machine's own address.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 2);
/// The machine's default gateway, and where what reaches it from the cloud comes from.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
/// The name server that slirp4netns answers on.
pub const UPSTREAM_NAMES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The address of the network card: as on Compute Engine made from the IPv4 address.
pub const MAC: &str = "42:01:0a:80:00:02";
/// Largest packet of a Compute Engine network by default.
const MTU: &str = "1460";

/// Makes both namespaces and the cable. Nothing runs in them afterwards; there is no way out yet.
pub fn create(lab: &Lab) -> Result<()> {
    let (cloud, machine) = (lab.cloud(), lab.machine());
    for namespace in [&cloud, &machine] {
        run(Command::new("ip").args(["netns", "add", namespace]))
            .with_context(|| format!("making the network namespace {namespace}"))?;
        ip(namespace, &["link", "set", "lo", "up"])?;
    }
    for address in
        [METADATA, REGISTRY, DOCKER_REPOSITORY, STORAGE, ARTIFACT_REGISTRY, FORGE, MODEL_PROVIDER, CERTIFICATES]
    {
        ip(&cloud, &["address", "add", &format!("{address}/32"), "dev", "lo"])?;
    }
    ip(&cloud, &["route", "add", "blackhole", "169.254.0.0/16"])?;
    connect(&cloud, &machine).context("joining the cloud and the machine")?;
    filter(&cloud).context("setting the cloud's packet filter")?;
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.disable_ipv6=1"] {
        run(Command::new("nsenter").args([&net_of(&cloud), "sysctl", "--quiet", "--write", setting]))?;
    }
    Ok(())
}

/// Removes both namespaces; what still runs in them must have ended before.
pub fn remove(lab: &Lab) -> Result<()> {
    for namespace in [lab.machine(), lab.cloud()] {
        if path(&namespace).exists() {
            run(Command::new("ip").args(["netns", "delete", &namespace]))
                .with_context(|| format!("removing {namespace}"))?;
        }
    }
    Ok(())
}

/// The processes that run in either namespace.
pub fn processes(lab: &Lab) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for namespace in [lab.machine(), lab.cloud()] {
        if path(&namespace).exists() {
            let list = run(Command::new("ip").args(["netns", "pids", &namespace]))?;
            pids.extend(list.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
        }
    }
    Ok(pids)
}

/// The file that stands for a network namespace.
pub fn path(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// Moves the calling thread, which should be the only one, into a namespace. Sockets that it has stay where they are.
pub fn enter(namespace: &str) -> Result<()> {
    let path = path(namespace);
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", path.display()))
}

/// The option that makes `nsenter` enter it. `ip netns exec` would mount another /sys over the control groups.
pub fn net_of(namespace: &str) -> String {
    format!("--net={}", path(namespace).display())
}

fn ip(namespace: &str, arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(["-netns", namespace]).args(arguments)).map(drop)
}

/// The cable, with the routes of a Compute Engine VM: a /32 address and a gateway on the link.
fn connect(cloud: &str, machine: &str) -> Result<()> {
    let (gateway, address) = (format!("{GATEWAY}/32"), format!("{MACHINE}/32"));
    let (gateway_ip, machine_ip) = (GATEWAY.to_string(), MACHINE.to_string());
    ip(cloud, &["link", "add", "machine", "mtu", MTU, "type", "veth", "peer", "name", "eth0", "netns", machine])?;
    ip(cloud, &["address", "add", &gateway, "dev", "machine"])?;
    ip(cloud, &["link", "set", "machine", "up"])?;
    ip(cloud, &["route", "add", &machine_ip, "dev", "machine"])?;
    ip(machine, &["link", "set", "eth0", "address", MAC, "mtu", MTU, "up"])?;
    ip(machine, &["address", "add", &address, "dev", "eth0"])?;
    ip(machine, &["route", "add", &gateway_ip, "dev", "eth0"])?;
    ip(machine, &["route", "add", "default", "via", &gateway_ip])
}

/// Masquerades what leaves; what is for the link-local block never leaves.
fn filter(cloud: &str) -> Result<()> {
    nft(
        cloud,
        r#"table ip lab {
            chain leaving { type filter hook postrouting priority 0; oifname "tap0" ip daddr 169.254.0.0/16 drop; }
            chain source { type nat hook postrouting priority 100; oifname "tap0" masquerade; }
        }"#,
    )
}

/// Makes everything but the metadata server silent to the machine: registries, repositories, web servers, the way out.
pub fn cut_internet(lab: &Lab) -> Result<()> {
    nft(
        &lab.cloud(),
        r#"table ip cut {
            chain servers { type filter hook input priority 0; ip daddr 198.18.0.0/24 drop; }
            chain out { type filter hook forward priority 0; oifname "tap0" drop; }
        }"#,
    )
}

/// Ends [`cut_internet`].
pub fn mend_internet(lab: &Lab) -> Result<()> {
    nft(&lab.cloud(), "delete table ip cut")
}

fn nft(cloud: &str, rules: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.args([&net_of(cloud), "nft", "--file", "-"]).stdin(Stdio::piped());
    let mut child = command.spawn().context("starting nft")?;
    let mut input = child.stdin.take().context("nft has no standard input")?;
    input.write_all(rules.as_bytes()).context("handing nft its rules")?;
    drop(input);
    let status = child.wait().context("waiting for nft")?;
    ensure!(status.success(), "nft ended with {status}");
    Ok(())
}
