//! Files in directories that the container writes to: opened by one name below a directory that it cannot replace,
//! regular ones only, never through a link, limited in size and in time.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{Access, Host, blocking, if_exists};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::text;

/// No file of settings is larger; a larger one is not read into memory, of which its values take many times as much.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

const NO_FILE: &str = "it is not a regular file";

/// Whose the files are, root's aside.
const GATEWAY: Access = Access::gateway(0o600);

/// How long a file is asked for that another process keeps from being opened, and how often.
const BUSY_DEADLINE: Duration = Duration::from_secs(1);
const BUSY_INTERVAL: Duration = Duration::from_millis(20);

/// How long the disk may take for one such file.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The text of the file `name` in `directory`, `None` when there is no such file. [`Code::GatewayRefused`]: it is none
/// that the gateway could use either.
///
/// A warning names a file that is neither the gateway's nor root's.
pub(crate) async fn read(host: &Host, directory: &Path, name: &'static str) -> Result<Option<String>> {
    let path = directory.join(name);
    let Some((bytes, owner)) = content(host, &path, MAX_BYTES).await? else { return Ok(None) };
    let path = host.path(path);
    if ![0, GATEWAY.uid].contains(&owner) {
        host.warn(format!(
            "{} belongs to uid {owner}, neither to the gateway ({}) nor to root: find out who put it there",
            path.display(),
            GATEWAY.uid
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| anyhow!("it is not UTF-8"));
    refuse(text).with_context(|| format!("reading {}", path.display())).map(Some)
}

/// The content of the file at `path`, and whose it is; `None` when there is no such file. One of more than `most` bytes
/// is refused, as is all that is no regular file.
pub(crate) async fn content(host: &Host, path: &Path, most: u64) -> Result<Option<(Vec<u8>, u32)>> {
    let path = host.path(path);
    let opened = path.clone();
    let work = blocking(move || {
        let name = opened.file_name().and_then(OsStr::to_str);
        let (directory, name) = opened.parent().zip(name).context("it has no name")?;
        let Some(file) = open(directory, name)? else { return Ok(None) };
        let owner = file.metadata()?.uid();
        let mut bytes = Vec::new();
        let read = file.take(most + 1).read_to_end(&mut bytes);
        refuse(read.map_err(Into::into).and_then(|_| {
            let is_small = bytes.len() as u64 <= most;
            if is_small { Ok(Some((bytes, owner))) } else { Err(anyhow!("it is larger than {}", text::size(most))) }
        }))
    });
    let silent = |_| io::Error::new(ErrorKind::TimedOut, "the disk does not answer").into();
    let read = tokio::time::timeout(READ_TIMEOUT, work).await.map_err(silent);
    read.and_then(|read| read).with_context(|| format!("reading {}", path.display()))
}

/// Opens the regular file `name` in `directory`; `None` when there is nothing of that name.
pub(crate) fn open(directory: &Path, name: &str) -> Result<Option<File>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let Some(directory) = if_exists(File::options().read(true).custom_flags(flags.bits()).open(directory))? else {
        return Ok(None);
    };
    let how = OpenHow::new()
        .flags(OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match if_exists(when_free(|| Ok(openat2(&directory, name, how)?))) {
        Ok(Some(file)) => refuse(regular(file.into())).map(Some),
        Ok(None) => Ok(None),
        Err(error) if is_leased(&error) => explain_lease(Err(error)),
        Err(error) => refuse(Err(match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ELOOP) => anyhow!("it is a symbolic link"),
            Some(Errno::ENXIO) => anyhow!(NO_FILE),
            _ => error.into(),
        })),
    }
}

/// Opens a regular file that root has named, through links if need be; anything else is an error, and nothing waits
/// for a fifo's writer.
pub(crate) fn open_named(path: &Path) -> Result<File> {
    let open = || File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    regular(when_free(open)?)
}

fn regular(file: File) -> Result<File> {
    let found = file.metadata()?;
    if found.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, NO_FILE).into());
    }
    if found.is_file() { Ok(file) } else { Err(anyhow!(NO_FILE)) }
}

/// Tries again, for a moment, what cannot be done because another process holds a lease on the file. Where an open
/// does not fail for that, it waits for up to 45 s, for each file.
pub(crate) fn when_free<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            Err(error) if begun.elapsed() > BUSY_DEADLINE => {
                return Err(io::Error::new(error.kind(), "another process holds a lease on it"));
            }
            Err(_) => std::thread::sleep(BUSY_INTERVAL),
            done => return done,
        }
    }
}

