//! The desired container: a pure function of image, directories, attributes and machine.

use std::collections::HashMap;

use anyhow::{Context, Result};
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding, RestartPolicy,
    RestartPolicyNameEnum,
};
use sha2::{Digest as _, Sha256};

use super::openclaw_json::INNER_PORT;
use super::{Gateway, NAME, SPEC_LABEL, env};
use crate::config::GatewayConfig;
use crate::docker::Engine;
use crate::host::Host;
use crate::image::Image;
use crate::memory;
use crate::paths::STATE_ALIAS;
use crate::state::DataDir;
use crate::text::{MIB, hex};

/// Where the gateway keeps the key of its stored logins; upstream mounts it apart from the state.
pub(super) const CONFIG: &str = "/home/node/.config/openclaw";

/// The image's user `node`, as numbers.
const USER: &str = "1000:1000";

/// Upstream's own limit for a gateway in a shared host (`openclaw fleet`).
const PIDS_LIMIT: i64 = 512;

/// The grace for a gateway that stops, in seconds: it drains active work for up to 325 s.
pub(super) const STOP_SECONDS: i32 = 330;

/// The container's share of the machine's memory; the rest is for Docker and the system.
const MEMORY_PERCENT: u64 = 75;

/// Below this the gateway is killed as soon as it is ready (measured: 768 MiB runs, 640 MiB does not).
const LEAST_MEMORY_BYTES: u64 = 768 * MIB;

/// The limit is a multiple of this: the slightly different total of another kernel changes nothing.
const MEMORY_STEP_BYTES: u64 = 64 * MIB;

/// For so long the engine counts no failed health check: a first boot on a shared core and a cold disk.
const HEALTH_START_NANOSECONDS: i64 = 300_000_000_000;

/// What the containers of one gateway are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    image: &'a Image,
    data: &'a DataDir,
    config: &'a GatewayConfig,
    capabilities: Capabilities,
}

/// What the machine, its engine and the image allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Capabilities {
    /// `MemTotal` in bytes.
    memory: u64,
    /// Whether the engine can limit a container's memory.
    memory_limit: bool,
    /// Whether the image brings its own `tini`; the engine's is then not needed, and it is not always installed.
    own_init: bool,
    /// Whether the engine gives root in a container another number (`userns-remap`): then the state would be foreign.
    remaps_users: bool,
}

impl Capabilities {
    async fn observe(host: &Host, engine: &Engine, image: &Image) -> Result<Self> {
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
        let security = info.security_options.unwrap_or_default();
        let remaps_users = security.iter().any(|option| option.split(',').any(|part| part == "name=userns"));
        Ok(Self { memory, memory_limit, own_init, remaps_users })
    }

    /// How many bytes the container may use.
    fn limit(self) -> u64 {
        let share = self.memory * MEMORY_PERCENT / 100;
        (share / MEMORY_STEP_BYTES * MEMORY_STEP_BYTES).max(LEAST_MEMORY_BYTES)
    }
}

/// The container as it should be created, labelled with the fingerprint of all of it.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) body: ContainerCreateBody,
    pub(super) fingerprint: String,
}

impl<'a> Inputs<'a> {
    pub(super) async fn observe(gateway: Gateway<'a>, image: &'a Image) -> Result<Self> {
        let Gateway { host, engine, data, config } = gateway;
        Ok(Self { image, data, config, capabilities: Capabilities::observe(host, engine, image).await? })
    }

    /// The gateway's container. No secret is part of it: they are in the state directory's `.env`.
    pub(super) fn gateway(&self) -> Result<Spec> {
        let port = format!("{INNER_PORT}/tcp");
        let command = ["gateway", "--bind", "lan", "--port", &INNER_PORT.to_string()];
        let mut body = self.body(&command, |host| {
            let (host_ip, host_port) = (self.config.bind.to_string(), self.config.port.to_string());
            let published = PortBinding { host_ip: Some(host_ip), host_port: Some(host_port) };
            host.port_bindings = Some(HashMap::from([(port.clone(), Some(vec![published]))]));
            host.restart_policy = Some(RestartPolicy {
                // Not `on-failure`: a restart inside the process has ended with code 0 (openclaw issue 73178).
                name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
                maximum_retry_count: None,
            });
        });
        body.exposed_ports = Some(vec![port]);
        // An empty test means the image's own.
        let (test, start_period) = (Some(Vec::new()), Some(HEALTH_START_NANOSECONDS));
        body.healthcheck = Some(HealthConfig { test, start_period, ..Default::default() });
        let fingerprint = fingerprint(&body, self.image)?;
        body.labels = Some(HashMap::from([(SPEC_LABEL.to_owned(), fingerprint.clone())]));
        Ok(Spec { body, fingerprint })
    }

    /// A container that repairs the state. With network: the repair may bring plugins up to the image's version.
    pub(super) fn doctor(&self) -> ContainerCreateBody {
        self.command(&["doctor", "--fix", "--non-interactive"], None)
    }

    /// A container that runs one of the gateway's own commands on the same state, without network.
    pub(super) fn one_off(&self, command: &[&str]) -> ContainerCreateBody {
        self.command(command, Some("none".to_owned()))
    }

