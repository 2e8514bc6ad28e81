//! The names of the attributes.

use std::cmp::Reverse;

macro_rules! keys {
    ($($(#[doc = $doc:literal])* $name:ident = $key:literal, $applied:ident, $kind:literal, $default:literal, $example:literal;)*) => {
        $(pub(crate) const $name: &str = $key;)*

        /// Every attribute, in the order of the documentation. The nearest of them is offered when a key is unknown.
        pub(super) const KEYS: &[&str] = &[$($name),*];

        /// When another value of each is applied.
        const APPLIED: &[Applied] = &[$(keys!(@$applied)),*];

        #[cfg(test)]
        const ROWS: &[Row] = &[$(Row { key: $key, kind: $kind, default: $default, example: $example, doc: &[$($doc),*] }),*];
    };
    (@boot) => { Applied::Boot };
    (@run) => { Applied::Restart };
    (@beside) => { Applied::Beside };
    (@loader) => { Applied::Beside };
}

/// When another value is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applied {
    /// At the next boot: disk, engine, swap and the packages of the image, which no run changes under a gateway.
    Boot,
    /// By a run that updates the gateway or may restart it.
    Restart,
    /// By a run that leaves the gateway alone.
    Beside,
}

/// What the documentation says of an attribute.
#[cfg(test)]
struct Row {
    key: &'static str,
    kind: &'static str,
    default: &'static str,
    example: &'static str,
    doc: &'static [&'static str],
}

