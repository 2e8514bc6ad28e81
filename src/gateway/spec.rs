//! The desired container: a pure function of image, directories, attributes and machine.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding, RestartPolicy,
    RestartPolicyNameEnum,
};
use sha2::{Digest as _, Sha256};

use super::openclaw_json::INNER_PORT;
use super::{Gateway, NAME, PROGRAM, SPEC_LABEL, env};
use crate::config::keys::{MEMORY, PIDS};
use crate::config::{ContainerRoot, GatewayConfig, LEAST_MEMORY_BYTES, Limits};
use crate::docker::Engine;
use crate::host::{Access, Host};
use crate::image::Image;
use crate::memory;
use crate::paths::{CA_BUNDLE, SETTINGS_PATCH, SHIELD_IN_FORCE, STATE_ALIAS, THIS_BOOT};
use crate::state::DataDir;
use crate::text::{MIB, hex};

/// Where the gateway keeps the key of its stored logins; upstream mounts it apart from the state.
pub(super) const CONFIG: &str = "/home/node/.config/openclaw";

/// The image's user `node`, as numbers.
const USER: &str = "1000:1000";

/// Upstream's own limit for a gateway in a shared host (`openclaw fleet`).
const PIDS_LIMIT: u32 = 512;

/// The grace for a gateway that stops, in seconds: it drains active work for up to 325 s.
pub(super) const STOP_SECONDS: i32 = 330;

/// The container's share of the machine's memory; the rest is for Docker and the system.
const MEMORY_PERCENT: u64 = 75;

/// The limit is a multiple of this: the slightly different total of another kernel changes nothing.
const MEMORY_STEP_BYTES: u64 = 64 * MIB;

/// Directories that programs in the container write to and that need not outlive it: in memory, bounded. `~/.local/bin`
/// is in the image's `PATH`. Other caches are below the state (`XDG_CACHE_HOME`).
const SCRATCH: [&str; 3] = ["/tmp", "/home/node/.npm", "/home/node/.local"];

/// The one of them for everybody's temporary files.
pub(super) const TMP: &str = "/tmp";

/// The size of each of them, as a share of the machine's memory.
const SCRATCH_PERCENT: u64 = 10;

/// The label with the boot in which a container with a writable root was made: it is not used in the next one.
const BOOT_LABEL: &str = "openclaw-init.boot";

/// The label with the digest of the CAs in the mounted file, which the gateway reads when it starts.
const CA_LABEL: &str = "openclaw-init.ca-certificates";

/// The health check of a gateway with TLS, for Node. The image's own knows only plain HTTP.
const TLS_HEALTH_CHECK: &str = include_str!("spec/tls-health-check.js");

/// What the containers of one gateway are made from.
#[derive(Debug, Clone)]
pub(super) struct Inputs<'a> {
    image: &'a Image,
    data: &'a DataDir,
    config: &'a GatewayConfig,
    has_tls: bool,
    capabilities: Capabilities,
}

/// What the machine and its engine allow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Capabilities {
    /// `MemTotal` in bytes.
    memory: u64,
    /// Whether the engine can limit a container's memory.
    memory_limit: bool,
    /// Whether the engine gives root in a container another number (`userns-remap`): then the state would be foreign.
    remaps_users: bool,
    /// The kernel's name for this boot.
    boot_id: String,
}

impl Capabilities {
    /// Warns of limits that cannot be kept.
    async fn observe(host: &Host, engine: &Engine, limits: Limits) -> Result<Self> {
        let memory = memory::total(host).await?;
        let info = engine.info().await?;
        let memory_limit = info.memory_limit.unwrap_or(false);
        let has_no_effect = [
            (MEMORY, limits.memory.is_some() && !memory_limit),
            (PIDS, limits.pids.is_some() && info.pids_limit == Some(false)),
        ];
        for (key, _) in has_no_effect.into_iter().filter(|(_, has_none)| *has_none) {
            host.warn(format!(
                "{key} has no effect: the kernel gives this engine no means for it (`sudo docker info`)"
            ));
        }
        let mut security = info.security_options.iter().flatten();
        let remaps_users = security.any(|option| option.split(',').any(|part| part == "name=userns"));
        Ok(Self { memory, memory_limit, remaps_users, boot_id: host.boot_id().await? })
    }

    /// How many bytes the container may use.
    fn memory(&self, limits: Limits) -> u64 {
        limits.memory.unwrap_or_else(|| self.share(MEMORY_PERCENT).max(LEAST_MEMORY_BYTES))
    }

