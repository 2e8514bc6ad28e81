#![allow(clippy::unwrap_used)]

use std::io::Write as _;

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1024 * MIB;

/// A sparse image file of `size` bytes, with `bytes` written at `offset`.
fn image(size: u64, offset: u64, bytes: &[u8]) -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(size).unwrap();
    image.as_file().write_all_at(bytes, offset).unwrap();
    image
}

async fn look_at(image: &tempfile::NamedTempFile) -> Result<Content> {
    content(&Host::new("/"), image.path()).await
}

async fn run(program: &str, args: &[&str], image: &tempfile::NamedTempFile) {
    Host::new("/").command(program).args(args).arg(image.path()).run().await.unwrap();
}

#[tokio::test]
async fn zeros_at_both_ends_may_be_blank() {
    assert_eq!(look_at(&image(SIZE, 0, b"")).await.unwrap(), Content::Blank);
    let places = [3 * MIB, SIZE - 5, SIZE - END_BYTES];
    for offset in places {
        let found = look_at(&image(SIZE, offset, b"x")).await.unwrap();
        assert_eq!(found, Content::Unknown(offset));
    }
}

#[tokio::test]
async fn random_bytes_and_small_devices_are_not_blank() {
    let mut random = vec![0; 4096];
    getrandom::fill(&mut random).unwrap();
    assert!(matches!(look_at(&image(SIZE, 0, &random)).await.unwrap(), Content::Unknown(_)));
    assert!(matches!(look_at(&image(0, 0, b"")).await.unwrap(), Content::Other(_)));
    assert!(matches!(look_at(&image(MIN_BYTES - 1, 0, b"")).await.unwrap(), Content::Other(_)));
}

