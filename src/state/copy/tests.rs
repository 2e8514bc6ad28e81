use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

use anyhow::bail;
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;

use super::super::room;
use super::tree::DEPTH;
use super::*;
use crate::error::one_line;

/// A step that makes or changes a tree.
type Case = (&'static str, fn(&Path) -> Result<()>);

/// A machine with the directory `/from`.
struct Bench {
    root: tempfile::TempDir,
    host: Host,
}

impl Bench {
    fn new() -> Result<Self> {
        let root = tempfile::tempdir()?;
        fs::create_dir(root.path().join("from"))?;
        Ok(Self { host: Host::new(root.path()), root })
    }

    fn from(&self) -> PathBuf {
        self.root.path().join("from")
    }

    fn to(&self) -> PathBuf {
        self.root.path().join("to")
    }

    async fn sync(&self) -> Result<SyncStats> {
        sync(&self.host, Path::new("/from"), Path::new("/to"), Original::AtRest).await
    }

    async fn verify(&self) -> Result<()> {
        verify(&self.host, Path::new("/from"), Path::new("/to")).await
    }

    /// A pass that trusts every file that was changed before the current tick of the clock.
    fn sync_at_once(&self) -> Result<SyncStats> {
        fs::DirBuilder::new().recursive(true).create(self.to())?;
        let (from, to) = (open(&self.from())?, open(&self.to())?);
        Copier::new(&to, Original::AtRest, Duration::ZERO, &Progress(watch::channel((0, 0)).0))?.run(&from)
    }
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) -> Result<()> {
    let time = TimeSpec::new(seconds, nanoseconds);
    let flag = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    Ok(nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flag)?)
}

fn hole(path: &Path, len: u64, data: &[(u64, &[u8])]) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(len)?;
    data.iter().try_for_each(|(at, bytes)| Ok(file.write_all_at(bytes, *at)?))
}

/// What is hard to copy.
const TREES: &[Case] = &[
    ("nothing", |_| Ok(())),
    ("empty files and directories", |at| {
        fs::write(at.join("file"), "")?;
        Ok(fs::create_dir_all(at.join("one/two"))?)
    }),
    ("modes", |at| {
        for mode in [0o400, 0o600, 0o755, 0o4711, 0o2640, 0o1777] {
            let path = at.join(format!("{mode:o}"));
            fs::write(&path, mode.to_string())?;
            fs::set_permissions(path, Permissions::from_mode(mode))?;
            let path = at.join(format!("{mode:o}.d"));
            fs::create_dir(&path)?;
            fs::set_permissions(path, Permissions::from_mode(mode | 0o500))?;
        }
        Ok(())
    }),
    ("names", |at| {
        let long = "x".repeat(255);
        let names: [&[u8]; 7] = [b"...", b"-rf", b"a\nb", b" ", b"\xff\xfe", "ü".as_bytes(), long.as_bytes()];
        names.iter().try_for_each(|name| Ok(fs::write(at.join(std::ffi::OsStr::from_bytes(name)), name)?))
    }),
    ("times", |at| {
        for (name, seconds, nanoseconds) in
            [("new", 1_700_000_000, 123_456_789), ("before 1970", -5, 1), ("far", 4_102_444_800, 7)]
        {
            fs::create_dir(at.join(name))?;
            fs::write(at.join(name).join("file"), name)?;
            symlink(name, at.join(name).join("link"))?;
            for path in ["file", "link", ""] {
                set_time(&at.join(name).join(path), seconds, nanoseconds)?;
            }
        }
        Ok(())
    }),
    ("links", |at| {
        symlink("nowhere", at.join("dangling"))?;
        symlink("loop", at.join("loop"))?;
        symlink(".", at.join("self"))?;
        symlink("/etc/passwd", at.join("absolute"))?;
        symlink("../../..", at.join("out"))?;
        Ok(symlink("x".repeat(4000), at.join("long"))?)
    }),
    ("hard links", |at| {
        fs::create_dir_all(at.join("z/y"))?;
        fs::write(at.join("one"), "linked")?;
        fs::hard_link(at.join("one"), at.join("z/two"))?;
        fs::hard_link(at.join("one"), at.join("z/y/three"))?;
        symlink("nowhere", at.join("link"))?;
        Ok(fs::hard_link(at.join("link"), at.join("z/link"))?)
    }),
    ("holes", |at| {
        hole(&at.join("only"), 1 << 33, &[])?;
        hole(&at.join("before"), (1 << 33) + 5, &[(1 << 33, b"after")])?;
        hole(&at.join("behind"), 1 << 33, &[(0, b"before")])?;
        hole(&at.join("between"), 3 << 20, &[(0, b"before"), (1 << 20, b"within"), ((3 << 20) - 1, b"x")])
    }),
    ("extended attributes", |at| {
        fs::write(at.join("file"), "x")?;
        fs::create_dir(at.join("directory"))?;
        for path in ["file", "directory"] {
            xattr::set(at.join(path), "user.some", b"\0value")?;
            xattr::set(at.join(path), "user.empty", b"")?;
        }
        Ok(())
    }),
    ("large", |at| Ok(fs::write(at.join("file"), vec![7; (5 << 20) + 1])?)),
    ("deep", |at| Ok(fs::create_dir_all(at.join("directory/".repeat(DEPTH - 2)))?)),
    ("many", |at| (0..3000).try_for_each(|number| Ok(fs::write(at.join(format!("{number}")), format!("{number}"))?))),
    ("a database", |at| {
        fs::write(at.join("a.sqlite"), [&b"SQLite format 3\0"[..], &[0; 4080]].concat())?;
        fs::write(at.join("a.sqlite-wal"), "log")?;
        Ok(fs::write(at.join("a.sqlite-shm"), "index")?)
    }),
];

