//! `cargo lab disk`: what `gcloud compute instances attach-disk`, `detach-disk` and `disks resize` do, in the
//! metadata and in the running machine.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::disks::{self, DataDisk};
use super::nspawn;
use crate::cloud;
use crate::cloud::metadata_server;
use crate::program::run;
use crate::size::Size;
use crate::state::{AttachedDisk, Lab, Spec};

/// Attaches a disk under a device name that is free.
pub fn attach(lab: &Lab, device_name: &str, content: &DataDisk, read_only: bool) -> Result<()> {
    let mut spec = lab.load()?;
    ensure!(find(&spec, device_name).is_err(), "a disk is attached as {device_name} already");
    let Some(file) = disks::file_of(lab, device_name, content)? else { bail!("a disk is a size or a file") };
    let disk = AttachedDisk { device_name: device_name.to_owned(), file, read_only };
    if nspawn::runs(lab) {
        let node = disks::attach(&disk.file, read_only)?;
        show(lab, &node).with_context(|| format!("making {} in the machine", node.display()))?;
        disks::link(lab, &disk, &node)?;
    }
    spec.disks.push(disk);
    save(lab, &spec)
}

/// Detaches a disk. Whoever has it open keeps what is open, unlike on real hardware.
pub fn detach(lab: &Lab, device_name: &str) -> Result<()> {
    let mut spec = lab.load()?;
    let disk = spec.disks.remove(find(&spec, device_name)?);
    disks::unlink(lab, &disk)?;
    for node in disks::nodes(&disk.file)? {
        if nspawn::runs(lab) {
            hide(lab, &node).with_context(|| format!("removing {} from the machine", node.display()))?;
        }
        disks::release(&node)?;
    }
    save(lab, &spec)
}

/// Makes a disk larger; the machine sees it at once.
pub fn resize(lab: &Lab, device_name: &str, size: Size) -> Result<()> {
    let spec = lab.load()?;
    let file = &spec.disks[find(&spec, device_name)?].file;
    let disk = File::options().write(true).open(file).with_context(|| format!("opening {}", file.display()))?;
    let length = disk.metadata().with_context(|| format!("reading the size of {}", file.display()))?.len();
    ensure!(size.0 >= length, "a disk only grows: {device_name} has {}", Size(length));
    disk.set_len(size.0).with_context(|| format!("growing {}", file.display()))?;
    for node in disks::nodes(file)? {
        run(Command::new("losetup").arg("--set-capacity").arg(&node)).context("announcing the new size")?;
    }
    Ok(())
}

fn find(spec: &Spec, device_name: &str) -> Result<usize> {
    let found = spec.disks.iter().position(|disk| disk.device_name == device_name);
    found.with_context(|| format!("no disk is attached as {device_name}"))
}

/// Gives the running machine the node of a block device that came later.
fn show(lab: &Lab, node: &Path) -> Result<()> {
    let numbers = run(Command::new("stat").args(["--format", "%Hr %Lr"]).arg(node))?;
    let mut make = nspawn::inside(lab)?;
    make.args(["mknod", "--mode=0660"]).arg(node).arg("b").args(numbers.split_whitespace());
    run(&mut make).map(drop)
}

/// Takes a node away from the running machine. One that was there when the machine started is a mount.
fn hide(lab: &Lab, node: &Path) -> Result<()> {
    let script = r#"if mountpoint -q "$0"; then umount "$0"; fi; rm --force "$0""#;
    run(nspawn::inside(lab)?.args(["sh", "-c", script]).arg(node)).map(drop)
}

fn save(lab: &Lab, spec: &Spec) -> Result<()> {
    lab.save(spec)?;
    let listed = metadata_disks(lab, spec);
    cloud::runtime()?.block_on(cloud::client(lab)?.set_disks(listed))
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
