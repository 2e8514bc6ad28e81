//! What is remembered of files with several names, by their inodes: names cost nothing, so that somebody may have made
//! as many as the disk has inodes for, each as long as a path can be.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::error::{Classify as _, Code};

/// How many such files there may be, in the fullest table of this size: what is remembered of each takes 30 bytes. They
/// have twice as many names at least, more than a gateway's state has files.
const FILES: usize = 114_000;

/// How many bytes their first names may have together.
const NAMES_BYTES: u64 = 128 << 20;

const REMEDY: &str = "Remove hard links from this directory, or copies of packages that share files, then try again.";

/// Something about each file with several names.
#[derive(Debug)]
pub(crate) struct Linked<T>(HashMap<u64, T>);

impl<T> Linked<T> {
    pub(crate) fn new() -> Self {
        Self(HashMap::new())
    }

    pub(crate) fn get(&self, inode: u64) -> Option<&T> {
        self.0.get(&inode)
    }

    pub(crate) fn has(&self, inode: u64) -> bool {
        self.0.contains_key(&inode)
    }

    /// Remembers it, and returns what was remembered before. [`Code::GatewayRefused`]: there are too many.
    pub(crate) fn insert(&mut self, inode: u64, what: T) -> Result<Option<T>> {
        let before = self.0.insert(inode, what);
        let room = || -> Result<()> {
            ensure!(self.0.len() <= FILES, "there are more than {FILES} files with several names");
            Ok(())
        };
        room().classify(Code::GatewayRefused, REMEDY)?;
        Ok(before)
    }
}

/// The first names of such files, in a file without a name of its own: in memory they would be as long as somebody else
/// likes.
#[derive(Debug)]
pub(crate) struct FirstNames {
    file: File,
    bytes: u64,
}

/// Where a name is in [`FirstNames`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    at: u32,
    bytes: u32,
}

impl FirstNames {
    /// On the file system of `directory`, in which only root can write.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(directory).context("making a file for the names of linked files")?;
        Ok(Self { file, bytes: 0 })
    }

    /// [`Code::GatewayRefused`]: they are too long.
    pub(crate) fn add(&mut self, name: &Path) -> Result<Place> {
        let name = name.as_os_str().as_bytes();
        let end = self.bytes + name.len() as u64;
        let room = || -> Result<Place> {
            ensure!(end <= NAMES_BYTES, "the names of files with several have more than {NAMES_BYTES} bytes");
            Ok(Place { at: self.bytes.try_into()?, bytes: name.len().try_into()? })
        };
        let place = room().classify(Code::GatewayRefused, REMEDY)?;
        self.file.write_all_at(name, self.bytes).context("noting its name")?;
        self.bytes = end;
        Ok(place)
    }

    pub(crate) fn get(&self, place: Place) -> io::Result<PathBuf> {
        let mut name = vec![0; place.bytes as usize];
        self.file.read_exact_at(&mut name, place.at.into())?;
        Ok(OsString::from_vec(name).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{code_of, one_line};

    #[test]
    fn files_and_their_names_have_a_limit() -> Result<()> {
        let mut linked = Linked::new();
        for inode in 0..FILES as u64 {
            assert_eq!(linked.insert(inode, ())?, None);
        }
        assert_eq!(linked.insert(0, ())?, Some(()), "it is known");
        let error = linked.insert(FILES as u64, ()).err().context("it was remembered")?;
        assert_eq!(code_of(&error), Code::GatewayRefused);
        assert!(one_line(&error).contains("more than 114000 files with several names"), "{error:#}");

        let mut names = FirstNames::new(tempfile::tempdir()?.path())?;
        let long = PathBuf::from("d/".repeat(1 << 15));
        let (first, last) = (names.add(Path::new("a\nb"))?, names.add(&long)?);
        assert_eq!((names.get(first)?, names.get(last)?), ("a\nb".into(), long.clone()));
        let error = (0..4096).find_map(|_| names.add(&long).err()).context("all were remembered")?;
        assert_eq!(code_of(&error), Code::GatewayRefused);
        assert!(one_line(&error).contains("more than 134217728 bytes"), "{error:#}");
        Ok(())
    }
}
