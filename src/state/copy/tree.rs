//! Directories as open files: only what was opened is touched, even if somebody else puts something in its place.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::error::{Classify as _, Code};
use crate::host::untrusted::{self, when_free};
use crate::text::{short, size};

/// How many directories may lie within each other: two are held open for each.
pub(crate) const DEPTH: usize = 256;

/// How many bytes of names are kept at once, of a directory and of those that it is in, each with what it takes
/// besides. It is a directory of 100,000 files: a gateway that lists one is of no use any more. Names are hard links at
/// no cost, so that without a limit they fill the memory.
const NAMES_BYTES: usize = 4 << 20;
const NAME_COST: usize = size_of::<u32>() + 1;

/// An open directory. Its entries are reached through the descriptor and by one name only, so no link can
/// lead anywhere else.
#[derive(Debug)]
pub(crate) struct Dir {
    file: File,
    /// The bytes of all names that are kept, of this directory and of all that were opened from the same one.
    kept: Arc<AtomicUsize>,
}

/// The names in a directory, sorted.
#[derive(Debug)]
pub(crate) struct Names {
    /// One after the other, each with a NUL.
    text: Vec<u8>,
    /// Where each begins.
    sorted: Vec<u32>,
    bytes: usize,
    kept: Arc<AtomicUsize>,
}

impl Names {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &OsStr> {
        self.sorted.iter().map(|start| OsStr::from_bytes(name_at(&self.text, *start)))
    }

    pub(crate) fn has(&self, name: &OsStr) -> bool {
        self.sorted.binary_search_by(|start| name_at(&self.text, *start).cmp(name.as_bytes())).is_ok()
    }

    fn push(&mut self, name: &OsStr) -> Result<()> {
        self.sorted.push(self.text.len().try_into()?);
        self.text.extend_from_slice(name.as_bytes());
        self.text.push(0);
        Ok(())
    }
}

fn name_at(text: &[u8], start: u32) -> &[u8] {
    let text = &text[start as usize..];
    &text[..text.iter().position(|byte| *byte == 0).unwrap_or(text.len())]
}

