//! `cargo lab release`: what a release consists of, as files in one directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::files::{sha256, write};
use crate::host;
use crate::product::LOADER;

/// The program. The name says for what it is, as the loader's user sees it among other files.
pub const PROGRAM: &str = "openclaw-init-x86_64-linux";
/// The digests of the other files, in the format of `sha256sum`.
pub const DIGESTS: &str = "SHA256SUMS";
const LOADER_FILE: &str = "startup-script.sh";
/// What makes the VM, from the user's computer.
const SCRIPT_FILE: &str = "openclaw-gcp";
const SCRIPT: &str = include_str!("../../../openclaw-gcp");
/// The page to which the script points, for a release that is not at GitHub.
const FAILURES_FILE: &str = "failures.md";
const FAILURES: &str = include_str!("../../../docs/failures.md");

/// Builds the program and fills `dist/` at the top of the working tree.
pub fn build() -> Result<()> {
    let directory = host::workspace()?.join("dist");
    make(&directory, &host::released_binary()?)?;
    println!("lab: {} is complete", directory.display());
    Ok(())
}

/// Fills `directory` with the files of a release whose program is `binary`. What was there before goes.
pub fn make(directory: &Path, binary: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let program = directory.join(PROGRAM);
    fs::copy(binary, &program).with_context(|| format!("copying {}", binary.display()))?;
    write(&directory.join(LOADER_FILE), LOADER.as_bytes(), 0o755)?;
    write(&directory.join(SCRIPT_FILE), SCRIPT.as_bytes(), 0o755)?;
    write(&directory.join(FAILURES_FILE), FAILURES.as_bytes(), 0o644)?;
    let digest = |name: &str| Ok(format!("{}  {name}\n", sha256(&directory.join(name))?));
    let digests =
        [PROGRAM, LOADER_FILE, SCRIPT_FILE, FAILURES_FILE].into_iter().map(digest).collect::<Result<String>>()?;
    write(&directory.join(DIGESTS), digests.as_bytes(), 0o644)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::program::run;

    #[test]
    fn a_release_is_complete_and_its_digests_are_right() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let (binary, dist) = (directory.path().join("openclaw-init"), directory.path().join("dist"));
        fs::write(&binary, "a program")?;
        fs::create_dir(&dist)?;
        fs::write(dist.join("older"), "a file of an earlier release")?;
        make(&dist, &binary)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&dist)? {
            names.push(entry?.file_name());
        }
        names.sort();
        assert_eq!(names, [DIGESTS, FAILURES_FILE, SCRIPT_FILE, PROGRAM, LOADER_FILE]);
        let check = |options: &[&str]| run(Command::new("sha256sum").args(options).arg(DIGESTS).current_dir(&dist));
        assert_eq!(check(&["--check", "--strict"])?.lines().count(), names.len() - 1, "a file has no digest");
        fs::write(dist.join(LOADER_FILE), "another")?;
        assert!(check(&["--check", "--strict"]).is_err());
        Ok(())
    }
}
