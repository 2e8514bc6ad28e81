//! Which disk, and which device that is.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::time::Instant;

use super::last_disk::LastDisk;
use super::mount::{Mounts, Number};
use crate::config::DiskChoice;
use crate::error::{Classify as _, Code};
use crate::host::{Host, blocking};
use crate::metadata::{Disk, Instance};

/// The device name that is looked for when `openclaw-data-disk` is not set.
const DEFAULT_NAME: &str = "openclaw-data";

/// How long udev may take to make a disk's links; a disk can be attached while the VM boots.
const UDEV_WAIT: Duration = Duration::from_secs(10);
const UDEV_POLL: Duration = Duration::from_millis(250);
/// When udev is asked to look again: events can be lost early in the boot (Google's CSI driver does the same).
const UDEV_NUDGE: Duration = Duration::from_secs(3);

/// Where the data lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The attached disk of this device name.
    Disk(String),
    /// The boot disk, because nothing else was ever asked for (with a warning) or deliberately.
    BootDisk { warning: Option<String> },
}

/// Decides by metadata alone where the data lives. `last` is the data disk that this machine used before.
pub(super) fn select(choice: &DiskChoice, instance: &Instance, last: Option<&LastDisk>) -> Result<Place> {
    let attached = |name: &str| instance.disks.iter().find(|disk| disk.device_name == name);
    match choice {
        DiskChoice::BootDisk => Ok(Place::BootDisk { warning: None }),
        DiskChoice::Named(name) => match attached(name) {
            Some(disk) => usable(disk).map(Place::Disk),
            None => missing(name, instance),
        },
        DiskChoice::Default => match (attached(DEFAULT_NAME), last) {
            (Some(disk), _) => usable(disk).map(Place::Disk),
            (None, Some(last)) => missing(&last.device_name, instance),
            (None, None) => Ok(Place::BootDisk {
                warning: Some(format!(
                    "no data disk is attached: the state lives on the boot disk and is lost with it. Attach a disk with \
                     `{}`, or set openclaw-data-disk=none if this is meant",
                    attach_command(DEFAULT_NAME, instance)
                )),
            }),
        },
    }
}

fn usable(disk: &Disk) -> Result<String> {
    let name = &disk.device_name;
    let refusal = if disk.index == 0 {
        "is the boot disk; set openclaw-data-disk=none to keep the state there"
    } else if disk.kind == "LOCAL-SSD" {
        "is a local SSD, whose content is lost when the VM stops"
    } else if name.starts_with('.') || name.contains(['/', '\\']) {
        "cannot be the name of a directory"
    } else if disk.read_only {
        return Err(anyhow!("the data disk {name} is attached read-only"))
            .classify(Code::DiskReadonly, "Detach it and attach it again with `--mode=rw`; then reboot the VM.");
    } else {
        return Ok(name.clone());
    };
    Err(anyhow!("the disk {name} {refusal}"))
        .classify(Code::ConfigInvalid, "Set openclaw-data-disk to the device name of a persistent data disk.")
}

fn missing(name: &str, instance: &Instance) -> Result<Place> {
    let attached: Vec<&str> = instance.disks.iter().map(|disk| disk.device_name.as_str()).collect();
    let attached = attached.join(", ");
    Err(anyhow!("the data disk {name} is not attached; attached are: {attached}")).classify(
        Code::DiskMissing,
        format!(
            "Attach it with `{}` and run `sudo openclaw-init boot` or reboot the VM; or set openclaw-data-disk to another \
             device name, or to none for a new state on the boot disk.",
            attach_command(name, instance)
        ),
    )
}

fn attach_command(name: &str, instance: &Instance) -> String {
    let Instance { name: vm, zone, .. } = instance;
    format!("gcloud compute instances attach-disk {vm} --zone={zone} --disk=DISK --device-name={name}")
}

/// A whole disk, verified to be the one of its device name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// The device name in the metadata.
    pub(super) name: String,
    /// The link it was found by.
    link: PathBuf,
    /// The device node.
    pub(super) node: PathBuf,
    pub(super) number: Number,
    block: Block,
}

