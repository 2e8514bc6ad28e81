//! Instance attributes to a checked configuration. All values are checked at once; after it no stage checks one again.

mod attributes;
pub mod baked;
mod ca;
mod check;
pub mod env;
mod extras;
mod ingress;
pub(crate) mod keys;
mod owners;
mod publish;
mod secret_version;
mod settings;
mod source;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Result;

use crate::paths::CA_BUNDLE;
use crate::reference::ImageReference;
use crate::secret;
use crate::version::{GatewayVersion, Variant, VersionChoice};

pub use baked::{check_limits, read};
pub use ca::MOST_CERTIFICATES;
pub(crate) use check::{is_request_id, token as check_token};
pub use extras::{Arch, Binary, Extras};
pub use ingress::{Domain, Ingress};
pub use publish::OpenPath;
pub use secret_version::{SecretVersion, TokenSource};
pub use settings::{Leaf, SettingsPatch, display as display_path, origins};
pub use source::SourceCommit;

use attributes::Attributes;
use check::Checked;

/// The gateway version for an empty state, unless the operator chooses one.
pub const DEFAULT_VERSION: &str = match option_env!("OPENCLAW_INIT_DEFAULT_VERSION") {
    Some(version) => version,
    None => "2026.9.6",
};

/// The published port on the VM, the gateway's own default.
pub const DEFAULT_PORT: u16 = 18789;

/// The port of the bridge's address at which our server stands in for the metadata server.
pub const IDENTITY_PORT: u16 = 18780;

/// How long a start of the gateway may take: upstream's own budget. A check of the databases on a cold disk alone took
/// 45 s (openclaw issue 150762).
pub const DEFAULT_READY_TIMEOUT: Duration = Duration::from_secs(300);

/// Over how long a fleet applies a change of the project's attributes.
const DEFAULT_APPLY_SPREAD: Duration = Duration::from_secs(600);

/// With less memory the gateway is killed as soon as it is ready (measured: 768 MiB runs, 640 MiB does not).
pub const LEAST_MEMORY_BYTES: u64 = 768 << 20;

/// Base of Docker's apt repositories.
pub const DEFAULT_DOCKER_APT_URL: &str = "https://download.docker.com/linux";

/// Everything the stages need to know, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the state lives.
    pub disk: DiskConfig,
    /// Where the engine comes from.
    pub docker: DockerConfig,
    /// Which image, from where.
    pub image: ImageConfig,
    /// The container.
    pub gateway: GatewayConfig,
    /// `openclaw-domain`: HTTPS on this machine.
    pub domain: Option<Domain>,
    /// Swap on the boot disk (`openclaw-swap`).
    pub swap: SwapChoice,
    /// Whether the machine is watched between the runs (`openclaw-watch`).
    pub is_watched: bool,
    /// When changed attributes are applied (`openclaw-apply`).
    pub apply: ApplyChoice,
    /// Over how long a fleet applies a change of the project's attributes (`openclaw-apply-spread`).
    pub apply_spread: Duration,
    /// Requests to be paired that are approved (`openclaw-approve`).
    pub approve: Vec<String>,
    /// Echoed in the report (`openclaw-run-id`).
    pub run_id: Option<String>,
}

/// The disk stage's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// `openclaw-data-disk`.
    pub choice: DiskChoice,
    /// `openclaw-data-disk-proof`.
    pub proof: ProofChoice,
}

/// `openclaw-data-disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskChoice {
    /// Not set: the default name if such a disk is attached, else the boot disk with a warning.
    Default,
    /// This device name, and nothing else.
    Named(String),
    /// `none`: the boot disk, deliberately.
    BootDisk,
}

/// `openclaw-data-disk-proof`: what is read of a blank disk before it is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofChoice {
    /// Every block where it can be read in time; else, on a large disk, samples.
    Auto,
    /// Samples, however long that takes.
    Sampled,
    /// Every block, however long that takes.
    Full,
}

/// The Docker stage's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// `openclaw-docker`.
    pub source: DockerSource,
    /// `openclaw-docker-apt-url`: base of Docker's apt repositories, without the distribution and a final slash.
    pub apt_url: String,
}

/// `openclaw-docker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DockerSource {
    /// Docker's repository, else the distribution's packages.
    Auto,
    /// Docker's repository only.
    DockerCe,
    /// The distribution's packages only.
    Distro,
}

/// The image stage's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// `openclaw-version`, when the operator set it.
    pub version: Option<VersionChoice>,
    /// `openclaw-image-variant`, which is part of the versions here.
    pub variant: Option<Variant>,
    /// `openclaw-image`: an explicit reference.
    pub reference: Option<ImageReference>,
    /// `openclaw-image-source`.
    pub source: ImageSource,
    /// `openclaw-registry-mirror`: registry and path that have what Docker Hub has.
    pub mirror: Option<String>,
    /// `openclaw-npm-registry`.
    pub npm_registry: Option<String>,
    /// What the image gets beside the gateway.
    pub extras: Extras,
    /// `openclaw-update-accept`: a version that does not load what the one before had is taken.
    pub accepts_loss: bool,
    /// The version for an empty state when the operator chose none.
    pub default_version: GatewayVersion,
    /// The image for it, where it is not the official one: what the boot disk was baked with.
    pub default_reference: Option<ImageReference>,
}

impl ImageConfig {
    /// The operator's choice: `openclaw-image`, else what is built from source, else `openclaw-version`.
    pub fn choice(&self) -> Option<String> {
        let version = self.version.as_ref();
        match (&self.reference, &self.source) {
            (Some(reference), _) => Some(reference.to_string()),
            (None, ImageSource::Source(SourceCommit { commit, .. })) => {
                Some(version.map_or_else(|| commit.clone(), |version| format!("{commit} as {version}")))
            }
            (None, _) => match (version, self.variant) {
                (Some(VersionChoice::Latest), Some(variant)) => Some(format!("latest-{}", variant.name())),
                (None, Some(variant)) => Some(variant.name().to_owned()),
                _ => version.map(ToString::to_string),
            },
        }
    }