/// What `dumpe2fs` says of a superblock, in our words. It is of `e2fsprogs`, as are tools that the program itself runs.
async fn dumped(image: &tempfile::NamedTempFile) -> Superblock {
    let output = Host::new("/").command("dumpe2fs").arg("-h").arg(image.path()).run().await.unwrap();
    let value = |key: &str| {
        let line = output.stdout.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    let number = |key: &str| value(key).parse::<u64>().unwrap();
    let needed = number("Block count") * number("Block size");
    let has = |feature: &str| value("Filesystem features").split(' ').any(|word| word == feature);
    let orphans = value("First orphan inode");
    Superblock {
        uuid: value("Filesystem UUID"),
        label: value("Filesystem volume name").replace("<none>", ""),
        clean: value("Filesystem state") == "clean"
            && !has("needs_recovery")
            && !has("orphan_present")
            && ["", "0"].contains(&orphans.as_str()),
        used: value("Last mount time") != "n/a" || number("Mount count") > 0,
        truncated: needed > SIZE,
        spare: SIZE.saturating_sub(needed),
    }
}

/// File systems of random options, and what has become of some.
#[tokio::test]
async fn superblocks_are_read_as_another_reader_does() {
    const FEATURES: [&str; 10] = [
        "64bit",
        "flex_bg",
        "metadata_csum",
        "has_journal",
        "extent",
        "sparse_super2",
        "orphan_file",
        "quota",
        "ea_inode",
        "huge_file",
    ];
    const EDITS: [&[&str]; 5] = [
        &[],
        &["set_super_value state 0"],
        &["set_super_value state 3"],
        &["set_super_value mnt_count 7", "set_super_value mtime 20261123150000"],
        &["set_super_value last_orphan 12"],
    ];
    let (mut seed, mut made) = ([0; 1600], 0);
    getrandom::fill(&mut seed).unwrap();
    for random in seed.chunks(16) {
        let features = FEATURES.iter().zip(random).filter(|(_, byte)| **byte < 128).map(|(feature, _)| *feature);
        let features = features.collect::<Vec<_>>().join(",");
        let features = if features.is_empty() { "none".to_owned() } else { format!("none,{features}") };
        let (block, label) =
            (["1024", "2048", "4096"][usize::from(random[10]) % 3], "x".repeat(usize::from(random[11]) % 17));
        let blocks = SIZE / block.parse::<u64>().unwrap() - u64::from(random[12]);
        let image = image(SIZE, 0, b"");
        let args = ["-F", "-q", "-t", "ext4", "-O", &features, "-b", block, "-L", &label];
        let mut mkfs = Host::new("/").command("mkfs.ext4").args(args);
        mkfs = mkfs.arg(image.path()).arg(blocks.to_string());
        // Some features exclude each other.
        if mkfs.run().await.is_err() {
            continue;
        }
        made += 1;
        if made > 12 {
            break;
        }
        for edit in EDITS[usize::from(random[13]) % EDITS.len()] {
            run("debugfs", &["-w", "-R", edit], &image).await;
        }
        assert_eq!(superblock(image.path()).await.unwrap(), Some(dumped(&image).await), "{args:?} {blocks} {random:?}");
    }
    assert!(made > 3, "{made} were made");
}

#[tokio::test]
async fn ext4_is_read_as_the_tools_wrote_it() {
    let image = image(SIZE, 0, b"");
    run("mkfs.ext4", &["-q", "-L", "theirs", "-U", "01234567-89ab-cdef-0123-456789abcdef"], &image).await;
    let clean = Superblock {
        uuid: "01234567-89ab-cdef-0123-456789abcdef".into(),
        label: "theirs".into(),
        clean: true,
        used: false,
        truncated: false,
        spare: 0,
    };
    assert_eq!(look_at(&image).await.unwrap(), Content::Ext4(clean.clone()));
    assert_eq!(superblock(image.path()).await.unwrap(), Some(clean.clone()));

    run("debugfs", &["-w", "-R", "ssv state 0"], &image).await;
    assert_eq!(look_at(&image).await.unwrap(), Content::Ext4(Superblock { clean: false, ..clean.clone() }));
    run("debugfs", &["-w", "-R", "ssv state 3"], &image).await;
    assert_eq!(look_at(&image).await.unwrap(), Content::Ext4(Superblock { clean: false, ..clean.clone() }));
    run("debugfs", &["-w", "-R", "ssv state 1"], &image).await;
    run("debugfs", &["-w", "-R", "feature needs_recovery"], &image).await;
    assert_eq!(look_at(&image).await.unwrap(), Content::Ext4(Superblock { clean: false, ..clean.clone() }));
    run("debugfs", &["-w", "-R", "feature -needs_recovery"], &image).await;

    run("debugfs", &["-w", "-R", "ssv last_orphan 12"], &image).await;
    assert_eq!(look_at(&image).await.unwrap(), Content::Ext4(Superblock { clean: false, ..clean.clone() }));
    run("debugfs", &["-w", "-R", "ssv last_orphan 0"], &image).await;

    image.as_file().set_len(SIZE / 2 + MIB).unwrap();
    assert_eq!(look_at(&image).await.unwrap(), Content::Ext4(Superblock { truncated: true, ..clean }));
}

#[tokio::test]
async fn what_is_not_ext4_is_named() {
    let swap = image(SIZE, 0, b"");
    run("mkswap", &["-q"], &swap).await;
    assert_eq!(look_at(&swap).await.unwrap(), Content::Other("swap".into()));

    let mut table = [0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 0, 16, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let dos = image(SIZE, 0, &table);
    assert_eq!(look_at(&dos).await.unwrap(), Content::Table("dos".into()));

    let mut both = image(SIZE, 0, b"");
    run("mkfs.ext4", &["-q"], &both).await;
    both.write_all(&table).unwrap();
    assert!(matches!(look_at(&both).await.unwrap(), Content::Other(_)));
}

proptest! {
    /// With the magic number and a plausible size of blocks, whatever the rest is.
    #[test]
    fn any_superblock_is_one_or_none(mut bytes in proptest::collection::vec(any::<u8>(), 2048), size in any::<u64>(), bits in 0..8_u8) {
        let mut file = tempfile::tempfile().unwrap();
        bytes[0x400 + 0x38..0x400 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[0x400 + 0x18..0x400 + 0x1c].copy_from_slice(&[bits, 0, 0, 0]);
        file.write_all(&bytes).unwrap();
        let found = read_superblock(&file, size).unwrap();
        prop_assert_eq!(found.is_some(), bits <= 6);
        if let Some(found) = found {
            prop_assert_eq!(found.uuid.len(), 36);
            prop_assert!(!found.truncated || found.spare == 0);
        }
    }
}
