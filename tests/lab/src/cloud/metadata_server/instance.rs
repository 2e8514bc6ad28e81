//! What the metadata server tells: serialised, these types are the JSON of `/computeMetadata/v1/?recursive=true`.
//!
//! The spelling was read in `config.json` of `salrashid123/gce_metadata_server` and in the structures of Google's
//! guest agent. Values are strings wherever the real server has strings (`"TRUE"`, `"READ_WRITE"`), so that tests
//! can also set values that no real server sends.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The project's id.
pub const PROJECT: &str = "openclaw-lab";

/// The name under which everyone asks for the instance's service account.
const DEFAULT_ACCOUNT: &str = "default";

/// Everything below `/computeMetadata/v1/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// `instance/`.
    pub instance: Instance,
    /// `project/`.
    pub project: Project,
    /// `universe/`.
    pub universe: Universe,
    /// `oslogin/`, which is always the same here.
    #[serde(default)]
    pub oslogin: OsLogin,
}

impl From<Instance> for Metadata {
    fn from(instance: Instance) -> Self {
        Self { instance, ..Self::default() }
    }
}

impl Metadata {
    /// The attributes of one level.
    pub fn attributes(&self, level: Level) -> &BTreeMap<String, String> {
        match level {
            Level::Instance => &self.instance.attributes,
            Level::Project => &self.project.attributes,
        }
    }

    /// The attributes of one level, to be changed.
    pub fn attributes_mut(&mut self, level: Level) -> &mut BTreeMap<String, String> {
        match level {
            Level::Instance => &mut self.instance.attributes,
            Level::Project => &mut self.project.attributes,
        }
    }

    /// Whether `enable-guest-attributes` is true; the instance's value wins over the project's.
    pub fn guest_attributes_enabled(&self) -> bool {
        [Level::Instance, Level::Project]
            .iter()
            .find_map(|level| self.attributes(*level).get("enable-guest-attributes"))
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

/// Where an attribute is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// `instance/attributes/`.
    Instance,
    /// `project/attributes/`.
    Project,
}

/// Checks an attribute by the rules of the Compute Engine API's `Metadata` reference: the key has 1 to 127
/// characters of `[a-zA-Z0-9-_]`, the value at most 256 KiB.
pub fn check_attribute(key: &str, value: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    ensure!(
        (1..128).contains(&key.len()) && key.bytes().all(allowed),
        "the attribute key {key:?} is not 1 to 127 characters of a-z, A-Z, 0-9, - and _"
    );
    ensure!(value.len() <= 256 * 1024, "the value of attribute {key} has {} bytes, more than 256 KiB", value.len());
    Ok(())
}

/// One VM. The default is a plausible e2-small in us-central1-a without attributes and with its boot disk only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct Instance {
    pub attributes: BTreeMap<String, String>,
    pub cpu_platform: String,
    pub description: String,
    pub disks: Vec<Disk>,
    pub hostname: String,
    /// Up to 64 bits. The default is not representable as a double, so a client that goes through one is found out.
    pub id: u64,
    pub image: String,
    pub machine_type: String,
    pub maintenance_event: String,
    pub name: String,
    pub network_interfaces: Vec<NetworkInterface>,
    pub preempted: String,
    pub remaining_cpu_time: i64,
    pub scheduling: Scheduling,
    pub service_accounts: BTreeMap<String, ServiceAccount>,
    pub tags: Vec<String>,
    pub virtual_clock: VirtualClock,
    pub zone: String,
}

impl Default for Instance {
    fn default() -> Self {
        let account = ServiceAccount::default();
        Self {
            attributes: BTreeMap::new(),
            cpu_platform: "Intel Broadwell".into(),
            description: String::new(),
            disks: vec![Disk::new(0, "openclaw")],
            hostname: "openclaw.us-central1-a.c.openclaw-lab.internal".into(),
            id: 6_418_230_159_378_921_067,
            image: "projects/debian-cloud/global/images/debian-12-bookworm-v20260310".into(),
            machine_type: "projects/708288290784/machineTypes/e2-small".into(),
            maintenance_event: "NONE".into(),
            name: "openclaw".into(),
            network_interfaces: vec![NetworkInterface::default()],
            preempted: "FALSE".into(),
            remaining_cpu_time: -1,
            scheduling: Scheduling::default(),
            service_accounts: [(account.email.clone(), account.clone()), (DEFAULT_ACCOUNT.into(), account)].into(),
            tags: Vec::new(),
            virtual_clock: VirtualClock::default(),
            zone: "projects/708288290784/zones/us-central1-a".into(),
        }
    }
}

