//! `gcloud`: its command lines as far as this project's documents use them, from `gcloud help` of each command.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

use super::instances::{self, ACCOUNTS, INSTANCE, Instance, READERS, ZONE, object};
use super::networks::{self, Addresses, FirewallRules, REGION, Regional, Routers};
use super::session::{DISKS, SNAPSHOTS, Used};
use crate::cli::up;
use crate::cloud::metadata_server::PROJECT;
use crate::machine::{self, attach, disks};
use crate::product::BINARY;
use crate::size::Size;
use crate::state::Lab;

const BUCKETS: &str = "buckets";
const SERVICES: &str = "services";
const SECRETS: &str = "secrets";
const REPOSITORIES: &str = "repositories";
const RESOURCE_POLICIES: &str = "resource policies";
/// Disks that are on a schedule.
const SCHEDULED: &str = "disks on a schedule";
/// Accounts that may read a secret.
const SECRET_READERS: &str = "readers of secrets";
const TAGS: &str = "tags";

/// The API of repositories.
const ARTIFACT_REGISTRY: &str = "artifactregistry.googleapis.com";

/// `gcloud`.
#[derive(Debug, clap::Parser)]
#[command(name = "gcloud")]
pub(super) enum Gcloud {
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
pub(super) enum Iam {
    #[command(subcommand)]
    ServiceAccounts(ServiceAccounts),
}

#[derive(Debug, Subcommand)]
pub(super) enum ServiceAccounts {
    Describe {
        email: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
        #[arg(long, value_parser = ["value(email)"])]
        format: String,
    },
    Create {
        name: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
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
        #[arg(value_parser = ["secretmanager.googleapis.com", ARTIFACT_REGISTRY])]
        service: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Secrets {
    Describe {
        name: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
        #[arg(long, value_parser = ["value(name)"])]
        format: String,
    },
    /// Without a version.
    Create {
        name: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
        #[arg(long, value_parser = ["automatic"])]
        replication_policy: String,
    },
    #[command(subcommand)]
    Versions(Versions),
    AddIamPolicyBinding {
        name: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
        #[arg(long, value_parser = service_account)]
        member: String,
        #[arg(long, value_parser = ["roles/secretmanager.secretAccessor"])]
        role: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Versions {
    Add {
        name: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
        #[arg(long)]
        data_file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Artifacts {
    #[command(subcommand)]
    Repositories(Repositories),
}

#[derive(Debug, Subcommand)]
pub(super) enum Repositories {
    Describe {
        #[command(flatten)]
        of: Repository,
        #[arg(long, value_parser = ["value(name)"])]
        format: String,
    },
    Create {
        #[command(flatten)]
        of: Repository,
        #[arg(long, value_parser = ["docker"])]
        repository_format: String,
        #[arg(long, value_parser = ["remote-repository"])]
        mode: String,
        #[arg(long, value_parser = ["DOCKER-HUB"])]
        remote_docker_repo: String,
    },
    Delete {
        #[command(flatten)]
        of: Repository,
    },
    AddIamPolicyBinding {
        #[command(flatten)]
        of: Repository,
        #[arg(long, value_parser = service_account)]
        member: String,
        #[arg(long, value_parser = ["roles/artifactregistry.reader"])]
        role: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Repository {
    name: String,
    #[arg(long, value_parser = [PROJECT])]
    project: String,
    #[arg(long)]
    location: String,
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
    Describe {
        #[arg(value_parser = bucket)]
        bucket: String,
        #[arg(long, value_parser = ["value(name)"])]
        format: String,
    },
    Create {
        #[arg(value_parser = bucket)]
        bucket: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
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
    #[command(subcommand)]
    Addresses(Addresses),
    #[command(subcommand)]
    FirewallRules(FirewallRules),
    #[command(subcommand)]
    Routers(Routers),
    Ssh {
        #[command(flatten)]
        of: Instance,
        #[arg(long)]
        tunnel_through_iap: bool,
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
    Describe {
        #[command(flatten)]
        of: Disk,
        #[arg(long, value_parser = ["value(name)", "value(resourcePolicies)"])]
        format: String,
    },
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
        #[arg(long)]
        quiet: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Snapshots {
    Create {
        name: String,
        #[arg(long, value_parser = [PROJECT])]
        project: String,
        #[arg(long)]
        source_disk: String,
        #[arg(long, value_parser = [ZONE])]
        source_disk_zone: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ResourcePolicies {
    Describe {
        #[command(flatten)]
        of: Regional,
        #[arg(long, value_parser = ["value(name)"])]
        format: String,
    },
    #[command(subcommand)]
    Create(NewPolicy),
}

#[derive(Debug, Subcommand)]
pub(super) enum NewPolicy {
    SnapshotSchedule {
        #[command(flatten)]
        of: Regional,
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
    #[arg(long, value_parser = [PROJECT])]
    project: String,
}

/// Whether there is one of this name: the only list that the documents ask for.
#[derive(Debug, Args)]
pub(super) struct List {
    #[arg(long, value_parser = [ZONE])]
    zones: String,
    #[arg(long, value_parser = [PROJECT])]
    project: String,
    #[arg(long, value_parser = |text: &str| text.strip_prefix("name=").map(str::to_owned).ok_or("expected name=NAME"))]
    filter: String,
    #[arg(long, value_parser = ["value(name)"])]
    format: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Instances {
    Create(Box<instances::Create>),
    Describe {
        #[command(flatten)]
        of: Instance,
        #[arg(long)]
        flatten: Option<String>,
        #[arg(long)]
        format: String,
    },
    AddTags {
        #[command(flatten)]
        of: Instance,
        #[arg(long)]
        tags: String,
    },
    AddMetadata {
        #[command(flatten)]
        of: Instance,
        #[arg(long, value_parser = instances::dictionary)]
        metadata: instances::Dictionary,
        #[arg(long, value_parser = instances::dictionary)]
        metadata_from_file: Option<instances::Dictionary>,
    },
    RemoveMetadata {
        #[command(flatten)]
        of: Instance,
        #[arg(long, value_delimiter = ',')]
        keys: Vec<String>,
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
        device_name: String,
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
        #[arg(long, value_parser = ["data"])]
        keep_disks: String,
        /// Without it gcloud asks.
        #[arg(long)]
        quiet: bool,
    },
}

impl Gcloud {
    pub(super) fn run(self, session: &Used) -> Result<ExitCode> {
        let lab = Lab::named(&session.machine)?;
        match self {
            Self::Iam(Iam::ServiceAccounts(ServiceAccounts::Describe { email, .. })) => {
                session.describe(ACCOUNTS, &email)?;
            }
            Self::Iam(Iam::ServiceAccounts(ServiceAccounts::Create { name, .. })) => {
                let long_enough = (6..=30).contains(&name.len());
                ensure!(long_enough, "the account's name {name} has not 6 to 30 characters");
                session.create(ACCOUNTS, &format!("{name}@{PROJECT}.iam.gserviceaccount.com"))?;
            }
            Self::Projects(Projects::AddIamPolicyBinding { member, .. }) => session.needs(ACCOUNTS, &member)?,
            Self::Artifacts(Artifacts::Repositories(command)) => command.run(session)?,
            Self::Services(Services::Enable { service, .. }) => session.ensure(SERVICES, &service)?,
            Self::Secrets(command) => command.run(session, &lab)?,
            Self::Storage(command) => storage(session, command)?,
            Self::Compute(command) => return command.run(session, &lab),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Compute {
    fn run(self, session: &Used, lab: &Lab) -> Result<ExitCode> {
        match self {
            Self::Instances(command) => command.run(session, lab)?,
            Self::Disks(command) => command.run(session)?,
            Self::Snapshots(Snapshots::Create { name, source_disk, .. }) => {
                session.needs(DISKS, &source_disk)?;
                session.create(SNAPSHOTS, &name)?;
                disks::copy(&session.disk(&source_disk), &session.content(SNAPSHOTS, &name))?;
            }
            Self::ResourcePolicies(ResourcePolicies::Describe { of, .. }) => {
                session.describe(RESOURCE_POLICIES, &of.name)?;
            }
            Self::ResourcePolicies(ResourcePolicies::Create(NewPolicy::SnapshotSchedule { of, .. })) => {
                session.create(RESOURCE_POLICIES, &of.name)?;
            }
            Self::Addresses(command) => command.run(session)?,
            Self::FirewallRules(command) => command.run(session)?,
            Self::Routers(command) => command.run(session)?,
            Self::Ssh { of, tunnel_through_iap, command, ssh_arguments } => {
                networks::reaches(session, &of.name, tunnel_through_iap)?;
                return match command {
                    Some(line) => instances::ssh_command(lab, &line),
                    None => instances::ssh(lab, &ssh_arguments),
                };
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Instances {
    fn run(self, session: &Used, lab: &Lab) -> Result<()> {
        match self {
            Self::Create(create) => create.run(session),
            Self::Describe { of, flatten, format } => {
                ensure!(lab.exists(), "the resource instances/{} was not found", of.name);
                let described = match flatten {
                    Some(list) => instances::listed(session, lab, &of.name, &list, &format)?,
                    None => instances::described(session, lab, &of.name, &format)?,
                };
                println!("{described}");
                Ok(())
            }
            Self::AddTags { tags, .. } => session.ensure(TAGS, &tags),
            Self::AddMetadata { metadata, metadata_from_file, .. } => {
                instances::add_metadata(session, lab, instances::attributes(metadata, metadata_from_file.as_ref())?)
            }
            Self::RemoveMetadata { keys, .. } => instances::remove_metadata(lab, &keys),
            Self::GetGuestAttributes { query_path, format, .. } => {
                let answer = instances::guest_attributes(lab, &query_path, format.as_deref())?;
                session.note(&format!("get-guest-attributes {query_path}\n{answer}"))?;
                print!("{answer}");
                Ok(())
            }
            Self::GetSerialPortOutput { .. } => instances::serial_port_output(lab),
            Self::AttachDisk { disk, device_name, .. } => instances::attach_disk(session, lab, &disk, &device_name),
            Self::DetachDisk { device_name, .. } => attach::detach(lab, &device_name),
            Self::SetMachineType { .. } => instances::is_off(lab),
            Self::SetServiceAccount { service_account, scopes, .. } => {
                instances::is_off(lab)?;
                session.needs(ACCOUNTS, &service_account)?;
                instances::set_scope(lab, &scopes)
            }
            Self::Reset { .. } => session.note("reset").and_then(|()| instances::reset(lab)),
            Self::Stop { .. } => session.note("stop").and_then(|()| machine::stop(lab)),
            // Of one that is on nothing changes.
            Self::Start { .. } if machine::runs(lab) => Ok(()),
            Self::Start { .. } => {
                session.starts()?;
                machine::start(lab)
            }
            Self::List(list) => {
                list.print(list.filter == INSTANCE && lab.exists());
                Ok(())
            }
            Self::Delete { quiet, .. } => {
                agreed(quiet)?;
                machine::stop(lab).context("shutting the VM down")?;
                up::down(lab, &up::Keep::default())
            }
        }
    }
}

impl Disks {
    fn run(self, session: &Used) -> Result<()> {
        match self {
            Self::Describe { of, format } if format == "value(name)" => session.describe(DISKS, &of.name),
            Self::Describe { of, .. } => {
                session.needs(DISKS, &of.name)?;
                let policy = session.remembered(SCHEDULED, &of.name)?;
                println!(
                    "{}",
                    policy.map(|policy| format!("regions/{REGION}/resourcePolicies/{policy}")).unwrap_or_default()
                );
                Ok(())
            }
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
                session.needs(RESOURCE_POLICIES, &resource_policies)?;
                session.create(SCHEDULED, &of.name)?;
                session.remember(SCHEDULED, &of.name, &resource_policies)
            }
            Self::List(list) => {
                list.print(session.has(DISKS, &list.filter));
                Ok(())
            }
            Self::Delete { of, quiet } => {
                agreed(quiet)?;
                session.delete(DISKS, &of.name)
            }
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

impl Repositories {
    fn run(self, session: &Used) -> Result<()> {
        session.needs(SERVICES, ARTIFACT_REGISTRY)?;
        match self {
            Self::Describe { of, .. } => session.describe(REPOSITORIES, &of.name),
            Self::Create { of, .. } => session.create(REPOSITORIES, &of.name),
            Self::Delete { of } => {
                agreed(false)?;
                session.delete(REPOSITORIES, &of.name)
            }
            Self::AddIamPolicyBinding { of, member, .. } => {
                session.needs(REPOSITORIES, &of.name)?;
                session.needs(ACCOUNTS, &member)
            }
        }
    }
}

impl Secrets {
    /// Secret Manager has a secret's versions for the VM as soon as somebody may read it.
    fn run(self, session: &Used, lab: &Lab) -> Result<()> {
        session.needs(SERVICES, "secretmanager.googleapis.com")?;
        match self {
            Self::Describe { name, .. } => session.describe(SECRETS, &name),
            Self::Create { name, .. } => session.create(SECRETS, &name),
            Self::Versions(Versions::Add { name, data_file, .. }) => {
                session.needs(SECRETS, &name)?;
                let value = std::fs::read_to_string(&data_file);
                let value = value.with_context(|| format!("reading {}", data_file.display()))?;
                let versions = session.remembered(SECRETS, &name)?.unwrap_or_default();
                session.remember(SECRETS, &name, &format!("{versions}{}\n", value.trim_end_matches('\n')))?;
                publish(session, lab, &name)
            }
            Self::AddIamPolicyBinding { name, member, .. } => {
                session.needs(SECRETS, &name)?;
                session.needs(ACCOUNTS, &member)?;
                session.ensure(SECRET_READERS, &name)?;
                publish(session, lab, &name)
            }
        }
    }
}

/// Hands the versions of a secret, a line each, to Secret Manager, if somebody may read it.
fn publish(session: &Used, lab: &Lab, name: &str) -> Result<()> {
    if !session.has(SECRET_READERS, name) {
        return Ok(());
    }
    let directory = lab.secrets().join(format!("projects/{PROJECT}/secrets/{name}/versions"));
    std::fs::create_dir_all(&directory).context("making the secret's directory")?;
    let versions = session.remembered(SECRETS, name)?.unwrap_or_default();
    for (number, value) in (1..).zip(versions.lines()) {
        std::fs::write(directory.join(format!("{number}")), value).context("publishing the secret")?;
    }
    Ok(())
}

/// What gcloud asks before it deletes something. It reads one line and no more: the next is for who asks next.
pub(super) fn agreed(quiet: bool) -> Result<()> {
    if quiet {
        return Ok(());
    }
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("reading the answer")?;
    #[expect(clippy::unbuffered_bytes, reason = "a buffer would take what is for others")]
    let bytes = std::fs::File::from(stdin).bytes().take_while(|byte| byte.as_ref().is_ok_and(|byte| *byte != b'\n'));
    let answer = String::from_utf8(bytes.collect::<Result<_, _>>().context("reading the answer")?)?;
    ensure!(answer.trim().eq_ignore_ascii_case("y"), "aborted by user");
    Ok(())
}

fn storage(session: &Used, command: Storage) -> Result<()> {
    match command {
        Storage::Cp { source, target: (bucket, object) } => {
            session.needs(BUCKETS, &bucket)?;
            ensure!(object == BINARY, "in the lab's Cloud Storage the program is called {BINARY}");
            let target = session.object(&bucket, &object);
            std::fs::copy(&source, target).with_context(|| format!("copying {}", source.display())).map(drop)
        }
        Storage::Buckets(Buckets::Describe { bucket, .. }) => session.describe(BUCKETS, &bucket),
        Storage::Buckets(Buckets::Create { bucket, .. }) => session.create(BUCKETS, &bucket),
        Storage::Buckets(Buckets::AddIamPolicyBinding { bucket, member, .. }) => {
            session.needs(BUCKETS, &bucket)?;
            session.needs(ACCOUNTS, &member)?;
            session.ensure(READERS, &member)
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
        let good = "gcloud compute instances create openclaw-gateway --zone=us-central1-a --project=openclaw-lab --machine-type=e2-small \
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
            (" --project=another", false),
            (" --no-address", true),
        ];
        let disk = "gcloud compute disks create d --zone=us-central1-a --project=openclaw-lab";
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
