//! A time limit for one test.

use std::env;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use crate::cli::up::{self, Keep};
use crate::state::Lab;
use crate::watch::Watch;

/// Does the work in a thread of its own. When the time is over, its programs are killed and its machines taken down;
/// the thread itself ends with the next program that it cannot start.
pub(super) fn within(limit: Duration, work: impl FnOnce(&Arc<Watch>) -> Result<()> + Send + 'static) -> Result<()> {
    let watch = Arc::new(Watch::default());
    let (sender, receiver) = mpsc::channel();
    let of_the_work = Arc::clone(&watch);
    thread::spawn(move || {
        // Nobody listens any more when the time is over.
        let _ = sender.send(work(&of_the_work));
    });
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected) => Err(anyhow!("it panicked: see above")),
        Err(RecvTimeoutError::Timeout) => {
            let left = take_down(&watch.end());
            let all = if left.is_empty() { String::new() } else { format!("; {}", left.join("; ")) };
            bail!("it did not end within its time limit of {} s and was ended{all}", limit.as_secs())
        }
    }
}

/// Takes the machines down; what could not be taken down.
fn take_down(labs: &[String]) -> Vec<String> {
    if env::var_os("OPENCLAW_LAB_KEEP").is_some() {
        return Vec::new();
    }
    let down = |name: &String| up::down(&Lab::named(name)?, &Keep::default());
    let failures = labs.iter().filter_map(|name| Some((name, down(name).err()?)));
    failures.map(|(name, error)| format!("lab down --name {name} failed: {error:#}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_in_time_is_judged_by_its_result() {
        let limit = Duration::from_secs(60);
        within(limit, |watch| watch.output(&mut Command::new("true")).map(drop)).unwrap();
        assert_eq!(within(limit, |_| bail!("a reason")).unwrap_err().to_string(), "a reason");
    }

    #[test]
    fn when_the_time_is_over_nothing_goes_on_and_nothing_more_begins() {
        let (sender, receiver) = mpsc::channel();
        let (begun, patience) = (Instant::now(), Duration::from_secs(60));
        let error = within(Duration::from_millis(300), move |watch| {
            let mut shell = Command::new("sh");
            let status = watch.status(shell.args(["-c", "sleep 100 & sleep 100; true"]))?;
            let next = watch.status(&mut Command::new("true")).map_err(|error| error.to_string());
            sender.send((status.success(), next.unwrap_err()))?;
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "it did not end within its time limit of 0 s and was ended");
        assert_eq!(receiver.recv_timeout(patience).unwrap(), (false, "the time limit is over".to_owned()));
        assert!(begun.elapsed() < patience);
    }
}