    /// The directories in memory, with their mount options.
    fn scratch(&self, limits: Limits) -> HashMap<String, String> {
        let size = self.share(SCRATCH_PERCENT).max(MEMORY_STEP_BYTES);
        let options = |path| match path {
            TMP => format!("exec,nosuid,nodev,mode=1777,size={}", limits.tmp.unwrap_or(size)),
            _ => format!("exec,nosuid,nodev,mode=0755,uid=1000,gid=1000,size={size}"),
        };
        SCRATCH.map(|path| (path.to_owned(), options(path))).into()
    }

    /// So many percent of the machine's memory, in bytes.
    fn share(&self, percent: u64) -> u64 {
        self.memory * percent / 100 / MEMORY_STEP_BYTES * MEMORY_STEP_BYTES
    }
}

/// The container as it should be created, labelled with the fingerprint of all of it.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) body: ContainerCreateBody,
    pub(super) fingerprint: String,
}

impl<'a> Inputs<'a> {
    /// `has_tls`: the gateway's port has TLS.
    pub(super) async fn observe(gateway: Gateway<'a>, image: &'a Image, has_tls: bool) -> Result<Self> {
        let Gateway { host, engine, data, config } = gateway;
        if config.root == ContainerRoot::Writable {
            host.ensure_file(THIS_BOOT, "", Access::root(0o644)).await.context("making what is of this boot")?;
        }
        let capabilities = Capabilities::observe(host, engine, config.limits).await?;
        Ok(Self { image, data, config, has_tls, capabilities })
    }

    /// The gateway's container. No secret is part of it: they are in the state directory's `.env`.
    pub(super) fn gateway(&self) -> Result<Spec> {
        let command = ["gateway", "--bind", "lan", "--port", &INNER_PORT.to_string()];
        // In the container, and on the VM.
        let ports = || {
            let channels = self.config.channel_ports.iter().map(|port| (*port, *port));
            [(INNER_PORT, self.config.port)]
                .into_iter()
                .chain(channels)
                .map(|(inner, outer)| (in_container(inner), outer))
        };
        let is_writable = self.config.root == ContainerRoot::Writable;
        let mut body = self.body(&command, |host| {
            if is_writable {
                host.mounts.get_or_insert_default().push(read_only(THIS_BOOT));
            }
            let binding = |(port, outer): (String, u16)| {
                let (host_ip, host_port) = (self.config.bind.to_string(), outer.to_string());
                (port, Some(vec![PortBinding { host_ip: Some(host_ip), host_port: Some(host_port) }]))
            };
            host.port_bindings = Some(ports().map(binding).collect());
            host.restart_policy = Some(RestartPolicy {
                // Not `on-failure`: a restart inside the process has ended with code 0 (openclaw issue 73178).
                name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
                maximum_retry_count: None,
            });
        });
        body.exposed_ports = Some(ports().map(|(port, _)| port).collect());
        body.healthcheck = Some(self.health_check());
        let mut labels = HashMap::new();
        if !self.config.ca_certificates.is_empty() {
            labels.insert(CA_LABEL.to_owned(), hex(Sha256::digest(self.config.ca_certificates.concat())));
        }
        if is_writable {
            labels.insert(BOOT_LABEL.to_owned(), self.capabilities.boot_id.clone());
        }
        body.labels = Some(labels.clone());
        let fingerprint = fingerprint(&body, self.image)?;
        labels.insert(SPEC_LABEL.to_owned(), fingerprint.clone());
        body.labels = Some(labels);
        Ok(Spec { body, fingerprint })
    }

    /// The engine counts no failed check for as long as a start may take.
    fn health_check(&self) -> HealthConfig {
        let words = ["CMD", "node", "-e", TLS_HEALTH_CHECK.trim()].map(str::to_owned);
        // An empty test means the image's own.
        let test = if self.has_tls { words.to_vec() } else { Vec::new() };
        let start_period = i64::try_from(self.config.ready_timeout.as_nanos()).ok();
        HealthConfig { test: Some(test), start_period, ..Default::default() }
    }

    /// A container that repairs the state. With network: the repair may bring plugins up to the image's version.
    pub(super) fn doctor(&self) -> ContainerCreateBody {
        self.command(&["doctor", "--fix", "--non-interactive"], None)
    }

