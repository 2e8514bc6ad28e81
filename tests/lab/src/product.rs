//! The product's own names: in the cloud, on a machine, in its environment.

/// The binary's name: in the cloud's web server and bucket, and on a machine.
pub const BINARY: &str = "openclaw-init";
/// Where the binary is on a machine, without the leading slash.
pub const INSTALLED: &str = "usr/local/bin/openclaw-init";
/// The product's namespace among the guest attributes.
pub const NAMESPACE: &str = "openclaw";
/// Where the product reads which key Docker's repository must have instead of Docker's own.
pub const DOCKER_KEY: &str = "etc/openclaw-init/docker-key.fingerprint";
/// The device name of the data disk that the product looks for when nothing is configured.
pub const DATA_DISK: &str = "openclaw-data";
/// The loader as operators copy it.
pub const LOADER: &str = include_str!("../../../cloud-init/startup-script.sh");
/// The user data as operators copy it.
pub const USER_DATA: &str = include_str!("../../../cloud-init/user-data.yaml");

/// A run in the foreground of the shell that asks for it, instead of in the unit.
pub const BOOT_HERE: &str = "openclaw-init boot --foreground";

/// The environment variable that names the point at which the product kills itself.
pub const FAILPOINT: &str = "OPENCLAW_INIT_FAILPOINT";
/// The environment variable that names the file to which the product appends every point that it passes.
pub const FAILPOINT_LOG: &str = "OPENCLAW_INIT_FAILPOINT_LOG";
