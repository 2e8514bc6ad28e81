//! What the machine says of itself, beside what is so: all the time, from outside of what is tested.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::scenarios::rig::Rig;

const INTERVAL: Duration = Duration::from_secs(2);

/// How long a gateway that nothing reaches may be called ready.
const GONE_LIMIT: Duration = Duration::from_secs(90);

/// The same for one that is reached and does not answer well: it is asked every minute, and must be so for another one.
const BAD_LIMIT: Duration = Duration::from_secs(150);

/// Prints the body of the gateway's answer, then curl's exit code and the status.
const ASK: &str = "curl --silent --max-time 5 --write-out '\\n%{exitcode} %{http_code}\\n' \
                   http://127.0.0.1:18789/readyz; echo --";
const END: &str = "\n--\n";

/// How the gateway is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gateway {
    Ready,
    /// It answers something else, or not in time.
    Bad,
    Gone,
}

/// Who says how the gateway is, and for how long it was not so.
#[derive(Debug)]
struct Witness {
    name: &'static str,
    /// Since when it says `ready` of one that is not; whether nothing reached it all that time.
    lie: Option<(Duration, bool)>,
    longest_of_gone: Duration,
    longest_of_bad: Duration,
    /// Since when it says `stopped` or `failed` of one that is ready.
    late: Option<Duration>,
    latest: Duration,
}

impl Witness {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            lie: None,
            longest_of_gone: Duration::ZERO,
            longest_of_bad: Duration::ZERO,
            late: None,
            latest: Duration::ZERO,
        }
    }

    /// Notes what it says of a gateway that is so, at this time.
    fn says(&mut self, state: &str, gateway: Gateway, now: Duration) {
        if let Some((since, is_gone)) = self.lie {
            let (lasted, limit) = (now.saturating_sub(since), if is_gone { GONE_LIMIT } else { BAD_LIMIT });
            let longest = if is_gone { &mut self.longest_of_gone } else { &mut self.longest_of_bad };
            if lasted > limit && *longest <= limit {
                println!(
                    "day: at {} s {} has said ready for {} s of a gateway that is not",
                    now.as_secs(),
                    self.name,
                    lasted.as_secs()
                );
            }
            *longest = lasted.max(*longest);
        }
        self.lie = match self.lie {
            _ if state != "ready" || gateway == Gateway::Ready => None,
            Some((since, is_gone)) => Some((since, is_gone && gateway == Gateway::Gone)),
            None => Some((now, gateway == Gateway::Gone)),
        };
        let late = self.late.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.latest = late.max(self.latest);
        let is_late = gateway == Gateway::Ready && ["stopped", "failed"].contains(&state);
        self.late = is_late.then(|| self.late.unwrap_or(now));
    }

    fn is_true(&self) -> bool {
        self.longest_of_gone <= GONE_LIMIT && self.longest_of_bad <= BAD_LIMIT
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [gone, bad, late] = [self.longest_of_gone, self.longest_of_bad, self.latest].map(|it| it.as_secs());
        write!(
            out,
            "{}: ready for {gone} s of a gateway that was gone, for {bad} s of one that answered badly; stopped or \
             failed for {late} s of one that was ready",
            self.name
        )
    }
}

/// Does the work while the machine is looked at. An error of the work's comes first.
pub(super) fn is_told(rig: &Rig, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (ended, begun) = (AtomicBool::new(false), Instant::now());
    let (done, reported, asked) = thread::scope(|scope| {
        let reported = scope.spawn(|| all_the_time(&ended, begun, ["the guest attribute", "the file"], || look(rig)));
        let asked = scope.spawn(|| all_the_time(&ended, begun, ["status --json"], || ask(rig)));
        let done = work();
        ended.store(true, Ordering::Relaxed);
        (done, reported.join(), asked.join())
    });
    let panicked = |_| anyhow!("what looks at the machine has panicked");
    let (reported, asked) = (reported.map_err(panicked)?, asked.map_err(panicked)?);
    let witnesses: Vec<Witness> = reported.into_iter().chain(asked).collect();
    for witness in &witnesses {
        println!("day: {witness}");
    }
    done?;
    let liars: Vec<String> = witnesses.iter().filter(|it| !it.is_true()).map(ToString::to_string).collect();
    ensure!(liars.is_empty(), "{}", liars.join("\n"));
    Ok(())
}

