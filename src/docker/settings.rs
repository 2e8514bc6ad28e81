//! Settings of an engine with which no gateway can run: found before anything is started.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use bollard::models::SystemInfo;
use serde_json::Value;

use super::{Engine, is_missing};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::Host;

/// The engine's own settings.
const FILE: &str = "/etc/docker/daemon.json";

/// Where the engine looks for a runtime that is named without a path.
const PROGRAM_DIRS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Refuses an engine that cannot start or publish a container; warns of one whose containers have no way out.
pub(super) async fn check(host: &Host, engine: &Engine) -> Result<()> {
    // An engine that cannot read the file does not run.
    let file = host.read(FILE).await?.unwrap_or_default();
    let settings = serde_json::from_slice(&file).unwrap_or_default();
    let bridge = engine.client.inspect_network("bridge", None).await;
    let has_bridge = !bridge.is_err_and(|error| is_missing(&error));
    let info = engine.client.info().await.context("asking the engine for its settings")?;
    let missing = runtime(&info).filter(|program| !exists(host, program));
    match decide(&settings, has_bridge, missing) {
        Verdict::Usable => Ok(()),
        Verdict::NoWayOut => {
            host.warn(format!(
                "{FILE} has `iptables: false`: the gateway reaches the internet only if your own rules translate its \
                 addresses"
            ));
            Ok(())
        }
        Verdict::Unusable(why) => Err(anyhow!(why)).classify(
            Code::DockerUnusable,
            format!("Correct it in {FILE}, restart the engine (sudo systemctl restart docker) and run `{RUN_AGAIN}`."),
        ),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Usable,
    NoWayOut,
    Unusable(String),
}

/// `missing_runtime`: the program of the default runtime that is not there.
fn decide(settings: &Value, has_bridge: bool, missing_runtime: Option<&str>) -> Verdict {
    let is_off = |key: &str| settings[key] == false;
    if let Some(program) = missing_runtime {
        Verdict::Unusable(format!(
            "the engine starts containers with {program}, which does not exist (default-runtime)"
        ))
    } else if !has_bridge {
        Verdict::Unusable("the engine has no bridge network (bridge: none), so it publishes no port".to_owned())
    } else if is_off("iptables") && is_off("userland-proxy") {
        Verdict::Unusable("the engine publishes no port (iptables: false and userland-proxy: false)".to_owned())
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
        let cases = [
            (json!(null), true, None, ""),
            (json!({"iptables": true, "userland-proxy": false}), true, None, ""),
            (json!({"iptables": false}), true, None, "no way out"),
            (json!({"iptables": false, "userland-proxy": false}), true, None, "userland-proxy: false"),
            (json!({"bridge": "none"}), false, None, "bridge: none"),
            (json!({"default-runtime": "gone"}), true, Some("/opt/gone"), "/opt/gone"),
        ];
        for (settings, has_bridge, missing, expected) in cases {
            match (decide(&settings, has_bridge, missing), expected) {
                (Verdict::Usable, "") | (Verdict::NoWayOut, "no way out") => {}
                (Verdict::Unusable(why), word) if !word.is_empty() && why.contains(word) => {}
                (verdict, word) => panic!("{settings}: {verdict:?} instead of {word:?}"),
            }
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
