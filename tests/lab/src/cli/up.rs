//! `cargo lab up` and `cargo lab down`: a lab from nothing to a booting machine, and back to nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Up;
use crate::cache::Cache;
use crate::cloud::content::Content;
use crate::cloud::metadata_server::{BUCKET, FaultChange, Metadata, PROJECT, check_attribute};
use crate::cloud::network::{self, STORAGE};
use crate::files::{put, sha256};
use crate::machine::attach::metadata_disks;
use crate::machine::boot_disk::{self, Boot};
use crate::machine::disks::{self, DataDisk};
use crate::machine::{boot_image, control_group};
use crate::process::Process;
use crate::product::{BINARY, DATA_DISK, LOADER, USER_DATA};
use crate::program::run;
use crate::state::{AttachedDisk, Lab, Spec};
use crate::{cloud, host, machine};

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
        None => step("building the static binary", host::binary)?,
    };
    let cache = Cache::from_env()?;
    step("preparing the registries and package repositories", || Content::prepare(&cache))?;
    fs::copy(&binary, lab.files().join(BINARY)).with_context(|| format!("copying {}", binary.display()))?;
    if let Some(forge) = &options.forge {
        run(Command::new("cp").args(["--recursive", "--"]).arg(forge.join(".")).arg(lab.files()))
            .with_context(|| format!("copying {}", forge.display()))?;
    }
    for (name, value) in &options.secrets {
        put(&lab.secrets(), &format!("projects/{PROJECT}/secrets/{name}/versions/1"), value)?;
    }
    let disks = data_disks(lab, &options.disk)?;
    lab.save(&Spec { os: options.os, memory: options.memory, disks })?;
    step("making the boot disk", || match (&options.image, options.boot) {
        (Some(image), _) => disks::copy(image, &lab.boot_disk()),
        (None, Boot::Baked) => baked(lab, options, &binary),
        (None, boot) => boot_disk::make(lab, options.os, boot, options.boot_disk),
    })?;
    step("starting the cloud", || {
        network::create(lab)?;
        let open = options.boot != Boot::Baked;
        cloud::start(lab, &metadata(lab, options)?, open.then_some(options.docker_repository), options.acme)?;
        faults(lab, &options.faults)
    })?;
    step("switching the machine on", || machine::start(lab))
}

fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("lab: {what}");
    work().context(what.to_owned())
}

/// The boot disk of `lab` as a builder leaves it that is baked and sealed: a machine with the same system and binary.
fn baked(lab: &Lab, options: &Up, binary: &Path) -> Result<()> {
    let builder = Lab::named(&format!("{}-image", lab.name()))?;
    down(&builder, &Keep::default()).context("removing what an interrupted run left")?;
    up(&builder_options(&builder, options, binary))?;
    let baked = boot_image::bake_and_seal(&builder);
    let keep = Keep { data_disk: None, boot_disk: baked.is_ok().then(|| lab.boot_disk()) };
    down(&builder, &keep).context("removing the machine that made the image")?;
    baked
}

/// A machine that nothing starts the product on, and without a data disk.
fn builder_options(builder: &Lab, options: &Up, binary: &Path) -> Up {
    let mut up = Up {
        boot: if options.cloud_init { Boot::CloudInit } else { Boot::Nothing },
        attributes: Vec::new(),
        only_attr: true,
        project_attributes: Vec::new(),
        disk: DataDisk::None,
        binary: Some(binary.to_owned()),
        faults: Vec::new(),
        ..options.clone()
    };
    builder.name().clone_into(&mut up.lab.name);
    up
}

fn data_disks(lab: &Lab, disk: &DataDisk) -> Result<Vec<AttachedDisk>> {
    let file = disks::file_of(lab, DATA_DISK, disk)?;
    let disk = file.map(|file| AttachedDisk { device_name: DATA_DISK.to_owned(), file, read_only: false });
    Ok(disk.into_iter().collect())
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

fn faults(lab: &Lab, faults: &[FaultChange]) -> Result<()> {
    let client = cloud::client(lab)?;
    faults.iter().try_for_each(|fault| cloud::runtime()?.block_on(client.fault(fault.clone())))
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
