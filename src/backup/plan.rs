//! What unpacking an archive will make, in memory: a member that cannot be restored is named before anything is.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::state::copy::tree::DEPTH;

/// The longest name and path; the kernel's 4096 bytes have to hold the directory that is unpacked to, too.
const NAME_BYTES: usize = 255;
const PATH_BYTES: usize = 3840;
const TARGET_BYTES: usize = 4095;

/// How many bytes of names there may be, each with what it costs besides: some millions of files.
const NAMES_BYTES: usize = 256 << 20;
const NAME_COST: usize = 64;

/// One file, directory or link, by its path in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
    /// In seconds since 1970.
    pub(super) modified: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    /// With so many bytes.
    File(u64),
    /// To this target, which need not exist.
    Symlink(PathBuf),
    /// Another name of the file with this path in the archive.
    HardLink(PathBuf),
}

/// What is where. Paths by the beginning of their digest: however long they are, a member takes a few bytes.
pub(super) struct Plan {
    nodes: HashMap<Key, Node>,
    names: usize,
}

type Key = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    File,
    Symlink,
}

impl Plan {
    /// Two empty directories.
    pub(super) fn new() -> Self {
        let nodes = ["state", "config"].map(|top| (key(Path::new(top)), Node::Directory));
        Self { nodes: nodes.into(), names: 0 }
    }

    /// Adds one member, if it can be made after those before it.
    pub(super) fn admit(&mut self, member: &Member) -> Result<()> {
        let (node, target) = match &member.kind {
            Kind::Directory => (Node::Directory, None),
            Kind::File(_) => (Node::File, None),
            Kind::Symlink(target) => (Node::Symlink, Some(target)),
            Kind::HardLink(first) => (Node::File, Some(first)),
        };
        self.names += member.path.as_os_str().len() + target.map_or(0, |target| target.as_os_str().len()) + NAME_COST;
        ensure!(self.names <= NAMES_BYTES, "there are more names than can be remembered");
        check_length(&member.path)?;
        let is_short = target.is_none_or(|target| target.as_os_str().len() <= TARGET_BYTES);
        ensure!(is_short, "its target has more than {TARGET_BYTES} bytes");
        if let Kind::HardLink(first) = &member.kind {
            ensure!(self.nodes.get(&key(first)) == Some(&Node::File), "{} is no file before it", first.display());
        }
        self.parents(&member.path)?;
        let before = self.nodes.insert(key(&member.path), node);
        ensure!(
            before.is_none_or(|before| before == node && node == Node::Directory),
            "something of that name came before"
        );
        Ok(())
    }

    fn parents(&mut self, path: &Path) -> Result<()> {
        let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
        match self.nodes.get(&key(parent)) {
            Some(Node::Directory) => return Ok(()),
            Some(_) => anyhow::bail!("{} is no directory", parent.display()),
            None => self.nodes.insert(key(parent), Node::Directory),
        };
        self.parents(parent)
    }
}

fn check_length(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_bytes();
    ensure!(bytes.len() <= PATH_BYTES, "its path has more than {PATH_BYTES} bytes");
    ensure!(
        bytes.split(|byte| *byte == b'/').all(|name| name.len() <= NAME_BYTES),
        "a name has more than {NAME_BYTES} bytes"
    );
    ensure!(path.components().count() <= DEPTH + 1, "there are more than {DEPTH} directories within each other");
    Ok(())
}

fn key(path: &Path) -> Key {
    let digest = Sha256::digest(path.as_os_str().as_bytes());
    let mut key = Key::default();
    let length = key.len();
    key.copy_from_slice(&digest[..length]);
    key
}
