#![allow(clippy::unwrap_used)]

use tempfile::NamedTempFile;

use super::*;

/// A sparse file of `size` bytes with these bytes that are not zero.
fn image(size: u64, spots: &[(u64, &[u8])]) -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(size).unwrap();
    for (offset, bytes) in spots {
        image.as_file().write_all_at(bytes, *offset).unwrap();
    }
    image
}

fn look(image: &NamedTempFile, choice: ProofChoice) -> Finding {
    let (progress, _heard) = watch::channel(None);
    read_until_decided(&mut Disk::open(image.path(), Written::default()).unwrap(), choice, &progress).unwrap()
}

fn random(below: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes) % below
}

#[test]
fn a_disk_is_read_whole_or_sampled_or_not_formatted_as_its_pace_allows() {
    use ProofChoice::{Auto, Full as AskedFull, Sampled as AskedSampled};
    use Reading::{Full, Sampled};
    let tib = 1024 * GIB;
    // choice, size, present reading, MiB read and all MiB, seconds, what goes on
    let cases = [
        (Auto, 10 * GIB, Full, (10, 10_240), 29, Some(Full)),
        (Auto, 10 * GIB, Full, (256, 10_240), 30, Some(Full)),
        (Auto, 10 * GIB, Full, (255, 10_240), 30, None),
        (Auto, 64 * GIB, Full, (100, 65_536), 30, None),
        (Auto, 64 * GIB + 1, Full, (100, 65_537), 30, Some(Sampled)),
        (Auto, tib, Full, (30_000, 1_048_576), 30, Some(Full)),
        (Auto, tib, Full, (3_000, 1_048_576), 30, Some(Sampled)),
        (Auto, tib, Sampled, (30_000, 1_048_576), 30, Some(Sampled)),
        (Auto, 16 * tib, Sampled, (30_000, 16_777_216), 30, None),
        (Auto, 10 * GIB, Full, (5_000, 10_240), 700, None),
        (AskedFull, 16 * tib, Full, (1, 16_777_216), 3_600, Some(Full)),
        (AskedSampled, 16 * tib, Sampled, (1, 16_777_216), 3_600, Some(Sampled)),
    ];
    for (choice, size, reading, (done, of), seconds, expected) in cases {
        let pace = Pace { done, of, elapsed: Duration::from_secs(seconds) };
        assert_eq!(decide(choice, size, reading, pace), expected, "{choice:?} {size} {reading:?} {pace:?}");
    }
}

/// What an operator asks for may take as long as it takes: the run's deadline moves with it. Unasked, it stays.
#[tokio::test]
async fn the_runs_deadline_grows_with_a_full_reading_that_was_asked_for() {
    let image = image(2 * GIB, &[]);
    for (choice, grows) in [(ProofChoice::Full, true), (ProofChoice::Auto, false)] {
        let host = Host::new("/");
        let finding = read(&host, image.path(), choice, Written::default()).await.unwrap();
        assert!(matches!(finding, Finding::Zeros(_)), "{finding:?}");
        assert_eq!(!host.ledger().borrow().extension.is_zero(), grows, "{choice:?}");
    }
}

#[test]
fn the_reading_waits_for_all_other_work() {
    let urgency = behind_the_others(|| rustix::process::getpriority_process(None).unwrap());
    assert_eq!(urgency, LEAST_URGENT);
}

#[test]
fn a_full_reading_finds_any_byte_and_says_what_it_read() {
    let size = 512 * MIB + 512;
    let zeros = look(&image(size, &[]), ProofChoice::Auto);
    assert_eq!(zeros, Finding::Zeros(Proof { reading: Reading::Full, bytes: size }));
    for at in [0, CHUNK_BYTES - 1, CHUNK_BYTES, size - 1, random(size)] {
        assert_eq!(look(&image(size, &[(at, b"x")]), ProofChoice::Auto), Finding::NonZero(at));
    }
}

#[test]
fn samples_look_at_every_copy_of_a_superblock() {
    let size = 100 * GIB;
    let zeros = look(&image(size, &[]), ProofChoice::Sampled);
    assert!(
        matches!(zeros, Finding::Zeros(Proof { reading: Reading::Sampled, bytes }) if bytes > 400 * MIB),
        "{zeros:?}"
    );
    let (btrfs, ext4, xfs) = (64 * MIB + 64, (32_768 * 4096) + 56, size / 4);
    for at in [btrfs, btrfs + 63 * 512, btrfs + MIB, ext4, ext4 + MIB, xfs, GIB + 512, size - 4096] {
        assert_eq!(look(&image(size, &[(at, b"x")]), ProofChoice::Sampled), Finding::NonZero(at));
    }
}

/// So many disks with one block of somebody's data at a random place; none may pass.
fn one_block_is_found(disks: u32) {
    let size = 10 * GIB;
    for _ in 0..disks {
        let at = random(size / BLOCK_BYTES) * BLOCK_BYTES;
        let found = look(&image(size, &[(at, &[1; 4096])]), ProofChoice::Auto);
        assert_eq!(found, Finding::NonZero(at));
    }
}

/// The same with 2 MiB on a disk that is sampled.
fn two_mib_are_found(disks: u32) {
    let (size, data) = (100 * GIB, vec![1; 2 << 20]);
    for _ in 0..disks {
        let at = random(size - 2 * MIB);
        let found = look(&image(size, &[(at, &data)]), ProofChoice::Sampled);
        assert!(matches!(found, Finding::NonZero(_)), "2 MiB at {at}: {found:?}");
    }
}

#[test]
#[ignore = "reads 100 GiB of holes: cargo lab test machine"]
fn somebodys_data_is_found_wherever_it_is() {
    one_block_is_found(20);
    two_mib_are_found(5);
}

#[test]
#[ignore = "reads 5 TiB of holes: cargo lab test --long"]
fn somebodys_data_is_found_on_a_thousand_disks() {
    one_block_is_found(1000);
    two_mib_are_found(200);
}

#[test]
fn copies_of_superblocks_are_where_mkfs_puts_them() {
    let is_covered = |at: u64, size: u64| {
        let places = fixed_places(size);
        assert!(places.iter().any(|(start, length)| *start <= at && at + 1024 <= start + length), "{at} of {size}");
    };
    // From `mke2fs -n` on 1 GiB with 1 KiB, 2 KiB and 4 KiB blocks, the last with `sparse_super2`; on 100 GiB with
    // clusters of 8 KiB and of 128 KiB (`bigalloc`).
    let gib = [(8193, 1024), (24577, 1024), (16384, 2048), (32768, 4096), (98304, 4096), (229_376, 4096)];
    let clusters = [(65536, 4096), (196_608, 4096), (5_308_416, 4096), (1_048_576, 4096), (9_437_184, 4096)];
    for (copies, size) in [(&gib[..], GIB), (&clusters[..], 100 * GIB)] {
        for base in BASES {
            for (block, bytes) in copies {
                is_covered(base + block * bytes, size + MIB);
            }
        }
    }
    // Where mkfs.xfs puts the groups of 8 TiB, and zpool the last labels of a whole disk.
    let (size, last) = (8 << 40, (8_u64 << 40) - END_BYTES);
    for base in BASES {
        for group in 1..8 {
            is_covered(base + group * XFS_GROUP_BYTES, size);
        }
    }
    is_covered(last - MIB, size);
    is_covered(last - 1024, size);
    let longest = fixed_places(64 << 40).len();
    assert!(longest < 4000, "{longest}: a look must stay short on the largest disk");
}
