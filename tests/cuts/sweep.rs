//! Work that is cut at each of its named points, each time in a process of its own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use openclaw_init::failpoint;
use openclaw_lab::product::{FAILPOINT, FAILPOINT_LOG};

use crate::machine;

/// Machines at the same time: they mostly wait.
const SIDE_BY_SIDE: usize = 6;
/// The points that a process passed, in the directory that is its machine.
pub(crate) const POINTS: &str = "points";
/// Set in a test's second process: the directory that is its machine.
const MACHINE: &str = "OPENCLAW_CUT_TEST_MACHINE";

/// Work on a machine, which is a directory.
pub(crate) trait Work: Sync {
    /// What belongs to a machine beside its directory, and goes with it.
    type Beside;
    /// Makes an empty directory the machine as it is before the work.
    fn prepare(&self, machine: &Path) -> Result<Self::Beside>;
    /// The process that does the work; it appends its points to [`POINTS`].
    fn process(&self, machine: &Path, beside: &Self::Beside) -> Result<Command>;
    /// The process that comes after the cut.
    fn process_after(&self, machine: &Path, beside: &Self::Beside) -> Result<Command> {
        self.process(machine, beside)
    }
    /// The variable by which the process that is cut knows where.
    fn cut_variable(&self) -> &'static str {
        FAILPOINT
    }
    /// What the power failure takes away besides the process.
    fn power_fails(&self, _machine: &Path) -> Result<()> {
        Ok(())
    }
    /// Whether the work is done.
    fn check(&self, machine: &Path, beside: &Self::Beside) -> Result<()>;
    /// Whether this is a point of the work itself, and passed every time.
    fn is_of_interest(&self, _point: &str) -> bool {
        true
    }
}

/// Does the work once to learn its points, then for each of them on a new machine: cuts there, does it again, checks.
/// Returns the points in the order in which they were passed.
pub(crate) fn sweep(work: &impl Work) -> Result<Vec<String>> {
    let points = {
        let machine = TestMachine::new(work)?;
        let ended = run(work.process(&machine.root(), &machine.beside)?)?;
        ensure!(ended.success(), "without a cut: {ended}");
        work.check(&machine.root(), &machine.beside).context("without a cut")?;
        machine.passed()?.into_iter().filter(|point| work.is_of_interest(point)).collect::<Vec<_>>()
    };
    ensure!(points.iter().collect::<BTreeSet<_>>().len() == points.len(), "a point is not unique: {points:?}");
    machine::each(&points, SIDE_BY_SIDE, |point| format!("cut at {point}"), |point| cut_and_again(work, point))?;
    println!("cut at each of {} points", points.len());
    Ok(points)
}

fn cut_and_again(work: &impl Work, point: &str) -> Result<()> {
    let machine = TestMachine::new(work)?;
    let mut process = work.process(&machine.root(), &machine.beside)?;
    process.env(work.cut_variable(), point);
    let ended = run(process)?;
    ensure!(ended.signal() == Some(9) || ended.code() == Some(128 + 9), "it was not killed there: {ended}");
    ensure!(machine.passed()?.last().is_some_and(|last| last == point), "it went on after the cut");
    work.power_fails(&machine.root())?;
    let ended = run(work.process_after(&machine.root(), &machine.beside)?)?;
    ensure!(ended.success(), "the next run: {ended}");
    work.check(&machine.root(), &machine.beside)
}

fn run(mut process: Command) -> Result<ExitStatus> {
    let output = process.stdin(Stdio::null()).output().context("starting a process of the sweep")?;
    if output.status.code().is_some_and(|code| code != 0) {
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status)
}

struct TestMachine<W: Work> {
    beside: W::Beside,
    directory: tempfile::TempDir,
}

impl<W: Work> TestMachine<W> {
    fn new(work: &W) -> Result<Self> {
        // A process that is killed loses nothing that it wrote: the time that real disks take shows nothing.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
        let beside = work.prepare(directory.path()).context("preparing the machine")?;
        Ok(Self { beside, directory })
    }

    fn root(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    fn passed(&self) -> Result<Vec<String>> {
        Ok(fs::read_to_string(self.root().join(POINTS))?.lines().map(str::to_owned).collect())
    }
}

/// The test `test` of this program as a process that does the work; see [`second_process`].
pub(crate) fn again(test: &str, machine: &Path) -> Result<Command> {
    #[expect(clippy::disallowed_methods, reason = "a test starts its second process")]
    let mut again = Command::new(std::env::current_exe()?);
    again.args(["--exact", test, "--nocapture"]).env(MACHINE, machine).env(FAILPOINT_LOG, machine.join(POINTS));
    Ok(again)
}

/// In the process of [`again`]: does `work` on its machine. False in the test itself.
pub(crate) fn second_process(work: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<bool> {
    #[expect(clippy::disallowed_methods, reason = "how a test's second process knows itself")]
    let variable = |name| std::env::var(name).ok();
    let Some(machine) = variable(MACHINE) else { return Ok(false) };
    failpoint::arm(variable(FAILPOINT), variable(FAILPOINT_LOG).map(Into::into));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work(Path::new(&machine)))?;
    Ok(true)
}