    /// The attribute that [`ImageConfig::choice`] comes from.
    pub fn choice_attribute(&self) -> &'static str {
        match (&self.reference, &self.source) {
            (Some(_), _) => keys::IMAGE,
            (None, ImageSource::Source(_)) => keys::SOURCE_REF,
            (None, _) if self.version.is_none() && self.variant.is_some() => keys::IMAGE_VARIANT,
            (None, _) => keys::VERSION,
        }
    }

    /// The version for an empty state, unless only the image tells it.
    pub fn known_version(&self) -> Option<&GatewayVersion> {
        match (&self.reference, &self.version) {
            (None, Some(VersionChoice::Exact(version))) => Some(version),
            (None, None) => Some(&self.default_version),
            (None, Some(VersionChoice::Latest)) | (Some(_), _) => None,
        }
    }

    /// The same for this version, instead of any image that was named.
    #[must_use]
    pub fn of_version(self, version: VersionChoice) -> Self {
        let version = Some(in_variant(version, self.variant));
        Self { version, reference: None, default_reference: None, ..self }
    }

    /// The same for a state that is `owner`'s: a variant alone asks for no other version.
    #[must_use]
    pub fn of_owner(self, owner: &GatewayVersion) -> Self {
        if self.choice_attribute() == keys::IMAGE_VARIANT {
            self.of_version(VersionChoice::Exact(owner.clone()))
        } else {
            self
        }
    }
}

fn in_variant(version: VersionChoice, variant: Option<Variant>) -> VersionChoice {
    match (version, variant) {
        (VersionChoice::Exact(version), Some(variant)) => VersionChoice::Exact(version.in_variant(variant)),
        (version, _) => version,
    }
}

/// `openclaw-image-source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// Pull the official image.
    Release,
    /// Build from the npm package.
    Npm,
    /// Build from this commit.
    Source(SourceCommit),
}

/// The gateway stage's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// `openclaw-port`: published port on the VM.
    pub port: u16,
    /// `openclaw-bind`: published address.
    pub bind: IpAddr,
    /// `openclaw-publish`: ports that channels listen on in the container, published under the same number there.
    pub channel_ports: Vec<u16>,
    /// `openclaw-gateway-token`.
    pub token: Option<TokenSource>,
    /// `openclaw-secret-NAME`.
    pub secrets: BTreeMap<String, SecretVersion>,
    /// `openclaw-config`; with what the ingress needs, once it is known how the gateway sees this machine.
    pub settings: SettingsPatch,
    /// `openclaw-public-url`, or the address of `openclaw-domain`.
    pub ingress: Option<Ingress>,
    /// `openclaw-env-NAME`.
    pub env: BTreeMap<String, String>,
    /// `openclaw-ca-certificates`: CAs that the machine and the gateway trust, each as PEM.
    pub ca_certificates: Vec<String>,
    /// `openclaw-ready-timeout`: how long a start may take.
    pub ready_timeout: Duration,
    /// `openclaw-metadata-access`: whether containers may reach the metadata server.
    pub metadata_access: MetadataAccess,
    /// `openclaw-container-root`.
    pub root: ContainerRoot,
    /// `openclaw-memory`, `openclaw-pids` and `openclaw-tmp`.
    pub limits: Limits,
}

/// What the container may take of the machine; what is not set follows from the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Files in `/tmp`, in bytes of that memory.
    pub tmp: Option<u64>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            port: DEFAULT_PORT,
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            channel_ports: Vec::new(),
            token: None,
            secrets: BTreeMap::new(),
            settings: SettingsPatch::default(),
            ingress: None,
            env: BTreeMap::new(),
            ca_certificates: Vec::new(),
            ready_timeout: DEFAULT_READY_TIMEOUT,
            metadata_access: MetadataAccess::Block,
            root: ContainerRoot::ReadOnly,
            limits: Limits::default(),
        }
    }
}

impl GatewayConfig {
    /// The same for a gateway that sees this machine at `host`, as only the engine knows.
    #[must_use]
    pub fn seeing_host_at(mut self, host: IpAddr) -> Self {
        if let Some(ingress) = &self.ingress {
            let proxies = ingress.trusted(self.bind, host);
            self.settings.serve_through(ingress.attribute, &ingress.origin, &proxies, self.port);
        }
        self
    }
}

/// `openclaw-container-root`: what of the container's own files its programs can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerRoot {
    /// Nothing but the state and a few directories in memory.
    ReadOnly,
    /// Everything, until the next boot.
    Writable,
}

/// `openclaw-swap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapChoice {
    /// On a machine with little memory and no swap of its own.
    Auto,
    /// None of ours.
    Off,
    /// A file of so many bytes, also beside other swap.
    Size(u64),
}

/// `openclaw-metadata-access`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataAccess {
    /// Containers cannot reach the metadata server, except its DNS.
    Block,
    /// In its place they reach a server of ours, which has tokens of this account (`openclaw-metadata-account`).
    Identity(String),
    /// They can.
    Allow,
}

impl MetadataAccess {
    /// Whether the metadata server itself is closed to containers.
    pub fn is_shielded(&self) -> bool {
        *self != Self::Allow
    }
}

/// `openclaw-apply`: when changed attributes are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplyChoice {
    /// By a run, seconds later.
    Live,
    /// At the next boot.
    Boot,
}

impl ApplyChoice {
    /// What these attributes, not yet checked, ask for. A run says what is wrong with them.
    pub fn of(attributes: &BTreeMap<String, String>) -> Self {
        let value = attributes.get(keys::APPLY).map(|value| value.trim());
        value.and_then(|value| apply(value).ok()).unwrap_or(Self::Live)
    }
}

/// `openclaw-apply-spread` among these attributes, not yet checked.
pub fn apply_spread(attributes: &BTreeMap<String, String>) -> Duration {
    let value = attributes.get(keys::APPLY_SPREAD).map(|value| value.trim());
    value.and_then(|value| check::apply_spread(value).ok()).unwrap_or(DEFAULT_APPLY_SPREAD)
}

impl Config {
    /// Checks the attributes. Returns the configuration and warnings (unknown `openclaw-*` keys with the
    /// nearest known name, values that weaken the machine).
    ///
    /// Fails with [`ConfigInvalid`](crate::error::Code::ConfigInvalid) and names every wrong value at once.
    pub fn from_attributes(given: &BTreeMap<String, String>) -> Result<(Self, Vec<String>)> {
        let mut attributes = Attributes::new(given);
        let port = attributes.get(keys::PORT, check::port).unwrap_or(DEFAULT_PORT);
        let (open_paths, channel_ports) = publish::read(&mut attributes, port);
        let domain = ingress::domain(&mut attributes, open_paths);
        let ca_certificates = attributes.get_secret(keys::CA_CERTIFICATES, ca::certificates).unwrap_or_default();
        let image = image(&mut attributes);
        let gateway = GatewayConfig {
            ca_certificates,
            ..gateway(&mut attributes, domain.as_ref(), port, channel_ports, image.variant)
        };
        let config = Self {
            disk: disk(&mut attributes),
            docker: docker(&mut attributes),
            gateway,
            image,
            domain,
            swap: attributes.get(keys::SWAP, swap).unwrap_or(SwapChoice::Auto),
            is_watched: attributes.get(keys::WATCH, on_or_off).unwrap_or(true),
            apply: attributes.get(keys::APPLY, apply).unwrap_or(ApplyChoice::Live),
            apply_spread: attributes.get(keys::APPLY_SPREAD, check::apply_spread).unwrap_or(DEFAULT_APPLY_SPREAD),
            approve: attributes.get(keys::APPROVE, check::request_ids).unwrap_or_default(),
            run_id: attributes.get(keys::RUN_ID, check::run_id),
        };
        attributes.outcome()?;
        let warnings = config.warnings().chain(given.keys().filter_map(|key| keys::unknown(key))).collect();
        Ok((config, warnings))
    }

