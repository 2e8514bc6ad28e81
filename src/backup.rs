//! Backups: one file that holds everything a gateway needs to be itself again, on this machine or another.
//!
//! While the gateway runs, its own `backup create --verify` copies what is in use, and what that leaves out is added
//! from the files. A stopped gateway's files are taken as they are. The file has one format ([`archive`]) for both, so
//! [`restore`] need not know how it was made.

mod archive;
#[cfg(fuzzing)]
pub mod fuzzing;
mod members;
mod native;
mod pack;
mod plan;
pub mod restore;
#[cfg(test)]
mod tests;
mod unpack;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::docker;
use crate::error::{Classify as _, Code, RUN_AGAIN, one_line};
use crate::gateway::{self, RunState};
use crate::host::{Host, blocking, if_exists, remove_tree_if_exists, sync_dir, untrusted};
use crate::lock::RunLock;
use crate::paths::LOCK;
use crate::stage::{Stage, within};
use crate::state::copy::linked::FirstNames;
use crate::state::copy::{self, LeftOut, Progress};
use crate::state::{self, DataDir, Record, room};
use crate::text::{MIB, file_time, size as bytes};
use crate::version::GatewayVersion;

use archive::Writer;
pub use archive::{Header, How, Size};
use native::Remainder;
use pack::Packer;
use plan::Kind;
use unpack::Unpacker;

/// The name of an unfinished backup, in the directory of the file that it becomes.
const PART_FILE: &str = ".openclaw-backup.part";

/// What to do when the gateway itself cannot make the backup.
fn stop_first() -> String {
    format!(
        "Take it with the gateway stopped: `sudo openclaw-init stop`, `sudo openclaw-init backup`, then `{RUN_AGAIN}`."
    )
}

/// What to do when there is no room for the backup.
const MAKE_ROOM: &str = "Remove old backups, enlarge the disk with `gcloud compute disks resize`, or name a file on \
    another disk with --to.";

/// A file takes a block at least.
const BLOCK_BYTES: u64 = 4096;

/// The options of `openclaw-init backup`.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// The file, or an existing directory for it [default: a new file in backups/ on the data disk]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Prints what was made as JSON
    #[arg(long)]
    pub json: bool,
}

/// A backup that was made and verified.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Backup {
    /// Where it is.
    pub file: PathBuf,
    /// How large the file is.
    pub file_bytes: u64,
    /// What is in it.
    #[serde(flatten)]
    pub size: Size,
    /// How long it took, with its verification.
    pub seconds: f64,
    /// What it is of.
    #[serde(flatten)]
    pub header: Header,
}

impl fmt::Display for Backup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.header.how {
            How::Gateway => "the gateway went on running",
            How::Stopped => "no gateway was running",
        };
        write!(
            out,
            "backed up OpenClaw {} to {}: {}, {} files, directories and links with {}, verified, {:.1} s; {how}. \
             The file holds every credential of the gateway: keep it like a password",
            self.header.record.owner,
            self.file.display(),
            bytes(self.file_bytes),
            self.size.members,
            bytes(self.size.bytes),
            self.seconds,
        )
    }
}

/// Writes a backup of the state on this machine and verifies it. The file gets its name at the end; what a cut leaves
/// is removed by the next backup to the same directory.
pub async fn run(host: &Host, options: &Options) -> Result<Backup> {
    let _lock = RunLock::acquire(&host.path(LOCK)).await?;
    let (started, created) = (Instant::now(), Timestamp::now());
    let data = state::current(host).await?.ok_or_else(|| anyhow!("there is no gateway's state on this machine"))?;
    let record = Record::read(host, &data).await?;
    let file = target(host, options.to.as_deref(), &data, &name(&record, created))?;
    let engine = docker::find(host).await?;
    let state = match &engine {
        Some(engine) => gateway::run_state(engine).await?,
        None => RunState::Stopped,
    };
    let how = match state {
        RunState::Running => How::Gateway,
        RunState::Stopped => How::Stopped,
        RunState::Unstable => {
            return Err(anyhow!("the gateway neither runs nor is it stopped: it is paused, or starts again and again"))
                .classify(Code::GatewayNotReady, stop_first());
        }
    };
    let directory = file.parent().context("the file has no directory")?;
    let native = gateway::native_backup_file(&data);
    discard(host, &directory.join(PART_FILE)).await?;
    discard(host, &native).await?;
    let trees = Trees::measure(host, &data).await?;
    require_room(host, &data, directory, how, trees).await?;
    if let (How::Gateway, Some(engine)) = (how, &engine) {
        host.progress("waiting for the gateway's own backup");
        let backed_up = within(Stage::Gateway, gateway::native_backup(host, engine, &data)).await;
        backed_up.context("making the gateway back itself up").classify(Code::GatewayNotReady, stop_first())?;
    }
    let mut header = Header::new(created, machine(host).await?, how, record);
    let written = within(Stage::Disk, write(host, &data, &file, &header, trees)).await;
    if let Err(error) = discard(host, &native).await {
        host.warn(one_line(&error));
    }
    let (file_bytes, size) = written.with_context(|| format!("writing the backup {}", file.display()))?;
    host.changed(format!("wrote {}", file.display()));
    header.record = header.record.without_former_values();
    Ok(Backup { file, file_bytes, size, seconds: started.elapsed().as_secs_f64(), header })
}

