//! `gcloud compute instances`: the one VM is a lab.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser as _};

use super::networks;
use super::packer::IMAGES;
use super::session::{DISKS, Used};
use crate::cli::{Action, Cli, up};
use crate::cloud::metadata_server::{BUCKET, Level, PROJECT};
use crate::machine::disks::DataDisk;
use crate::machine::{attach, tunnel};
use crate::product::NAMESPACE;
use crate::state::Lab;
use crate::{cloud, machine};

/// Which machine stands for a public image (family and project), and for the family that Packer makes. Nothing here
/// has Ubuntu: a Debian with cloud-init stands for it.
const IMAGE_FAMILIES: [(&str, Option<&str>, &[&str]); 3] = [
    ("debian-12", Some("debian-cloud"), &["--os", "debian-12", "--boot", "nothing"]),
    ("ubuntu-2404-lts-amd64", Some("ubuntu-os-cloud"), &["--os", "debian-13", "--boot", "cloud-init"]),
    ("openclaw", None, &["--os", "debian-13", "--boot", "baked", "--cloud-init"]),
];

/// The one VM's name, and where it is.
pub(super) const INSTANCE: &str = "openclaw-gateway";
pub(super) const ZONE: &str = "us-central1-a";

pub(super) const ACCOUNTS: &str = "service accounts";
/// The attribute with the program's address, under which it is remembered.
const PROGRAM_ADDRESS: &str = "openclaw-init-url";
/// Service accounts that may read a bucket.
pub(super) const READERS: &str = "readers";

/// The ones that the documents name.
pub(super) const MACHINE_TYPES: [&str; 2] = ["e2-small", "e2-medium"];

/// What a disk's description may say.
const DISK_KEYS: [&str; 5] = ["name", "device-name", "size", "type", "auto-delete"];

/// `KEY=VALUE,…`
pub(super) type Dictionary = BTreeMap<String, String>;

/// The one VM.
#[derive(Debug, Args)]
pub(super) struct Instance {
    #[arg(value_parser = [INSTANCE])]
    pub(super) name: String,
    #[arg(long, value_parser = [ZONE])]
    pub(super) zone: String,
    #[arg(long, value_parser = [PROJECT])]
    pub(super) project: String,
}

/// `gcloud compute instances create`.
#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    of: Instance,
    #[arg(long, value_parser = MACHINE_TYPES)]
    machine_type: String,
    #[arg(long)]
    image_family: String,
    #[arg(long)]
    image_project: Option<String>,
    #[arg(long, requires = "boot_disk_type", value_parser = ["20GB"])]
    boot_disk_size: Option<String>,
    #[arg(long, value_parser = ["pd-balanced"])]
    boot_disk_type: Option<String>,
    #[arg(long)]
    shielded_secure_boot: bool,
    #[arg(long = "create-disk", value_parser = dictionary, required_unless_present = "disk")]
    new_disk: Option<Dictionary>,
    #[arg(long, value_parser = dictionary, conflicts_with = "new_disk")]
    disk: Option<Dictionary>,
    #[arg(long)]
    service_account: Option<String>,
    #[arg(long, value_parser = ["storage-ro"])]
    scopes: Option<String>,
    #[command(flatten)]
    without: Without,
    #[arg(long, value_parser = dictionary)]
    metadata: Dictionary,
    #[arg(long, value_parser = dictionary)]
    metadata_from_file: Option<Dictionary>,
}

/// What the VM does not get.
#[derive(Debug, Args)]
struct Without {
    #[arg(long)]
    no_address: bool,
    #[arg(long, conflicts_with = "service_account", requires = "no_scopes")]
    no_service_account: bool,
    #[arg(long, conflicts_with = "scopes")]
    no_scopes: bool,
}

