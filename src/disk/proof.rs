//! The proof that a disk is blank, before it is formatted.
//!
//! A disk without a signature may still hold all that somebody has: a single block of data has none. So every block is
//! read. On a large disk for which that takes too long samples are read instead: every place where a known format keeps
//! a structure or its copy, and one random block of each MiB.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek64};
use rustix::process::setpriority_process;
use tokio::sync::watch;

use super::probe::{self, END_BYTES};
use crate::config::ProofChoice;
use crate::error::{Classify as _, Code};
use crate::host::{Host, blocking};
use crate::text::{self, GIB, MIB};

/// Up to this size samples are no proof unless the operator says so.
const FULL_BYTES: u64 = 64 * GIB;

/// By then a disk's pace is known: its cache and its burst are used up.
const PACE_DEADLINE: Duration = Duration::from_secs(30);
/// No reading takes longer unasked. A run has 55 minutes, of which the rest of a first boot needs up to 15.
const READING_DEADLINE: Duration = Duration::from_secs(20 * 60);

/// A disk of which no read ends for so long does not answer any more.
const STALL_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// One read of the full reading: large enough for a network disk's throughput, short enough on a slow one.
const CHUNK_BYTES: u64 = 4 * MIB;
/// One sample, and the alignment of every direct read.
const BLOCK_BYTES: u64 = BLOCK as u64;
const BLOCK: usize = 4096;

/// What every block is compared with.
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The highest nice value.
const LEAST_URGENT: i32 = 19;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Full,
    Sampled,
}

impl fmt::Display for Reading {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Full => "every block",
            Self::Sampled => "one block of each MiB",
        })
    }
}

/// What was read of a disk, all of it zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) reading: Reading,
    bytes: u64,
}

impl fmt::Display for Proof {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} is zero ({} were read)", self.reading, text::size(self.bytes))
    }
}

/// What a look at the whole disk came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    Zeros(Proof),
    /// A byte at this offset is not zero.
    NonZero(u64),
    /// No reading ends in time; how long each takes.
    Unproven(String),
}

/// How far a reading is, in reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    done: u64,
    of: u64,
    elapsed: Duration,
}

impl Pace {
    /// How long the whole reading takes.
    fn total(self) -> Duration {
        let millis = self.elapsed.as_millis() * u128::from(self.of) / u128::from(self.done.max(1));
        Duration::from_millis(millis.try_into().unwrap_or(u64::MAX))
    }
}

/// Which reading goes on after one that came this far; `None`: no reading ends in time.
fn decide(choice: ProofChoice, size: u64, reading: Reading, pace: Pace) -> Option<Reading> {
    let in_time = pace.elapsed < PACE_DEADLINE || pace.total() <= READING_DEADLINE;
    if choice != ProofChoice::Auto || in_time {
        return Some(reading);
    }
    (reading == Reading::Full && size > FULL_BYTES).then_some(Reading::Sampled)
}

/// Reads the disk `node`, which nobody else may use meanwhile, as far as `choice` and its pace allow.
///
/// What `written` names may hold anything.
pub(super) async fn read(host: &Host, node: &Path, choice: ProofChoice, written: Written) -> Result<Finding> {
    let (progress, mut heard) = watch::channel(None);
    let (opened, display_node, started) = (node.to_owned(), node.display(), Instant::now());
    let reading =
        move || behind_the_others(|| read_until_decided(&mut Disk::open(&opened, written)?, choice, &progress));
    let mut work = pin!(blocking(reading));
    let finding = loop {
        tokio::select! {
            finding = &mut work => break finding,
            () = tokio::time::sleep(STALL_DEADLINE) => break Err(anyhow!("no read has ended for {}", minutes(STALL_DEADLINE))),
            Ok(()) = heard.changed() => {
                let Some(pace): Option<Pace> = *heard.borrow_and_update() else { continue };
                let (percent, left) = (pace.done * 100 / pace.of, minutes(pace.total().saturating_sub(pace.elapsed)));
                host.progress(format!("reading {display_node} before it is formatted: {percent} %, {left} left"));
                if choice != ProofChoice::Auto {
                    host.extend_deadline(started.elapsed());
                }
            }
        }
    };
    let doing = || format!("reading {display_node} to prove that it is blank");
    finding.with_context(doing).classify(Code::DiskDamaged, probe::UNREADABLE)
}

/// Runs `work` on what the other branches of a boot leave of the processors: they are what a user waits for.
fn behind_the_others<T>(work: impl FnOnce() -> T) -> T {
    // Linux changes the calling thread alone (setpriority(2)). Where it may not, the work is as urgent as any.
    let _ = setpriority_process(None, LEAST_URGENT);
    let result = work();
    let _ = setpriority_process(None, 0);
    result
}

fn minutes(time: Duration) -> String {
    format!("{} min", time.as_secs().div_ceil(60))
}