/// Removes a file that exists only while a backup is made, and whatever else somebody gave its name.
async fn discard(host: &Host, file: &Path) -> Result<()> {
    let path = host.path(file);
    let removed = blocking(move || match if_exists(std::fs::remove_file(&path)) {
        Err(error) if error.kind() == ErrorKind::IsADirectory => remove_tree_if_exists(&path).map(drop),
        outcome => Ok(outcome.map(drop)?),
    });
    removed.await.with_context(|| format!("removing {}", file.display())).classify(
        Code::GatewayNotReady,
        format!("Remove it with `sudo rm -r`, then run the backup again. {}", stop_first()),
    )
}

/// The default name; backups sorted by name are sorted by time.
fn name(record: &Record, created: Timestamp) -> String {
    let version = record.owner.version().map_or("unknown", GatewayVersion::as_str);
    format!("openclaw-{}-{version}.tar.gz", file_time(created))
}

/// The file to be written, which must not exist yet; its directory must.
fn target(host: &Host, to: Option<&Path>, data: &DataDir, name: &str) -> Result<PathBuf> {
    let file = match to {
        None => data.backups.join(name),
        Some(to) => {
            let to = std::path::absolute(to).context("finding the place of the backup")?;
            if host.path(&to).is_dir() { to.join(name) } else { to }
        }
    };
    let is_inside = is_inside(host, &file, data)?;
    let why = if host.path(&file).exists() {
        "is there already: a backup is never overwritten"
    } else if is_inside {
        "is in the gateway's own directory, where its agent can read and change it"
    } else {
        return Ok(file);
    };
    Err(anyhow!("{} {why}", file.display())).classify(Code::ConfigInvalid, "Name another file with --to.")
}

/// Whether the file would be below a directory of the gateway's, by whatever path: people know the state by another.
fn is_inside(host: &Host, file: &Path, data: &DataDir) -> Result<bool> {
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let own: Vec<_> = [&data.state, &data.config].into_iter().flat_map(|path| identity(&host.path(path))).collect();
    let file = host.path(file);
    let directory = file.parent().context("the file has no directory")?;
    let directory = directory.canonicalize().with_context(|| format!("looking at {}", directory.display()))?;
    Ok(directory.ancestors().any(|path| identity(path).is_ok_and(|found| own.contains(&found))))
}

/// The room that the files take which are backed up, before the gateway puts its own archive beside them.
#[derive(Debug, Clone, Copy)]
struct Trees {
    state: room::Size,
    config: room::Size,
    /// How many bytes are free beside the state.
    free: u64,
}

impl Trees {
    async fn measure(host: &Host, data: &DataDir) -> Result<Self> {
        let (state, config) = (room::of(host, &data.state).await?, room::of(host, &data.config).await?);
        Ok(Self { state, config, free: room::free(host, &data.state).await?.bytes })
    }

    fn bytes(self) -> u64 {
        self.state.bytes + self.config.bytes
    }

    /// How many bytes of holes a backup may fill so that there is still room to restore it, beside it and the state, on
    /// their file system. A tenth of the state is nothing that matters: no other disk is asked for then.
    fn room_for_holes(self) -> u64 {
        let size = Size { members: self.state.inodes + self.config.inodes, bytes: self.bytes() };
        // Restoring asks for a tenth more, and the holes take a hundredth in the backup.
        let most = u128::from(self.free.saturating_sub(self.bytes())) * 100 / 111;
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        most.saturating_sub(room_to_restore(size).bytes).max(self.bytes() / 10)
    }
}

/// The room that a backup takes once it is restored.
fn room_to_restore(size: Size) -> room::Size {
    let blocks = size.members.saturating_mul(BLOCK_BYTES);
    room::Size { bytes: size.bytes.saturating_add(blocks), inodes: size.members, content: size.bytes }
}