// The one table of the attributes, from which docs/settings.md and docs/settings.schema.json are made: what it means,
// its name, when a changed value is applied (by a run, by one beside the gateway, at the next boot, by the loader),
// what it may be (words, and kinds in capitals, of which `schema.rs` has the patterns), its default, an example.
keys! {
    /// exact gateway version, or `latest`: the newest official image when it is first asked for, then kept. Another
    /// value is an update
    VERSION = "openclaw-version", run, "latest|VERSION", "2026.9.6, for an empty state only", "2026.9.6";
    /// explicit image reference, tag or digest, instead of a version
    IMAGE = "openclaw-image", run, "IMAGE", "", "ghcr.io/openclaw/openclaw:2026.9.6";
    /// `release` pulls the official image, `npm` builds one from the npm package, `source` from a commit (6 GiB of
    /// memory)
    IMAGE_SOURCE = "openclaw-image-source", run, "release|npm|source", "`release`", "npm";
    /// `browser` has Chromium, `slim` is smaller: [upstream's other images](operations.md#a-browser) of the version.
    /// Another value is an update
    IMAGE_VARIANT = "openclaw-image-variant", run, "browser|slim", "", "browser";
    /// for `source`: `COMMIT`, with the pins `,tree=ID` and `,sha256=DIGEST` if wanted. Another commit is an update
    SOURCE_REF = "openclaw-source-ref", run, "COMMIT", "", "09e7fee7268709e7fee7268709e7fee726870000";
    /// for `source`: a tar.gz made by `git archive`; `{commit}` stands for the commit
    SOURCE_URL = "openclaw-source-url", run, "URL", "upstream's archive", "https://git.example.com/{commit}.tar.gz";
    /// `loss`: an update is kept although the new version [does not load a plugin](updates.md#what-is-checked) that the
    /// one before had loaded
    UPDATE_ACCEPT = "openclaw-update-accept", run, "loss", "", "loss";
    /// programs for `/usr/local/bin` of the image: `gog@0.28.0 goplaces@0.4.11 wacli@0.18.1`, or
    /// [JSON](operations.md#programs-in-the-image)
    BINARIES = "openclaw-binaries", run, "LIST", "", "gog@0.28.0";
    /// Debian packages for the image, `NAME` or `NAME=VERSION`
    APT_PACKAGES = "openclaw-apt-packages", boot, "LIST", "", "ffmpeg jq";
    /// registry and path that mirror Docker Hub, such as `europe-docker.pkg.dev/PROJECT/hub`: the gateway's image and
    /// the base of npm builds come from there
    REGISTRY_MIRROR = "openclaw-registry-mirror", run, "REGISTRY", "", "europe-docker.pkg.dev/PROJECT/hub";
    /// for closed networks
    NPM_REGISTRY = "openclaw-npm-registry", run, "URL", "npm's own", "https://npm.example.com";
    /// the data disk's device name; `none` keeps the state on the boot disk
    DATA_DISK = "openclaw-data-disk", boot, "none|NAME", "`openclaw-data`", "state";
    /// what is read of a blank disk [before it is formatted](disks.md): `full` (every block), `sampled` (one block of
    /// each MiB), `auto` (the first; the second on a disk above 64 GiB for which that takes more than 20 minutes)
    DATA_DISK_PROOF = "openclaw-data-disk-proof", boot, "auto|sampled|full", "`auto`", "sampled";
    /// the port at which the gateway is published on the VM
    PORT = "openclaw-port", run, "PORT", "`18789`", "18790";
    /// the address at which it is published. One that the VM does not have yet is waited for 60 s
    BIND = "openclaw-bind", run, "ADDRESS", "`127.0.0.1`", "0.0.0.0";
    /// ports on which channels listen, published like the gateway's, and [webhooks of channels that the domain has for
    /// everybody](ways-in.md#webhooks-of-channels): `/PATH:PORT`, `/PATH` (the gateway's own port) or `PORT`, separated
    /// by commas
    PUBLISH = "openclaw-publish", run, "PUBLISHED", "", "/api/messages:3978,1455";
    /// the `https://` address of a proxy [in front of the gateway](ways-in.md#a-proxy-in-front): Tailscale, Cloudflare,
    /// a load balancer. Sets `gateway.controlUi.allowedOrigins` and `gateway.trustedProxies`; the tunnel is closed then
    PUBLIC_URL = "openclaw-public-url", run, "HTTPS", "", "https://claw.example.com";
    /// beside it: the networks and addresses of the proxies as the gateway sees them, separated by commas
    TRUSTED_PROXIES = "openclaw-trusted-proxies", run, "NETWORKS", "this VM; beyond 127.0.0.1 Google's front ends, too", "10.0.0.0/8";
    /// a name in the DNS at which [this VM serves the gateway with HTTPS](ways-in.md#https-on-the-vm)
    DOMAIN = "openclaw-domain", run, "DOMAIN", "", "claw.example.com";
    /// required beside it: the networks and addresses from which browsers may come, separated by commas; the whole
    /// internet is `0.0.0.0/0,::/0`
    ALLOW_FROM = "openclaw-allow-from", beside, "NETWORKS", "", "203.0.113.0/24";
    /// beside it: the `https://` directory of another CA for ACME, which the VM trusts
    ACME_DIRECTORY = "openclaw-acme-directory", beside, "HTTPS", "Caddy's own choice (Let's Encrypt)", "https://ca.example.com/acme/directory";
    /// [requests to be paired](ways-in.md#another-browser-or-a-node) that are approved, by their ids, separated by
    /// commas. No other request is
    APPROVE = "openclaw-approve", beside, "LIST", "", "a50129ea-d1b5-402d-97fc-ee0a17cdb4ed";
    /// who [owns the gateway](ways-in.md#another-browser-or-a-node) on the channel `CHANNEL`, by the ids that people
    /// have there, separated by commas. Sets `channels.CHANNEL.allowFrom` and `commands.ownerAllowFrom`
    OWNER = "openclaw-owner-CHANNEL", run, "LIST", "", "123456789";
    /// `secret:projects/PROJECT/secrets/SECRET` takes it [from Secret Manager](security.md#secrets). A literal of 32
    /// to 4096 characters is possible, too, and readable by everyone who can read the VM's metadata
    GATEWAY_TOKEN = "openclaw-gateway-token", run, "SECRET|TOKEN", "generated once", "secret:projects/PROJECT/secrets/SECRET";
    /// JSON that is [merged into `openclaw.json`](#the-gateways-own-settings). Readable by everyone who can read the
    /// VM's metadata
    CONFIG = "openclaw-config", run, "JSON", "", "{\"logging\": {\"level\": \"debug\"}}";
    /// how long a start of the gateway may take, `1m` to `30m`: large databases on a cold or slow disk need more
    READY_TIMEOUT = "openclaw-ready-timeout", run, "TIME", "`5m`", "10m";
    /// CA certificates of a company, in PEM, one after the other: [the VM and the
    /// gateway](closed-networks.md#a-companys-ca) trust them
    CA_CERTIFICATES = "openclaw-ca-certificates", run, "PEM", "", "-----BEGIN CERTIFICATE-----…";
    /// the gateway's time zone, by its IANA name
    TIMEZONE = "openclaw-timezone", run, "ZONE", "`UTC`", "Europe/Madrid";
    /// environment variable `NAME` of the gateway; the kernel takes 128 KiB for name and value. Seen in the metadata
    /// and by `docker inspect`: a warning names those that look like secrets
    ENV = "openclaw-env-NAME", run, "TEXT", "", "VALUE";
    /// environment variable `NAME` of the gateway, [from Secret Manager](security.md#secrets):
    /// `projects/PROJECT/secrets/SECRET`, with `/versions/VERSION` unless the latest is wanted,
    /// `projects/PROJECT/locations/LOCATION/secrets/SECRET` for a regional secret; `secret:` may stand before it. Only
    /// the name is in the metadata, and `docker inspect` shows neither
    SECRET = "openclaw-secret-NAME", run, "SECRET", "", "projects/PROJECT/secrets/SECRET";
    /// `docker-ce` (Docker's repository), `distro` (Debian's), `auto` (the first, else the second)
    DOCKER = "openclaw-docker", boot, "auto|docker-ce|distro", "`auto`", "distro";
    /// a mirror of Docker's repositories
    DOCKER_APT_URL = "openclaw-docker-apt-url", boot, "URL", "`https://download.docker.com/linux`", "https://mirror.example.com/docker";
    /// swap file on the boot disk: `auto` (up to 2 GiB where memory is below 4 GiB and there is no swap), `off`, or a
    /// size such as `2G`
    SWAP = "openclaw-swap", boot, "auto|off|SIZE", "`auto`", "2G";
    /// what the gateway and its agents may take of [the VM's memory](small-machines.md#limits), `768M` or more; Node's
    /// heap gets half of it
    MEMORY = "openclaw-memory", run, "SIZE", "three quarters of the VM's", "3G";
    /// how many processes and threads they may have, 64 to 32768
    PIDS = "openclaw-pids", run, "NUMBER", "`512`", "2048";
    /// the room for files in `/tmp`, which are in that memory: at most half of it
    TMP = "openclaw-tmp", run, "SIZE", "a tenth of the VM's memory", "512M";
    /// what containers get of the metadata server: `block` nothing, `identity` the project, the zone and tokens of
    /// [one weaker account](security.md#an-account-for-the-agent), `allow` everything
    METADATA_ACCESS = "openclaw-metadata-access", run, "block|identity|allow", "`block`", "identity";
    /// beside `identity`: the address of that service account
    METADATA_ACCOUNT = "openclaw-metadata-account", beside, "TEXT", "", "agent@PROJECT.iam.gserviceaccount.com";
    /// `writable` lets programs change the container's own files, for images that need it: the container is then made
    /// anew at every boot
    CONTAINER_ROOT = "openclaw-container-root", run, "read-only|writable", "`read-only`", "writable";
    /// for the loader: where this program is, `gs://` or `https://`
    INIT_URL = "openclaw-init-url", loader, "TEXT", "", "gs://BUCKET/openclaw-init";
    /// for the loader: which file it must be
    INIT_SHA256 = "openclaw-init-sha256", loader, "TEXT", "", "DIGEST";
    /// `off`: nothing [watches the gateway](watch.md) between the runs. Takes effect with the next run
    WATCH = "openclaw-watch", beside, "on|off", "`on`", "off";
    /// when changed attributes are applied: `live` (a run, some seconds later), `boot` (at the next boot). Those for
    /// disk, engine, swap and Debian packages always wait for a boot
    APPLY = "openclaw-apply", beside, "live|boot", "`live`", "boot";
    /// a changed attribute of the *project* that updates or restarts the gateway is applied after a random part of this
    /// time, up to `24h`, so that not all VMs are down at once; `0`: like any other
    APPLY_SPREAD = "openclaw-apply-spread", beside, "0|TIME", "`10m`", "1h";
    /// echoed in the guest attribute `run-id`
    RUN_ID = "openclaw-run-id", beside, "TEXT", "", "build 17";
}

