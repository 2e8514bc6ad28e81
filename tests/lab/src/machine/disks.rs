//! Disks of a machine: files on the development machine, block devices through its loop driver.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};

use crate::program::run;
use crate::size::Size;
use crate::state::{AttachedDisk, Lab};

/// The data disk of a new machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataDisk {
    /// None is attached.
    None,
    /// A new, blank one.
    Blank(Size),
    /// The content of a file, used in place.
    File(PathBuf),
}

impl std::str::FromStr for DataDisk {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse::<Size>() {
            _ if text == "none" => Ok(Self::None),
            Ok(size) => Ok(Self::Blank(size)),
            Err(_) if std::path::Path::new(text).is_file() => {
                Ok(Self::File(std::fs::canonicalize(text).with_context(|| format!("finding {text}"))?))
            }
            Err(_) => bail!("`{text}` is neither a size like 10G nor a file nor `none`"),
        }
    }
}

/// The file behind a new disk of the machine; made here if the disk is blank.
pub fn file_of(lab: &Lab, device_name: &str, disk: &DataDisk) -> Result<Option<PathBuf>> {
    let size = match disk {
        DataDisk::None => return Ok(None),
        DataDisk::File(file) => return Ok(Some(file.clone())),
        DataDisk::Blank(size) => *size,
    };
    let file = lab.path(&format!("{device_name}.img"));
    create(&file, size)?;
    Ok(Some(file))
}

/// Makes an empty disk of `size`: a sparse file, which reads as zeros like a new Persistent Disk.
pub fn create(file: &Path, size: Size) -> Result<()> {
    let disk = fs::File::create_new(file).with_context(|| format!("creating the disk {}", file.display()))?;
    disk.set_len(size.0).with_context(|| format!("giving the disk {} its size", file.display()))
}

/// Copies a disk; what is empty takes no space.
pub fn copy(disk: &Path, file: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto", "--"]).arg(disk).arg(file);
    run(&mut copy).with_context(|| format!("copying the disk {} to {}", disk.display(), file.display())).map(drop)
}

/// A block device that is `file`; returns its node. It is read and written past the page cache of the development
/// machine: a blank disk that is read whole then costs a thirtieth of the processor time.
pub fn attach(file: &Path, read_only: bool) -> Result<PathBuf> {
    let node = attach_cached(file, read_only)?;
    // Not every file system can do it.
    if let Err(error) = run(Command::new("losetup").arg("--direct-io=on").arg(&node)) {
        println!("lab: {} goes through the page cache: {error:#}", file.display());
    }
    Ok(node)
}

/// The same through the page cache, which has what was just written to a boot disk.
pub fn attach_cached(file: &Path, read_only: bool) -> Result<PathBuf> {
    let mut command = Command::new("losetup");
    command.args(["--find", "--show", "--partscan"]).args(read_only.then_some("--read-only"));
    let node = run(command.arg(file)).with_context(|| format!("attaching the disk {}", file.display()))?;
    Ok(node.trim().into())
}

/// Lets a block device go together with its last user: a mount or an open file.
pub fn release(node: &Path) -> Result<()> {
    run(Command::new("losetup").arg("--detach").arg(node)).map(drop)
}

/// Every block device that is `file`.
pub fn nodes(file: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("losetup");
    command.args(["--noheadings", "--output", "NAME", "--associated"]).arg(file);
    let list = run(&mut command).with_context(|| format!("looking for block devices of {}", file.display()))?;
    Ok(list.split_whitespace().map(PathBuf::from).collect())
}

/// Detaches every block device that is `file`, and waits until they are gone.
pub fn detach(file: &Path) -> Result<()> {
    for _ in 0..50 {
        let nodes = nodes(file)?;
        if nodes.is_empty() {
            return Ok(());
        }
        // It is no failure when one has just gone.
        for node in &nodes {
            drop(release(node));
        }
        sleep(Duration::from_millis(100));
    }
    bail!("the disk {} is still attached: something uses it", file.display())
}

/// Names `node` in the machine's `/dev/disk/by-id` as Compute Engine's udev rules do (guest-configs,
/// `65-gce-disk-naming.rules`, and udev's own rule for the SCSI identity).
pub fn link(lab: &Lab, disk: &AttachedDisk, node: &Path) -> Result<()> {
    let name = node.file_name().with_context(|| format!("{} is no device node", node.display()))?;
    for link in links(lab, disk) {
        if let Some(directory) = link.parent() {
            fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        symlink(Path::new("../..").join(name), &link).with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(())
}

/// Removes the names of one disk.
pub fn unlink(lab: &Lab, disk: &AttachedDisk) -> Result<()> {
    for link in links(lab, disk).iter().filter(|link| link.is_symlink()) {
        fs::remove_file(link).with_context(|| format!("removing {}", link.display()))?;
    }
    Ok(())
}

fn links(lab: &Lab, disk: &AttachedDisk) -> [PathBuf; 2] {
    let directory = lab.device_links().join("by-id");
    ["google-", "scsi-0Google_PersistentDisk_"].map(|prefix| directory.join(format!("{prefix}{}", disk.device_name)))
}

/// Removes all names, those that the machine's udev made included.
pub fn unlink_all(lab: &Lab) -> Result<()> {
    let directory = lab.device_links();
    for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry.with_context(|| format!("reading {}", directory.display()))?.path();
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}
