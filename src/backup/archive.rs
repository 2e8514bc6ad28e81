//! The file format: a tar archive, compressed with gzip, that any tar can list.
//!
//! The header, the first member, says what it is a backup of. The trailer, the last one, has the number of members and
//! the SHA-256 of all that they are and hold: a file that was cut short, changed or forged is recognised before any of
//! it is used. Between them are the members below `state/` and `config/`, as they are to be restored.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header as TarHeader};

use super::members::{Members, RawMember};
use super::plan::{Kind, Member, Plan};
use crate::document;
use crate::error::{Classify as _, Code};
use crate::state::Record;
use crate::text::{hex, short, size};

/// The version of this format.
const FORMAT: u32 = 1;

/// The names of the first member and of the last.
const HEADER: &str = "openclaw-backup.json";
const TRAILER: &str = "openclaw-backup.end.json";

/// Neither of them is larger.
const TEXT_LIMIT: u64 = 1 << 20;

/// A tar archive is filled up to a whole record, with zeros.
const PADDING_LIMIT: u64 = 1 << 20;

/// The longest name that fits into a tar header; a longer one comes before it as a member of its own.
const NAME_BYTES: usize = 100;

/// What a backup is of: its first member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Header {
    /// The version of the format.
    format: u32,
    /// When it was begun: nothing in it is newer.
    pub created: Timestamp,
    /// The machine's host name; on Compute Engine the name of the VM.
    pub machine: String,
    /// How the state was read.
    pub how: How,
    /// The version of openclaw-init that made it.
    pub program: String,
    /// Which gateway version and image the state belongs to.
    pub record: Record,
}

/// How the state was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// By the running gateway's own `backup create`; what that leaves out was added from the files.
    Gateway,
    /// From the files, while no gateway ran.
    Stopped,
}

impl Header {
    pub(super) fn new(created: Timestamp, machine: String, how: How, record: Record) -> Self {
        Self { format: FORMAT, created, machine, how, program: env!("CARGO_PKG_VERSION").to_owned(), record }
    }
}

/// The last member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// How many files, directories and links there are.
    pub members: u64,
    /// How many bytes the files have.
    pub bytes: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trailer {
    #[serde(flatten)]
    size: Size,
    sha256: String,
}

/// The running checksum over all members.
#[derive(Default)]
struct Checksum {
    digest: Sha256,
    members: u64,
    bytes: u64,
}

impl Checksum {
    fn member(&mut self, member: &Member) {
        let (kind, size, link) = match &member.kind {
            Kind::Directory => (0, 0, Path::new("")),
            Kind::File(size) => (1, *size, Path::new("")),
            Kind::Symlink(target) => (2, 0, target.as_path()),
            Kind::HardLink(target) => (3, 0, target.as_path()),
        };
        self.members += 1;
        let (uid, gid) = member.owner;
        for number in [kind, size, member.mode.into(), uid.into(), gid.into(), member.modified] {
            self.digest.update(number.to_le_bytes());
        }
        for name in [member.path.as_path(), link] {
            self.digest.update((name.as_os_str().len() as u64).to_le_bytes());
            self.digest.update(name.as_os_str().as_bytes());
        }
    }

    fn trailer(self) -> Trailer {
        let sha256 = hex(self.digest.finalize());
        Trailer { size: Size { members: self.members, bytes: self.bytes }, sha256 }
    }
}

/// Adds what is read to the checksum.
struct ChecksumReader<'a, R> {
    content: R,
    checksum: &'a mut Checksum,
}

impl<R: Read> Read for ChecksumReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.content.read(buffer)?;
        self.checksum.digest.update(&buffer[..length]);
        self.checksum.bytes += length as u64;
        Ok(length)
    }
}

/// Writes an archive. What it accepts can be restored.
pub(super) struct Writer<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    checksum: Checksum,
    plan: Plan,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(file: W, header: &Header) -> Result<Self> {
        // A fast level: most of a state is text and databases, and the machine has a gateway to run.
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
        let mut writer = Self { tar, checksum: Checksum::default(), plan: Plan::new() };
        let header = serde_json::to_vec_pretty(header)?;
        writer.text(HEADER, &header)?;
        writer.checksum.digest.update(&header);
        Ok(writer)
    }

    /// Whether it holds a file or a link of this path.
    pub(super) fn has_content(&self, path: &Path) -> bool {
        self.plan.has_content(path)
    }

    /// Adds a member. A file must have as many bytes as it is said to have.
    pub(super) fn add(&mut self, member: &Member, content: impl Read) -> Result<()> {
        self.plan.admit(member).context("it could not be restored").classify(
            Code::GatewayRefused,
            "Move it out of the gateway's directory, or remove it, then run the backup again.",
        )?;
        let mut header = TarHeader::new_gnu();
        let (kind, size, link) = match &member.kind {
            Kind::Directory => (EntryType::Directory, 0, None),
            Kind::File(size) => (EntryType::Regular, *size, None),
            Kind::Symlink(target) => (EntryType::Symlink, 0, Some(target)),
            Kind::HardLink(target) => (EntryType::Link, 0, Some(target)),
        };
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(member.mode);
        header.set_uid(member.owner.0.into());
        header.set_gid(member.owner.1.into());
        header.set_mtime(member.modified);
        if let Some(link) = link {
            self.name(b'K', &mut header, link)?;
        }
        self.name(b'L', &mut header, &member.path)?;
        header.set_cksum();
        let before = self.checksum.bytes;
        let mut content = ChecksumReader { content: content.take(size), checksum: &mut self.checksum };
        self.tar.append(&header, &mut content)?;
        ensure!(self.checksum.bytes - before == size, "it became shorter while it was read");
        self.checksum.member(member);
        Ok(())
    }

    /// Writes the name, or the target of a link (`K`), as it is; the crate's own functions would tidy it up.
    fn name(&mut self, kind: u8, header: &mut TarHeader, name: &Path) -> Result<()> {
        let bytes = name.as_os_str().as_bytes();
        if bytes.len() > NAME_BYTES {
            let mut long = TarHeader::new_gnu();
            long.set_entry_type(EntryType::new(kind));
            long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
            long.set_size(bytes.len() as u64 + 1);
            long.set_cksum();
            self.tar.append(&long, bytes.chain(&b"\0"[..]))?;
        }
        let short = &bytes[..bytes.len().min(NAME_BYTES)];
        let field = if kind == b'K' { &mut header.as_old_mut().linkname } else { &mut header.as_old_mut().name };
        field[..short.len()].copy_from_slice(short);
        Ok(())
    }

    /// Ends the archive. Everything is then written to the file, not yet synced.
    pub(super) fn finish(mut self) -> Result<(W, Size)> {
        let trailer = std::mem::take(&mut self.checksum).trailer();
        self.text(TRAILER, &serde_json::to_vec_pretty(&trailer)?)?;
        let file = self.tar.into_inner()?.finish()?;
        Ok((file, trailer.size))
    }

    fn text(&mut self, name: &str, text: &[u8]) -> Result<()> {
        let mut header = TarHeader::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        Ok(self.tar.append_data(&mut header, name, text)?)
    }
}