/// Whether a file could not be opened because another process holds a lease on it.
pub(crate) fn is_leased(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// Says what to do about a lease: it ends with the process that holds it.
pub(crate) fn explain_lease<T>(opened: io::Result<T>) -> Result<T> {
    match opened {
        Err(error) if is_leased(&error) => Err(error).classify(
            Code::GatewayNotReady,
            format!(
                "Stop the gateway with `sudo openclaw-init stop` (or the process that `grep LEASE /proc/locks` names), \
                 try again, then run `{RUN_AGAIN}`."
            ),
        ),
        opened => Ok(opened?),
    }
}

fn refuse<T>(outcome: Result<T>) -> Result<T> {
    outcome.classify(
        Code::GatewayRefused,
        format!(
            "The file was left as it is: stop the gateway with `sudo openclaw-init stop`, correct the file (or move it \
             aside), then run `{RUN_AGAIN}`."
        ),
    )
}

/// A process that holds a lease on the file until it is killed.
#[cfg(test)]
pub(crate) async fn lease(file: &Path) -> Result<tokio::process::Child> {
    use tokio::io::AsyncBufReadExt as _;
    const HOLD: &str = r#"$SIG{IO} = "IGNORE"; open(F, "+<", $ARGV[0]) or die; fcntl(F, 1024, 1) or die; $| = 1;
        print "held\n"; sleep 60"#;
    #[expect(clippy::disallowed_methods, reason = "it goes on while the test does")]
    let mut holder = tokio::process::Command::new("perl");
    holder.args(["-e", HOLD]).arg(file).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut holder = holder.spawn()?;
    let mut said = tokio::io::BufReader::new(holder.stdout.take().context("it is piped")?).lines();
    anyhow::ensure!(said.next_line().await?.as_deref() == Some("held"), "there is no lease");
    Ok(holder)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::error::{code_of, one_line};

    const FILE: &str = ".env";

    /// Makes something of that name.
    type Make = fn(&Path) -> io::Result<()>;

    #[tokio::test]
    async fn only_a_small_regular_text_is_read() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, directory, file) = (Host::new(root.path()), Path::new("/"), root.path().join(FILE));
        assert_eq!(read(&host, directory, FILE).await?, None);
        assert_eq!(read(&host, &directory.join("missing"), FILE).await?, None);
        let cases: [(&str, Make); 7] = [
            ("symbolic link", |file| std::os::unix::fs::symlink("/etc/hostname", file)),
            ("symbolic link", |file| std::os::unix::fs::symlink("/proc/self/fd/0", file)),
            ("not a regular file", |file| Ok(mkfifo(file, Mode::S_IRWXU)?)),
            ("not a regular file", |file| std::os::unix::net::UnixListener::bind(file).map(drop)),
            ("not a regular file", |file| std::fs::create_dir(file)),
            ("larger than 1.0 MiB", |file| File::create(file)?.set_len(1 << 40)),
            ("UTF-8", |file| std::fs::write(file, [0xff])),
        ];
        for (reason, make) in cases {
            make(&file)?;
            let error = read(&host, directory, FILE).await.unwrap_err();
            assert_eq!(code_of(&error), Code::GatewayRefused, "{error:#}");
            let sentence = one_line(&error);
            assert!(sentence.contains(reason) && sentence.contains(&*file.to_string_lossy()), "{sentence}");
            std::fs::remove_file(&file).or_else(|_| std::fs::remove_dir(&file))?;
        }
        std::fs::write(&file, "A=b\n")?;
        assert_eq!(read(&host, directory, FILE).await?.as_deref(), Some("A=b\n"));
        Ok(())
    }

    #[tokio::test]
    async fn a_file_of_somebody_else_is_named() -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        let root = tempfile::tempdir()?;
        let (host, file) = (Host::new(root.path()), root.path().join(FILE));
        for (owner, is_named) in [(0, false), (1000, false), (1001, true)] {
            std::fs::write(&file, "A=b\n")?;
            std::os::unix::fs::chown(&file, Some(owner), None)?;
            assert_eq!(read(&host, Path::new("/"), FILE).await?.as_deref(), Some("A=b\n"));
            let warnings = host.ledger().borrow().warnings.clone();
            assert_eq!(
                warnings.iter().any(|warning| warning.contains("belongs to uid 1001")),
                is_named,
                "{warnings:?}"
            );
        }
        Ok(())
    }

    /// The agent puts a fifo in the place of the file, again and again, while it is read and written.
    #[test]
    fn a_file_that_turns_into_a_fifo_never_holds_up_its_reader() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (file, fifo) = (root.path().join(FILE), root.path().join("fifo"));
        std::fs::write(&file, "A=b\n")?;
        mkfifo(&fifo, Mode::S_IRWXU)?;
        let (host, runtime, is_over) = (
            Host::new(root.path()),
            tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            AtomicBool::new(false),
        );
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = renameat2(AT_FDCWD, &file, AT_FDCWD, &fifo, RenameFlags::RENAME_EXCHANGE);
                }
            });
            runtime.block_on(async {
                for _ in 0..300 {
                    let outcome = read(&host, Path::new("/"), FILE).await;
                    assert!(!outcome.is_err_and(|error| code_of(&error) != Code::GatewayRefused));
                    drop(host.ensure_file(Path::new("/").join(FILE), "A=b\n", Access { mode: 0o600, uid, gid }).await);
                }
            });
            is_over.store(true, Ordering::Relaxed);
        });
        Ok(())
    }

    #[tokio::test]
    async fn a_lease_is_named_at_once_and_does_not_keep_a_file_from_being_written() -> Result<()> {
        let root = tempfile::tempdir()?;
        let file = root.path().join(FILE);
        std::fs::write(&file, "A=b\n")?;
        let mut holder = lease(&file).await?;
        let host = Host::new(root.path());
        let error = read(&host, Path::new("/"), FILE).await.unwrap_err();
        assert_eq!(code_of(&error), Code::GatewayNotReady, "{error:#}");
        let sentence = one_line(&error);
        assert!(sentence.contains("holds a lease") && sentence.contains(FILE), "{sentence}");
        let access = Access { mode: 0o600, ..Access::root(0) };
        if nix::unistd::geteuid().is_root() {
            assert!(host.ensure_file(Path::new("/").join(FILE), "A=b\n", access).await?);
            assert_eq!(read(&host, Path::new("/"), FILE).await?.as_deref(), Some("A=b\n"));
        }
        Ok(holder.kill().await?)
    }
}