/// Looks until it has `ended`. A look that cannot be taken shows nothing.
fn all_the_time<const N: usize>(
    ended: &AtomicBool,
    begun: Instant,
    names: [&'static str; N],
    look: impl Fn() -> Result<(Gateway, [String; N])>,
) -> [Witness; N] {
    let (mut witnesses, mut looks, mut failed) = (names.map(Witness::new), 0, 0);
    while !ended.load(Ordering::Relaxed) {
        looks += 1;
        match look() {
            Ok((gateway, states)) => {
                let pairs = witnesses.iter_mut().zip(states);
                pairs.for_each(|(witness, state)| witness.says(&state, gateway, begun.elapsed()));
            }
            Err(error) => {
                failed += 1;
                println!("day: looking at the machine: {error:#}");
            }
        }
        thread::sleep(INTERVAL);
    }
    println!("day: {looks} looks for {}, {failed} in vain", names.join(" and "));
    witnesses
}

/// The gateway, and what is told of it inside and outside.
fn look(rig: &Rig) -> Result<(Gateway, [String; 2])> {
    let (gateway, file) = gateway_and(rig, "cat /run/openclaw-init/status.json")?;
    Ok((gateway, [state(&rig.guest_attributes()?), state(&file)]))
}

/// The gateway, and what who asks now is told.
fn ask(rig: &Rig) -> Result<(Gateway, [String; 1])> {
    let (gateway, status) = gateway_and(rig, "openclaw-init status --json || true")?;
    Ok((gateway, [state(&status)]))
}

fn gateway_and(rig: &Rig, command: &str) -> Result<(Gateway, Value)> {
    let printed = rig.shell(&format!("{ASK}; {command}"))?;
    let (answer, status) = printed.split_once(END).with_context(|| format!("reading {printed}"))?;
    let status = serde_json::from_str(status).with_context(|| format!("reading {status}"))?;
    Ok((gateway(answer), status))
}

/// A proxy of Docker's may stand there without its container: it takes a connection and says nothing.
fn gateway(answer: &str) -> Gateway {
    match answer.trim().rsplit_once('\n') {
        Some((body, "0 200")) if body.contains("\"ready\":true") => Gateway::Ready,
        Some((_, "0 503" | "0 200")) => Gateway::Bad,
        _ if ["28 000", "52 000", "56 000"].contains(&answer.trim()) => Gateway::Bad,
        _ => Gateway::Gone,
    }
}

fn state(status: &Value) -> String {
    status["state"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_ready_when_it_says_so() {
        for (answer, expected) in [
            ("{\"ready\":true}\n0 200\n", Gateway::Ready),
            ("{\"ready\":false}\n0 503\n", Gateway::Bad),
            ("\n28 000\n", Gateway::Bad),
            ("\n7 000\n", Gateway::Gone),
            ("\n56 000\n", Gateway::Bad),
            ("", Gateway::Gone),
        ] {
            assert_eq!(gateway(answer), expected, "{answer}");
        }
    }

    #[test]
    fn a_lie_lasts_from_the_first_look_that_shows_it_to_the_first_that_does_not() {
        let mut witness = Witness::new("it");
        for (second, state, gateway) in [
            (0, "ready", Gateway::Ready),
            (10, "ready", Gateway::Gone),
            (90, "ready", Gateway::Gone),
            (100, "failed", Gateway::Gone),
            (300, "failed", Gateway::Gone),
            (310, "failed", Gateway::Ready),
            (330, "ready", Gateway::Ready),
        ] {
            witness.says(state, gateway, Duration::from_secs(second));
        }
        assert_eq!((witness.longest_of_gone, witness.longest_of_bad), (GONE_LIMIT, Duration::ZERO));
        assert!(witness.is_true() && witness.latest == Duration::from_secs(20));
        witness.says("ready", Gateway::Bad, Duration::from_secs(400));
        witness.says("ready", Gateway::Ready, Duration::from_secs(551));
        assert!(!witness.is_true());
    }
}
