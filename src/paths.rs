//! Every path that this program owns on a machine. `seal` and `uninstall` walk these lists.

/// Everything about the current boot, as a pattern; gone after it.
pub const RUN_DIR_CONTENT: &str = "/run/openclaw-init/*";
/// The part of it that is nobody's but root's: who can open a lock can hold it.
pub const PRIVATE_RUN_DIR: &str = "/run/openclaw-init/private";
/// Held by the one run that is at work.
pub const LOCK: &str = "/run/openclaw-init/private/lock";
/// The report of the latest run.
pub const STATUS: &str = "/run/openclaw-init/status.json";
/// What an operator asks the next run of the unit to do.
pub const REQUEST: &str = "/run/openclaw-init/private/request.json";
/// How many runs of this boot systemd has started.
pub const TRIES: &str = "/run/openclaw-init/private/tries";
/// The times of the latest requests to the metadata server.
pub const REQUEST_TIMES: &str = "/run/openclaw-init/private/requests";
/// Exists when a run of this boot has taken back the result of the boot before.
pub const RESULT_CLEARED: &str = "/run/openclaw-init/private/result-cleared";
/// What the watcher knows from the latest run.
pub const WATCH_ORDERS: &str = "/run/openclaw-init/private/watch.json";
/// The watcher has seen a gateway that hangs: for the run that it starts.
pub const HUNG: &str = "/run/openclaw-init/private/gateway-hung";
/// Changed when a gateway that hung was restarted.
pub const HUNG_RESTARTED: &str = "/run/openclaw-init/private/hung-restarted";
/// The engine's rules of the packet filter have been seen in this boot.
pub const ENGINE_RULES_SEEN: &str = "/run/openclaw-init/private/engine-rules-seen";
/// Somebody removed the engine's rules of the packet filter, and they are not back.
pub const ENGINE_RULES_GONE: &str = "/run/openclaw-init/private/engine-rules-gone";
/// The gateway was stopped because the shield was not in force, not by an operator.
pub const STOPPED_BY_SHIELD: &str = "/run/openclaw-init/private/stopped-by-shield";
/// Exists only in the boot whose run made it: a container that mounts it does not start by itself in another one.
pub const THIS_BOOT: &str = "/run/openclaw-init/this-boot";
/// What the gateway said at its last start that it has loaded.
pub const INVENTORY: &str = "/run/openclaw-init/private/inventory.json";
/// The change of `openclaw.json` that is being made, also in the container that makes it.
pub const SETTINGS_PATCH: &str = "/run/openclaw-init/private/settings-patch.json";
/// How long the gateway may take to stop at shutdown, in seconds.
pub const STOP_GRACE: &str = "/run/openclaw-init/private/stop-grace-seconds";

/// This program's own directory on the boot disk.
pub const BOOT_DISK_DIR: &str = "/var/lib/openclaw-init";
/// The volume on the boot disk: where the state lives without a data disk.
pub const BOOT_DISK_DATA: &str = "/var/lib/openclaw-init/data";
/// The same while its state is being moved to a data disk.
pub const STAGING: &str = "/var/lib/openclaw-init/data.moving";
/// States that others took the place of, as a pattern: [`STAGING`], and those that were moved to a data disk.
pub const FORMER_STATES: &str = "/var/lib/openclaw-init/data.*";
/// The operation that is under way on the state of the boot disk.
pub const BOOT_DISK_OPERATION: &str = "/var/lib/openclaw-init/operation.json";
/// The same as version 0.1.0 wrote it: a move to a data disk.
pub const BOOT_DISK_OPERATION_0_1: &str = "/var/lib/openclaw-init/moving.json";
/// Which data disk was used last.
pub const LAST_DISK: &str = "/var/lib/openclaw-init/data-disk.json";
/// The declared intent to format a disk.
pub const FORMAT_INTENT: &str = "/var/lib/openclaw-init/formatting";
/// What e2fsck overwrites, while it runs.
pub const E2FSCK_UNDO: &str = "/var/lib/openclaw-init/e2fsck.undo";
/// What mkfs overwrote, for a week.
pub const MKFS_UNDO: &str = "/var/lib/openclaw-init/mkfs.undo";
/// The UUID of the file system that mkfs made then.
pub const MKFS_UNDO_UUID: &str = "/var/lib/openclaw-init/mkfs.undo.uuid";
/// A file of holes on which mkfs shows where it writes, while that is asked.
pub const MKFS_LAYOUT: &str = "/var/lib/openclaw-init/mkfs.layout";
/// Build contexts of images.
pub const BUILD_DIR: &str = "/var/lib/openclaw-init/build";
/// The swap file, and its name until it is complete.
pub const SWAP: &str = "/var/lib/openclaw-init/swap";
/// See [`SWAP`].
pub const UNFINISHED_SWAP: &str = "/var/lib/openclaw-init/swap.new";

