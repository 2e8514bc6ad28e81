//! What a run writes, seen from the metadata server and in the status file.

use std::time::{Duration, Instant, SystemTime};

use anyhow::anyhow;
use openclaw_init::error::{Classify as _, Code, StageError};
use openclaw_init::host::Host;
use openclaw_init::metadata::Client;
use openclaw_init::report::{LiveReport, Ready, Report, Saying, State, Status, stopping};
use openclaw_init::stage::Stage;
use openclaw_lab::metadata_server::{Instance, Level, Server};

const BEFORE_THE_ENGINE: [Stage; 2] = [Stage::Metadata, Stage::Config];
const THE_REST: [Stage; 8] = [
    Stage::Docker,
    Stage::Disk,
    Stage::State,
    Stage::Shield,
    Stage::Image,
    Stage::Secrets,
    Stage::Gateway,
    Stage::Ready,
];

/// A machine with a root of its own, in the middle of a boot.
struct BootFixture {
    root: tempfile::TempDir,
    server: Server,
    client: Client,
}

impl BootFixture {
    async fn new() -> Self {
        let (server, address) = Server::spawn(Instance::default()).await.unwrap();
        server.set_attribute(Level::Instance, "enable-guest-attributes", "TRUE").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/sys/kernel/random")).unwrap();
        std::os::unix::fs::symlink("/proc/uptime", root.path().join("proc/uptime")).unwrap();
        let machine = Self { root, server, client: Client::new(Some(&address.to_string())).unwrap() };
        machine.boot("boot-1");
        machine
    }

    /// A new boot: a new id, and nothing in `/run`.
    fn boot(&self, id: &str) {
        std::fs::write(self.root.path().join("proc/sys/kernel/random/boot_id"), format!("{id}\n")).unwrap();
        drop(std::fs::remove_dir_all(self.root.path().join("run")));
    }

    /// Lets a minute go by, as the budget of requests sees it.
    fn a_minute_later(&self) {
        std::fs::write(self.root.path().join("run/openclaw-init/private/requests"), "").unwrap();
    }

    fn host(&self) -> Host {
        Host::new(self.root.path())
    }

    fn fault(&self, spec: &str) {
        self.server.fault(spec.parse().unwrap());
    }

    /// What was asked for, as `PUT state=ready`; the detail without its value.
    fn writes(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        let shown = requests.map(|request| {
            let key = request.path.rsplit('/').next().unwrap().to_owned();
            match request.body {
                Some(body) if key != "detail" => format!("{} {key}={body}", request.method),
                _ => format!("{} {key}", request.method),
            }
        });
        shown.collect()
    }

    async fn status(&self) -> Status {
        Status::read(&self.host()).await.unwrap().unwrap()
    }

