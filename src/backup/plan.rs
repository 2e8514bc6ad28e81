//! What unpacking an archive will make, in memory: a member that cannot be restored is named before anything is.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::state::copy::tree::DEPTH;
use crate::text::short;

/// The longest name and path; the kernel's 4096 bytes have to hold the directory that is unpacked to, too.
const NAME_BYTES: usize = 255;
const PATH_BYTES: usize = 3840;
const TARGET_BYTES: usize = 4095;

/// How many files, directories and links there may be. A node takes 13 bytes of a table that is half empty at worst:
/// 14 MB for all. A gateway's state with its plugins has a fifth of them.
const NODES: usize = 900_000;

/// How many tables they are in: a table that grows is in memory twice, a small one does not matter.
const TABLES: usize = 16;

/// How many names a file may have: ext4 allows no more.
const NAMES_PER_FILE: u16 = 65_000;

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

/// What is where. Paths by a keyed hash: however long they are, a member takes a few bytes, and nobody who does not
/// know the keys, which are made anew for each plan, can make two paths be taken for one.
pub(super) struct Plan {
    hasher: RandomState,
    tables: [HashMap<Key, Node>; TABLES],
    nodes: usize,
}

/// Not a number: that would take its own alignment, and a node 16 bytes.
type Key = [u8; 8];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    /// With so many names.
    File(u16),
    /// One more name of a file.
    HardLink,
    Symlink,
}

const _: () = assert!(size_of::<(Key, Node)>() == 12, "what a node takes is reckoned with");

impl Plan {
    /// Two empty directories.
    pub(super) fn new() -> Self {
        let mut plan = Self { hasher: RandomState::new(), tables: Default::default(), nodes: 0 };
        for top in ["state", "config"] {
            plan.insert(Path::new(top), Node::Directory);
        }
        plan
    }

    /// Whether there is a file or a link of this path.
    pub(super) fn has_content(&self, path: &Path) -> bool {
        self.get(path).is_some_and(|node| node != Node::Directory)
    }

    /// Adds one member, if it can be made after those before it.
    pub(super) fn admit(&mut self, member: &Member) -> Result<()> {
        let (node, target) = match &member.kind {
            Kind::Directory => (Node::Directory, None),
            Kind::File(_) => (Node::File(1), None),
            Kind::Symlink(target) => (Node::Symlink, Some(target)),
            Kind::HardLink(first) => (Node::HardLink, Some(first)),
        };
        check_length(&member.path)?;
        ensure!(i64::try_from(member.modified).is_ok(), "it was changed at no time that a file can have");
        let is_short = target.is_none_or(|target| target.as_os_str().len() <= TARGET_BYTES);
        ensure!(is_short, "its target has more than {TARGET_BYTES} bytes");
        if let Kind::HardLink(first) = &member.kind {
            self.count_name(first)?;
        }
        self.parents(&member.path)?;
        let before = self.insert(&member.path, node);
        ensure!(
            before.is_none_or(|before| before == node && node == Node::Directory),
            "something of that name came before"
        );
        // Parents that have no member of their own are made, too.
        ensure!(self.nodes <= NODES, "there are more files, directories and links than {NODES}");
        Ok(())
    }

    /// One more name of the file `first`, which is not itself such a name.
    fn count_name(&mut self, first: &Path) -> Result<()> {
        let Some(Node::File(names)) = self.get(first) else { bail!("{} is no file before it", short(first)) };
        ensure!(names < NAMES_PER_FILE, "{} has more than {NAMES_PER_FILE} names", short(first));
        self.insert(first, Node::File(names + 1));
        Ok(())
    }

    fn parents(&mut self, path: &Path) -> Result<()> {
        let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
        match self.get(parent) {
            Some(Node::Directory) => return Ok(()),
            Some(_) => bail!("{} is no directory", short(parent)),
            None => self.insert(parent, Node::Directory),
        };
        self.parents(parent)
    }

    fn get(&self, path: &Path) -> Option<Node> {
        let key = self.key(path);
        self.tables[table(key)].get(&key).copied()
    }

    /// Returns what was there before.
    fn insert(&mut self, path: &Path, node: Node) -> Option<Node> {
        let key = self.key(path);
        let before = self.tables[table(key)].insert(key, node);
        self.nodes += usize::from(before.is_none());
        before
    }

    fn key(&self, path: &Path) -> Key {
        self.hasher.hash_one(path.as_os_str().as_bytes()).to_le_bytes()
    }
}

fn table(key: Key) -> usize {
    usize::from(key[0]) % TABLES
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