/// Which boot was the last one, and how it ended.
pub const LAST_BOOT: &str = "/var/lib/openclaw-init/last-boot.json";

/// Exists when this program has installed Caddy: the package's units that it masked for it.
pub const CADDY_INSTALLED: &str = "/var/lib/openclaw-init/caddy-installed";

/// What the boot disk knows of one machine's boots and data disks: nothing for an image.
pub const MACHINE_RECORDS: [&str; 9] = [
    LAST_BOOT,
    LAST_DISK,
    FORMAT_INTENT,
    E2FSCK_UNDO,
    MKFS_UNDO,
    MKFS_UNDO_UUID,
    MKFS_LAYOUT,
    BOOT_DISK_OPERATION,
    BOOT_DISK_OPERATION_0_1,
];

/// The directories on a volume: the gateway's state, its configuration, our own records, backups, certificates.
pub const VOLUME_DIRS: [&str; 5] = ["openclaw", "config-openclaw", "openclaw-init", "backups", "certificates-openclaw"];

/// Where data disks are mounted, by device name.
pub const MOUNT_DIR: &str = "/mnt/disks";
/// Where people look for the state: the path that it has in the container.
pub const STATE_ALIAS: &str = "/home/node/.openclaw";

/// The account that keeps the uid of the container from becoming a person's.
pub const ACCOUNT: &str = "openclaw-gateway";

/// What root decided for this machine.
pub const ETC_DIR: &str = "/etc/openclaw-init";
/// What the boot disk was baked with.
pub const BAKED: &str = "/etc/openclaw-init/baked.json";
/// The ruleset that keeps containers from the metadata server.
pub const SHIELD_RULESET: &str = "/etc/openclaw-init/shield.nft";
/// The unit that keeps that ruleset in force.
pub const SHIELD_UNIT: &str = "openclaw-shield.service";
/// Exists while the ruleset is in force; every container of the gateway mounts it.
pub const SHIELD_IN_FORCE: &str = "/run/openclaw-shield/in-force";
/// The generation of the kernel's rules at which the ruleset was verified last. Both are gone with the unit.
pub const SHIELD_GENERATION: &str = "/run/openclaw-shield/generation";
/// What the server tells that stands in for the metadata server, and its unit.
pub const IDENTITY: &str = "/etc/openclaw-init/identity";
/// See [`IDENTITY`].
pub const IDENTITY_UNIT: &str = "openclaw-identity.service";
/// The fingerprint of Docker's key where root expects another one.
pub const DOCKER_KEY_FINGERPRINT: &str = "/etc/openclaw-init/docker-key.fingerprint";

/// The CAs of `openclaw-ca-certificates`, for the gateway's container.
pub const CA_BUNDLE: &str = "/etc/openclaw-init/ca-certificates.pem";
/// What the name of each of them begins with where the machine's own store looks for them.
pub const CA_FILES: &str = "/usr/local/share/ca-certificates/openclaw-init-";

/// The settings of the proxy, and the unit and the account that it runs as.
pub const CADDYFILE: &str = "/etc/openclaw-init/Caddyfile";
/// See [`CADDYFILE`].
pub const PROXY_UNIT: &str = "openclaw-proxy.service";
/// See [`CADDYFILE`].
pub const PROXY_ACCOUNT: &str = "openclaw-proxy";

/// Settings of the kernel, read after Google's `60-gce-network-security.conf`.
pub const SYSCTL: &str = "/etc/sysctl.d/99-openclaw-init.conf";

/// The program.
pub const PROGRAM: &str = "/usr/local/bin/openclaw-init";
/// The gateway's own command line: another name of the program.
pub const GATEWAY_CLI: &str = "/usr/local/bin/openclaw";
/// The unit that does the work at every boot.
pub const BOOT_UNIT: &str = "openclaw-init.service";
/// The unit whose stop is the gateway's clean shutdown.
pub const STOP_UNIT: &str = "openclaw-gateway-stop.service";
/// The unit that watches the gateway between the runs.
pub const WATCH_UNIT: &str = "openclaw-watch.service";
/// What the loader keeps beside the program.
pub const LOADER_DIR: &str = "/usr/local/lib/openclaw-init";
/// What cloud-init's user data leaves.
pub const PER_BOOT_SCRIPT: &str = "/var/lib/cloud/scripts/per-boot/openclaw-init";