/// Reads an archive from beginning to end, hands every member with its content to `visit`, and returns the header and
/// the size of all. Only then is what `visit` got proven: it is what was written, and can be unpacked.
pub(super) fn read(
    file: impl Read,
    mut visit: impl FnMut(&Member, &mut dyn Read) -> Result<()>,
) -> Result<(Header, Size)> {
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
    let mut members = Members::new(&mut tar).context("reading the first member")?;
    let first = members.next().map_err(|_| anyhow!("it is no tar archive compressed with gzip"))?;
    let (mut checksum, mut plan) = (Checksum::default(), Plan::new());
    let header = header(first.ok_or_else(|| anyhow!("it is empty"))?, &mut checksum)?;
    let trailer = loop {
        let found = members.next().with_context(|| format!("after {} members", checksum.members))?;
        let mut found = found.ok_or_else(|| anyhow!("its end is missing"))?;
        if found.path == Path::new(TRAILER) {
            break serde_json::from_slice::<Trailer>(&text(found.entry)?)
                .with_context(|| format!("reading {TRAILER}"))?;
        }
        let member = member(&found)?;
        let doing = || format!("at the member {}", short(&member.path));
        plan.admit(&member).with_context(doing)?;
        let mut content = ChecksumReader { content: &mut found.entry, checksum: &mut checksum };
        visit(&member, &mut content).with_context(doing)?;
        io::copy(&mut content, &mut io::sink()).with_context(doing)?;
        checksum.member(&member);
    };
    ensure!(members.next()?.is_none(), "there is more after its end");
    ensure!(checksum.trailer() == trailer, "its content is not what was written");
    // Nothing is left, but gzip checks its own sum only at the very end.
    let mut rest = tar.into_inner();
    let padding = io::copy(&mut (&mut rest).take(PADDING_LIMIT), &mut io::sink()).context("reading to its end")?;
    ensure!(padding < PADDING_LIMIT, "there is more after its end");
    let more = rest.into_inner().read(&mut [0])?;
    ensure!(more == 0, "there is more after its end");
    Ok((header, trailer.size))
}

fn header(first: RawMember<'_, impl Read>, checksum: &mut Checksum) -> Result<Header> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    ensure!(first.path == Path::new(HEADER), "it is no backup of openclaw-init: {HEADER} does not come first");
    let text = text(first.entry)?;
    checksum.digest.update(&text);
    let reading = || format!("reading {HEADER}");
    // Its record may hold any value, and a value takes far more memory than its text.
    let found = document::parse(str::from_utf8(&text)?).with_context(reading)?;
    let Version { format } = Version::deserialize(&found).with_context(reading)?;
    ensure!(format == FORMAT, "it has the format {format}, this version of openclaw-init reads {FORMAT}");
    serde_json::from_value(found).with_context(reading)
}

fn text(entry: tar::Entry<'_, impl Read>) -> Result<Vec<u8>> {
    ensure!(entry.size() <= TEXT_LIMIT, "it is larger than {}", size(TEXT_LIMIT));
    let mut text = Vec::new();
    entry.take(TEXT_LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

/// The member, if a backup may hold it: below `state/` or `config/`.
fn member(found: &RawMember<'_, impl Read>) -> Result<Member> {
    let doing = || format!("at the member {}", short(&found.path));
    let header = found.entry.header();
    let read = || -> Result<Member> {
        let path = inside(&found.path)?;
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File(found.entry.size()),
            EntryType::Symlink => Kind::Symlink(found.link()?),
            EntryType::Link => Kind::HardLink(inside(&found.link()?)?),
            other => bail!("it is of a kind that no backup holds ({other:?})"),
        };
        let owner = (u32::try_from(header.uid()?)?, u32::try_from(header.gid()?)?);
        Ok(Member { path, kind, mode: header.mode()? & 0o7777, owner, modified: header.mtime()? })
    };
    read().with_context(doing)
}

/// The path, if it stays below `state/` or `config/`.
fn inside(path: &Path) -> Result<PathBuf> {
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    ensure!(plain, "its path leads out of the archive");
    let tidy: PathBuf = path.components().collect();
    ensure!(tidy.starts_with("state") || tidy.starts_with("config"), "it is neither in state/ nor in config/");
    Ok(tidy)
}
