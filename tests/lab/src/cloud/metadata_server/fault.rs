//! Scripted faults: what goes wrong, for which requests, how often. One text syntax for command line and tests.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// A fault as `cargo lab metadata fault` takes it: items separated by commas, in any order.
///
/// | item | meaning |
/// | --- | --- |
/// | `path=PREFIX` | only requests whose path begins with it; default `/` |
/// | `method=PUT` | only requests with this method |
/// | `rate=10/1m` | only requests beyond that many in that time |
/// | `times=N`, `for=30s` | ends after so many requests that met it, or so long after the first; default never |
/// | `delay=5s` | waits before anything else |
/// | `status=503` | this status instead of an answer; a write does not happen |
/// | `truncate=10` | the real `Content-Length`, but only so many bytes of the body, then the connection ends |
/// | `no-flavor`, `flavor=X` | the answer without `Metadata-Flavor`, or with another value |
/// | `date=2h`, `date=-2h` | the answer with a `Date` that is so far ahead or behind |
/// | `blackhole` | accepts the request and never answers |
///
/// At least a delay or one of the effects below it is needed, at most one of these effects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fault {
    /// The prefix of the path, without query.
    pub path: String,
    /// The method, in capitals; all methods without it.
    pub method: Option<String>,
    /// The rate up to which requests are not affected.
    pub rate: Option<Rate>,
    /// When the fault ends.
    pub limit: Limit,
    /// The time that passes before the answer.
    pub delay: Option<Duration>,
    /// What is wrong with the answer; nothing when there is only a delay.
    pub effect: Option<Effect>,
}

/// So many requests within a sliding window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many requests pass.
    pub requests: usize,
    /// The window.
    pub window: Duration,
}

/// When a fault ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// When it is cleared.
    Never,
    /// After it hit so many requests.
    Times(u32),
    /// So long after it was set.
    For(Duration),
}

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// This status instead of an answer.
    Status(u16),
    /// Only so many bytes of the body under the full `Content-Length`.
    Truncate(usize),
    /// The answer's flavor header removed, or replaced.
    Flavor(Option<String>),
    /// The answer's time, so far off.
    Date(SignedDuration),
    /// No answer, ever.
    BlackHole,
}

impl Fault {
    fn set(&mut self, item: &str) -> Result<()> {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        match key {
            "path" => {
                ensure!(value.starts_with('/'), "the path {value:?} does not begin with /");
                self.path = value.into();
            }
            "method" => self.method = Some(value.to_ascii_uppercase()),
            "rate" => self.rate = Some(parse_rate(value)?),
            "times" => self.limit_by(Limit::Times(value.parse().with_context(|| not_a_number("times", value))?))?,
            "for" => self.limit_by(Limit::For(parse_duration(value)?))?,
            "delay" => self.delay = Some(parse_duration(value)?),
            "status" => {
                let status = value.parse().ok().filter(|status| (200..600).contains(status));
                self.break_with(Effect::Status(
                    status.with_context(|| format!("the status {value:?} is not between 200 and 599"))?,
                ))?;
            }
            "truncate" => {
                self.break_with(Effect::Truncate(value.parse().with_context(|| not_a_number("truncate", value))?))?;
            }
            "no-flavor" if item == key => self.break_with(Effect::Flavor(None))?,
            "flavor" => self.break_with(Effect::Flavor(Some(value.into())))?,
            "date" => {
                let off = value.parse().with_context(|| format!("the time {value:?} is not like 2h or -30s"))?;
                self.break_with(Effect::Date(off))?;
            }
            "blackhole" if item == key => self.break_with(Effect::BlackHole)?,
            _ => bail!(
                "{item:?} is none of path=, method=, rate=, times=, for=, delay=, status=, truncate=, no-flavor, \
                 flavor=, date=, blackhole"
            ),
        }
        Ok(())
    }

