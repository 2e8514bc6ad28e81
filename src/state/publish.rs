//! Publishing the state where people look for it, once the gateway's user can really write to it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{setfsgid, setfsuid};

use super::DataDir;
use crate::disk::mount;
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Access, Host, blocking};
use crate::paths::STATE_ALIAS;

/// Makes the state visible at `/home/node/.openclaw` too. Owner and mode do not tell of flags, access lists and full
/// disks, so it is written to first.
pub async fn publish(host: &Host, data: &DataDir) -> Result<()> {
    for directory in [&data.state, &data.config] {
        write_test(host, directory).await?;
    }
    mount::bind(host, &data.state, Path::new(STATE_ALIAS)).await
}

/// Takes the state from where people look for it until [`publish`], while another directory takes its place. Who is
/// in it sees what was there before.
pub(crate) async fn unpublish(host: &Host) -> Result<()> {
    let alias = Path::new(STATE_ALIAS);
    match mount::find(host, alias).await? {
        Some(_) => mount::detach(host, alias).await,
        None => Ok(()),
    }
}

/// Writes into `directory` as the gateway's user: one byte, in a file that never has a name. A full disk is a
/// warning, since the gateway may be what makes room; anything else in the way is an error.
async fn write_test(host: &Host, directory: &Path) -> Result<()> {
    let path = host.path(directory);
    let path_display = directory.display();
    let written = blocking(move || {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let directory = File::options().read(true).custom_flags(flags.bits()).open(path)?;
        // The identity that the kernel checks files with belongs to a thread; this one ends with it.
        let write = thread::Builder::new().spawn(move || write_as_gateway(&directory))?;
        write.join().map_err(|_| anyhow!("the thread panicked"))
    });
    match written.await.with_context(|| format!("trying to write into {path_display}"))? {
        // Not every file system has files without a name (overlayfs); those of a VM have.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::EISDIR) => Ok(()),
        Err(Errno::ENOSPC | Errno::EDQUOT) => {
            host.warn(format!("the disk of {path_display} is full: enlarge it (gcloud compute disks resize) or make room"));
            Ok(())
        }
        Err(errno) => Err(errno).with_context(|| format!("writing into {path_display} as the gateway's user")).classify(
            Code::DiskDamaged,
            format!(
                "Look at `lsattr -d {path_display}` and `getfacl {path_display}`, take away what forbids it, and run `{RUN_AGAIN}`."
            ),
        ),
    }
}

fn write_as_gateway(directory: &File) -> Result<(), Errno> {
    let Access { uid, gid, .. } = Access::gateway(0);
    setfsgid(gid.into());
    setfsuid(uid.into());
    let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(directory, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(b"x").map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}
