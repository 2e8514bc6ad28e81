//! Long-lived processes of a lab, remembered so that exactly these can be ended later.
//!
//! A process id alone may be reused by a stranger; together with the start time it names one process.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One process of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    /// Start time in clock ticks since boot (`proc(5)`, field 22 of `stat`).
    started: u64,
}

impl Process {
    /// The running process `pid`; an error when there is none.
    pub fn of(pid: i32) -> Result<Self> {
        let started = started(pid).with_context(|| format!("process {pid} is not there"))?;
        Ok(Self { pid, started })
    }

    /// The calling process.
    pub fn me() -> Result<Self> {
        Self::of(nix::unistd::getpid().as_raw())
    }

    /// The process id.
    pub fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it still runs. A zombie does not.
    pub fn runs(self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Sends a signal; a process that has already ended is fine.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.runs() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("sending {signal} to process {}", self.pid)),
        }
    }

    /// Waits until it has ended, up to `limit`.
    pub fn wait(self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.runs() {
            if Instant::now() > deadline {
                bail!("process {} still runs after {} s", self.pid, limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks it to end, waits up to `limit`, then kills it. Returns when it is gone.
    pub fn end(self, limit: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.wait(limit).is_err() {
            self.signal(Signal::SIGKILL)?;
            self.wait(Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// Kills it and all that it has started, however far down.
    pub fn kill_tree(self) {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children = lists.collect::<Vec<_>>().join(" ");
        // What cannot be killed has ended.
        drop(self.signal(Signal::SIGKILL));
        let children = children.split_whitespace().filter_map(|pid| Self::of(pid.parse().ok()?).ok());
        children.for_each(Self::kill_tree);
    }

    /// Remembers it in `file`.
    pub fn remember(self, file: &Path) -> Result<()> {
        fs::write(file, format!("{} {}\n", self.pid, self.started))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// The process remembered in `file`, if it still runs.
    pub fn recall(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let process = Self { pid: pid.parse().ok()?, started: started.parse().ok()? };
        process.runs().then_some(process)
    }
}

fn started(pid: i32) -> Option<u64> {
    parse_start(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads the start time from `stat`; the command name in parentheses may itself hold blanks and parentheses.
fn parse_start(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_command_name() {
        let tail = "1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9";
        let cases = [("(cat) S", Some(777)), ("(a b) c) R", Some(777)), ("(gone) Z", None)];
        for (name, expected) in cases {
            assert_eq!(parse_start(&format!("12 {name} {tail}")), expected, "{name}");
        }
        assert_eq!(parse_start(""), None);
    }

    #[test]
    fn a_remembered_process_is_recalled_while_it_runs() -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let me = Process::me()?;
        me.remember(file.path())?;
        assert_eq!(Process::recall(file.path()), Some(me));
        let earlier = Process { started: me.started + 1, ..me };
        earlier.remember(file.path())?;
        assert_eq!(Process::recall(file.path()), None);
        Ok(())
    }
}