impl Drop for Names {
    fn drop(&mut self) {
        self.kept.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How often an entry that changes meanwhile is looked at again.
const RACE_LIMIT: u32 = 5;

/// An entry of a directory, opened as what it is.
#[derive(Debug)]
pub(crate) enum Entry {
    Directory(Dir),
    File(File, Metadata),
    Link(PathBuf, Metadata),
    /// A fifo, a socket, a device, or a mount point: nothing that has content.
    Special,
    Gone,
}

impl Dir {
    /// Opens a directory whose parents nobody but root can change.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = open(path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
        Ok(Self { file, kept: Arc::default() })
    }

    /// Opens the directory `path` below this one, which may be this one; no part of it may be a link.
    pub(crate) fn open_below(&self, path: &Path) -> io::Result<Self> {
        let resolve =
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(resolve);
        let file = openat2(&self.file, &Path::new(".").join(path), how)?.into();
        Ok(Self { file, kept: Arc::clone(&self.kept) })
    }

    /// The entry `name` as a path that begins at the open directory.
    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        of(&self.file).join(name)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// [`Code::GatewayRefused`]: it is one of too many within each other, of which `depth` have been opened.
    pub(crate) fn require_depth(&self, depth: usize) -> Result<()> {
        if depth < DEPTH {
            return Ok(());
        }
        let path = fs::read_link(of(&self.file)).unwrap_or_default();
        Err(anyhow!("{} is one of more than {DEPTH} directories within each other", short(&path)))
            .classify(Code::GatewayRefused, "Remove it, or move it further up, then try again.")
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// The names of the entries, sorted. [`Code::GatewayRefused`]: there are too many.
    pub(crate) fn names(&self) -> Result<Names> {
        // Growing leaves holes in memory. A directory of ext4 is larger than the names in it.
        let bytes = usize::try_from(self.metadata()?.len()).unwrap_or(NAMES_BYTES).min(NAMES_BYTES);
        let mut found =
            Names { text: Vec::with_capacity(bytes), sorted: Vec::new(), bytes: 0, kept: Arc::clone(&self.kept) };
        for entry in fs::read_dir(of(&self.file))? {
            let name = entry?.file_name();
            let bytes = name.len() + NAME_COST;
            found.bytes += bytes;
            if self.kept.fetch_add(bytes, Ordering::Relaxed) + bytes > NAMES_BYTES {
                let path = fs::read_link(of(&self.file)).unwrap_or_default();
                return Err(anyhow!("the names in {} have more than {}", short(&path), size(NAMES_BYTES as u64)))
                    .classify(Code::GatewayRefused, "Remove what is in this directory, then try again.");
            }
            found.push(&name)?;
        }
        let Names { text, sorted, .. } = &mut found;
        sorted.sort_unstable_by(|one, other| name_at(text, *one).cmp(name_at(text, *other)));
        Ok(found)
    }

    /// The bytes of all names that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// What `name` is, itself; `None` when there is nothing of that name.
    pub(crate) fn look(&self, name: &OsStr) -> io::Result<Option<Metadata>> {
        match fs::symlink_metadata(self.at(name)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens `name` as what it is now: others may replace it at any time. [`Code::GatewayNotReady`]: it stays leased.
    pub(crate) fn open_entry(&self, name: &OsStr) -> Result<Entry> {
        let opened = when_free(|| self.open_at_once(name));
        untrusted::explain_lease(opened).with_context(|| format!("opening {}", short(Path::new(name))))
    }

    /// The same without waiting; `None` for a file that another process holds a lease on.
    pub(crate) fn open_unleased(&self, name: &OsStr) -> Result<Option<Entry>> {
        match self.open_at_once(name) {
            Err(error) if untrusted::is_leased(&error) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }

    fn open_at_once(&self, name: &OsStr) -> io::Result<Entry> {
        let mut tries = 0;
        loop {
            match self.try_open(name) {
                Err(error) if is_race(&error) && tries < RACE_LIMIT => tries += 1,
                outcome => return outcome,
            }
        }
    }

    fn try_open(&self, name: &OsStr) -> io::Result<Entry> {
        let Some(found) = self.look(name)? else { return Ok(Entry::Gone) };
        let kind = found.file_type();
        if found.dev() != self.metadata()?.dev() {
            Ok(Entry::Special)
        } else if kind.is_dir() {
            self.open_directory(name).map(Entry::Directory)
        } else if kind.is_symlink() {
            Ok(Entry::Link(fs::read_link(self.at(name))?, found))
        } else if kind.is_file() {
            let file = self.regular(name)?;
            let found = file.metadata()?;
            Ok(Entry::File(file, found))
        } else {
            Ok(Entry::Special)
        }
    }

    /// Opens the directory `name`.
    pub(crate) fn open_directory(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self { kept: Arc::clone(&self.kept), ..Self::open(&self.at(name))? })
    }

    /// Opens a regular file for reading; anything else is an error, and nothing waits for a fifo's writer.
    pub(super) fn regular(&self, name: &OsStr) -> io::Result<File> {
        let file = open(&self.at(name), OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(Errno::ESTALE.into()) }
    }

    /// Makes a file that nobody else can read.
    pub(super) fn create(&self, name: &OsStr) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).mode(0o600).open(self.at(name))
    }

    /// Makes `name` a directory, in the place of anything else of that name.
    pub(super) fn ensure_directory(&self, name: &OsStr) -> io::Result<Self> {
        let current = self.look(name)?;
        if current.as_ref().is_some_and(|found| !found.is_dir()) {
            self.remove(name)?;
        }
        if !current.is_some_and(|found| found.is_dir()) {
            fs::DirBuilder::new().mode(0o700).create(self.at(name))?;
        }
        self.open_directory(name)
    }

    /// Removes `name` and all that is in it; true when there was something.
    pub(super) fn remove(&self, name: &OsStr) -> io::Result<bool> {
        let Some(found) = self.look(name)? else { return Ok(false) };
        let path = self.at(name);
        if found.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
        Ok(true)
    }
}

fn open(path: &Path, flags: OFlag) -> io::Result<File> {
    File::options().read(true).custom_flags(flags.bits()).open(path)
}

/// An open file as a path: whoever opens it gets this very file.
pub(super) fn of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether the error says that an entry is no longer what it was a moment ago.
fn is_race(error: &io::Error) -> bool {
    let raced =
        [Errno::ENOENT, Errno::ELOOP, Errno::ENOTDIR, Errno::EISDIR, Errno::ENXIO, Errno::EINVAL, Errno::ESTALE];
    error.raw_os_error().is_some_and(|code| raced.contains(&Errno::from_raw(code)))
}