#[tokio::test]
async fn a_copy_of_any_tree_is_exact() -> Result<()> {
    for (case, make) in TREES {
        let bench = Bench::new()?;
        make(&bench.from()).context(*case)?;
        let stats = bench.sync().await.context(*case)?;
        assert_eq!((stats.removed, stats.left_out.count), (0, 0), "{case}");
        bench.verify().await.context(*case)?;
        let (from, to) =
            (room::of(&bench.host, Path::new("/from")).await?, room::of(&bench.host, Path::new("/to")).await?);
        // A large directory is split where the order of its entries has it: a block more or less.
        let room = from.bytes + 4096 + from.bytes / 100;
        assert!(to.bytes <= room && to.inodes == from.inodes, "{case}: {to:?} instead of {from:?}");
        bench.sync().await.context(*case)?;
        bench.verify().await.context(*case)?;
        assert!(bench.host.ledger().borrow().warnings.is_empty(), "{case}");
    }
    Ok(())
}

/// What may have become of a tree since it was copied: `file`, `other`, `one` and `two` (hard links), `directory/file`,
/// `link`, `db` (a database).
const CHANGES: &[Case] = &[
    ("nothing", |_| Ok(())),
    ("longer", |at| Ok(File::options().append(true).open(at.join("file"))?.write_all(b"more")?)),
    ("another content of the same length and time", |at| {
        let time = fs::metadata(at.join("file"))?.modified()?;
        fs::write(at.join("file"), "FILE")?;
        Ok(File::options().write(true).open(at.join("file"))?.set_modified(time)?)
    }),
    ("an exchange of two files", |at| {
        fs::rename(at.join("file"), at.join("x"))?;
        fs::rename(at.join("other"), at.join("file"))?;
        Ok(fs::rename(at.join("x"), at.join("other"))?)
    }),
    ("only another time", |at| set_time(&at.join("file"), 1, 2)),
    ("another mode", |at| Ok(fs::set_permissions(at.join("file"), Permissions::from_mode(0o755))?)),
    ("an attribute more", |at| Ok(xattr::set(at.join("file"), "user.new", b"x")?)),
    ("an attribute less", |at| Ok(xattr::remove(at.join("other"), "user.old")?)),
    ("a file gone", |at| Ok(fs::remove_file(at.join("file"))?)),
    ("a directory gone", |at| Ok(fs::remove_dir_all(at.join("directory"))?)),
    ("a directory for a file", |at| {
        fs::remove_file(at.join("file"))?;
        Ok(fs::create_dir_all(at.join("file/inner"))?)
    }),
    ("a file for a directory", |at| {
        fs::remove_dir_all(at.join("directory"))?;
        Ok(fs::write(at.join("directory"), "now a file")?)
    }),
    ("a link for a directory", |at| {
        fs::rename(at.join("directory"), at.join("moved"))?;
        Ok(symlink("moved", at.join("directory"))?)
    }),
    ("a directory for a link", |at| {
        fs::remove_file(at.join("link"))?;
        fs::create_dir(at.join("link"))?;
        Ok(fs::write(at.join("link/file"), "x")?)
    }),
    ("a link that leads elsewhere", |at| {
        fs::remove_file(at.join("link"))?;
        Ok(symlink("/", at.join("link"))?)
    }),
    ("hard links parted", |at| {
        fs::remove_file(at.join("two"))?;
        Ok(fs::write(at.join("two"), "linked")?)
    }),
    ("files joined", |at| {
        fs::remove_file(at.join("other"))?;
        Ok(fs::hard_link(at.join("file"), at.join("other"))?)
    }),
    ("a database with its time set back", |at| {
        let time = fs::metadata(at.join("db"))?.modified()?;
        let file = File::options().write(true).open(at.join("db"))?;
        file.write_all_at(b"x", 600)?;
        Ok(file.set_modified(time)?)
    }),
];

