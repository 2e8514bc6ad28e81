//! The image from a commit of the gateway's source, built by the source's own Dockerfile.

mod archive;
mod tree;

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use bollard::models::ImageInspect;
use nix::sys::statvfs::statvfs;

use super::download::{Download, without_query};
use super::recipe::Recipe;
use super::{GROW_BOOT_DISK, Images};
use crate::config::SourceCommit;
use crate::config::keys::SOURCE_REF;
use crate::docker::Engine;
use crate::error::{Classify as _, Code};
use crate::host::{Host, blocking};
use crate::text::{GIB, MIB};
use crate::version::GatewayVersion;
use crate::{http, memory};

/// What upstream's documentation asks for to build its image.
const NEEDED_MEMORY: u64 = 6 * GIB;

/// What the kernel keeps of a VM's memory for itself, at most: one part in this many.
const KERNELS_SHARE: u64 = 16;

/// Free space for source, dependencies, layers and build cache: an estimate, upstream states none.
const NEEDED_SPACE: u64 = 10 * GIB;

/// The heap that upstream's Dockerfile gives its build, in MiB, and how much of a smaller machine it may have.
const UPSTREAM_HEAP: u64 = 8192;
const HEAP_PERCENT: u64 = 75;

const REMEDY: &str =
    "Look at the end of the build's output above; unset openclaw-image-source to use the prebuilt image.";

pub(super) fn recipe(version: &GatewayVersion, source: &SourceCommit) -> Recipe {
    let SourceCommit { url, commit, tree, sha256 } = source;
    let pin = |pin: &Option<String>| pin.clone().unwrap_or_default();
    let parts = ["source", url, commit, &pin(tree), &pin(sha256)];
    Recipe::new(version, vec![("GIT_COMMIT", commit.clone())], &parts, REMEDY)
}

impl Images<'_> {
    /// Builds it, if this machine is large enough; that is found out before anything is downloaded.
    pub(super) async fn build_source(self, recipe: &Recipe, source: &SourceCommit) -> Result<ImageInspect> {
        let memory = memory::total(self.host).await?;
        check_machine(memory, free_space(self.engine).await?)?;
        let mut recipe = recipe.clone();
        // Not part of the fingerprint: it decides whether the build succeeds, not what it makes.
        let heap = UPSTREAM_HEAP.min(memory / MIB * HEAP_PERCENT / 100);
        recipe.args.push(("OPENCLAW_DOCKER_BUILD_NODE_OPTIONS", format!("--max-old-space-size={heap}")));
        let pack = async |directory: &Path| pack(self.host, &recipe.version, source, directory).await;
        self.build(&recipe, &recipe.version, pack).await
    }
}

fn check_machine(memory: u64, space: u64) -> Result<()> {
    // One decimal of precision, as people give sizes.
    let gib = |bytes: u64| format!("{}.{}", bytes / GIB, bytes % GIB * 10 / GIB);
    if memory < NEEDED_MEMORY - NEEDED_MEMORY / KERNELS_SHARE {
        return Err(anyhow!(
            "building from source needs {} GiB of memory, this VM has {}",
            gib(NEEDED_MEMORY),
            gib(memory)
        ))
        .classify(
            Code::OutOfMemory,
            "Set openclaw-image-source to release (pulls the official image) or npm (a small build), or give the \
                 VM 8 GiB: stop it, `gcloud compute instances set-machine-type VM --zone=ZONE \
                 --machine-type=e2-standard-2`, start it.",
        );
    }
    if space < NEEDED_SPACE {
        return Err(anyhow!(
            "building from source needs {} GiB of free space on the boot disk, there are {}",
            gib(NEEDED_SPACE),
            gib(space)
        ))
        .classify(
            Code::NoSpace,
            format!("{GROW_BOOT_DISK} Or set openclaw-image-source to release, which needs less."),
        );
    }
    Ok(())
}

/// Free bytes where the engine keeps its images.
async fn free_space(engine: &Engine) -> Result<u64> {
    let root = engine.info().await?.docker_root_dir.as_deref().unwrap_or("/var/lib/docker");
    let file_system = statvfs(root).with_context(|| format!("looking at the space in {root}"))?;
    Ok(file_system.blocks_available() * file_system.fragment_size())
}

/// Downloads the archive, checks it and packs the build context below `directory`.
async fn pack(host: &Host, version: &GatewayVersion, source: &SourceCommit, directory: &Path) -> Result<()> {
    let file = directory.join("source.tar.gz");
    let client = http::internet_client().await?;
    let download =
        Download { what: "the source", url: &source.url, sha256: source.sha256.as_deref(), attribute: SOURCE_REF };
    download.fetch(host, &client, &file).await?;
    host.progress("checking the source");
    let directory = directory.to_owned();
    let found = blocking(move || archive::repack(&file, &directory))
        .await
        .with_context(|| format!("reading the source from {}", without_query(&source.url)))
        .classify(Code::ImageBuildFailed, "openclaw-source-url must name a tar.gz as `git archive` makes it.")?;
    check(&found, version, source)
}

