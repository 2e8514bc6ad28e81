//! From directories through a file to directories again; and every file that must not be restored.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tar::{EntryType, Header as TarHeader};

use super::*;
use crate::state::Owner;

const CREATED: &str = "2026-11-23T15:00:00Z";

fn header() -> Header {
    let record = Record { owner: Owner::Version("2026.9.6".into()), ..Record::default() };
    Header::new(CREATED.parse().unwrap(), "openclaw-gateway".into(), How::Stopped, record)
}

/// A state with what a backup must keep.
fn fill(state: &Path, config: &Path) -> Result<()> {
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    fs::create_dir_all(state.join("workspace/empty"))?;
    fs::create_dir_all(config)?;
    fs::write(config.join("key"), "k")?;
    fs::write(state.join(".env"), "TOKEN=x\n")?;
    mode(&state.join(".env"), 0o600)?;
    fs::write(state.join("workspace/run.sh"), "#!/bin/sh\n")?;
    mode(&state.join("workspace/run.sh"), 0o750)?;
    mode(&state.join("workspace/empty"), 0o500)?;
    fs::write(state.join("large"), vec![7; 3 << 20])?;
    let long = state.join("workspace").join("n".repeat(120)).join("m".repeat(120));
    fs::create_dir_all(&long)?;
    fs::write(long.join("deep"), "d")?;
    fs::write(state.join("workspace/\u{fc}ml\u{e4}ut \\ \n"), "u")?;
    symlink("run.sh", state.join("workspace/link"))?;
    symlink("/nowhere/../x//y/", state.join("workspace/dangling"))?;
    symlink("t".repeat(300), state.join("workspace/far"))?;
    symlink("..", state.join("workspace/loop"))?;
    fs::hard_link(state.join("large"), state.join("workspace/large too"))?;
    Ok(())
}

/// What is in a directory, as text: kind, mode, time, content or target.
fn look(top: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![top.to_owned()]);
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        let what = if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
            "directory".to_owned()
        } else if metadata.is_symlink() {
            format!("link to {}", fs::read_link(&path)?.display())
        } else {
            format!(
                "{} names, {:?}",
                metadata.nlink(),
                fs::read(&path)?.iter().map(|&byte| u64::from(byte)).sum::<u64>()
            )
        };
        let mode = if metadata.is_symlink() { 0 } else { metadata.mode() };
        found.insert(path.strip_prefix(top)?.to_owned(), format!("{mode:o} {} {what}", metadata.mtime()));
    }
    Ok(found)
}

fn names() -> Result<FirstNames> {
    FirstNames::new(tempfile::tempdir()?.path())
}

fn packed(state: &Path, config: &Path) -> Result<(tempfile::NamedTempFile, Size)> {
    let file = tempfile::NamedTempFile::new()?;
    let packer = Packer::new(Writer::new(file.as_file(), &header())?, names()?, 1 << 30, &|_| Ok(()));
    let (size, missing) = pack(packer, state, config, None)?;
    assert_eq!(missing.warnings().collect::<Vec<_>>(), Vec::<String>::new());
    Ok((file, size))
}

/// Unpacks what is in `bytes`, as far as it gets.
fn unpacked(bytes: &[u8], to: &Path) -> Result<(Header, Size)> {
    let mut unpacker = Unpacker::new(&to.join("state"), &to.join("config"))?;
    let read = archive::read(bytes, |member, content| unpacker.add(member, content))?;
    unpacker.finish()?;
    Ok(read)
}

/// Files can only be given to the gateway's user by root, as this program runs.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn what_is_restored_is_what_was_there() -> Result<()> {
    let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (state, config) = (from.path().join("state"), from.path().join("config"));
    fill(&state, &config)?;
    let (file, size) = packed(&state, &config)?;
    let bytes = fs::read(file.path())?;
    assert_eq!(archive::read(&bytes[..], |_, _| Ok(()))?, (header(), size));
    assert_eq!(size.members, 17);
    if is_root() {
        assert_eq!(unpacked(&bytes, to.path())?, (header(), size));
        assert_eq!(look(to.path())?.split_off(Path::new("c")), look(from.path())?.split_off(Path::new("c")));
        let owners = fs::symlink_metadata(to.path().join("state/workspace/link"))?;
        assert_eq!((owners.uid(), owners.gid()), (1000, 1000));
    }
    Ok(())
}

