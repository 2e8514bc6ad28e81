//! Behaves like the OpenClaw gateway as far as anybody outside can see, in 1.5 MB: for tests in which the
//! real one is too heavy. Ports, probes, exit codes and commands are those of gateway 2026.9.6.
//!
//! It is the only program of its image, under the names `tini`, `node` and `openclaw`. Its versions differ as
//! releases do: in the schema of their state and in whether they start.

mod evil;
mod http;
mod state;

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use crate::state::State;

/// The environment variable by which an image says which version it is.
const VERSION: &str = "FAKE_GATEWAY_VERSION";
/// "Starting me again will not help".
const REFUSED: u8 = 78;

/// What tells one version from another.
#[derive(Debug, Clone, Copy)]
struct Release {
    version: &'static str,
    /// What it writes, and the highest that it can read.
    schema: u64,
    /// Whether it ever answers that it is ready.
    starts: bool,
    /// Whether it leaves the migration of an older state to its doctor.
    wants_doctor: bool,
    /// How it ends twice, as if a database took too long to read from a cold disk.
    ends_cold: Option<u8>,
    /// For how long its start does nothing that anybody sees, in seconds.
    takes: u64,
    /// What it loads.
    plugins: &'static [&'static str],
}

const GOOD: Release = Release {
    version: "0.1.1",
    schema: 1,
    starts: true,
    wants_doctor: false,
    ends_cold: None,
    takes: 0,
    plugins: &["openai", "pigeon"],
};

const RELEASES: [Release; 8] = [
    GOOD,
    Release { version: "0.1.2", schema: 2, ..GOOD },
    Release { version: "0.1.3", schema: 2, wants_doctor: true, ..GOOD },
    Release { version: "0.1.4", schema: 2, ends_cold: Some(1), ..GOOD },
    Release { version: "0.1.5", schema: 2, ends_cold: Some(REFUSED), ..GOOD },
    Release { version: "0.1.6", schema: 2, plugins: &["openai"], ..GOOD },
    Release { version: "0.1.7", schema: 2, takes: 400, ..GOOD },
    Release { version: "0.1.66", schema: 2, starts: false, ..GOOD },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).skip_while(|it| is_launcher(it)).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            let refused = words.first() == Some(&"gateway");
            if refused { ExitCode::from(REFUSED) } else { ExitCode::FAILURE }
        }
    }
}

/// `tini -s -- node openclaw.mjs …`: what stands before the gateway's own arguments.
fn is_launcher(word: &str) -> bool {
    ["-s", "--", "node"].contains(&word) || word.ends_with("openclaw.mjs") || word.ends_with("dist/index.js")
}

fn run(words: &[&str]) -> Result<()> {
    let release = release()?;
    match words {
        ["--version"] => {
            println!("OpenClaw {} (fake-gateway)", release.version);
            Ok(())
        }
        ["gateway", options @ ..] => gateway(release, options),
        ["health", ..] => http::ask_health(),
        ["config", "set", "--batch-json", batch] => set(batch),
        ["config", "patch", "--file", file, ..] => patch(file.as_ref()),
        ["config", "validate", ..] => validate(),
        ["doctor", options @ ..] => {
            if options.contains(&"--fix") {
                state::migrate(release.schema)?;
            }
            println!(
                "{}",
                json!({ "schemaVersion": 1, "ok": true, "checksRun": 1, "checksSkipped": 0, "findings": [] })
            );
            Ok(())
        }
        ["devices", "list", ..] => {
            println!("{}", json!({ "pending": [], "paired": [] }));
            Ok(())
        }
        ["logs", "--follow"] => follow_logs(),
        ["evil"] => evil::play(),
        ["backup", "create", ..] if evil::is_on() => Ok(evil::write(std::io::stdout())?),
        ["backup", "create", "--output", file, ..] => state::back_up(file.as_ref(), release.version),
        _ => bail!("unknown command: {}", words.join(" ")),
    }
}