    fn warnings(&self) -> impl Iterator<Item = String> {
        let token = matches!(self.gateway.token, Some(TokenSource::Literal(_))).then(|| {
            "openclaw-gateway-token is a literal: everyone who may read this VM's metadata can read it; without the \
             attribute a token is generated on the VM and kept, and secret:projects/PROJECT/secrets/SECRET takes it from \
             Secret Manager"
                .to_owned()
        });
        let bind = (!self.gateway.bind.is_loopback()).then(|| {
            format!(
                "openclaw-bind={} publishes the gateway beyond this VM, without TLS: only the firewall and the token \
                 protect it",
                self.gateway.bind
            )
        });
        token.into_iter().chain(bind).chain(self.visible_secrets()).chain(self.gateway.settings.warnings())
    }

    /// About variables whose name says that they are secret: their values are not.
    fn visible_secrets(&self) -> Option<String> {
        let secrets = self.gateway.env.iter().filter(|(name, value)| secret::is_secret(name, value));
        let keys: Vec<_> = secrets.map(|(name, _)| format!("{}{name}", keys::ENV_PREFIX)).collect();
        (!keys.is_empty()).then(|| {
            format!(
                "{}: a secret by its name, and everyone who may read this VM's metadata or run `docker inspect` on it \
                 can read the value; openclaw-secret-NAME, which takes it from Secret Manager, or a line in .env in the \
                 state directory is seen by neither",
                keys.join(", ")
            )
        })
    }
}

fn disk(attributes: &mut Attributes<'_>) -> DiskConfig {
    DiskConfig {
        choice: attributes.get(keys::DATA_DISK, disk_choice).unwrap_or(DiskChoice::Default),
        proof: attributes.get(keys::DATA_DISK_PROOF, proof_choice).unwrap_or(ProofChoice::Auto),
    }
}

fn docker(attributes: &mut Attributes<'_>) -> DockerConfig {
    DockerConfig {
        source: attributes.get(keys::DOCKER, docker_source).unwrap_or(DockerSource::Auto),
        apt_url: attributes
            .get(keys::DOCKER_APT_URL, check::base_url)
            .unwrap_or_else(|| DEFAULT_DOCKER_APT_URL.to_owned()),
    }
}

fn image(attributes: &mut Attributes<'_>) -> ImageConfig {
    let version = attributes.get(keys::VERSION, check::version);
    let variant = attributes.get(keys::IMAGE_VARIANT, image_variant);
    let default_version = GatewayVersion::from(DEFAULT_VERSION);
    if let (Some(VersionChoice::Exact(version)), Some(variant)) = (&version, variant)
        && version.variant().is_some_and(|named| named != variant)
    {
        let complaint =
            format!("openclaw-version={version} and openclaw-image-variant={} contradict each other", variant.name());
        attributes.reject(keys::IMAGE_VARIANT, complaint);
    }
    let image = ImageConfig {
        version: version.map(|version| in_variant(version, variant)),
        variant,
        reference: attributes.get(keys::IMAGE, check::image),
        source: image_source(attributes),
        mirror: attributes.get(keys::REGISTRY_MIRROR, check::registry_path),
        npm_registry: attributes.get(keys::NPM_REGISTRY, check::base_url),
        extras: Extras {
            binaries: attributes.get(keys::BINARIES, |value| extras::binaries(value, Arch::OURS)).unwrap_or_default(),
            packages: attributes.get(keys::APT_PACKAGES, extras::packages).unwrap_or_default(),
        },
        accepts_loss: attributes.get(keys::UPDATE_ACCEPT, accepted).is_some(),
        default_version: variant.map_or_else(|| default_version.clone(), |variant| default_version.in_variant(variant)),
        default_reference: None,
    };
    if variant.is_some() && (image.reference.is_some() || image.source != ImageSource::Release) {
        attributes.reject(
            keys::IMAGE_VARIANT,
            "openclaw-image-variant is of upstream's images: remove it, or openclaw-image and openclaw-image-source",
        );
    }
    if image.reference.is_some() && image.source != ImageSource::Release {
        attributes.reject(
            keys::IMAGE,
            "openclaw-image and openclaw-image-source=npm or source contradict each other: remove one of them",
        );
    }
    image
}

fn image_source(attributes: &mut Attributes<'_>) -> ImageSource {
    let words = [("release", "release"), ("npm", "npm"), ("source", "source")];
    let named = attributes.get(keys::IMAGE_SOURCE, |value| check::one_of(value, &words));
    let commit = attributes.get(keys::SOURCE_REF, source::pinned_commit);
    match named {
        Some("npm") => ImageSource::Npm,
        Some("source") => source_commit(attributes, commit).map_or(ImageSource::Release, ImageSource::Source),
        _ => ImageSource::Release,
    }
}

/// The commit with its URL, which is checked only when it is used: a template without a commit says nothing.
fn source_commit(attributes: &mut Attributes<'_>, commit: Option<SourceCommit>) -> Option<SourceCommit> {
    let Some(commit) = commit else {
        attributes.reject(
            keys::IMAGE_SOURCE,
            "openclaw-image-source=source needs openclaw-source-ref, the commit id of 40 hex digits: this version of \
             openclaw-init knows no version's commit",
        );
        return None;
    };
    let template = attributes.get(keys::SOURCE_URL, |value| Ok(value.to_owned()));
    let located = source::located(commit, template.as_deref());
    located.map_err(|allowed| attributes.reject(keys::SOURCE_URL, format!("{} {allowed}", keys::SOURCE_URL))).ok()
}