/// Refuses when the files might not fit. They are compressed, but how much less they take nobody knows.
async fn require_room(host: &Host, data: &DataDir, directory: &Path, how: How, trees: Trees) -> Result<()> {
    // Bytes only: a file system may count no files, and then has none free.
    let once = room::Size { bytes: trees.bytes(), ..room::Size::default() };
    let device = |path: &Path| -> Result<u64> {
        let found = std::fs::metadata(host.path(path)).with_context(|| format!("looking at {}", path.display()));
        Ok(found?.dev())
    };
    let beside = device(directory)? == device(&data.config)?;
    let twice = (how == How::Gateway && beside).then_some(once);
    let mut needs: Vec<(&Path, room::Size)> = vec![(directory, [once].into_iter().chain(twice).sum())];
    if how == How::Gateway && !beside {
        needs.push((&data.config, once));
    }
    for (place, needed) in needs {
        let free = room::free(host, place).await?;
        room::require(needed, free, "a backup", &place.display().to_string(), MAKE_ROOM)?;
    }
    Ok(())
}

async fn machine(host: &Host) -> Result<String> {
    let name = host.read("/proc/sys/kernel/hostname").await?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&name).trim().to_owned())
}

/// Writes the file under a temporary name, reads it back and gives it its name. Returns its length, and what is in it.
async fn write(host: &Host, data: &DataDir, file: &Path, header: &Header, trees: Trees) -> Result<(u64, Size)> {
    let target = host.path(file);
    let (state, config) = (host.path(&data.state), host.path(&data.config));
    let native = (header.how == How::Gateway)
        .then(|| Native { file: host.path(gateway::native_backup_file(data)), limit: native_limit(trees.bytes()) });
    let room_for_holes = trees.room_for_holes();
    let first_member = header.clone();
    let (part, size, missing) = copy::in_background(host, "packed", move |progress| {
        progress.expect(trees.state.content);
        let directory = target.parent().context("it has no directory")?;
        // Without a random part in its name, the next run finds what a cut one left.
        let part = tempfile::Builder::new().prefix(PART_FILE).rand_bytes(0).tempfile_in(directory)?;
        let add = |bytes| progress.add(bytes);
        let writer = Writer::new(part.as_file(), &first_member)?;
        let packer = Packer::new(writer, FirstNames::new(directory)?, room_for_holes, &add);
        let (size, missing) = pack(packer, &state, &config, native.as_ref())?;
        part.as_file().sync_all().context("syncing it")?;
        Ok((part, size, missing))
    })
    .await?;
    for warning in missing.warnings() {
        host.warn(warning);
    }
    let verified = verify(host, part.path(), u64::MAX).await.context("reading it back");
    let (found, found_size) = verified.classify(Code::GatewayNotReady, stop_first())?;
    ensure!(found == *header && found_size == size, "what was written is not what can be read back");
    let target = host.path(file);
    blocking(move || {
        let length = part.as_file().metadata()?.len();
        part.persist_noclobber(&target).map_err(|error| error.error).context("giving it its name")?;
        sync_dir(target.parent().unwrap_or(&target))?;
        Ok((length, size))
    })
    .await
}

/// What is in no backup.
#[derive(Debug, Default)]
struct Missing {
    /// Fifos, sockets, devices, mount points.
    special: LeftOut,
    /// Databases in use that the gateway's own backup leaves out.
    databases: LeftOut,
    /// Files outside of the data disk.
    elsewhere: LeftOut,
}

impl Missing {
    fn warnings(&self) -> impl Iterator<Item = String> {
        let kinds = [
            (&self.special, "fifos, sockets, devices and mount points have no content to back up"),
            (
                &self.databases,
                "databases that the gateway's own backup leaves out are only in a backup of the stopped gateway",
            ),
            (&self.elsewhere, "files of the gateway's own backup are not on the data disk, and not in this one"),
        ];
        kinds.into_iter().filter_map(|(LeftOut { count, first }, what)| {
            let first = first.as_ref()?.display();
            Some(format!("{what}: {count} left out, such as {first}"))
        })
    }
}

/// The gateway's own archive, and how many bytes it may unpack to.
struct Native {
    file: PathBuf,
    limit: u64,
}

/// For a state that takes `bytes` on the disk: copies of its files take no more, tails of blocks and a gateway that
/// goes on writing aside.
fn native_limit(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 4).saturating_add(256 * MIB)
}