#[test]
fn a_file_that_was_cut_or_changed_anywhere_is_refused() -> Result<()> {
    let from = tempfile::tempdir()?;
    let (state, config) = (from.path().join("state"), from.path().join("config"));
    fs::create_dir_all(&config)?;
    fs::create_dir_all(&state)?;
    fs::write(state.join(".env"), "TOKEN=x\n")?;
    let (file, _) = packed(&state, &config)?;
    let whole = fs::read(file.path())?;
    let is_good = |bytes: &[u8]| archive::read(bytes, |_, _| Ok(())).is_ok();
    assert!(is_good(&whole));
    for length in 0..whole.len() {
        assert!(!is_good(&whole[..length]), "{length} of {} bytes", whole.len());
    }
    let inflated = |bytes: &[u8]| {
        let mut inflated = Vec::new();
        flate2::read::GzDecoder::new(bytes).read_to_end(&mut inflated).ok().map(|_| inflated)
    };
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        // Some bits of gzip's own mean nothing: a time, a code that is not used.
        assert!(!is_good(&changed) || inflated(&changed) == inflated(&whole), "the byte {at} changed");
    }
    assert!(!is_good(&[&whole[..], b"x"].concat()), "more after its end");
    Ok(())
}

/// The archive that a gateway would make: its databases are copies, directories come last or never.
fn native_archive(file: &Path) -> Result<()> {
    let mut tar = tar::Builder::new(GzEncoder::new(File::create(file)?, Compression::fast()));
    let files = [
        ("payload/posix/home/node/.openclaw/openclaw.json", "{}"),
        ("payload/posix/home/node/.openclaw/state/openclaw.sqlite", "a consistent copy"),
        ("payload/posix/opt/elsewhere", "x"),
        ("manifest.json", r#"{"schemaVersion":1,"assets":[]}"#),
    ];
    for (path, content) in files {
        let mut header = TarHeader::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, Path::new("2026-openclaw-backup").join(path), content.as_bytes())?;
    }
    Ok(tar.into_inner()?.finish()?.sync_all()?)
}

#[test]
fn what_the_gateways_own_backup_leaves_out_is_added() -> Result<()> {
    let from = tempfile::tempdir()?;
    let (state, config) = (from.path().join("state"), from.path().join("config"));
    for directory in ["state", "npm/p", "tmp", "cache"] {
        fs::create_dir_all(state.join(directory))?;
    }
    fs::create_dir_all(&config)?;
    for file in [
        "openclaw.json",
        "state/openclaw.sqlite",
        "state/openclaw.sqlite-wal",
        "npm/p/i.js",
        "npm/p/x.sqlite",
        "tmp/lock",
        "cache/page",
    ] {
        fs::write(state.join(file), "in use")?;
    }
    fs::write(config.join("key"), "k")?;
    let native = config.join(".native.tar.gz");
    native_archive(&native)?;
    let mut file = tempfile::tempfile()?;
    let packer = Packer::new(Writer::new(&file, &header())?, names()?, 1 << 30, &|_| Ok(()));
    let (_, missing) = pack(packer, &state, &config, Some(&Native { file: native, limit: 1 << 20 }))?;
    io::Seek::rewind(&mut file)?;
    let mut found = BTreeMap::new();
    archive::read(&file, |member, content| {
        let mut text = String::new();
        content.read_to_string(&mut text)?;
        found.insert(member.path.display().to_string(), text);
        Ok(())
    })?;
    let expected = [
        ("config", ""),
        ("config/key", "k"),
        ("state", ""),
        ("state/npm", ""),
        ("state/npm/p", ""),
        ("state/npm/p/i.js", "in use"),
        ("state/openclaw.json", "{}"),
        ("state/state", ""),
        ("state/state/openclaw.sqlite", "a consistent copy"),
    ];
    let found: Vec<_> = found.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    assert_eq!(found, expected);
    let only = |path: &str| LeftOut { count: 1, first: Some(path.into()) };
    assert_eq!(missing.databases, only("state/npm/p/x.sqlite"));
    assert_eq!(missing.elsewhere, only("/opt/elsewhere"));
    assert_eq!(missing.warnings().count(), 2);
    Ok(())
}

