//! What a look at the machine means: what is told, and whether a run is started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::error::RUN_AGAIN;
use crate::gateway::Health;
use crate::gateway::live::Container;
use crate::paths::BOOT_UNIT;
use crate::report::{Saying, State};
use crate::state::room::LOW_PERCENT;
use crate::text::minutes;

/// How often the machine is looked at while a run is at work.
const BUSY_INTERVAL: Duration = Duration::from_secs(15);

/// The longest time between two looks.
const LONGEST: Duration = Duration::from_secs(50);

/// How long most things must last before they count: the engine restarts what has ended, an operator may be at work.
const CONFIRM: Duration = Duration::from_secs(10);

/// The same for what only a moment's load may be: an answer of the proxy, an engine on its way up or down.
const CONFIRM_ANSWER: Duration = Duration::from_secs(30);

/// How long ago the gateway's last good answer must be before it counts as not well: it may be starting, or busy.
/// With the time between two looks, and that of a look that waits for an answer, it is told within 90 s.
const WELL: Duration = Duration::from_secs(60);

/// How long a run that failed is left alone.
const FAILED_GRACE: Duration = Duration::from_secs(60);

/// How long what may be an operator's wish, or may pass, is left alone: an engine that is down while nobody upgrades
/// it, a gateway that gives no good answer.
const GRACE: Duration = Duration::from_secs(600);

/// Minutes between two starts for the same cause.
const BACKOFF_MINUTES: [u64; 5] = [1, 2, 5, 15, 60];

/// A cause that has not come back for so long begins anew.
const FORGET: Duration = Duration::from_secs(2 * 3600);

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    Run,
    Engine,
    EngineOnItsWay,
    EngineRules,
    Containerd,
    Container,
    Silent,
    Hung,
    Unhealthy,
    Shield,
    Forwarding,
    Clock,
    DataDisk,
    Room,
    Proxy,
    Attributes,
    AttributesForBoot,
}

/// How the engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum EngineSight {
    /// It does not run, as after `systemctl stop`.
    Inactive,
    /// It ended by itself.
    Failed,
    /// It is not installed.
    Missing,
    /// It is starting or stopping.
    OnItsWay,
    /// It runs and gives no answer.
    Silent,
    /// It answers.
    #[default]
    Up,
}

/// How containerd is, where the engine does not bring its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ContainerdSight {
    /// It does not run, as after `systemctl stop`.
    Inactive,
    /// It ended by itself.
    Failed,
    /// Nothing is wrong with it.
    #[default]
    Up,
}

/// What is wrong with the data disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskTrouble {
    Gone,
    ReadOnly,
}

/// What one look has seen.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own that was seen")]
pub(super) struct Sight {
    /// A run is at work or none has ended yet, the engine starts or stops, or the system ends.
    pub(super) is_busy: bool,
    /// When the latest run began, as a name for it.
    pub(super) run: Option<SystemTime>,
    /// What it said at its end.
    pub(super) run_state: State,
    /// It failed with what may pass.
    pub(super) may_pass: bool,
    /// It failed, and the gateway runs with other settings than the operator's.
    pub(super) is_served_otherwise: bool,
    pub(super) may_repair: bool,
    pub(super) is_masked: bool,
    pub(super) is_dpkg_busy: bool,
    pub(super) engine: EngineSight,
    pub(super) containerd: ContainerdSight,
    pub(super) container: Option<Container>,
    pub(super) is_stopped_by_shield: bool,
    pub(super) health: Option<Health>,
    /// What it lacks is what the run itself named.
    pub(super) is_health_named: bool,
    pub(super) is_hung: bool,
    pub(super) is_forwarding_off: bool,
    /// Somebody removed the engine's rules of the packet filter.
    pub(super) has_lost_rules: bool,
    pub(super) is_unshielded: bool,
    /// How far off the clock is.
    pub(super) clock: Option<String>,
    pub(super) disk: Option<DiskTrouble>,
    pub(super) low: Vec<PathBuf>,
    /// What the gateway lacks at its domain.
    pub(super) proxy: Option<String>,
    /// The run itself named something of the proxy's as missing.
    pub(super) is_proxy_named: bool,
    /// The run missed something of which nothing shows here when it is mended: a proxy that could not be taken away, a
    /// plugin that is not loaded.
    pub(super) is_more_missing: bool,
    /// Who has asked to be paired lately.
    pub(super) asking: Vec<String>,
    /// Keys that a run can apply.
    pub(super) changed: Vec<String>,
    /// Keys that wait for the next boot.
    pub(super) for_boot: Vec<String>,
    /// How long a run for changed attributes waits.
    pub(super) delay: Option<Duration>,
}

/// Who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cure {
    /// A run.
    Run,
    /// A run, but not at once: this may be an operator's wish.
    RunLater,
    /// Nobody but the operator, who wanted it so.
    Operator,
    /// Nobody by himself.
    Nobody,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    cause: Cause,
    state: State,
    what: String,
    cure: Cure,
}

/// Now: on a clock that nobody sets, and for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) elapsed: Duration,
    pub(super) time: Timestamp,
}

/// What earlier looks have seen, and which runs were started.
#[derive(Debug, Default)]
pub(super) struct Memory {
    run: Option<SystemTime>,
    seen: BTreeMap<Cause, Moment>,
    starts: BTreeMap<Cause, (usize, Duration)>,
    /// When the gateway last gave a good answer, or a run ended.
    well: Duration,
    /// When the latest run was last at work.
    ended: Duration,
    /// Why it was started, if it was started here.
    running: Option<Cause>,
    /// The engine, or containerd, went down while packages were installed.
    is_upgrade: bool,
    /// Somebody stopped the gateway. An engine that is down does not say so any more.
    is_stopped: bool,
    /// How long the run for the attributes that were seen then waits.
    delay: Option<(Duration, Moment)>,
}

