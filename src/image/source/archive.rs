//! The tar.gz of a commit, as `git archive` and the forges make it: read once, from the disk to the disk.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;
use tar::EntryType;

use super::super::context::{self, Archive};
use super::tree::{self, BlobReader, Mode, Tree};
use crate::text::hex;

/// All files of the source together: far more than it has.
const MAX_BYTES: u64 = 4 << 30;

/// A file that is read into memory to be looked at.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Upstream's `.gitattributes` writes these with CRLF into archives; in the commit they have LF.
const CRLF: [&str; 2] = ["bat", "cmd"];

/// What the archive turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The commit id that `git archive` wrote into it.
    pub(super) commit: Option<String>,
    /// The tree id of the files.
    pub(super) tree: String,
    /// The gateway's version, from `package.json`.
    pub(super) version: Option<String>,
}

#[derive(Deserialize)]
struct Package {
    version: String,
}

/// Packs the build context below `directory` with the files of the archive at `source`, which is then removed.
/// The directory that an archive has at its top is left out.
pub(super) fn repack(source: &Path, directory: &Path) -> Result<Found> {
    let file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let mut context = context::create(directory)?;
    let (mut tree, mut commit, mut version, mut size) = (Tree::default(), None, None, 0);
    for entry in archive.entries().context("reading the archive")? {
        let mut entry = entry.context("reading the archive")?;
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            commit = comment(&mut entry)?;
            continue;
        }
        let path = below_top(&entry.path().context("reading a name in the archive")?)?;
        size += entry.size();
        ensure!(size <= MAX_BYTES, "the files in it are larger than {} GiB", MAX_BYTES >> 30);
        if path.as_os_str().is_empty() {
            continue;
        }
        let (mode, id, text) =
            add(&mut context, entry, &path).with_context(|| format!("unpacking {}", path.display()))?;
        if let Some(mode) = mode {
            let parts: Vec<_> = path.iter().map(|part| part.as_bytes().to_vec()).collect();
            tree.insert(&parts, mode, id);
        }
        if path == Path::new("package.json") {
            version = serde_json::from_slice(&text).ok().map(|package: Package| package.version);
        }
    }
    context::finish(context)?;
    fs::remove_file(source).with_context(|| format!("removing {}", source.display()))?;
    Ok(Found { commit, tree: hex(tree.id()), version })
}

/// The comment in a global header: the commit id.
fn comment(entry: &mut tar::Entry<'_, impl Read>) -> Result<Option<String>> {
    let Some(extensions) = entry.pax_extensions().context("reading the archive's header")? else { return Ok(None) };
    for extension in extensions {
        let extension = extension.context("reading the archive's header")?;
        if extension.key_bytes() == b"comment" {
            return Ok(Some(String::from_utf8_lossy(extension.value_bytes()).into_owned()));
        }
    }
    Ok(None)
}

/// The path without its first part; one that leads elsewhere is refused.
fn below_top(path: &Path) -> Result<PathBuf> {
    let normal = path.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(normal, "the archive has the path {}", path.display());
    Ok(path.iter().skip(1).collect())
}

/// Adds one entry to the context; its mode and id if git has it as a file, its content if it is `package.json`.
fn add(
    context: &mut Archive,
    mut entry: tar::Entry<'_, impl Read>,
    path: &Path,
) -> Result<(Option<Mode>, [u8; 20], Vec<u8>)> {
    let old = entry.header().clone();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(old.entry_type());
    header.set_mtime(old.mtime().context("reading its time")?);
    let executable = old.mode().context("reading its mode")? & 0o100 != 0;
    match old.entry_type() {
        EntryType::Directory => {
            header.set_mode(0o755);
            header.set_size(0);
            context.append_data(&mut header, path, io::empty())?;
            Ok((None, [0; 20], Vec::new()))
        }
        EntryType::Symlink => {
            let target = entry.link_name().context("reading its target")?.context("it has no target")?.into_owned();
            header.set_mode(0o777);
            header.set_size(0);
            context.append_link(&mut header, path, &target)?;
            Ok((Some(Mode::Link), tree::blob(target.as_os_str().as_bytes()), Vec::new()))
        }
        EntryType::Regular => {
            let length = entry.size();
            header.set_mode(if executable { 0o755 } else { 0o644 });
            header.set_size(length);
            let mode = if executable { Mode::Executable } else { Mode::File };
            let (id, text) = if length <= MAX_TEXT_BYTES && is_read_whole(path) {
                let mut text = Vec::new();
                entry.read_to_end(&mut text)?;
                context.append_data(&mut header, path, text.as_slice())?;
                (tree::blob(&as_committed(path, &text)), text)
            } else {
                let mut reader = BlobReader::new(&mut entry, length);
                context.append_data(&mut header, path, &mut reader)?;
                (reader.id(), Vec::new())
            };
            Ok((Some(mode), id, text))
        }
        other => bail!("it is of kind {other:?}, which a commit cannot have"),
    }
}

