//! A boot disk with cloud-init, as Ubuntu's images for Compute Engine have it.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::files::put;

/// The packages that such a root file system has in addition to the bare one's. The default user's settings are for
/// `sudo`, which mmdebstrap leaves out: it installs no recommendations.
pub const PACKAGES: [&str; 2] = ["cloud-init", "sudo"];

/// The module that asks the firmware whether this is Compute Engine. A machine here has no firmware.
const DATA_SOURCE: &str = "usr/lib/python3/dist-packages/cloudinit/sources/DataSourceGCE.py";
const QUESTION: &str = r#"pname = dmi.read_dmi_data("system-product-name") or "N/A""#;
const ANSWER: &str = r#"pname = "Google Compute Engine""#;

/// One data source, as in Google's images. Network card and package sources stay as the lab has set them up; SSH
/// server and languages are not installed.
const SETTINGS: &str = "\
datasource_list: [GCE]
network: {config: disabled}
apt: {preserve_sources_list: true}
locale: C.UTF-8
ssh_genkeytypes: []
";

/// Nothing answers DHCP here. Without a client, cloud-init's first stage leaves the search to the next one.
const DHCP_CLIENTS: [&str; 4] = ["sbin/dhclient", "usr/sbin/dhclient", "sbin/dhcpcd", "usr/sbin/dhcpcd"];

/// Makes the cloud-init of a mounted boot disk take the lab for Compute Engine.
pub fn configure(root: &Path) -> Result<()> {
    put(root, "etc/cloud/cloud.cfg.d/95-lab.cfg", SETTINGS)?;
    // The platform check runs before the data source is asked, and looks at the firmware, too.
    put(root, "etc/cloud/ds-identify.cfg", "policy: enabled\n")?;
    for client in DHCP_CLIENTS.map(|client| root.join(client)).iter().filter(|client| client.exists()) {
        std::fs::remove_file(client).with_context(|| format!("removing {}", client.display()))?;
    }
    let file = root.join(DATA_SOURCE);
    let source = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    ensure!(source.contains(QUESTION), "cloud-init asks in another way whether it is on Compute Engine");
    put(root, DATA_SOURCE, &source.replace(QUESTION, ANSWER))
}
