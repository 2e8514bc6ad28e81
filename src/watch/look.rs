//! One look at the machine. It changes nothing and starts nothing, not even an engine that waits behind its socket.

use std::fs::File;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::attributes::Believed;
use super::decide::{ContainerdSight, DiskTrouble, EngineSight, Sight};
use super::orders::{Changes, Orders};
use crate::clock;
use crate::disk::mount;
use crate::docker::{self, Engine};
use crate::error::Code;
use crate::gateway::live::{self, Container};
use crate::gateway::silence::Silence;
use crate::gateway::{self, Health, NOT_LOADED, pairing};
use crate::host::Host;
use crate::lock::RunLock;
use crate::metadata::Client;
use crate::paths::{BOOT_UNIT, LOCK, SHIELD_IN_FORCE, STOPPED_BY_SHIELD};
use crate::proxy;
use crate::report::{RunResult, State, Status};
use crate::state::{DataDir, room};
use crate::systemd::{self, Unit};

/// The target of every way to end.
const SHUTDOWN: &str = "shutdown.target";

/// Held by whoever installs packages.
const DPKG_LOCKS: [&str; 2] = ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"];

/// How long the engine or a disk may take to answer: one that is slower is told as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The same while somebody waits for it.
const GLANCE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a look needs to remember.
pub(super) struct Eyes<'a> {
    host: &'a Host,
    metadata: Client,
    engine: Option<Engine>,
    silence: Silence,
    patience: Duration,
}

/// The units that say how far the machine is.
struct Units {
    boot: Unit,
    docker: Unit,
    containerd: Unit,
    shutdown: Unit,
}

impl Units {
    async fn show(host: &Host) -> Result<Self> {
        let names = [BOOT_UNIT, docker::UNIT, docker::CONTAINERD, SHUTDOWN];
        let [boot, docker, containerd, shutdown] = systemd::show(host, names).await?;
        Ok(Self { boot, docker, containerd, shutdown })
    }

    fn containerd(&self) -> ContainerdSight {
        match (self.containerd.load.as_str(), self.containerd.active.as_str()) {
            ("loaded", "inactive") => ContainerdSight::Inactive,
            ("loaded", "failed") => ContainerdSight::Failed,
            _ => ContainerdSight::Up,
        }
    }

    fn are_busy(&self) -> bool {
        self.boot.is_busy() || is_wanted(&self.shutdown)
    }
}

impl<'a> Eyes<'a> {
    pub(super) fn new(host: &'a Host, metadata: Client) -> Self {
        Self { host, metadata, engine: None, silence: Silence::default(), patience: ANSWER_TIMEOUT }
    }

    /// For one look, by somebody who waits for it.
    pub(super) fn in_a_hurry(host: &'a Host, metadata: Client) -> Self {
        Self { patience: GLANCE_TIMEOUT, ..Self::new(host, metadata) }
    }

