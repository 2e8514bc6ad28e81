//! Failpoints: named points at which a test may cut the power. They are in the program that ships.
//!
//! A name says what is done, and is counted per stage, so that it does not depend on what runs in other stages:
//!
//! | name | is passed |
//! | --- | --- |
//! | `disk.mkfs.ext4#1.before`, `.after` | before a program is started, after it has ended |
//! | `docker.http-get#1.before`, `.after` | before an HTTP request, after the head of its answer |
//! | `gateway.docker-post#2.before` | before a request to the Docker Engine, whose answer changes nothing by then |
//! | `secrets.write#1.before`, `.written`, `.after` | before a file is written, before its renaming, at the end |
//! | `disk.changed#3` | after a change that was made to the machine |
//! | any other | where the code has it |
//!
//! Outside any stage the name begins with `run`. `main.rs` reads two variables of the environment:
//! `OPENCLAW_INIT_FAILPOINT=NAME` kills this process there like a power failure, without any cleaning up;
//! `OPENCLAW_INIT_FAILPOINT_LOG=FILE` appends the name of every failpoint that is passed to the file.
//! Without them nothing is counted and no name is made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::abort;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::signal::{Signal, raise};

use crate::stage;

static FAILPOINTS: OnceLock<Failpoints> = OnceLock::new();

#[derive(Debug)]
struct Failpoints {
    at: Option<String>,
    log: Option<PathBuf>,
    counts: Mutex<BTreeMap<String, u32>>,
}

/// Arms the failpoints for the rest of this process, from the values of `OPENCLAW_INIT_FAILPOINT` and
/// `OPENCLAW_INIT_FAILPOINT_LOG`. Only the first call counts; with neither value it does nothing.
pub fn arm(at: Option<String>, log: Option<PathBuf>) {
    if at.is_some() || log.is_some() {
        let counts = Mutex::default();
        // Armed before: the first call holds.
        let _ = FAILPOINTS.set(Failpoints { at, log, counts });
    }
}

/// Passes the failpoint `name`.
pub fn hit(name: &str) {
    if let Some(failpoints) = FAILPOINTS.get() {
        failpoints.hit(name);
    }
}

/// A failpoint numbered within the current stage. It keeps its number whether or not it is then passed.
pub(crate) fn counted(what: &str) -> Failpoint {
    Failpoint(FAILPOINTS.get().map(|failpoints| {
        let stage = stage::current().map_or("run", stage::Stage::name);
        let name = format!("{stage}.{what}");
        let mut counts = failpoints.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(name.clone()).or_default();
        *count += 1;
        format!("{name}#{count}")
    }))
}

/// A numbered failpoint, such as `disk.mkfs.ext4#1`; by default none.
#[derive(Debug, Default)]
pub(crate) struct Failpoint(Option<String>);

impl Failpoint {
    /// Passes it.
    pub(crate) fn hit(&self) {
        self.0.iter().for_each(|name| hit(name));
    }

    /// Passes it at `moment`, such as `before`.
    pub(crate) fn hit_at(&self, moment: &str) {
        self.0.iter().for_each(|name| hit(&format!("{name}.{moment}")));
    }
}

impl Failpoints {
    fn hit(&self, name: &str) {
        if let Some(log) = &self.log {
            let noted = File::options().create(true).append(true).open(log);
            if let Err(error) = noted.and_then(|mut log| log.write_all(format!("{name}\n").as_bytes())) {
                tracing::warn!("noting the failpoint {name} in {}: {error}", log.display());
            }
        }
        if self.at.as_deref() == Some(name) {
            // The signal cannot be caught, so only its failure goes on, and that may not either.
            let _ = raise(Signal::SIGKILL);
            abort();
        }
    }
}