impl Create {
    /// Makes the lab and switches it on: with the attributes of the command line and no others, with the program as it
    /// was uploaded. Like gcloud it does not wait for the boot.
    pub(super) fn run(self, session: &Used) -> Result<()> {
        let attributes = attributes(self.metadata.clone(), self.metadata_from_file.as_ref())?;
        let binary = self.fetched(session, &attributes)?;
        let family = (self.image_family.as_str(), self.image_project.as_deref());
        let found = IMAGE_FAMILIES.iter().find(|(name, project, _)| (*name, *project) == family);
        let (family, project, machine) = found.with_context(|| format!("there is no image family {family:?}"))?;
        if project.is_none() {
            session.needs(IMAGES, family)?;
        }
        let disk = match (&self.new_disk, &self.disk) {
            (Some(new), _) => data_disk(new)?,
            (None, Some(disk)) => existing_disk(session, disk)?,
            (None, None) => bail!("the VM has no data disk"),
        };
        let mut line = vec!["lab", "up", "--name", &session.machine, "--only-attr", "--disk", &disk];
        line.extend(*machine);
        if self.without.no_service_account {
            line.push("--no-service-account");
        }
        let pairs: Vec<_> = attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        line.extend(pairs.iter().flat_map(|pair| ["--attr", pair]));
        let Action::Up(mut options) = Cli::try_parse_from(line)?.action else { bail!("this is not `lab up`") };
        networks::attach(session, &self.of.name, !self.without.no_address)?;
        note_program(session, &self.of.name, &attributes)?;
        session.starts()?;
        options.binary = Some(binary);
        options.forge = session.forge();
        up::up(&options).map(drop)
    }

    /// The program as the VM will fetch it, if it does: uploaded, and the VM's account may read it.
    fn fetched(&self, session: &Used, attributes: &Dictionary) -> Result<PathBuf> {
        let mut addresses = attributes.values().filter(|value| value.starts_with("gs://"));
        let Some(address) = addresses.next() else { return Ok(session.binary.clone()) };
        let (bucket, name) = object(address)?;
        ensure!(bucket == BUCKET, "the lab's only bucket is {BUCKET}, not {bucket}");
        let account = self.service_account.as_deref().context("the VM's service account is the default one")?;
        session.needs(ACCOUNTS, account)?;
        session.needs(READERS, account)?;
        ensure!(self.scopes.is_some(), "the VM's scopes do not include storage-ro");
        Ok(session.object(&bucket, &name))
    }
}

/// Bucket and object of a `gs://` address.
pub(super) fn object(text: &str) -> Result<(String, String)> {
    let (bucket, object) = text.strip_prefix("gs://").and_then(|rest| rest.split_once('/')).unwrap_or_default();
    ensure!(!bucket.is_empty() && !object.is_empty(), "expected gs://BUCKET/OBJECT");
    Ok((bucket.to_owned(), object.to_owned()))
}

/// The size of a data disk that outlives its VM.
fn data_disk(disk: &Dictionary) -> Result<String> {
    let unknown: Vec<_> = disk.keys().filter(|key| !DISK_KEYS.contains(&key.as_str())).collect();
    ensure!(unknown.is_empty(), "--create-disk does not know {unknown:?}");
    let value = |key: &str| disk.get(key).map(String::as_str).unwrap_or_default();
    ensure!(value("device-name") == "openclaw-data", "the disk's device name is {:?}", value("device-name"));
    ensure!(value("auto-delete") == "no", "the disk would go with the VM");
    ensure!(value("type").starts_with("pd-"), "the disk's type is {:?}", value("type"));
    let size = value("size").strip_suffix("GB").context("the disk's size is not in GB")?;
    Ok(format!("{size}G"))
}

/// The file of a disk that was made before, attached so that it outlives the VM.
fn existing_disk(session: &Used, disk: &Dictionary) -> Result<String> {
    let value = |key: &str| disk.get(key).map(String::as_str).unwrap_or_default();
    session.needs(DISKS, value("name"))?;
    for (key, expected) in [("device-name", "openclaw-data"), ("mode", "rw"), ("boot", "no"), ("auto-delete", "no")] {
        ensure!(value(key) == expected, "the disk's {key} is {:?}", value(key));
    }
    ensure!(disk.len() == 5, "--disk has something else than name, device-name, mode, boot and auto-delete");
    let file = session.disk(value("name"));
    file.into_os_string().into_string().ok().context("the disk's path is not text")
}

/// Reads `KEY=VALUE,…` as gcloud does: a comma always begins the next pair.
pub(super) fn dictionary(text: &str) -> Result<Dictionary> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').with_context(|| format!("{pair:?} is not KEY=VALUE"))?;
        anyhow::Ok((key.to_owned(), value.to_owned()))
    };
    // `^;^KEY=VALUE;...` names another separator (gcloud topic escaping).
    let named = text.strip_prefix('^').and_then(|rest| rest.split_once('^'));
    let (separator, text) = named.unwrap_or((",", text));
    text.split(separator).map(pair).collect()
}

