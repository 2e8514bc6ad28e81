//! The recursive JSON of the metadata server, as far as this program uses it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Attributes, Disk};
use crate::secret::Secret;

/// All of it.
#[derive(Debug, Deserialize)]
pub(super) struct Root {
    pub(super) instance: Instance,
    #[serde(default)]
    pub(super) project: Project,
}

/// `instance/`. Only the id is indispensable: it is what makes this machine this machine.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Instance {
    /// Up to 64 bits: more than a float can hold.
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    #[serde(default)]
    disks: Vec<RawDisk>,
    #[serde(default)]
    scheduling: Scheduling,
    #[serde(default)]
    pub(super) preempted: String,
}

/// `project/`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Project {
    #[serde(rename = "projectId")]
    id: String,
    #[serde(rename = "numericProjectId")]
    number: u64,
    attributes: BTreeMap<String, String>,
}

/// A service account's token.
#[derive(Debug, Deserialize)]
pub(super) struct Token {
    pub(super) access_token: Secret,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawDisk {
    device_name: String,
    index: u32,
    mode: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Scheduling {
    preemptible: String,
    provisioning_model: String,
}

/// The two trees as one: per key, the instance's attribute wins over the project's.
pub(super) fn merge(instance: Instance, project: Project) -> super::Instance {
    let own = instance.attributes.keys().cloned().collect();
    let mut values = project.attributes;
    values.extend(instance.attributes);
    let scheduling = &instance.scheduling;
    super::Instance {
        id: instance.id,
        name: instance.name,
        zone: last_part(&instance.zone),
        project_id: project.id,
        project_number: project.number,
        attributes: Attributes { values, own },
        disks: instance.disks.into_iter().map(Disk::from).collect(),
        spot: scheduling.preemptible.eq_ignore_ascii_case("true")
            || scheduling.provisioning_model.eq_ignore_ascii_case("spot"),
    }
}

impl From<RawDisk> for Disk {
    fn from(raw: RawDisk) -> Self {
        Self {
            device_name: raw.device_name,
            index: raw.index,
            read_only: raw.mode.eq_ignore_ascii_case("READ_ONLY"),
            kind: raw.kind,
        }
    }
}

/// `europe-west1-b` of `projects/123/zones/europe-west1-b`.
fn last_part(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use proptest::prelude::*;

    use super::*;

    const INSTANCE: &str = r#"{
        "attributes": {"openclaw-port": "1", "startup-script": "x"},
        "disks": [
            {"deviceName": "persistent-disk-0", "index": 0, "interface": "SCSI", "mode": "READ_WRITE", "type": "PERSISTENT-BALANCED"},
            {"deviceName": "openclaw-data", "index": 1, "interface": "NVME", "mode": "READ_ONLY", "type": "PERSISTENT"}
        ],
        "id": 18446744073709551615,
        "maintenanceEvent": "NONE",
        "name": "claw-1",
        "scheduling": {"automaticRestart": "TRUE", "onHostMaintenance": "MIGRATE", "preemptible": "TRUE"},
        "zone": "projects/123/zones/europe-west1-b"
    }"#;

    #[test]
    fn a_whole_machine_is_understood() -> Result<()> {
        let project =
            r#"{"attributes": {"openclaw-port": "2", "ssh-keys": ""}, "numericProjectId": 123, "projectId": "p"}"#;
        let machine = merge(serde_json::from_str(INSTANCE)?, serde_json::from_str(project)?);
        assert_eq!((machine.id, machine.name.as_str()), (u64::MAX, "claw-1"));
        assert_eq!((machine.zone.as_str(), machine.project_id.as_str()), ("europe-west1-b", "p"));
        assert_eq!(machine.project_number, 123);
        assert!(machine.spot);
        let attributes: Vec<_> =
            machine.attributes.values.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(attributes, [("openclaw-port", "1"), ("ssh-keys", ""), ("startup-script", "x")]);
        assert!(machine.attributes.own.iter().eq(["openclaw-port", "startup-script"]));
        let disks: Vec<_> = machine.disks.iter().map(|disk| (disk.index, disk.read_only)).collect();
        assert_eq!(disks, [(0, false), (1, true)]);
        Ok(())
    }

    #[test]
    fn only_the_id_is_indispensable() -> Result<()> {
        let Root { instance, project } = serde_json::from_str(r#"{"instance": {"id": 7}}"#)?;
        let machine = merge(instance, project);
        assert_eq!((machine.id, machine.spot, machine.disks.len()), (7, false, 0));
        assert!(serde_json::from_str::<Instance>(r#"{"name": "x"}"#).is_err());
        Ok(())
    }

    #[test]
    fn spot_has_two_spellings() -> Result<()> {
        let table = [
            (r#"{"preemptible": "TRUE"}"#, true),
            (r#"{"provisioningModel": "SPOT"}"#, true),
            (r#"{"preemptible": "FALSE", "provisioningModel": "STANDARD"}"#, false),
            ("{}", false),
        ];
        for (scheduling, spot) in table {
            let instance = serde_json::from_str(&format!(r#"{{"id": 1, "scheduling": {scheduling}}}"#))?;
            assert_eq!(merge(instance, Project::default()).spot, spot, "{scheduling}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_answer_is_a_machine_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0..INSTANCE.len(),
            byte in any::<u8>(),
        ) {
            drop(serde_json::from_slice::<Instance>(&bytes));
            let mut changed = INSTANCE.as_bytes().to_vec();
            changed[cut] = byte;
            if let Ok(instance) = serde_json::from_slice::<Instance>(&changed) {
                drop(merge(instance, Project::default()));
            }
        }

        #[test]
        fn attributes_arrive_as_they_were_set(
            own in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..6),
            all in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..6),
        ) {
            let parse = |text: String| serde_json::from_str::<serde_json::Value>(&text);
            let instance = serde_json::json!({"id": 1, "attributes": own}).to_string();
            let project = serde_json::json!({"attributes": all}).to_string();
            prop_assert!(parse(instance.clone()).is_ok());
            let (Ok(instance), Ok(project)) = (serde_json::from_str(&instance), serde_json::from_str(&project)) else {
                panic!("{instance} {project}")
            };
            let found = merge(instance, project).attributes;
            let mut expected = all;
            expected.extend(own);
            prop_assert_eq!(found.values, expected);
        }
    }
}