/// A member's path, kind and link.
type Forged<'a> = (&'a str, EntryType, &'a str);

/// An archive that somebody else put together, with a valid gzip frame and the header of a real one.
fn forged(members: &[Forged<'_>], header: &str) -> Vec<u8> {
    forged_at(0, members, header)
}

/// The same, last changed at this time.
fn forged_at(modified: u64, members: &[Forged<'_>], header: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut add = |path: &str, kind, link: &str, content: &[u8]| {
        let mut header = TarHeader::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(modified);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, content).unwrap();
    };
    add("openclaw-backup.json", EntryType::Regular, "", header.as_bytes());
    for (path, kind, link) in members {
        add(path, *kind, link, if *kind == EntryType::Regular { b"evil" } else { b"" });
    }
    let mut gzip = tar.into_inner().unwrap();
    gzip.flush().unwrap();
    gzip.finish().unwrap()
}

#[test]
fn nothing_gets_out_of_the_directories_it_is_unpacked_to() -> Result<()> {
    use EntryType::{Block, Directory, Fifo, Link, Regular, Symlink};
    let outside = tempfile::tempdir()?;
    let victim = outside.path().join("victim");
    let (victim, dir) = (victim.to_str().unwrap(), outside.path().to_str().unwrap());
    let cases: &[(&str, &[Forged<'_>])] = &[
        ("above", &[("../victim", Regular, "")]),
        ("above, from inside", &[("state/../../victim", Regular, "")]),
        ("absolute", &[(victim, Regular, "")]),
        ("beside", &[("victim", Regular, "")]),
        ("nearly inside", &[("statement/victim", Regular, "")]),
        ("a device", &[("state/victim", Block, "")]),
        ("a fifo", &[("state/victim", Fifo, "")]),
        ("hard link to the outside", &[("state/victim", Link, "/etc/passwd")]),
        ("hard link above", &[("state/victim", Link, "state/../../victim")]),
        ("through a link", &[("state/a", Symlink, dir), ("state/a/victim", Regular, "")]),
        (
            "through a directory's link",
            &[("state/a", Symlink, dir), ("state/a", Directory, ""), ("state/a/victim", Regular, "")],
        ),
        ("a link over a file", &[("state/a", Regular, ""), ("state/a", Symlink, victim)]),
        ("hard link to a link", &[("state/a", Symlink, victim), ("state/b", Link, "state/a")]),
    ];
    let header = serde_json::to_string(&header())?;
    for (case, members) in cases {
        let to = tempfile::tempdir()?;
        assert!(unpacked(&forged(members, &header), to.path()).is_err(), "{case}");
        assert_eq!(fs::read_dir(outside.path())?.count(), 0, "{case}");
        assert!(!to.path().join("victim").exists(), "{case}");
    }
    Ok(())
}

/// Unpacking follows no link even if the plan had let one pass.
#[test]
fn nothing_is_unpacked_through_a_link() -> Result<()> {
    let (to, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut unpacker = Unpacker::new(&to.path().join("state"), &to.path().join("config"))?;
    symlink(outside.path(), to.path().join("state/a"))?;
    let member = |path: &str, kind| plan::Member { path: path.into(), kind, mode: 0o600, owner: (0, 0), modified: 0 };
    for refused in [
        member("state/a", plan::Kind::Directory),
        member("state/a/victim", plan::Kind::File(0)),
        member("state/a/b/victim", plan::Kind::File(0)),
        member("state/a/victim", plan::Kind::Symlink("x".into())),
    ] {
        assert!(unpacker.add(&refused, &mut io::empty()).is_err(), "{refused:?}");
    }
    assert_eq!(fs::read_dir(outside.path())?.count(), 0);
    Ok(())
}

/// A directory keeps its time whatever comes into it later; what has no member of its own is the gateway's alone.
#[test]
fn members_may_come_in_any_order() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let to = tempfile::tempdir()?;
    let mut unpacker = Unpacker::new(&to.path().join("state"), &to.path().join("config"))?;
    let member =
        |path: &str, kind, modified| plan::Member { path: path.into(), kind, mode: 0o750, owner: (0, 0), modified };
    for member in [
        member("state/a/b/first", plan::Kind::File(0), 1),
        member("state/a", plan::Kind::Directory, 7),
        member("state/a/second", plan::Kind::File(0), 2),
        member("state/a/b/link", plan::Kind::Symlink("x".into()), 3),
    ] {
        unpacker.add(&member, &mut io::empty())?;
    }
    unpacker.finish()?;
    for (path, modified, mode) in [("state/a", 7, 0o750), ("state/a/b", 0, 0o700), ("state", 0, 0o700)] {
        let found = fs::metadata(to.path().join(path))?;
        assert_eq!((found.mtime(), found.mode() & 0o7777, found.uid()), (modified, mode, 1000), "{path}");
    }
    Ok(())
}

/// What verification accepts can be unpacked: it refuses what unpacking could not make.
#[test]
fn what_cannot_be_restored_is_not_verified() -> Result<()> {
    use EntryType::{Directory, Link, Regular, Symlink};
    let cases: &[(&str, &[Forged<'_>])] = &[
        ("is no file before it", &[("state/a", Link, "state/missing")]),
        ("is no file before it", &[("state/d", Directory, ""), ("state/a", Link, "state/d")]),
        ("came before", &[("state/a", Regular, ""), ("state/a", Regular, "")]),
        ("came before", &[("state/a", Directory, ""), ("state/a", Regular, "")]),
        ("came before", &[("state/a/b", Regular, ""), ("state/a", Symlink, "b")]),
        ("came before", &[("state", Regular, "")]),
        ("is no directory", &[("state/a", Regular, ""), ("state/a/b", Regular, "")]),
        ("is no directory", &[("state/a", Symlink, "/etc"), ("state/a/b/c", Regular, "")]),
    ];
    let header = serde_json::to_string(&header())?;
    for (reason, members) in cases {
        let bytes = forged(members, &header);
        let error = archive::read(&bytes[..], |_, _| Ok(())).err().context("it was verified")?;
        assert!(crate::error::one_line(&error).contains(reason), "{members:?}: {error:#}");
    }
    let late = forged_at(1 << 63, &[("state/a", Regular, "")], &header);
    let error = archive::read(&late[..], |_, _| Ok(())).err().context("it was verified")?;
    assert!(crate::error::one_line(&error).contains("no time"), "{error:#}");
    let names: Vec<String> = (0..65_000).map(|number| format!("state/{number}")).collect();
    let links = names.iter().map(|name| (name.as_str(), Link, "state/a"));
    let linked: Vec<Forged<'_>> = [("state/a", Regular, "")].into_iter().chain(links).collect();
    let error = archive::read(&forged(&linked, &header)[..], |_, _| Ok(())).err().context("it was verified")?;
    let sentence = crate::error::one_line(&error);
    assert!(sentence.contains("state/64999") && sentence.contains("more than 65000 names"), "{sentence}");
    let nested = format!("state{}/file", "/d".repeat(1500));
    for path in
        [nested.as_str(), &format!("state/{}", "n".repeat(256)), &format!("state{}", "/nnnnnnnnnnnnnnnn".repeat(250))]
    {
        let mut plan = plan::Plan::new();
        let member =
            plan::Member { path: path.into(), kind: plan::Kind::Directory, mode: 0o700, owner: (0, 0), modified: 0 };
        assert!(plan.admit(&member).is_err(), "{} bytes", path.len());
    }
    Ok(())
}

/// Directories that no member is, but that members are in, are made, too.
#[test]
fn directories_without_a_member_are_counted() {
    let mut plan = plan::Plan::new();
    let refused = (0..20_000).find_map(|number| {
        let path = format!("state/{number}{}/f", "/a".repeat(250)).into();
        let kind = plan::Kind::File(0);
        plan.admit(&plan::Member { path, kind, mode: 0o600, owner: (0, 0), modified: 0 }).err()
    });
    assert!(refused.is_some_and(|error| error.to_string().contains("more files, directories and links")));
}

/// How much was read of what would go on for ever.
struct Endless<'a> {
    begin: &'a [u8],
    read: u64,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.begin.is_empty() {
            buffer.fill(b'a');
            self.read += buffer.len() as u64;
            return Ok(buffer.len());
        }
        self.begin.read(buffer)
    }
}

#[test]
fn a_name_of_three_gigabytes_is_not_read() -> Result<()> {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader] {
        let mut header = TarHeader::new_gnu();
        header.set_entry_type(kind);
        header.set_size(3 << 30);
        header.set_cksum();
        let mut endless = Endless { begin: header.as_bytes(), read: 0 };
        let mut archive = tar::Archive::new(&mut endless);
        let refused = members::Members::new(&mut archive)?.next().err().context("it was accepted")?;
        assert!(refused.to_string().contains("longer than any path"), "{kind:?}: {refused:#}");
        assert_eq!(endless.read, 0, "{kind:?}");
    }
    Ok(())
}

#[test]
fn a_file_of_holes_is_named_when_it_is_packed() -> Result<()> {
    let from = tempfile::tempdir()?;
    let (state, config) = (from.path().join("state"), from.path().join("config"));
    fs::create_dir_all(&state)?;
    fs::create_dir_all(&config)?;
    File::create(state.join("small"))?.set_len(1 << 20)?;
    assert!(packed(&state, &config).is_ok());
    fs::remove_file(state.join("small"))?;
    File::create(state.join("vast"))?.set_len(15 << 30)?;
    let error = packed(&state, &config).err().context("it was packed")?;
    assert_eq!(crate::error::code_of(&error), Code::NoSpace);
    let sentence = crate::error::one_line(&error);
    assert!(sentence.contains("state/vast") && sentence.contains("15.0 GiB"), "{sentence}");
    Ok(())
}

/// What is verified on a disk is restored on it, unless the state alone is too large for that.
#[test]
fn holes_leave_room_to_restore_them() {
    const GIB: u64 = 1 << 30;
    let trees = |bytes, inodes, free| {
        let state = room::Size { bytes, inodes, content: 0 };
        Trees { state, config: room::Size::default(), free }
    };
    for (bytes, inodes, free) in [(GIB, 1000, 40 * GIB), (0, 2, 40 * GIB), (10 * GIB, 500_000, 60 * GIB)] {
        let holes = trees(bytes, inodes, free).room_for_holes();
        let restored = room_to_restore(Size { members: inodes, bytes: bytes + holes });
        let left = free - bytes - holes / 100;
        assert!(room::Size { bytes: left, inodes: u64::MAX, content: 0 }.has_room_for(restored), "{holes}");
        assert!(holes > (free - 3 * bytes) * 8 / 10, "{holes} of {free}");
    }
    assert!(trees(GIB, 1000, 40 * GIB).room_for_holes() < 39 * GIB);
    assert_eq!(trees(10 * GIB, 1000, 5 * GIB).room_for_holes(), GIB, "on a disk that is nearly full");
}

/// A lease keeps a file from being read for 45 s: its name is what helps.
#[tokio::test]
async fn a_leased_file_is_named_when_it_is_packed() -> Result<()> {
    let from = tempfile::tempdir()?;
    let (state, config) = (from.path().join("state"), from.path().join("config"));
    fill(&state, &config)?;
    let _holder = untrusted::lease(&state.join("workspace/run.sh")).await?;
    let error = packed(&state, &config).err().context("it was packed")?;
    assert_eq!(crate::error::code_of(&error), Code::GatewayNotReady, "{error:#}");
    let sentence = crate::error::one_line(&error);
    assert!(sentence.contains("state/workspace/run.sh") && sentence.contains("holds a lease"), "{sentence}");
    Ok(())
}

#[test]
fn the_gateways_archive_unpacks_to_no_more_than_its_state_could() -> Result<()> {
    let from = tempfile::tempdir()?;
    let native = from.path().join("native.tar.gz");
    native_archive(&native)?;
    for (limit, is_refused) in [(1 << 20, false), (1000, true)] {
        let mut writer = Writer::new(io::sink(), &header())?;
        let copied = native::copy(File::open(&native)?, limit, &mut writer, &|_| Ok(()));
        assert_eq!(copied.is_err(), is_refused, "{limit}");
    }
    Ok(())
}

/// Members of the gateway's archive, by path, kind and content. Names may be as long as they like.
fn gateways_archive(members: &[(&str, EntryType, &[u8])]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, kind, content) in members {
        let mut header = TarHeader::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::MAX);
        tar.append_data(&mut header, Path::new("backup").join(path), *content)?;
    }
    Ok(tar.into_inner()?.finish()?)
}

