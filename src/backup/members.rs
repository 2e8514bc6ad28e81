//! The members of a tar archive that somebody else may have made: names are limited before they are read.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use tar::{Entries, Entry, EntryType, PaxExtensions};

/// The extensions of a member are its path, the target of its link and little else; the kernel knows no path of more
/// than 4 KiB.
const EXTENSION_BYTES: u64 = 16 << 10;
const EXTENSIONS_LIMIT: usize = 4;

/// The members of an archive, in its order.
pub(super) struct Members<'a, R: Read>(Entries<'a, R>);

/// One member, with the names that its extensions give it.
pub(super) struct RawMember<'a, R: Read> {
    pub(super) entry: Entry<'a, R>,
    pub(super) path: PathBuf,
    link: Option<PathBuf>,
}

impl<R: Read> RawMember<'_, R> {
    /// The length of its names.
    pub(super) fn name_bytes(&self) -> u64 {
        let link = self.link.as_ref().map_or(0, |link| link.as_os_str().len());
        (self.path.as_os_str().len() + link) as u64
    }

    /// The target of a link.
    pub(super) fn link(&self) -> Result<PathBuf> {
        let link = self.link.clone().filter(|link| !link.as_os_str().is_empty());
        link.context("the link has no target")
    }
}

impl<'a, R: Read> Members<'a, R> {
    pub(super) fn new(archive: &'a mut tar::Archive<R>) -> Result<Self> {
        // What the crate itself makes of extensions it reads into memory, whatever their size.
        Ok(Self(archive.entries()?.raw(true)))
    }

    /// The next member, `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<RawMember<'a, R>>> {
        let (mut path, mut link, mut size) = (None, None, None);
        for _ in 0..=EXTENSIONS_LIMIT {
            let Some(entry) = self.0.next().transpose()? else { return Ok(None) };
            match entry.header().entry_type() {
                EntryType::GNULongName => path = Some(name(&extension(entry)?)),
                EntryType::GNULongLink => link = Some(name(&extension(entry)?)),
                EntryType::XHeader => {
                    for record in PaxExtensions::new(&extension(entry)?) {
                        let record = record?;
                        match record.key_bytes() {
                            b"path" => path = Some(name(record.value_bytes())),
                            b"linkpath" => link = Some(name(record.value_bytes())),
                            b"size" => size = Some(record.value()?.parse::<u64>()?),
                            _ => {}
                        }
                    }
                }
                EntryType::XGlobalHeader => drop(extension(entry)?),
                _ => {
                    let path = path.unwrap_or_else(|| name(&entry.path_bytes()));
                    let link = link.or_else(|| entry.link_name_bytes().map(|bytes| name(&bytes)));
                    ensure!(size.is_none_or(|size| size == entry.size()), "{} has two sizes", path.display());
                    return Ok(Some(RawMember { entry, path, link }));
                }
            }
        }
        bail!("a member has more than {EXTENSIONS_LIMIT} extensions")
    }
}

fn extension(entry: Entry<'_, impl Read>) -> Result<Vec<u8>> {
    let size = entry.size();
    ensure!(size <= EXTENSION_BYTES, "a name of {size} bytes is longer than any path");
    let mut bytes = Vec::new();
    entry.take(EXTENSION_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Up to its first NUL.
fn name(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into()
}
