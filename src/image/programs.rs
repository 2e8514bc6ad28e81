//! The programs for the image: downloaded, checked, taken out of their archives.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flate2::read::GzDecoder;

use super::download::Download;
use crate::config::keys::BINARIES;
use crate::config::{Arch, Binary};
use crate::error::{Classify as _, Code};
use crate::host::{Host, blocking};
use crate::http;

/// The largest program taken out of an archive: a small archive can hold an endless file.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// How many names of an archive are reported when the right one is not among them.
const NAMES_LIMIT: usize = 8;

/// Downloads every program into `directory`; their paths in the build context and on this machine.
pub(super) async fn fetch(host: &Host, binaries: &[Binary], directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    if binaries.is_empty() {
        return Ok(Vec::new());
    }
    let client = http::internet_client().await?;
    let mut programs = Vec::new();
    for binary in binaries {
        let target = directory.join(&binary.name);
        let download =
            Download { what: &binary.name, url: &binary.url, sha256: Some(&binary.sha256), attribute: BINARIES };
        download.fetch(host, &client, &target).await?;
        let (path, member) = (target.clone(), binary.member.clone());
        blocking(move || {
            if let Some(member) = member {
                unpack(&path, &member)?;
            }
            check(&path, Arch::OURS)
        })
        .await
        .with_context(|| format!("preparing {}", binary.name))
        .classify(Code::ConfigInvalid, format!("Correct its entry in the attribute {BINARIES}."))?;
        programs.push((format!("bin/{}", binary.name), target));
    }
    Ok(programs)
}

/// Puts the file `member` of the tar.gz at `path` in its place.
fn unpack(path: &Path, member: &str) -> Result<()> {
    let unpacked = path.with_file_name("unpacked");
    let archive = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    let mut names = Vec::new();
    for entry in archive.entries().context("reading the archive")? {
        let entry = entry.context("reading the archive")?;
        let name = entry.path().context("reading a name in the archive")?.display().to_string();
        if name.trim_start_matches("./") != member.trim_start_matches("./") {
            names.push(name);
            continue;
        }
        ensure!(entry.header().entry_type().is_file(), "{member} in the archive is not a file");
        ensure!(entry.size() <= MAX_BYTES, "{member} in the archive is larger than {} MiB", MAX_BYTES >> 20);
        let mut file = File::create(&unpacked).with_context(|| format!("creating {}", unpacked.display()))?;
        io::copy(&mut entry.take(MAX_BYTES), &mut file).with_context(|| format!("unpacking {member}"))?;
        return fs::rename(&unpacked, path).with_context(|| format!("renaming {}", unpacked.display()));
    }
    let more = if names.len() > NAMES_LIMIT { ", …" } else { "" };
    names.truncate(NAMES_LIMIT);
    bail!("the archive has no {member}, but {}{more}", names.join(", "))
}

/// Refuses what this machine cannot execute.
fn check(path: &Path, arch: Arch) -> Result<()> {
    let mut start = Vec::new();
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.take(20).read_to_end(&mut start).with_context(|| format!("reading {}", path.display()))?;
    match kind(&start) {
        Some(Kind::Script) => Ok(()),
        Some(Kind::Elf(machine)) if machine == elf_machine(arch) => Ok(()),
        Some(Kind::Elf(machine)) => Err(anyhow!("it is a program for ELF machine {machine}, not for {}", arch.name())),
        None => Err(anyhow!("it is neither a program nor a script")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Script,
    /// With the number of the machine.
    Elf(u16),
}

/// By the first bytes of a file; only little-endian 64-bit programs count.
fn kind(start: &[u8]) -> Option<Kind> {
    match start {
        [b'#', b'!', ..] => Some(Kind::Script),
        [0x7f, b'E', b'L', b'F', 2, 1, .., low, high] if start.len() == 20 => {
            // e_machine follows e_type, at byte 18 (the System V ABI, "ELF header").
            Some(Kind::Elf(u16::from_le_bytes([*low, *high])))
        }
        _ => None,
    }
}

/// `EM_X86_64` and `EM_AARCH64`.
fn elf_machine(arch: Arch) -> u16 {
    match arch {
        Arch::Amd64 => 62,
        Arch::Arm64 => 183,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn elf(machine: u16) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
        bytes.extend(machine.to_le_bytes());
        bytes.extend(b"rest");
        bytes
    }

    #[test]
    fn only_what_this_machine_can_execute_is_taken() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("p");
        let cases = [
            (elf(62), Arch::Amd64, ""),
            (elf(183), Arch::Arm64, ""),
            (b"#!/bin/sh\n".to_vec(), Arch::Arm64, ""),
            (elf(183), Arch::Amd64, "ELF machine 183, not for amd64"),
            (b"<html>".to_vec(), Arch::Amd64, "neither"),
            (elf(62)[..19].to_vec(), Arch::Amd64, "neither"),
            (Vec::new(), Arch::Amd64, "neither"),
        ];
        for (content, arch, complaint) in cases {
            fs::write(&path, &content)?;
            let error = check(&path, arch).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(complaint) && error.is_empty() == complaint.is_empty(), "{content:?}: {error}");
        }
        Ok(())
    }

    #[test]
    fn the_named_file_of_an_archive_takes_its_place() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("gog");
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, content) in [("LICENSE", b"l".as_slice()), ("./d/gog", b"the program")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, content)?;
        }
        let bytes = archive.into_inner()?.finish()?;
        File::create(&path)?.write_all(&bytes)?;
        let Err(error) = unpack(&path, "gog") else { panic!("there is no gog at the top") };
        assert_eq!(error.to_string(), "the archive has no gog, but LICENSE, d/gog");
        unpack(&path, "d/gog")?;
        assert_eq!(fs::read(&path)?, b"the program");
        assert_eq!(fs::read_dir(directory.path())?.count(), 1);
        Ok(())
    }
}
