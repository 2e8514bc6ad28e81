//! `gcloud`: its command lines as far as this project's documents use them, from `gcloud help` of each command.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

use super::instances::{self, ACCOUNTS, INSTANCE, Instance, READERS, ZONE, object};
use super::session::{DISKS, SNAPSHOTS, Used};
use crate::cli::up;
use crate::machine::{self, disks};
use crate::product::BINARY;
use crate::size::Size;
use crate::state::Lab;

/// The project that the CLI is set to: the one of the lab's metadata.
const PROJECT: &str = "openclaw-lab";
const BUCKETS: &str = "buckets";
const SERVICES: &str = "services";
const SECRETS: &str = "secrets";
const RESOURCE_POLICIES: &str = "resource policies";

/// `gcloud`.
#[derive(Debug, clap::Parser)]
#[command(name = "gcloud")]
pub(super) enum Gcloud {
    #[command(subcommand)]
    Config(Config),
    #[command(subcommand)]
    Iam(Iam),
    #[command(subcommand)]
    Projects(Projects),
    #[command(subcommand)]
    Services(Services),
    #[command(subcommand)]
    Secrets(Secrets),
    #[command(subcommand)]
    Artifacts(Artifacts),
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
    Create {
        name: String,
        #[arg(long)]
        display_name: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Projects {
    AddIamPolicyBinding {
        #[arg(value_parser = [PROJECT])]
        project: String,
        #[arg(long, value_parser = service_account)]
        member: String,
        #[arg(long, value_parser = ["roles/compute.instanceAdmin.v1"])]
        role: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Services {
    Enable {
        #[arg(value_parser = ["secretmanager.googleapis.com"])]
        service: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Secrets {
    Create {
        name: String,
        #[arg(long, value_parser = ["automatic"])]
        replication_policy: String,
        /// Standard input
        #[arg(long, value_parser = ["-"])]
        data_file: String,
    },
    AddIamPolicyBinding {
        name: String,
        #[arg(long, value_parser = service_account)]
        member: String,
        #[arg(long, value_parser = ["roles/secretmanager.secretAccessor"])]
        role: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Artifacts {
    #[command(subcommand)]
    Repositories(Repositories),
}

#[derive(Debug, Subcommand)]
pub(super) enum Repositories {
    AddIamPolicyBinding {
        repository: String,
        #[arg(long)]
        location: String,
        #[arg(long, value_parser = service_account)]
        member: String,
        #[arg(long, value_parser = ["roles/artifactregistry.reader"])]
        role: String,
    },
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
    #[command(subcommand)]
    Snapshots(Snapshots),
    #[command(subcommand)]
    ResourcePolicies(ResourcePolicies),
    Ssh {
        #[command(flatten)]
        of: Instance,
        /// A line for the shell of the VM
        #[arg(long, conflicts_with = "ssh_arguments", required_unless_present = "ssh_arguments")]
        command: Option<String>,
        /// `-L PORT:127.0.0.1:PORT`, and a command for the VM
        #[arg(last = true)]
        ssh_arguments: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Disks {
    Create {
        #[command(flatten)]
        of: Disk,
        #[arg(long, value_parser = gigabytes, required_unless_present = "source_snapshot")]
        size: Option<Size>,
        #[arg(long)]
        source_snapshot: Option<String>,
        /// Without it the disk turns slowly, also if its snapshot is of another.
        #[arg(long, value_parser = ["pd-balanced"])]
        r#type: String,
    },
    AddResourcePolicies {
        #[command(flatten)]
        of: Disk,
        #[arg(long)]
        resource_policies: String,
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

#[derive(Debug, Subcommand)]
pub(super) enum Snapshots {
    Create {
        name: String,
        #[arg(long)]
        source_disk: String,
        #[arg(long, value_parser = [ZONE])]
        source_disk_zone: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ResourcePolicies {
    #[command(subcommand)]
    Create(NewPolicy),
}

#[derive(Debug, Subcommand)]
pub(super) enum NewPolicy {
    SnapshotSchedule {
        name: String,
        #[arg(long, value_parser = ["us-central1"])]
        region: String,
        #[arg(long, required = true)]
        daily_schedule: bool,
        #[arg(long)]
        start_time: String,
        #[arg(long)]
        max_retention_days: u16,
        #[arg(long, value_parser = ["apply-retention-policy", "keep-auto-snapshots"])]
        on_source_disk_delete: String,
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
        format: Option<String>,
    },
    GetSerialPortOutput {
        #[command(flatten)]
        of: Instance,
    },
    AttachDisk {
        #[command(flatten)]
        of: Instance,
        #[arg(long)]
        disk: String,
        #[arg(long)]
        device_name: String,
    },
    DetachDisk {
        #[command(flatten)]
        of: Instance,
        #[arg(long)]
        disk: String,
    },
    /// Only of a VM that is off, like the next.
    SetMachineType {
        #[command(flatten)]
        of: Instance,
        #[arg(long, value_parser = instances::MACHINE_TYPES)]
        machine_type: String,
    },
    SetServiceAccount {
        #[command(flatten)]
        of: Instance,
        #[arg(long)]
        service_account: String,
        #[arg(long, value_parser = ["cloud-platform"])]
        scopes: String,
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
            Self::Iam(Iam::ServiceAccounts(ServiceAccounts::Create { name, .. })) => {
                let long_enough = (6..=30).contains(&name.len());
                ensure!(long_enough, "the account's name {name} has not 6 to 30 characters");
                session.create(ACCOUNTS, &format!("{name}@{PROJECT}.iam.gserviceaccount.com"))?;
            }
            Self::Projects(Projects::AddIamPolicyBinding { member, .. })
            | Self::Artifacts(Artifacts::Repositories(Repositories::AddIamPolicyBinding { member, .. })) => {
                session.needs(ACCOUNTS, &member)?;
            }
            Self::Services(Services::Enable { service }) => session.ensure(SERVICES, &service)?,
            Self::Secrets(command) => command.run(session, &lab)?,
            Self::Storage(command) => storage(session, command)?,
            Self::Compute(Compute::Instances(command)) => command.run(session, &lab)?,
            Self::Compute(Compute::Disks(command)) => command.run(session)?,
            Self::Compute(Compute::Snapshots(Snapshots::Create { name, source_disk, .. })) => {
                session.needs(DISKS, &source_disk)?;
                session.create(SNAPSHOTS, &name)?;
                disks::copy(&session.disk(&source_disk), &session.content(SNAPSHOTS, &name))?;
            }
            Self::Compute(Compute::ResourcePolicies(ResourcePolicies::Create(NewPolicy::SnapshotSchedule {
                name,
                ..
            }))) => session.create(RESOURCE_POLICIES, &name)?,
            Self::Compute(Compute::Ssh { command: Some(line), .. }) => return instances::ssh_command(&lab, &line),
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
                let answer = instances::guest_attributes(lab, &query_path, format.as_deref())?;
                session.note(&format!("get-guest-attributes {query_path}\n{answer}"))?;
                print!("{answer}");
                Ok(())
            }
            Self::GetSerialPortOutput { .. } => instances::serial_port_output(lab),
            Self::AttachDisk { disk, device_name, .. } => instances::attach_disk(session, lab, &disk, &device_name),
            Self::DetachDisk { disk, .. } => instances::detach_disk(session, lab, &disk),
            Self::SetMachineType { .. } => instances::is_off(lab),
            Self::SetServiceAccount { service_account, scopes, .. } => {
                instances::is_off(lab)?;
                session.needs(ACCOUNTS, &service_account)?;
                instances::set_scope(lab, &scopes)
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
            Self::Create { of, size, source_snapshot, .. } => {
                if let Some(snapshot) = &source_snapshot {
                    session.needs(SNAPSHOTS, snapshot)?;
                }
                session.create(DISKS, &of.name)?;
                let file = session.disk(&of.name);
                match (source_snapshot, size) {
                    (Some(snapshot), None) => disks::copy(&session.content(SNAPSHOTS, &snapshot), &file),
                    (None, Some(size)) => disks::create(&file, size),
                    _ => bail!("the documents name a snapshot or a size"),
                }
            }
            Self::AddResourcePolicies { of, resource_policies } => {
                session.needs(DISKS, &of.name)?;
                session.needs(RESOURCE_POLICIES, &resource_policies)
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

impl Secrets {
    /// Secret Manager has a secret for the VM as soon as somebody may read it.
    fn run(self, session: &Used, lab: &Lab) -> Result<()> {
        session.needs(SERVICES, "secretmanager.googleapis.com")?;
        match self {
            Self::Create { name, .. } => {
                session.create(SECRETS, &name)?;
                let mut value = Vec::new();
                std::io::stdin().read_to_end(&mut value).context("reading the secret's value")?;
                std::fs::write(session.content(SECRETS, &name), value).context("keeping the secret")
            }
            Self::AddIamPolicyBinding { name, member, .. } => {
                session.needs(SECRETS, &name)?;
                session.needs(ACCOUNTS, &member)?;
                let versions = lab.secrets().join(format!("projects/{PROJECT}/secrets/{name}/versions"));
                std::fs::create_dir_all(&versions).context("making the secret's directory")?;
                std::fs::copy(session.content(SECRETS, &name), versions.join("1")).context("publishing it").map(drop)
            }
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
        let disk = "gcloud compute disks create d --zone=us-central1-a";
        #[rustfmt::skip]
        let disks = [
            (" --type=pd-balanced --size=20GB", true),
            (" --type=pd-balanced --source-snapshot=s", true),
            (" --type=pd-balanced", false),
            (" --source-snapshot=s", false),
        ];
        let lines = cases.map(|(more, accepted)| (format!("{good}{more}"), accepted)).into_iter();
        for (line, accepted) in lines.chain(disks.map(|(more, accepted)| (format!("{disk}{more}"), accepted))) {
            assert_eq!(Gcloud::try_parse_from(line.split_whitespace()).is_ok(), accepted, "{line}");
        }
    }
}