/// Packs everything; with `native`, the gateway's own archive first, then what is not in that.
fn pack(
    mut packer: Packer<'_, &File>,
    state: &Path,
    config: &Path,
    native: Option<&Native>,
) -> Result<(Size, Missing)> {
    let mut elsewhere = LeftOut::default();
    if let Some(Native { file, limit }) = native {
        let (directory, name) = file.parent().zip(file.file_name()).context("the archive has no name")?;
        let copied = untrusted::open(directory, &name.to_string_lossy())
            .and_then(|archive| archive.context("it is missing"))
            .and_then(|archive| native::copy(archive, *limit, &mut packer.writer, packer.progress));
        let reading = || format!("reading the gateway's archive {}", file.display());
        elsewhere = copied.with_context(reading).classify(Code::GatewayNotReady, stop_first())?;
    }
    let databases = RefCell::new(LeftOut::default());
    let native_name = native.and_then(|native| Some(Path::new("config").join(native.file.file_name()?)));
    let wanted = |path: &Path, is_dir: bool| {
        if native_name.is_none() {
            return true;
        }
        if is_dir {
            return !native::is_ephemeral(path);
        }
        if native_name.as_deref() == Some(path) {
            return false;
        }
        let remainder = native::remainder(path);
        if remainder == Remainder::Database {
            databases.borrow_mut().add(path);
        }
        remainder == Remainder::Wanted
    };
    packer.directory(state, Path::new("state"), &wanted)?;
    packer.directory(config, Path::new("config"), &wanted)?;
    let missing = Missing { special: packer.left_out, databases: databases.into_inner(), elsewhere };
    let (_, size) = packer.writer.finish()?;
    Ok((size, missing))
}

/// A file that reports how far it was read.
struct ProgressReader<'a> {
    file: File,
    progress: &'a Progress,
}

impl Read for ProgressReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.progress.add(length as u64).map_err(io::Error::other)?;
        Ok(length)
    }
}

/// Opens a backup to read it as a whole.
fn open<'a>(file: &Path, progress: &'a Progress) -> Result<ProgressReader<'a>> {
    let found = untrusted::open_named(file)?;
    progress.expect(found.metadata()?.len());
    Ok(ProgressReader { file: found, progress })
}

/// Reads the whole backup and returns what it is of. Any difference from what was written is an error, and so is one
/// whose files have more than `most` bytes ([`Code::NoSpace`]): zeros are compressed to next to nothing.
pub(crate) async fn verify(host: &Host, file: &Path, most: u64) -> Result<(Header, Size)> {
    let file = file.to_owned();
    let verified = copy::in_background(host, "verified", move |progress| {
        let left = Cell::new(most);
        archive::read(open(&file, progress)?, |member, _| {
            let Kind::File(length) = member.kind else { return Ok(()) };
            let less =
                left.get().checked_sub(length).with_context(|| format!("it unpacks to more than {}", bytes(most)));
            left.set(
                less.classify(Code::NoSpace, "No disk of this machine has room for it: restore it on a larger one.")?,
            );
            Ok(())
        })
    });
    verified.await
}

/// Unpacks the backup to two new directories beside the current ones, and verifies it once more on the way.
pub(crate) async fn unpack(host: &Host, file: &Path, to: &Unpacked) -> Result<(Header, Size)> {
    let (file, state, config) = (host.path(file), host.path(&to.state), host.path(&to.config));
    copy::in_background(host, "unpacked", move |progress| {
        let mut unpacker = Unpacker::new(&state, &config)?;
        let read = archive::read(open(&file, progress)?, |member, content| unpacker.add(member, content))?;
        unpacker.finish()?;
        Ok(read)
    })
    .await
}

/// The directories that a backup is unpacked to.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    pub(crate) state: PathBuf,
    pub(crate) config: PathBuf,
}

impl Unpacked {
    /// Beside those of `data`.
    pub(crate) fn beside(data: &DataDir) -> Result<Self> {
        let beside = |path: &Path| {
            let name = path.file_name().context("a directory without a name")?.to_string_lossy();
            Ok::<_, anyhow::Error>(path.with_file_name(format!("{name}.restoring")))
        };
        Ok(Self { state: beside(&data.state)?, config: beside(&data.config)? })
    }

    /// Removes what a failed or cut restore left there.
    pub(crate) async fn discard(&self, host: &Host) -> Result<()> {
        let directories = [host.path(&self.state), host.path(&self.config)];
        blocking(move || directories.iter().try_for_each(|path| remove_tree_if_exists(path).map(drop))).await
    }
}