/// A run to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) cause: Cause,
    pub(super) reason: String,
}

/// What follows from a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// `None`: what the run said.
    pub(super) saying: Option<Saying>,
    pub(super) start: Option<Start>,
    /// When to look again.
    pub(super) next: Duration,
}

/// What is said and done now, given what was seen before.
pub(super) fn decide(sight: &Sight, memory: &mut Memory, now: Moment) -> Decision {
    if sight.is_busy {
        memory.note_run(now);
        return Decision { saying: None, start: None, next: BUSY_INTERVAL };
    }
    memory.begin_anew_after(sight.run, now);
    memory.running = None;
    let mut findings = sight.findings();
    memory.note(&findings, sight, now);
    let unconfirmed = findings.iter().filter_map(|finding| memory.until_confirmed(finding.cause, now)).min();
    findings.retain(|finding| memory.until_confirmed(finding.cause, now).is_none());
    let (start, later) = match memory.start(sight, &findings, now) {
        Ok(start) => (start, None),
        Err(later) => (None, Some(later)),
    };
    let next = [unconfirmed, later].into_iter().flatten().min().unwrap_or(LONGEST).min(LONGEST);
    Decision { saying: sight.saying(&findings, memory), start, next }
}

/// What one look alone says. Nothing is confirmed by a second one, and since when it is so is not known.
pub(super) fn now(sight: &Sight) -> Option<Saying> {
    let mut findings = sight.findings();
    if matches!(sight.health, Some(Health::Starting(_))) {
        findings.iter_mut().filter(|it| it.cause == Cause::Silent).for_each(|it| it.state = State::Starting);
    }
    sight.saying(&findings, &Memory::default())
}

impl Sight {
    /// A look at a machine that is not the watcher's to judge now.
    pub(super) fn busy() -> Self {
        Self { is_busy: true, ..Self::default() }
    }

    fn findings(&self) -> Vec<Finding> {
        let found = [self.of_run(), self.of_engine(), self.of_containerd(), self.of_container(), self.of_health()];
        let others = [
            self.of_rules(),
            self.of_shield(),
            self.of_forwarding(),
            self.of_clock(),
            self.of_disk(),
            self.of_room(),
            self.of_proxy(),
        ];
        let changes = [self.of_changes(), self.of_boot_changes()];
        found.into_iter().chain(others).chain(changes).flatten().collect()
    }

    fn of_run(&self) -> Option<Finding> {
        let failed = Finding { state: State::Failed, ..finding(Cause::Run, "the last run failed", Cure::Run) };
        (self.run_state == State::Failed && self.may_pass).then_some(failed)
    }

    fn of_engine(&self) -> Option<Finding> {
        let (state, what, cure) = match self.engine {
            EngineSight::Up => return None,
            EngineSight::Inactive => (State::Stopped, "docker.service was stopped", Cure::RunLater),
            EngineSight::Failed => (State::Failed, "docker.service has failed", Cure::Run),
            // A run that failed may not have come so far.
            EngineSight::Missing if self.may_pass => (State::Failed, "docker.service is not installed", Cure::Run),
            EngineSight::Missing => (State::Failed, "docker.service is not installed", Cure::RunLater),
            EngineSight::OnItsWay => (State::Failed, "docker.service is starting or stopping", Cure::Nobody),
            EngineSight::Silent => {
                (State::Failed, "the engine gives no answer; see `sudo journalctl --unit docker`", Cure::Nobody)
            }
        };
        let cause = if self.engine == EngineSight::OnItsWay { Cause::EngineOnItsWay } else { Cause::Engine };
        Some(Finding { cause, state, what: what.to_owned(), cure })
    }

    fn of_containerd(&self) -> Option<Finding> {
        let (what, cure) = match self.containerd {
            ContainerdSight::Up => return None,
            ContainerdSight::Inactive => ("containerd.service was stopped", Cure::RunLater),
            ContainerdSight::Failed => ("containerd.service has failed", Cure::Run),
        };
        Some(finding(Cause::Containerd, what, cure))
    }

    fn of_container(&self) -> Option<Finding> {
        let (state, what, cure) = match self.container.as_ref()? {
            Container::Alive { .. } => return None,
            Container::Missing => (State::Failed, "the gateway's container is gone".to_owned(), Cure::Run),
            Container::CutOff => (State::Failed, "nothing reaches the gateway's container".to_owned(), Cure::Run),
            Container::Broken(why) => {
                (State::Failed, format!("the engine could not start the gateway's container ({why})"), Cure::Run)
            }
            Container::Dropped => {
                let what = "the engine ended the gateway when it came back after a crash, and did not start it again";
                (State::Failed, what.to_owned(), Cure::Run)
            }
            Container::Stopped if self.is_stopped_by_shield => {
                (State::Failed, "the gateway was stopped because the metadata shield was gone".to_owned(), Cure::Run)
            }
            Container::Stopped => (State::Stopped, "the gateway was stopped by hand".to_owned(), Cure::Operator),
        };
        Some(Finding { cause: Cause::Container, state, what, cure })
    }

    fn of_health(&self) -> Option<Finding> {
        let failed = |cause, what: &str, cure| Finding { state: State::Failed, ..finding(cause, what, cure) };
        match self.health.as_ref()? {
            Health::Ready { suppressed, .. } => {
                suppressed.as_ref().map(|what| finding(Cause::Unhealthy, what, Cure::Nobody))
            }
            Health::Silent if self.is_hung => {
                Some(failed(Cause::Hung, "the gateway hangs: it gives no answer and does nothing", Cure::Run))
            }
            Health::Silent => Some(failed(Cause::Silent, "the gateway gives no answer", Cure::RunLater)),
            Health::Starting(what) => {
                Some(failed(Cause::Silent, &format!("the gateway is starting ({what})"), Cure::RunLater))
            }
            Health::Unhealthy { failing, .. } => {
                let what = format!("the gateway's checks fail: {}", failing.join(", "));
                Some(finding(Cause::Unhealthy, &what, Cure::Nobody))
            }
        }
    }