fn gateway(
    attributes: &mut Attributes<'_>,
    domain: Option<&Domain>,
    port: u16,
    channel_ports: Vec<u16>,
    variant: Option<Variant>,
) -> GatewayConfig {
    let default = GatewayConfig::default();
    let mut settings: SettingsPatch = attributes.get_secret(keys::CONFIG, settings::settings).unwrap_or_default();
    owners::read(attributes, &mut settings);
    let no_sandbox = ["browser", "noSandbox"];
    if variant == Some(Variant::Browser) && !settings.sets(&no_sandbox) {
        // Chromium's own sandbox needs rights that the container, which is one, does not have.
        settings.set(keys::IMAGE_VARIANT, &no_sandbox, true.into());
    }
    let bind = attributes.get(keys::BIND, check::bind).unwrap_or(default.bind);
    if let Some(domain) = domain {
        ingress::check_domain(attributes, domain, &settings, bind, port);
    }
    let metadata_access = metadata_access(attributes, port, &channel_ports);
    GatewayConfig {
        port,
        bind,
        channel_ports,
        token: attributes.get_secret(keys::GATEWAY_TOKEN, check::token_source),
        secrets: settings.secrets().clone().into_iter().chain(attributes.secrets()).collect(),
        ingress: ingress::read(attributes, &settings, domain),
        settings,
        env: variables(attributes),
        ca_certificates: default.ca_certificates,
        ready_timeout: attributes.get(keys::READY_TIMEOUT, check::ready_timeout).unwrap_or(default.ready_timeout),
        metadata_access,
        root: attributes.get(keys::CONTAINER_ROOT, container_root).unwrap_or(default.root),
        limits: Limits {
            memory: attributes.get(keys::MEMORY, check::memory_size),
            pids: attributes.get(keys::PIDS, check::pids),
            tmp: attributes.get(keys::TMP, check::tmp_size),
        },
    }
}

/// The container's variables, with those that have an attribute of their own.
fn variables(attributes: &mut Attributes<'_>) -> BTreeMap<String, String> {
    let mut env = attributes.env();
    let zone = attributes.get(keys::TIMEZONE, check::timezone);
    let bundle = attributes.has(keys::CA_CERTIFICATES).then(|| CA_BUNDLE.to_owned());
    for (name, attribute, value) in
        [("TZ", keys::TIMEZONE, zone), ("NODE_EXTRA_CA_CERTS", keys::CA_CERTIFICATES, bundle)]
    {
        let Some(value) = value else { continue };
        for other in [keys::ENV_PREFIX, keys::SECRET_PREFIX].map(|prefix| format!("{prefix}{name}")) {
            if attributes.has(&other) {
                attributes.reject(&other, format!("{other} and {attribute} both set {name}: remove one of them"));
            }
        }
        env.insert(name.to_owned(), value);
    }
    env
}

fn disk_choice(value: &str) -> Checked<DiskChoice> {
    if value == "none" { Ok(DiskChoice::BootDisk) } else { check::device_name(value).map(DiskChoice::Named) }
}

fn on_or_off(value: &str) -> Checked<bool> {
    check::one_of(value, &[("on", true), ("off", false)])
}

fn apply(value: &str) -> Checked<ApplyChoice> {
    check::one_of(value, &[("live", ApplyChoice::Live), ("boot", ApplyChoice::Boot)])
}

/// What an update may cost.
fn accepted(value: &str) -> Checked<()> {
    check::one_of(value, &[("loss", ())])
}

fn image_variant(value: &str) -> Checked<Variant> {
    check::one_of(value, &[Variant::Browser, Variant::Slim].map(|variant| (variant.name(), variant)))
}

fn container_root(value: &str) -> Checked<ContainerRoot> {
    check::one_of(value, &[("read-only", ContainerRoot::ReadOnly), ("writable", ContainerRoot::Writable)])
}

fn proof_choice(value: &str) -> Checked<ProofChoice> {
    check::one_of(value, &[("auto", ProofChoice::Auto), ("sampled", ProofChoice::Sampled), ("full", ProofChoice::Full)])
}

/// `openclaw-metadata-access` with the account that belongs to it.
fn metadata_access(attributes: &mut Attributes<'_>, port: u16, channel_ports: &[u16]) -> MetadataAccess {
    let words = ["block", "identity", "allow"].map(|word| (word, word));
    let access = attributes.get(keys::METADATA_ACCESS, |value| check::one_of(value, &words));
    let account = attributes.get(keys::METADATA_ACCOUNT, check::service_account);
    if access == Some("identity") {
        if !attributes.has(keys::METADATA_ACCOUNT) {
            attributes.reject(
                keys::METADATA_ACCESS,
                "openclaw-metadata-access=identity needs openclaw-metadata-account, the address of the service account \
                 whose tokens containers get",
            );
        }
        for (key, is_taken) in
            [(keys::PORT, port == IDENTITY_PORT), (keys::PUBLISH, channel_ports.contains(&IDENTITY_PORT))]
        {
            if is_taken {
                attributes
                    .reject(key, format!("{key}: {IDENTITY_PORT} is the port of openclaw-metadata-access=identity"));
            }
        }
    } else if attributes.has(keys::METADATA_ACCOUNT) {
        attributes.reject(
            keys::METADATA_ACCOUNT,
            "openclaw-metadata-account is of use only beside openclaw-metadata-access=identity: set that, or remove it",
        );
    }
    match (access, account) {
        (Some("allow"), _) => MetadataAccess::Allow,
        (Some("identity"), Some(account)) => MetadataAccess::Identity(account),
        _ => MetadataAccess::Block,
    }
}

fn docker_source(value: &str) -> Checked<DockerSource> {
    check::one_of(
        value,
        &[("auto", DockerSource::Auto), ("docker-ce", DockerSource::DockerCe), ("distro", DockerSource::Distro)],
    )
}