#[test]
fn names_of_the_gateways_archive_take_no_more_memory_than_its_content() -> Result<()> {
    const STATE: &str = "payload/posix/home/node/.openclaw";
    let manifest = |text: &'static [u8]| ("manifest.json", EntryType::Regular, text);
    let (copied, small) = (
        |archive: &[u8], limit| {
            let mut writer = Writer::new(io::sink(), &header())?;
            native::copy(archive, limit, &mut writer, &|_| Ok(()))
        },
        br#"{"schemaVersion":1}"#,
    );
    let sentence =
        |outcome: Result<LeftOut>| outcome.err().map(|error| crate::error::one_line(&error)).unwrap_or_default();
    let long = format!("{STATE}{}/f", "/dddddddddddddddddddddddd".repeat(160));
    let one = gateways_archive(&[(&long, EntryType::Regular, b""), manifest(small)])?;
    assert!(sentence(copied(&one, 1 << 20)).contains("its path has more than"), "{}", long.len());
    let names: Vec<String> = (0..100).map(|number| format!("{STATE}/{number}{}", "/dddddddd".repeat(220))).collect();
    let mut members: Vec<_> = names.iter().map(|name| (name.as_str(), EntryType::Regular, &b""[..])).collect();
    members.push(manifest(small));
    let many = gateways_archive(&members)?;
    assert_eq!(sentence(copied(&many, 100 * (512 + 2100))), "");
    assert!(sentence(copied(&many, 100 * (512 + 1900))).contains("far more than its state"));
    let key: &[u8] = Vec::leak(format!("{{\"{}\":1,\"schemaVersion\":1}}", "k".repeat(9 << 20)).into_bytes());
    let described = gateways_archive(&[manifest(key)])?;
    assert!(sentence(copied(&described, 1 << 30)).contains("manifest"), "a name of 9 MiB");
    Ok(())
}