fn is_read_whole(path: &Path) -> bool {
    path == Path::new("package.json") || has_crlf(path)
}

fn has_crlf(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| CRLF.contains(&extension))
}

fn as_committed(path: &Path, text: &[u8]) -> Vec<u8> {
    if !has_crlf(path) {
        return text.to_vec();
    }
    let mut committed = Vec::with_capacity(text.len());
    for (index, &byte) in text.iter().enumerate() {
        if byte != b'\r' || text.get(index + 1) != Some(&b'\n') {
            committed.push(byte);
        }
    }
    committed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    const ATTRIBUTES: &str = "*.bat text eol=crlf\n*.cmd text eol=crlf\n";

    async fn git(host: &Host, directory: &Path, arguments: &[&str]) -> Result<String> {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.autocrlf=false"];
        let git = host.command("git").arg("-C").arg(directory).args(identity).args(arguments);
        Ok(git.run().await?.stdout.trim().to_owned())
    }

    /// The real git makes the archive and the ids.
    #[tokio::test]
    async fn an_archive_of_git_is_recognised_and_repacked() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, repository) = (Host::new("/"), root.path().join("repository"));
        fs::create_dir_all(repository.join("scripts"))?;
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        let files = [
            ("package.json", r#"{"version":"2026.9.6"}"#),
            (".gitattributes", ATTRIBUTES),
            ("scripts/run.cmd", "@echo off\necho x\n"),
            ("scripts/build.sh", "#!/bin/sh\n"),
            ("scripts-more", "sorts between"),
            (&long, "long"),
        ];
        for (name, content) in files {
            let path = repository.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&repository))?;
            fs::write(path, content)?;
        }
        std::os::unix::fs::symlink("scripts/build.sh", repository.join("link"))?;
        git(&host, &repository, &["init", "--quiet"]).await?;
        git(&host, &repository, &["add", "."]).await?;
        git(&host, &repository, &["update-index", "--chmod=+x", "scripts/build.sh"]).await?;
        git(&host, &repository, &["commit", "--quiet", "--message=x"]).await?;
        let commit = git(&host, &repository, &["rev-parse", "HEAD"]).await?;
        let tree = git(&host, &repository, &["rev-parse", "HEAD^{tree}"]).await?;
        let source = root.path().join("source.tar.gz");
        let output = format!("--output={}", source.display());
        git(&host, &repository, &["archive", "--prefix=openclaw-x/", &output, "HEAD"]).await?;

        let found = repack(&source, root.path())?;
        assert_eq!(found, Found { commit: Some(commit), tree, version: Some("2026.9.6".to_owned()) });
        assert!(!source.exists());
        let mut context = tar::Archive::new(File::open(root.path().join("context.tar"))?);
        let mut packed = Vec::new();
        for entry in context.entries()? {
            let mut entry = entry?;
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            packed.push((entry.path()?.display().to_string(), entry.header().mode()? & 0o777, text));
        }
        for (name, mode, text) in [("scripts/build.sh", 0o755, "#!/bin/sh\n"), (&long, 0o644, "long")] {
            let expected = (name.to_owned(), mode, text.to_owned());
            assert!(packed.contains(&expected), "{expected:?} is missing in {packed:?}");
        }
        assert!(packed.iter().any(|(name, _, text)| name == "scripts/run.cmd" && text.contains("\r\n")), "{packed:?}");
        Ok(())
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in ["a/../b", "/a/b", "../b", "./a"] {
            assert!(below_top(Path::new(path)).is_err(), "{path}");
        }
        assert!(below_top(Path::new("a/b/c")).is_ok_and(|path| path == Path::new("b/c")));
    }
}