    fn of_rules(&self) -> Option<Finding> {
        let what = "somebody removed the engine's rules of the packet filter (`sudo nft list ruleset`), so the gateway \
                    has no internet";
        self.has_lost_rules.then(|| finding(Cause::EngineRules, what, Cure::Run))
    }

    fn of_shield(&self) -> Option<Finding> {
        let what = "the metadata shield is not in force, so no container of the gateway can start";
        self.is_unshielded.then(|| finding(Cause::Shield, what, Cure::Run))
    }

    fn of_forwarding(&self) -> Option<Finding> {
        let what = "the kernel does not forward packets (net.ipv4.ip_forward), so the gateway has no internet";
        self.is_forwarding_off.then(|| finding(Cause::Forwarding, what, Cure::Run))
    }

    fn of_clock(&self) -> Option<Finding> {
        let what = format!("the clock is {} Compute Engine's", self.clock.as_ref()?);
        Some(finding(Cause::Clock, &what, Cure::Run))
    }

    fn of_disk(&self) -> Option<Finding> {
        Some(match self.disk? {
            DiskTrouble::Gone => Finding {
                state: State::Failed,
                ..finding(Cause::DataDisk, "the data disk is not mounted any more", Cure::Run)
            },
            DiskTrouble::ReadOnly => finding(
                Cause::DataDisk,
                "the data disk is read-only, as after an error (see `sudo dmesg`): reboot to have it checked",
                Cure::Nobody,
            ),
        })
    }

    fn of_room(&self) -> Option<Finding> {
        let places: Vec<_> = self.low.iter().map(|place| place.display().to_string()).collect();
        let what =
            format!("less than {LOW_PERCENT} % is free of {}: make room (`df -h`, `df -i`)", places.join(" and "));
        // Only the boot disk has what a run may remove.
        let cure = if self.low.iter().any(|place| place == Path::new("/")) { Cure::Run } else { Cure::Nobody };
        (!places.is_empty()).then(|| finding(Cause::Room, &what, cure))
    }

    fn of_proxy(&self) -> Option<Finding> {
        self.proxy.as_ref().map(|lack| finding(Cause::Proxy, lack, Cure::Nobody))
    }

    fn of_changes(&self) -> Option<Finding> {
        let what = format!("changed attributes: {}", self.changed.join(", "));
        let state = if self.has_recovered() { State::Ready } else { self.run_state };
        (!self.changed.is_empty()).then(|| Finding { state, ..finding(Cause::Attributes, &what, Cure::Run) })
    }

    /// How long the run for changed attributes waits. Only a gateway that runs has something to lose.
    fn delay(&self) -> Option<Duration> {
        // An engine that is only busy says nothing of it.
        let is_alive = match &self.container {
            Some(container) => matches!(container, Container::Alive { .. }),
            None => self.engine == EngineSight::Silent,
        };
        self.delay.filter(|_| is_alive && self.for_boot.is_empty())
    }

    fn of_boot_changes(&self) -> Option<Finding> {
        let what = format!("reboot to apply {}; until then no run is started", self.for_boot.join(", "));
        (!self.for_boot.is_empty()).then(|| finding(Cause::AttributesForBoot, &what, Cure::Nobody))
    }

    /// What all of it is for who reads the state. What the run itself said is not said again.
    fn saying(&self, findings: &[Finding], memory: &Memory) -> Option<Saying> {
        let is_news = |finding: &&Finding| match (self.run_state, finding.cause) {
            (_, Cause::Run) => false,
            (run, Cause::Attributes) => run != State::Failed && self.delay().is_some(),
            (State::Degraded, Cause::Proxy) => !self.is_proxy_named,
            (State::Degraded, Cause::Unhealthy) => !self.is_health_named,
            (State::Degraded, _) => true,
            (run, _) => run == State::Ready || self.is_served_otherwise,
        };
        let news: Vec<&Finding> = findings.iter().filter(is_news).collect();
        if news.is_empty() && self.has_recovered() {
            let message = "what the run missed in the gateway works again".to_owned();
            return Some(Saying { state: State::Ready, message });
        }
        let news_state = news.iter().map(|finding| finding.state).max_by_key(|state| severity(*state))?;
        // More that is wrong makes nothing better.
        let of_run = self.is_served_otherwise.then_some(self.run_state);
        let state = of_run.filter(|state| severity(*state) > severity(news_state)).unwrap_or(news_state);
        let messages: Vec<String> = news.iter().map(|finding| self.sentence(finding, memory)).collect();
        Some(Saying { state, message: messages.join("; ") })
    }

    /// The gateway was degraded at the end of the run, and is not any more.
    fn has_recovered(&self) -> bool {
        let is_served = self.proxy.is_none() && !self.is_more_missing;
        self.run_state == State::Degraded
            && is_served
            && matches!(self.health, Some(Health::Ready { suppressed: None, .. }))
    }

