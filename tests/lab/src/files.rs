//! Files: with exact permissions, in another root, as a digest.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::program::run;

/// Writes a file with exactly the permissions `mode`, independent of the umask. At no time does it have more.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(content)
        })
        .with_context(|| format!("writing {}", path.display()))
}

/// Writes a file of root's into a root file system; a link of that name gives way.
pub fn put(root: &Path, file: &str, text: &str) -> Result<()> {
    let path = root.join(file);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    if path.is_symlink() {
        fs::remove_file(&path).with_context(|| format!("removing the link {}", path.display()))?;
    }
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).with_context(|| format!("opening {}", path.display()))
}

/// The SHA-256 of a file in hex. By the program, which is fast in every build profile.
pub fn sha256(file: &Path) -> Result<String> {
    let said = run(Command::new("sha256sum").arg(file))?;
    let hex = said.split_whitespace().next().filter(|it| it.len() == 64);
    hex.map(str::to_owned).with_context(|| format!("sha256sum said {said:?}"))
}
