//! `cargo lab up` and `cargo lab down`: a lab from nothing to a booting machine, and back to nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use sha2::{Digest, Sha256};

use crate::cache::Cache;
use crate::cli::{Boot, DataDisk, Up};
use crate::cloud_content::Content;
use crate::metadata_server::{self, BUCKET, FaultChange, Metadata, check_attribute};
use crate::network::STORAGE;
use crate::process::Process;
use crate::program::run;
use crate::qemu::image;
use crate::rootfs::Flavour;
use crate::size::Size;
use crate::sources::Sources;
use crate::state::{Disk, Lab, Os, Spec};
use crate::{boot_image, cloud, cloud_init, control_group, disks, host, machine, network, rootfs};

/// The data disk that the product looks for when nothing is configured.
const DATA_DISK: &str = "openclaw-data";
/// Where the product reads which key Docker's repository must have instead of Docker's own.
const DOCKER_KEY: &str = "etc/openclaw-init/docker-key.fingerprint";
/// The loader as operators copy it.
pub const LOADER: &str = include_str!("../../../cloud-init/startup-script.sh");
const USER_DATA: &str = include_str!("../../../cloud-init/user-data.yaml");
/// Where the product lives on a machine, and where the cloud's web server has it.
const INSTALLED: &str = "usr/local/bin/openclaw-init";
pub const BINARY: &str = "openclaw-init";

/// Makes the lab and switches the machine on. What was begun is removed again when it fails.
pub fn up(options: &Up) -> Result<Lab> {
    let lab = Lab::named(&options.lab.name)?;
    host::install_tools()?;
    lab.create()?;
    match build(&lab, options) {
        Ok(()) => Ok(lab),
        Err(error) => {
            down(&lab, &Keep::default()).context("removing what was begun")?;
            Err(error)
        }
    }
}

fn build(lab: &Lab, options: &Up) -> Result<()> {
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => step("building the static binary", || host::binary(&[]))?,
    };
    let cache = Cache::from_env()?;
    step("preparing the registries and package repositories", || Content::prepare(&cache))?;
    fs::copy(&binary, lab.files().join(BINARY)).with_context(|| format!("copying {}", binary.display()))?;
    let disks = data_disks(lab, &options.disk)?;
    lab.save(&Spec { os: options.os, memory: options.memory, disks })?;
    step("making the boot disk", || match (&options.image, options.boot) {
        (Some(image), _) => disks::copy(image, &lab.boot_disk()),
        (None, Boot::Baked) => boot_image::make(lab, options, &binary),
        (None, boot) => fill_boot_disk(lab, options.os, boot, options.boot_disk),
    })?;
    step("starting the cloud", || {
        network::create(lab)?;
        let open = options.boot != Boot::Baked;
        cloud::start(lab, &metadata(lab, options)?, open.then_some(options.docker_repository))?;
        faults(lab, &options.faults)
    })?;
    step("switching the machine on", || machine::start(lab))
}

fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("lab: {what}");
    work().context(what.to_owned())
}

fn data_disks(lab: &Lab, disk: &DataDisk) -> Result<Vec<Disk>> {
    let file = disk_file(lab, DATA_DISK, disk)?;
    let disk = file.map(|file| Disk { device_name: DATA_DISK.to_owned(), file, read_only: false });
    Ok(disk.into_iter().collect())
}

/// The file behind a disk that is to be attached; a blank one is made.
pub fn disk_file(lab: &Lab, device_name: &str, disk: &DataDisk) -> Result<Option<PathBuf>> {
    let size = match disk {
        DataDisk::None => return Ok(None),
        DataDisk::File(file) => return Ok(Some(file.clone())),
        DataDisk::Blank(size) => *size,
    };
    let file = lab.path(&format!("{device_name}.img"));
    disks::create(&file, size)?;
    Ok(Some(file))
}

/// What the metadata server tells about the new VM.
fn metadata(lab: &Lab, options: &Up) -> Result<Metadata> {
    let mut metadata = Metadata::default();
    let way_in = if options.only_attr { Vec::new() } else { way_in(lab, options.boot)? };
    let attributes = way_in.into_iter().chain(options.attributes.iter().cloned());
    for (key, value) in attributes {
        check_attribute(&key, &value)?;
        metadata.instance.attributes.insert(key, value);
    }
    for (key, value) in &options.project_attributes {
        check_attribute(key, value)?;
        metadata.project.attributes.insert(key.clone(), value.clone());
    }
    let (instance, suite) = (&mut metadata.instance, options.os.suite());
    lab.name().clone_into(&mut instance.name);
    instance.hostname = format!("{}.us-central1-a.c.openclaw-lab.internal", lab.name());
    instance.image = format!("projects/debian-cloud/global/images/debian-{}-{}", suite.number(), suite.codename());
    // Every VM ever made is another instance; real ids are of this size, too.
    instance.id = u64::try_from(jiff::Timestamp::now().as_nanosecond()).context("the clock is out of range")?;
    instance.disks = metadata_disks(lab, &lab.load()?);
    if options.no_service_account {
        instance.service_accounts.clear();
    }
    Ok(metadata)
}

/// The disks as the metadata server lists them, the boot disk first.
pub fn metadata_disks(lab: &Lab, spec: &Spec) -> Vec<metadata_server::Disk> {
    let mut disks = vec![metadata_server::Disk::new(0, lab.name())];
    for (disk, index) in spec.disks.iter().zip(1..) {
        let mut listed = metadata_server::Disk::new(index, disk.device_name.as_str());
        if disk.read_only {
            "READ_ONLY".clone_into(&mut listed.mode);
        }
        disks.push(listed);
    }
    disks
}

