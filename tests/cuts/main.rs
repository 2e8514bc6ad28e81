//! The power is cut at every named point (`src/cut.rs`), and the next run completes the job.
//!
//! Needs neither root nor network: every process that is killed works below a temporary directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where its world does")]

mod sweep;

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use nix::unistd::{getegid, geteuid};
use openclaw_init::host::{Access, Host};
use openclaw_init::stage::{Stage, within};
use sweep::sweep;

#[test]
fn a_file_is_the_old_one_or_the_new_one() -> Result<()> {
    let own = Access { mode: 0o600, uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let work = async |root: &Path| {
        let host = Host::new(root);
        let seen = host.read("/file").await?.expect("the file is never gone");
        ensure!(seen == b"old" || seen == b"new", "half a file: {seen:?}");
        within(Stage::Secrets, async {
            host.command("true").run().await?;
            host.ensure_file("/file", "new", own).await
        })
        .await?;
        Ok(())
    };
    let check = |root: &Path| {
        ensure!(fs::read(root.join("file"))? == b"new");
        Ok(())
    };
    let points =
        sweep("a_file_is_the_old_one_or_the_new_one", |root| Ok(fs::write(root.join("file"), "old")?), work, check)?;
    let expected = [
        "secrets.true#1.before",
        "secrets.true#1.after",
        "secrets.write#1.before",
        "secrets.write#1.written",
        "secrets.write#1.after",
        "secrets.changed#1",
    ];
    ensure!(points.is_empty() || points == expected, "{points:?}");
    Ok(())
}