fn swap(value: &str) -> Checked<SwapChoice> {
    match value {
        "auto" => Ok(SwapChoice::Auto),
        "off" => Ok(SwapChoice::Off),
        size => check::swap_size(size).map(SwapChoice::Size),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::{Code, code_of, one_line};
    use crate::secret::Secret;

    fn read(pairs: &[(&str, &str)]) -> Result<(Config, Vec<String>), (Code, String)> {
        let attributes = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::from_attributes(&attributes).map_err(|error| (code_of(&error), one_line(&error)))
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let expected = Config {
            disk: DiskConfig { choice: DiskChoice::Default, proof: ProofChoice::Auto },
            docker: DockerConfig { source: DockerSource::Auto, apt_url: DEFAULT_DOCKER_APT_URL.to_owned() },
            image: ImageConfig {
                version: None,
                variant: None,
                reference: None,
                source: ImageSource::Release,
                mirror: None,
                npm_registry: None,
                extras: Extras::default(),
                accepts_loss: false,
                default_version: DEFAULT_VERSION.into(),
                default_reference: None,
            },
            gateway: GatewayConfig::default(),
            domain: None,
            swap: SwapChoice::Auto,
            is_watched: true,
            apply: ApplyChoice::Live,
            apply_spread: DEFAULT_APPLY_SPREAD,
            approve: Vec::new(),
            run_id: None,
        };
        let foreign = [("startup-script", "x"), ("openclaw-init-url", "gs://b/o"), ("ssh-keys", "")];
        assert_eq!(read(&foreign), Ok((expected, Vec::new())));
    }

    #[test]
    fn every_attribute_arrives() -> Result<(), (Code, String)> {
        let token = "ab".repeat(32);
        let (config, warnings) = read(&[
            ("openclaw-version", " 2026.9.6\n"),
            ("openclaw-image-source", "npm"),
            ("openclaw-npm-registry", "http://10.0.0.2:4873/"),
            ("openclaw-registry-mirror", "europe-docker.pkg.dev/p/hub"),
            ("openclaw-data-disk", "state"),
            ("openclaw-data-disk-proof", "full"),
            ("openclaw-port", "8080"),
            ("openclaw-bind", "0.0.0.0"),
            ("openclaw-gateway-token", &token),
            ("openclaw-env-TZ", "Europe/Madrid"),
            ("openclaw-config", "{logging: {level: 'debug'}}"),
            ("openclaw-ready-timeout", "10m"),
            ("openclaw-docker", "distro"),
            ("openclaw-docker-apt-url", "http://10.0.0.2/docker/"),
            ("openclaw-metadata-access", "allow"),
            ("openclaw-run-id", "run 1"),
            ("openclaw-swap", "2G"),
            ("openclaw-memory", "3G"),
            ("openclaw-pids", "1024"),
            ("openclaw-tmp", "256M"),
            ("openclaw-watch", "off"),
            ("openclaw-apply", "boot"),
            ("openclaw-apply-spread", "1h"),
        ])?;
        assert_eq!(config.image.version, Some(VersionChoice::Exact("2026.9.6".into())));
        assert_eq!(config.image.source, ImageSource::Npm);
        assert_eq!(config.image.npm_registry.as_deref(), Some("http://10.0.0.2:4873"));
        assert_eq!(config.image.mirror.as_deref(), Some("europe-docker.pkg.dev/p/hub"));
        let disk = DiskConfig { choice: DiskChoice::Named("state".to_owned()), proof: ProofChoice::Full };
        assert_eq!(config.disk, disk);
        assert_eq!((config.gateway.port, config.gateway.bind.to_string().as_str()), (8080, "0.0.0.0"));
        assert_eq!(config.gateway.token, Some(TokenSource::Literal(Secret::new(token))));
        assert_eq!(config.gateway.env.get("TZ").map(String::as_str), Some("Europe/Madrid"));
        assert_eq!(config.gateway.settings.value(), &serde_json::json!({"logging": {"level": "debug"}}));
        assert_eq!(config.gateway.ready_timeout, Duration::from_secs(600));
        assert_eq!(config.docker.apt_url, "http://10.0.0.2/docker");
        assert_eq!(config.docker.source, DockerSource::Distro);
        assert_eq!(config.gateway.metadata_access, MetadataAccess::Allow);
        assert_eq!(config.swap, SwapChoice::Size(2 << 30));
        let limits = Limits { memory: Some(3 << 30), pids: Some(1024), tmp: Some(256 << 20) };
        assert_eq!(config.gateway.limits, limits);
        assert_eq!((config.is_watched, config.apply), (false, ApplyChoice::Boot));
        assert_eq!(config.apply_spread, Duration::from_secs(3600));
        assert_eq!(config.run_id.as_deref(), Some("run 1"));
        assert_eq!(warnings.len(), 2, "the literal token and the open address: {warnings:?}");
        Ok(())
    }

    #[test]
    fn names_of_secrets_arrive() -> Result<(), (Code, String)> {
        let (config, warnings) = read(&[
            ("openclaw-gateway-token", "secret:projects/p/secrets/token"),
            ("openclaw-secret-OPENAI_API_KEY", "projects/p/locations/l/secrets/openai/versions/3"),
            ("openclaw-secret-OTHER", "secret:projects/p/secrets/other"),
        ])?;
        let Some(TokenSource::Named(token)) = config.gateway.token else { panic!("{:?}", config.gateway.token) };
        assert_eq!(token.to_string(), "projects/p/secrets/token/versions/latest");
        let secrets = config.gateway.secrets.iter().map(|(name, secret)| format!("{name}={secret}"));
        assert_eq!(
            secrets.collect::<Vec<_>>().join(" "),
            "OPENAI_API_KEY=projects/p/locations/l/secrets/openai/versions/3 OTHER=projects/p/secrets/other/versions/latest"
        );
        assert_eq!(warnings, [""; 0]);
        Ok(())
    }

    #[test]
    fn a_variable_with_the_name_of_a_secret_is_a_warning_without_its_value() -> Result<(), (Code, String)> {
        let (_, warnings) = read(&[
            ("openclaw-env-OPENAI_API_KEY", "hunter2"),
            ("openclaw-env-db_password", "hunter22"),
            ("openclaw-env-MAX_TOKENS", "4096"),
            ("openclaw-env-TZ", "Europe/Madrid"),
        ])?;
        let [warning] = &warnings[..] else { panic!("not one warning: {warnings:?}") };
        assert!(warning.starts_with("openclaw-env-OPENAI_API_KEY, openclaw-env-db_password: "), "{warning}");
        assert!(["hunter2", "MAX_TOKENS", "TZ"].iter().all(|word| !warning.contains(word)), "{warning}");
        Ok(())
    }

    #[test]
    fn a_wrong_value_names_key_value_and_what_is_allowed() {
        let table: &[(&str, &str, &[&str])] = &[
            ("openclaw-port", "many", &["openclaw-port", "\"many\"", "1 to 65535"]),
            ("openclaw-version", "newest", &["exact version", "or latest"]),
            ("openclaw-image-source", "source", &["openclaw-source-ref", "40 hex digits"]),
            ("openclaw-source-ref", "main", &["openclaw-source-ref=\"main\"", "40 hex digits"]),
            ("openclaw-image-source", "git", &["release, npm, source"]),
            ("openclaw-binaries", "gog@latest", &["gog@0.28.0", "\"sha256\""]),
            ("openclaw-apt-packages", "jq;id", &["Debian package"]),
            ("openclaw-swap", "2T", &["auto, off", "such as 2G"]),
            ("openclaw-ready-timeout", "10", &["openclaw-ready-timeout=\"10\"", "from 1m to 30m"]),
            ("openclaw-ready-timeout", "31m", &["from 1m to 30m"]),
            ("openclaw-ready-timeout", "59s", &["from 1m to 30m"]),
            ("openclaw-ready-timeout", "+9m", &["from 1m to 30m"]),
            ("openclaw-ready-timeout", "99999999999999999999m", &["from 1m to 30m"]),
            ("openclaw-watch", "yes", &["on, off"]),
            ("openclaw-apply", "now", &["live, boot"]),
            ("openclaw-secret-KEY", "hunter2", &["openclaw-secret-KEY", "projects/PROJECT/secrets/SECRET"]),
            ("openclaw-secret-PATH", "projects/p/secrets/s", &["sets PATH itself"]),
            ("openclaw-secret-A-B", "projects/p/secrets/s", &["openclaw-secret-A-B", "environment variable"]),
            ("openclaw-secret-", "projects/p/secrets/s", &["environment variable"]),
            ("openclaw-gateway-token", "secret:projects/p", &["openclaw-gateway-token", "/versions/VERSION"]),
            (
                "openclaw-gateway-token",
                "projects/p/secrets/s/versions/1",
                &["openclaw-gateway-token", "secret:projects/"],
            ),
            ("openclaw-config", "[]", &["openclaw-config (value not shown)", "must be a JSON object"]),
            ("openclaw-config", "{gateway: {port: 1}}", &["gateway.port", "openclaw-port sets it"]),
            ("openclaw-bind", "localhost", &["IP address"]),
            ("openclaw-bind", "169.254.169.254", &["openclaw-bind", "169.254.169.254", "link-local"]),
            ("openclaw-port", "  ", &["is empty", "remove it"]),
            ("openclaw-timezone", "Madrid time", &["openclaw-timezone=\"Madrid time\"", "Europe/Madrid"]),
            ("openclaw-env-HOME", "/x", &["sets HOME itself"]),
            ("openclaw-env-A-B", "x", &["openclaw-env-A-B", "environment variable"]),
            ("openclaw-metadata-access", "yes", &["block, identity, allow", "--keys=openclaw-metadata-access"]),
        ];
        for (key, value, words) in table {
            let Err((code, sentence)) = read(&[(key, value)]) else { panic!("{key}={value} was accepted") };
            assert_eq!(code, Code::ConfigInvalid);
            assert!(words.iter().all(|word| sentence.contains(word)), "{key}={value}: {sentence}");
        }
    }

    #[test]
    fn an_ingress_sets_origins_and_proxies_and_nothing_else_does() -> Result<(), (Code, String)> {
        let host = IpAddr::from([172, 17, 0, 1]);
        let url = ("openclaw-public-url", "https://claw.example.com/");
        let (config, _) = read(&[url, ("openclaw-port", "8080"), ("openclaw-config", "{gateway: {auth: {}}}")])?;
        let settings = config.gateway.seeing_host_at(host).settings;
        let origins = ["https://claw.example.com", "http://localhost:8080", "http://127.0.0.1:8080"];
        let expected = serde_json::json!({
            "auth": {}, "controlUi": {"allowedOrigins": origins}, "trustedProxies": ["172.17.0.1"],
        });
        assert_eq!(settings.value()["gateway"], expected);
        assert_eq!(settings.attributes(), "openclaw-config and openclaw-public-url");
        let (config, _) = read(&[url, ("openclaw-trusted-proxies", "10.0.0.0/8, ::1")])?;
        let settings = config.gateway.seeing_host_at(host).settings;
        assert_eq!(settings.value()["gateway"]["trustedProxies"], serde_json::json!(["10.0.0.0/8", "::1"]));
        assert!(read(&[])?.0.gateway.seeing_host_at(host).settings.is_empty());

        let both = "{gateway: {trustedProxies: ['10.0.0.1']}}";
        assert!(read(&[("openclaw-config", both)]).is_ok());
        for (pairs, words) in [
            (&[url, ("openclaw-config", both)][..], "openclaw-public-url sets, too"),
            (&[url, ("openclaw-config", "{gateway: {trustedProxies: null}}")], "openclaw-public-url sets, too"),
            (&[("openclaw-trusted-proxies", "10.0.0.1")], "only beside openclaw-public-url"),
            (&[url, ("openclaw-trusted-proxies", "anyone")], "separated by commas"),
            (&[("openclaw-public-url", "http://claw.example.com")], "https://claw.example.com"),
        ] {
            let Err((code, sentence)) = read(pairs) else { panic!("{pairs:?} was accepted") };
            assert!(code == Code::ConfigInvalid && sentence.contains(words), "{sentence}");
        }
        Ok(())
    }

    #[test]
    fn the_time_zone_is_a_variable_with_one_source() -> Result<(), (Code, String)> {
        let zone = ("openclaw-timezone", "Europe/Madrid");
        let (config, _) = read(&[zone])?;
        assert_eq!(config.gateway.env.get("TZ").map(String::as_str), Some("Europe/Madrid"));
        let Err((_, sentence)) = read(&[zone, ("openclaw-env-TZ", "UTC")]) else { panic!("it was accepted") };
        assert!(sentence.contains("openclaw-env-TZ and openclaw-timezone"), "{sentence}");
        Ok(())
    }

    #[test]
    fn the_gateway_is_told_where_the_cas_are() -> Result<(), (Code, String)> {
        let ca = ("openclaw-ca-certificates", include_str!("config/ca/ca.pem"));
        let (config, _) = read(&[ca])?;
        assert_eq!(config.gateway.env["NODE_EXTRA_CA_CERTS"], "/etc/openclaw-init/ca-certificates.pem");
        assert_eq!(config.gateway.ca_certificates, [ca.1]);
        for (pairs, words) in [
            (&[ca, ("openclaw-env-NODE_EXTRA_CA_CERTS", "/x")][..], "both set NODE_EXTRA_CA_CERTS"),
            (&[("openclaw-ca-certificates", include_str!("config/ca/server.pem"))], "certificate 1 is not a CA's"),
        ] {
            let Err((code, sentence)) = read(pairs) else { panic!("it was accepted") };
            assert!(code == Code::ConfigInvalid && sentence.contains(words), "{sentence}");
            assert!(!sentence.contains("-----BEGIN CERTIFICATE-----\n"), "{sentence}");
        }
        Ok(())
    }

    #[test]
    fn a_domain_is_whole_or_an_error() -> Result<(), (Code, String)> {
        let (name, from) = (("openclaw-domain", "Claw.example.com"), ("openclaw-allow-from", "203.0.113.0/24,::1"));
        let acme = ("openclaw-acme-directory", "https://ca.example.com/acme/{x}");
        let (config, _) = read(&[name, from, acme])?;
        let expected = Domain {
            name: "claw.example.com".to_owned(),
            allow_from: vec!["203.0.113.0/24".to_owned(), "::1".to_owned()],
            acme_directory: Some("https://ca.example.com/acme/%7Bx%7D".to_owned()),
            open_paths: Vec::new(),
        };
        assert_eq!(config.domain, Some(expected));
        let ingress = config.gateway.ingress.map(|ingress| (ingress.attribute, ingress.origin));
        assert_eq!(ingress, Some((keys::DOMAIN, "https://claw.example.com".to_owned())));
        for (pairs, words) in [
            (&[name][..], "needs openclaw-allow-from"),
            (&[from], "of use only beside openclaw-domain"),
            (&[acme], "of use only beside openclaw-domain"),
            (&[name, from, ("openclaw-public-url", "https://a.example")], "remove one of them"),
            (&[name, from, ("openclaw-trusted-proxies", "10.0.0.1")], "only beside openclaw-public-url"),
            (&[name, from, ("openclaw-bind", "0.0.0.0")], "pass by openclaw-allow-from"),
            (&[name, from, ("openclaw-port", "443")], "openclaw-port=443"),
            (&[("openclaw-domain", "ip"), from], "Caddy 2.10"),
            (&[name, from, ("openclaw-config", "{gateway: {trustedProxies: ['::1']}}")], "openclaw-domain sets, too"),
            (
                &[name, from, ("openclaw-config", "{gateway: {auth: {mode: 'trusted-proxy'}}}")],
                "openclaw-domain knows none",
            ),
            (&[name, from, ("openclaw-acme-directory", "http://ca.example.com")], "https:// URL"),
        ] {
            let Err((code, sentence)) = read(pairs) else { panic!("{pairs:?} was accepted") };
            assert!(code == Code::ConfigInvalid && sentence.contains(words), "{sentence}");
        }
        Ok(())
    }

    #[test]
    fn an_identity_is_whole_or_an_error() -> Result<(), (Code, String)> {
        let identity = ("openclaw-metadata-access", "identity");
        let account = ("openclaw-metadata-account", "agent@p.iam.gserviceaccount.com");
        let (config, _) = read(&[identity, account])?;
        assert_eq!(config.gateway.metadata_access, MetadataAccess::Identity(account.1.to_owned()));
        for (pairs, words) in [
            (&[identity][..], "needs openclaw-metadata-account"),
            (&[account], "of use only beside openclaw-metadata-access=identity"),
            (&[("openclaw-metadata-access", "block"), account], "of use only beside"),
            (&[("openclaw-metadata-access", "allow"), account], "of use only beside"),
            (&[identity, ("openclaw-metadata-account", "me@example.com")], "address of a service account"),
            (&[identity, account, ("openclaw-port", "18780")], "openclaw-port: 18780 is"),
            (&[identity, account, ("openclaw-publish", "18780")], "openclaw-publish: 18780 is"),
        ] {
            let Err((code, sentence)) = read(pairs) else { panic!("{pairs:?} was accepted") };
            assert!(code == Code::ConfigInvalid && sentence.contains(words), "{sentence}");
        }
        Ok(())
    }

    #[test]
    fn what_is_published_is_a_port_or_a_path_of_the_domain() -> Result<(), (Code, String)> {
        let domain = [("openclaw-domain", "claw.example.com"), ("openclaw-allow-from", "203.0.113.0/24")];
        let publish = |value: &'static str| ("openclaw-publish", value);
        let (config, _) =
            read(&[domain[0], domain[1], publish("/a:4001,1455, /a/b,/api/messages:3978"), ("openclaw-port", "8080")])?;
        assert_eq!(config.gateway.channel_ports, [1455, 3978, 4001]);
        let paths = config.domain.map(|domain| domain.open_paths).unwrap_or_default();
        let paths: Vec<_> = paths.into_iter().map(|open| (open.path, open.port)).collect();
        let expected = [("/api/messages", Some(3978)), ("/a/b", None), ("/a", Some(4001))];
        assert_eq!(paths, expected.map(|(path, port)| (path.to_owned(), port)));
        assert_eq!(read(&[publish("/voice:3334,80")])?.0.gateway.channel_ports, [80, 3334]);
        for (value, has_domain, words) in [
            ("/voice:0", true, "/PATH:PORT, /PATH or PORT"),
            ("voice", true, "/PATH:PORT, /PATH or PORT"),
            ("/voice:18789", true, "18789 is the gateway's own port"),
            ("8080", true, "8080 is the gateway's own port"),
            ("/a:443", true, "443 is a port of openclaw-domain"),
            ("/a:4001,4001", true, "port 4001 is there twice"),
            ("/a:4001,/a:4002", true, "/a is there twice"),
            ("/googlechat", false, "only beside openclaw-domain"),
        ] {
            let mut given = vec![publish(value), ("openclaw-port", "8080")];
            given.extend(domain.iter().filter(|_| has_domain));
            let Err((code, sentence)) = read(&given) else { panic!("{value} was accepted") };
            assert!(code == Code::ConfigInvalid && sentence.contains(words), "{value}: {sentence}");
        }
        Ok(())
    }

    #[test]
    fn a_variant_is_a_part_of_the_version() -> Result<(), (Code, String)> {
        let browser = ("openclaw-image-variant", "browser");
        let version = |version: &'static str| ("openclaw-version", version);
        let default = format!("{DEFAULT_VERSION}-browser");
        for (pairs, known, choice, attribute) in [
            (&[browser][..], Some(&*default), "browser", "openclaw-image-variant"),
            (&[browser, version("2026.9.4")], Some("2026.9.4-browser"), "2026.9.4-browser", "openclaw-version"),
            (&[browser, version("2026.9.4-browser")], Some("2026.9.4-browser"), "2026.9.4-browser", "openclaw-version"),
            (&[browser, version("latest")], None, "latest-browser", "openclaw-version"),
        ] {
            let image = read(pairs)?.0.image;
            assert_eq!(image.known_version().map(GatewayVersion::as_str), known);
            assert_eq!((image.choice().as_deref(), image.choice_attribute()), (Some(choice), attribute));
        }
        let owned = |pairs: &[(&str, &str)]| {
            read(pairs).map(|(config, _)| config.image.of_owner(&"2026.9.1-slim".into()).version)
        };
        assert_eq!(owned(&[browser])?, Some(VersionChoice::Exact("2026.9.1-browser".into())));
        assert_eq!(owned(&[browser, version("latest")])?, Some(VersionChoice::Latest));
        for (other, words) in [
            (version("2026.9.4-slim"), "contradict each other"),
            (("openclaw-image", "x/y:1"), "is of upstream's images"),
            (("openclaw-image-source", "npm"), "is of upstream's images"),
        ] {
            let Err((code, sentence)) = read(&[browser, other]) else { panic!("{other:?} was accepted") };
            assert!(code == Code::ConfigInvalid && sentence.contains(words), "{sentence}");
        }
        Ok(())
    }

    #[test]
    fn chromium_has_the_container_for_a_sandbox_unless_the_operator_says_otherwise() -> Result<(), (Code, String)> {
        let settings = |variant: &str, config: &str| {
            let (config, _) = read(&[("openclaw-image-variant", variant), ("openclaw-config", config)])?;
            Ok::<_, (Code, String)>(config.gateway.settings)
        };
        let of =
            |variant: &str, config: &str| settings(variant, config).map(|settings| settings.value()["browser"].clone());
        for (variant, config, expected) in [
            ("browser", "{}", serde_json::json!({"noSandbox": true})),
            ("browser", "{browser: {headless: true}}", serde_json::json!({"headless": true, "noSandbox": true})),
            ("browser", "{browser: {noSandbox: false}}", serde_json::json!({"noSandbox": false})),
            ("browser", "{browser: 'x'}", serde_json::json!("x")),
            ("slim", "{}", serde_json::Value::Null),
        ] {
            assert_eq!(of(variant, config)?, expected, "{variant} {config}");
        }
        assert_eq!(settings("browser", "{}")?.attributes(), "openclaw-config and openclaw-image-variant");
        Ok(())
    }

    #[test]
    fn a_variable_has_one_source() {
        let outcome = read(&[("openclaw-env-KEY", "hunter2"), ("openclaw-secret-KEY", "projects/p/secrets/s")]);
        let Err((code, sentence)) = outcome else { panic!("it was accepted") };
        assert_eq!(code, Code::ConfigInvalid);
        assert!(sentence.contains("openclaw-env-KEY and openclaw-secret-KEY"), "{sentence}");
        assert!(!sentence.contains("hunter2"), "{sentence}");
    }

    #[test]
    fn all_wrong_values_are_named_at_once_without_secrets() {
        let outcome = read(&[
            ("openclaw-port", "0"),
            ("openclaw-docker", "podman"),
            ("openclaw-gateway-token", "hunter2"),
            ("openclaw-npm-registry", "https://me:hunter2@mirror.example/"),
            ("openclaw-image", "a:1"),
            ("openclaw-image-source", "npm"),
        ]);
        let Err((_, sentence)) = outcome else { panic!("it was accepted") };
        for word in ["openclaw-port", "openclaw-docker", "openclaw-gateway-token", "contradict"] {
            assert!(sentence.contains(word), "{word} is missing: {sentence}");
        }
        assert!(!sentence.contains("hunter2"), "{sentence}");
    }

    /// Every attribute whose value may be a URL, as people write it wrongly, and what a literal secret is put into.
    #[test]
    fn no_message_repeats_a_credential() {
        let shapes = [
            "bob:hunter2@h",
            "//bob:hunter2@h/a",
            "https:bob:hunter2@h",
            "https:/bob:hunter2@h",
            "https://bob:hunter2@h/ ",
            "http://h/?token=hunter2 ",
            "https://h/#hunter2",
            "ftp://bob:hunter2@h",
            "[\"https://bob:hunter2@h\"]",
            "[{\"name\":\"https://bob:hunter2@h\"}]",
            "[{\"amd64\":\"https://bob:hunter2@h\"}]",
            "{\"bob:hunter2@h\":1}",
            "npm.example/;_authToken=hunter2",
            "m.example/token=hunter2",
        ];
        let keys = [
            keys::NPM_REGISTRY,
            keys::DOCKER_APT_URL,
            keys::REGISTRY_MIRROR,
            keys::IMAGE,
            keys::BINARIES,
            keys::APT_PACKAGES,
            keys::SOURCE_REF,
            keys::VERSION,
            keys::BIND,
            keys::PUBLIC_URL,
            keys::TRUSTED_PROXIES,
            keys::DOMAIN,
            keys::ALLOW_FROM,
            keys::DATA_DISK,
            keys::PORT,
            keys::PUBLISH,
        ];
        for (key, shape) in keys.iter().flat_map(|key| shapes.map(|shape| (key, shape))) {
            let Err((_, sentence)) = read(&[(key, shape)]) else { panic!("{key}={shape} was accepted") };
            assert!(sentence.contains(key) && !sentence.contains("hunter2"), "{sentence}");
        }
    }

    proptest! {
        /// Whatever an operator sets: a configuration, or complaints that name the attributes.
        #[test]
        fn any_values_are_a_configuration_or_named(
            chosen in proptest::collection::btree_map(
                proptest::sample::select(keys::KEYS),
                "[\\[\\]{}\":,@a-z0-9./=-]{0,40}|\\PC{0,40}|\\[\\{\"name\":\"[a-z]{1,5}\",\"url\":\"\\PC{0,9}\"",
                0..4,
            ),
            (name, value) in ("[A-Za-z0-9_=-]{0,9}", any::<String>()),
        ) {
            let mut attributes: BTreeMap<_, _> =
                chosen.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            attributes.insert(format!("{}{name}", keys::ENV_PREFIX), value.clone());
            attributes.insert(format!("{}{name}", keys::SECRET_PREFIX), value);
            if let Err(error) = Config::from_attributes(&attributes) {
                prop_assert_eq!(code_of(&error), Code::ConfigInvalid);
                let sentence = one_line(&error);
                prop_assert!(attributes.keys().any(|key| sentence.contains(key.as_str())), "{}", sentence);
            }
        }
    }

    #[test]
    fn an_unknown_key_is_a_warning_with_the_nearest_name() -> Result<(), (Code, String)> {
        for (key, end) in [
            ("openclaw-flux-capacitor", "has no effect"),
            ("openclaw-prot", "did you mean openclaw-port?"),
            ("openclaw_port", "did you mean openclaw-port?"),
            ("openclaw-env", "did you mean openclaw-env-NAME?"),
            ("openclaw-secrets-KEY", "did you mean openclaw-secret-NAME?"),
            ("openclaw-token", "did you mean openclaw-gateway-token?"),
            ("openclaw-disk", "did you mean openclaw-data-disk?"),
            ("openclaw-datadisk", "did you mean openclaw-data-disk?"),
            ("openclaw-image-tag", "did you mean openclaw-image?"),
            ("openclaw-packages", "did you mean openclaw-apt-packages?"),
            ("openclaw-vershion", "did you mean openclaw-version?"),
        ] {
            let (_, warnings) = read(&[(key, "1")])?;
            assert!(warnings.len() == 1 && warnings[0].ends_with(end), "{key}: {warnings:?}");
        }
        Ok(())
    }
}