/// Prefix of plain environment variables of the gateway.
pub(super) const ENV_PREFIX: &str = "openclaw-env-";

/// Prefix of environment variables from Secret Manager.
pub(super) const SECRET_PREFIX: &str = "openclaw-secret-";

/// Prefix of the owners on a channel.
pub(super) const OWNER_PREFIX: &str = "openclaw-owner-";

/// Attributes of the loader that fetches this program: not ours to judge.
const LOADER_PREFIX: &str = "openclaw-init-";

/// A word that differs in at most this many letters is taken for a slip.
const SLIP_CHARS: usize = 2;

/// Whether a run reads the attribute.
pub(crate) fn is_ours(key: &str) -> bool {
    key.starts_with("openclaw-") && !key.starts_with(LOADER_PREFIX)
}

/// Whether another value waits for the next boot.
pub(crate) fn is_for_boot(key: &str) -> bool {
    applied(key) == Applied::Boot
}

/// Whether another value updates the gateway, or may restart it.
pub(crate) fn may_restart(key: &str) -> bool {
    applied(key) == Applied::Restart
}

/// Variables and secrets of the gateway are in the table only by their prefix.
fn applied(key: &str) -> Applied {
    let found = KEYS.iter().zip(APPLIED).find(|(known, _)| **known == key);
    found.map_or(Applied::Restart, |(_, applied)| *applied)
}