    fn command(&self, command: &[&str], network: Option<String>) -> ContainerCreateBody {
        let mut body = self.body(command, |host| host.network_mode = network);
        body.healthcheck = Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() });
        body
    }

    /// What every container has in common; `adapt` adds to its host's part. Entry point and working directory are the
    /// image's.
    fn body(&self, command: &[&str], adapt: impl FnOnce(&mut HostConfig)) -> ContainerCreateBody {
        let Self { image, data, config, capabilities } = *self;
        let bind = |source: &std::path::Path, target: &str| Mount {
            typ: Some(MountType::BIND),
            source: Some(source.display().to_string()),
            target: Some(target.to_owned()),
            ..Default::default()
        };
        let limits = [("max-size", "10m"), ("max-file", "3")];
        let mut host = HostConfig {
            mounts: Some(vec![bind(&data.state, STATE_ALIAS), bind(&data.config, CONFIG)]),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            userns_mode: capabilities.remaps_users.then(|| "host".to_owned()),
            pids_limit: Some(PIDS_LIMIT),
            init: (!capabilities.own_init).then_some(true),
            memory: capabilities.memory_limit.then(|| i64::try_from(capabilities.limit()).unwrap_or(i64::MAX)),
            log_config: Some(HostConfigLogConfig {
                typ: Some("local".to_owned()),
                config: Some(limits.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            }),
            ..Default::default()
        };
        adapt(&mut host);
        ContainerCreateBody {
            // The gateway's owner lease is keyed by the host name (openclaw issue 155644).
            hostname: Some(NAME.to_owned()),
            user: Some(USER.to_owned()),
            env: Some(env::variables(&config.env, capabilities.limit())),
            cmd: Some(["node", "openclaw.mjs"].iter().chain(command).map(|&word| word.to_owned()).collect()),
            image: Some(image.reference.to_string()),
            stop_timeout: Some(STOP_SECONDS.into()),
            host_config: Some(host),
            ..Default::default()
        }
    }
}

fn fingerprint(body: &ContainerCreateBody, image: &Image) -> Result<String> {
    // Through `Value`, whose objects are sorted by key: the body's own maps have no order.
    let value = serde_json::to_value((body, &image.id)).context("describing the container")?;
    Ok(hex(Sha256::digest(value.to_string())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use expect_test::expect_file;

    use super::*;
    use crate::reference::{ImageReference, PinnedImage};

    const ALLOWED: Capabilities =
        Capabilities { memory: 4 << 30, memory_limit: true, own_init: true, remaps_users: false };

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

    fn spec(image: &Image, config: &GatewayConfig, capabilities: Capabilities) -> Spec {
        Inputs { image, data: &data(), config, capabilities }.gateway().unwrap()
    }

    #[test]
    fn every_input_changes_the_fingerprint_and_nothing_else_does() {
        let first = spec(&image(), &config(), ALLOWED).fingerprint;
        for _ in 0..20 {
            assert_eq!(spec(&image(), &config(), ALLOWED).fingerprint, first);
        }
        assert_eq!(spec(&image(), &config(), Capabilities { memory: (4 << 30) + 4096, ..ALLOWED }).fingerprint, first);
        let changed = [
            spec(&Image { id: "sha256:2".to_owned(), ..image() }, &config(), ALLOWED),
            spec(&image(), &GatewayConfig { port: 8081, ..config() }, ALLOWED),
            spec(&image(), &GatewayConfig { bind: [0, 0, 0, 0].into(), ..config() }, ALLOWED),
            spec(&image(), &GatewayConfig { env: [("A".to_owned(), "b".to_owned())].into(), ..config() }, ALLOWED),
        ];
        let capabilities = [
            Capabilities { memory: 8 << 30, ..ALLOWED },
            Capabilities { memory_limit: false, ..ALLOWED },
            Capabilities { own_init: false, ..ALLOWED },
            Capabilities { remaps_users: true, ..ALLOWED },
        ];
        let changed = changed.into_iter().chain(capabilities.map(|it| spec(&image(), &config(), it)));
        for spec in changed {
            assert_ne!(spec.fingerprint, first, "{:?}", spec.body);
        }
    }

    /// Any other text replaces the container of every machine at its next boot.
    #[test]
    fn the_container_is_the_golden_one() {
        let body = serde_json::to_value(spec(&image(), &config(), ALLOWED).body).unwrap();
        expect_file!["spec/container.json"].assert_eq(&serde_json::to_string_pretty(&body).unwrap());
    }

    #[test]
    fn the_container_is_confined() {
        let body = spec(&image(), &config(), ALLOWED).body;
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
    fn the_memory_limit_follows_the_machine() {
        let limit = |memory| Capabilities { memory, ..ALLOWED }.limit() / MIB;
        assert_eq!(limit(2000 * MIB), 1472);
        assert_eq!(limit(2001 * MIB), 1472);
        assert_eq!(limit(900 * MIB), 768);
    }

    #[test]
    fn a_one_off_has_the_same_state_and_no_way_out() {
        let (image, data, config) = (image(), data(), config());
        let inputs = Inputs { image: &image, data: &data, config: &config, capabilities: ALLOWED };
        let body = inputs.one_off(&["config", "validate"]);
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!((host.port_bindings, host.restart_policy, body.exposed_ports), (None, None, None));
        assert_eq!(body.cmd.unwrap(), ["node", "openclaw.mjs", "config", "validate"]);
        assert_eq!(host.mounts.unwrap().len(), 2);
    }
}
