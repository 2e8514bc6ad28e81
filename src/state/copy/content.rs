//! The bytes of files: copied with their holes, compared without reading these.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use anyhow::{Context, Result};
use fs_extra::error::ErrorKind;
use fs_extra::file::{CopyOptions, TransitProcess, copy_with_progress};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::tree;

/// How much is read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Copies the content of `from` into the new, empty file `to`. `on_progress` gets the bytes copied since its last call.
pub(super) fn copy(from: &File, to: &File, on_progress: &mut dyn FnMut(u64)) -> Result<()> {
    let found = from.metadata()?;
    if found.blocks() * 512 < found.len() {
        return copy_sparse(from, to, found.len(), on_progress);
    }
    // A buffer is made for each file: not larger than the file, or a great many small ones take minutes.
    let buffer = usize::try_from(found.len()).unwrap_or(BUFFER_BYTES).clamp(4096, BUFFER_BYTES);
    let options = CopyOptions::new().overwrite(true).buffer_size(buffer);
    let mut progress = 0;
    let handler = |process: TransitProcess| {
        on_progress(process.copied_bytes - progress);
        progress = process.copied_bytes;
    };
    match copy_with_progress(tree::of(from), tree::of(to), &options, handler) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind {
            ErrorKind::Io(error) => error.into(),
            // Less was written than was asked for: the only reason of a disk.
            _ => io::Error::from(Errno::ENOSPC).into(),
        }),
    }
}

fn copy_sparse(mut from: &File, mut to: &File, len: u64, on_progress: &mut dyn FnMut(u64)) -> Result<()> {
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at, len)? {
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        on_progress(start - at);
        at = start;
        while at < end {
            let copied = io::copy(&mut from.take((end - at).min(BUFFER_BYTES as u64)), &mut to)?;
            if copied == 0 {
                break;
            }
            on_progress(copied);
            at += copied;
        }
        at = end;
    }
    to.set_len(len)?;
    // After a power cut, the size of a file with holes does not prove that its data arrived.
    Ok(to.sync_data()?)
}

/// The first stretch of data at or behind `at`, up to `len`.
fn next_data(file: &File, at: u64, len: u64) -> Result<Option<(u64, u64)>> {
    let start = match lseek(file, i64::try_from(at)?, Whence::SeekData) {
        Ok(start) => u64::try_from(start)?,
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno).context("looking for data"),
    };
    let end = match lseek(file, i64::try_from(start)?, Whence::SeekHole) {
        Ok(end) => u64::try_from(end)?.min(len),
        Err(Errno::ENXIO) => len,
        Err(errno) => return Err(errno).context("looking for a hole"),
    };
    Ok((start < end).then_some((start, end)))
}

/// Whether both files have the same content.
pub(super) fn equal(one: &File, other: &File, on_progress: &mut dyn FnMut(u64)) -> Result<bool> {
    let len = one.metadata()?.len();
    if other.metadata()?.len() != len {
        return Ok(false);
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        let stretches = [next_data(one, at, len)?, next_data(other, at, len)?];
        let stretches = stretches.iter().flatten();
        let Some(start) = stretches.clone().map(|(start, _)| *start).min() else { return Ok(true) };
        let end = stretches.filter(|(from, _)| *from == start).map(|(_, end)| *end).min().unwrap_or(len);
        on_progress(start - at);
        at = start;
        while at < end {
            let chunk = usize::try_from(end - at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            left.resize(chunk, 0);
            right.resize(chunk, 0);
            let read = |file: &File, buffer: &mut [u8]| match file.read_exact_at(buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
                outcome => outcome.map(|()| true),
            };
            if !(read(one, &mut left)? && read(other, &mut right)? && left == right) {
                return Ok(false);
            }
            on_progress(chunk as u64);
            at += chunk as u64;
        }
    }
}

/// Whether `file` is `SQLite`'s, a database or what belongs to one (sqlite.org/fileformat.html: the header; the
/// page size is a power of two from 512 on; sqlite.org/tempfiles.html: the suffixes).
pub(super) fn is_sqlite(name: &[u8], file: &File) -> Result<bool> {
    if [&b"-wal"[..], b"-shm", b"-journal"].iter().any(|suffix| name.ends_with(suffix)) {
        return Ok(true);
    }
    let len = file.metadata()?.len();
    let mut header = [0; 16];
    Ok(len > 0
        && len.is_multiple_of(512)
        && file.read_exact_at(&mut header, 0).is_ok()
        && &header == b"SQLite format 3\0")
}
