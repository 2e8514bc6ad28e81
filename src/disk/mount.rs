//! What is mounted where, and mounting.

use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Access, Host, blocking, if_exists};

/// No file on the disk may act as a device or with another user's rights. Programs may run: agents run them in their
/// workspace.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Freed blocks go back to the disk (Google's recommendation). A damaged file system stops taking writes, so that the
/// damage does not spread.
const OPTIONS: &str = "discard,errors=remount-ro";

/// What to do about a file system that takes no writes.
pub(super) const READ_ONLY: &str = "The file system is read-only by itself: see `tune2fs -l` and `dmesg`";

/// The number of a block device, its one unambiguous name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceNumber {
    major: u64,
    minor: u64,
}

impl From<u64> for DeviceNumber {
    /// From the `dev_t` of `stat`.
    fn from(dev: u64) -> Self {
        Self { major: nix::sys::stat::major(dev), minor: nix::sys::stat::minor(dev) }
    }
}

impl FromStr for DeviceNumber {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts =
            text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = parts.ok_or_else(|| anyhow!("{text:?} is not a device number"))?;
        Ok(Self { major, minor })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) device: DeviceNumber,
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    pub(crate) read_only: bool,
}

/// Everything that is mounted, in the order of mounting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mounts(Vec<Mount>);

impl Mounts {
    /// Reads the table of this process's mount namespace.
    pub(crate) async fn read(host: &Host) -> Result<Self> {
        let table = host.read("/proc/self/mountinfo").await?.context("/proc is not mounted")?;
        String::from_utf8_lossy(&table).parse().context("reading /proc/self/mountinfo")
    }

    /// What is visible at `point`, a path without links: the last thing mounted there. See [`find`] for other paths.
    pub(super) fn at(&self, point: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.point == point)
    }

    /// Where any of `devices` is mounted.
    pub(super) fn of(&self, devices: &[DeviceNumber]) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(|mount| devices.contains(&mount.device))
    }
}

impl FromStr for Mounts {
    type Err = anyhow::Error;

    fn from_str(table: &str) -> Result<Self> {
        table
            .lines()
            .map(|line| parse(line).with_context(|| format!("in the line {line:?}")))
            .collect::<Result<_>>()
            .map(Self)
    }
}

/// By which a mount says that nothing is written to it: from Linux 6.12 on an error makes ext4 say the second, not the
/// first (fs/ext4/super.c).
const UNWRITABLE: [&str; 3] = ["ro", "emergency_ro", "shutdown"];

/// `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda rw,errors=continue` (proc(5)).
fn parse(line: &str) -> Result<Mount> {
    let (left, right) = line.split_once(" - ").ok_or_else(|| anyhow!("no separator"))?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let (&[_, _, device, _, point, options, ..], &[kind, _, super_options, ..]) = (&left[..], &right[..]) else {
        bail!("too few fields");
    };
    let read_only =
        [options, super_options].iter().any(|options| options.split(',').any(|it| UNWRITABLE.contains(&it)));
    Ok(Mount { device: device.parse()?, point: unescape(point), kind: kind.to_owned(), read_only })
}

/// The kernel writes blanks, tabs, line ends and backslashes as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let (mut rest, mut out) = (field.as_bytes(), Vec::new());
    while let [first, after @ ..] = rest {
        let octal = (*first == b'\\').then(|| after.get(..3).and_then(|digits| str::from_utf8(digits).ok())).flatten();
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    std::ffi::OsString::from_vec(out).into()
}

/// What is mounted at `point`, which is compared with the mount table as that has it: without symbolic links.
pub(crate) async fn find(host: &Host, point: &Path) -> Result<Option<Mount>> {
    let Some(resolved) = resolve(host, point).await? else { return Ok(None) };
    Ok(Mounts::read(host).await?.at(&resolved).cloned())
}

/// The path without symbolic links; `None` when it does not exist.
async fn resolve(host: &Host, path: &Path) -> Result<Option<PathBuf>> {
    let path = host.path(path);
    if_exists(tokio::fs::canonicalize(&path).await).with_context(|| format!("resolving {}", path.display()))
}

