//! What the container must be: a pure function of the image, the directories, the attributes and the machine.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding, RestartPolicy,
    RestartPolicyNameEnum,
};
use sha2::{Digest as _, Sha256};

use super::{NAME, SPEC_LABEL};
use crate::config::GatewayConfig;
use crate::docker::Engine;
use crate::gateway::openclaw_json::INNER_PORT;
use crate::host::Host;
use crate::image::Image;
use crate::memory;
use crate::state::DataDir;
use crate::text::MIB;

/// The state directory inside the container.
const STATE: &str = "/home/node/.openclaw";

/// Where the gateway keeps the key of its stored logins; upstream mounts it apart from the state.
pub(super) const CONFIG: &str = "/home/node/.config/openclaw";

/// The image's user `node`, as numbers.
const USER: &str = "1000:1000";

/// Upstream's own limit for a gateway in a shared host (`openclaw fleet`).
const PIDS: i64 = 512;

/// Seconds a stopping gateway may take: it drains active work for up to 325 s.
pub(super) const STOP_SECONDS: i32 = 330;

/// Part of the machine's memory that the container may use, in percent; the rest is for Docker and the system.
const MEMORY_PERCENT: u64 = 75;

/// Below this the gateway is killed as soon as it is ready (measured: 768 MiB runs, 640 MiB does not).
const LEAST_MEMORY: u64 = 768 * MIB;

/// The limit is a multiple of this, so that a new kernel's slightly different total changes nothing.
const MEMORY_STEP: u64 = 64 * MIB;

/// How long the engine counts no failed health check: a first boot on a shared core and a cold disk.
const HEALTH_START_NANOSECONDS: i64 = 300_000_000_000;

/// What the machine and the image allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// `MemTotal` in bytes.
    memory: u64,
    /// Whether the engine can limit a container's memory.
    memory_limit: bool,
    /// Whether the image brings its own `tini`: then the engine's is neither needed nor always installed.
    own_init: bool,
}

impl Machine {
    pub(super) async fn observe(host: &Host, engine: &Engine, image: &Image) -> Result<Self> {
        let memory = memory::total(host).await?;
        let info = engine.client.info().await.context("asking the engine what it supports")?;
        let inspect = engine
            .client
            .inspect_image(&image.id)
            .await
            .with_context(|| format!("inspecting image {}", image.reference))?;
        let entrypoint = inspect.config.and_then(|config| config.entrypoint).unwrap_or_default();
        let own_init = entrypoint.first().is_some_and(|program| program.rsplit('/').next() == Some("tini"));
        let memory_limit = info.memory_limit.unwrap_or(false);
        if !memory_limit {
            tracing::debug!("this engine cannot limit a container's memory");
        }
        Ok(Self { memory, memory_limit, own_init })
    }

    fn limit(self) -> u64 {
        let share = self.memory * MEMORY_PERCENT / 100;
        (share / MEMORY_STEP * MEMORY_STEP).max(LEAST_MEMORY)
    }
}

/// The container as it should be created, labelled with the fingerprint of all of it.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) body: ContainerCreateBody,
    pub(super) fingerprint: String,
}

impl Spec {
    /// The gateway's container. No secret is part of it: they are in the state directory's `.env`.
    pub(super) fn gateway(image: &Image, data: &DataDir, config: &GatewayConfig, machine: Machine) -> Result<Self> {
        let port = format!("{INNER_PORT}/tcp");
        let command =
            ["node", "openclaw.mjs", "gateway", "--bind", "lan", "--port", &INNER_PORT.to_string()].map(str::to_owned);
        let published =
            PortBinding { host_ip: Some(config.bind.to_string()), host_port: Some(config.port.to_string()) };
        let mut body = ContainerCreateBody {
            exposed_ports: Some(vec![port.clone()]),
            cmd: Some(command.into()),
            // An empty test means the image's own.
            healthcheck: Some(HealthConfig {
                test: Some(Vec::new()),
                start_period: Some(HEALTH_START_NANOSECONDS),
                ..Default::default()
            }),
            ..base(image, data, config, machine)
        };
        if let Some(host) = &mut body.host_config {
            host.port_bindings = Some(HashMap::from([(port, Some(vec![published]))]));
            host.restart_policy = Some(RestartPolicy {
                // Not `on-failure`: a restart inside the process has ended with code 0 (openclaw issue 73178).
                name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
                maximum_retry_count: None,
            });
        }
        let fingerprint = fingerprint(&body, image)?;
        body.labels = Some(HashMap::from([(SPEC_LABEL.to_owned(), fingerprint.clone())]));
        Ok(Self { body, fingerprint })
    }