fn faults(lab: &Lab, faults: &[FaultChange]) -> Result<()> {
    let client = cloud::client(lab)?;
    faults.iter().try_for_each(|fault| cloud::runtime()?.block_on(client.fault(fault.clone())))
}

/// Makes a boot disk that was never booted, in the directory of a new lab.
pub fn new_boot_disk(lab: &Lab, os: Os, boot: Boot, size: Size) -> Result<()> {
    lab.create()?;
    lab.save(&Spec { os, memory: None, disks: Vec::new() })?;
    fill_boot_disk(lab, os, boot, size)
}

fn fill_boot_disk(lab: &Lab, os: Os, boot: Boot, size: Size) -> Result<()> {
    let flavour = match boot {
        Boot::CloudInit => Flavour::CloudInit,
        Boot::Bootable => Flavour::Bootable,
        _ => Flavour::Bare,
    };
    let archive = rootfs::archive(&Cache::from_env()?, &Sources::of_this_machine()?, os.suite(), flavour)?;
    rootfs::format(&lab.boot_disk(), size)?;
    prepare(lab, &archive, boot)
}

/// Fills the boot disk, in a process with mounts of its own.
fn prepare(lab: &Lab, archive: &Path, boot: Boot) -> Result<()> {
    let mut command = Command::new(host::own_program());
    command.args(["prepare", "--name", lab.name()]).arg("--archive").arg(archive);
    let boot = boot.to_possible_value().context("a hidden way in")?;
    run(command.args(["--boot", boot.get_name()])).map(drop)
}

/// The hidden command behind it: mounts the boot disk and fills it with what the way in expects there.
pub fn fill(lab: &Lab, archive: &Path, boot: Boot) -> Result<()> {
    machine::leave_mounts()?;
    control_group::enter(lab, None)?;
    machine::mount_root(lab)?;
    let sources = Sources::of_this_machine()?;
    let content = Content::prepare(&Cache::from_env()?)?;
    let authority = ("openclaw-lab.crt".to_owned(), content.ca_pem().to_owned());
    let certificates: Vec<_> = sources.certificates().iter().cloned().chain([authority]).collect();
    rootfs::populate(lab, archive, &sources, &certificates)?;
    rootfs::put(&lab.root(), DOCKER_KEY, &format!("{}\n", content.docker_key_fingerprint()))?;
    let root = lab.root();
    match boot {
        Boot::ScriptUrl | Boot::Script | Boot::Baked | Boot::Nothing => Ok(()),
        Boot::CloudInit => cloud_init::configure(&root),
        Boot::Bootable => image::configure(&root),
        Boot::Unit => {
            fs::copy(lab.files().join(BINARY), root.join(INSTALLED)).context("copying the binary to the boot disk")?;
            let install = [&format!("/{INSTALLED}"), "install"];
            rootfs::run_inside(&root, &install).context("installing the product's units").map(drop)
        }
    }
}

/// The attributes that the way in needs, as a Compute Engine user would set them.
fn way_in(lab: &Lab, boot: Boot) -> Result<Vec<(String, String)>> {
    let mut attributes = vec![("enable-guest-attributes", "TRUE".to_owned())];
    match boot {
        Boot::ScriptUrl => attributes.push(("startup-script-url", format!("http://{STORAGE}/{BINARY}"))),
        Boot::Script => attributes.push(("startup-script", LOADER.to_owned())),
        Boot::CloudInit => attributes.push(("user-data", USER_DATA.to_owned())),
        Boot::Unit | Boot::Baked | Boot::Nothing | Boot::Bootable => {}
    }
    if matches!(boot, Boot::Script | Boot::CloudInit) {
        attributes.push(("openclaw-init-url", format!("gs://{BUCKET}/{BINARY}")));
        attributes.push(("openclaw-init-sha256", sha256(&lab.files().join(BINARY))?));
    }
    Ok(attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// The SHA-256 of a file as `sha256sum` prints it.
pub fn sha256(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What is left of a lab that is removed: files to which its disks are copied.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// For the first data disk.
    pub data_disk: Option<PathBuf>,
    /// For the boot disk.
    pub boot_disk: Option<PathBuf>,
}

/// Removes a lab completely: processes, mounts, block devices, control groups, namespaces, directory.
///
/// With something to `keep` the machine is stopped cleanly first.
pub fn down(lab: &Lab, keep: &Keep) -> Result<()> {
    if *keep != Keep::default() {
        machine::stop(lab).context("stopping the machine")?;
    }
    machine::cut(lab).context("cutting the machine's power")?;
    cloud::stop(lab).context("stopping the cloud")?;
    for pid in network::processes(lab)? {
        if let Ok(process) = Process::of(pid) {
            process.end(Duration::from_secs(2))?;
        }
    }
    for file in disk_files(lab) {
        disks::detach(&file)?;
    }
    control_group::remove(lab)?;
    network::remove(lab)?;
    keep_disks(lab, keep)?;
    if lab.exists() {
        fs::remove_dir_all(lab.directory()).with_context(|| format!("removing {}", lab.directory().display()))?;
    }
    Ok(())
}

/// Every file that may be behind a block device of the lab.
fn disk_files(lab: &Lab) -> Vec<PathBuf> {
    let data = lab.load().map(|spec| spec.disks).unwrap_or_default();
    let data = data.into_iter().map(|disk| disk.file);
    data.chain([lab.boot_disk()]).filter(|file| file.exists()).collect()
}

fn keep_disks(lab: &Lab, keep: &Keep) -> Result<()> {
    if let Some(target) = &keep.data_disk {
        let spec = lab.load()?;
        let disk = spec.disks.first().context("the machine has no data disk to keep")?;
        disks::copy(&disk.file, target)?;
    }
    keep.boot_disk.iter().try_for_each(|target| disks::copy(&lab.boot_disk(), target))
}
