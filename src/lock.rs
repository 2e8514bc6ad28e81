//! One run at a time, whoever starts it, and only as root.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Classify as _, Code};

/// Proof that this process is the one run at work. Every function that writes a record takes it as an argument.
#[derive(Debug)]
pub struct RunLock {
    _held: Vec<Flock<File>>,
}

impl RunLock {
    /// Takes the lock at `path`, waiting for the run in progress. Its directory is made if need be.
    ///
    /// Fails with [`Code::UnsupportedSystem`] for a user other than root.
    pub async fn acquire(path: &Path) -> Result<Self> {
        require_root()?;
        let mut held = Vec::new();
        for path in paths(path)? {
            held.push(take(&path).await?);
        }
        Ok(Self { _held: held })
    }

    /// Takes the lock at `path`, unless a run is in progress.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>> {
        let mut held = Vec::new();
        for path in paths(path)? {
            match Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => held.push(lock),
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(errno).with_context(|| format!("locking {}", path.display())),
            }
        }
        Ok(Some(Self { _held: held }))
    }

    /// For tests, whose machine is a directory of their own.
    #[cfg(test)]
    pub(crate) fn of_a_test() -> Self {
        Self { _held: Vec::new() }
    }
}

/// [`Code::UnsupportedSystem`] for a user other than root.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(anyhow!("this user is not root")).classify(Code::UnsupportedSystem, "Run the same command as root, with sudo.")
}

/// The locks, whose directory is made if need be. Version 0.1.0 may be at work in this boot, with one of its own.
fn paths(path: &Path) -> Result<Vec<PathBuf>> {
    let directory = path.parent().context("the lock has no directory")?;
    make_private(directory).with_context(|| format!("making {}", directory.display()))?;
    let old = directory.with_file_name("lock");
    Ok([path.to_owned()].into_iter().chain(old.exists().then_some(old)).collect())
}

/// Makes a directory that only root can enter, in one that everybody can. Modes are set, not inherited.
pub(crate) fn make_private(directory: &Path) -> io::Result<()> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent)?;
        fs::set_permissions(parent, Permissions::from_mode(0o755))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::set_permissions(directory, Permissions::from_mode(0o700))
        }
        made => made,
    }
}

/// The file of a lock. Only root can open it from now on.
fn open(path: &Path) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    file.set_permissions(Permissions::from_mode(0o600)).with_context(|| format!("closing {}", path.display()))?;
    Ok(file)
}

/// Takes one lock, waiting for its holder.
async fn take(path: &Path) -> Result<Flock<File>> {
    let file = match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(held) => return Ok(held),
        Err((file, _)) => file,
    };
    tracing::info!("another run is in progress (openclaw-init status --wait follows it), waiting for its end");
    let held = tokio::task::spawn_blocking(|| Flock::lock(file, FlockArg::LockExclusive)).await?;
    held.map_err(|(_, errno)| errno).context("waiting for the other run")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Root alone can open a lock, hence hold it, whatever the umask was and an earlier version left.
    #[tokio::test]
    async fn only_root_can_open_a_lock() -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        let root = tempfile::tempdir()?;
        let (run, old) = (root.path().join("run"), root.path().join("run/lock"));
        let private = run.join("private");
        fs::create_dir_all(&private)?;
        fs::write(&old, "")?;
        for path in [&run, &private, &old] {
            fs::set_permissions(path, Permissions::from_mode(0o777))?;
        }
        let held = RunLock::acquire(&private.join("lock")).await?;
        let mode = |path: &Path| fs::metadata(path).map(|found| found.mode() & 0o777);
        assert_eq!((mode(&run)?, mode(&private)?, mode(&old)?), (0o755, 0o700, 0o600));
        let again =
            |path: &Path| Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock).map_err(|(_, no)| no.into());
        assert!(RunLock::try_acquire(&private.join("lock"))?.is_none());
        assert!(
            again(&old).map_err(|error: io::Error| error.kind()).is_err_and(|kind| kind == io::ErrorKind::WouldBlock)
        );
        drop(held);
        assert!(again(&old).is_ok() && again(&private.join("lock")).is_ok());
        assert!(RunLock::try_acquire(&private.join("lock"))?.is_some());
        Ok(())
    }
}
