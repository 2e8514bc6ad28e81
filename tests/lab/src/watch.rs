//! Work that may be ended from outside: nothing that it started goes on, and it starts nothing more.

use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::process::Process;

/// What one piece of work has started.
#[derive(Debug, Default)]
pub struct Watch {
    started: Mutex<Started>,
}

#[derive(Debug, Default)]
struct Started {
    has_ended: bool,
    programs: Vec<Process>,
    labs: Vec<String>,
}

impl Watch {
    /// Notes a lab that goes with the work.
    pub fn has_lab(&self, name: &str) {
        self.lock().labs.push(name.to_owned());
    }

    /// Runs a program without input to its end; its output.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let (child, process) =
            self.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let output = child.wait_with_output();
        self.forget(process);
        output.context("waiting for a program")
    }

    /// Runs a program without input to its end; its output goes to ours.
    pub fn status(&self, command: &mut Command) -> Result<ExitStatus> {
        let (mut child, process) = self.spawn(command.stdin(Stdio::null()))?;
        let status = child.wait();
        self.forget(process);
        status.context("waiting for a program")
    }

    /// The lock is held while the program starts, so that none can start unseen when the work is ended.
    fn spawn(&self, command: &mut Command) -> Result<(Child, Option<Process>)> {
        let mut started = self.lock();
        ensure!(!started.has_ended, "the time limit is over");
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        // None: it has ended already.
        let process = i32::try_from(child.id()).ok().and_then(|pid| Process::of(pid).ok());
        started.programs.extend(process);
        Ok((child, process))
    }

    fn forget(&self, process: Option<Process>) {
        self.lock().programs.retain(|known| Some(*known) != process);
    }

    /// Kills every program with all that it started, and lets no other one start; the labs that may be left.
    pub fn end(&self) -> Vec<String> {
        let mut started = self.lock();
        started.has_ended = true;
        started.programs.iter().for_each(|program| program.kill_tree());
        std::mem::take(&mut started.labs)
    }

    /// Whether it was ended.
    pub fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    fn lock(&self) -> MutexGuard<'_, Started> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
