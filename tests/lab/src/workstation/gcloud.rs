//! `gcloud`: its command lines as far as this project's documents use them, from `gcloud help` of each command.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};

use super::instances::{self, ACCOUNTS, INSTANCE, Instance, READERS, ZONE, object};
use super::session::{DISKS, Used};
use crate::cli::up;
use crate::machine::{self, disks};
use crate::product::BINARY;
use crate::size::Size;
use crate::state::Lab;

/// The project that the CLI is set to: the one of the lab's metadata.
const PROJECT: &str = "openclaw-lab";
const BUCKETS: &str = "buckets";
/// `gcloud`.
#[derive(Debug, clap::Parser)]
#[command(name = "gcloud")]
pub(super) enum Gcloud {
    #[command(subcommand)]
    Config(Config),
    #[command(subcommand)]
    Iam(Iam),
    #[command(subcommand)]
    Storage(Storage),
    #[command(subcommand)]
    Compute(Compute),
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    GetValue {
        #[arg(value_parser = ["project"])]
        property: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Iam {
    #[command(subcommand)]
    ServiceAccounts(ServiceAccounts),
}

#[derive(Debug, Subcommand)]
pub(super) enum ServiceAccounts {
    Create { name: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum Storage {
    Cp {
        source: PathBuf,
        #[arg(value_parser = object)]
        target: (String, String),
    },
    #[command(subcommand)]
    Buckets(Buckets),
}

#[derive(Debug, Subcommand)]
pub(super) enum Buckets {
    Create {
        #[arg(value_parser = bucket)]
        bucket: String,
        #[arg(long)]
        location: String,
    },
    AddIamPolicyBinding {
        #[arg(value_parser = bucket)]
        bucket: String,
        #[arg(long, value_parser = service_account)]
        member: String,
        #[arg(long, value_parser = ["roles/storage.objectViewer"])]
        role: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Compute {
    #[command(subcommand)]
    Instances(Instances),
    #[command(subcommand)]
    Disks(Disks),
    Ssh {
        #[command(flatten)]
        of: Instance,
        /// `-L PORT:127.0.0.1:PORT`, and a command for the VM
        #[arg(last = true, required = true)]
        ssh_arguments: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Disks {
    Create {
        #[command(flatten)]
        of: Disk,
        #[arg(long, value_parser = gigabytes)]
        size: Size,
        #[arg(long, value_parser = ["pd-balanced"])]
        r#type: String,
    },
    List(List),
    Delete {
        #[command(flatten)]
        of: Disk,
        /// Without it gcloud asks.
        #[arg(long, required = true)]
        quiet: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Disk {
    name: String,
    #[arg(long, value_parser = [ZONE])]
    zone: String,
    #[arg(long)]
    project: Option<String>,
}

/// Whether there is one of this name: the only list that the documents ask for.
#[derive(Debug, Args)]
pub(super) struct List {
    #[arg(long, value_parser = [ZONE])]
    zones: String,
    #[arg(long)]
    project: Option<String>,
    #[arg(long, value_parser = |text: &str| text.strip_prefix("name=").map(str::to_owned).ok_or("expected name=NAME"))]
    filter: String,
    #[arg(long, value_parser = ["value(name)"])]
    format: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Instances {
    Create(Box<instances::Create>),
    AddMetadata {
        #[command(flatten)]
        of: Instance,
        #[arg(long, value_parser = instances::dictionary)]
        metadata: instances::Dictionary,
        #[arg(long, value_parser = instances::dictionary)]
        metadata_from_file: Option<instances::Dictionary>,
    },
    GetGuestAttributes {
        #[command(flatten)]
        of: Instance,
        #[arg(long)]
        query_path: String,
        #[arg(long, value_parser = ["value(value)", "value(key,value)"])]
        format: String,
    },
    Reset {
        #[command(flatten)]
        of: Instance,
    },
    Stop {
        #[command(flatten)]
        of: Instance,
    },
    Start {
        #[command(flatten)]
        of: Instance,
    },
    List(List),
    Delete {
        #[command(flatten)]
        of: Instance,
        #[arg(long, value_parser = ["data"], required = true)]
        keep_disks: String,
        /// Without it gcloud asks.
        #[arg(long, required = true)]
        quiet: bool,
    },
}

impl Gcloud {
    pub(super) fn run(self, session: &Used) -> Result<ExitCode> {
        let lab = Lab::named(&session.machine)?;
        match self {
            Self::Config(Config::GetValue { .. }) => println!("{PROJECT}"),
            Self::Iam(Iam::ServiceAccounts(ServiceAccounts::Create { name })) => {
                let long_enough = (6..=30).contains(&name.len());
                ensure!(long_enough, "the account's name {name} has not 6 to 30 characters");
                session.create(ACCOUNTS, &format!("{name}@{PROJECT}.iam.gserviceaccount.com"))?;
            }
            Self::Storage(command) => storage(session, command)?,
            Self::Compute(Compute::Instances(command)) => command.run(session, &lab)?,
            Self::Compute(Compute::Disks(command)) => command.run(session)?,
            Self::Compute(Compute::Ssh { ssh_arguments, .. }) => return instances::ssh(&lab, &ssh_arguments),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Instances {
    fn run(self, session: &Used, lab: &Lab) -> Result<()> {
        match self {
            Self::Create(create) => create.run(session),
            Self::AddMetadata { metadata, metadata_from_file, .. } => {
                instances::add_metadata(lab, instances::attributes(metadata, metadata_from_file.as_ref())?)
            }
            Self::GetGuestAttributes { query_path, format, .. } => {
                let answer = instances::guest_attributes(lab, &query_path, &format)?;
                session.note(&format!("get-guest-attributes {query_path}\n{answer}"))?;
                print!("{answer}");
                Ok(())
            }
            Self::Reset { .. } => session.note("reset").and_then(|()| instances::reset(lab)),
            Self::Stop { .. } => session.note("stop").and_then(|()| machine::stop(lab)),
            Self::Start { .. } => machine::start(lab),
            Self::List(list) => {
                list.print(list.filter == INSTANCE && lab.exists());
                Ok(())
            }
            Self::Delete { .. } => {
                machine::stop(lab).context("shutting the VM down")?;
                up::down(lab, &up::Keep::default())
            }
        }
    }
}

impl Disks {
    fn run(self, session: &Used) -> Result<()> {
        match self {
            Self::Create { of, size, .. } => {
                session.create(DISKS, &of.name)?;
                disks::create(&session.disk(&of.name), size)
            }
            Self::List(list) => {
                list.print(session.has(DISKS, &list.filter));
                Ok(())
            }
            Self::Delete { of, .. } => session.delete(DISKS, &of.name),
        }
    }
}

impl List {
    fn print(&self, exists: bool) {
        if exists {
            println!("{}", self.filter);
        }
    }
}

fn storage(session: &Used, command: Storage) -> Result<()> {
    match command {
        Storage::Cp { source, target: (bucket, object) } => {
            session.needs(BUCKETS, &bucket)?;
            ensure!(object == BINARY, "in the lab's Cloud Storage the program is called {BINARY}");
            let target = session.object(&bucket, &object);
            std::fs::copy(&source, target).with_context(|| format!("copying {}", source.display())).map(drop)
        }
        Storage::Buckets(Buckets::Create { bucket, .. }) => session.create(BUCKETS, &bucket),
        Storage::Buckets(Buckets::AddIamPolicyBinding { bucket, member, .. }) => {
            session.needs(BUCKETS, &bucket)?;
            session.needs(ACCOUNTS, &member)?;
            session.create(READERS, &member)
        }
    }
}

fn gigabytes(text: &str) -> Result<Size> {
    let number = text.strip_suffix("GB").context("expected a size like 20GB")?;
    format!("{number}G").parse()
}

fn bucket(text: &str) -> Result<String> {
    let name = text.strip_prefix("gs://").filter(|name| !name.is_empty() && !name.contains('/'));
    name.map(str::to_owned).context("expected gs://BUCKET")
}

fn service_account(text: &str) -> Result<String> {
    text.strip_prefix("serviceAccount:").map(str::to_owned).context("expected serviceAccount:EMAIL")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_command_line_that_gcloud_would_refuse_is_refused() {
        use clap::CommandFactory as _;
        Gcloud::command().debug_assert();
        let good = "gcloud compute instances create openclaw-gateway --zone=us-central1-a --machine-type=e2-small \
                    --image-family=debian-12 --create-disk=name=d --metadata=a=b,c=d=e";
        #[rustfmt::skip]
        let cases = [
            ("", true),
            (" --no-service-account --no-scopes", true),
            (" --no-service-account", false),
            (" --no-scopes --scopes=storage-ro", false),
            (" --scope=storage-ro", false),
            (" --disk=name=d", false),
            (" --metadata-from-file=startup-script", false),
        ];
        for (more, accepted) in cases {
            let line = format!("{good}{more}");
            assert_eq!(Gcloud::try_parse_from(line.split_whitespace()).is_ok(), accepted, "{line}");
        }
    }
}