/// Mounts the ext4 file system on `node` at `point`, for writing or not at all. `as_made`: the kernel does not write
/// the inode tables that mkfs left to it.
pub(crate) async fn ext4(host: &Host, node: &Path, point: &Path, as_made: bool) -> Result<()> {
    let options = if as_made { format!("{OPTIONS},noinit_itable") } else { OPTIONS.to_owned() };
    let mounted = mount(host, node, point, Some(("ext4", options)), FLAGS).await;
    let Err(error) = mounted else { return ensure_writable(host, point).await };
    match error.root_cause().downcast_ref() {
        // e2fsck had nothing against it.
        Some(Errno::EINVAL | Errno::EROFS | Errno::EOPNOTSUPP) => Err(error).classify(
            Code::DiskForeign,
            "The file system has a feature that this kernel does not know, see `dmesg`: use the image with which the disk \
             was made, or a newer one. The disk itself is in order.",
        ),
        _ => Err(error).classify(
            Code::DiskDamaged,
            format!("Look at `dmesg`; take a snapshot of the disk, then repair it with `e2fsck {}`.", node.display()),
        ),
    }
}

/// Unmounts a file system that the kernel has mounted for reading only.
async fn ensure_writable(host: &Host, point: &Path) -> Result<()> {
    if !find(host, point).await?.is_some_and(|mounted| mounted.read_only) {
        return Ok(());
    }
    unmount(host, point).await?;
    Err(anyhow!("the file system for {} can only be read", point.display()))
        .classify(Code::DiskReadonly, format!("{READ_ONLY}; then run `{RUN_AGAIN}`."))
}

/// Refuses to go on where a mount point cannot be made: something that is no directory is in its place, or in that of a
/// directory above it. Links above it are followed.
pub(super) async fn check_point(host: &Host, point: &Path) -> Result<()> {
    let parents = point.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev();
    for path in parents.chain([point]) {
        let (found, is_followed) = (host.path(path), path != point);
        let is_taken = blocking(move || {
            let Some(at) = if_exists(std::fs::symlink_metadata(&found))? else { return Ok(false) };
            Ok(!(at.is_dir() || is_followed && found.is_dir()))
        });
        let path = path.display();
        if is_taken.await.with_context(|| format!("looking at {path}"))? {
            return Err(anyhow!("{path} is not a directory, and {} is to be mounted on", point.display()))
                .classify(Code::DiskForeign, format!("Run `sudo mv {path} {path}.before`, then `{RUN_AGAIN}`."));
        }
    }
    Ok(())
}

/// Makes the directory `source` visible at `point`, too; does nothing when it already is.
pub(crate) async fn bind(host: &Host, source: &Path, point: &Path) -> Result<()> {
    let (display_point, display_source) = (point.display(), source.display());
    if let Some(mounted) = find(host, point).await? {
        if same_directory(&host.path(source), &host.path(point))? {
            return Ok(());
        }
        return Err(anyhow!("device {} is mounted on {display_point}, not {display_source}", mounted.device)).classify(
            Code::DiskForeign,
            format!("Stop what uses it, run `umount {display_point}` and then `{RUN_AGAIN}`, or reboot the VM."),
        );
    }
    check_point(host, point).await?;
    if !is_empty(host, point).await? {
        return Err(anyhow!("{display_point} holds files that would be hidden by the state in {display_source}"))
            .classify(
                Code::TwoStates,
                format!(
                    "Move {display_point} aside (`mv {display_point} {display_point}.before`) and run `{RUN_AGAIN}` \
                     again."
                ),
            );
    }
    ensure_point(host, point).await?;
    mount(host, &host.path(source), point, None, MsFlags::MS_BIND).await
}

/// Whether two paths lead to the same directory.
pub(crate) fn same_directory(one: &Path, other: &Path) -> Result<bool> {
    let identity = |path: &Path| -> Result<(u64, u64)> {
        let found = std::fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
        Ok((found.dev(), found.ino()))
    };
    Ok(identity(one)? == identity(other)?)
}

/// Whether `path` is an empty directory or does not exist.
pub(crate) async fn is_empty(host: &Host, path: &Path) -> Result<bool> {
    let entries = if_exists(tokio::fs::read_dir(host.path(path)).await);
    match entries.with_context(|| format!("listing {}", path.display()))? {
        Some(mut entries) => Ok(entries.next_entry().await?.is_none()),
        None => Ok(true),
    }
}

/// Makes a directory to mount on, into which nobody can write while nothing is mounted: the data of a missing disk must
/// not grow unseen on the boot disk.
pub(super) async fn ensure_point(host: &Host, point: &Path) -> Result<()> {
    if let Some(parent) = point.parent()
        && resolve(host, parent).await?.is_none()
    {
        host.ensure_dir(parent, Access::root(0o700)).await?;
    }
    host.ensure_dir(point, Access::root(0o700)).await?;
    // Not every file system knows the flag (tmpfs, overlayfs); the directory is root's in any case.
    if let Err(error) = host.command("chattr").arg("+i").arg(host.path(point)).run().await {
        tracing::debug!("{error:#}");
    }
    Ok(())
}