    /// What, since when, and what comes next.
    fn sentence(&self, finding: &Finding, memory: &Memory) -> String {
        let since = memory.seen.get(&finding.cause).map(|moment| moment.time);
        let by_hand = || format!("; `{RUN_AGAIN}` or a reboot starts it");
        let next = match finding.cure {
            _ if self.is_masked && finding.cure != Cure::Nobody => format!("; {BOOT_UNIT} is masked, so it stays so"),
            _ if finding.cause == Cause::Attributes => self.end_of_delay(memory),
            Cure::Operator => by_hand(),
            Cure::Run | Cure::RunLater if memory.is_stopped => by_hand(),
            Cure::Run if finding.cause == Cause::Room && memory.starts.contains_key(&Cause::Room) => String::new(),
            Cure::Run if finding.cause == Cause::Room => "; a run removes old images".to_owned(),
            Cure::Run if self.is_dpkg_busy => "; a run mends it when apt has ended".to_owned(),
            Cure::Run => "; a run mends it".to_owned(),
            Cure::RunLater if memory.is_upgrade => "; a run starts it when apt has ended".to_owned(),
            Cure::RunLater => match since.and_then(|since| since.checked_add(GRACE).ok()) {
                Some(at) => format!("; a run sees to it at {}, `{RUN_AGAIN}` does now", minutes(at)),
                None => format!("; `{RUN_AGAIN}` sees to it now"),
            },
            Cure::Nobody => String::new(),
        };
        let since = since.map(|since| format!(" (since {})", minutes(since))).unwrap_or_default();
        format!("{}{since}{next}", finding.what)
    }

    /// When a run applies the changed attributes. What one look alone sees may wait for a while already.
    fn end_of_delay(&self, memory: &Memory) -> String {
        let until = memory.delay.and_then(|(delay, since)| since.time.checked_add(delay).ok());
        let when = match (until, self.delay) {
            (Some(until), _) => format!("at {}", minutes(until)),
            (None, Some(delay)) => format!("within {} minutes", delay.as_secs().div_ceil(60)),
            (None, None) => return String::new(),
        };
        format!("; a run applies it {when}, `{RUN_AGAIN}` does now")
    }
}

impl Memory {
    /// Begins anew after a run that nobody has seen at work, too.
    fn begin_anew_after(&mut self, run: Option<SystemTime>, now: Moment) {
        if self.run != run {
            self.note_run(now);
            self.run = run;
            (self.is_upgrade, self.is_stopped) = (false, false);
        }
    }

    /// After a run everything is seen afresh, but for what no run may mend. The next one for its cause waits from its
    /// end on.
    fn note_run(&mut self, now: Moment) {
        self.seen.retain(|cause, _| matches!(cause, Cause::Room | Cause::Clock));
        (self.well, self.ended) = (now.elapsed, now.elapsed);
        if let Some((_, last)) = self.running.and_then(|cause| self.starts.get_mut(&cause)) {
            *last = now.elapsed;
        }
    }

    /// Notes since when each of them is there.
    fn note(&mut self, findings: &[Finding], sight: &Sight, now: Moment) {
        let is_down = sight.engine != EngineSight::Up || sight.containerd != ContainerdSight::Up;
        let was_down = self.seen.contains_key(&Cause::Engine) || self.seen.contains_key(&Cause::Containerd);
        self.is_upgrade = is_down && (self.is_upgrade || !was_down && sight.is_dpkg_busy);
        if let Some(container) = &sight.container {
            self.is_stopped = *container == Container::Stopped && !sight.is_stopped_by_shield;
        }
        if matches!(sight.health, Some(Health::Ready { suppressed: None, .. })) {
            self.well = now.elapsed;
        }
        self.seen.retain(|cause, _| findings.iter().any(|finding| finding.cause == *cause));
        for finding in findings {
            self.seen.entry(finding.cause).or_insert(now);
        }
        // Another delay is that of other attributes: what waits already does not wait for longer.
        let left = self.left_of_delay(now);
        let begun =
            |delay| self.delay.filter(|(known, _)| *known == delay || left < Some(delay)).unwrap_or((delay, now));
        self.delay = sight.delay().map(begun);
        self.starts.retain(|_, (_, last)| now.elapsed.saturating_sub(*last) < FORGET);
    }

    /// A run was started for it.
    pub(super) fn started(&mut self, cause: Cause, now: Moment) {
        let (count, last) = self.starts.entry(cause).or_default();
        (*count, *last) = (*count + 1, now.elapsed);
        self.running = Some(cause);
    }

    fn seen_for(&self, cause: Cause, now: Moment) -> Duration {
        self.seen.get(&cause).map_or(Duration::ZERO, |since| now.elapsed.saturating_sub(since.elapsed))
    }

    /// How long the run for changed attributes still waits; `None`: it does not.
    fn left_of_delay(&self, now: Moment) -> Option<Duration> {
        let (delay, since) = self.delay?;
        delay.checked_sub(now.elapsed.saturating_sub(since.elapsed)).filter(|left| !left.is_zero())
    }

    /// How long it must still last before it counts; `None` when it does.
    fn until_confirmed(&self, cause: Cause, now: Moment) -> Option<Duration> {
        let (needed, unwell) = match cause {
            Cause::Hung | Cause::Attributes | Cause::AttributesForBoot => return None,
            Cause::Silent | Cause::Unhealthy => (CONFIRM, WELL),
            Cause::Proxy | Cause::EngineOnItsWay => (CONFIRM_ANSWER, Duration::ZERO),
            Cause::Run => (FAILED_GRACE, Duration::ZERO),
            _ => (CONFIRM, Duration::ZERO),
        };
        let left = needed.saturating_sub(self.seen_for(cause, now));
        let left = left.max(unwell.saturating_sub(now.elapsed.saturating_sub(self.well)));
        (!left.is_zero()).then_some(left)
    }

