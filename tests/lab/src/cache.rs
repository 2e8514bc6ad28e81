//! Slow parts (root file systems, images, package repositories), made once and kept outside the tree.
//!
//! An entry is a directory named after what it holds and a digest of everything that determines its
//! content, so a changed recipe makes a new entry instead of trusting an old one. The cache is optional:
//! deleting it costs time, nothing else.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// The directory of all entries: `$OPENCLAW_LAB_CACHE`, or `$XDG_CACHE_HOME/openclaw-lab`, or
/// `~/.cache/openclaw-lab`.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache that the environment names, or the user's own.
    pub fn from_env() -> Result<Self> {
        let named = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = named("OPENCLAW_LAB_CACHE")
            .or_else(|| named("XDG_CACHE_HOME").map(|it| it.join("openclaw-lab")))
            .or_else(|| named("HOME").map(|it| it.join(".cache/openclaw-lab")))
            .context("finding the cache: none of OPENCLAW_LAB_CACHE, XDG_CACHE_HOME and HOME is set")?;
        Self::open(root)
    }

    /// Opens the cache below `root`, creating the directory.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root).with_context(|| format!("creating the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// The entry called `name` for a recipe: its directory, made by `build` when it is not there.
    ///
    /// `recipe` is everything that determines the content. `build` gets an empty directory; the entry
    /// appears under its final name only after `build` succeeded. Processes that want the same entry
    /// wait for each other.
    pub fn entry(&self, name: &str, recipe: &[&str], build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let mut digest = Sha256::new();
        for part in recipe {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
        let key = digest.finalize().iter().take(8).fold(0_u64, |key, &byte| key << 8 | u64::from(byte));
        let key = format!("{key:016x}");
        let entry = self.root.join(format!("{name}-{key}"));
        let lock = self.root.join(format!("{name}.lock"));
        let lock = File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
        let _held = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("waiting for the cache entry {name}"))?;
        if entry.exists() {
            return Ok(entry);
        }
        let partial = self.root.join(format!("{name}-{key}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("removing the unfinished {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
        build(&partial).with_context(|| format!("making the cache entry {name}"))?;
        fs::rename(&partial, &entry).with_context(|| format!("naming the finished {}", entry.display()))?;
        Ok(entry)
    }
}
