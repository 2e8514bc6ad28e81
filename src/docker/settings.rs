//! Settings of an engine with which no gateway can run: found before anything is started.

use std::path::Path;

use anyhow::{Result, anyhow};
use bollard::models::SystemInfo;
use serde_json::Value;

use super::{Engine, is_missing};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::Host;

/// The engine's own settings, unless a flag names another file.
const FILE: &str = "/etc/docker/daemon.json";

/// Where the engine looks for a runtime that is named without a path.
const PROGRAM_DIRS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Refuses an engine that cannot start or publish a container; warns of one whose containers have no way out. `pid` is
/// that of its unit, if it was its unit that started it.
pub(super) async fn check(host: &Host, engine: &Engine, pid: Option<u32>) -> Result<()> {
    let settings = Settings::read(host, pid).await?;
    let bridge = engine.client.inspect_network("bridge", None).await;
    let has_bridge = !bridge.is_err_and(|error| is_missing(&error));
    let missing = runtime(engine.info().await?).filter(|program| !exists(host, program));
    match decide(&settings, has_bridge, missing) {
        Verdict::Usable => Ok(()),
        Verdict::NoWayOut => {
            let place = settings.place("iptables");
            host.warn(format!(
                "iptables is off in {place}: the gateway reaches the internet only if your own rules translate its \
                 addresses"
            ));
            Ok(())
        }
        Verdict::Unusable { why, key } => Err(anyhow!(why)).classify(
            Code::DockerUnusable,
            format!(
                "Correct it in {}, restart the engine (sudo systemctl restart docker) and run `{RUN_AGAIN}`.",
                settings.place(key)
            ),
        ),
    }
}

/// What the engine was started with.
#[derive(Debug, Default)]
struct Settings {
    flags: Vec<Flag>,
    /// The file of its settings, and what is in it.
    file: String,
    values: Value,
}

/// A flag of dockerd's and its value; empty for one that has none.
#[derive(Debug, PartialEq, Eq)]
struct Flag {
    name: String,
    value: String,
}

impl Settings {
    async fn read(host: &Host, pid: Option<u32>) -> Result<Self> {
        // As it was started: with what drop-ins and environment files add.
        let command_line = match pid {
            Some(pid) => host.read(format!("/proc/{pid}/cmdline")).await?.unwrap_or_default(),
            None => Vec::new(),
        };
        let flags = parse_flags(&command_line);
        let file = file(&flags);
        let (file, text) = (file.to_owned(), host.read(file).await?.unwrap_or_default());
        // An engine that cannot read the file does not run.
        let values = serde_json::from_slice(&text).unwrap_or_default();
        Ok(Self { flags, file, values })
    }

    fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags.iter().rfind(|flag| flag.name == name)
    }

    /// Whether `key` is switched off. The engine refuses to start with a key that is a flag and in the file.
    fn is_off(&self, key: &str) -> bool {
        match self.flag(key) {
            Some(flag) => ["0", "f", "F", "false", "FALSE", "False"].contains(&flag.value.as_str()),
            None => self.values[key] == false,
        }
    }

    /// Where an operator finds `key`.
    fn place(&self, key: &str) -> String {
        match self.flag(key) {
            Some(_) => format!("the engine's flag --{key} (sudo systemctl cat docker)"),
            None => self.file.clone(),
        }
    }
}

/// Where the engine's own settings are. An empty value of the flag is no name.
fn file(flags: &[Flag]) -> &str {
    let named = flags.iter().rfind(|flag| flag.name == "config-file").map(|flag| flag.value.as_str());
    named.filter(|name| !name.is_empty()).unwrap_or(FILE)
}

/// The flags in a command line as `/proc` shows it: `--name=value`, `--name value`, and `-b` for `--bridge`.
fn parse_flags(command_line: &[u8]) -> Vec<Flag> {
    let text = String::from_utf8_lossy(command_line);
    let words: Vec<&str> = text.split_terminator('\0').skip(1).collect();
    let flag = |(index, word): (usize, &&str)| {
        let long = word.strip_prefix("--").filter(|name| !name.is_empty());
        let (name, rest) = match (long, word.strip_prefix("-b")) {
            (Some(long), _) => long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value))),
            (None, Some(value)) => ("bridge", Some(value.trim_start_matches('=')).filter(|value| !value.is_empty())),
            (None, None) => return None,
        };
        let next = words.get(index + 1).filter(|next| !next.starts_with('-')).copied();
        Some(Flag { name: name.to_owned(), value: rest.or(next).unwrap_or_default().to_owned() })
    };
    words.iter().enumerate().filter_map(flag).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Usable,
    NoWayOut,
    Unusable {
        why: String,
        /// The setting to correct.
        key: &'static str,
    },
}

/// `missing_runtime`: the program of the default runtime that is not there.
fn decide(settings: &Settings, has_bridge: bool, missing_runtime: Option<&str>) -> Verdict {
    let is_off = |key| settings.is_off(key);
    if let Some(program) = missing_runtime {
        let why = format!("the engine starts containers with {program}, which does not exist (default-runtime)");
        Verdict::Unusable { why, key: "default-runtime" }
    } else if !has_bridge {
        let why = "the engine has no bridge network (bridge: none), so it publishes no port".to_owned();
        Verdict::Unusable { why, key: "bridge" }
    } else if is_off("iptables") && is_off("userland-proxy") {
        let why = "the engine publishes no port (iptables: false and userland-proxy: false)".to_owned();
        Verdict::Unusable { why, key: "userland-proxy" }
    } else if is_off("iptables") {
        Verdict::NoWayOut
    } else {
        Verdict::Usable
    }
}