    /// The run that is to be started now; the error is when to ask again.
    fn start(&self, sight: &Sight, findings: &[Finding], now: Moment) -> Result<Option<Start>, Duration> {
        let is_wanted_so = self.is_stopped || findings.iter().any(|finding| finding.cure == Cure::Operator);
        if is_wanted_so || sight.is_masked || !sight.for_boot.is_empty() {
            return Ok(None);
        }
        // A run for anything else would start it, too.
        let engines = sight.of_engine().into_iter().chain(sight.of_containerd());
        if let Some(left) = engines.filter_map(|later| self.left_of_grace(&later, now)).max() {
            return Err(left);
        }
        if sight.engine == EngineSight::OnItsWay {
            return Err(BUSY_INTERVAL);
        }
        let waits = self.left_of_delay(now);
        let may = |finding: &&Finding| match finding.cause {
            Cause::Attributes => waits.is_none(),
            // What it should have mended is mended by its repetition.
            cause if cause != Cause::Run && sight.of_run().is_some() && self.was_there_before(cause) => false,
            _ if self.left_of_grace(finding, now).is_some() => false,
            _ => sight.may_repair && matches!(finding.cure, Cure::Run | Cure::RunLater),
        };
        let curable: Vec<&Finding> = findings.iter().filter(may).collect();
        let Some(first) = curable.iter().min_by_key(|finding| self.backoff(finding.cause, now)) else {
            return waits.map_or(Ok(None), Err);
        };
        match self.backoff(first.cause, now) {
            // Nothing tells when it ends.
            _ if sight.is_dpkg_busy => Err(BUSY_INTERVAL),
            Duration::ZERO => {
                let reasons: Vec<&str> = curable.iter().map(|finding| finding.what.as_str()).collect();
                Ok(Some(Start { cause: first.cause, reason: reasons.join("; ") }))
            }
            left => Err(left),
        }
    }

    /// Whether it was so when the latest run ended.
    fn was_there_before(&self, cause: Cause) -> bool {
        self.seen.get(&cause).is_some_and(|since| since.elapsed <= self.ended + FAILED_GRACE)
    }

    /// How long it is left alone; `None`: it is not.
    fn left_of_grace(&self, finding: &Finding, now: Moment) -> Option<Duration> {
        if finding.cure != Cure::RunLater || self.is_upgrade {
            return None;
        }
        GRACE.checked_sub(self.seen_for(finding.cause, now)).filter(|left| !left.is_zero())
    }

    /// How long the next start for it must wait.
    fn backoff(&self, cause: Cause, now: Moment) -> Duration {
        let Some((count, last)) = self.starts.get(&cause) else { return Duration::ZERO };
        // A gateway that is restarted too often keeps its channels off.
        let index = if cause == Cause::Hung { BACKOFF_MINUTES.len() } else { *count };
        let minutes = BACKOFF_MINUTES[index.clamp(1, BACKOFF_MINUTES.len()) - 1];
        (*last + Duration::from_secs(60 * minutes)).saturating_sub(now.elapsed)
    }
}

fn finding(cause: Cause, what: &str, cure: Cure) -> Finding {
    Finding { cause, state: State::Degraded, what: what.to_owned(), cure }
}

