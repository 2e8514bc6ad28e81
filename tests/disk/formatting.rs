//! The real mkfs, killed at each of its writes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use openclaw_init::error::{Code, code_of, one_line};
use openclaw_lab::program;

use crate::fixture::{Fixture, NAME, alone, command, sha256, tool};
use crate::images;

/// Where the stage finds programs first; in the test's own mount namespace.
pub(crate) const FIRST_ON_PATH: &str = "/usr/local/sbin";

/// The boot disk's copy of the nonce.
const NONCE: &str = "var/lib/openclaw-init/formatting";

#[test]
#[ignore = "needs root and strace: cargo lab test machine"]
fn a_format_that_was_cut_is_completed_and_nobody_elses_is_touched() -> Result<()> {
    alone("formatting::a_format_that_was_cut_is_completed_and_nobody_elses_is_touched", || {
        program::run(command("mount").args(["-t", "tmpfs", "tmpfs", FIRST_ON_PATH]))?;
        // strace counts each system call by itself.
        for (call, at_least) in [("pwrite64", 20), ("fallocate", 0)] {
            let mut calls = 0;
            while cut_at(call, calls + 1).with_context(|| format!("killed at {call} number {}", calls + 1))? {
                calls += 1;
            }
            println!("killed at each of {calls} {call}");
            ensure!(calls >= at_least, "mkfs is not killed where it writes");
        }
        Ok(())
    })
}

/// Kills mkfs at its call number `count`; false when there are not as many.
fn cut_at(call: &str, count: u32) -> Result<bool> {
    let mut fixture = Fixture::new()?;
    let image = fixture.image(NAME);
    images::sparse(&image)?;
    let disk = fixture.attach(NAME, false)?;
    let killer = Path::new(FIRST_ON_PATH).join("mkfs.ext4");
    let inject = format!("inject={call}:signal=KILL:when={count}");
    let script = format!("#!/bin/sh\nexec strace -qq -o /dev/null -e {inject} /usr/sbin/mkfs.ext4 \"$@\"\n");
    fs::write(&killer, script)?;
    fs::set_permissions(&killer, fs::Permissions::from_mode(0o755))?;
    let first = fixture.run().0;
    fs::remove_file(&killer)?;
    let Err(error) = first else { return Ok(false) };
    ensure!(one_line(&error).contains("was killed"), "{error:#}");

    let nonce = fixture.path(NONCE);
    let kept = fs::read(&nonce)?;
    let mut other = kept.clone();
    other[30] ^= 1;
    fs::write(&nonce, other)?;
    refuses(&fixture, &disk.node, &image).context("with another nonce")?;
    fs::remove_file(&nonce)?;
    refuses(&fixture, &disk.node, &image).context("without a nonce")?;

    fs::write(&nonce, kept)?;
    let changes = fixture.changes()?;
    ensure!(changes.contains("formatted"), "it {changes}");
    ensure!(!nonce.exists(), "the nonce is still there");
    ensure!(fixture.changes()?.is_empty(), "a further run changes something");
    fixture.unmount()?;
    tool("e2fsck -fn {}", &disk.node)?;
    Ok(true)
}

fn refuses(fixture: &Fixture, node: &Path, image: &Path) -> Result<()> {
    fs::File::open(node)?.sync_all()?;
    let before = sha256(image)?;
    let error = fixture.run().0.err().context("it was accepted")?;
    ensure!(code_of(&error) == Code::DiskForeign, "{}", one_line(&error));
    fs::File::open(node)?.sync_all()?;
    ensure!(sha256(image)? == before, "the disk was changed");
    Ok(())
}