/// What sysfs tells of a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Block {
    is_partition: bool,
    read_only: bool,
    /// Devices stacked upon it.
    holders: Vec<String>,
    /// The device name as the disk itself tells it, where the kernel knows; more than one source.
    names: Vec<String>,
    /// In bytes.
    size: u64,
    partitions: Vec<Partition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Partition {
    index: u32,
    kernel_name: String,
    number: Number,
    /// The first byte behind it.
    end: u64,
}

/// Finds the device of the disk that is attached as `name`, waiting for udev.
pub(super) async fn device(host: &Host, name: &str) -> Result<Device> {
    let started = Instant::now();
    let mut nudged = false;
    loop {
        let (host_, name_) = (host.clone(), name.to_owned());
        let reason = match blocking(move || locate(&host_, &name_)).await {
            Ok(device) => return Ok(device),
            Err(reason) => reason,
        };
        if started.elapsed() >= UDEV_WAIT {
            return Err(reason).classify(
                Code::DiskMissing,
                "The metadata says that it is attached: run `udevadm trigger --settle --subsystem-match=block`, then \
                 `sudo openclaw-init boot`; if that does not help, detach and attach the disk.",
            );
        }
        if !nudged && started.elapsed() >= UDEV_NUDGE {
            nudged = true;
            settle(host, &["trigger", "--subsystem-match=block"]).await;
        }
        tokio::time::sleep(UDEV_POLL).await;
    }
}

/// The nodes of the disk that is attached as `name` and of its only partition; none when there is no device yet.
pub(super) async fn nodes(host: &Host, name: &str) -> Result<Vec<PathBuf>> {
    let (host, name) = (host.clone(), name.to_owned());
    blocking(move || {
        let Ok(device) = locate(&host, &name) else { return Ok(Vec::new()) };
        let partition = device.only_partition(&host).ok();
        Ok(std::iter::once(device.node).chain(partition).collect())
    })
    .await
}

/// Runs udevadm; a machine without a working udev has its links from elsewhere.
pub(super) async fn settle(host: &Host, args: &[&str]) {
    if let Err(error) = host.command("udevadm").args(args).timeout(UDEV_WAIT).run().await {
        tracing::debug!("{error:#}");
    }
}

fn locate(host: &Host, name: &str) -> Result<Device> {
    let mut reason = anyhow!("no device link for the disk {name} in /dev/disk/by-id");
    for prefix in ["google-", "scsi-0Google_PersistentDisk_", "nvme-Google_PersistentDisk_"] {
        let link = host.path("/dev/disk/by-id").join(format!("{prefix}{name}"));
        let Ok(node) = link.canonicalize() else { continue };
        let number = block_number(&node)?;
        let block = inspect(&host.path("/sys/dev/block").join(number.to_string()))?;
        if block.names.is_empty() || block.names.iter().any(|told| told == name) {
            return Ok(Device { name: name.to_owned(), link, node, number, block });
        }
        // Links that point to the wrong device happen (Google's CSI driver, `VerifyDevicePath`).
        let told = block.names.join(", ");
        reason = anyhow!("{} leads to {}, which calls itself {told}", link.display(), node.display());
    }
    Err(reason)
}

fn block_number(node: &Path) -> Result<Number> {
    let found = node.metadata().with_context(|| format!("looking at {}", node.display()))?;
    if !found.file_type().is_block_device() {
        bail!("{} is not a block device", node.display());
    }
    Ok(found.rdev().into())
}