/// Prints for ever, or until a signal or a reader ends it.
fn follow_logs() -> Result<()> {
    end_at_signal(|signal| 128 + signal as i32)?;
    loop {
        writeln!(std::io::stdout(), "a line of the log")?;
        thread::sleep(Duration::from_millis(200));
    }
}

/// Ends this process at a signal, with the exit code that `code` gives, whatever it does then. As process 1 of its
/// container it has no default actions: without this a stop would take the whole grace.
fn end_at_signal(code: impl FnOnce(Signal) -> i32 + Send + 'static) -> Result<()> {
    let endings = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    endings.thread_block().context("listening for signals")?;
    thread::spawn(move || endings.wait().map(|signal| std::process::exit(code(signal))));
    Ok(())
}

fn release() -> Result<Release> {
    let wanted = env::var(VERSION).with_context(|| format!("reading {VERSION}"))?;
    let found = RELEASES.into_iter().find(|release| release.version == wanted);
    found.with_context(|| format!("there is no version {wanted}"))
}

/// The gateway's life: until it is told to stop. An error means that it refused to start.
fn gateway(release: Release, options: &[&str]) -> Result<()> {
    end_at_signal(|_| {
        println!("[gateway] stopped");
        0
    })?;
    let option = |name: &str| Some(*options.get(options.iter().position(|it| *it == name)? + 1)?);
    if !options.contains(&"--allow-unconfigured") {
        let config = read_config()?.context("Missing config. Run `openclaw setup` or set gateway.mode=local")?;
        ensure!(config.pointer("/gateway/mode").is_some(), "existing config is missing gateway.mode");
    }
    let tailscale = read_config()?.unwrap_or_default();
    let tailscale = tailscale.pointer("/gateway/tailscale/mode").and_then(Value::as_str).unwrap_or("off");
    ensure!(tailscale == "off", "tailscale serve/funnel requires gateway bind=loopback");
    let token = token()?;
    let lan = option("--bind").is_some_and(|bind| bind != "loopback");
    ensure!(!lan || token.is_some(), "Refusing to bind gateway to lan without auth");
    println!("[gateway] starting...");
    let state = State::open(release)?;
    println!("[gateway] state schema {}, start number {}", state.schema, state.starts);
    if let Some(code) = release.ends_cold
        && state::is_cold(release.version)?
    {
        eprintln!("[gateway] the check of the databases did not end in time");
        std::process::exit(code.into());
    }
    thread::sleep(Duration::from_secs(release.takes));
    let port = option("--port").unwrap_or("18789").parse().context("reading --port")?;
    http::serve(lan, port, release, token)?;
    let plugins = release.plugins;
    println!("[gateway] http server listening ({} plugins: {}; 0.1s)", plugins.len(), plugins.join(", "));
    if release.starts {
        println!("[gateway] ready");
    }
    loop {
        thread::park();
    }
}

/// The state directory.
fn directory() -> PathBuf {
    env::var_os("OPENCLAW_STATE_DIR").map_or_else(|| "/home/node/.openclaw".into(), PathBuf::from)
}

fn read_config() -> Result<Option<Value>> {
    let path = directory().join("openclaw.json");
    match fs::read_to_string(&path) {
        Ok(text) => json5::from_str(&text).with_context(|| format!("reading {}", path.display())).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::from(error).context(format!("reading {}", path.display()))),
    }
}

/// The token, from `openclaw.json`, the environment or the state directory's `.env`, in this order.
fn token() -> Result<Option<String>> {
    let config = read_config()?.unwrap_or_default();
    let configured = config.pointer("/gateway/auth/token").and_then(Value::as_str).map(str::to_owned);
    let file = fs::read_to_string(directory().join(".env")).unwrap_or_default();
    let from_file = || Some(file.lines().find_map(|line| line.strip_prefix("OPENCLAW_GATEWAY_TOKEN="))?.to_owned());
    let found = configured.or_else(|| env::var("OPENCLAW_GATEWAY_TOKEN").ok()).or_else(from_file);
    Ok(found.filter(|token| !token.is_empty()))
}