    /// A container that edits `openclaw.json` with the gateway's own tool, without network. What is changed is in a
    /// file: everybody could read its arguments.
    pub(super) fn patch(&self, replaced: &[String]) -> ContainerCreateBody {
        let replaced = replaced.iter().flat_map(|path| ["--replace-path", path]);
        let command: Vec<_> = ["config", "patch", "--file", SETTINGS_PATCH].into_iter().chain(replaced).collect();
        let mut body = self.command(&command, Some("none".to_owned()));
        body.host_config.get_or_insert_default().mounts.get_or_insert_default().push(read_only(SETTINGS_PATCH));
        body
    }

    fn command(&self, command: &[&str], network: Option<String>) -> ContainerCreateBody {
        let mut body = self.body(command, |host| host.network_mode = network);
        body.healthcheck = Some(no_health_check());
        body
    }

    /// What every container has in common; `adapt` adds to its host's part. Entry point and working directory are the
    /// image's.
    fn body(&self, command: &[&str], adapt: impl FnOnce(&mut HostConfig)) -> ContainerCreateBody {
        let Self { image, data, config, ref capabilities, .. } = *self;
        let mut mounts = vec![bind(&data.state, STATE_ALIAS), bind(&data.config, CONFIG)];
        let files =
            [(config.metadata_access.is_shielded(), SHIELD_IN_FORCE), (!config.ca_certificates.is_empty(), CA_BUNDLE)];
        mounts.extend(files.into_iter().filter(|(is_there, _)| *is_there).map(|(_, file)| read_only(file)));
        let log = [("max-size", "10m"), ("max-file", "3")];
        let memory = capabilities.memory(config.limits);
        let mut host = HostConfig {
            mounts: Some(mounts),
            readonly_rootfs: (config.root == ContainerRoot::ReadOnly).then_some(true),
            tmpfs: Some(capabilities.scratch(config.limits)),
            // Programs of the VM, such as a local model, under the name that Docker Desktop gives them.
            extra_hosts: Some(vec!["host.docker.internal:host-gateway".to_owned()]),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            userns_mode: capabilities.remaps_users.then(|| "host".to_owned()),
            pids_limit: Some(config.limits.pids.unwrap_or(PIDS_LIMIT).into()),
            init: (!image.has_init).then_some(true),
            memory: capabilities.memory_limit.then(|| i64::try_from(memory).unwrap_or(i64::MAX)),
            log_config: Some(HostConfigLogConfig {
                typ: Some("local".to_owned()),
                config: Some(log.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            }),
            ..Default::default()
        };
        adapt(&mut host);
        ContainerCreateBody {
            // The gateway's owner lease is keyed by the host name (openclaw issue 155644).
            hostname: Some(NAME.to_owned()),
            user: Some(USER.to_owned()),
            env: Some(env::variables(&config.env, memory)),
            cmd: Some(PROGRAM.iter().chain(command).map(|&word| word.to_owned()).collect()),
            image: Some(image.reference.to_string()),
            stop_timeout: Some(STOP_SECONDS.into()),
            host_config: Some(host),
            ..Default::default()
        }
    }
}

/// The engine's name of a port that a program in the container listens on.
pub(super) fn in_container(port: u16) -> String {
    format!("{port}/tcp")
}

fn bind(source: &Path, target: &str) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        ..Default::default()
    }
}

/// A file of this program's, under the name that it has on the machine.
fn read_only(file: &str) -> Mount {
    Mount { read_only: Some(true), ..bind(Path::new(file), file) }
}

/// Of a container that ends with its command.
pub(super) fn no_health_check() -> HealthConfig {
    HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }
}