/// The attributes of `--metadata` and those whose values are in files.
pub(super) fn attributes(mut attributes: Dictionary, from_file: Option<&Dictionary>) -> Result<Dictionary> {
    for (key, file) in from_file.into_iter().flatten() {
        let value = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        ensure!(attributes.insert(key.clone(), value).is_none(), "the attribute {key} is given twice");
    }
    Ok(attributes)
}

pub(super) fn attach_disk(session: &Used, lab: &Lab, name: &str, device_name: &str) -> Result<()> {
    session.needs(DISKS, name)?;
    attach::attach(lab, device_name, &DataDisk::File(session.disk(name)), false)
}

/// What `describe` prints of the VM in one of the formats that the documents use.
pub(super) fn described(session: &Used, lab: &Lab, name: &str, format: &str) -> Result<String> {
    Ok(match format {
        "value(name)" => name.to_owned(),
        "value(networkInterfaces[0].accessConfigs[0].natIP)" => networks::address(session, name).to_owned(),
        "value(status,lastStartTimestamp.date('%Y-%m-%dT%H:%M:%SZ', tz=UTC))" => {
            let status = if machine::runs(lab) { "RUNNING" } else { "TERMINATED" };
            format!("{status}\t{}", session.last_start()?)
        }
        "value(disks[].deviceName)" => {
            let disks = lab.load()?.disks.into_iter().map(|disk| disk.device_name);
            ["persistent-disk-0".to_owned()].into_iter().chain(disks).collect::<Vec<_>>().join(";")
        }
        _ => bail!("the documents use no format {format}"),
    })
}

/// What `describe` prints of one of the VM's lists, an entry to a line.
pub(super) fn listed(session: &Used, lab: &Lab, name: &str, list: &str, format: &str) -> Result<String> {
    Ok(match (list, format) {
        ("disks[]", "value(disks.deviceName,disks.source.basename())") => {
            let boot = format!("persistent-disk-0\t{name}");
            let others = lab.load()?.disks.into_iter().map(|disk| {
                // One that `--create-disk` made is no file of the session; the documents call it so.
                let source = session.disk_in(&disk.file).unwrap_or_else(|| format!("{name}-data"));
                format!("{}\t{source}", disk.device_name)
            });
            [boot].into_iter().chain(others).collect::<Vec<_>>().join("\n")
        }
        // The documents look for one attribute only.
        ("metadata.items[]", "value(metadata.items.key,metadata.items.value)") => {
            format!("{PROGRAM_ADDRESS}\t{}", session.remembered(PROGRAM_ADDRESS, name)?.unwrap_or_default())
        }
        _ => bail!("the documents use no format {format} with {list}"),
    })
}

/// Remembers from where the VM's program comes, if `attributes` say that.
fn note_program(session: &Used, vm: &str, attributes: &Dictionary) -> Result<()> {
    let Some(address) = attributes.get(PROGRAM_ADDRESS) else { return Ok(()) };
    session.ensure(PROGRAM_ADDRESS, vm)?;
    session.remember(PROGRAM_ADDRESS, vm, address)
}

/// An error unless the VM is stopped, without which much of it cannot be changed.
pub(super) fn is_off(lab: &Lab) -> Result<()> {
    ensure!(!machine::runs(lab), "the VM must be stopped for this");
    Ok(())
}

/// Gives the VM's account one scope, by gcloud's short name for it.
pub(super) fn set_scope(lab: &Lab, name: &str) -> Result<()> {
    let scope = format!("https://www.googleapis.com/auth/{name}");
    cloud::runtime()?.block_on(cloud::client(lab)?.set_scopes(&[scope]))
}

pub(super) fn add_metadata(session: &Used, lab: &Lab, metadata: Dictionary) -> Result<()> {
    note_program(session, INSTANCE, &metadata)?;
    let (runtime, client) = (cloud::runtime()?, cloud::client(lab)?);
    metadata
        .into_iter()
        .try_for_each(|(key, value)| runtime.block_on(client.set_attribute(Level::Instance, &key, &value)))
}

