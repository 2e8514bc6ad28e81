//! Work that is cut at each of its named points, each time in a process of its own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use openclaw_init::cut;

/// Set in the process that does the work: the directory that is its machine.
const MACHINE: &str = "OPENCLAW_CUT_TEST_MACHINE";
const CUT: &str = "OPENCLAW_INIT_CUT";
const LOG: &str = "OPENCLAW_INIT_CUT_LOG";

/// Runs `work` once to learn its points, then for each of them on a new machine: cut there, run again, `check`.
/// Returns the points in the order in which they were passed. `test` is the name of the calling test.
pub(crate) fn sweep(
    test: &str,
    prepare: impl Fn(&Path) -> Result<()>,
    work: impl AsyncFnOnce(&Path) -> Result<()>,
    check: impl Fn(&Path) -> Result<()>,
) -> Result<Vec<String>> {
    if let Some(machine) = variable(MACHINE) {
        cut::arm(variable(CUT), variable(LOG).map(Into::into));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work(&PathBuf::from(machine)))?;
        return Ok(Vec::new());
    }
    let whole = Machine::new(test, &prepare)?;
    ensure!(whole.run(None)?.success(), "an uncut run fails");
    check(&whole.root()).context("after an uncut run")?;
    let points = whole.passed()?;
    ensure!(points.iter().collect::<BTreeSet<_>>().len() == points.len(), "a point is not unique: {points:?}");
    for point in &points {
        cut_and_again(&Machine::new(test, &prepare)?, point, &check).with_context(|| format!("cut at {point}"))?;
    }
    println!("{test}: cut at each of {} points", points.len());
    Ok(points)
}

fn cut_and_again(machine: &Machine<'_>, point: &str, check: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let ended = machine.run(Some(point))?;
    ensure!(ended.signal() == Some(9), "it was not killed there: {ended}");
    ensure!(machine.passed()?.last().is_some_and(|last| last == point), "it went on after the cut");
    ensure!(machine.run(None)?.success(), "the next run fails");
    check(&machine.root())
}

#[expect(clippy::disallowed_methods, reason = "how a test's second process knows itself")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

struct Machine<'a> {
    test: &'a str,
    directory: tempfile::TempDir,
}

impl<'a> Machine<'a> {
    fn new(test: &'a str, prepare: impl Fn(&Path) -> Result<()>) -> Result<Self> {
        let machine = Self { test, directory: tempfile::tempdir()? };
        fs::create_dir(machine.root())?;
        prepare(&machine.root()).context("preparing the machine")?;
        Ok(machine)
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("points")
    }

    /// Runs the calling test again as the process that does the work.
    fn run(&self, point: Option<&str>) -> Result<ExitStatus> {
        #[expect(clippy::disallowed_methods, reason = "a test starts its second process")]
        let mut again = Command::new(std::env::current_exe()?);
        again.args(["--exact", self.test, "--nocapture"]).env(MACHINE, self.root()).env(LOG, self.log());
        again.envs(point.map(|point| (CUT, point))).stdin(Stdio::null()).stdout(Stdio::null());
        again.status().context("starting the second process")
    }

    fn passed(&self) -> Result<Vec<String>> {
        Ok(fs::read_to_string(self.log())?.lines().map(str::to_owned).collect())
    }
}
