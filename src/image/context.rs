//! The build context: a tar archive on the boot disk, made there and handed to the engine piece by piece.
//!
//! It exists only while an image is built, where only root can write.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::io::AsyncReadExt as _;

use crate::host::{Host, blocking};
use crate::paths::BUILD_DIR;

/// The archive in the build directory.
const ARCHIVE: &str = "context.tar";

/// How much is read and handed on at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// A directory for one build.
#[derive(Debug)]
pub(super) struct BuildDir {
    directory: PathBuf,
}

impl BuildDir {
    /// An empty one; what an interrupted build left in it is removed.
    pub(super) async fn new(host: &Host) -> Result<Self> {
        let directory = host.path(BUILD_DIR);
        remove(&directory).await?;
        tokio::fs::create_dir_all(&directory).await.with_context(|| format!("making {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// Where files of the build may be put.
    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// The archive that was packed, from its first byte.
    pub(super) async fn open(&self) -> Result<tokio::fs::File> {
        let path = self.directory.join(ARCHIVE);
        tokio::fs::File::open(&path).await.with_context(|| format!("opening {}", path.display()))
    }

    /// Removes it with all that is in it.
    pub(super) async fn remove(self) -> Result<()> {
        remove(&self.directory).await
    }
}

/// Removes what an interrupted build left behind.
pub(super) async fn clear(host: &Host) -> Result<()> {
    let directory = host.path(BUILD_DIR);
    if tokio::fs::try_exists(&directory).await.with_context(|| format!("looking for {}", directory.display()))? {
        remove(&directory).await?;
        host.changed(format!("removed {}, left by a build that was cut", directory.display()));
    }
    Ok(())
}

async fn remove(directory: &Path) -> Result<()> {
    match tokio::fs::remove_dir_all(directory).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The next piece of the archive.
pub(super) async fn next_chunk<B: From<Vec<u8>>>(
    mut file: tokio::fs::File,
) -> std::io::Result<Option<(B, tokio::fs::File)>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let length = file.read(&mut chunk).await?;
    chunk.truncate(length);
    Ok((length > 0).then(|| (chunk.into(), file)))
}

/// Packs the Dockerfile and programs, each under its path in the context, mode 0755.
pub(super) async fn pack(directory: &Path, dockerfile: String, programs: Vec<(String, PathBuf)>) -> Result<()> {
    let directory = directory.to_owned();
    blocking(move || {
        let mut archive = create(&directory)?;
        append(&mut archive, "Dockerfile", 0o644, dockerfile.len() as u64, dockerfile.as_bytes())?;
        for (name, path) in programs {
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            let length = file.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
            append(&mut archive, &name, 0o755, length, file)?;
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        finish(archive)
    })
    .await
}

/// An archive being packed.
pub(super) type Archive = tar::Builder<BufWriter<File>>;

/// Begins the archive below `directory`.
pub(super) fn create(directory: &Path) -> Result<Archive> {
    let path = directory.join(ARCHIVE);
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    Ok(tar::Builder::new(BufWriter::with_capacity(CHUNK_BYTES, file)))
}

/// Completes it.
pub(super) fn finish(archive: Archive) -> Result<()> {
    archive.into_inner().and_then(|mut file| file.flush()).context("completing the build context")
}

fn append(archive: &mut Archive, name: &str, mode: u32, length: u64, content: impl std::io::Read) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(length);
    header.set_mode(mode);
    archive.append_data(&mut header, name, content).with_context(|| format!("packing {name}"))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn the_engine_gets_the_dockerfile_and_the_programs() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let build_dir = BuildDir::new(&host).await?;
        let program = build_dir.path().join("download");
        let content = vec![b'x'; 3 * CHUNK_BYTES + 1];
        fs::write(&program, &content)?;
        pack(build_dir.path(), "FROM scratch\n".to_owned(), vec![("bin/x".to_owned(), program)]).await?;

        let (mut file, mut bytes) = (build_dir.open().await?, Vec::new());
        while let Some((chunk, rest)) = next_chunk::<Vec<u8>>(file).await? {
            bytes.extend(chunk);
            file = rest;
        }
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut found = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let mut text = Vec::new();
            entry.read_to_end(&mut text)?;
            found.push((entry.path()?.display().to_string(), entry.header().mode()?, text));
        }
        let dockerfile = ("Dockerfile".to_owned(), 0o644, b"FROM scratch\n".to_vec());
        assert_eq!(found, [dockerfile, ("bin/x".to_owned(), 0o755, content)]);

        // The next run removes what a cut left, and notes it once.
        clear(&host).await?;
        clear(&host).await?;
        assert_eq!(host.ledger().borrow().changes.len(), 1);
        assert!(!host.path(BUILD_DIR).exists());
        Ok(())
    }
}
