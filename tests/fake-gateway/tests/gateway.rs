//! The fake gateway as the outside sees it, against what was measured of gateway 2026.9.6.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const TOKEN: &str = "5eed5eed0123456789abcdef01234567";
const MODE: &str = r#"[{"path":"gateway.mode","value":"local"},{"path":"gateway.bind","value":"lan"}]"#;

fn command(version: &str, state: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fake-gateway"));
    command.env_clear().env("FAKE_GATEWAY_VERSION", version).env("OPENCLAW_STATE_DIR", state);
    command.args(["-s", "--", "node", "openclaw.mjs"]).args(words);
    command
}

fn run(version: &str, state: &Path, words: &[&str]) -> Output {
    command(version, state, words).output().unwrap()
}

fn start(version: &str, state: &Path, port: u16) -> Child {
    let child = command(version, state, &["gateway", "--bind", "lan", "--port", &port.to_string()]).spawn().unwrap();
    let listens = (0..200).any(|_| {
        sleep(Duration::from_millis(20));
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    });
    assert!(listens, "it does not listen");
    child
}

fn stop(mut child: Child) -> Option<i32> {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    child.wait().unwrap().code()
}

fn get(port: u16, path: &str) -> String {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    write!(connection, "GET {path} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn it_refuses_what_the_gateway_refuses_and_no_older_version_touches_newer_state() {
    let state = tempfile::tempdir().unwrap();
    let gateway =
        |version| run(version, state.path(), &["gateway", "--bind", "lan", "--port", &free_port().to_string()]);
    let refuses = |version, words: &str| {
        let output = gateway(version);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(words), "{said}");
    };
    refuses("0.1.1", "Missing config");
    assert!(run("0.1.1", state.path(), &["config", "set", "--batch-json", MODE]).status.success());
    assert!(run("0.1.1", state.path(), &["config", "validate", "--json"]).status.success());
    refuses("0.1.1", "without auth");
    fs::write(state.path().join(".env"), format!("OPENCLAW_GATEWAY_TOKEN={TOKEN}\n")).unwrap();

    for (version, kept) in [("0.1.1", r#"{"schema":1,"starts":1}"#), ("0.1.66", r#"{"schema":2,"starts":2}"#)] {
        assert_eq!(stop(start(version, state.path(), free_port())), Some(0));
        assert_eq!(fs::read_to_string(state.path().join("state/fake-gateway.json")).unwrap(), kept);
    }
    refuses("0.1.1", "newer schema version 2; this build supports 1");
}

#[test]
fn its_probes_speak_like_the_gateways_and_a_backup_holds_the_state() {
    let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(state.path().join(".env"), format!("OPENCLAW_GATEWAY_TOKEN={TOKEN}\n")).unwrap();
    assert!(run("0.1.2", state.path(), &["config", "set", "--batch-json", MODE]).status.success());
    for (version, line, ready) in [("0.1.2", "200 OK", true), ("0.1.66", "503 Service", false)] {
        let port = free_port();
        let child = start(version, state.path(), port);
        assert!(get(port, "/healthz").contains(r#"{"ok":true,"status":"live"}"#));
        let (startup, readiness) = (get(port, "/startupz"), get(port, "/readyz"));
        assert!(startup.contains(line) && startup.contains(&format!(r#""version":"{version}""#)), "{startup}");
        assert!(readiness.contains(line) && readiness.contains(&format!(r#""ready":{ready}"#)), "{readiness}");
        assert!(get(port, "/nope").contains("<title>"));
        fs::write(state.path().join("readyz.json"), r#"{"ready":false,"failing":["database"]}"#).unwrap();
        let chosen = get(port, "/readyz");
        assert!(chosen.contains("503 Service") && chosen.contains("database"), "{chosen}");
        fs::remove_file(state.path().join("readyz.json")).unwrap();
        assert_eq!(stop(child), Some(0));
    }
    let archive = other.path().join("a.tar.gz");
    let create = ["backup", "create", "--output", archive.to_str().unwrap(), "--verify", "--json"];
    assert!(run("0.1.2", state.path(), &create).status.success());
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&archive).unwrap()));
    let names: Vec<_> = archive.entries().unwrap().map(|it| it.unwrap().path().unwrap().into_owned()).collect();
    assert!(names[0].ends_with("manifest.json") && names.iter().any(|it| it.ends_with("openclaw.json")), "{names:?}");
    assert!(!run("0.1.2", state.path(), &create).status.success(), "it must not replace an archive");
}

#[test]
fn a_version_that_finds_its_databases_cold_ends_twice_and_then_starts() {
    for (version, code) in [("0.1.4", 1), ("0.1.5", 78)] {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join(".env"), format!("OPENCLAW_GATEWAY_TOKEN={TOKEN}\n")).unwrap();
        assert!(run(version, state.path(), &["config", "set", "--batch-json", MODE]).status.success());
        for _ in 0..2 {
            let words = ["gateway", "--bind", "lan", "--port", &free_port().to_string()];
            assert_eq!(run(version, state.path(), &words).status.code(), Some(code));
        }
        assert_eq!(stop(start(version, state.path(), free_port())), Some(0));
    }
}

/// As gateway 2026.9.6 did: words, exit codes, and what became of the file.
#[test]
fn a_patch_is_merged_or_refused_before_the_file_is_touched() {
    let state = tempfile::tempdir().unwrap();
    let (config, patch) = (state.path().join("openclaw.json"), state.path().join("patch.json"));
    fs::write(&config, "{ // mine\n gateway: {mode: 'local', bind: 'lan'}, logging: {level: 'info'} }").unwrap();
    let (live, restart) = ("Change will apply without restarting the gateway.", "Restart the gateway to apply.");
    let cases = [
        (r#"{"loging":{"level":"debug"}}"#, 1, r#"Config validation failed: <root>: Unrecognized key: "loging""#),
        (r#"{"logging":{"level":"loud"}}"#, 1, "Config validation failed: logging.level: Invalid input (allowed:"),
        (r#"{"logging":{"level":"debug"}}"#, 0, "Config write will strip JSON5 comments from"),
        (r##"{"logging":null,"ui":{"seamColor":"#112233"}}"##, 0, live),
        (r##"{"ui":{"seamColor":"#112233"}}"##, 0, "No gateway restart needed."),
        (r#"{"gateway":{"tailscale":{"mode":"serve"}}}"#, 1, "gateway.bind must resolve to loopback"),
        (r#"{"gateway":{"tailscale":{"mode":"serve"},"bind":"loopback"}}"#, 0, restart),
    ];
    for (text, code, words) in cases {
        fs::write(&patch, text).unwrap();
        let before = fs::read_to_string(&config).unwrap();
        let output = run("0.1.1", state.path(), &["config", "patch", "--file", patch.to_str().unwrap()]);
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert_eq!(output.status.code(), Some(code), "{text}: {said}");
        assert!(said.contains(words), "{text}: {said}");
        let is_untouched = code != 0 || words.starts_with("No gateway restart");
        assert_eq!(fs::read_to_string(&config).unwrap() == before, is_untouched, "{text}");
    }
    let now: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert_eq!((&now["logging"], &now["ui"]["seamColor"]), (&serde_json::Value::Null, &"#112233".into()));
    fs::write(state.path().join(".env"), format!("OPENCLAW_GATEWAY_TOKEN={TOKEN}\n")).unwrap();
    let output = run("0.1.1", state.path(), &["gateway", "--bind", "lan", "--port", &free_port().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(78) && said.contains("requires gateway bind=loopback"), "{said}");
}
