//! Named points at which a test may cut the power: what is tested is the program that ships.
//!
//! The names come by themselves, each counted per stage, so that they do not depend on what runs beside it:
//!
//! | name | is passed |
//! | --- | --- |
//! | `disk.mkfs.ext4#1.before`, `.after` | before a program is started, after it has ended |
//! | `docker.http-get#1.before`, `.after` | before an HTTP request, after the head of its answer |
//! | `gateway.docker-post#2.before` | before a request to the Docker Engine; its answer changes nothing until the next point |
//! | `secrets.write#1.before`, `.written`, `.after` | before a file is written, before the whole file takes the name, after it is durable |
//! | `disk.changed#3` | after a change that was made to the machine |
//! | any other | a step of its own, named where it is made |
//!
//! What runs in no stage counts as `run`. Two variables of the environment, read in `main.rs`:
//! `OPENCLAW_INIT_CUT=NAME` kills this process at that point like a power failure, without any cleaning up;
//! `OPENCLAW_INIT_CUT_LOG=FILE` appends the name of every point that is passed to the file.
//! Without them nothing is counted and no name is made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::abort;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::signal::{Signal, raise};

use crate::stage;

static CUTS: OnceLock<Cuts> = OnceLock::new();

#[derive(Debug)]
struct Cuts {
    at: Option<String>,
    log: Option<PathBuf>,
    counts: Mutex<BTreeMap<String, u32>>,
}

/// Arms the points for the rest of this process, from the values of `OPENCLAW_INIT_CUT` and
/// `OPENCLAW_INIT_CUT_LOG`. Only the first call counts; with neither value it does nothing.
pub fn arm(at: Option<String>, log: Option<PathBuf>) {
    if at.is_some() || log.is_some() {
        let counts = Mutex::default();
        // Armed before: the first call holds.
        let _ = CUTS.set(Cuts { at, log, counts });
    }
}

/// Passes the point `name`.
pub fn point(name: &str) {
    if let Some(cuts) = CUTS.get() {
        cuts.pass(name);
    }
}

/// One counted step of the present stage. It has a number from here on, whether or not it is then made.
pub(crate) fn step(what: &str) -> Step {
    Step(CUTS.get().map(|cuts| {
        let stage = stage::current().map_or("run", stage::Stage::name);
        let step = format!("{stage}.{what}");
        let mut counts = cuts.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(step.clone()).or_default();
        *count += 1;
        format!("{step}#{count}")
    }))
}

/// A step that has points, as `disk.mkfs.ext4#1`.
#[derive(Debug)]
pub(crate) struct Step(Option<String>);

impl Step {
    /// Passes the point that is the step itself.
    pub(crate) fn pass(&self) {
        self.0.iter().for_each(|name| point(name));
    }

    /// Passes the point of the step at `moment`, as `before`.
    pub(crate) fn at(&self, moment: &str) {
        self.0.iter().for_each(|name| point(&format!("{name}.{moment}")));
    }
}

impl Cuts {
    fn pass(&self, name: &str) {
        if let Some(log) = &self.log {
            let noted = File::options().create(true).append(true).open(log);
            if let Err(error) = noted.and_then(|mut log| log.write_all(format!("{name}\n").as_bytes())) {
                tracing::warn!("noting the point {name} in {}: {error}", log.display());
            }
        }
        if self.at.as_deref() == Some(name) {
            // The signal cannot be caught, so only its failure goes on, and that may not either.
            let _ = raise(Signal::SIGKILL);
            abort();
        }
    }
}
