//! `gcloud`: its command lines as far as this project's documents use them, from `gcloud help` of each command.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use super::instances::{self, ACCOUNTS, Instance, READERS, object};
use super::session::Used;
use crate::product::BINARY;
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
    Ssh {
        #[command(flatten)]
        of: Instance,
        /// `-L PORT:127.0.0.1:PORT`
        #[arg(last = true, required = true)]
        ssh_arguments: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Instances {
    Create(Box<instances::Create>),
    AddMetadata {
        #[command(flatten)]
        of: Instance,
        #[arg(long, value_parser = instances::dictionary)]
        metadata: instances::Dictionary,
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
            Self::Compute(Compute::Instances(Instances::Create(create))) => create.run(session)?,
            Self::Compute(Compute::Instances(Instances::AddMetadata { metadata, .. })) => {
                instances::add_metadata(&lab, metadata)?;
            }
            Self::Compute(Compute::Instances(Instances::GetGuestAttributes { query_path, format, .. })) => {
                let answer = instances::guest_attributes(&lab, &query_path, &format)?;
                session.note(&format!("get-guest-attributes {query_path}\n{answer}"))?;
                print!("{answer}");
            }
            Self::Compute(Compute::Instances(Instances::Reset { .. })) => {
                session.note("reset")?;
                instances::reset(&lab)?;
            }
            Self::Compute(Compute::Ssh { ssh_arguments, .. }) => instances::tunnel(&lab, &ssh_arguments)?,
        }
        Ok(ExitCode::SUCCESS)
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
            (" --metadata-from-file=startup-script", false),
        ];
        for (more, accepted) in cases {
            let line = format!("{good}{more}");
            assert_eq!(Gcloud::try_parse_from(line.split_whitespace()).is_ok(), accepted, "{line}");
        }
    }
}