    /// Waits until so many requests have been made.
    async fn wait_for(&self, requests: usize) {
        let wait = async {
            while self.server.requests().len() < requests {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    }

    /// A run that changes so many things.
    async fn run(&self, changes: usize, outcome: &Result<Ready, StageError>) -> Host {
        let host = self.host();
        let report = Report::start(&host, self.client.clone()).await.unwrap();
        pass(&report, &BEFORE_THE_ENGINE, &host, 0).await;
        report.run_id(Some("run-7".into()));
        pass(&report, &THE_REST, &host, changes).await;
        report.finish(outcome, false).await;
        host
    }
}

/// Lets the stages end well; the first of them changes something.
async fn pass(report: &Report, stages: &[Stage], host: &Host, changes: usize) {
    for (index, name) in stages.iter().enumerate() {
        let work = async {
            for change in 0..if index == 0 { changes } else { 0 } {
                host.changed(format!("changed {change}"));
            }
            Ok(())
        };
        report.stage(*name, work).await.unwrap();
    }
}

/// A run that ended well, or with this code.
fn outcome(code: Option<Code>) -> Result<Ready, StageError> {
    match code {
        None => Ok(Ready { version: "2026.9.6".into(), degraded: Vec::new() }),
        Some(code) => {
            let error = Err::<(), _>(anyhow!("it broke")).classify(code, "Mend it.").unwrap_err();
            Err(StageError { stage: Stage::Docker, error })
        }
    }
}

fn result_of(status: &Status) -> Option<String> {
    status.result.as_ref().map(ToString::to_string)
}

const FIRST_WORDS: [&str; 3] = ["DELETE result", "PUT boot-id=boot-1", "PUT state=installing"];
const VERSION: &str = "PUT version=2026.9.6";
const LAST_WORDS: [&str; 4] = ["PUT run-id=run-7", "PUT detail", "PUT state=ready", "PUT result=ready"];

#[tokio::test]
async fn deletion_first_result_last_and_never_too_many() {
    let machine = BootFixture::new().await;
    let host = machine.host();
    let report = Report::start(&host, machine.client.clone()).await.unwrap();
    assert_eq!(machine.status().await.state, State::Starting);
    pass(&report, &BEFORE_THE_ENGINE, &host, 0).await;
    report.run_id(Some("run-7".into()));
    machine.wait_for(3).await;
    pass(&report, &THE_REST, &host, 2).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(machine.writes(), FIRST_WORDS, "progress must leave room for the end");
    report.version("2026.9.6");
    machine.wait_for(4).await;
    assert_eq!(report.changes_of(Stage::Docker), 2);

    report.finish(&outcome(None), false).await;
    assert_eq!(machine.writes(), [&FIRST_WORDS[..], &[VERSION], &LAST_WORDS].concat());
    let times: Vec<_> = machine.server.requests().iter().map(|request| request.time).collect();
    for four in times.windows(4) {
        assert!(four[3].duration_since(four[0]).as_millis() >= 1000, "four requests within a second");
    }
    let status = machine.status().await;
    assert_eq!((result_of(&status).as_deref(), status.changes.count, status.reported), (Some("ready"), 2, true));
    assert_eq!(status.changes.list[0], "docker: changed 0");
    assert_eq!(status.detail.elapsed.len(), 10);
    let attributes = machine.server.guest_attributes("openclaw");
    assert_eq!((attributes["state"].as_str(), attributes["result"].as_str()), ("ready", "ready"));
    assert!(attributes["detail"].contains("\"updated\":\"20"), "{}", attributes["detail"]);
}

/// Three requests a second are allowed: who waits for the result waits for no second.
#[tokio::test]
async fn the_result_follows_the_end_at_once() {
    let machine = BootFixture::new().await;
    let host = machine.host();
    let report = Report::start(&host, machine.client.clone()).await.unwrap();
    pass(&report, &BEFORE_THE_ENGINE, &host, 0).await;
    machine.wait_for(3).await;
    pass(&report, &THE_REST, &host, 1).await;
    report.version("2026.9.6");
    machine.wait_for(4).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(machine.status().await.version.as_deref(), Some("2026.9.6"));
    let ended = Instant::now();
    report.finish(&outcome(None), false).await;
    assert_eq!(machine.writes()[4..], LAST_WORDS[1..]);
    assert!(ended.elapsed() < Duration::from_millis(900), "{:?}", ended.elapsed());
}

/// What was brought up is not what runs: the attribute is corrected, and a failure has no version in the status.
#[tokio::test]
async fn another_version_at_the_end_is_the_one_that_stays() {
    for (code, expected) in [(None, Some("2026.9.6")), (Some(Code::PortTaken), None)] {
        let machine = BootFixture::new().await;
        let host = machine.host();
        let report = Report::start(&host, machine.client.clone()).await.unwrap();
        pass(&report, &BEFORE_THE_ENGINE, &host, 0).await;
        machine.wait_for(3).await;
        report.version("2026.9.5");
        pass(&report, &THE_REST, &host, 1).await;
        machine.wait_for(4).await;
        report.finish(&outcome(code), true).await;
        assert_eq!(machine.server.guest_attributes("openclaw")["version"], expected.unwrap_or("2026.9.5"));
        assert_eq!(machine.status().await.version.as_deref(), expected);
    }
}

#[tokio::test]
async fn a_second_run_that_changes_nothing_is_silent() {
    let machine = BootFixture::new().await;
    machine.run(1, &outcome(None)).await;
    let (requests, status) = (machine.server.requests().len(), machine.status().await);
    machine.run(0, &outcome(None)).await;
    assert_eq!(machine.server.requests().len(), requests);
    assert_eq!(machine.status().await, status, "the status file is untouched as well");

    // A new boot speaks again although it changes nothing.
    machine.boot("boot-2");
    machine.run(0, &outcome(None)).await;
    assert_eq!(machine.writes()[requests], "DELETE result");
    assert_eq!(machine.writes().last().unwrap(), "PUT result=ready");
    assert_eq!(machine.server.guest_attributes("openclaw")["boot-id"], "boot-2");
}

#[tokio::test]
async fn a_second_run_speaks_when_it_changes_something_or_fails() {
    for (changes, code, result) in [
        (1, None, Some("ready")),
        (0, Some(Code::PortTaken), Some("failed:port-taken")),
        // The next try may end otherwise: until then the boot has the result that it had.
        (0, Some(Code::AptFailed), Some("ready")),
    ] {
        let machine = BootFixture::new().await;
        machine.run(1, &outcome(None)).await;
        let before = machine.writes().len();
        machine.run(changes, &outcome(code)).await;
        let after = machine.writes().split_off(before);
        let attributes = machine.server.guest_attributes("openclaw");
        assert_eq!(attributes.get("result").map(String::as_str), result, "{after:?}");
        let settled = result.filter(|_| code != Some(Code::AptFailed));
        assert_eq!(result_of(&machine.status().await).as_deref(), settled);
        assert!(!after.contains(&"DELETE result".to_owned()), "only a boot's first run takes a result back: {after:?}");
        assert!(after.len() <= 3, "the budget counts the earlier run's requests: {after:?}");
    }
}

#[tokio::test]
async fn a_new_warning_is_told_although_nothing_changed() {
    let machine = BootFixture::new().await;
    machine.run(1, &outcome(None)).await;
    let host = machine.host();
    host.warn("the next start would fail");
    let report = Report::start(&host, machine.client.clone()).await.unwrap();
    pass(&report, &BEFORE_THE_ENGINE, &host, 0).await;
    report.run_id(Some("run-7".into()));
    pass(&report, &THE_REST, &host, 0).await;
    report.finish(&outcome(None), false).await;
    assert_eq!(machine.status().await.detail.warnings, ["the next start would fail"]);
}

#[tokio::test]
async fn what_a_run_could_not_say_in_its_minute_the_next_one_says() {
    let machine = BootFixture::new().await;
    machine.run(1, &outcome(Some(Code::PortTaken))).await;
    machine.run(1, &outcome(None)).await;
    let attributes = machine.server.guest_attributes("openclaw");
    assert_eq!(attributes["result"], "ready");
    assert!(attributes["detail"].contains("port-taken"), "the minute had room for it: {:?}", machine.writes());
    assert!(!machine.status().await.reported);

    machine.a_minute_later();
    machine.run(0, &outcome(None)).await;
    let attributes = machine.server.guest_attributes("openclaw");
    assert_eq!((attributes["version"].as_str(), attributes["result"].as_str()), ("2026.9.6", "ready"));
    assert!(!attributes["detail"].contains("port-taken"), "{}", attributes["detail"]);
    assert!(machine.status().await.reported);
    let requests = machine.writes().len();
    machine.run(0, &outcome(None)).await;
    assert_eq!(machine.writes().len(), requests, "nothing is owed any more");
}

#[tokio::test]
async fn a_failure_has_a_result_only_when_it_is_settled() {
    for (code, last_try, result) in [
        (Code::DiskForeign, false, Some("failed:disk-foreign")),
        (Code::AptFailed, false, None),
        (Code::AptFailed, true, Some("failed:apt-failed")),
    ] {
        let machine = BootFixture::new().await;
        let host = machine.host();
        let report = Report::start(&host, machine.client.clone()).await.unwrap();
        pass(&report, &BEFORE_THE_ENGINE, &host, 0).await;
        report.finish(&outcome(Some(code)), last_try).await;
        let attributes = machine.server.guest_attributes("openclaw");
        assert_eq!(attributes.get("result").map(String::as_str), result);
        assert_eq!(attributes["state"], "failed");
        assert!(attributes["detail"].contains(r#""message":"it broke. Mend it.""#), "{}", attributes["detail"]);
        assert!(attributes["detail"].contains(&format!(r#""code":"{code}""#)), "{}", attributes["detail"]);
    }
}

#[tokio::test]
async fn a_refused_deletion_becomes_pending() {
    let machine = BootFixture::new().await;
    machine.fault("method=DELETE,status=405");
    let host = machine.host();
    let report = Report::start(&host, machine.client.clone()).await.unwrap();
    pass(&report, &BEFORE_THE_ENGINE, &host, 0).await;
    machine.wait_for(3).await;
    assert_eq!(machine.writes(), ["DELETE result", "PUT result=pending", "PUT boot-id=boot-1"]);
    report.finish(&outcome(None), false).await;
    assert_eq!(machine.writes().last().unwrap(), "PUT result=ready");
}

#[tokio::test]
async fn disabled_guest_attributes_are_one_warning() {
    let machine = BootFixture::new().await;
    machine.server.unset_attribute(Level::Instance, "enable-guest-attributes");
    let host = machine.run(1, &outcome(None)).await;
    assert_eq!(machine.writes(), ["DELETE result", "PUT result=pending"]);
    let warnings = host.ledger().borrow().warnings.clone();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("enable-guest-attributes=TRUE"), "{warnings:?}");
    let status = machine.status().await;
    // The watcher goes on to try: somebody may enable them.
    assert_eq!((result_of(&status).as_deref(), status.reported), (Some("ready"), false));
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again_in_order() {
    let machine = BootFixture::new().await;
    machine.fault("status=503,times=2");
    let host = machine.host();
    let report = Report::start(&host, machine.client.clone()).await.unwrap();
    assert!(machine.writes().is_empty(), "nothing is sent before the metadata could be read");
    pass(&report, &BEFORE_THE_ENGINE, &host, 0).await;
    machine.wait_for(3).await;
    assert_eq!(machine.writes(), ["DELETE result"; 3]);
    report.finish(&outcome(None), false).await;
    assert_eq!(machine.writes().last().unwrap(), "PUT result=ready");
    assert!(host.ledger().borrow().warnings.is_empty(), "trouble that healed is no warning");
}

#[tokio::test]
async fn a_server_that_stays_silent_costs_one_warning_and_little_time() {
    let machine = BootFixture::new().await;
    machine.fault("status=503");
    let started = Instant::now();
    let host = machine.run(1, &outcome(None)).await;
    assert!(started.elapsed() < Duration::from_secs(26), "{:?}", started.elapsed());
    let warnings = host.ledger().borrow().warnings.clone();
    assert!(warnings.len() == 1 && warnings[0].contains("could not be written"), "{warnings:?}");
    let status = machine.status().await;
    assert_eq!((result_of(&status).as_deref(), status.reported), (Some("ready"), false));
}

/// Everything that the watcher says after one run.
#[tokio::test]
async fn state_and_detail_follow_the_gateway_and_the_result_stays() {
    let machine = BootFixture::new().await;
    machine.run(1, &outcome(None)).await;
    machine.a_minute_later();
    let mut live = LiveReport::new(&machine.host(), machine.client.clone());
    let (before, status, run) = (machine.writes().len(), machine.status().await, Some(SystemTime::UNIX_EPOCH));
    let news = || machine.writes().split_off(before);
    live.tell(None, &[], run).await.unwrap();
    assert!(news().len() == 1 && news()[0].starts_with("PUT heartbeat=20"), "{:?}", news());
    assert_eq!(machine.status().await, status, "the status file is untouched");

    let saying = Saying { state: State::Stopped, message: "somebody stopped it".into() };
    while live.tell(Some(&saying), &[], run).await.unwrap().is_some() {
        machine.a_minute_later();
    }
    let attributes = machine.server.guest_attributes("openclaw");
    assert_eq!((attributes["state"].as_str(), attributes["result"].as_str()), ("stopped", "ready"));
    assert!(attributes["detail"].contains("somebody stopped it"), "{}", attributes["detail"]);
    let status = machine.status().await;
    assert_eq!((status.state, result_of(&status).as_deref()), (State::Stopped, Some("ready")));
    let told = machine.writes().len();
    live.tell(Some(&saying), &[], run).await.unwrap();
    assert_eq!(machine.writes().len(), told, "it is said once");

    // A run between two looks has written, too.
    machine.a_minute_later();
    machine.run(1, &outcome(None)).await;
    assert_eq!(machine.server.guest_attributes("openclaw")["state"], "ready");
    let run = Some(SystemTime::now());
    machine.a_minute_later();
    while live.tell(Some(&saying), &[], run).await.unwrap().is_some() {
        machine.a_minute_later();
    }
    assert_eq!(machine.server.guest_attributes("openclaw")["state"], "stopped");

    machine.a_minute_later();
    while live.tell(None, &[], run).await.unwrap().is_some() {
        machine.a_minute_later();
    }
    let attributes = machine.server.guest_attributes("openclaw");
    assert_eq!(attributes["state"], "ready");
    assert!(!attributes["detail"].contains("somebody"), "{}", attributes["detail"]);
    let status = machine.status().await;
    assert_eq!((status.state, status.at_end, status.detail.message), (State::Ready, None, None));

    // Who asks to be paired stands in the detail for as long as it may be approved.
    let asking = ["a from ::1".to_owned()];
    for asking in [&asking[..], &asking, &[]] {
        machine.a_minute_later();
        while live.tell(None, asking, run).await.unwrap().is_some() {
            machine.a_minute_later();
        }
        let detail = machine.server.guest_attributes("openclaw")["detail"].clone();
        assert_eq!(detail.contains(r#""pairing":["a from ::1"]"#), !asking.is_empty(), "{detail}");
        assert_eq!(machine.status().await.at_end.is_some(), !asking.is_empty());
    }
    assert_eq!(machine.writes().iter().filter(|write| write.contains("result")).count(), 3, "{:?}", machine.writes());
}

/// However often the state changes: few requests, and the last state arrives.
#[tokio::test]
async fn a_storm_of_changes_costs_a_minutes_budget_and_the_last_one_arrives() {
    let machine = BootFixture::new().await;
    machine.run(1, &outcome(None)).await;
    machine.a_minute_later();
    let mut live = LiveReport::new(&machine.host(), machine.client.clone());
    let (before, run) = (machine.writes().len(), None);
    for number in 0..200 {
        let saying = Saying { state: State::Degraded, message: format!("change {number}") };
        live.tell(Some(&saying).filter(|_| number % 2 == 1), &[], run).await.unwrap();
    }
    assert!(machine.writes().len() - before <= 8, "{:?}", machine.writes());
    assert!(machine.status().await.detail.message.unwrap().contains("change 199"));
    let saying = Saying { state: State::Degraded, message: "change 199".into() };
    while live.tell(Some(&saying), &[], run).await.unwrap().is_some() {
        machine.a_minute_later();
    }
    let attributes = machine.server.guest_attributes("openclaw");
    assert!(attributes["detail"].contains("change 199") && attributes["state"] == "degraded", "{attributes:?}");
}

#[tokio::test]
async fn stopping_is_one_word() {
    let machine = BootFixture::new().await;
    stopping(&machine.host(), &machine.client).await.unwrap();
    assert!(machine.writes().is_empty(), "before the first run there is nothing to stop");
    let host = machine.host();
    drop(Report::start(&host, machine.client.clone()).await.unwrap());
    stopping(&host, &machine.client).await.unwrap();
    assert_eq!(machine.writes(), ["PUT state=stopping"]);
    assert_eq!(machine.status().await.state, State::Stopping);
}