async fn mount(
    host: &Host,
    source: &Path,
    point: &Path,
    kind: Option<(&'static str, String)>,
    flags: MsFlags,
) -> Result<()> {
    let (from, to) = (source.to_owned(), host.path(point));
    let what = format!("{} on {}", source.display(), point.display());
    let (kind, options) = kind.unzip();
    // No time limit: a journal may be long.
    let mounted = blocking(move || Ok(nix::mount::mount(Some(&from), &to, kind, flags, options.as_deref())?)).await;
    mounted.with_context(|| format!("mounting {what}"))?;
    host.changed(format!("mounted {what}"));
    Ok(())
}

/// Unmounts what is mounted at `point`; its journal is then written back in place.
pub(crate) async fn unmount(host: &Host, point: &Path) -> Result<()> {
    let path = host.path(point);
    blocking(move || Ok(nix::mount::umount(&path)?)).await.with_context(|| format!("unmounting {}", point.display()))
}

/// Takes away what is mounted at `point`, even while somebody uses it; they keep what they have open.
pub(crate) async fn detach(host: &Host, point: &Path) -> Result<()> {
    let path = host.path(point);
    let detached = blocking(move || Ok(nix::mount::umount2(&path, MntFlags::MNT_DETACH)?)).await;
    detached.with_context(|| format!("unmounting {}", point.display()))?;
    host.changed(format!("unmounted {}", point.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 8:16 / /mnt/disks/openclaw-data rw,nosuid,nodev shared:3 - ext4 /dev/sdb rw,errors=remount-ro
31 27 8:16 /openclaw /home/node/.openclaw rw shared:3 master:1 - ext4 /dev/sdb rw
32 27 0:50 / /mnt/with\\040blank\\134 ro - tmpfs tmpfs rw
33 27 8:32 / /data rw - ext4 /dev/sdc ro,errors=remount-ro
34 27 8:48 / /data rw - xfs /dev/sdd rw
";

    #[test]
    fn the_mount_table_is_understood() -> Result<()> {
        let mounts: Mounts = TABLE.parse()?;
        let disk = mounts.at(Path::new("/mnt/disks/openclaw-data")).cloned();
        let point = PathBuf::from("/mnt/disks/openclaw-data");
        assert_eq!(disk, Some(Mount { device: "8:16".parse()?, point, kind: "ext4".into(), read_only: false }));
        assert_eq!(mounts.of(&["8:16".parse()?]).count(), 2);
        assert_eq!(mounts.of(&["8:32".parse()?]).map(|mount| mount.read_only).collect::<Vec<_>>(), [true]);
        assert_eq!(mounts.at(Path::new("/mnt/with blank\\")).map(|mount| mount.read_only), Some(true));
        assert_eq!(mounts.at(Path::new("/data")).map(|mount| mount.kind.as_str()), Some("xfs"), "the last one is seen");
        assert_eq!(mounts.at(Path::new("/nowhere")), None);
        Ok(())
    }

    #[test]
    fn nonsense_is_an_error() {
        for line in ["x", "1 2 3 - ext4 a b", "1 2 8:x / / rw - ext4 a b", "1 2 8:1 / / rw - ext4"] {
            assert!(line.parse::<Mounts>().is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_table_is_one_or_an_error(text in "[0-9a-z/:, \\\\\\n-]{0,120}|\\PC{0,80}") {
            drop(text.parse::<Mounts>());
            drop(unescape(&text));
        }

        #[test]
        fn a_point_of_any_name_is_found(name in "[^\\x00/]{1,40}", major in any::<u16>(), minor in any::<u16>()) {
            let escaped: String = name.chars().map(|character| match character {
                ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(character)),
                other => other.to_string(),
            }).collect();
            let line = format!("36 35 {major}:{minor} / /mnt/{escaped} rw - ext4 /dev/sda rw");
            let Ok(mount) = parse(&line) else { panic!("{line:?}") };
            prop_assert_eq!(mount.point, Path::new("/mnt").join(name));
            prop_assert_eq!(mount.device.to_string(), format!("{major}:{minor}"));
        }
    }
}