fn make_ordinary(at: &Path) -> Result<()> {
    fs::write(at.join("file"), "file")?;
    fs::write(at.join("other"), "also")?;
    xattr::set(at.join("other"), "user.old", b"x")?;
    fs::write(at.join("one"), "linked")?;
    fs::hard_link(at.join("one"), at.join("two"))?;
    fs::create_dir(at.join("directory"))?;
    fs::write(at.join("directory/file"), "x")?;
    symlink("file", at.join("link"))?;
    Ok(fs::write(at.join("db"), [&b"SQLite format 3\0"[..], &[0; 4080]].concat())?)
}

#[tokio::test]
async fn a_second_pass_follows_every_change() -> Result<()> {
    for (case, change) in CHANGES {
        for at_once in [false, true] {
            let bench = Bench::new()?;
            make_ordinary(&bench.from())?;
            bench.sync().await?;
            change(&bench.from()).context(*case)?;
            if at_once {
                bench.sync_at_once()?
            } else {
                bench.sync().await?
            };
            bench.verify().await.context(*case)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_unchanged_is_not_copied_again() -> Result<()> {
    let bench = Bench::new()?;
    make_ordinary(&bench.from())?;
    thread::sleep(Duration::from_millis(50));
    assert_eq!(bench.sync_at_once()?.copied, 6, "five files and a link");
    assert_eq!(bench.sync_at_once()?.copied, 1, "only the database");
    fs::write(bench.from().join("file"), "FILE")?;
    assert_eq!(bench.sync_at_once()?.copied, 2, "the file as well");
    bench.verify().await
}

#[tokio::test]
async fn random_changes_are_followed() -> Result<()> {
    const NAMES: [&str; 8] = ["a", "b", "c", "d/a", "d/b", "d/e/a", "d", "d/e"];
    let bench = Bench::new()?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u8| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3] % below
    };
    for round in 0..120 {
        for _ in 0..8 {
            let mut path = || bench.from().join(NAMES[usize::from(random(8))]);
            let (one, other) = (path(), path());
            // Many of them cannot be done on what is there: then nothing is done.
            match random(8) {
                0 | 1 => drop(fs::write(&one, vec![b'a' + random(3); usize::from(random(5))])),
                2 => drop(fs::create_dir(&one)),
                3 => drop(symlink(other, one)),
                4 => drop(fs::hard_link(other, one)),
                5 => drop(fs::rename(other, one)),
                6 => drop(set_time(&one, i64::from(random(3)), 0)),
                _ => drop(fs::remove_file(&one).or_else(|_| fs::remove_dir_all(&one))),
            }
        }
        bench.sync_at_once()?;
        bench.verify().await.with_context(|| format!("in round {round}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn what_has_no_content_is_left_out_with_one_warning() -> Result<()> {
    let bench = Bench::new()?;
    nix::unistd::mkfifo(&bench.from().join("fifo"), Mode::S_IRWXU)?;
    let _socket = UnixListener::bind(bench.from().join("socket"))?;
    fs::write(bench.from().join("file"), "x")?;
    let expected = LeftOut { count: 2, first: Some("fifo".into()) };
    assert_eq!(bench.sync().await?.left_out, expected);
    bench.verify().await?;
    assert_eq!(bench.host.ledger().borrow().warnings.len(), 1);
    Ok(())
}

/// A lease keeps a file from being opened for 45 s. While its holder runs it is left for the copy after that.
#[tokio::test]
async fn a_leased_file_is_named_or_left_for_later() -> Result<()> {
    let bench = Bench::new()?;
    make_ordinary(&bench.from())?;
    let mut holder = crate::host::untrusted::lease(&bench.from().join("directory/file")).await?;
    let error = bench.sync().await.err().context("it was copied")?;
    assert_eq!(crate::error::code_of(&error), crate::error::Code::GatewayNotReady, "{error:#}");
    let sentence = one_line(&error);
    assert!(sentence.contains("directory/file") && sentence.contains("holds a lease"), "{sentence}");
    let in_use = sync(&bench.host, Path::new("/from"), Path::new("/to"), Original::InUse).await?;
    assert_eq!(in_use.leased, LeftOut { count: 1, first: Some("directory/file".into()) });
    holder.kill().await?;
    assert_eq!(bench.sync().await?.leased.count, 0);
    bench.verify().await
}

/// Hard links cost no inodes: names without end would fill the memory.
#[tokio::test]
async fn a_directory_with_too_many_names_is_named() -> Result<()> {
    let bench = Bench::new()?;
    let many = bench.from().join("inner/many");
    fs::create_dir_all(&many)?;
    for number in 0..20_000 {
        let name = many.join(format!("{number:0>250}"));
        let first = many.join(format!("{:0>250}", 0));
        if name == first { fs::write(name, "x")? } else { fs::hard_link(first, name)? }
    }
    for outcome in [bench.sync().await.map(drop), room::of(&bench.host, Path::new("/from")).await.map(drop)] {
        let error = outcome.err().context("all were listed")?;
        assert_eq!(crate::error::code_of(&error), crate::error::Code::GatewayRefused, "{error:#}");
        assert!(one_line(&error).contains("/from/inner/many have more than 4.0 MiB"), "{error:#}");
    }
    Ok(())
}

/// The directories above a directory are listed at the same time.
#[test]
fn names_are_counted_as_long_as_they_are_kept() -> Result<()> {
    let bench = Bench::new()?;
    fs::create_dir_all(bench.from().join("inner"))?;
    let dir = open(&bench.from())?;
    let (names, kept) = (dir.names()?, dir.kept());
    assert!(kept > 0);
    let inner = dir.open_directory(names.iter().next().context("it has an entry")?)?;
    fs::write(bench.from().join("inner/file"), "")?;
    let more = inner.names()?;
    assert!(dir.kept() > kept);
    drop((names, more));
    assert_eq!(dir.kept(), 0);
    Ok(())
}

/// Whoever owns the original exchanges directories and files for links, fifos and nothing while it is copied.
#[tokio::test]
async fn nothing_outside_of_a_live_original_is_read_or_written() -> Result<()> {
    let bench = Bench::new()?;
    let (from, outside) = (bench.from(), bench.root.path().join("outside"));
    fs::create_dir_all(outside.join("inner"))?;
    fs::write(outside.join("file"), "secret")?;
    fs::write(outside.join("inner/file"), "secret")?;
    let (before, stop) = (fs::metadata(&outside)?.modified()?, AtomicBool::new(false));
    let outcome = thread::scope(|threads| {
        threads.spawn(|| {
            let file = from.join("file");
            while !stop.load(Ordering::Relaxed) {
                drop(fs::create_dir_all(from.join("directory/inner")));
                drop(fs::write(from.join("directory/file"), "public"));
                drop(fs::write(from.join("directory/inner/file"), "public"));
                drop(fs::write(&file, "public"));
                drop(fs::rename(from.join("directory"), from.join("aside")));
                drop(symlink(&outside, from.join("directory")));
                drop(fs::remove_file(&file));
                drop(symlink(outside.join("file"), &file));
                drop(fs::remove_file(&file));
                nix::unistd::mkfifo(&file, Mode::S_IRWXU).unwrap_or_default();
                drop(fs::remove_file(&file));
                drop(fs::remove_file(from.join("directory")));
                drop(fs::remove_dir_all(from.join("aside")));
            }
        });
        let passes = || -> Result<()> {
            let started = SystemTime::now();
            while started.elapsed()? < Duration::from_millis(500) {
                bench.sync_at_once()?;
                ensure!(!holds_secret(&bench.to())?, "what is outside was copied");
            }
            Ok(())
        };
        let outcome = passes();
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    outcome?;
    assert_eq!(fs::metadata(&outside)?.modified()?, before);
    bench.sync().await?;
    bench.verify().await
}

fn holds_secret(directory: &Path) -> Result<bool> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && holds_secret(&entry.path())? || kind.is_file() && fs::read(entry.path())? == b"secret" {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test]
async fn the_first_difference_is_named() -> Result<()> {
    #[rustfmt::skip]
    let cases: &[Case] = &[
        ("file: its content differs", |at| {
            let time = fs::metadata(at.join("file"))?.modified()?;
            fs::write(at.join("file"), "FILE")?;
            Ok(File::options().write(true).open(at.join("file"))?.set_modified(time)?)
        }),
        ("file: its modification time differs", |at| set_time(&at.join("file"), 1, 2)),
        ("file: its mode is 0711, not", |at| Ok(fs::set_permissions(at.join("file"), Permissions::from_mode(0o711))?)),
        ("other: its extended attributes differ", |at| Ok(xattr::remove(at.join("other"), "user.old")?)),
        ("extra is only in the copy", |at| keep_time(at, || Ok(fs::write(at.join("extra"), "")?))),
        ("two: it is missing in the copy", |at| keep_time(at, || Ok(fs::remove_file(at.join("two"))?))),
        ("two: its hard links differ", |at| keep_time(at, || {
            fs::remove_file(at.join("two"))?;
            Ok(fs::write(at.join("two"), "linked")?)
        })),
        ("link: the link leads to x, not to file", |at| keep_time(at, || {
            fs::remove_file(at.join("link"))?;
            Ok(symlink("x", at.join("link"))?)
        })),
        ("one: it is of another kind", |at| keep_time(at, || {
            fs::remove_file(at.join("one"))?;
            Ok(fs::create_dir(at.join("one"))?)
        })),
    ];
    for (expected, sabotage) in cases {
        let bench = Bench::new()?;
        make_ordinary(&bench.from())?;
        bench.sync().await?;
        sabotage(&bench.to())?;
        let Err(error) = bench.verify().await else { bail!("{expected}: nothing was noticed") };
        assert!(one_line(&error).contains(expected), "{expected}: {error:#}");
    }
    Ok(())
}

/// Changes a directory without changing its time.
fn keep_time(directory: &Path, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let time = fs::metadata(directory)?.modified()?;
    change()?;
    Ok(File::open(directory)?.set_modified(time)?)
}

#[tokio::test]
async fn a_tree_without_end_is_refused() -> Result<()> {
    let bench = Bench::new()?;
    fs::create_dir_all(bench.from().join("directory/".repeat(DEPTH)))?;
    assert!(bench.sync().await.is_err_and(|error| error.to_string().contains("copying /from")));
    let within = sync(&bench.host, Path::new("/from"), Path::new("/from/to"), Original::AtRest).await;
    assert!(within.is_err(), "the copy within the original");
    Ok(())
}

#[test]
fn progress_reads_well() {
    let cases = [
        (0, 0, "copied 0.0 of 0.0 MiB"),
        (1_300_000_000, 3_700_000_000, "copied 1.2 of 3.4 GiB"),
        (5 << 20, 1, "copied 5.0 of 5.0 MiB"),
    ];
    for (bytes, total, expected) in cases {
        assert_eq!(display_progress("copied", bytes, total), expected);
    }
}
