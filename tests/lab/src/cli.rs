//! The command line of `cargo lab`: the definitions here, what makes a lab and follows its boot below.
//!
//! The definitions import nothing of what is below.

pub mod progress;
pub mod up;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cloud::docker_apt::DockerRepository;
use crate::cloud::metadata_server::FaultChange;
use crate::machine::boot_disk::Boot;
use crate::machine::disks::DataDisk;
use crate::size::Size;
use crate::state::Os;

/// A pretend Compute Engine on this machine. Needs root on Debian; installs what it needs.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Make a cloud and a bare machine, boot it, show progress until the gateway is ready
    Up(Up),
    /// Run a command in the machine
    Exec {
        #[command(flatten)]
        lab: Named,
        /// Program and arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Reboot the machine and wait for the new result
    Reboot {
        #[command(flatten)]
        lab: Named,
        /// Cut the power instead of asking
        #[arg(long)]
        hard: bool,
        #[command(flatten)]
        limit: Limit,
    },
    /// Attach, detach or grow a data disk, as `gcloud compute` does
    Disk {
        #[command(flatten)]
        lab: Named,
        /// What to do with it
        #[command(subcommand)]
        change: DiskChange,
    },
    /// Make a port of the machine's own 127.0.0.1 reachable on this machine's, like `gcloud compute ssh -- -L`
    Tunnel {
        #[command(flatten)]
        lab: Named,
        /// The port, the same on both sides
        #[arg(long, default_value_t = 18789)]
        port: u16,
    },
    /// Print the guest attributes `openclaw/` as JSON
    GuestAttributes(Named),
    /// Change what the metadata server answers
    Metadata {
        #[command(flatten)]
        lab: Named,
        /// What to change
        #[command(subcommand)]
        change: Metadata,
    },
    /// Print every request that the metadata server got, as JSON lines
    Requests(Named),
    /// Remove the lab
    Down {
        #[command(flatten)]
        lab: Named,
        /// Keep the first data disk as this file; the machine is stopped cleanly before
        #[arg(long, value_name = "FILE")]
        keep_disk: Option<PathBuf>,
        /// Keep the boot disk as this file, likewise: an image for `up --image`
        #[arg(long, value_name = "FILE")]
        keep_boot_disk: Option<PathBuf>,
    },
    /// Run the tests: without a tier all of them
    Test(Tests),
    /// Compare with what an expert does by hand, by turns on equal machines; prints JSON at the end
    Bench {
        /// What to compare
        comparison: Comparison,
        /// How often each way is measured
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Build the files of a release into `dist/`: the static program, the loader, `openclaw-gcp`, their digests
    Release,
    #[command(hide = true)]
    Serve {
        #[command(flatten)]
        lab: Named,
        #[arg(long, value_enum)]
        docker_repository: DockerRepository,
        #[arg(long)]
        closed: bool,
        #[arg(long, value_parser = parse_duration)]
        acme: Option<Duration>,
    },
    #[command(hide = true)]
    Prepare {
        #[command(flatten)]
        lab: Named,
        #[arg(long)]
        archive: PathBuf,
        #[arg(long, value_enum)]
        boot: Boot,
    },
    #[command(hide = true)]
    Supervise(Named),
}

/// Two ways to the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Comparison {
    /// From a bare machine to a gateway that serves: this program, and a dozen lines of shell
    FirstBoot,
    /// From a power cut to a gateway that serves: this program, and Docker's own restart
    Reboot,
    /// A run with nothing to do, and `docker compose up` with nothing to do
    Idle,
}

/// Which lab.
#[derive(Debug, Clone, Args)]
pub struct Named {
    /// Name of the lab and of its VM
    #[arg(long, default_value = "lab")]
    pub name: String,
}

