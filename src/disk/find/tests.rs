#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::code_of;

fn disk(device_name: &str, index: u32) -> Disk {
    Disk { device_name: device_name.into(), index, read_only: false, kind: "PERSISTENT-BALANCED".into() }
}

fn instance(disks: Vec<Disk>) -> Instance {
    Instance {
        id: 7,
        name: "vm".into(),
        zone: "europe-west1-b".into(),
        project_id: "p".into(),
        attributes: crate::metadata::Attributes::default(),
        disks,
        spot: false,
        project_number: 0,
    }
}

fn named(name: &str) -> DiskChoice {
    DiskChoice::Named(name.into())
}

#[test]
fn the_place_is_chosen_by_device_name() {
    let last = LastDisk { device_name: "work".into(), uuid: "u".into(), instance_id: 7 };
    let boot_only = || vec![disk("persistent-disk-0", 0)];
    let both = || vec![disk("persistent-disk-0", 0), disk("openclaw-data", 1), disk("work", 2)];
    let read_only = || vec![Disk { read_only: true, ..disk("work", 1) }];
    let local = || vec![Disk { kind: "LOCAL-SSD".into(), ..disk("local-ssd-0", 1) }];
    let chosen = |name: &str| Ok(Place::Disk(name.into()));
    let cases = [
        (named("work"), both(), None, chosen("work")),
        (DiskChoice::Default, both(), None, chosen("openclaw-data")),
        (DiskChoice::Default, both(), Some(&last), chosen("openclaw-data")),
        (DiskChoice::BootDisk, both(), Some(&last), Ok(Place::BootDisk { warning: None })),
        (named("work"), boot_only(), None, Err(Code::DiskMissing)),
        (DiskChoice::Default, boot_only(), Some(&last), Err(Code::DiskMissing)),
        (named("persistent-disk-0"), both(), None, Err(Code::ConfigInvalid)),
        (DiskChoice::Default, vec![disk("openclaw-data", 0)], None, Err(Code::ConfigInvalid)),
        (named("local-ssd-0"), local(), None, Err(Code::ConfigInvalid)),
        (named(".."), vec![disk("..", 1)], None, Err(Code::ConfigInvalid)),
        (named("work"), read_only(), None, Err(Code::DiskReadonly)),
    ];
    for (choice, disks, last, expected) in cases {
        let found = select(&choice, &instance(disks.clone()), last).map_err(|error| code_of(&error));
        assert_eq!(found, expected, "{choice:?} of {disks:?}");
    }
    let default = select(&DiskChoice::Default, &instance(boot_only()), None).unwrap();
    assert!(matches!(default, Place::BootDisk { warning: Some(_) }), "the boot disk by default is worth a warning");
}

#[test]
fn a_missing_disk_is_named_with_the_attached_ones_and_the_command() {
    let error = select(&named("work"), &instance(vec![disk("boot", 0), disk("other", 1)]), None).unwrap_err();
    let sentence = crate::error::one_line(&error);
    let command = "gcloud compute instances attach-disk vm --zone=europe-west1-b --disk=DISK --device-name=work";
    for part in ["the data disk work is not attached", "attached are: boot, other", command] {
        assert!(sentence.contains(part), "{part} is missing in: {sentence}");
    }
}

#[test]
fn a_disk_reports_its_name_in_one_of_two_pages() {
    let cases: [(&[u8], &[u8], &[&str]); 6] = [
        (b"t10.Google  PersistentDisk  work\n", b"", &["work"]),
        (b"t10.Google  PersistentDisk  work\n", b"\0\x80\0\x04work", &["work", "work"]),
        (b"", b"\0\x80\0\x04work\0", &["work"]),
        (b"nvme.1ae0-6e766d655f636172642d7064", b"", &[]),
        (b"naa.6001405", b"\0\x80", &[]),
        (b"", b"", &[]),
    ];
    for (wwid, page, expected) in cases {
        assert_eq!(reported_names(wwid, page), expected, "{}", String::from_utf8_lossy(wwid));
    }
}

#[test]
fn sysfs_is_read_by_device_number() {
    let sysfs = tempfile::tempdir().unwrap();
    let write = |path: &str, content: &str| {
        let path = sysfs.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    assert_eq!(inspect(sysfs.path()).unwrap(), Block::default(), "a loop device of the lab reports nothing");
    write("ro", "1\n");
    write("sdb1/partition", "1\n");
    write("sdb1/dev", "8:17\n");
    write("sdb1/start", "2048\n");
    write("sdb1/size", "4096\n");
    write("size", "8192\n");
    write("queue/rotational", "0\n");
    write("holders/dm-0", "");
    let block = inspect(sysfs.path()).unwrap();
    assert!(block.read_only && !block.is_partition);
    assert_eq!(block.holders, ["dm-0"]);
    let partition =
        Partition { index: 1, kernel_name: "sdb1".into(), number: "8:17".parse().unwrap(), end: 6144 * 512 };
    assert_eq!(block.size, 8192 * 512);
    assert_eq!(block.partitions, [partition]);
}

#[test]
fn a_device_in_other_use_is_refused() {
    let boot = "27 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
    let elsewhere = "28 27 8:16 / /data rw - ext4 /dev/sdb rw\n";
    let partition = "28 27 8:17 / /data rw - ext4 /dev/sdb1 rw\n";
    let ours = "28 27 8:16 / /mnt/disks/work rw - ext4 /dev/sdb rw\n29 27 8:16 /openclaw /home/node/.openclaw rw - ext4 /dev/sdb rw\n";
    let part = || Partition { index: 1, kernel_name: "sdb1".into(), number: "8:17".parse().unwrap(), end: 0 };
    let plain = Block::default;
    let partitioned = || Block { partitions: vec![part()], ..plain() };
    let cases = [
        (boot, plain(), None),
        (ours, plain(), None),
        (elsewhere, plain(), Some(Code::DiskForeign)),
        (partition, partitioned(), Some(Code::DiskForeign)),
        ("28 27 8:16 / / rw - ext4 /dev/sdb rw\n", plain(), Some(Code::ConfigInvalid)),
        ("28 27 8:17 / / rw - ext4 /dev/sdb1 rw\n", partitioned(), Some(Code::ConfigInvalid)),
        (boot, Block { read_only: true, ..plain() }, Some(Code::DiskReadonly)),
        (boot, Block { holders: vec!["dm-0".into()], ..plain() }, Some(Code::DiskForeign)),
        (boot, Block { is_partition: true, ..plain() }, Some(Code::DiskForeign)),
    ];
    for (mounts, block, expected) in cases {
        let (link, node) = ("/dev/disk/by-id/google-work".into(), "/dev/sdb".into());
        let device = Device { name: "work".into(), link, node, number: "8:16".parse().unwrap(), block };
        let table: Mounts = mounts.parse().unwrap();
        let found = device.check(&table, table.at(Path::new("/mnt/disks/work")));
        assert_eq!(found.err().map(|error| code_of(&error)), expected, "{mounts} {device:?}");
    }
}

#[tokio::test]
async fn a_link_to_something_else_is_no_disk() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path());
    let links = host.path("/dev/disk/by-id");
    std::fs::create_dir_all(&links).unwrap();
    assert!(follow_links(&host, "work").unwrap_err().to_string().contains("no device link for the disk work"));
    std::fs::write(links.join("google-work"), "").unwrap();
    assert!(follow_links(&host, "work").unwrap_err().to_string().contains("is not a block device"));
}
