//! Files in directories that the container writes to: never through a symbolic link, never from a pipe or device.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::OFlag;

use super::{blocking, if_exists};
use crate::error::{Classify as _, Code};

/// No file of settings is larger; a larger one is not read into memory.
const MAX_BYTES: u64 = 4 << 20;

/// The text of a file in a directory that the container writes to: never through a symbolic link, never
/// from a pipe or device. `None` when there is no such file.
pub(crate) async fn read(path: PathBuf) -> Result<Option<String>> {
    let display_path = path.display().to_string();
    blocking(move || {
        let Some(file) = open(&path)? else { return Ok(None) };
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            bail!("it is larger than {MAX_BYTES} bytes");
        }
        Ok(Some(text))
    })
    .await
    .with_context(|| format!("reading {display_path}"))
}

/// Opens a regular file where the container can put anything; `None` when there is nothing of that name.
pub(crate) fn open(path: &Path) -> Result<Option<File>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match if_exists(File::options().read(true).custom_flags(flags.bits()).open(path)) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            return Err(anyhow!("it is a symbolic link"))
                .classify(Code::GatewayRefused, format!("Replace the link {} by a regular file.", path.display()));
        }
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        bail!("it is not a regular file");
    }
    Ok(Some(file))
}