    /// A container that repairs the state. With network: the repair may bring plugins up to the image's version.
    pub(super) fn doctor(
        image: &Image,
        data: &DataDir,
        config: &GatewayConfig,
        machine: Machine,
    ) -> ContainerCreateBody {
        let mut body = Self::one_off(image, data, config, machine, &["doctor", "--fix", "--non-interactive"]);
        if let Some(host) = &mut body.host_config {
            host.network_mode = None;
        }
        body
    }

    /// A container that runs one of the gateway's own commands on the same state, without network.
    pub(super) fn one_off(
        image: &Image,
        data: &DataDir,
        config: &GatewayConfig,
        machine: Machine,
        command: &[&str],
    ) -> ContainerCreateBody {
        let command = ["node", "openclaw.mjs"].iter().chain(command).map(|&word| word.to_owned()).collect();
        let mut body = ContainerCreateBody {
            cmd: Some(command),
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
            ..base(image, data, config, machine)
        };
        if let Some(host) = &mut body.host_config {
            host.network_mode = Some("none".to_owned());
        }
        body
    }
}

/// What both kinds of container share. Entry point and working directory are the image's.
fn base(image: &Image, data: &DataDir, config: &GatewayConfig, machine: Machine) -> ContainerCreateBody {
    let env = environment(config, machine).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let bind = |source: &std::path::Path, target: &str| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        ..Default::default()
    };
    let limits = [("max-size", "10m"), ("max-file", "3")];
    ContainerCreateBody {
        // The gateway's owner lease is keyed by the host name (openclaw issue 155644).
        hostname: Some(NAME.to_owned()),
        user: Some(USER.to_owned()),
        env: Some(env),
        image: Some(image.reference.to_string()),
        stop_timeout: Some(STOP_SECONDS.into()),
        host_config: Some(HostConfig {
            mounts: Some(vec![bind(&data.state, STATE), bind(&data.config, CONFIG)]),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            pids_limit: Some(PIDS),
            init: (!machine.own_init).then_some(true),
            memory: machine.memory_limit.then(|| i64::try_from(machine.limit()).unwrap_or(i64::MAX)),
            log_config: Some(HostConfigLogConfig {
                typ: Some("local".to_owned()),
                config: Some(limits.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Defaults, over them the operator's variables, over them what must not be changed.
fn environment(config: &GatewayConfig, machine: Machine) -> BTreeMap<String, String> {
    let heap = machine.limit() / 2 / MIB;
    let heap = format!("--max-old-space-size={heap}");
    let defaults = [("TZ", "UTC"), ("TERM", "xterm-256color"), ("NODE_OPTIONS", heap.as_str())];
    let pinned = [
        ("HOME", "/home/node"),
        ("OPENCLAW_HOME", "/home/node"),
        ("OPENCLAW_STATE_DIR", STATE),
        ("OPENCLAW_CONFIG_PATH", "/home/node/.openclaw/openclaw.json"),
        ("XDG_CACHE_HOME", "/home/node/.openclaw/cache"),
        ("GOG_HOME", "/home/node/.openclaw/gogcli"),
        ("GOG_KEYRING_BACKEND", "file"),
        ("NODE_ENV", "production"),
        ("NO_COLOR", "1"),
        ("OPENCLAW_NO_AUTO_UPDATE", "1"),
        ("OPENCLAW_SUPERVISOR_MODE", "external"),
    ];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let operator = config.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    defaults.map(owned).into_iter().chain(operator).chain(pinned.map(owned)).collect()
}

fn fingerprint(body: &ContainerCreateBody, image: &Image) -> Result<String> {
    // Through `Value`, whose objects are sorted by key: the body's own maps have no order.
    let value = serde_json::to_value((body, &image.id)).context("describing the container")?;
    let hash = Sha256::digest(value.to_string());
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::reference::{ImageReference, PinnedImage};

    const MACHINE: Machine = Machine { memory: 4 << 30, memory_limit: true, own_init: true };

    fn image() -> Image {
        let reference: ImageReference = "x/y:1".parse().unwrap();
        let base = PinnedImage { reference: reference.clone(), digest: None };
        Image { reference, base, id: "sha256:1".to_owned(), version: "1".into() }
    }

    fn data() -> DataDir {
        DataDir::at("/data", false)
    }

    fn config() -> GatewayConfig {
        GatewayConfig { port: 8080, bind: [127, 0, 0, 1].into(), token: None, env: BTreeMap::new() }
    }

    fn spec(image: &Image, config: &GatewayConfig, machine: Machine) -> Spec {
        Spec::gateway(image, &data(), config, machine).unwrap()
    }

    #[test]
    fn every_input_changes_the_fingerprint_and_nothing_else_does() {
        let first = spec(&image(), &config(), MACHINE).fingerprint;
        for _ in 0..20 {
            assert_eq!(spec(&image(), &config(), MACHINE).fingerprint, first);
        }
        assert_eq!(spec(&image(), &config(), Machine { memory: (4 << 30) + 4096, ..MACHINE }).fingerprint, first);
        let changed = [
            spec(&Image { id: "sha256:2".to_owned(), ..image() }, &config(), MACHINE),
            spec(&image(), &GatewayConfig { port: 8081, ..config() }, MACHINE),
            spec(&image(), &GatewayConfig { bind: [0, 0, 0, 0].into(), ..config() }, MACHINE),
            spec(&image(), &GatewayConfig { env: [("A".to_owned(), "b".to_owned())].into(), ..config() }, MACHINE),
            spec(&image(), &config(), Machine { memory: 8 << 30, ..MACHINE }),
            spec(&image(), &config(), Machine { memory_limit: false, ..MACHINE }),
            spec(&image(), &config(), Machine { own_init: false, ..MACHINE }),
        ];
        for spec in changed {
            assert_ne!(spec.fingerprint, first, "{:?}", spec.body);
        }
    }

    #[test]
    fn the_container_is_confined() {
        let body = spec(&image(), &config(), MACHINE).body;
        let host = body.host_config.unwrap();
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
        assert_eq!((host.binds, host.privileged, host.init), (None, None, None));
        assert_eq!(host.memory, Some(3 << 30));
        let mounts: Vec<_> = host.mounts.unwrap().into_iter().map(|mount| (mount.typ, mount.source.unwrap())).collect();
        assert_eq!(
            mounts,
            [(Some(MountType::BIND), "/data/openclaw".into()), (Some(MountType::BIND), "/data/config-openclaw".into())]
        );
        let ports = host.port_bindings.unwrap();
        let expected = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some("8080".to_owned()) };
        assert_eq!(ports, HashMap::from([("18789/tcp".to_owned(), Some(vec![expected]))]));
    }

    #[test]
    fn pinned_variables_win_over_the_operators_and_those_over_defaults() {
        let env = [("HOME", "/x"), ("TZ", "Asia/Tokyo")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = environment(&GatewayConfig { env: env.into(), ..config() }, MACHINE);
        assert_eq!((env["HOME"].as_str(), env["TZ"].as_str()), ("/home/node", "Asia/Tokyo"));
        assert_eq!(env["NODE_OPTIONS"], "--max-old-space-size=1536");
    }

    #[test]
    fn the_memory_limit_follows_the_machine() {
        let limit = |memory| Machine { memory, ..MACHINE }.limit() / MIB;
        assert_eq!(limit(2000 * MIB), 1472);
        assert_eq!(limit(2001 * MIB), 1472);
        assert_eq!(limit(900 * MIB), 768);
    }

    #[test]
    fn a_one_off_has_the_same_state_and_no_way_out() {
        let body = Spec::one_off(&image(), &data(), &config(), MACHINE, &["config", "validate"]);
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!((host.port_bindings, host.restart_policy, body.exposed_ports), (None, None, None));
        assert_eq!(body.cmd.unwrap(), ["node", "openclaw.mjs", "config", "validate"]);
        assert_eq!(host.mounts.unwrap().len(), 2);
    }
}