pub(super) fn remove_metadata(lab: &Lab, keys: &[String]) -> Result<()> {
    let (runtime, client) = (cloud::runtime()?, cloud::client(lab)?);
    keys.iter().try_for_each(|key| runtime.block_on(client.unset_attribute(Level::Instance, key)))
}

/// What `get-guest-attributes` prints; a key or namespace that is not there is an error.
pub(super) fn guest_attributes(lab: &Lab, query_path: &str, format: Option<&str>) -> Result<String> {
    let (namespace, wanted) = query_path.split_once('/').context("a query path is NAMESPACE/ or NAMESPACE/KEY")?;
    ensure!(namespace == NAMESPACE, "there are no guest attributes {namespace}/");
    let mut found = cloud::runtime()?.block_on(cloud::client(lab)?.guest_attributes(NAMESPACE))?;
    found.retain(|key, _| wanted.is_empty() || key == wanted);
    ensure!(!found.is_empty(), "there is no guest attribute {query_path}");
    let mut text = String::new();
    for (key, value) in found {
        let row = match format {
            Some("value(value)") => value,
            Some(_) => format!("{key}\t{value}"),
            None => format!("{namespace}   {key}   {value}"),
        };
        writeln!(text, "{row}").context("writing a row")?;
    }
    Ok(text)
}

/// Prints what the machine wrote to its console.
pub(super) fn serial_port_output(lab: &Lab) -> Result<()> {
    let console = std::fs::read(lab.console()).context("reading the machine's console")?;
    print!("{}", String::from_utf8_lossy(&console));
    Ok(())
}

pub(super) fn reset(lab: &Lab) -> Result<()> {
    machine::cut(lab)?;
    machine::start(lab)
}

/// `-L PORT:127.0.0.1:PORT` for one port, and a command for the VM if there is one. Its end is the end of the tunnel.
pub(super) fn ssh(lab: &Lab, arguments: &[String]) -> Result<ExitCode> {
    let mut words = arguments.iter().map(String::as_str);
    let port = loop {
        match words.next().context("ssh has no -L")? {
            "-t" => {}
            "-o" => ensure!(words.next() == Some("ExitOnForwardFailure=yes"), "an unknown option of ssh"),
            "-L" => break forwarded(words.next().unwrap_or_default())?,
            other => bail!("ssh does not know {other}"),
        }
    };
    let command: Vec<_> = words.collect();
    if command.is_empty() {
        return tunnel::open(lab, port).map(|()| ExitCode::SUCCESS);
    }
    let name = lab.name().to_owned();
    // It has a thread of its own, which it takes into the machine's network.
    std::thread::spawn(move || Lab::named(&name).and_then(|lab| tunnel::open(&lab, port)));
    // Who is root in the lab has no sudo.
    let command = command.strip_prefix(&["sudo"]).unwrap_or(&command);
    end_like(machine::inside(lab)?.args(command))
}

/// Runs a line of the VM's shell, where root has no sudo.
pub(super) fn ssh_command(lab: &Lab, line: &str) -> Result<ExitCode> {
    end_like(machine::inside(lab)?.args(["sh", "-c", &format!("sudo() {{ \"$@\"; }}\n{line}")]))
}

fn end_like(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().context("running the command in the VM")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn forwarded(text: &str) -> Result<u16> {
    let (port, target) = text.split_once(':').context("-L needs PORT:HOST:PORT")?;
    ensure!(target == format!("127.0.0.1:{port}"), "the lab's tunnel has one port, the same on both ends");
    port.parse().context("reading the port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_would_be_lost_is_refused() {
        #[rustfmt::skip]
        let cases = [
            ("name=x,device-name=openclaw-data,size=20GB,type=pd-balanced,auto-delete=no", Some("20G")),
            ("name=x,device-name=openclaw-data,size=20GB,type=pd-balanced", None),
            ("name=x,device-name=openclaw-data,size=20GB,type=pd-balanced,auto-delete=yes", None),
            ("name=x,size=20GB,type=pd-balanced,auto-delete=no", None),
            ("name=x,device-name=openclaw-data,size=20GB,type=pd-balanced,auto-delete=no,boot=yes", None),
        ];
        for (text, size) in cases {
            let found = dictionary(text).and_then(|disk| data_disk(&disk)).ok();
            assert_eq!(found.as_deref(), size, "{text}");
        }
    }
}
