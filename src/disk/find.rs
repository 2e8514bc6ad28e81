//! Which disk holds the data, and which device that is.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::time::Instant;

use super::last_disk::LastDisk;
use super::mount::{DeviceNumber, Mount, Mounts};
use crate::config::DiskChoice;
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Host, blocking};
use crate::metadata::{Disk, Instance};

/// The device name that is looked for when `openclaw-data-disk` is not set.
const DEFAULT_NAME: &str = "openclaw-data";

/// How long udev may take to make a disk's links: a disk can be attached while the VM boots.
const UDEV_DEADLINE: Duration = Duration::from_secs(10);
const UDEV_INTERVAL: Duration = Duration::from_millis(250);
/// By then udev is asked to look again: events can be lost early in the boot (Google's CSI driver does the same).
const UDEV_TRIGGER_DEADLINE: Duration = Duration::from_secs(3);

/// Where the data lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The attached disk of this device name.
    Disk(String),
    /// The boot disk: by choice, or, with a warning, since no data disk was ever used.
    BootDisk { warning: Option<String> },
}

/// Decides, from the metadata alone, where the data lives. `last` is the data disk that this machine used before.
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

/// The name of the disk; an error when data must not or cannot live on it.
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
            "Attach it with `{}` and run `{RUN_AGAIN}` or reboot the VM; or set openclaw-data-disk to another device name, \
             or to none for a new state on the boot disk.",
            attach_command(name, instance)
        ),
    )
}

fn attach_command(name: &str, instance: &Instance) -> String {
    let Instance { name: vm, zone, .. } = instance;
    format!("gcloud compute instances attach-disk {vm} --zone={zone} --disk=DISK --device-name={name}")
}

/// A whole disk, verified to be the one that is attached under its device name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// The device name in the metadata.
    pub(super) name: String,
    /// The link that led to it.
    link: PathBuf,
    /// The device node.
    pub(super) node: PathBuf,
    pub(super) number: DeviceNumber,
    block: Block,
}

/// A block device in sysfs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Block {
    is_partition: bool,
    read_only: bool,
    /// Devices stacked upon it.
    holders: Vec<String>,
    /// The device name as the disk reports it, from each source that the kernel has: none, one or two.
    names: Vec<String>,
    /// In bytes.
    size: u64,
    partitions: Vec<Partition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Partition {
    index: u32,
    kernel_name: String,
    number: DeviceNumber,
    /// The offset of the first byte behind it.
    end: u64,
}

/// Finds the device of the disk that is attached as `name`, waiting for udev.
pub(super) async fn device(host: &Host, name: &str) -> Result<Device> {
    let started = Instant::now();
    let mut is_triggered = false;
    loop {
        let reason = match locate(host, name).await {
            Ok(device) => return Ok(device),
            Err(reason) => reason,
        };
        if started.elapsed() >= UDEV_DEADLINE {
            return Err(reason).classify(
                Code::DiskMissing,
                format!(
                    "The metadata says that it is attached: run `udevadm trigger --settle --subsystem-match=block`, then \
                     `{RUN_AGAIN}`; if that does not help, detach and attach the disk."
                ),
            );
        }
        if !is_triggered && started.elapsed() >= UDEV_TRIGGER_DEADLINE {
            is_triggered = true;
            udevadm(host, &["trigger", "--subsystem-match=block"]).await;
        }
        tokio::time::sleep(UDEV_INTERVAL).await;
    }
}

/// The nodes of the disk that is attached as `name` and of its only partition; none when there is no device yet.
pub(super) async fn nodes(host: &Host, name: &str) -> Vec<PathBuf> {
    let Ok(device) = locate(host, name).await else { return Vec::new() };
    let partition = device.only_partition(host).ok();
    std::iter::once(device.node).chain(partition).collect()
}

/// Runs udevadm. A failure is none: a machine without a working udev has its links from elsewhere.
pub(super) async fn udevadm(host: &Host, args: &[&str]) {
    if let Err(error) = host.command("udevadm").args(args).timeout(UDEV_DEADLINE).run().await {
        tracing::debug!("{error:#}");
    }
}

async fn locate(host: &Host, name: &str) -> Result<Device> {
    let (host, name) = (host.clone(), name.to_owned());
    blocking(move || follow_links(&host, &name)).await
}