fn read_until_decided(disk: &mut Disk, choice: ProofChoice, progress: &Progress) -> Result<Finding> {
    let (mut estimates, mut next) = (Vec::new(), Some(Reading::Full));
    if choice == ProofChoice::Sampled {
        next = Some(Reading::Sampled);
    }
    while let Some(reading) = next {
        match pass(disk, reading, choice, progress)? {
            Pass::Ended(finding) => return Ok(finding),
            Pass::TooSlow(pace, other) => {
                estimates.push(format!("reading {reading} takes about {}", minutes(pace.total())));
                next = other;
            }
        }
    }
    Ok(Finding::Unproven(estimates.join(", ")))
}

/// How a reading ended.
enum Pass {
    Ended(Finding),
    /// What to read instead, if anything.
    TooSlow(Pace, Option<Reading>),
}

/// Who listens to how far the reading is; it ends early when nobody does any more.
type Progress = watch::Sender<Option<Pace>>;

fn pass(disk: &mut Disk, reading: Reading, choice: ProofChoice, progress: &Progress) -> Result<Pass> {
    let places = Places::of(reading, disk.size)?;
    let (of, started, mut bytes) = (places.count, Instant::now(), 0);
    for (done, (start, length)) in (1..).zip(places.iter) {
        if let Some(at) = disk.first_non_zero(start, length)? {
            return Ok(Pass::Ended(Finding::NonZero(at)));
        }
        bytes += length;
        let pace = Pace { done, of, elapsed: started.elapsed() };
        progress.send(Some(pace)).map_err(|_| anyhow!("the run has ended"))?;
        let next = decide(choice, disk.size, reading, pace);
        if next != Some(reading) {
            return Ok(Pass::TooSlow(pace, next));
        }
    }
    Ok(Pass::Ended(Finding::Zeros(Proof { reading, bytes })))
}

/// What a reading reads, as (offset, length).
struct Places {
    count: u64,
    iter: Box<dyn Iterator<Item = (u64, u64)>>,
}

impl Places {
    fn of(reading: Reading, size: u64) -> Result<Self> {
        if reading == Reading::Full {
            let all = (0..size).step_by(usize::try_from(CHUNK_BYTES)?).map(move |at| (at, CHUNK_BYTES.min(size - at)));
            return Ok(Self { count: size.div_ceil(CHUNK_BYTES), iter: Box::new(all) });
        }
        let fixed = fixed_places(size);
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).context("drawing random places")?;
        let mut random = u64::from_le_bytes(seed);
        let blocks = (size / BLOCK_BYTES).max(1);
        let samples = (0..size).step_by(usize::try_from(MIB)?).map(move |start| {
            random = scrambled(random);
            let block = start / BLOCK_BYTES + random % (MIB / BLOCK_BYTES);
            (block.min(blocks - 1) * BLOCK_BYTES, BLOCK_BYTES)
        });
        let count = fixed.len() as u64 + size.div_ceil(MIB);
        Ok(Self { count, iter: Box::new(fixed.into_iter().chain(samples)) })
    }
}

