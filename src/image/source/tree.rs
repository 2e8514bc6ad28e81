//! The id that git gives to a tree of files, computed from the files alone.
//!
//! An archive of a commit has no proof of its own; the tree id, recomputed, is one: git's objects are named
//! by the SHA-1 of their kind, length and content, a directory's by its entries.

use std::collections::BTreeMap;
use std::io::{self, Read};

use sha1::{Digest as _, Sha1};

/// The kinds of entries, by git's modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    File,
    Executable,
    Link,
}

type Id = [u8; 20];

/// A directory with its entries.
#[derive(Debug, Default)]
pub(super) struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
}

#[derive(Debug)]
enum Entry {
    Blob(Mode, Id),
    Tree(Tree),
}

impl Tree {
    /// Puts a file at `path`, whose parts are names without slashes.
    pub(super) fn insert(&mut self, path: &[Vec<u8>], mode: Mode, id: Id) {
        match path {
            [] => {}
            [name] => drop(self.entries.insert(name.clone(), Entry::Blob(mode, id))),
            [name, rest @ ..] => {
                let entry = self.entries.entry(name.clone()).or_insert_with(|| Entry::Tree(Self::default()));
                if let Entry::Tree(tree) = entry {
                    tree.insert(rest, mode, id);
                }
            }
        }
    }

    /// The tree's id.
    pub(super) fn id(&self) -> Id {
        let mut entries: Vec<_> = self.entries.iter().collect();
        // git sorts a directory as if its name ended in a slash.
        let key = |name: &[u8], entry: &Entry| match entry {
            Entry::Tree(_) => [name, b"/"].concat(),
            Entry::Blob(..) => name.to_vec(),
        };
        entries.sort_by_cached_key(|(name, entry)| key(name, entry));
        let mut content = Vec::new();
        for (name, entry) in entries {
            let (mode, id): (&[u8], _) = match entry {
                Entry::Blob(Mode::File, id) => (b"100644 ", *id),
                Entry::Blob(Mode::Executable, id) => (b"100755 ", *id),
                Entry::Blob(Mode::Link, id) => (b"120000 ", *id),
                Entry::Tree(tree) => (b"40000 ", tree.id()),
            };
            content.extend_from_slice(mode);
            content.extend_from_slice(name);
            content.push(0);
            content.extend_from_slice(&id);
        }
        object("tree", &content)
    }
}

/// The id of a blob with this content.
pub(super) fn blob(content: &[u8]) -> Id {
    object("blob", content)
}

fn object(kind: &str, content: &[u8]) -> Id {
    let mut hash = begin(kind, content.len() as u64);
    hash.update(content);
    hash.finalize().into()
}

fn begin(kind: &str, length: u64) -> Sha1 {
    Sha1::new_with_prefix(format!("{kind} {length}\0"))
}

/// A reader of a blob of known length that computes its id as it is read.
pub(super) struct BlobReader<R> {
    inner: R,
    hash: Sha1,
}

impl<R: Read> BlobReader<R> {
    pub(super) fn new(inner: R, length: u64) -> Self {
        Self { inner, hash: begin("blob", length) }
    }

    /// The id of all that was read.
    pub(super) fn id(self) -> Id {
        self.hash.finalize().into()
    }
}

impl<R: Read> Read for BlobReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hex;

    /// The ids are those of `git hash-object` and `git mktree` (2.39).
    #[test]
    fn ids_are_those_of_git() -> io::Result<()> {
        assert_eq!(hex(blob(b"hello\n")), "ce013625030ba8dba906f756967f9e9ca394464a");
        let mut reader = BlobReader::new(b"hello\n".as_slice(), 6);
        io::copy(&mut reader, &mut io::sink())?;
        assert_eq!(reader.id(), blob(b"hello\n"));
        assert_eq!(hex(Tree::default().id()), "4b825dc642cb6eb9a060e54bf8d69288fbee4904");
        let mut tree = Tree::default();
        let part = |text: &str| text.as_bytes().to_vec();
        tree.insert(&[part("a.b")], Mode::File, blob(b"hello\n"));
        tree.insert(&[part("a"), part("run")], Mode::Executable, blob(b"#!/bin/sh\n"));
        tree.insert(&[part("a"), part("link")], Mode::Link, blob(b"run"));
        assert_eq!(hex(tree.id()), "ec0a831099291fb4ff5fc2f23ec1f035f853fddd");
        Ok(())
    }
}