/// Finds the device by udev's links and verifies it by the name that the disk reports.
fn follow_links(host: &Host, name: &str) -> Result<Device> {
    let mut reason = anyhow!("no device link for the disk {name} in /dev/disk/by-id");
    for prefix in ["google-", "scsi-0Google_PersistentDisk_", "nvme-Google_PersistentDisk_"] {
        let link = host.path("/dev/disk/by-id").join(format!("{prefix}{name}"));
        let Ok(node) = link.canonicalize() else { continue };
        let number = block_number(&node)?;
        let block = inspect(&host.path("/sys/dev/block").join(number.to_string()))?;
        if block.names.is_empty() || block.names.iter().any(|reported| reported == name) {
            return Ok(Device { name: name.to_owned(), link, node, number, block });
        }
        // Links that point to the wrong device happen (Google's CSI driver, `VerifyDevicePath`).
        let names = block.names.join(", ");
        reason = anyhow!("{} leads to {}, which calls itself {names}", link.display(), node.display());
    }
    Err(reason)
}

fn block_number(node: &Path) -> Result<DeviceNumber> {
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
        names: reported_names(&attribute("device/wwid"), &attribute("device/vpd_pg80")),
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

/// An attribute that sysfs counts in sectors of 512 bytes on every device, in bytes; 0 when there is none.
fn sectors(sysfs: &Path, attribute: &str) -> u64 {
    let count = std::fs::read_to_string(sysfs.join(attribute)).unwrap_or_default();
    count.trim().parse::<u64>().unwrap_or_default().saturating_mul(512)
}

/// The names that a SCSI disk reports: in the vendor identifier of page 0x83 (`t10.Google  PersistentDisk  NAME`), and
/// as the serial number of page 0x80, behind its header of four bytes. An `NVMe` disk's serial number is not its name;
/// its link is trusted.
fn reported_names(wwid: &[u8], page_80: &[u8]) -> Vec<String> {
    let wwid = String::from_utf8_lossy(wwid);
    let vendor = wwid.trim().strip_prefix("t10.Google").and_then(|id| id.split_whitespace().nth(1)).map(str::to_owned);
    let serial =
        page_80.get(4..).map(|serial| String::from_utf8_lossy(serial).trim_matches(['\0', ' ', '\n']).to_owned());
    vendor.into_iter().chain(serial).filter(|name| !name.is_empty()).collect()
}

impl Device {
    /// The numbers of the disk and of its partitions.
    pub(super) fn numbers(&self) -> Vec<DeviceNumber> {
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

    /// Refuses a device that must not be touched, regardless of its content. `mounted` is what is mounted where the
    /// disk belongs.
    pub(super) fn check(&self, mounts: &Mounts, mounted: Option<&Mount>) -> Result<()> {
        let display_node = self.node.display();
        let numbers = self.numbers();
        if mounts.at(Path::new("/")).is_some_and(|root| numbers.contains(&root.device)) {
            return Err(anyhow!("{display_node} is the boot disk")).classify(
                Code::ConfigInvalid,
                "Set openclaw-data-disk to the device name of a data disk, or to none.",
            );
        }
        if self.block.read_only {
            return Err(anyhow!("{display_node} is read-only")).classify(
                Code::DiskReadonly,
                "Detach the disk and attach it again with `--mode=rw`; then reboot the VM.",
            );
        }
        let is_mounted = mounted.is_some_and(|mounted| numbers.contains(&mounted.device));
        let elsewhere = mounts.of(&numbers).next().filter(|_| !is_mounted);
        let reason = if self.block.is_partition {
            "it is a partition, not a disk".to_owned()
        } else if let Some(holder) = self.block.holders.first() {
            format!("it is in use by {holder}")
        } else if let Some(mount) = elsewhere {
            format!("it is mounted on {0}; run `umount {0}` and take it out of /etc/fstab", mount.point.display())
        } else {
            return Ok(());
        };
        Err(anyhow!("{display_node} is not used: {reason}"))
            .classify(Code::DiskForeign, format!("Free the disk or attach another one, then run `{RUN_AGAIN}`."))
    }
}

#[cfg(test)]
mod tests;