/// An attached disk. There is neither size nor resource name in metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct Disk {
    pub device_name: String,
    pub index: u32,
    /// `SCSI` or `NVME`.
    pub interface: String,
    /// `READ_WRITE` or `READ_ONLY`.
    pub mode: String,
    /// For example `PERSISTENT-BALANCED`.
    #[serde(rename = "type")]
    pub kind: String,
}

impl Disk {
    /// A writable balanced persistent disk on SCSI.
    pub fn new(index: u32, device_name: impl Into<String>) -> Self {
        Self {
            device_name: device_name.into(),
            index,
            interface: "SCSI".into(),
            mode: "READ_WRITE".into(),
            kind: "PERSISTENT-BALANCED".into(),
        }
    }
}

/// A network interface; the default one has a private address only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct NetworkInterface {
    pub access_configs: Vec<AccessConfig>,
    pub dns_servers: Vec<String>,
    pub forwarded_ips: Vec<String>,
    pub gateway: String,
    pub ip: String,
    pub ip_aliases: Vec<String>,
    pub mac: String,
    pub mtu: u32,
    pub network: String,
    pub subnetmask: String,
    pub target_instance_ips: Vec<String>,
}

impl Default for NetworkInterface {
    fn default() -> Self {
        Self {
            access_configs: Vec::new(),
            dns_servers: vec!["169.254.169.254".into()],
            forwarded_ips: Vec::new(),
            gateway: "10.128.0.1".into(),
            ip: "10.128.0.2".into(),
            ip_aliases: Vec::new(),
            mac: "42:01:0a:80:00:02".into(),
            mtu: 1460,
            network: "projects/708288290784/networks/default".into(),
            subnetmask: "255.255.240.0".into(),
            target_instance_ips: Vec::new(),
        }
    }
}

/// An external address of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct AccessConfig {
    pub external_ip: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// How Compute Engine treats the VM; the default is a standard (not Spot) VM that migrates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct Scheduling {
    pub automatic_restart: String,
    pub on_host_maintenance: String,
    pub preemptible: String,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self { automatic_restart: "TRUE".into(), on_host_maintenance: "MIGRATE".into(), preemptible: "FALSE".into() }
    }
}

/// A service account of the VM, with the scopes its tokens may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct ServiceAccount {
    pub aliases: Vec<String>,
    pub email: String,
    pub scopes: Vec<String>,
}

impl Default for ServiceAccount {
    fn default() -> Self {
        Self {
            aliases: vec![DEFAULT_ACCOUNT.into()],
            email: "708288290784-compute@developer.gserviceaccount.com".into(),
            scopes: vec!["https://www.googleapis.com/auth/cloud-platform".into()],
        }
    }
}

/// The clock's drift token, which changes after a live migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct VirtualClock {
    pub drift_token: String,
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self { drift_token: "0".into() }
    }
}

/// The project of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct Project {
    pub attributes: BTreeMap<String, String>,
    pub numeric_project_id: u64,
    pub project_id: String,
}

impl Default for Project {
    fn default() -> Self {
        Self { attributes: BTreeMap::new(), numeric_project_id: 708_288_290_784, project_id: PROJECT.into() }
    }
}

/// The universe; without a domain, `universe/universe-domain` is a 404, which clients take for `googleapis.com`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct Universe {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub universe_domain: Option<String>,
}

/// The minimal OS Login tree: nobody is logged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are named as in Google's documentation of the metadata entries")]
pub struct OsLogin {
    pub authenticate: BTreeMap<String, BTreeMap<String, String>>,
}