/// The archive must be the commit, have its tree, and be the version that this machine wants.
fn check(found: &archive::Found, version: &GatewayVersion, source: &SourceCommit) -> Result<()> {
    let url = without_query(&source.url);
    let pins =
        [("commit", Some(&source.commit), found.commit.as_ref()), ("tree", source.tree.as_ref(), Some(&found.tree))];
    for (what, pinned, found) in pins {
        let Some(pinned) = pinned else { continue };
        if found != Some(pinned) {
            let found = found.map_or_else(|| format!("no {what} id"), |id| format!("the {what} id {id}"));
            return Err(anyhow!("the source from {url} has {found}, but {pinned} is wanted")).classify(
                Code::DigestMismatch,
                format!("Find out why the source is another one; only if it is the right one, correct the attribute {SOURCE_REF}."),
            );
        }
    }
    match &found.version {
        Some(found) if found == version.as_str() => Ok(()),
        Some(found) => Err(anyhow!("commit {} is version {found} of the gateway, not {version}", source.commit))
            .classify(
                Code::ConfigInvalid,
                format!("Set openclaw-version={found}, or name another commit in {SOURCE_REF}."),
            ),
        None => Err(anyhow!("the source from {url} has no package.json with a version"))
            .classify(Code::ConfigInvalid, format!("Correct the attributes openclaw-source-url and {SOURCE_REF}.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{code_of, one_line};

    #[test]
    fn a_small_machine_is_refused_before_anything_is_downloaded() {
        let cases = [
            (8 * GIB, 11 * GIB, None),
            // MemTotal of a VM with 6 GiB.
            (5_850 * MIB, 10 * GIB, None),
            (4 * GIB, 11 * GIB, Some((Code::OutOfMemory, ["6.0 GiB of memory, this VM has 4.0", "e2-standard-2"]))),
            (8 * GIB, 9 * GIB, Some((Code::NoSpace, ["there are 9.0", "gcloud compute disks resize"]))),
        ];
        for (memory, space, refused) in cases {
            match (check_machine(memory, space), refused) {
                (Ok(()), None) => {}
                (Err(error), Some((code, words))) => {
                    let text = one_line(&error);
                    assert_eq!(code_of(&error), code);
                    assert!(words.iter().all(|word| text.contains(word)), "{text}");
                }
                (outcome, _) => panic!("{memory} {space}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn the_source_must_be_what_was_asked_for() {
        let (commit, tree, other) = ("0a".repeat(20), "0b".repeat(20), "0c".repeat(20));
        let source = |tree: Option<&str>| SourceCommit {
            url: "https://h/x?signature=hunter2".to_owned(),
            commit: commit.clone(),
            tree: tree.map(str::to_owned),
            sha256: None,
        };
        let found = |commit: Option<&str>, version: Option<&str>| archive::Found {
            commit: commit.map(str::to_owned),
            tree: tree.clone(),
            version: version.map(str::to_owned),
        };
        let right = Some(commit.as_str());
        let cases = [
            (found(right, Some("1")), source(None), None),
            (found(right, Some("1")), source(Some(&tree)), None),
            (found(right, Some("1")), source(Some(&other)), Some(Code::DigestMismatch)),
            (found(Some(&other), Some("1")), source(None), Some(Code::DigestMismatch)),
            (found(None, Some("1")), source(None), Some(Code::DigestMismatch)),
            (found(right, Some("2")), source(None), Some(Code::ConfigInvalid)),
            (found(right, None), source(None), Some(Code::ConfigInvalid)),
        ];
        for (found, source, code) in cases {
            let outcome = check(&found, &"1".into(), &source);
            let said = outcome.as_ref().err().map(one_line).unwrap_or_default();
            assert!(!said.contains("hunter2"), "{said}");
            assert_eq!(outcome.as_ref().err().map(code_of), code, "{found:?}");
        }
    }

    #[test]
    fn every_part_of_the_source_is_part_of_the_recipe() {
        let source = SourceCommit { url: "u".to_owned(), commit: "c".to_owned(), tree: None, sha256: None };
        let pinned = SourceCommit { tree: Some("t".to_owned()), ..source.clone() };
        let moved = SourceCommit { url: "v".to_owned(), ..source.clone() };
        let first = recipe(&"1".into(), &source).fingerprint;
        for other in [recipe(&"1".into(), &pinned), recipe(&"1".into(), &moved)] {
            assert_ne!(other.fingerprint, first);
        }
    }
}
