//! The request budget of guest attributes, counted across processes.
//!
//! Google documents 10 requests a minute and 3 a second per VM; whether outside readers share that is
//! unclear, so two a minute are left to them.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

use crate::host::{Host, blocking};
use crate::paths::REQUEST_TIMES;

/// How many requests may be sent in a minute.
const MINUTE_LIMIT: usize = 8;

/// How many requests may be sent in a second.
const SECOND_LIMIT: usize = 3;

/// How many of a minute's requests are reserved: the version when its image is there, and at the end run-id, detail,
/// state, result.
const RESERVED: usize = 5;

/// A little more than a minute and a second: the server's clock ticks when a request arrives.
const MINUTE: Duration = Duration::from_secs(61);
const SECOND: Duration = Duration::from_millis(1100);

/// How much a request matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Progress: sent when enough is left for the end.
    Routine,
    /// Sent when anything is left.
    Due,
    /// Sent in any case: the last words of a run. With the two of them Google's limit is still kept.
    Last,
}

/// The budget of this machine.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    /// The times of the latest requests, in milliseconds since the start of the kernel. Gone with the boot.
    file: PathBuf,
    uptime: PathBuf,
}

impl Budget {
    pub(super) fn new(host: &Host) -> Self {
        Self { file: host.path(REQUEST_TIMES), uptime: host.path("/proc/uptime") }
    }

    /// Takes one request out of the budget. Zero: it may be sent now. Otherwise nothing was taken, and
    /// asking again makes sense after so long.
    pub(super) async fn take(&self, urgency: Urgency) -> Result<Duration> {
        let Self { file, uptime } = self.clone();
        blocking(move || take(&file, now(&uptime)?, urgency))
            .await
            .context("counting the requests to the metadata server")
    }
}

/// Time since the start of the kernel: the same for all processes, and no one sets it.
fn now(uptime: &Path) -> Result<Duration> {
    let text = std::fs::read_to_string(uptime).with_context(|| format!("reading {}", uptime.display()))?;
    let seconds: Option<f64> = text.split_whitespace().next().and_then(|seconds| seconds.parse().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| anyhow!("{} holds no time", uptime.display()))
}

fn take(path: &Path, now: Duration, urgency: Urgency) -> Result<Duration> {
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("locking {}", path.display()))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut window = Window::parse(&text, now);
    let wait = window.wait(now, urgency);
    if wait.is_zero() {
        window.0.push(now);
        file.rewind()?;
        file.set_len(0)?;
        file.write_all(window.text().as_bytes())?;
    }
    Ok(wait)
}

/// When the requests of the last minute were sent, in order.
#[derive(Debug)]
struct Window(Vec<Duration>);

impl Window {
    /// Forgets what is too old to count, and what cannot be a time of this boot.
    fn parse(text: &str, now: Duration) -> Self {
        let times = text.split_whitespace().filter_map(|time| time.parse().ok().map(Duration::from_millis));
        Self(times.filter(|time| *time <= now && *time + MINUTE > now).collect())
    }

    fn text(&self) -> String {
        self.0.iter().map(|time| format!("{}\n", time.as_millis())).collect()
    }

    /// How long a request must wait.
    fn wait(&self, now: Duration, urgency: Urgency) -> Duration {
        let second = self.until_fewer_than(SECOND_LIMIT, SECOND, now);
        match urgency {
            Urgency::Routine => second.max(self.until_fewer_than(MINUTE_LIMIT - RESERVED, MINUTE, now)),
            Urgency::Due => second.max(self.until_fewer_than(MINUTE_LIMIT, MINUTE, now)),
            Urgency::Last => second,
        }
    }

    fn until_fewer_than(&self, limit: usize, span: Duration, now: Duration) -> Duration {
        let oldest = self.0.len().checked_sub(limit).and_then(|index| self.0.get(index));
        oldest.map_or(Duration::ZERO, |oldest| (*oldest + span).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn each_urgency_has_its_limit() {
        let table: &[(&[u64], u64, Urgency, u64)] = &[
            (&[], 0, Urgency::Routine, 0),
            (&[0, 5_000], 10_000, Urgency::Routine, 0),
            (&[0, 5_000, 6_000], 10_000, Urgency::Routine, 51_000),
            (&[0, 5_000, 6_000], 10_000, Urgency::Due, 0),
            (&[0, 1, 2, 3, 4, 5, 6], 10_000, Urgency::Due, 0),
            (&[0, 1, 2, 3, 4, 5, 6, 7], 10_000, Urgency::Due, 51_000),
            (&[0, 1, 2, 3, 4, 5, 6, 7], 10_000, Urgency::Last, 0),
            (&[0, 9_500, 9_700, 9_900], 10_000, Urgency::Last, 600),
            (&[0, 1, 2], 70_000, Urgency::Routine, 0),
            (&[80_000, 80_001, 80_002], 70_000, Urgency::Routine, 0),
        ];
        for (sent, now, urgency, wait) in table {
            let text: String = sent.iter().map(|time| format!("{time} ")).collect();
            let window = Window::parse(&text, ms(*now));
            assert_eq!(window.wait(ms(*now), *urgency), ms(*wait), "{sent:?} at {now}, {urgency:?}");
        }
    }

    #[test]
    fn a_request_counts_for_the_next_process_and_a_refused_one_does_not() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("requests");
        for time in [0, 2_000, 4_000] {
            assert_eq!(take(&file, ms(time), Urgency::Routine)?, Duration::ZERO);
        }
        for _ in 0..2 {
            assert_eq!(take(&file, ms(5_000), Urgency::Routine)?, ms(56_000));
        }
        assert_eq!(take(&file, ms(61_500), Urgency::Routine)?, Duration::ZERO);
        assert_eq!(std::fs::read_to_string(&file)?, "2000\n4000\n61500\n");
        Ok(())
    }

    #[test]
    fn garbage_in_the_file_does_not_stop_the_report() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("requests");
        std::fs::write(&file, "half a numb")?;
        assert_eq!(take(&file, ms(1), Urgency::Routine)?, Duration::ZERO);
        Ok(())
    }
}