/// How long to wait.
#[derive(Debug, Clone, Args)]
pub struct Limit {
    /// Give up waiting after this time
    #[arg(long, default_value = "20m", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// What the machine is made of and how it starts.
#[derive(Debug, Clone, Args)]
pub struct Up {
    /// Which lab.
    #[command(flatten)]
    pub lab: Named,
    /// Operating system of the boot disk
    #[arg(long, value_enum, default_value = "debian-12")]
    pub os: Os,
    /// How the binary gets to run
    #[arg(long, value_enum, default_value = "script-url")]
    pub boot: Boot,
    /// An instance attribute in addition to those that the way in needs
    #[arg(long = "attr", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub attributes: Vec<(String, String)>,
    /// Set no other instance attributes than these: what the way in needs must be among them
    #[arg(long)]
    pub only_attr: bool,
    /// A project attribute
    #[arg(long = "project-attr", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub project_attributes: Vec<(String, String)>,
    /// Give the VM no service account
    #[arg(long)]
    pub no_service_account: bool,
    /// The data disk `openclaw-data`: a size, a file that holds one, or `none`
    #[arg(long, default_value = "10G", value_name = "SIZE|FILE|none")]
    pub disk: DataDisk,
    /// Limit of the whole machine's memory [default: all]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Size of the boot disk
    #[arg(long, value_name = "SIZE", default_value = "20G")]
    pub boot_disk: Size,
    /// How long to wait for the result.
    #[command(flatten)]
    pub limit: Limit,
    /// Let the image that `--boot baked` makes be one with cloud-init
    #[arg(long)]
    pub cloud_init: bool,
    /// Boot from this image (see `down --keep-boot-disk`)
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Use this binary instead of building one
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// A directory whose files are at `https://github.com/`, too
    #[arg(long, value_name = "DIRECTORY")]
    pub forge: Option<PathBuf>,
    /// A secret of Secret Manager, in the project `openclaw-lab`
    #[arg(long = "secret", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub secrets: Vec<(String, String)>,
    /// A CA at `https://ca.example/dir` whose certificates are valid for so long; claw.example.com leads to the VM
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub acme: Option<Duration>,
    /// How the repository that stands for Docker's own answers
    #[arg(long, value_enum, default_value = "good")]
    pub docker_repository: DockerRepository,
    /// A fault of the metadata server from the first request on (see `metadata fault`)
    #[arg(long = "fault", value_name = "SPEC")]
    pub faults: Vec<FaultChange>,
}

/// A change of the attached disks.
#[derive(Debug, Subcommand)]
pub enum DiskChange {
    /// Attach a disk
    Attach {
        /// Device name, as in `--device-name`
        device_name: String,
        /// A size for a blank disk, or a file that holds one
        #[arg(value_name = "SIZE|FILE")]
        content: DataDisk,
        /// Attach it read-only
        #[arg(long)]
        read_only: bool,
    },
    /// Detach a disk
    Detach {
        /// Device name
        device_name: String,
    },
    /// Make a disk larger
    Resize {
        /// Device name
        device_name: String,
        /// The new size
        size: Size,
    },
}

/// A change of the metadata.
#[derive(Debug, Subcommand)]
pub enum Metadata {
    /// Set an attribute
    Set {
        /// The attribute
        #[arg(value_name = "KEY=VALUE", value_parser = parse_pair)]
        pair: (String, String),
        /// Of the project instead of the instance
        #[arg(long)]
        project: bool,
    },
    /// Remove an attribute
    Unset {
        /// Its key
        key: String,
        /// Of the project instead of the instance
        #[arg(long)]
        project: bool,
    },
    /// Give the VM's service account these scopes, as `set-service-account` does while a VM is stopped
    Scopes {
        /// Each a whole one, such as `https://www.googleapis.com/auth/cloud-platform`
        scopes: Vec<String>,
    },
    /// Inject a fault
    Fault {
        /// What goes wrong, like `path=/computeMetadata/v1/instance/attributes,status=503,for=30s`, or `clear`
        spec: FaultChange,
    },
}

/// Which tests to run, and how.
#[derive(Debug, Clone, Args)]
pub struct Tests {
    /// Which ones
    pub tier: Option<Tier>,
    /// Only the scenarios with this in their name; with the tier `hermetic`, only its parts
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// Leave out the tests with this in their name; may be given again
    #[arg(long, value_name = "NAME")]
    pub skip: Vec<String>,
    /// Let `--only` and `--skip` mean whole names
    #[arg(long)]
    pub exact: bool,
    /// The long parts of the machine tier, too: cuts at every named point, machines in QEMU
    #[arg(long)]
    pub long: bool,
    /// Print the names of the tests, and run none
    #[arg(long)]
    pub list: bool,
    /// End every test that takes longer, instead of after its own limit
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub time_limit: Option<Duration>,
    /// Also write a JUnit report
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

/// A group of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// Format, lints, tests and documentation: needs neither root nor network
    Hermetic,
    /// Whole machines
    Machine,
}

fn parse_pair(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').context("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_duration(text: &str) -> Result<Duration> {
    let (number, factor) = match text.split_at(text.len().saturating_sub(1)) {
        (number, "s") => (number, 1),
        (number, "m") => (number, 60),
        (number, "h") => (number, 3600),
        _ => bail!("expected a time like 90s, 20m or 1h"),
    };
    let number: u64 = number.parse().context("expected a time like 90s, 20m or 1h")?;
    Ok(Duration::from_secs(number * factor))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_are_checked() {
        let cases = [("90s", Some(90)), ("20m", Some(1200)), ("1h", Some(3600)), ("20", None), ("m", None), ("", None)];
        for (text, seconds) in cases {
            assert_eq!(parse_duration(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(parse_pair("a=b=c").ok(), Some(("a".to_owned(), "b=c".to_owned())));
        assert_eq!("none".parse::<DataDisk>().ok(), Some(DataDisk::None));
        assert!("10X".parse::<DataDisk>().is_err());
    }
}
