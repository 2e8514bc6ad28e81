//! The metadata server from containers of every kind: closed but for its DNS, whatever happens to the rules.

use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::rig::Rig;
use crate::cloud::network::{self, MACHINE, METADATA};
use crate::program::run;

/// The metadata server of a VM with IPv6.
const METADATA_6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
/// The two ends of the cable.
const CLOUD_6: &str = "fd20:ab::1";
const MACHINE_6: &str = "fd20:ab::2";
/// A network of Docker's with both, and those of Docker's that have IPv4 alone.
const NETWORK_6: &str = "fd00:77::/64";
const NETWORKS_4: &str = "172.16.0.0/12";

/// The ways that are asked, and those of them that stay open.
const ALL: [&str; 4] = ["tcp/80", "udp/80", "tcp/53", "udp/53"];
const DNS: &[&str] = &["tcp/53", "udp/53"];

/// Prints the ways that answer.
const ASK: &str = include_str!("../../scripts/shield/ask.sh");

/// Every kind of container that runs, and whether its network has IPv6.
const CONTAINERS: [(&str, bool); 3] = [("openclaw-gateway", false), ("ask-bridge", false), ("ask-six", true)];

/// What a step of a build sees, from a file of the image that it made.
const BUILD: &str = "docker build --quiet --no-cache --tag ask:2 /root/ask > /root/ask/log 2>&1 || cat /root/ask/log; \
     docker run --rm --network none --entrypoint cat ask:2 /ways";

/// What somebody else's tools do to the rules, and whether Docker's own are there afterwards: without them it builds
/// nothing.
const EVENTS: [(&str, &str, bool); 5] = [
    ("the engine started anew", "systemctl restart docker", true),
    ("every rule was flushed", "nft flush ruleset", false),
    ("nftables started", "systemctl start nftables", false),
    ("nftables reloaded its own", "systemctl reload nftables", false),
    ("every rule was flushed and the engine started anew", "nft flush ruleset; systemctl restart docker", true),
];

/// Our table is back within a second of the kernel's notice; the containers, when the engine or a run has started them.
pub(super) const SETTLE: &str = "for i in $(seq 10); do nft list table inet openclaw_init > /dev/null 2>&1 && break; sleep 0.1; done; \
     for i in $(seq 150); do docker exec openclaw-gateway true && docker exec ask-bridge true && docker exec ask-six true \
     && break; sleep 1; done 2> /dev/null";

const INTERVAL: Duration = Duration::from_millis(50);

/// The servers that are added to the lab's cloud while this lives: IPv6, and UDP beside the lab's own.
pub(super) struct Cloud {
    ends: Arc<AtomicBool>,
}

impl Cloud {
    /// Opens ways of which the shield closes most. `image` has bash.
    pub(super) fn open(rig: &Rig, image: &str) -> Result<Self> {
        let (cloud, ends) = (rig.machine()?.cloud(), Arc::new(AtomicBool::new(false)));
        connect(rig)?;
        // What is asked here is what the shield does by itself, without the runs that the watcher would start.
        rig.shell("systemctl stop openclaw-watch")?;
        let (opened, namespace) = (Self { ends: Arc::clone(&ends) }, cloud);
        thread::spawn(move || serve(&namespace, &ends)).join().map_err(|_| anyhow!("a server panicked"))??;
        let dockerfile = "FROM ask:1\\nUSER root\\nCOPY ask.sh /\\nRUN bash /ask.sh > /ways\\n";
        let run = "docker run --detach --restart always --entrypoint sleep";
        rig.shell(&format!(
            "mkdir -p /root/ask && cd /root/ask && printf '{dockerfile}' > Dockerfile && cat > ask.sh <<'EOF'\n{ASK}\nEOF\n\
             docker tag {image} ask:1 && docker network create --ipv6 --subnet {NETWORK_6} six && \
             {run} --name ask-bridge ask:1 infinity && {run} --name ask-six --network six ask:1 infinity"
        ))?;
        Ok(opened)
    }