/// `config set --batch-json '[{"path": "gateway.mode", "value": "local"}, …]'`.
fn set(batch: &str) -> Result<()> {
    let edits: Vec<Value> = serde_json::from_str(batch).context("reading the batch")?;
    let mut config = read_config()?.unwrap_or_else(|| json!({}));
    for edit in &edits {
        let path = edit["path"].as_str().context("an edit without a path")?;
        let mut place = &mut config;
        for key in path.split('.') {
            ensure!(place.is_null() || place.is_object(), "{path} is below a value");
            place = &mut place[key];
        }
        *place = edit["value"].clone();
    }
    config["meta"] = json!({ "lastTouchedVersion": release()?.version });
    write(&directory().join("openclaw.json"), serde_json::to_string_pretty(&config)?.as_bytes())
}

/// `config patch --file FILE`: a merge patch, whose result is checked before it is written.
fn patch(file: &std::path::Path) -> Result<()> {
    let edits: Value = json5::from_str(&fs::read_to_string(file)?).context("reading the patch")?;
    let path = directory().join("openclaw.json");
    let before = read_config()?.unwrap_or_else(|| json!({}));
    let mut config = before.clone();
    merge(&mut config, &edits);
    check(&config)?;
    if fs::read_to_string(&path).is_ok_and(|text| ["//", "/*"].iter().any(|mark| text.contains(mark))) {
        eprintln!("Config write will strip JSON5 comments from {}.", path.display());
    }
    let hint = if before == config {
        "No gateway restart needed."
    } else if before["gateway"] == config["gateway"] {
        "Change will apply without restarting the gateway."
    } else {
        "Restart the gateway to apply."
    };
    config["meta"] = json!({ "lastTouchedVersion": release()?.version });
    write(&path, serde_json::to_string_pretty(&config)?.as_bytes())?;
    println!("Applied 1 config update(s). {hint}");
    Ok(())
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match target.as_object_mut() {
            Some(object) if value.is_null() => drop(object.remove(key)),
            _ => merge(&mut target[key], value),
        }
    }
}

/// A small part of the gateway's schema.
fn check(config: &Value) -> Result<()> {
    const KNOWN: [&str; 8] = ["agents", "channels", "gateway", "logging", "meta", "models", "plugins", "ui"];
    const LEVELS: [&str; 7] = ["silent", "fatal", "error", "warn", "info", "debug", "trace"];
    for key in config.as_object().into_iter().flat_map(|object| object.keys()) {
        ensure!(KNOWN.contains(&key.as_str()), "Config validation failed: <root>: Unrecognized key: \"{key}\"");
    }
    let of_gateway = |path| config.pointer(path).and_then(Value::as_str);
    let needs_loopback = of_gateway("/gateway/tailscale/mode") == Some("serve");
    ensure!(
        !needs_loopback || of_gateway("/gateway/bind") == Some("loopback"),
        "Config validation failed: gateway.bind: gateway.bind must resolve to loopback when gateway.tailscale.mode=serve"
    );
    let level = config.pointer("/logging/level").map_or("info", |level| level.as_str().unwrap_or_default());
    let allowed = LEVELS.map(|level| format!("\"{level}\"")).join(", ");
    ensure!(LEVELS.contains(&level), "Config validation failed: logging.level: Invalid input (allowed: {allowed})");
    Ok(())
}

fn validate() -> Result<()> {
    let valid = read_config()?.is_some();
    println!("{}", json!({ "valid": valid, "path": directory().join("openclaw.json"), "warnings": [] }));
    ensure!(valid, "there is no openclaw.json");
    Ok(())
}

/// Replaces a file so that a power cut leaves the old one or the new one.
fn write(path: &std::path::Path, content: &[u8]) -> Result<()> {
    let directory = path.parent().context("a file has a directory")?;
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_is_not_part_of_the_command() {
        let line = "-s -- node openclaw.mjs gateway --bind lan";
        let left: Vec<&str> = line.split(' ').skip_while(|it| is_launcher(it)).collect();
        assert_eq!(left, ["gateway", "--bind", "lan"]);
    }
}
