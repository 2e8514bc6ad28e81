//! A day in less than an hour: what goes wrong in the life of a machine, at random, one after the other and at once.
//!
//! All the time what the machine says is compared with what is so. Each fault leaves its line, and in the end a run
//! finds nothing to do.

mod faults;
mod truth;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::random::Random;
use super::rig::Rig;
use crate::cloud::fake_gateway;
use faults::{Act, FAULTS, Fault, Step};

/// A seed that draws much of what a run heals.
const HOUR: u64 = 1814;

/// How long a step may take until all is well again: the watcher looks every minute, what it finds must be so for up
/// to another one, and the second run for one cause waits for two.
const HEALING: Duration = Duration::from_secs(420);

/// Steps that went wrong until it is enough.
const ENOUGH: usize = 5;

/// Where the journal ends. Systemd forgets how often it has started the engine: in a day it would.
const BEGIN: &str = "systemctl reset-failed docker containerd 2> /dev/null; \
                     journalctl --quiet --lines=0 --show-cursor | sed 's/^-- cursor: //'";

/// Waits until the journal after `$2` has a line with `$3`, for `$1` seconds. Of some units alone Debian 12's
/// `journalctl` would leave the first line after the cursor out.
const TOLD: &str = r#"
end=$(($(cut -d. -f1 /proc/uptime) + $1))
until journalctl --after-cursor="$2" --quiet --no-pager --output=cat | grep --quiet --extended-regexp "$3"; do
    [ $(cut -d. -f1 /proc/uptime) -lt $end ] || { echo "no line says: $3"; exit 1; }
    sleep 0.5
done"#;

/// Waits until nothing is wrong and the machine says so, for `$1` seconds; the gateway has the variable `$2`. An engine
/// that is down is not asked: that would start it.
const WELL: &str = r#"
end=$(($(cut -d. -f1 /proc/uptime) + $1))
why() {
    for unit in docker containerd openclaw-watch openclaw-shield; do
        [ "$(systemctl is-active $unit)" = active ] || { echo "$unit does not run"; return; }
    done
    [ "$(systemctl is-active openclaw-init)" = inactive ] || { echo "a run is at work or has failed"; return; }
    curl -fsS --max-time 5 http://127.0.0.1:18789/readyz 2> /dev/null | grep -q '"ready":true' || { echo "not ready"; return; }
    [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || { echo "nothing is forwarded"; return; }
    nft list table inet openclaw_init > /dev/null 2>&1 || { echo "no shield"; return; }
    docker inspect openclaw-gateway | grep -q "$variable" || { echo "no $variable"; return; }
    grep -q '"state": "ready"' /run/openclaw-init/status.json || { echo "it says $(head -c 800 /run/openclaw-init/status.json)"; return; }
}
variable=$2
while why=$(why) && [ "$why" ]; do
    [ $(cut -d. -f1 /proc/uptime) -lt $end ] || { echo "not well: $why"; exit 1; }
    sleep 0.5
done"#;

/// What an operator would look at.
const JOURNAL: &str = "journalctl --after-cursor=\"$1\" --quiet --no-pager --output=short | \
                       grep --extended-regexp 'openclaw-|systemd|dockerd' | grep -v level= | tail -n 60; \
                       docker ps -a; systemctl --failed";

pub(super) fn of_two_hundred_faults(rig: &Rig) -> Result<()> {
    of_faults(rig, &mut Random::new()?, 200)
}

/// The same twenty each time: none that takes minutes to be told.
pub(super) fn of_twenty_faults(rig: &Rig) -> Result<()> {
    of_faults(rig, &mut Random::or(HOUR)?, 20)
}

fn of_faults(rig: &Rig, random: &mut Random, count: usize) -> Result<()> {
    let steps = faults::draw(random, count);
    let version = format!("openclaw-version={}", fake_gateway::FIRST);
    let attributes = [&version, "openclaw-env-DAY=day-0", "openclaw-tmp=64M"].map(|it| ["--attr", it]);
    rig.up(&attributes.concat())?;
    let mut day = Day::new(rig);
    truth::is_told(rig, || day.passes(&steps))?;
    rig.boot(0)?.has(&["result=ready", "changes=0"]).map(drop)
}

struct Day<'a> {
    rig: &'a Rig,
    begun: Instant,
    /// The number of the step.
    number: usize,
    /// The gateway's variable.
    variable: String,
    has_attribute: bool,
    /// For what the watcher may have started a run since it began.
    causes: BTreeSet<&'static str>,
    restarts: usize,
    /// How long each fault took until all was well, by its name.
    took: BTreeMap<&'static str, Vec<Duration>>,
}

impl<'a> Day<'a> {
    fn new(rig: &'a Rig) -> Self {
        Self {
            rig,
            begun: Instant::now(),
            number: 0,
            variable: "day-0".to_owned(),
            has_attribute: false,
            causes: BTreeSet::new(),
            restarts: 0,
            took: BTreeMap::new(),
        }
    }

