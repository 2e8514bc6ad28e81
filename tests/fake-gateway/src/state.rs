//! The state: a schema number, and a counter that every start raises and brings to the disk.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context as _, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{Release, directory, write};

/// What is kept over restarts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// The form of the state; a later version raises it, and no version reads a higher one.
    pub(crate) schema: u64,
    /// How often a gateway was started on it.
    pub(crate) starts: u64,
}

impl State {
    /// Reads the state, brings it to the version's schema, counts this start; all of it is on the disk afterwards.
    pub(crate) fn open(release: Release) -> Result<Self> {
        let schema = release.schema;
        let mut state = Self::read()?.unwrap_or(Self { schema, starts: 0 });
        let found = state.schema;
        ensure!(found <= schema, "uses newer schema version {found}; this build supports {schema}");
        ensure!(
            found == schema || !release.wants_doctor,
            "Legacy state found. Run `openclaw doctor --fix`, then retry."
        );
        state.schema = schema;
        state.starts += 1;
        state.write()?;
        Ok(state)
    }

    fn read() -> Result<Option<Self>> {
        let path = path();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display())).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn write(&self) -> Result<()> {
        write(&path(), &serde_json::to_vec(self)?)
    }
}

/// How often a version finds its databases cold, and how large they are.
const COLD_STARTS: usize = 2;
const COLD_BYTES: usize = 64 << 20;

/// Reads all of the version's databases from the disk, if it has not done so often enough.
pub(crate) fn is_cold(version: &str) -> Result<bool> {
    let (database, counter) = (directory().join("state/cold"), directory().join(format!("state/cold-{version}")));
    let count = fs::read(&counter).unwrap_or_default().len();
    if count >= COLD_STARTS {
        return Ok(false);
    }
    write(&counter, &vec![b'x'; count + 1])?;
    write(&database, &vec![1; COLD_BYTES])?;
    let file = fs::File::open(&database)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("dropping the cache of a file")?;
    io::copy(&mut &file, &mut io::sink()).with_context(|| format!("reading {}", database.display()))?;
    // The disk of a test is faster than any that this happens on.
    thread::sleep(Duration::from_secs(2));
    Ok(true)
}

fn path() -> PathBuf {
    directory().join("state/fake-gateway.json")
}

/// `doctor --fix`: brings a state to `schema`.
pub(crate) fn migrate(schema: u64) -> Result<()> {
    let Some(state) = State::read()? else { return Ok(()) };
    State { schema, ..state }.write()
}

/// `backup create`: a new archive in the gateway's own layout, the manifest first.
pub(crate) fn back_up(file: &Path, version: &str) -> Result<()> {
    const ROOT: &str = "openclaw-backup";
    let source = directory();
    ensure!(!file.starts_with(&source), "the archive would be part of itself");
    let payload = format!("{ROOT}/payload/posix{}", source.display());
    let manifest = json!({
        "schemaVersion": 1,
        "archiveRoot": ROOT,
        "runtimeVersion": version,
        "paths": { "stateDir": source, "configPath": source.join("openclaw.json") },
        "assets": [{ "kind": "state", "sourcePath": source, "archivePath": payload }],
    });
    let archive = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let archive = archive.with_context(|| format!("creating {}", file.display()))?;
    let mut archive = tar::Builder::new(GzEncoder::new(archive, Compression::fast()));
    archive.follow_symlinks(false);
    let text = manifest.to_string();
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    archive
        .append_data(&mut header, format!("{ROOT}/manifest.json"), text.as_bytes())
        .context("writing the manifest")?;
    archive.append_dir_all(&payload, &source).with_context(|| format!("archiving {}", source.display()))?;
    archive.into_inner()?.finish()?.sync_all().with_context(|| format!("writing {}", file.display()))?;
    println!("{}", json!({ "archivePath": file, "archiveRoot": ROOT, "verified": true, "assets": manifest["assets"] }));
    Ok(())
}