/// Reads a block device's directory in sysfs. Attributes that a kind of device does not have are empty.
fn inspect(sysfs: &Path) -> Result<Block> {
    let attribute = |name: &str| std::fs::read(sysfs.join(name)).unwrap_or_default();
    let mut block = Block {
        is_partition: sysfs.join("partition").exists(),
        read_only: attribute("ro").trim_ascii() == b"1",
        names: names(&attribute("device/wwid"), &attribute("device/vpd_pg80")),
        size: sectors(sysfs, "size"),
        ..Block::default()
    };
    let entries = std::fs::read_dir(sysfs).with_context(|| format!("listing {}", sysfs.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Ok(index) = std::fs::read_to_string(path.join("partition")) else { continue };
        let number = std::fs::read_to_string(path.join("dev"))?.parse()?;
        let kernel_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let end = sectors(&path, "start") + sectors(&path, "size");
        block.partitions.push(Partition { index: index.trim().parse()?, kernel_name, number, end });
    }
    if let Ok(holders) = std::fs::read_dir(sysfs.join("holders")) {
        block.holders = holders.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    }
    Ok(block)
}

/// The bytes that a sysfs attribute counts in sectors of 512, on every device; 0 when there is none.
fn sectors(sysfs: &Path, attribute: &str) -> u64 {
    let count = std::fs::read_to_string(sysfs.join(attribute)).unwrap_or_default();
    count.trim().parse::<u64>().unwrap_or_default().saturating_mul(512)
}

/// The names a SCSI disk gives itself: the vendor identifier of page 0x83 (`t10.Google  PersistentDisk  NAME`),
/// and the serial number of page 0x80, behind its four bytes of header. An `NVMe` disk's serial is not its
/// name; its link is believed.
fn names(wwid: &[u8], page_80: &[u8]) -> Vec<String> {
    let wwid = String::from_utf8_lossy(wwid);
    let vendor = wwid.trim().strip_prefix("t10.Google").and_then(|id| id.split_whitespace().nth(1)).map(str::to_owned);
    let serial =
        page_80.get(4..).map(|serial| String::from_utf8_lossy(serial).trim_matches(['\0', ' ', '\n']).to_owned());
    vendor.into_iter().chain(serial).filter(|name| !name.is_empty()).collect()
}

impl Device {
    /// The numbers of the disk and of its partitions.
    pub(super) fn numbers(&self) -> Vec<Number> {
        std::iter::once(self.number).chain(self.block.partitions.iter().map(|partition| partition.number)).collect()
    }

    /// How many partitions the kernel sees.
    pub(super) fn partitions(&self) -> usize {
        self.block.partitions.len()
    }

    /// The number of the only partition, and how many bytes of the disk lie behind it.
    pub(super) fn behind_partition(&self) -> Option<(u32, u64)> {
        let [partition] = &self.block.partitions[..] else { return None };
        Some((partition.index, self.block.size.saturating_sub(partition.end)))
    }

    /// The device node of the only partition.
    pub(super) fn only_partition(&self, host: &Host) -> Result<PathBuf> {
        let [partition] = &self.block.partitions[..] else { bail!("the disk has {} partitions", self.partitions()) };
        let mut link = self.link.clone().into_os_string();
        link.push(format!("-part{}", partition.index));
        let candidates = [PathBuf::from(link), host.path("/dev").join(&partition.kernel_name)];
        for node in candidates.iter().filter_map(|candidate| candidate.canonicalize().ok()) {
            if block_number(&node).is_ok_and(|number| number == partition.number) {
                return Ok(node);
            }
        }
        bail!("no device node for partition {} of {}", partition.index, self.node.display())
    }

    /// Refuses a device that must not be touched, whatever is on it. `point` is where it may be mounted.
    pub(super) fn check(&self, mounts: &Mounts, point: Option<&Path>) -> Result<()> {
        let shown = self.node.display();
        let numbers = self.numbers();
        if mounts.at(Path::new("/")).is_some_and(|root| numbers.contains(&root.device)) {
            return Err(anyhow!("{shown} is the boot disk")).classify(
                Code::ConfigInvalid,
                "Set openclaw-data-disk to the device name of a data disk, or to none.",
            );
        }
        if self.block.read_only {
            return Err(anyhow!("{shown} is read-only")).classify(
                Code::DiskReadonly,
                "Detach the disk and attach it again with `--mode=rw`; then reboot the VM.",
            );
        }
        let mounted = point.is_some_and(|point| mounts.at(point).is_some_and(|here| numbers.contains(&here.device)));
        let elsewhere = mounts.of(&numbers).next().filter(|_| !mounted);
        let reason = if self.block.is_partition {
            "it is a partition, not a disk".to_owned()
        } else if let Some(holder) = self.block.holders.first() {
            format!("it is in use by {holder}")
        } else if let Some(mount) = elsewhere {
            format!("it is mounted on {0}; run `umount {0}` and take it out of /etc/fstab", mount.point.display())
        } else {
            return Ok(());
        };
        Err(anyhow!("{shown} is not used: {reason}"))
            .classify(Code::DiskForeign, "Free the disk or attach another one, then run `sudo openclaw-init boot`.")
    }
}

#[cfg(test)]
mod tests;