    /// All steps, also after one that went wrong; then `ready` is told to the outside.
    fn passes(&mut self, steps: &[Step]) -> Result<()> {
        let mut wrong = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            self.number = number + 1;
            let names: Vec<&str> = step.faults.iter().map(|fault| FAULTS[*fault].name).collect();
            let names = format!("{}{}", names.join(" + "), if step.by_hand.is_some() { ", then a run" } else { "" });
            let at = self.begun.elapsed().as_secs();
            match self.step(step) {
                Ok(took) => println!("day: {at} s: {} of {}: {names}: {} s", self.number, steps.len(), took.as_secs()),
                Err(error) => {
                    println!("day: {at} s: {} of {}: {names}: {error:#}", self.number, steps.len());
                    wrong.push(format!("{names}: {error}"));
                    ensure!(wrong.len() < ENOUGH, "too much went wrong: {}", wrong.join("; "));
                    self.is_rescued(step)?;
                }
            }
        }
        self.says_ready()?;
        println!(
            "day: {} faults in {} s, {} times the watcher began anew",
            self.count(),
            self.begun.elapsed().as_secs(),
            self.restarts
        );
        self.print();
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(())
    }

    /// One step; how long it took until all was well.
    fn step(&mut self, step: &Step) -> Result<Duration> {
        let faults: Vec<&Fault> = step.faults.iter().map(|fault| &FAULTS[*fault]).collect();
        if step.by_hand.is_none() && faults.iter().any(|fault| fault.cause.is_some_and(|it| self.causes.contains(it))) {
            self.forget()?;
        }
        thread::sleep(step.pause);
        let (cursor, begun) = (self.rig.shell(BEGIN)?, Instant::now());
        for fault in &faults {
            self.act(fault).with_context(|| fault.name)?;
            self.causes.extend(fault.cause);
        }
        let healed = self.heals(&faults, step.by_hand, &cursor);
        if healed.is_err() {
            println!("{}", self.rig.script(JOURNAL, &[&cursor])?);
        }
        healed?;
        for fault in &faults {
            self.took.entry(fault.name).or_default().push(begun.elapsed());
        }
        Ok(begun.elapsed())
    }

    fn act(&mut self, fault: &Fault) -> Result<()> {
        match fault.act {
            Act::Shell(line) => self.rig.shell(line).map(drop),
            Act::Metadata(fault) => self.rig.lab_ends(0, "metadata", &["fault", fault]).map(drop),
            Act::Variable(key) => {
                self.variable = format!("day-{}", self.number);
                self.rig.attribute(&format!("{key}={}", self.variable))
            }
            Act::Attribute(pair) => {
                self.has_attribute = !self.has_attribute;
                let key = pair.split('=').next().unwrap_or(pair);
                self.rig.attribute(if self.has_attribute { pair } else { key })
            }
        }
    }

    /// Waits for the line of each fault, then until all is well.
    fn heals(&mut self, faults: &[&Fault], by_hand: Option<Duration>, cursor: &str) -> Result<()> {
        if let Some(pause) = by_hand {
            thread::sleep(pause);
            self.rig.lab_ends(0, "exec", &["--", "openclaw-init", "boot"]).context("a run by hand")?;
        }
        let seconds = HEALING.as_secs().to_string();
        // While somebody has stopped the gateway, or installs packages, no run is started for the others.
        let (ended, others): (Vec<&Fault>, Vec<&Fault>) = faults.iter().partition(|fault| !fault.end.is_empty());
        for fault in ended.into_iter().chain(others) {
            if !fault.line.is_empty() {
                self.rig.script(TOLD, &[&seconds, cursor, fault.line]).with_context(|| fault.name)?;
            }
            self.rig.shell(fault.end).with_context(|| format!("the end of: {}", fault.name))?;
        }
        self.rig.script(WELL, &[&seconds, &format!("DAY={}\"", self.variable)]).map(drop)
    }

    /// Has the watcher begin anew, as after hours in which nothing happened.
    fn forget(&mut self) -> Result<()> {
        self.rig.shell("systemctl restart openclaw-watch")?;
        self.causes.clear();
        self.restarts += 1;
        Ok(())
    }

    /// What went wrong once must not be what goes wrong next.
    fn is_rescued(&mut self, step: &Step) -> Result<()> {
        for end in step.faults.iter().map(|fault| FAULTS[*fault].end).chain(["openclaw-init boot"]) {
            self.rig.lab("exec", &["--", "sh", "-c", end])?;
        }
        self.forget()
    }

    fn says_ready(&self) -> Result<()> {
        let begun = Instant::now();
        while self.rig.guest_attributes()?["state"] != "ready" {
            ensure!(begun.elapsed() < HEALING, "in the end it says {}", self.rig.guest_attributes()?);
            thread::sleep(Duration::from_secs(2));
        }
        Ok(())
    }

    fn count(&self) -> usize {
        self.took.values().map(Vec::len).sum()
    }

    fn print(&mut self) {
        for (name, took) in &mut self.took {
            took.sort_unstable();
            let [median, longest] = [took.len() / 2, took.len() - 1].map(|index| took[index].as_secs());
            println!("day: {name}: {} times, well again after {median} s, at most {longest} s", took.len());
        }
    }
}
