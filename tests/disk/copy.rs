//! What only root can make, in copies of a tree.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;

use anyhow::{Result, ensure};
use openclaw_init::host::Host;
use openclaw_init::state::copy::{self, LeftOut, Original};
use openclaw_lab::program;

use crate::fixture::{alone, command, tool};

/// `cap_net_bind_service=ep`, as the kernel keeps it (linux/capability.h, revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// `sync` from `/from` to `/to` below `root`, then `verify`; what was left out.
fn replicate(root: &Path) -> Result<LeftOut> {
    let (host, from, to) = (Host::new(root), Path::new("/from"), Path::new("/to"));
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let stats = copy::sync(&host, from, to, Original::AtRest).await?;
        copy::verify(&host, from, to).await?;
        Ok(stats.left_out)
    })
}

#[test]
#[ignore = "needs root: cargo lab test machine"]
fn owners_and_what_else_is_roots_are_copied() -> Result<()> {
    alone("copy::owners_and_what_else_is_roots_are_copied", || {
        let root = tempfile::tempdir()?;
        let from = root.path().join("from");
        fs::create_dir_all(from.join("mounted"))?;
        for (name, mode, owner) in
            [("file", 0o600, 1000), ("program", 0o6755, 1000), ("roots", 0o000, 0), ("far", 0o640, u32::MAX - 1)]
        {
            fs::write(from.join(name), name)?;
            chown(from.join(name), Some(owner), Some(owner / 2))?;
            fs::set_permissions(from.join(name), Permissions::from_mode(mode))?;
        }
        symlink("/etc/shadow", from.join("link"))?;
        lchown(from.join("link"), Some(1000), Some(1000))?;
        xattr::set(from.join("program"), "security.capability", &CAPABILITY)?;
        xattr::set(from.join("file"), "trusted.some", b"x")?;
        program::run(command("mknod").arg(from.join("device")).args(["c", "1", "3"]))?;
        program::run(command("mount").args(["-t", "tmpfs", "tmpfs"]).arg(from.join("mounted")))?;
        fs::write(from.join("mounted/file"), "elsewhere")?;
        chown(&from, Some(1000), Some(1000))?;

        let expected = LeftOut { count: 2, first: Some("device".into()) };
        ensure!(replicate(root.path())? == expected, "something else was left out");
        let to = root.path().join("to");
        let program = fs::metadata(to.join("program"))?;
        ensure!((program.uid(), program.gid(), program.mode() & 0o7777) == (1000, 500, 0o6755), "{program:?}");
        ensure!(xattr::get(to.join("program"), "security.capability")?.is_some_and(|value| value == CAPABILITY));
        ensure!(fs::symlink_metadata(to.join("link"))?.uid() == 1000 && fs::metadata("/etc/shadow")?.uid() == 0);

        chown(from.join("file"), Some(0), Some(0))?;
        fs::set_permissions(from.join("file"), Permissions::from_mode(0o644))?;
        replicate(root.path())?;
        tool("umount {}", &from.join("mounted")).map(drop)
    })
}