    pub(super) fn host(&self) -> &'a Host {
        self.host
    }

    /// The engine, if it answered at the last look.
    pub(super) fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// How the machine is, `now` after the watcher began.
    pub(super) async fn look(&mut self, attributes: Option<&Believed>, now: Duration) -> Result<Sight> {
        let (host, units) = (self.host, Units::show(self.host).await?);
        let status = Status::read(host).await?;
        if units.docker.active != "active" {
            self.engine = None;
        }
        let is_at_work = units.are_busy() || is_locked(host)?;
        let Some(status) = status.filter(|_| !is_at_work) else {
            // What was silent before a run says nothing of what it leaves.
            self.silence = Silence::default();
            return Ok(Sight::busy());
        };
        self.see(&units, &status, attributes, now).await
    }

    /// How the machine is after the run that left `status`, even if another one is at work.
    pub(super) async fn glance(&mut self, status: &Status, attributes: Option<&Believed>) -> Result<Sight> {
        let units = Units::show(self.host).await?;
        let seen = self.see(&units, status, attributes, Duration::ZERO).await?;
        Ok(Sight { is_busy: units.are_busy(), ..seen })
    }

    async fn see(
        &mut self,
        units: &Units,
        status: &Status,
        attributes: Option<&Believed>,
        now: Duration,
    ) -> Result<Sight> {
        let (host, orders) = (self.host, Orders::read(self.host).await?.unwrap_or_default());
        let (engine, container) = self.ask_engine(&units.docker).await;
        let health = match &container {
            Some(Container::Alive { at, .. }) => self.health(&orders, *at).await?,
            _ => None,
        };
        // What was answered before the run read them is no news to it.
        let news = attributes.filter(|believed| orders.read_at.is_none() || believed.at > orders.read_at);
        let Changes { for_run: changed, for_boot, delay } =
            news.map(|news| orders.changes(&news.attributes, &status.boot_id)).unwrap_or_default();
        let result = status.result.as_ref().and_then(|result| result.known()).copied();
        let is_proxy_named = says(status, Code::ProxyFailed.name());
        Ok(Sight {
            run: Orders::left_at(host).await,
            // A run without a result was ended by somebody.
            run_state: if status.result.is_some() { status.words_of_the_run().state } else { State::Failed },
            may_pass: result.is_none_or(|result| matches!(result, RunResult::Failed(code) if !code.is_permanent())),
            is_served_otherwise: result == Some(RunResult::Failed(Code::ConfigRefused)),
            may_repair: may_repair(result),
            is_masked: units.boot.load == "masked",
            is_dpkg_busy: is_dpkg_busy(host),
            is_hung: self.is_hung(container.as_ref(), health.as_ref(), now, orders.ready_timeout),
            containerd: if engine == EngineSight::Up { units.containerd() } else { ContainerdSight::Up },
            is_stopped_by_shield: host.path(STOPPED_BY_SHIELD).exists(),
            is_forwarding_off: docker::is_forwarding_off(host).await?,
            has_lost_rules: engine == EngineSight::Up && docker::has_lost_rules(host),
            clock: clock::far_off(&self.metadata).map(clock::describe),
            is_unshielded: orders.is_shielded && !host.path(SHIELD_IN_FORCE).exists(),
            disk: disk(host, &orders).await?,
            low: low(host, &orders, self.patience).await,
            proxy: proxy(host, &orders).await,
            is_health_named: health.as_ref().is_some_and(|health| names_what_it_lacks(status, health)),
            is_proxy_named,
            is_more_missing: says(status, NOT_LOADED) || orders.domain.is_none() && is_proxy_named,
            asking: self.asking(health.as_ref()).await,
            engine,
            container,
            health,
            changed,
            for_boot,
            delay,
            is_busy: false,
        })
    }

    /// The engine, if systemd says that it runs, and its container.
    async fn ask_engine(&mut self, docker: &Unit) -> (EngineSight, Option<Container>) {
        match docker.active.as_str() {
            "active" => {}
            // It may be one that no unit of this name starts.
            "inactive" if docker.load == "not-found" => {}
            // A gateway that takes longer to end than systemd waits makes that of a stop by hand.
            "failed" if docker.result != "timeout" => return (EngineSight::Failed, None),
            "inactive" | "failed" if !docker.has_job => return (EngineSight::Inactive, None),
            _ => return (EngineSight::OnItsWay, None),
        }
        match tokio::time::timeout(self.patience, self.container(docker)).await {
            Ok(Ok(container)) => (EngineSight::Up, Some(container)),
            answer => {
                tracing::debug!("the engine gives no answer: {answer:?}");
                self.engine = None;
                (if docker.load == "not-found" { EngineSight::Missing } else { EngineSight::Silent }, None)
            }
        }
    }

    async fn container(&mut self, docker: &Unit) -> Result<Container> {
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => Engine::connect(&self.host.path(docker::SOCKET).to_string_lossy()).await?,
        };
        let container = live::container(self.host, &engine, docker).await?;
        self.engine = Some(engine);
        Ok(container)
    }

    /// What the gateway answers that is published there; one that says nothing in time is silent.
    async fn health(&self, orders: &Orders, at: Option<SocketAddr>) -> Result<Option<Health>> {
        match tokio::time::timeout(self.patience, gateway_health(self.host, orders, at)).await {
            Ok(health) => health,
            Err(_) => Ok(Some(Health::Silent)),
        }
    }

    /// Who has asked a gateway that answers to be paired.
    async fn asking(&self, health: Option<&Health>) -> Vec<String> {
        match (&self.engine, health) {
            (Some(engine), Some(Health::Ready { .. } | Health::Unhealthy { .. })) => {
                tokio::time::timeout(self.patience, pairing::hints(engine)).await.unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a gateway hangs whose start may take so long.
    fn is_hung(
        &mut self,
        container: Option<&Container>,
        health: Option<&Health>,
        now: Duration,
        start: Duration,
    ) -> bool {
        let (up, work) = match container {
            Some(Container::Alive { up, work, .. }) => (*up, *work),
            _ => (None, None),
        };
        self.silence.note(now, health == Some(&Health::Silent), work);
        self.silence.is_hung(now, up, start)
    }
}

/// Whether the system is on its way to the target, or there.
fn is_wanted(target: &Unit) -> bool {
    target.has_job || target.active == "active"
}

fn is_locked(host: &Host) -> Result<bool> {
    Ok(RunLock::try_acquire(&host.path(LOCK))?.is_none())
}

/// What may pass is tried again; what will not is left to the operator.
fn may_repair(result: Option<RunResult>) -> bool {
    match result {
        // With this one the gateway runs, with other settings than the operator's.
        Some(RunResult::Failed(code)) => code == Code::ConfigRefused || !code.is_permanent(),
        Some(RunResult::Ready) | None => true,
    }
}

async fn gateway_health(host: &Host, orders: &Orders, at: Option<SocketAddr>) -> Result<Option<Health>> {
    let address = at.or_else(|| orders.published.map(SocketAddr::from));
    let (Some(address), Some((root, on_boot_disk))) = (address, &orders.data) else { return Ok(None) };
    gateway::live::health(host, &DataDir::at(root, *on_boot_disk), address).await.map(Some)
}

/// Whether a program holds a lock of dpkg's: it is asked about, not taken.
fn is_dpkg_busy(host: &Host) -> bool {
    DPKG_LOCKS.iter().any(|path| match is_held(&host.path(path)) {
        Ok(is_held) => is_held,
        Err(error) => {
            tracing::debug!("{error:#}");
            false
        }
    })
}

fn is_held(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => file.with_context(|| format!("opening {}", path.display()))?,
    };
    let kind = |kind: libc::c_int| libc::c_short::try_from(kind).context("a kind of lock is a short");
    let mut lock =
        libc::flock { l_type: kind(libc::F_WRLCK)?, l_whence: kind(libc::SEEK_SET)?, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).with_context(|| format!("asking who locks {}", path.display()))?;
    Ok(lock.l_type != kind(libc::F_UNLCK)?)
}

async fn disk(host: &Host, orders: &Orders) -> Result<Option<DiskTrouble>> {
    let Some((root, false)) = &orders.data else { return Ok(None) };
    Ok(match mount::find(host, root).await? {
        None => Some(DiskTrouble::Gone),
        Some(mount) if mount.read_only => Some(DiskTrouble::ReadOnly),
        Some(_) => None,
    })
}

/// What the gateway lacks at its domain.
async fn proxy(host: &Host, orders: &Orders) -> Option<String> {
    proxy::lack(host, orders.domain.as_deref()?).await
}

/// Whether the run said this.
fn says(status: &Status, words: &str) -> bool {
    status.words_of_the_run().detail.message.is_some_and(|message| message.contains(words))
}

/// Whether the run named all that the gateway lacks.
fn names_what_it_lacks(status: &Status, health: &Health) -> bool {
    match health {
        Health::Unhealthy { failing, .. } => failing.iter().all(|check| says(status, check)),
        Health::Ready { suppressed, .. } => suppressed.as_ref().is_some_and(|what| says(status, what)),
        Health::Silent | Health::Starting(_) => false,
    }
}

/// The disks that are nearly full.
async fn low(host: &Host, orders: &Orders, patience: Duration) -> Vec<PathBuf> {
    let data = orders.data.iter().filter(|(_, on_boot_disk)| !on_boot_disk).map(|(root, _)| root.clone());
    let places: Vec<PathBuf> = [PathBuf::from("/")].into_iter().chain(data).collect();
    let mut low = Vec::new();
    for place in places {
        // A disk that does not answer keeps its thread, not the watcher.
        let asked = tokio::time::timeout(patience, room::is_below(host, &place, room::LOW_PERCENT)).await;
        // What cannot be asked is not low.
        if matches!(asked, Ok(Ok(true))) {
            low.push(place);
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::report::RunResult;

    #[test]
    fn a_run_that_failed_is_repeated_unless_it_is_left_to_its_operator() {
        for (result, expected) in [
            (Some(RunResult::Ready), true),
            (Some(RunResult::Failed(Code::ImagePullFailed)), true),
            (Some(RunResult::Failed(Code::ConfigInvalid)), false),
            (Some(RunResult::Failed(Code::ConfigRefused)), true),
            (None, true),
        ] {
            assert_eq!(may_repair(result), expected, "{result:?}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "another process must hold the lock")]
    fn a_lock_that_another_program_holds_is_seen_and_not_taken() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        assert!(!is_dpkg_busy(&host), "no dpkg");
        let lock = host.path(DPKG_LOCKS[0]);
        std::fs::create_dir_all(lock.parent().context("it has a directory")?)?;
        std::fs::write(&lock, "")?;
        assert!(!is_dpkg_busy(&host), "nobody holds it");
        let script = "use Fcntl; open my $f, '+<', $ARGV[0] or die; \
                      my $l = pack 's s x4 q q i x4', F_WRLCK, 0, 0, 0, 0; fcntl $f, F_SETLK, $l or die; print qq(held\\n); <STDIN>";
        let mut holder = Command::new("perl");
        holder.args(["-e", &format!("$|=1; {script}")]).arg(&lock).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn()?;
        let mut said = String::new();
        let stdout = holder.stdout.take().context("it has an output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said)?;
        assert_eq!(said, "held\n");
        assert!(is_dpkg_busy(&host));
        holder.stdin.take().context("it has an input")?.write_all(b"\n")?;
        holder.wait()?;
        assert!(!is_dpkg_busy(&host));
        Ok(())
    }
}