/// Whether somebody waits for it, or is to be kept out.
pub(crate) fn is_urgent(key: &str) -> bool {
    [ALLOW_FROM, APPROVE, METADATA_ACCOUNT].contains(&key)
}

/// A warning about a key that looks like ours and is not.
pub(super) fn unknown(key: &str) -> Option<String> {
    let ours = key.starts_with("openclaw-") || key.starts_with("openclaw_");
    let prefixes = [ENV_PREFIX, SECRET_PREFIX, OWNER_PREFIX, LOADER_PREFIX];
    let known = KEYS.contains(&key) || prefixes.iter().any(|prefix| key.starts_with(prefix));
    if !ours || known {
        return None;
    }
    let hint = nearest(key).map(|known| format!("; did you mean {known}?")).unwrap_or_default();
    Some(format!("the attribute {key} is not known to this version of openclaw-init and has no effect{hint}"))
}

/// The attribute that shares the most words with `key`, and of several the one with the fewest other letters.
fn nearest(key: &str) -> Option<&'static str> {
    let words = |key: &'_ str| key.split(['-', '_']).skip(1).map(str::to_owned).collect::<Vec<_>>();
    let is_slip = |one: &str, other: &str| {
        let slips = strsim::damerau_levenshtein(one, other);
        slips <= SLIP_CHARS && slips < one.len().min(other.len()).div_ceil(2)
    };
    let shared = |known: &str| {
        let (ours, theirs) = (words(key), words(known));
        let same = ours.iter().filter(|our| theirs.iter().any(|their| is_slip(our, their))).count();
        // Hyphens are left out or put in, too.
        same.max(usize::from(is_slip(&ours.concat(), &theirs.concat())))
    };
    let score = |known: &&str| (shared(known), Reverse(strsim::damerau_levenshtein(key, known)));
    KEYS.iter().copied().max_by_key(score).filter(|known| shared(known) > 0)
}