/// The next of a sequence that nobody can foresee who does not know its seed (splitmix64).
fn scrambled(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The largest allocation group of XFS (`XFS_AG_MAX_BLOCKS` of 4 KiB); all groups of a large disk are so large. Each
/// begins with a copy of the superblock.
const XFS_GROUP_BYTES: u64 = (1 << 40) - 4096;

/// Where a whole disk or its first partition begins: at the sectors 0, 63 and 2048.
const BASES: [u64; 3] = [0, 63 * 512, MIB];

/// The fixed places of the formats that blkid, wipefs and the kernel know, and of their copies: the ends, which hold
/// all partition tables, RAID and ZFS labels and primary superblocks; the copies of ext4's, btrfs's and OCFS2's
/// superblocks, and of XFS's on disks above 4 TiB; around the quarters XFS's on smaller ones and NTFS's.
fn fixed_places(size: u64) -> Vec<(u64, u64)> {
    let quarters = (1..4).map(|quarter| ((size / 4 * quarter).saturating_sub(MIB), 2 * MIB));
    let xfs = (1..).map(|group| group * XFS_GROUP_BYTES).take_while(|offset| *offset < size);
    let btrfs = [64 * MIB, 256 * GIB];
    let ocfs2 = (0..6).map(|exponent| GIB << (2 * exponent));
    let copies = ext4_copies(size).into_iter().chain(btrfs).chain(ocfs2).chain(xfs);
    // Two blocks hold a copy that begins in the first of them, wherever that is.
    let copies = copies.flat_map(|offset| BASES.map(|base| (base + offset, 2 * BLOCK_BYTES)));
    // ZFS on a whole disk leaves the last 8 MiB to a partition without content; its last labels are before it.
    let zfs = (size.saturating_sub(END_BYTES + 2 * MIB), 2 * MIB);
    let ends = [(0, END_BYTES), (size.saturating_sub(END_BYTES), END_BYTES), zfs];
    let aligned = |(start, length): (u64, u64)| {
        let start = start / BLOCK_BYTES * BLOCK_BYTES;
        (start, length.min(size.saturating_sub(start)))
    };
    ends.into_iter().chain(quarters).chain(copies).map(aligned).filter(|(_, length)| *length > 0).collect()
}

/// Where ext4 keeps copies of its superblock: in groups 1 and the powers of 3, 5 and 7 (`sparse_super`), or in group 1
/// and the last one (`sparse_super2`), of which the last is left out where it is too small. A group has a block's bits
/// of blocks, or of clusters (`bigalloc`): its bytes are a power of two, from 8 MiB on. With blocks of 1 KiB a copy
/// begins one block later.
fn ext4_copies(size: u64) -> Vec<u64> {
    let mut offsets = Vec::new();
    for group in (23..63).map(|bits| 1_u64 << bits).take_while(|group| *group < size) {
        for base in [3, 5, 7_u64] {
            let groups = std::iter::successors(Some(1), |index: &u64| index.checked_mul(base));
            let copies = groups.map_while(|index| index.checked_mul(group));
            offsets.extend(copies.take_while(|offset| *offset < size));
        }
        let last = (size - 1) / group;
        offsets.extend([last * group, (last - 1) * group]);
    }
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

/// Blocks of a disk that we have written, or may have: by their numbers, in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Written(Vec<u64>);

impl Written {
    /// The blocks of `file`, from its start on, that are not all zero. A hole costs nothing.
    pub(super) fn in_file(file: &File) -> Result<Self> {
        let (mut blocks, mut end) = (Vec::new(), 0);
        while let Some(start) = seek(file, end, Whence::SeekData)? {
            end = seek(file, start, Whence::SeekHole)?.context("data without an end")?;
            let mut buffer = [0; BLOCK];
            for at in (start / BLOCK_BYTES * BLOCK_BYTES..end).step_by(BLOCK) {
                let length = file.read_at(&mut buffer, at)?;
                if buffer[..length] != ZEROS[..length] {
                    blocks.push(at / BLOCK_BYTES);
                }
            }
        }
        Ok(Self(blocks))
    }

    /// The same with the blocks in which the bytes from `start` on lie.
    pub(super) fn and(mut self, start: u64, length: u64) -> Self {
        self.0.extend(start / BLOCK_BYTES..(start + length).div_ceil(BLOCK_BYTES));
        self.0.sort_unstable();
        self
    }

    fn has(&self, at: u64) -> bool {
        self.0.binary_search(&(at / BLOCK_BYTES)).is_ok()
    }
}

/// Where data or a hole begins in `file`, from `offset` on; `None`: nowhere.
fn seek(file: &File, offset: u64, whence: Whence) -> Result<Option<u64>> {
    match lseek64(file, offset.try_into()?, whence) {
        Ok(found) => Ok(Some(found.try_into()?)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error).context("looking for what is written"),
    }
}

/// A disk that is read past the page cache: what the cache would give up for it is needed by the other stages.
struct Disk {
    file: File,
    size: u64,
    buffer: Vec<u8>,
    written: Written,
}

impl Disk {
    fn open(node: &Path, written: Written) -> Result<Self> {
        let open = |flags: OFlag| File::options().read(true).custom_flags(flags.bits()).open(node);
        // Not every file system that holds a test's image can do direct reads.
        let file = open(OFlag::O_EXCL | OFlag::O_DIRECT).or_else(|_| open(OFlag::O_EXCL))?;
        let size = probe::size(&file)?;
        let buffer = vec![0; usize::try_from(CHUNK_BYTES + BLOCK_BYTES)?];
        Ok(Self { file, size, buffer, written })
    }

    /// The first byte that is not zero, but for what is written.
    fn first_non_zero(&mut self, start: u64, length: u64) -> Result<Option<u64>> {
        // Direct reads go to aligned memory only.
        let aligned = self.buffer.as_ptr().align_offset(BLOCK);
        let (mut at, end) = (start, start + length);
        while at < end {
            let step = usize::try_from(CHUNK_BYTES.min(end - at))?;
            let chunk = &mut self.buffer[aligned..aligned + step];
            self.file.read_exact_at(chunk, at).with_context(|| format!("at offset {at}"))?;
            let mut blocks = chunk.chunks(BLOCK).zip((at..).step_by(BLOCK));
            let found = blocks.find(|(block, at)| **block != ZEROS[..block.len()] && !self.written.has(*at));
            if let Some((block, at)) = found {
                return Ok(block.iter().position(|byte| *byte != 0).map(|index| at + index as u64));
            }
            at += step as u64;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