    fn limit_by(&mut self, limit: Limit) -> Result<()> {
        ensure!(self.limit == Limit::Never, "only one of times= and for= can be given, once");
        self.limit = limit;
        Ok(())
    }

    fn break_with(&mut self, effect: Effect) -> Result<()> {
        ensure!(
            self.effect.is_none(),
            "only one of status=, truncate=, no-flavor, flavor=, date= and blackhole can be given"
        );
        self.effect = Some(effect);
        Ok(())
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self> {
        let mut fault =
            Self { path: "/".into(), method: None, rate: None, limit: Limit::Never, delay: None, effect: None };
        for item in spec.split(',') {
            fault.set(item.trim()).with_context(|| format!("reading the fault {spec:?}"))?;
        }
        ensure!(
            fault.delay.is_some() || fault.effect.is_some(),
            "the fault {spec:?} breaks nothing: it needs delay=, status=, truncate=, no-flavor, flavor=, date= or blackhole"
        );
        Ok(fault)
    }
}

impl TryFrom<String> for Fault {
    type Error = Error;

    fn try_from(spec: String) -> Result<Self> {
        spec.parse()
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}

/// The syntax that [`FromStr`] reads, with defaults left out.
impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = Vec::new();
        if self.path != "/" {
            items.push(format!("path={}", self.path));
        }
        items.extend(self.method.iter().map(|method| format!("method={method}")));
        items.extend(self.rate.iter().map(|rate| format!("rate={}/{}", rate.requests, duration(rate.window))));
        match self.limit {
            Limit::Never => {}
            Limit::Times(times) => items.push(format!("times={times}")),
            Limit::For(time) => items.push(format!("for={}", duration(time))),
        }
        items.extend(self.delay.iter().map(|delay| format!("delay={}", duration(*delay))));
        items.extend(self.effect.iter().map(|effect| match effect {
            Effect::Status(status) => format!("status={status}"),
            Effect::Truncate(bytes) => format!("truncate={bytes}"),
            Effect::Flavor(None) => "no-flavor".into(),
            Effect::Flavor(Some(flavor)) => format!("flavor={flavor}"),
            Effect::Date(off) => {
                let sign = if off.is_negative() { "-" } else { "" };
                format!("date={sign}{}", duration(off.unsigned_abs()))
            }
            Effect::BlackHole => "blackhole".into(),
        }));
        out.write_str(&items.join(","))
    }
}

/// What `cargo lab metadata fault` does: one more fault, or none at all (`clear`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultChange {
    /// Adds a fault behind those that are set.
    Add(Fault),
    /// Removes all faults.
    Clear,
}

impl FromStr for FaultChange {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self> {
        if spec == "clear" { Ok(Self::Clear) } else { spec.parse().map(Self::Add) }
    }
}

/// The faults that are set, in the order in which they were added: each request meets the first that matches and
/// has not ended, so that several faults in a row are a script.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Armed>);

#[derive(Debug)]
struct Armed {
    fault: Fault,
    /// When the first request met it.
    since: Option<Instant>,
    hits: u32,
    /// When requests below the rate came, within the window.
    passed: VecDeque<Instant>,
}

impl Faults {
    pub(super) fn change(&mut self, change: FaultChange) {
        match change {
            FaultChange::Add(fault) => {
                self.0.push(Armed { fault, since: None, hits: 0, passed: VecDeque::new() });
            }
            FaultChange::Clear => self.0.clear(),
        }
    }

    /// The fault that this request meets.
    pub(super) fn meet(&mut self, method: &str, path: &str) -> Option<Fault> {
        let now = Instant::now();
        self.0.retain(|armed| !armed.ended(now));
        self.0.iter_mut().find_map(|armed| armed.hit(method, path, now))
    }
}

impl Armed {
    fn ended(&self, now: Instant) -> bool {
        match self.fault.limit {
            Limit::Never => false,
            Limit::Times(times) => self.hits >= times,
            Limit::For(time) => self.since.is_some_and(|since| now.duration_since(since) >= time),
        }
    }