/// The program of the default runtime; `None` for one that containerd knows itself.
fn runtime(info: &SystemInfo) -> Option<&str> {
    info.runtimes.as_ref()?.get(info.default_runtime.as_deref()?)?.path.as_deref().filter(|path| !path.is_empty())
}

fn exists(host: &Host, program: &str) -> bool {
    PROGRAM_DIRS.iter().any(|directory| host.path(Path::new(directory).join(program)).exists())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_publish_or_start_a_container_is_unusable() {
        let flag = "(sudo systemctl cat docker)";
        // dockerd's flags, its file, whether there is a bridge, the runtime that is missing; why, and the place named
        let cases = [
            ("", json!(null), true, None, "", ""),
            ("-H fd:// --iptables", json!({"userland-proxy": false}), true, None, "", ""),
            ("", json!({"iptables": true, "userland-proxy": false}), true, None, "", ""),
            ("", json!({"iptables": false}), true, None, "no way out", FILE),
            ("--iptables=0", json!(null), true, None, "no way out", flag),
            ("--iptables=false --iptables=true", json!(null), true, None, "", ""),
            ("", json!({"iptables": false, "userland-proxy": false}), true, None, "userland-proxy: false", FILE),
            ("--iptables=false --userland-proxy=F", json!(null), true, None, "userland-proxy: false", flag),
            ("--iptables=False", json!({"userland-proxy": false}), true, None, "userland-proxy: false", FILE),
            ("--userland-proxy=false", json!({"iptables": false}), true, None, "userland-proxy: false", flag),
            ("", json!({"bridge": "none"}), false, None, "bridge: none", FILE),
            ("-b none", json!(null), false, None, "bridge: none", flag),
            ("", json!({"default-runtime": "gone"}), true, Some("/opt/gone"), "/opt/gone", FILE),
            ("--default-runtime gone", json!(null), true, Some("/opt/gone"), "/opt/gone", flag),
        ];
        for (flags, values, has_bridge, missing, expected, place) in cases {
            let command_line = format!("/usr/sbin/dockerd {flags}").replace(' ', "\0");
            let flags = parse_flags(command_line.as_bytes());
            let settings = Settings { flags, file: FILE.to_owned(), values };
            let named = match (decide(&settings, has_bridge, missing), expected) {
                (Verdict::Usable, "") => continue,
                (Verdict::NoWayOut, "no way out") => settings.place("iptables"),
                (Verdict::Unusable { why, key }, word) if !word.is_empty() && why.contains(word) => settings.place(key),
                (verdict, word) => panic!("{settings:?}: {verdict:?} instead of {word:?}"),
            };
            assert!(named.contains(place), "{named} is named for {settings:?}");
        }
    }

    #[test]
    fn flags_are_read_as_dockerd_reads_them() {
        let cases: [(&str, &[(&str, &str)]); 7] = [
            ("", &[]),
            ("dockerd", &[]),
            ("dockerd\0", &[]),
            ("dockerd\0-H\0fd://\0--debug\0", &[("debug", "")]),
            ("dockerd\0--debug\0--config-file\0/etc/d.json\0", &[("debug", ""), ("config-file", "/etc/d.json")]),
            ("dockerd\0-b=none\0-bbr0\0-b\0br1\0", &[("bridge", "none"), ("bridge", "br0"), ("bridge", "br1")]),
            ("dockerd\0--\0--label=a=b\0--\u{fffd}=x", &[("label", "a=b"), ("\u{fffd}", "x")]),
        ];
        for (line, expected) in cases {
            let found = parse_flags(line.as_bytes());
            let found: Vec<_> = found.iter().map(|flag| (flag.name.as_str(), flag.value.as_str())).collect();
            assert_eq!(found, expected, "{line:?}");
        }
    }

    #[test]
    fn the_last_file_that_is_named_counts_and_an_empty_name_is_none() {
        let cases = [
            ("", FILE),
            ("--debug", FILE),
            ("--config-file=", FILE),
            ("--config-file=/etc/d.json", "/etc/d.json"),
            ("--config-file /etc/d.json --config-file=", FILE),
        ];
        for (flags, expected) in cases {
            let command_line = format!("dockerd {flags}").replace(' ', "\0");
            assert_eq!(file(&parse_flags(command_line.as_bytes())), expected, "{flags}");
        }
    }

    #[test]
    fn a_runtime_is_a_path_or_a_name() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        for (file, made) in [("usr/sbin", "runc"), ("opt", "own")] {
            std::fs::create_dir_all(root.path().join(file))?;
            std::fs::write(root.path().join(file).join(made), "")?;
        }
        for (program, found) in [("runc", true), ("/opt/own", true), ("own", false), ("/opt/gone", false)] {
            assert_eq!(exists(&host, program), found, "{program}");
        }
        Ok(())
    }
}
