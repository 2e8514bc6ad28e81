//! The archive of the running gateway's own `backup create`, put into ours.
//!
//! It holds consistent copies of the databases, `openclaw.json`, `.env`, credentials and workspaces. It leaves out
//! (gateway 2026.9.6) installed plugins (`npm`, `tools`), logs, transcripts in files, all of
//! `/home/node/.config/openclaw`, owners, and times of directories. They are added from the files.

use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;
use tar::EntryType;

use super::archive::Writer;
use super::members::{Members, RawMember};
use super::plan::{Kind, Member};
use crate::host::Access;
use crate::state::copy::LeftOut;
use crate::text::{short, size};

/// What a member takes besides its content and its names.
const NAME_COST: u64 = 512;

/// No file can have a later time.
const LATEST: u64 = i64::MAX.unsigned_abs();

const MORE_THAN_THE_STATE: &str = "the gateway's archive unpacks to far more than its state takes on the disk";

/// Where the archive has what was below `/`, in a directory that is named for its time.
const PAYLOAD: &str = "payload/posix";

/// The archive's description of itself, and the version that this program knows.
const MANIFEST: &str = "manifest.json";
const SCHEMA: u32 = 1;
const MANIFEST_LIMIT: u64 = 8 << 20;

/// The container's paths, and their names in our archive.
const PLACES: [(&str, &str); 2] = [("home/node/.openclaw", "state"), ("home/node/.config/openclaw", "config")];

/// Made anew, or of use only to the processes of its time.
const EPHEMERAL: [&str; 2] = ["state/tmp", "state/cache"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
}

/// Copies the files and links of the gateway's archive into ours; its directories are included from the files. One that
/// unpacks to more than `limit` bytes is refused: with holes filled, or forged, it could never be restored. Returns the
/// paths in the container that are on no data disk, hence in no backup.
pub(super) fn copy<W: Write>(
    file: impl Read,
    limit: u64,
    writer: &mut Writer<W>,
    progress: &dyn Fn(u64) -> Result<()>,
) -> Result<LeftOut> {
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let (mut elsewhere, mut described, mut left) = (LeftOut::default(), false, limit);
    let mut members = Members::new(&mut archive)?;
    while let Some(mut found) = members.next()? {
        let path = &found.path;
        let cost = found.entry.size().max(NAME_COST).saturating_add(found.name_bytes());
        left = left.checked_sub(cost).context(MORE_THAN_THE_STATE)?;
        match place(path).with_context(|| format!("at {}", short(path)))? {
            Place::Manifest => {
                ensure!(found.entry.size() <= MANIFEST_LIMIT, "its manifest is larger than {}", size(MANIFEST_LIMIT));
                let manifest: Manifest = serde_json::from_reader(&mut found.entry)
                    .context("reading the manifest of the gateway's archive")?;
                let found = manifest.schema_version;
                ensure!(found == SCHEMA, "the gateway's archive has schema {found}, known is {SCHEMA}");
                described = true;
            }
            Place::Elsewhere(_) if found.entry.header().entry_type().is_dir() => {}
            Place::Elsewhere(path) => elsewhere.add(&path),
            Place::Ours(path) => {
                let kind = kind(&found).with_context(|| format!("at {}", short(&path)))?;
                if let Some(kind) = kind.filter(|_| !writer.has_content(&path)) {
                    let header = found.entry.header();
                    let (mode, modified) = (header.mode()? & 0o7777, header.mtime()?.min(LATEST));
                    let owner = Access::gateway(0);
                    let member = Member { path, kind, mode, owner: (owner.uid, owner.gid), modified };
                    progress(found.entry.size())?;
                    writer.add(&member, &mut found.entry).with_context(|| format!("at {}", short(&member.path)))?;
                }
            }
        }
    }
    ensure!(described, "the gateway's archive has no manifest");
    Ok(elsewhere)
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Manifest,
    Ours(PathBuf),
    Elsewhere(PathBuf),
}