    fn hit(&mut self, method: &str, path: &str, now: Instant) -> Option<Fault> {
        let Fault { path: prefix, method: only, rate, .. } = &self.fault;
        let matches = path.starts_with(prefix) && only.as_deref().is_none_or(|only| only == method);
        let rate = *rate;
        if !matches || rate.is_some_and(|rate| !self.beyond(rate, now)) {
            return None;
        }
        self.hits += 1;
        self.since.get_or_insert(now);
        Some(self.fault.clone())
    }

    fn beyond(&mut self, rate: Rate, now: Instant) -> bool {
        self.passed.retain(|passed| now.duration_since(*passed) < rate.window);
        let beyond = self.passed.len() >= rate.requests;
        if !beyond {
            self.passed.push_back(now);
        }
        beyond
    }
}

fn parse_rate(text: &str) -> Result<Rate> {
    let (requests, window) = text.split_once('/').with_context(|| format!("the rate {text:?} is not like 10/1m"))?;
    Ok(Rate {
        requests: requests.parse().with_context(|| not_a_number("rate", requests))?,
        window: parse_duration(window)?,
    })
}

fn parse_duration(text: &str) -> Result<Duration> {
    let time: SignedDuration = text.parse().with_context(|| format!("the time {text:?} is not like 30s or 500ms"))?;
    time.try_into().with_context(|| format!("the time {text:?} is negative"))
}

fn duration(time: Duration) -> String {
    format!("{:#}", SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX)).replace(' ', "")
}

fn not_a_number(item: &str, value: &str) -> String {
    format!("the number {value:?} of {item}= is not a whole number")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn syntax_round_trips() {
        for spec in [
            "for=30s,status=503",
            "path=/computeMetadata/v1/instance/guest-attributes/,method=PUT,status=403",
            "blackhole",
            "truncate=10",
            "times=2,no-flavor",
            "flavor=Other",
            "times=1,date=-2h",
            "delay=5s",
            "delay=500ms,status=500",
            "rate=10/1m,status=429",
        ] {
            let fault: Fault = spec.parse().unwrap();
            assert_eq!(fault.to_string(), spec);
            assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault);
        }
        assert_eq!("clear".parse::<FaultChange>().unwrap(), FaultChange::Clear);
    }

    #[test]
    fn errors_name_the_item() {
        for (spec, message) in [
            ("", "\"\" is none of"),
            ("times=2", "breaks nothing"),
            ("status=99", "status \"99\" is not between"),
            ("status=503,blackhole", "only one of status="),
            ("times=2,for=1s,blackhole", "only one of times="),
            ("for=abc,blackhole", "time \"abc\" is not like"),
            ("delay=-1s", "is negative"),
            ("path=x,blackhole", "does not begin with /"),
            ("rate=10,status=429", "is not like 10/1m"),
            ("blackhole=1", "\"blackhole=1\" is none of"),
            ("truncate=x", "\"x\" of truncate="),
        ] {
            let error = format!("{:#}", spec.parse::<Fault>().unwrap_err());
            assert!(error.contains(message), "{spec}: {error}");
        }
    }

    #[test]
    fn limits_end_and_faults_in_a_row_are_a_script() {
        let mut faults = Faults::default();
        for spec in ["status=503,times=2", "status=403,method=PUT,times=1", "rate=1/1m,status=429,path=/a"] {
            faults.change(spec.parse().unwrap());
        }
        let mut meet = |method, path| faults.meet(method, path).and_then(|fault| fault.effect);
        let script: Vec<_> =
            [("GET", "/"), ("PUT", "/"), ("GET", "/"), ("PUT", "/"), ("PUT", "/"), ("GET", "/a"), ("GET", "/a")]
                .into_iter()
                .map(|(method, path)| meet(method, path))
                .collect();
        let status = |code| Some(Effect::Status(code));
        assert_eq!(script, [status(503), status(503), None, status(403), None, None, status(429)]);
    }
}