#[cfg(test)]
mod schema;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::{code_of, one_line};

    /// `UPDATE_EXPECT=1` writes it.
    #[test]
    fn the_page_of_settings_has_the_table() {
        let cell = |text: &str| if text.is_empty() { String::new() } else { format!("{text} ") };
        let rows = ROWS.iter().map(|row| {
            let waits = is_for_boot(row.key).then_some("(**waits for a boot**)");
            let doc: Vec<_> = row.doc.iter().map(|line| line.trim()).chain(waits).collect();
            let example = row.example.replace('|', "\\|");
            let kind = row.kind.replace('|', "\\|");
            format!("| `{}` | `{kind}` | {}| {} | `{example}` |\n", row.key, cell(row.default), doc.join(" "))
        });
        let head = "| attribute | kind | default | meaning | example |\n| --- | --- | --- | --- | --- |\n";
        let table = format!("{head}{}", rows.collect::<String>());
        let page = include_str!("../../docs/settings.md");
        let start = page.find("| attribute |").unwrap_or_else(|| panic!("the page has no table"));
        let end = page[start..].find("\n\n").map_or(page.len(), |end| start + end + 1);
        expect_test::expect_file!["../../docs/settings.md"].assert_eq(&format!(
            "{}{table}{}",
            &page[..start],
            &page[end..]
        ));
    }

    /// Beside what it needs.
    #[test]
    fn every_example_is_accepted() {
        let of = |key: &str| ROWS.iter().find(|row| row.key == key).map_or("", |row| row.example);
        for row in ROWS {
            let needs: &[(&str, &str)] = match row.key {
                TRUSTED_PROXIES => &[(PUBLIC_URL, of(PUBLIC_URL))],
                DOMAIN => &[(ALLOW_FROM, of(ALLOW_FROM))],
                ALLOW_FROM => &[(DOMAIN, of(DOMAIN))],
                ACME_DIRECTORY => &[(DOMAIN, of(DOMAIN)), (ALLOW_FROM, of(ALLOW_FROM))],
                METADATA_ACCESS => &[(METADATA_ACCOUNT, "agent@project.iam.gserviceaccount.com")],
                METADATA_ACCOUNT => &[(METADATA_ACCESS, "identity")],
                SOURCE_URL => &[(SOURCE_REF, of(SOURCE_REF)), (IMAGE_SOURCE, "source")],
                _ => &[],
            };
            let example = schema::example(row);
            let key = row.key.replace("CHANNEL", "telegram");
            let given = needs.iter().copied().chain([(key.as_str(), example.as_str())]);
            let given = given.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            let read = Config::from_attributes(&given).map_err(|error| (code_of(&error), one_line(&error)));
            let warnings = read.unwrap_or_else(|error| panic!("{}={example}: {error:?}", row.key)).1;
            assert!(warnings.iter().all(|warning| !warning.contains("not known")), "{}: {warnings:?}", row.key);
        }
    }

    #[test]
    fn what_is_under_a_gateway_waits_for_a_boot() {
        let waiting: Vec<_> = KEYS.iter().copied().filter(|key| is_for_boot(key)).collect();
        assert_eq!(waiting, [APT_PACKAGES, DATA_DISK, DATA_DISK_PROOF, DOCKER, DOCKER_APT_URL, SWAP]);
        assert!(!is_for_boot("openclaw-dockers") && !is_for_boot("openclaw-env-SWAP"));
        for (key, expected) in [(VERSION, true), ("openclaw-env-A", true), (SWAP, false), (RUN_ID, false)] {
            assert_eq!(may_restart(key), expected, "{key}");
        }
    }
}