/// What the gateway says of its files' times is what can be restored.
#[test]
fn a_time_of_the_gateways_archive_can_be_restored() -> Result<()> {
    let file = ("payload/posix/home/node/.openclaw/a", EntryType::Regular, &b"a"[..]);
    let archive = gateways_archive(&[file, ("manifest.json", EntryType::Regular, br#"{"schemaVersion":1}"#)])?;
    let mut writer = Writer::new(Vec::new(), &header())?;
    native::copy(&archive[..], 1 << 20, &mut writer, &|_| Ok(()))?;
    let (bytes, _) = writer.finish()?;
    archive::read(&bytes[..], |member, _| {
        assert!(i64::try_from(member.modified).is_ok(), "{member:?}");
        Ok(())
    })?;
    Ok(())
}

/// An archive of kilobytes that inflates to terabytes is given up where its own content ends.
#[test]
fn what_follows_the_end_is_not_read_for_long() -> Result<()> {
    let from = tempfile::tempdir()?;
    let (state, config) = (from.path().join("state"), from.path().join("config"));
    fs::create_dir_all(&state)?;
    fs::create_dir_all(&config)?;
    let (file, _) = packed(&state, &config)?;
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(File::open(file.path())?).read_to_end(&mut tar)?;
    let with = |zeros: usize| [&tar[..], &vec![0; zeros]].concat();
    assert!(archive::read(&deflated(&with(8 << 10))[..], |_, _| Ok(())).is_ok(), "tar fills its last record");
    let error = archive::read(&deflated(&with(2 << 20))[..], |_, _| Ok(())).err().context("it was read")?;
    assert!(error.to_string().contains("more after its end"), "{error:#}");
    Ok(())
}

#[test]
fn a_header_of_gigabytes_is_not_passed_over() -> Result<()> {
    let mut end = TarHeader::new_gnu();
    end.set_path("openclaw-backup.end.json")?;
    end.set_size(3 << 30);
    end.set_cksum();
    let mut tar = inflated(&[]);
    tar.truncate(tar.len() - 1024);
    tar.extend_from_slice(end.as_bytes());
    let mut endless = Endless { begin: &tar, read: 0 };
    let mut reader = GzEncoder::new(Vec::new(), Compression::fast());
    io::copy(&mut (&mut endless).take(tar.len() as u64 + (8 << 20)), &mut reader)?;
    let error = archive::read(&reader.finish()?[..], |_, _| Ok(())).err().context("it was read")?;
    assert!(crate::error::one_line(&error).contains("larger than 1.0 MiB"), "{error:#}");
    Ok(())
}

#[test]
fn a_path_that_could_not_be_restored_is_named_when_it_is_packed() -> Result<()> {
    let from = tempfile::tempdir()?;
    let (state, config) = (from.path().join("state"), from.path().join("config"));
    fs::create_dir_all(&config)?;
    let deep = state.join("/dddddddddddddddddddddddd".repeat(153).trim_start_matches('/'));
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("ffffffffffffffffffffffffffffff"), "x")?;
    let error = packed(&state, &config).err().context("it was packed")?;
    assert_eq!(crate::error::code_of(&error), Code::GatewayRefused, "{error:#}");
    let sentence = crate::error::one_line(&error);
    assert!(sentence.contains("its path has more than") && sentence.contains("state/dddd"), "{sentence}");
    Ok(())
}

/// The agent can make anything where the gateway's archive is to be.
#[tokio::test]
async fn whatever_has_the_name_of_an_unfinished_backup_is_removed() -> Result<()> {
    let root = tempfile::tempdir()?;
    let (host, path) = (Host::new(root.path()), root.path().join("part"));
    discard(&host, Path::new("/part")).await?;
    for make in [
        |path: &Path| fs::write(path, "x"),
        |path: &Path| fs::create_dir_all(path.join("a/b")).and_then(|()| fs::write(path.join("a/f"), "x")),
        |path: &Path| symlink("/etc", path),
    ] {
        make(&path)?;
        discard(&host, Path::new("/part")).await?;
        assert!(fs::symlink_metadata(&path).is_err());
    }
    Ok(())
}

#[test]
fn what_is_no_backup_is_named() -> Result<()> {
    let named = |bytes: &[u8]| {
        let read = archive::read(bytes, |_, _| Ok(()));
        crate::error::one_line(&read.err().unwrap_or_else(|| anyhow!("it was accepted")))
    };
    let newer = serde_json::to_string(&header())?.replace("\"format\":1", "\"format\":2");
    let mut other = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut entry = TarHeader::new_gnu();
    entry.set_size(0);
    other.append_data(&mut entry, "some.txt", io::empty())?;
    let cases = [
        (b"#!/bin/sh\n".to_vec(), "no tar archive compressed with gzip"),
        (other.into_inner()?.finish()?, "it is no backup of openclaw-init"),
        (forged(&[], &newer), "it has the format 2"),
        (forged(&[], &serde_json::to_string(&header())?), "its end is missing"),
    ];
    for (bytes, expected) in cases {
        let sentence = named(&bytes);
        assert!(sentence.contains(expected), "{sentence}");
    }
    Ok(())
}

#[test]
fn a_name_tells_time_and_version() {
    let name = name(&header().record, CREATED.parse().unwrap());
    assert_eq!(name, "openclaw-20261123T150000Z-2026.9.6.tar.gz");
}

#[test]
fn a_backup_is_put_where_the_agent_cannot_reach_and_nothing_is_overwritten() -> Result<()> {
    let root = tempfile::tempdir()?;
    let host = Host::new(root.path());
    let below = |name: &str| Path::new("/data").join(name);
    let data = DataDir::at("/data", false);
    for directory in ["/data/backups", "/data/openclaw/deep", "/data/config-openclaw", "/elsewhere"] {
        fs::create_dir_all(host.path(directory))?;
    }
    symlink(host.path("/data/openclaw/deep"), host.path("/alias"))?;
    fs::write(host.path("/data/backups/old"), "")?;
    let at = |to: Option<&str>| target(&host, to.map(Path::new), &data, "name");
    assert_eq!(at(None)?, below("backups/name"));
    assert_eq!(at(Some("/data/backups"))?, below("backups/name"));
    assert_eq!(at(Some("/elsewhere/file"))?, Path::new("/elsewhere/file"));
    for refused in ["/data/backups/old", "/data/openclaw/x", "/data/config-openclaw/x", "/alias", "/alias/x"] {
        let code = at(Some(refused)).err().as_ref().map(crate::error::code_of);
        assert_eq!(code, Some(Code::ConfigInvalid), "{refused}");
    }
    Ok(())
}

/// What a state would look like as a tar archive, before it is compressed.
fn inflated(members: &[Forged<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    let packed = forged(members, &serde_json::to_string(&header()).unwrap());
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut tar).unwrap();
    tar
}

fn deflated(tar: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(tar).unwrap();
    gzip.finish().unwrap()
}

proptest! {
    /// Nothing that was changed is verified, and nothing in it is waited for or kept in memory.
    #[test]
    fn any_change_of_an_archive_is_an_error(
        changes in proptest::collection::vec((0..10_000_usize, any::<u8>()), 1..6),
        length in 0..10_000_usize,
        random in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        use EntryType::{Directory, GNULongName, Link, Regular, Symlink, XHeader};
        let mut tar = inflated(&[
            ("state", Directory, ""),
            ("state/a", Regular, ""),
            ("state/b", Link, "state/a"),
            ("state/c", Symlink, "a"),
            ("././@LongLink", GNULongName, ""),
            ("pax", XHeader, ""),
            ("config/key", Regular, ""),
        ]);
        let bytes = tar.len();
        for (at, byte) in changes {
            tar[at % bytes] = byte;
        }
        tar.truncate(bytes.min(length));
        for tar in [&tar, &random] {
            prop_assert!(archive::read(&deflated(tar)[..], |_, _| Ok(())).is_err());
            let mut archive = tar::Archive::new(&tar[..]);
            let mut members = members::Members::new(&mut archive).unwrap();
            while let Ok(Some(member)) = members.next() {
                drop(member.link());
            }
        }
        prop_assert!(archive::read(&random[..], |_, _| Ok(())).is_err());
    }
}