    /// Nothing of it is left.
    pub(super) fn close(self, rig: &Rig) -> Result<()> {
        let remove = "docker rm --force ask-bridge ask-six && docker network rm six && docker image rm ask:1 ask:2";
        rig.shell(remove)?;
        rig.shell("systemctl restart docker; systemctl start openclaw-watch")?;
        drop(self);
        Ok(())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// Gives the cable IPv6, as on a VM that has it.
pub(super) fn connect(rig: &Rig) -> Result<()> {
    let lab = rig.machine()?;
    let (cloud, machine) = (lab.cloud(), lab.machine());
    let ip = |namespace: &str, line: String| {
        run(Command::new("ip").args(["-netns", namespace]).args(line.split(' '))).map(drop)
    };
    for namespace in [&cloud, &machine] {
        let mut sysctl = Command::new("nsenter");
        sysctl.args([&network::net_of(namespace), "sysctl", "--quiet", "--write"]);
        run(sysctl.args(["net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.all.forwarding=1"]))?;
    }
    ip(&cloud, format!("address replace {METADATA_6}/128 dev lo nodad"))?;
    ip(&cloud, format!("address replace {CLOUD_6}/64 dev machine nodad"))?;
    ip(&machine, format!("address replace {MACHINE_6}/64 dev eth0 nodad"))?;
    ip(&machine, format!("-6 route replace {METADATA_6} via {CLOUD_6}"))?;
    // Answers find their way also to what leaves with its own address while Docker's rules are flushed.
    ip(&cloud, format!("-6 route replace {NETWORK_6} via {MACHINE_6}"))?;
    ip(&cloud, format!("route replace {NETWORKS_4} via {MACHINE} dev machine onlink"))
}

/// Listens where the lab's own servers do not.
fn serve(cloud: &str, ends: &Arc<AtomicBool>) -> Result<()> {
    network::enter(cloud)?;
    let (four, six) = (IpAddr::V4(METADATA), IpAddr::V6(METADATA_6));
    for (address, port) in [(four, 80), (six, 80), (six, 53)] {
        let socket = UdpSocket::bind((address, port)).with_context(|| format!("listening on {address} udp {port}"))?;
        socket.set_read_timeout(Some(INTERVAL))?;
        let ends = Arc::clone(ends);
        thread::spawn(move || echo(&socket, &ends));
    }
    for port in [80, 53] {
        let listener = TcpListener::bind((six, port)).with_context(|| format!("listening on {six} tcp {port}"))?;
        listener.set_nonblocking(true)?;
        let ends = Arc::clone(ends);
        thread::spawn(move || greet(&listener, &ends));
    }
    Ok(())
}

fn echo(socket: &UdpSocket, ends: &AtomicBool) {
    let mut bytes = [0; 512];
    while !ends.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            drop(socket.send_to(&bytes[..length], from));
        }
    }
}

fn greet(listener: &TcpListener, ends: &AtomicBool) {
    while !ends.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut client, _)) => drop(client.write_all(b"reached\n")),
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// From every container, nothing but DNS.
fn is_closed(rig: &Rig, when: &str) -> Result<()> {
    are_open(rig, when, DNS, DNS)
}

/// From every container, HTTP besides, and over IPv4 alone.
pub(super) fn gives_identity(rig: &Rig, when: &str) -> Result<()> {
    are_open(rig, when, &["tcp/80", "tcp/53", "udp/53"], DNS)
}

/// The same, and from a step of a build.
pub(super) fn is_closed_to_builds_too(rig: &Rig, when: &str) -> Result<()> {
    is_closed(rig, when)?;
    let found = rig.shell(BUILD)?;
    let expected = [format!("{METADATA} tcp/53"), format!("{METADATA} udp/53")];
    ensure!(found.lines().eq(&expected), "{when}, a step of a build reaches {found:?}");
    Ok(())
}

/// The same ways without the shield, all of them: what [`is_closed`] sees is not closed by something else. The gateway
/// cannot run then.
pub(super) fn is_open_after_a_power_cut(rig: &Rig) -> Result<()> {
    connect(rig)?;
    are_open(rig, "without the shield", &ALL, &ALL)
}

fn are_open(rig: &Rig, when: &str, four: &[&str], six: &[&str]) -> Result<()> {
    for (container, has_six) in CONTAINERS {
        if four.len() == ALL.len() && container == "openclaw-gateway" {
            continue;
        }
        let four = four.iter().map(|way| format!("{METADATA} {way}"));
        let six = six.iter().filter(|_| has_six).map(|way| format!("{METADATA_6} {way}"));
        let expected: Vec<_> = four.chain(six).collect();
        let found = rig.shell(&format!("docker exec -i {container} bash -s < /root/ask/ask.sh"))?;
        ensure!(found.lines().eq(&expected), "{when}, {container} reaches {found:?} instead of {expected:?}");
    }
    Ok(())
}

/// On the engine of Debian 13: [`super::engines`] has an older and a newer one.
pub(super) fn on_debian_13(rig: &Rig) -> Result<()> {
    rig.up(&["--os", "debian-13", "--attr", "openclaw-docker=distro"])?;
    on_this_engine(rig, "26.1.")
}

/// The gateway's machine runs an engine of this version.
pub(super) fn on_this_engine(rig: &Rig, version: &str) -> Result<()> {
    let found = rig.shell("docker version --format '{{.Server.Version}}'")?;
    ensure!(found.starts_with(version), "the engine is {found}");
    let cloud = Cloud::open(rig, "$(docker inspect -f '{{.Image}}' openclaw-gateway)")?;
    outlives_other_tools(rig).with_context(|| format!("Docker {found}"))?;
    cloud.close(rig)
}

/// Whatever is done to the rules, they are back before anybody uses it.
pub(super) fn outlives_other_tools(rig: &Rig) -> Result<()> {
    is_closed_to_builds_too(rig, "at first")?;
    for (when, event, can_build) in EVENTS {
        rig.shell(event).with_context(|| when.to_owned())?;
        rig.shell(SETTLE)?;
        let check = if can_build { is_closed_to_builds_too } else { is_closed };
        check(rig, &format!("after {when}"))?;
    }
    Ok(())
}