fn fingerprint(body: &ContainerCreateBody, image: &Image) -> Result<String> {
    // Through `Value`, whose objects are sorted by key: the body's own maps have no order.
    let value = serde_json::to_value((body, &image.id)).context("describing the container")?;
    Ok(hex(Sha256::digest(value.to_string())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use expect_test::expect_file;

    use super::*;
    use crate::config::MetadataAccess;
    use crate::reference::{ImageReference, PinnedImage};

    fn allowed() -> Capabilities {
        let boot_id = "b".to_owned();
        Capabilities { memory: 4 << 30, memory_limit: true, remaps_users: false, boot_id }
    }

    fn image() -> Image {
        let reference: ImageReference = "x/y:1".parse().unwrap();
        let base = PinnedImage { reference: reference.clone(), digest: None };
        Image { reference, base, id: "sha256:1".to_owned(), version: "1".into(), has_init: true }
    }

    fn data() -> DataDir {
        DataDir::at("/data", false)
    }

    fn config() -> GatewayConfig {
        GatewayConfig { port: 8080, ..GatewayConfig::default() }
    }

    fn spec(image: &Image, config: &GatewayConfig, capabilities: Capabilities) -> Spec {
        Inputs { image, data: &data(), config, has_tls: false, capabilities }.gateway().unwrap()
    }

    #[test]
    fn a_gateway_with_tls_is_checked_with_tls() {
        let (image, data, config) =
            (image(), data(), GatewayConfig { ready_timeout: Duration::from_secs(60), ..config() });
        let inputs = Inputs { image: &image, data: &data, config: &config, has_tls: true, capabilities: allowed() };
        let check = inputs.gateway().unwrap().body.healthcheck.unwrap();
        assert_eq!(check.start_period, Some(60_000_000_000));
        assert!(check.test.unwrap().last().unwrap().contains("https"));
    }

    /// Under `userns-remap` root in the container would be another number, and the state somebody else's.
    #[test]
    fn an_engine_that_remaps_users_remaps_none_of_the_gateways() {
        for (remaps_users, mode) in [(true, Some("host".to_owned())), (false, None)] {
            let body = spec(&image(), &config(), Capabilities { remaps_users, ..allowed() }).body;
            assert_eq!(body.host_config.unwrap().userns_mode, mode);
        }
    }

    #[test]
    fn every_input_changes_the_fingerprint_and_nothing_else_does() {
        let of = |image: &Image, config: &GatewayConfig, capabilities| spec(image, config, capabilities).fingerprint;
        let first = of(&image(), &config(), allowed());
        for _ in 0..20 {
            assert_eq!(of(&image(), &config(), allowed()), first);
        }
        assert_eq!(of(&image(), &config(), Capabilities { memory: (4 << 30) + 4096, ..allowed() }), first);
        let changed = [
            of(&Image { id: "sha256:2".to_owned(), ..image() }, &config(), allowed()),
            of(&Image { has_init: false, ..image() }, &config(), allowed()),
            of(&image(), &GatewayConfig { port: 8081, ..config() }, allowed()),
            of(&image(), &GatewayConfig { bind: [0, 0, 0, 0].into(), ..config() }, allowed()),
            of(&image(), &GatewayConfig { channel_ports: vec![3978], ..config() }, allowed()),
            of(&image(), &GatewayConfig { env: [("A".to_owned(), "b".to_owned())].into(), ..config() }, allowed()),
            of(&image(), &config(), Capabilities { memory: 8 << 30, ..allowed() }),
            of(&image(), &config(), Capabilities { memory_limit: false, ..allowed() }),
            of(&image(), &config(), Capabilities { remaps_users: true, ..allowed() }),
            of(&image(), &GatewayConfig { metadata_access: MetadataAccess::Allow, ..config() }, allowed()),
            of(&image(), &writable(), allowed()),
            of(&image(), &trusting("a"), allowed()),
            of(&image(), &limited(), allowed()),
        ];
        for fingerprint in changed {
            assert_ne!(fingerprint, first);
        }
    }

    fn trusting(certificate: &str) -> GatewayConfig {
        GatewayConfig { ca_certificates: vec![certificate.to_owned()], ..config() }
    }

    #[test]
    fn a_ca_is_read_by_a_gateway_that_starts() {
        let of = |certificate| spec(&image(), &trusting(certificate), allowed());
        assert_ne!(of("a").fingerprint, of("b").fingerprint);
        let mounts = of("a").body.host_config.unwrap().mounts.unwrap();
        assert_eq!((mounts[3].source.as_deref(), mounts[3].read_only), (Some(CA_BUNDLE), Some(true)));
    }

    fn writable() -> GatewayConfig {
        GatewayConfig { root: ContainerRoot::Writable, ..config() }
    }

    /// What a program has changed in its container does not outlive the boot: either it can change nothing, or the
    /// container is made anew.
    #[test]
    fn only_a_container_that_can_be_changed_belongs_to_a_boot() {
        let boot = |config: &GatewayConfig, boot_id: &str| {
            let boot_id = boot_id.to_owned();
            spec(&image(), config, Capabilities { boot_id, ..allowed() })
        };
        assert_eq!(boot(&config(), "one").fingerprint, boot(&config(), "two").fingerprint);
        assert_eq!(boot(&writable(), "one").fingerprint, boot(&writable(), "one").fingerprint);
        assert_ne!(boot(&writable(), "one").fingerprint, boot(&writable(), "two").fingerprint);
        let is_read_only = |config| boot(config, "one").body.host_config.unwrap().readonly_rootfs;
        assert_eq!((is_read_only(&config()), is_read_only(&writable())), (Some(true), None));
    }

    /// Any other text replaces the container of every machine at its next boot.
    #[test]
    fn the_container_is_the_golden_one() {
        let body = serde_json::to_value(spec(&image(), &config(), allowed()).body).unwrap();
        expect_file!["spec/container.json"].assert_eq(&serde_json::to_string_pretty(&body).unwrap());
    }

    #[test]
    fn the_container_is_confined() {
        let body = spec(&image(), &config(), allowed()).body;
        let host = body.host_config.unwrap();
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
        assert_eq!((host.binds, host.privileged, host.init), (None, None, None));
        assert_eq!(host.memory, Some(3 << 30));
        let mounts: Vec<_> = host.mounts.unwrap().into_iter().map(|mount| (mount.typ, mount.source.unwrap())).collect();
        let sources = ["/data/openclaw", "/data/config-openclaw", SHIELD_IN_FORCE];
        assert_eq!(mounts, sources.map(|source| (Some(MountType::BIND), source.to_owned())));
        let scratch = host.tmpfs.unwrap();
        assert_eq!(scratch.len(), SCRATCH.len());
        assert!(scratch.values().all(|options| options.ends_with(",size=402653184")), "{scratch:?}");
        let ports = host.port_bindings.unwrap();
        let expected = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some("8080".to_owned()) };
        assert_eq!(ports, HashMap::from([("18789/tcp".to_owned(), Some(vec![expected]))]));
    }

    #[test]
    fn a_port_of_a_channel_is_published_where_the_gateway_is() {
        let config = GatewayConfig { channel_ports: vec![1455, 3978], ..config() };
        let body = spec(&image(), &config, allowed()).body;
        assert_eq!(body.exposed_ports.unwrap(), ["18789/tcp", "1455/tcp", "3978/tcp"]);
        let bound = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some("3978".to_owned()) };
        let ports = body.host_config.unwrap().port_bindings.unwrap();
        assert_eq!((ports.len(), &ports["3978/tcp"]), (3, &Some(vec![bound])));
    }

    #[test]
    fn the_memory_limit_follows_the_machine() {
        let limit = |memory| Capabilities { memory, ..allowed() }.memory(Limits::default()) / MIB;
        assert_eq!(limit(2000 * MIB), 1472);
        assert_eq!(limit(2001 * MIB), 1472);
        assert_eq!(limit(900 * MIB), 768);
    }

    fn limited() -> GatewayConfig {
        let limits = Limits { memory: Some(2 << 30), pids: Some(1024), tmp: Some(256 * MIB) };
        GatewayConfig { limits, ..config() }
    }

    #[test]
    fn limits_that_are_set_are_the_containers() {
        let body = spec(&image(), &limited(), allowed()).body;
        assert!(body.env.unwrap().contains(&"NODE_OPTIONS=--max-old-space-size=1024".to_owned()));
        let host = body.host_config.unwrap();
        assert_eq!((host.memory, host.pids_limit), (Some(2 << 30), Some(1024)));
        let tmpfs = host.tmpfs.unwrap();
        assert!(tmpfs[TMP].ends_with(",size=268435456"), "{tmpfs:?}");
        assert!(tmpfs.iter().all(|(path, options)| path == TMP || options.ends_with(",size=402653184")), "{tmpfs:?}");
    }

    #[test]
    fn a_one_off_has_the_same_state_and_no_way_out() {
        let (image, data, config) = (image(), data(), config());
        let inputs = Inputs { image: &image, data: &data, config: &config, has_tls: false, capabilities: allowed() };
        let body = inputs.patch(&["models.providers.x.models".to_owned()]);
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!((host.port_bindings, host.restart_policy, body.exposed_ports), (None, None, None));
        let replaced = ["--replace-path", "models.providers.x.models"];
        let command = [&["node", "openclaw.mjs", "config", "patch", "--file", SETTINGS_PATCH][..], &replaced].concat();
        assert_eq!(body.cmd.unwrap(), command);
        let mounts = host.mounts.unwrap();
        assert_eq!((mounts.len(), mounts[3].read_only), (4, Some(true)));
    }
}