fn place(path: &Path) -> Result<Place> {
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    ensure!(plain, "the path leads out of the gateway's archive");
    let mut below = path.components();
    below.next();
    let below = below.as_path();
    if below == Path::new(MANIFEST) {
        return Ok(Place::Manifest);
    }
    let Ok(inside) = below.strip_prefix(PAYLOAD) else { bail!("nothing is known about this place") };
    let joined = |(from, to)| Some(Path::new(to).join(inside.strip_prefix(from).ok()?).components().collect());
    let ours: Option<PathBuf> = PLACES.into_iter().find_map(joined);
    Ok(ours.map_or_else(|| Place::Elsewhere(Path::new("/").join(inside)), Place::Ours))
}

/// `None` for a directory.
fn kind(found: &RawMember<'_, impl Read>) -> Result<Option<Kind>> {
    Ok(Some(match found.entry.header().entry_type() {
        EntryType::Directory => return Ok(None),
        EntryType::Regular | EntryType::Continuous => Kind::File(found.entry.size()),
        EntryType::Symlink => Kind::Symlink(found.link()?),
        EntryType::Link => match place(&found.link()?)? {
            Place::Ours(first) => Kind::HardLink(first),
            other => bail!("it is a hard link to {other:?}"),
        },
        other => bail!("it is of an unknown kind ({other:?})"),
    }))
}

/// What to do with a file that is not in the gateway's archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remainder {
    Wanted,
    /// Of use only to the processes of its time.
    Ephemeral,
    /// In use: only the gateway could copy it, and it did not.
    Database,
}

/// Whether the directory `path` holds nothing that anybody misses.
pub(super) fn is_ephemeral(path: &Path) -> bool {
    EPHEMERAL.iter().any(|directory| path.starts_with(directory))
}

/// What to do with the file `path`.
pub(super) fn remainder(path: &Path) -> Remainder {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let Some((_, after)) = name.split_once(".sqlite") else { return Remainder::Wanted };
    match after {
        "" => Remainder::Database,
        // Its log, its lock, unfinished copies; `.bak` is a finished one.
        _ if after.starts_with(['-', '.']) && Path::new(after).extension() != Some("bak".as_ref()) => {
            Remainder::Ephemeral
        }
        _ => Remainder::Wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_gateways_archive_has_its_place() -> Result<()> {
        let root = "2026-11-23T15-21-37.324+00-00-openclaw-backup";
        let ours = |path: &str| Place::Ours(path.into());
        let cases = [
            ("manifest.json", Place::Manifest),
            ("payload/posix/home/node/.openclaw/openclaw.json", ours("state/openclaw.json")),
            ("payload/posix/home/node/.openclaw/", ours("state/")),
            ("payload/posix/home/node/.config/openclaw/key", ours("config/key")),
            ("payload/posix/home/node/elsewhere/a", Place::Elsewhere("/home/node/elsewhere/a".into())),
        ];
        for (path, expected) in cases {
            assert_eq!(place(&Path::new(root).join(path))?, expected, "{path}");
        }
        for path in ["payload/windows/c/x", "other.json", "payload/posix/../../etc/passwd"] {
            assert!(place(&Path::new(root).join(path)).is_err(), "{path}");
        }
        assert!(place(Path::new("/etc/passwd")).is_err());
        Ok(())
    }

    #[test]
    fn databases_are_never_copied_as_files() {
        let cases = [
            ("state/npm/node_modules/p/i.js", Remainder::Wanted),
            ("state/agents/main/sessions/a.jsonl", Remainder::Wanted),
            ("config/key", Remainder::Wanted),
            ("state/workspace/notes.sqlite3", Remainder::Wanted),
            ("state/tools/x/Cache.SQLITE", Remainder::Database),
            ("state/state/openclaw.sqlite-wal", Remainder::Ephemeral),
            ("state/state/openclaw.sqlite.pre-startup-migration-1.bak", Remainder::Wanted),
            ("state/state/openclaw.sqlite.tmp-0000", Remainder::Ephemeral),
        ];
        for (path, expected) in cases {
            assert_eq!(remainder(Path::new(path)), expected, "{path}");
        }
        for (path, expected) in
            [("state/tmp/x", true), ("state/cache", true), ("state/tmpfile", false), ("state", false)]
        {
            assert_eq!(is_ephemeral(Path::new(path)), expected, "{path}");
        }
    }
}
