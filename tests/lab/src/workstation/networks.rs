//! What surrounds the VM in the network: addresses, firewall rules, routers. They are only remembered, but a VM without
//! an address of its own needs a way out when it is made, and a way in for SSH.

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};

use super::gcloud::agreed;
use super::session::Used;
use crate::cloud::metadata_server::PROJECT;

/// The region of the one zone.
pub(super) const REGION: &str = "us-central1";
/// From where IAP's tunnels come.
const IAP: &str = "35.235.240.0/20";
/// The address that the VM has unless it is made without one.
pub(super) const ADDRESS: &str = "203.0.113.7";

const ADDRESSES: &str = "addresses";
const FIREWALL_RULES: &str = "firewall rules";
const ROUTERS: &str = "routers";
const NATS: &str = "NATs";
/// Firewall rules that let IAP's tunnels in, by their ranges.
const WAYS_IN: &str = "ways in";
/// VMs without an external address.
const WITHOUT_ADDRESS: &str = "VMs without an address";

/// A thing of a region.
#[derive(Debug, Args)]
pub(super) struct Regional {
    pub(super) name: String,
    #[arg(long, value_parser = [PROJECT])]
    project: String,
    #[arg(long, value_parser = [REGION])]
    region: String,
}

/// A thing of the project.
#[derive(Debug, Args)]
pub(super) struct Global {
    pub(super) name: String,
    #[arg(long, value_parser = [PROJECT])]
    project: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Addresses {
    Describe {
        #[command(flatten)]
        of: Regional,
        #[arg(long, value_parser = ["value(name)", "value(address)"])]
        format: String,
    },
    /// One that the VM has, which it keeps.
    Create {
        #[command(flatten)]
        of: Regional,
        #[arg(long, value_parser = [ADDRESS])]
        addresses: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum FirewallRules {
    Describe {
        #[command(flatten)]
        of: Global,
        #[arg(long, value_parser = ["value(name)"])]
        format: String,
    },
    Create {
        #[command(flatten)]
        of: Global,
        #[arg(long, value_parser = ["tcp:22", "tcp:80,tcp:443"])]
        allow: String,
        #[arg(long, value_parser = [IAP])]
        source_ranges: Option<String>,
        #[arg(long)]
        target_tags: Option<String>,
    },
    Delete {
        #[command(flatten)]
        of: Global,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Routers {
    Describe {
        #[command(flatten)]
        of: Regional,
        #[arg(long, value_parser = ["value(name)"])]
        format: String,
    },
    Create {
        #[command(flatten)]
        of: Regional,
        #[arg(long, value_parser = ["default"])]
        network: String,
    },
    #[command(subcommand)]
    Nats(Nats),
    Delete {
        #[command(flatten)]
        of: Regional,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Nats {
    Describe {
        #[command(flatten)]
        of: Regional,
        #[arg(long)]
        router: String,
        #[arg(long, value_parser = ["value(name)"])]
        format: String,
    },
    Create {
        #[command(flatten)]
        of: Regional,
        #[arg(long)]
        router: String,
        #[arg(long, required = true)]
        auto_allocate_nat_external_ips: bool,
        #[arg(long, required = true)]
        nat_all_subnet_ip_ranges: bool,
    },
}

impl Addresses {
    pub(super) fn run(self, session: &Used) -> Result<()> {
        match self {
            Self::Describe { of, format } if format == "value(name)" => session.describe(ADDRESSES, &of.name),
            Self::Describe { of, .. } => {
                session.needs(ADDRESSES, &of.name)?;
                println!("{ADDRESS}");
                Ok(())
            }
            Self::Create { of, .. } => session.create(ADDRESSES, &of.name),
        }
    }
}

impl FirewallRules {
    pub(super) fn run(self, session: &Used) -> Result<()> {
        match self {
            Self::Describe { of, .. } => session.describe(FIREWALL_RULES, &of.name),
            Self::Create { of, allow, source_ranges, .. } => {
                session.create(FIREWALL_RULES, &of.name)?;
                let is_way_in = allow == "tcp:22" && source_ranges.is_some();
                if is_way_in { session.ensure(WAYS_IN, "IAP") } else { Ok(()) }
            }
            Self::Delete { of } => {
                agreed(false)?;
                if session.has(WAYS_IN, "IAP") {
                    session.delete(WAYS_IN, "IAP")?;
                }
                session.delete(FIREWALL_RULES, &of.name)
            }
        }
    }
}

impl Routers {
    pub(super) fn run(self, session: &Used) -> Result<()> {
        match self {
            Self::Describe { of, .. } => session.describe(ROUTERS, &of.name),
            Self::Create { of, .. } => session.create(ROUTERS, &of.name),
            Self::Nats(Nats::Describe { of, router, .. }) => {
                session.needs(ROUTERS, &router)?;
                session.describe(NATS, &of.name)
            }
            Self::Nats(Nats::Create { of, router, .. }) => {
                session.needs(ROUTERS, &router)?;
                session.create(NATS, &of.name)
            }
            // Its NAT is a part of it.
            Self::Delete { of } => {
                agreed(false)?;
                session.delete(NATS, "openclaw")?;
                session.delete(ROUTERS, &of.name)
            }
        }
    }
}

/// Remembers whether the new VM has an address. One without it reaches nothing unless there is a NAT: the real gcloud
/// makes it all the same.
pub(super) fn attach(session: &Used, vm: &str, has_address: bool) -> Result<()> {
    if has_address {
        return if session.has(WITHOUT_ADDRESS, vm) { session.delete(WITHOUT_ADDRESS, vm) } else { Ok(()) };
    }
    session.needs(NATS, "openclaw")?;
    session.ensure(WITHOUT_ADDRESS, vm)
}

/// The VM's external address, empty where it has none.
pub(super) fn address(session: &Used, vm: &str) -> &'static str {
    if session.has(WITHOUT_ADDRESS, vm) { "" } else { ADDRESS }
}

/// An error unless SSH reaches the VM in this way.
pub(super) fn reaches(session: &Used, vm: &str, through_iap: bool) -> Result<()> {
    ensure!(through_iap || !session.has(WITHOUT_ADDRESS, vm), "{vm} has no external address");
    if through_iap { session.needs(WAYS_IN, "IAP") } else { Ok(()) }
}