fn severity(state: State) -> u8 {
    match state {
        State::Stopped => 4,
        State::Failed => 3,
        State::Starting => 2,
        State::Degraded => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment { elapsed: Duration::from_secs(seconds), time: Timestamp::UNIX_EPOCH + Duration::from_secs(seconds) }
    }

    /// A machine on which all is well.
    fn well() -> Sight {
        Sight {
            run_state: State::Ready,
            may_repair: true,
            container: Some(Container::Alive { up: None, work: None, at: None }),
            health: Some(Health::Ready { version: None, suppressed: None }),
            ..Sight::default()
        }
    }

    /// What is decided after the same thing was seen every ten seconds for so long.
    fn after(sight: &Sight, seconds: u64) -> Decision {
        let mut memory = Memory::default();
        for second in (0..seconds).step_by(10) {
            decide(sight, &mut memory, at(second));
        }
        decide(sight, &mut memory, at(seconds))
    }

    fn stopped() -> Sight {
        Sight { container: Some(Container::Stopped), health: None, ..well() }
    }

    fn gone() -> Sight {
        Sight { container: Some(Container::Missing), health: None, ..well() }
    }

    fn engine(engine: EngineSight) -> Sight {
        Sight { engine, container: None, health: None, ..well() }
    }

    fn failing() -> Health {
        Health::Unhealthy { failing: vec!["telegram".to_owned()], uptime: None, version: None }
    }

    #[test]
    fn one_look_alone_says_how_it_is_now() {
        let starting = || Sight { health: Some(Health::Starting("plugins".to_owned())), ..well() };
        // What is seen, the state that is told, a word of the message.
        let cases: Vec<(Sight, Option<State>, &str)> = vec![
            (well(), None, ""),
            (stopped(), Some(State::Stopped), "stopped by hand; `sudo openclaw-init boot`"),
            (gone(), Some(State::Failed), "container is gone; a run mends it"),
            (engine(EngineSight::Inactive), Some(State::Stopped), "docker.service was stopped; `sudo openclaw-init"),
            (engine(EngineSight::Silent), Some(State::Failed), "the engine gives no answer"),
            (Sight { health: Some(Health::Silent), ..well() }, Some(State::Failed), "the gateway gives no answer"),
            (starting(), Some(State::Starting), "the gateway is starting (plugins)"),
            (Sight { is_forwarding_off: true, ..starting() }, Some(State::Starting), "ip_forward"),
            (Sight { health: Some(failing()), ..well() }, Some(State::Degraded), "checks fail: telegram"),
            (Sight { run_state: State::Failed, ..stopped() }, None, ""),
            (Sight { run_state: State::Degraded, ..well() }, Some(State::Ready), "works again"),
            (Sight { for_boot: vec!["openclaw-swap".to_owned()], ..well() }, Some(State::Degraded), "reboot to apply"),
        ];
        for (sight, state, word) in cases {
            let said = now(&sight);
            assert_eq!(said.as_ref().map(|said| said.state), state, "{sight:?}");
            let message = said.map(|said| said.message).unwrap_or_default();
            assert!(message.contains(word) && !message.contains("since"), "{message}");
        }
    }

    fn holds((sight, seconds, state, starts, word): (Sight, u64, Option<State>, bool, &str)) {
        let decision = after(&sight, seconds);
        let said = decision.saying.as_ref();
        assert_eq!(said.map(|said| said.state), state, "{sight:?} after {seconds} s: {decision:?}");
        assert_eq!(decision.start.is_some(), starts, "{sight:?} after {seconds} s: {decision:?}");
        assert!(said.is_none_or(|said| said.message.contains(word)), "{word}: {decision:?}");
    }

    #[test]
    fn what_is_said_and_whether_a_run_is_started() {
        use EngineSight::{Failed, Inactive, Missing, OnItsWay, Silent};
        let hung = || Sight { health: Some(Health::Silent), is_hung: true, ..well() };
        let port = || vec!["openclaw-port".to_owned()];
        let swap = || vec!["openclaw-swap".to_owned()];
        // What is seen, for how long, the state that is told, whether a run is started, a word of the message.
        let cases: Vec<(Sight, u64, Option<State>, bool, &str)> = vec![
            (well(), 600, None, false, ""),
            (gone(), 9, None, false, ""),
            (gone(), 10, Some(State::Failed), true, "container is gone"),
            (Sight { is_dpkg_busy: true, ..gone() }, 600, Some(State::Failed), false, "when apt has ended"),
            (Sight { is_masked: true, ..gone() }, 600, Some(State::Failed), false, "masked"),
            (Sight { may_repair: false, ..gone() }, 600, Some(State::Failed), false, "gone"),
            (Sight { run_state: State::Failed, may_repair: false, ..gone() }, 600, None, false, ""),
            (Sight { for_boot: swap(), ..gone() }, 600, Some(State::Failed), false, "reboot to apply openclaw-swap"),
            (stopped(), 600, Some(State::Stopped), false, "stopped by hand"),
            (Sight { is_stopped_by_shield: true, ..stopped() }, 10, Some(State::Failed), true, "shield"),
            (
                Sight { container: Some(Container::Dropped), ..stopped() },
                10,
                Some(State::Failed),
                true,
                "after a crash",
            ),
            (Sight { changed: port(), ..stopped() }, 600, Some(State::Stopped), false, "by hand"),
            (Sight { container: Some(Container::CutOff), ..well() }, 10, Some(State::Failed), true, "reaches"),
            (
                Sight { container: Some(Container::Broken("port".into())), ..well() },
                10,
                Some(State::Failed),
                true,
                "(port)",
            ),
            (engine(Inactive), 590, Some(State::Stopped), false, "1970-01-01 00:10 UTC"),
            (engine(Inactive), 600, Some(State::Stopped), true, "docker.service was stopped"),
            (engine(Failed), 10, Some(State::Failed), true, "failed"),
            (engine(Silent), 600, Some(State::Failed), false, "no answer"),
            (Sight { containerd: ContainerdSight::Failed, ..well() }, 10, Some(State::Degraded), true, "containerd"),
            (Sight { containerd: ContainerdSight::Inactive, ..well() }, 590, Some(State::Degraded), false, "00:10 UTC"),
            (Sight { containerd: ContainerdSight::Inactive, ..well() }, 600, Some(State::Degraded), true, "stopped"),
            (engine(OnItsWay), 20, None, false, ""),
            (engine(OnItsWay), 600, Some(State::Failed), false, "starting or stopping"),
            (Sight { has_lost_rules: true, ..well() }, 10, Some(State::Degraded), true, "packet filter"),
            (engine(Missing), 590, Some(State::Failed), false, "not installed"),
            (
                Sight {
                    health: Some(Health::Ready { version: None, suppressed: Some("telegram is kept off".into()) }),
                    ..well()
                },
                60,
                Some(State::Degraded),
                false,
                "telegram is kept off",
            ),
            (Sight { health: Some(Health::Silent), ..well() }, 59, None, false, ""),
            (Sight { health: Some(Health::Silent), ..well() }, 60, Some(State::Failed), false, "no answer"),
            (Sight { health: Some(Health::Silent), ..well() }, 600, Some(State::Failed), true, "no answer"),
            (Sight { health: Some(Health::Starting("db".into())), ..well() }, 60, Some(State::Failed), false, "(db)"),
            (hung(), 0, Some(State::Failed), true, "hangs"),
            (Sight { health: Some(failing()), ..well() }, 60, Some(State::Degraded), false, "telegram"),
            (Sight { is_forwarding_off: true, ..well() }, 10, Some(State::Degraded), true, "ip_forward"),
            (Sight { clock: Some("2 hours behind".into()), ..well() }, 10, Some(State::Degraded), true, "hours behind"),
            (Sight { is_unshielded: true, ..well() }, 10, Some(State::Degraded), true, "shield"),
            (Sight { disk: Some(DiskTrouble::Gone), ..well() }, 10, Some(State::Failed), true, "not mounted"),
            (Sight { disk: Some(DiskTrouble::ReadOnly), ..well() }, 600, Some(State::Degraded), false, "reboot"),
            (Sight { low: vec!["/".into()], ..well() }, 600, Some(State::Degraded), true, "less than 5 %"),
            (Sight { low: vec!["/mnt/d".into()], ..well() }, 600, Some(State::Degraded), false, "less than 5 %"),
            (Sight { proxy: Some("no certificate".into()), ..well() }, 20, None, false, ""),
            (Sight { proxy: Some("no certificate".into()), ..well() }, 30, Some(State::Degraded), false, "certificate"),
            (
                Sight { proxy: Some("it".into()), is_proxy_named: true, run_state: State::Degraded, ..well() },
                600,
                None,
                false,
                "",
            ),
            (
                Sight { proxy: Some("it".into()), run_state: State::Degraded, health: Some(failing()), ..well() },
                60,
                Some(State::Degraded),
                false,
                "it",
            ),
            (Sight { changed: port(), ..well() }, 0, None, true, ""),
            (Sight { changed: port(), run_state: State::Failed, may_repair: false, ..well() }, 0, None, true, ""),
            (Sight { changed: port(), for_boot: swap(), ..well() }, 600, Some(State::Degraded), false, "openclaw-swap"),
        ];
        cases.into_iter().for_each(holds);
    }

    #[test]
    fn what_is_said_and_started_after_a_run_that_did_not_end_well() {
        use EngineSight::Missing;
        // What is seen, for how long, the state that is told, whether a run is started, a word of the message.
        let cases: Vec<(Sight, u64, Option<State>, bool, &str)> = vec![
            (
                Sight { run_state: State::Degraded, health: Some(failing()), is_health_named: true, ..well() },
                60,
                None,
                false,
                "",
            ),
            (
                Sight { run_state: State::Degraded, health: Some(failing()), ..well() },
                60,
                Some(State::Degraded),
                false,
                "telegram",
            ),
            (Sight { run_state: State::Degraded, ..well() }, 0, Some(State::Ready), false, "works again"),
            (Sight { run_state: State::Degraded, is_more_missing: true, ..well() }, 600, None, false, ""),
            (Sight { run_state: State::Degraded, ..gone() }, 10, Some(State::Failed), true, "gone"),
            (
                Sight { is_served_otherwise: true, run_state: State::Failed, ..stopped() },
                10,
                Some(State::Stopped),
                false,
                "by hand",
            ),
            (Sight { run_state: State::Failed, may_pass: true, ..well() }, 50, None, false, ""),
            (Sight { run_state: State::Failed, may_pass: true, ..gone() }, 50, None, false, ""),
            (Sight { run_state: State::Failed, may_pass: true, ..gone() }, 60, None, true, ""),
            (Sight { run_state: State::Failed, may_pass: true, ..engine(Missing) }, 60, None, true, ""),
            (
                Sight { is_served_otherwise: true, run_state: State::Failed, is_forwarding_off: true, ..well() },
                10,
                Some(State::Failed),
                true,
                "ip_forward",
            ),
            (Sight { run_state: State::Failed, may_pass: true, ..well() }, 60, None, true, ""),
        ];
        cases.into_iter().for_each(holds);
    }

    #[test]
    fn a_delayed_change_waits_once_and_is_told_with_its_time() {
        let delayed = |seconds| Sight {
            changed: vec!["openclaw-version".to_owned()],
            delay: Some(Duration::from_secs(seconds)),
            ..well()
        };
        let degraded = |seconds| Sight { run_state: State::Degraded, health: Some(failing()), ..delayed(seconds) };
        let failed = |seconds| Sight { run_state: State::Failed, may_repair: false, ..delayed(seconds) };
        // What is seen, for how long, the state that is told, whether a run is started.
        let cases: Vec<(Sight, u64, Option<State>, bool)> = vec![
            (delayed(420), 0, Some(State::Ready), false),
            (delayed(420), 410, Some(State::Ready), false),
            (delayed(420), 420, Some(State::Ready), true),
            (Sight { is_dpkg_busy: true, ..delayed(420) }, 600, Some(State::Ready), false),
            (degraded(420), 410, Some(State::Degraded), false),
            (failed(420), 410, None, false),
            (failed(420), 420, None, true),
            // Nothing is lost by a start, and a run for another cause reads the attributes, too.
            (Sight { container: Some(Container::Missing), health: None, ..delayed(420) }, 0, None, true),
            (Sight { is_forwarding_off: true, ..delayed(420) }, 10, Some(State::Degraded), true),
        ];
        for (sight, seconds, state, starts) in cases {
            let decision = after(&sight, seconds);
            let said = decision.saying.as_ref();
            assert_eq!(said.map(|said| said.state), state, "{sight:?} after {seconds} s: {decision:?}");
            assert_eq!(decision.start.is_some(), starts, "{sight:?} after {seconds} s: {decision:?}");
            let words = ["openclaw-version (since 1970-01-01 00:00 UTC)", "applies it at 1970-01-01 00:07 UTC"];
            let is_told = |word| said.is_none_or(|said| said.message.contains(word));
            assert!(words.into_iter().all(is_told), "{decision:?}");
        }
        let said = now(&delayed(421)).map(|said| said.message).unwrap_or_default();
        assert!(said.contains("within 8 minutes, `sudo openclaw-init boot` does now"), "{said}");
        let mut memory = Memory::default();
        assert_eq!(decide(&delayed(420), &mut memory, at(0)).next, LONGEST);
        assert_eq!(decide(&delayed(420), &mut memory, at(415)).next, Duration::from_secs(5));
        assert_eq!(decide(&delayed(60), &mut memory, at(416)).start, None, "another change");
        let silent = Sight { engine: EngineSight::Silent, container: None, health: None, ..delayed(60) };
        assert_eq!(decide(&silent, &mut memory, at(418)).start, None, "an engine that is busy");
        assert!(decide(&delayed(60), &mut memory, at(420)).start.is_some());
        let mut memory = Memory::default();
        assert_eq!(decide(&delayed(420), &mut memory, at(0)).start, None);
        assert_eq!(decide(&delayed(60), &mut memory, at(10)).start, None, "a shorter delay");
        assert!(decide(&delayed(60), &mut memory, at(70)).start.is_some());
    }

    #[test]
    fn while_a_run_is_at_work_nothing_is_said_and_after_it_all_is_seen_afresh() {
        let mut memory = Memory::default();
        decide(&gone(), &mut memory, at(0));
        let busy = Decision { saying: None, start: None, next: BUSY_INTERVAL };
        assert_eq!(decide(&Sight { is_busy: true, ..gone() }, &mut memory, at(9)), busy);
        assert_eq!(decide(&gone(), &mut memory, at(12)).start, None);
        assert!(decide(&gone(), &mut memory, at(22)).start.is_some());
    }

    #[test]
    fn only_its_own_run_moves_the_time_from_which_the_next_one_for_a_cause_waits() {
        let mut memory = Memory::default();
        let busy = Sight { is_busy: true, ..gone() };
        decide(&gone(), &mut memory, at(0));
        assert!(decide(&gone(), &mut memory, at(10)).start.is_some());
        memory.started(Cause::Container, at(10));
        decide(&busy, &mut memory, at(500));
        // The backoff of a minute counts from there; who else is at work does not move it.
        decide(&gone(), &mut memory, at(510));
        assert_eq!(decide(&gone(), &mut memory, at(550)).start, None);
        decide(&busy, &mut memory, at(555));
        decide(&gone(), &mut memory, at(560));
        assert!(decide(&gone(), &mut memory, at(570)).start.is_some());
    }

    #[test]
    fn what_happens_after_a_run_that_failed_does_not_wait_for_its_repetition() {
        let failed = |sight: Sight| Sight { run_state: State::Failed, may_pass: true, ..sight };
        let mut memory = Memory::default();
        for (second, starts) in [(0, false), (50, false), (60, true)] {
            assert_eq!(decide(&failed(well()), &mut memory, at(second)).start.is_some(), starts, "{second}");
        }
        memory.started(Cause::Run, at(60));
        decide(&Sight { is_busy: true, ..well() }, &mut memory, at(70));
        for (second, sight, starts) in [(80, well(), false), (1000, gone(), true), (1010, gone(), true)] {
            let start = decide(&failed(sight), &mut memory, at(second)).start;
            assert_eq!(start.is_some(), starts, "{second}: {start:?}");
        }
    }

    #[test]
    fn an_engine_that_an_upgrade_stopped_is_started_when_apt_has_ended() {
        let mut memory = Memory::default();
        let upgrading = Sight { is_dpkg_busy: true, ..engine(EngineSight::Inactive) };
        for second in [0, 60, 700] {
            assert_eq!(decide(&upgrading, &mut memory, at(second)).start, None, "{second}");
        }
        assert!(decide(&engine(EngineSight::Inactive), &mut memory, at(710)).start.is_some());
        // The run was over before the next look, and so was the engine, this time by hand.
        let again = Sight { run: Some(SystemTime::UNIX_EPOCH), ..engine(EngineSight::Inactive) };
        for second in [715, 740, 1300] {
            assert_eq!(decide(&again, &mut memory, at(second)).start, None, "{second}: by hand");
        }
    }

    #[test]
    fn a_gateway_that_somebody_stopped_stays_so_when_the_engine_goes_down() {
        let mut memory = Memory::default();
        decide(&stopped(), &mut memory, at(0));
        let failed = Sight { is_dpkg_busy: true, ..engine(EngineSight::Failed) };
        for (second, sight) in
            [(10, engine(EngineSight::Inactive)), (700, engine(EngineSight::Inactive)), (710, failed)]
        {
            let decision = decide(&sight, &mut memory, at(second));
            assert_eq!(decision.start, None, "{second}");
            assert!(decision.saying.is_none_or(|said| said.message.contains("reboot starts it")), "{second}");
        }
        decide(&well(), &mut memory, at(720));
        for second in [730, 740] {
            decide(&engine(EngineSight::Failed), &mut memory, at(second));
        }
        assert!(decide(&engine(EngineSight::Failed), &mut memory, at(750)).start.is_some(), "it ran again");
    }

    #[test]
    fn a_gateway_that_is_not_well_is_told_within_ninety_seconds_of_its_last_good_answer() {
        let silent = || Sight { health: Some(Health::Silent), ..well() };
        let suppressed = Some("telegram".to_owned());
        let kept_off = Sight { health: Some(Health::Ready { version: None, suppressed }), ..well() };
        let mut memory = Memory::default();
        // A look at a gateway that does not answer takes ten seconds.
        for (second, sight, is_told) in [
            (0, &well(), false),
            (60, &silent(), false),
            (80, &silent(), true),
            (90, &kept_off, false),
            (100, &kept_off, true),
        ] {
            let decision = decide(sight, &mut memory, at(second));
            assert_eq!(decision.saying.is_some(), is_told, "{second}: {decision:?}");
            assert!(is_told || second == 0 || decision.next == CONFIRM, "{second}: {decision:?}");
        }
    }

    /// When runs are started within four hours, looking as often as is asked for.
    fn starts(sight: &Sight) -> Vec<u64> {
        let (mut memory, mut second, mut starts) = (Memory::default(), 0, Vec::new());
        while second < 4 * 3600 {
            let decision = decide(sight, &mut memory, at(second));
            if let Some(start) = decision.start {
                memory.started(start.cause, at(second));
                starts.push(second / 60);
            }
            assert!(decision.next <= LONGEST);
            second += decision.next.as_secs().max(1);
        }
        starts
    }

    #[test]
    fn starts_for_one_cause_become_rare() {
        let hung = Sight { health: Some(Health::Silent), is_hung: true, ..well() };
        for (sight, minutes) in [(gone(), &[0, 1, 3, 8, 23, 83, 143, 203][..]), (hung, &[0, 60, 120, 180])] {
            assert_eq!(starts(&sight), minutes);
        }
    }

    #[test]
    fn the_next_look_is_when_it_matters() {
        let mut memory = Memory::default();
        assert_eq!(decide(&well(), &mut memory, at(0)).next, LONGEST);
        assert_eq!(decide(&gone(), &mut memory, at(60)).next, CONFIRM);
        assert_eq!(decide(&gone(), &mut memory, at(66)).next, Duration::from_secs(4));
    }
}
