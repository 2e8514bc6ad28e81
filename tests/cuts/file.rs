//! One file, replaced.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use nix::unistd::{getegid, geteuid};
use openclaw_init::host::{Access, Host};
use openclaw_init::stage::{Stage, within};

use crate::sweep::{Work, again, second_process, sweep};

struct Replaced;

impl Work for Replaced {
    type Beside = ();

    fn prepare(&self, machine: &Path) -> Result<()> {
        Ok(fs::write(machine.join("file"), "old")?)
    }

    fn process(&self, machine: &Path, (): &()) -> Result<Command> {
        again("file::a_file_is_the_old_one_or_the_new_one", machine)
    }

    fn check(&self, machine: &Path, (): &()) -> Result<()> {
        ensure!(fs::read(machine.join("file"))? == b"new");
        Ok(())
    }
}

#[test]
fn a_file_is_the_old_one_or_the_new_one() -> Result<()> {
    let work = async |machine: &Path| {
        let host = Host::new(machine);
        let seen = host.read("/file").await?.expect("the file is never gone");
        ensure!(seen == b"old" || seen == b"new", "half a file: {seen:?}");
        let own = Access { mode: 0o600, uid: geteuid().as_raw(), gid: getegid().as_raw() };
        within(Stage::Secrets, async {
            host.command("true").run().await?;
            host.ensure_file("/file", "new", own).await
        })
        .await
        .map(drop)
    };
    if second_process(work)? {
        return Ok(());
    }
    let expected = ["true#1.before", "true#1.after", "write#1.before", "write#1.written", "write#1.after", "changed#1"];
    assert_eq!(sweep(&Replaced)?, expected.map(|point| format!("secrets.{point}")));
    Ok(())
}
