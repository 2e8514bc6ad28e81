//! A CA that speaks ACME, for the names of the lab's internet: Debian's Pebble, with certificates as short as a test
//! wants them. Its root is another one each time it starts, and nothing trusts it; its directory has a certificate of
//! the lab's own authority, which machines trust.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::ca::Ca;
use super::network::{CERTIFICATES, METADATA};
use crate::files::write;
use crate::host;
use crate::state::Lab;

/// The host name, of those that are reserved for examples.
pub const NAME: &str = "ca.example";
/// The program, and Debian's package.
pub const PROGRAM: &str = "pebble";
/// Where its root certificate is.
pub const ROOT: &str = "https://ca.example:15000/roots/0";

/// Starts it in the network namespace of the calling thread. Its certificates are valid for so long.
pub(super) fn start(lab: &Lab, ca: &Ca, validity: Duration) -> Result<Child> {
    host::install(&[(PROGRAM, PROGRAM)])?;
    let certificate = ca.server_certificate(&[NAME])?;
    let file = |name: &str| lab.path(&format!("{PROGRAM}.{name}"));
    write(&file("crt"), certificate.chain_pem.as_bytes(), 0o644)?;
    write(&file("key"), certificate.key_pem.as_bytes(), 0o600)?;
    let settings = json!({PROGRAM: {
        "listenAddress": format!("{CERTIFICATES}:443"), "managementListenAddress": format!("{CERTIFICATES}:15000"),
        "certificate": file("crt"), "privateKey": file("key"), "httpPort": 80, "tlsPort": 443,
        "certificateValidityPeriod": validity.as_secs(),
    }});
    write(&file("json"), settings.to_string().as_bytes(), 0o644)?;
    let mut command = Command::new(PROGRAM);
    command.arg("-config").arg(file("json")).args(["-dnsserver", &format!("{METADATA}:53")]);
    // It would wait between the attempts to reach a name, and refuse some requests to teach clients patience.
    command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0");
    command.stdin(Stdio::null()).spawn().context("starting the CA")
}
