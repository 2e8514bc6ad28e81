//! What a value may look like. Every check returns what is allowed as its error: "must be …".

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::LEAST_MEMORY_BYTES;
use super::env;
use super::secret_version::{SecretVersion, TokenSource};
use crate::reference::{ImageReference, is_component, is_registry};
use crate::secret::Secret;
use crate::version::VersionChoice;

/// A checked value, or what would have been allowed.
pub(super) type Checked<T> = Result<T, String>;

/// A shorter token could be guessed. A longer one fills the headers of a request, of which Node.js takes 16 KiB.
const TOKEN_CHARS: RangeInclusive<usize> = 32..=4096;

/// What the kernel takes as one `NAME=VALUE`, without the NUL at its end (`MAX_ARG_STRLEN`).
const VARIABLE_BYTES: usize = 128 * 1024 - 1;

/// The longest value that is repeated in a message, and the longest one without digits and capitals: that is a name,
/// and no key.
const SHOWN_CHARS: usize = 19;
const SHOWN_NAME_CHARS: usize = 40;

/// The metadata server's other address.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);

/// Less swap helps nobody, more is a slip.
const SWAP_SIZES: RangeInclusive<u64> = (64 << 20)..=(64 << 30);

/// With less memory no gateway runs; no VM has more.
const MEMORY_SIZES: RangeInclusive<u64> = LEAST_MEMORY_BYTES..=(32 << 40);

/// Less room for temporary files is none.
const TMP_SIZES: RangeInclusive<u64> = (64 << 20)..=(32 << 40);

/// The threads of a gateway and of one command of its agents; the kernel's own default for a whole machine.
const PIDS: RangeInclusive<u32> = 64..=32_768;

/// A start takes ten seconds where all goes well; who waits for longer than half an hour would rather know.
const READY_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 60);

/// Who spreads a change over more than a day does it by hand.
const SPREADS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);

/// Nobody approves more at once than can be looked at.
const REQUESTS_LIMIT: usize = 20;

/// What people leave in a template. The gateway exits on some of these, takes others for real.
const PLACEHOLDERS: &[&str] = &["change-me", "changeme", "undefined", "null", "blank", "placeholder", "your-token"];

/// A value as it may stand in a message: short and of harmless characters. Any other may hold a password or a token.
pub(super) fn display(value: &str) -> String {
    let is_name = |c: char| c.is_ascii_lowercase() || "-_., /".contains(c);
    let is_harmless = |c: char| is_name(c) || c.is_ascii_alphanumeric();
    let is_short = value.len() <= SHOWN_CHARS && value.chars().all(is_harmless);
    let is_long_name = value.len() <= SHOWN_NAME_CHARS && value.chars().all(is_name);
    if (is_short || is_long_name) && !value.contains("//") {
        format!("{value:?}")
    } else {
        "(not shown, it may hold a secret)".to_owned()
    }
}

/// One of the words of a closed list.
pub(super) fn one_of<T: Copy>(value: &str, words: &[(&str, T)]) -> Checked<T> {
    words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        format!("must be one of: {}", words.join(", "))
    })
}

/// An exact gateway version, `2026.9.6`, or with a suffix `2026.9.6-r20261001`; or `latest`.
pub(super) fn version(value: &str) -> Checked<VersionChoice> {
    value.parse().map_err(str::to_owned)
}

/// An image reference with a tag or a digest: without either, Docker would take `latest`, which moves.
pub(super) fn image(value: &str) -> Checked<ImageReference> {
    let reference = value.parse::<ImageReference>().ok();
    reference.filter(|reference| reference.tag().is_some() || reference.digest().is_some()).ok_or_else(|| {
        "must be an image reference with a tag or a digest, such as ghcr.io/openclaw/openclaw:2026.9.6".to_owned()
    })
}

/// A registry, perhaps with a path: what stands before the names of its images.
pub(super) fn registry_path(value: &str) -> Checked<String> {
    let value = value.trim_end_matches('/');
    let (first, path) = value.split_once('/').map_or((value, None), |(first, path)| (first, Some(path)));
    let good = (first.contains(['.', ':']) || first == "localhost")
        && is_registry(first)
        && path.is_none_or(|path| path.split('/').all(is_component))
        && value.len() <= 200;
    if good {
        Ok(value.to_owned())
    } else {
        Err("must be a registry and a path in it, without https://, such as mirror.example/docker-hub".to_owned())
    }
}

/// A device name as Compute Engine allows it: `[a-z]([-a-z0-9]*[a-z0-9])?`, at most 63 characters.
pub(super) fn device_name(value: &str) -> Checked<String> {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = value.len() <= 63
        && value.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && value.bytes().last().is_some_and(word)
        && value.bytes().all(|byte| word(byte) || byte == b'-');
    if good {
        Ok(value.to_owned())
    } else {
        Err("must be a device name (a lower-case letter, then letters, digits and hyphens, at most 63) or none"
            .to_owned())
    }
}

/// A port that can be listened on.
pub(super) fn port(value: &str) -> Checked<u16> {
    match value.parse() {
        Ok(port) if port > 0 && value.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err("must be a port from 1 to 65535".to_owned()),
    }
}

/// An `http://` or `https://` URL. Credentials would be readable in the metadata, so there are none.
///
/// The parser alone would take `https:host`, `http:///host` and a host with escapes, too.
fn web_url(value: &str) -> Option<reqwest::Url> {
    let rest = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"))?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_strange = rest.starts_with(['/', '\\']) || host.contains('%');
    if is_strange || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let url = reqwest::Url::parse(value).ok()?;
    (url.username().is_empty() && url.password().is_none() && url.fragment().is_none()).then_some(url)
}

/// A base URL, without a final slash.
pub(super) fn base_url(value: &str) -> Checked<String> {
    match web_url(value) {
        Some(url) if url.query().is_none() => Ok(value.trim_end_matches('/').to_owned()),
        _ => Err("must be an http:// or https:// URL without user, password, query and fragment".to_owned()),
    }
}

/// A number with one of these units behind it, as a multiple of the least of them.
fn with_unit(value: &str, units: &[(char, u64)]) -> Option<u64> {
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((value.strip_suffix(*unit)?, factor)))?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| number.parse::<u64>().ok()?.checked_mul(*factor)).flatten()
}

/// A size in bytes, given in mebibytes (`M`) or gibibytes (`G`).
fn size(value: &str, sizes: &RangeInclusive<u64>) -> Option<u64> {
    with_unit(value, &[('M', 1 << 20), ('G', 1 << 30)]).filter(|bytes| sizes.contains(bytes))
}

/// The size of a swap file.
pub(super) fn swap_size(value: &str) -> Checked<u64> {
    size(value, &SWAP_SIZES).ok_or_else(|| "must be one of: auto, off, or a size from 64M to 64G such as 2G".to_owned())
}

/// The memory of the container.
pub(super) fn memory_size(value: &str) -> Checked<u64> {
    size(value, &MEMORY_SIZES)
        .ok_or_else(|| "must be a size from 768M, without which no gateway runs, such as 3G".to_owned())
}

/// The room for temporary files in the container.
pub(super) fn tmp_size(value: &str) -> Checked<u64> {
    size(value, &TMP_SIZES).ok_or_else(|| "must be a size from 64M, such as 512M".to_owned())
}

/// How many processes and threads the container may have.
pub(super) fn pids(value: &str) -> Checked<u32> {
    let number = Some(value).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.and_then(|value| value.parse().ok()).filter(|number| PIDS.contains(number));
    number.ok_or_else(|| format!("must be a number from {} to {}", PIDS.start(), PIDS.end()))
}

/// A time in hours (`h`), minutes (`m`) or seconds (`s`).
fn time(value: &str, times: &RangeInclusive<Duration>) -> Option<Duration> {
    let seconds = with_unit(value, &[('h', 3600), ('m', 60), ('s', 1)])?;
    Some(Duration::from_secs(seconds)).filter(|time| times.contains(time))
}

/// How long a start may take.
pub(super) fn ready_timeout(value: &str) -> Checked<Duration> {
    time(value, &READY_TIMEOUTS).ok_or_else(|| "must be a time from 1m to 30m, such as 10m or 90s".to_owned())
}

/// How far the same change may be spread over a fleet.
pub(super) fn apply_spread(value: &str) -> Checked<Duration> {
    let spread = if value == "0" { Some(Duration::ZERO) } else { time(value, &SPREADS) };
    spread.ok_or_else(|| "must be 0 or a time up to 24h, such as 30m".to_owned())
}

/// The URL of one file.
pub(super) fn download_url(value: &str) -> Checked<reqwest::Url> {
    web_url(value).ok_or_else(|| "must be an http:// or https:// URL without user, password and fragment".to_owned())
}

/// An address to publish on: this VM's, or one that it may have later. Some classes are nobody's to listen on.
pub(super) fn bind(value: &str) -> Checked<IpAddr> {
    let address = value.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let possible = |address: &IpAddr| match address {
        IpAddr::V4(v4) => {
            let this_network = v4.octets()[0] == 0 && !v4.is_unspecified();
            !(v4.is_multicast() || v4.is_broadcast() || v4.is_link_local() || this_network)
        }
        IpAddr::V6(v6) => !(v6.is_multicast() || v6.is_unicast_link_local() || *v6 == METADATA_V6),
    };
    address.filter(possible).ok_or_else(|| {
        "must be an IP address of this VM, such as 127.0.0.1 (no multicast, broadcast or link-local one)".to_owned()
    })
}

/// The ends of names for which Caddy asks no CA, not even one that it was told of.
const PRIVATE_NAMES: [&str; 4] = [".internal", ".local", ".localhost", ".home.arpa"];

/// A name for which a public CA could give a certificate.
pub(super) fn domain(value: &str) -> Checked<String> {
    let name = value.to_ascii_lowercase();
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (1..=63).contains(&label.len()) && is_plain && !label.starts_with('-') && !label.ends_with('-')
    };
    let labels: Vec<&str> = name.split('.').collect();
    let is_address = labels.last().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if name == "ip" || is_address {
        Err("must be a name: a certificate for an address needs Caddy 2.10 or newer, which the distribution does not \
             have"
            .to_owned())
    } else if PRIVATE_NAMES.iter().any(|end| name.ends_with(end)) {
        Err("must be a name that a CA can sign: for one that ends in .internal, .local, .localhost or .home.arpa Caddy \
             signs itself, which no browser accepts"
            .to_owned())
    } else if labels.len() > 1 && name.len() <= 253 && labels.into_iter().all(is_label) {
        Ok(name)
    } else {
        Err("must be a full name in the DNS, such as claw.example.com".to_owned())
    }
}

/// The address of a service account, as Google makes them (cloud.google.com/iam/docs/service-account-types).
pub(super) fn service_account(value: &str) -> Checked<String> {
    let is_name = |name: &str| {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        (1..=64).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with(['.', '-'])
    };
    let is_account = value.split_once('@').is_some_and(|(name, host)| {
        is_name(name) && host.ends_with(".gserviceaccount.com") && domain(host).is_ok_and(|domain| domain == host)
    });
    if is_account {
        Ok(value.to_owned())
    } else {
        Err("must be the address of a service account, such as agent@PROJECT.iam.gserviceaccount.com".to_owned())
    }
}

/// A time zone's name, as far as its form tells.
pub(super) fn timezone(value: &str) -> Checked<String> {
    let is_part = |part: &str| {
        let is_plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte));
        is_plain && part.starts_with(|first: char| first.is_ascii_uppercase())
    };
    if value.len() <= 64 && value.split('/').all(is_part) {
        Ok(value.to_owned())
    } else {
        Err("must be the IANA name of a time zone, such as Europe/Madrid".to_owned())
    }
}

/// Networks and addresses, separated by commas.
pub(super) fn networks(value: &str) -> Checked<Vec<String>> {
    let is_network = |text: &&str| {
        let (address, prefix) = text.split_once('/').map_or((*text, None), |(address, prefix)| (address, Some(prefix)));
        let Ok(address) = address.parse::<IpAddr>() else { return false };
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let is_number = |prefix: &str| prefix.bytes().all(|byte| byte.is_ascii_digit());
        prefix.is_none_or(|prefix| is_number(prefix) && prefix.parse::<u8>().is_ok_and(|bits| bits <= longest))
    };
    let networks: Vec<&str> = value.split(',').map(str::trim).collect();
    if networks.iter().all(is_network) {
        Ok(networks.into_iter().map(str::to_owned).collect())
    } else {
        Err("must be networks or addresses separated by commas, such as 203.0.113.0/24,2001:db8::7".to_owned())
    }
}

/// A literal gateway token, or the name of a secret. A name without `secret:` would be a valid token, and a known one.
pub(super) fn token_source(value: &str) -> Checked<TokenSource> {
    match SecretVersion::in_value(value) {
        Some(named) => named.map(TokenSource::Named),
        None if SecretVersion::named(value).is_ok() => {
            Err("is the name of a secret; to take the token from there, write secret:projects/…".to_owned())
        }
        None => token(value).map(TokenSource::Literal),
    }
}

/// A gateway token. Never shown in a message.
pub(crate) fn token(value: &str) -> Checked<Secret> {
    let lower = value.to_ascii_lowercase();
    if PLACEHOLDERS.iter().any(|placeholder| lower.starts_with(placeholder)) {
        Err("is a placeholder, not a token; `openssl rand -hex 32` makes one, and without the attribute one is \
             generated"
            .to_owned())
    } else if !TOKEN_CHARS.contains(&value.len()) || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err(format!(
            "must be {} to {} printable ASCII characters without spaces; `openssl rand -hex 32` makes one",
            TOKEN_CHARS.start(),
            TOKEN_CHARS.end()
        ))
    } else {
        Ok(Secret::new(value))
    }
}

/// An environment variable that is the operator's to set. Its value is never shown in a message.
pub(super) fn variable(name: &str, value: &str) -> Checked<()> {
    let good = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !good {
        Err("must end in the name of an environment variable (letters, digits and underscores)".to_owned())
    } else if env::is_own(name) {
        Err(format!("openclaw-init sets {name} itself"))
    } else if value.contains('\0') {
        Err("must not hold a NUL character".to_owned())
    } else if name.len() + 1 + value.len() > VARIABLE_BYTES {
        Err(format!("its value has {} bytes, the kernel takes {VARIABLE_BYTES} for name and value", value.len()))
    } else {
        Ok(())
    }
}

/// Whether this is an id by which the gateway names a request to be paired.
pub(crate) fn is_request_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    id.len() <= 128 && id.starts_with(|first: char| first.is_ascii_alphanumeric()) && id.bytes().all(is_plain)
}

/// The ids of requests to be paired, separated by commas; each of them once.
pub(super) fn request_ids(value: &str) -> Checked<Vec<String>> {
    let ids = list(value);
    if ids.len() <= REQUESTS_LIMIT && ids.iter().all(|id| is_request_id(id)) {
        Ok(ids)
    } else {
        Err(format!(
            "must be up to {REQUESTS_LIMIT} ids of requests separated by commas, such as \
             a50129ea-d1b5-402d-97fc-ee0a17cdb4ed; `sudo openclaw-init pair` lists them"
        ))
    }
}

/// What people are called on a channel, separated by commas. Nothing in it stands for more than one of them.
pub(super) fn people(value: &str) -> Checked<Vec<String>> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-_.:@/=!~|#".contains(&byte);
    let is_person =
        |id: &String| !id.is_empty() && id.len() <= 256 && id.bytes().all(is_plain) && !id.starts_with("accessGroup:");
    let ids = list(value);
    if ids.iter().all(is_person) {
        Ok(ids)
    } else {
        Err("must be ids of people on the channel separated by commas, such as 123456789; * and groups are none"
            .to_owned())
    }
}

/// The parts between the commas, each of them once.
fn list(value: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in value.split(',').map(str::trim) {
        if parts.iter().all(|known| known != part) {
            parts.push(part.to_owned());
        }
    }
    parts
}

/// A short printable text.
pub(super) fn run_id(value: &str) -> Checked<String> {
    if value.len() <= 128 && value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        Ok(value.to_owned())
    } else {
        Err("must be at most 128 printable ASCII characters".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts<T>(check: impl Fn(&str) -> Checked<T>, good: &[&str], bad: &[&str]) {
        for value in good {
            assert!(check(value).is_ok(), "{value} is good");
        }
        for value in bad {
            assert!(check(value).is_err(), "{value} is bad");
        }
    }

    #[test]
    fn versions() {
        accepts(
            version,
            &["2026.9.6", "2026.12.31", "2026.9.6-r20261001", "2026.9.6-slim", "2026.9.6-beta.1", "latest"],
            &[
                "latest-slim",
                "v2026.9.6",
                "2026.9",
                "2026.9.6.1",
                "2026.9.6-",
                "2026.9.x",
                "2026.9.6 ",
                "2026.9.6-a/b",
                "-",
                "",
            ],
        );
    }

    #[test]
    fn images() {
        let digest = "a".repeat(64);
        let (by_digest, both) = (format!("repo@sha256:{digest}"), format!("r.io/a/b:1@sha256:{digest}"));
        let good = [
            "a:1",
            "ghcr.io/openclaw/openclaw:2026.9.6",
            "localhost:5000/a/b__c:x",
            "r.io:443/a-b.c:_x",
            &by_digest,
            &both,
        ];
        let (long, short, upper) =
            (format!("a:{}", "x".repeat(129)), "a@sha256:abc", format!("a@sha256:{}", "A".repeat(64)));
        let bad = [
            "a",
            "r.io:5000/a",
            "A:1",
            "a:",
            ":1",
            "/a:1",
            "a//b:1",
            "a/:1",
            "r.io:99999/a:1",
            "-.io/a:1",
            "a..b:1",
            "a-:1",
            "a:1 ",
            "a:1@",
            "https://r.io/a:1",
            short,
            &long,
            &upper,
        ];
        accepts(image, &good, &bad);
    }

    #[test]
    fn registry_paths() {
        accepts(
            registry_path,
            &["mirror.example", "europe-docker.pkg.dev/p-1/hub", "localhost:5000/a/b", "10.0.0.2:5000", "m.example/a/"],
            &[
                "",
                "mirror",
                "https://m.example/a",
                "m.example/A",
                "m.example//a",
                "m.example/a:1",
                "u@m.example/a",
                "m.example:x/a",
            ],
        );
        assert_eq!(registry_path("m.example/a/").as_deref(), Ok("m.example/a"));
    }

    #[test]
    fn device_names() {
        let (longest, longer) = ("a".repeat(63), "a".repeat(64));
        accepts(
            device_name,
            &["a", "openclaw-data", "d1", &longest],
            &["", "1d", "-a", "a-", "A", "a_b", "../a", "a/b", &longer],
        );
    }

    #[test]
    fn timezones() {
        accepts(
            timezone,
            &["UTC", "Europe/Madrid", "America/Argentina/Buenos_Aires", "America/Port-au-Prince", "Etc/GMT+9"],
            &["", "europe/madrid", "../Madrid", "Europe/", "/Europe", "Europe/Ma drid", "+02:00"],
        );
    }

    #[test]
    fn domains() {
        let long = format!("{}.example.com", "a".repeat(64));
        accepts(
            domain,
            &[
                "claw.example.com",
                "Claw.Example.COM",
                "a-b.c",
                "xn--bcher-kva.example",
                "1.example",
                "internal.example",
            ],
            &[
                "ip",
                "10.0.0.1",
                "claw",
                "claw.example.com.",
                "*.example.com",
                "-a.b",
                "a-.b",
                "a..b",
                "a b.c",
                &long,
                "::1",
                "claw.Local",
                "claw.localhost",
                "claw.c.project.internal",
                "claw.home.arpa",
            ],
        );
        assert_eq!(domain("Claw.Example.COM").as_deref(), Ok("claw.example.com"));
    }

    #[test]
    fn service_accounts() {
        accepts(
            service_account,
            &[
                "agent@my-project.iam.gserviceaccount.com",
                "a-1@p.example.com.iam.gserviceaccount.com",
                "708288290784-compute@developer.gserviceaccount.com",
                "p.example.com@appspot.gserviceaccount.com",
            ],
            &[
                "",
                "agent",
                "default",
                "me@example.com",
                "@p.iam.gserviceaccount.com",
                "a@gserviceaccount.com",
                "a@.gserviceaccount.com",
                "Agent@p.iam.gserviceaccount.com",
                "a@P.iam.gserviceaccount.com",
                "a@b@p.iam.gserviceaccount.com",
                "a/b@p.iam.gserviceaccount.com",
                "a?@p.iam.gserviceaccount.com",
                "a@p.iam.gserviceaccount.com.",
                "a@p.iam.gserviceaccount.com:x",
                "a@p.iam.gserviceaccount.com/token",
                "a@p\n.iam.gserviceaccount.com",
                "serviceAccount:a@p.iam.gserviceaccount.com",
                "a@p.iam.gserviceaccount.com.evil.example",
            ],
        );
    }

    #[test]
    fn lists_of_networks() {
        accepts(
            networks,
            &["0.0.0.0/0", "203.0.113.7", "203.0.113.0/24, 2001:db8::/32,::1"],
            &["", "all", "203.0.113.0/33", "203.0.113/24", "10.0.0.0/", "10.0.0.0/+8", "::/129", "10.0.0.1,", "a.b/8"],
        );
    }

    #[test]
    fn ports() {
        accepts(port, &["1", "18789", "65535"], &["", "0", "65536", "-1", "+80", "80/tcp", "abc", "8 0"]);
    }

    #[test]
    fn urls() {
        accepts(
            base_url,
            &["https://mirror.example", "http://10.0.0.1:8080/docker/"],
            &[
                "",
                "mirror.example",
                "ftp://a/b",
                "https://u:p@a/",
                "https://u@a/",
                "https://a/?b",
                "https://a/#b",
                "http://",
                "http://a/b c",
                "http:///a",
                "https:a",
                "//a",
                "https://a%41.example/",
                "https://n.eaMplxamplcD%DDDl%%%/",
            ],
        );
        assert!(download_url("http:///a").is_err() && download_url("https://a/?signature=x").is_ok());
        assert_eq!(base_url("https://a/b/").as_deref(), Ok("https://a/b"));
    }

    #[test]
    fn swap_sizes() {
        accepts(
            swap_size,
            &["64M", "2048M", "2G", "64G"],
            &["", "G", "2", "2g", "+2G", "-2G", "2 G", "2GB", "0G", "65G", "63M", "99999999999999999999G"],
        );
        assert_eq!(swap_size("512M"), Ok(512 << 20));
    }

    #[test]
    fn times() {
        accepts(ready_timeout, &["1m", "90s", "30m"], &["", "0", "59s", "31m", "1h", "10", "m", "-1m", "1.5m"]);
        accepts(apply_spread, &["0", "0s", "20s", "10m", "24h", "1440m"], &["", "1", "25h", "off", "1d", "+1m"]);
        assert_eq!(apply_spread("2h"), Ok(Duration::from_secs(7200)));
    }

    #[test]
    fn limits_of_the_container() {
        accepts(memory_size, &["768M", "3G", "1024G"], &["", "767M", "2", "auto", "3g", "33000000G", "+3G"]);
        accepts(tmp_size, &["64M", "1G"], &["", "63M", "10%", "0"]);
        accepts(pids, &["64", "512", "32768"], &["", "0", "63", "32769", "-1", "+64", "unlimited"]);
    }

    #[test]
    fn tokens() {
        let (good, spaced) = ("f0".repeat(16), format!("{} {}", "f0".repeat(16), "x"));
        let template = format!("CHANGE-ME-now{}", "0".repeat(32));
        let (longest, longer) = ("f".repeat(4096), "f".repeat(4097));
        let bad = ["", "abc", "change-me-now", "undefined", "null", &spaced, &template, &longer];
        accepts(token, &[&good, &longest], &bad);
        assert_eq!(token(&good).map(|token| token.expose().to_owned()), Ok(good));
    }

    #[test]
    fn variables() {
        accepts(
            |name| variable(name, "x"),
            &["TZ", "_x", "Telegram_2"],
            &["", "1A", "A-B", "A=B", "HOME", "PATH", "OPENCLAW_GATEWAY_TOKEN"],
        );
    }

    #[test]
    fn a_variable_fits_into_the_kernels_limit() {
        let value = "x".repeat(VARIABLE_BYTES - "TZ=".len());
        assert_eq!(variable("TZ", &value), Ok(()));
        for (value, word) in [(format!("{value}x"), "131071"), ("a\0".to_owned(), "NUL")] {
            assert!(variable("TZ", &value).is_err_and(|complaint| complaint.contains(word)));
        }
    }

    #[test]
    fn binds() {
        accepts(
            bind,
            &["127.0.0.1", "0.0.0.0", "::", "::1", "10.128.0.2", "8.8.8.8", "100.64.0.1", "2600:1900::1"],
            &[
                "localhost",
                "224.0.0.1",
                "255.255.255.255",
                "169.254.169.254",
                "0.0.0.1",
                "ff02::1",
                "fe80::1",
                "fd20:ce::254",
                "::ffff:169.254.169.254",
                "127.0.0.1:80",
            ],
        );
        assert_eq!(bind("::ffff:127.0.0.1"), Ok([127, 0, 0, 1].into()), "the same address, and loopback");
    }

    #[test]
    fn what_may_hold_a_credential_is_not_shown() {
        for (value, shown) in [
            ("banana", true),
            ("2026.9", true),
            ("bob:PW@mirror.example", false),
            ("//bob:PW@mirror.example", false),
            ("https:bob:PW@mirror.example", false),
            ("https:/bob:PW@mirror.example", false),
            ("https://bob:PW@mirror.example", false),
            ("https://PW@mirror.example", false),
            ("https://mirror.example/?token=PW", false),
            ("https://mirror.example/#PW", false),
            ("bob:PW", false),
            ("https:\\\\bob:PW%40mirror.example", false),
            ("ghcr.io/openclaw/openclaw", true),
            ("0123456789abcdef0123456789abcdef0123456789", false),
            ("0123456789abcdef0123456789abcdef", false),
            ("ghp_0123456789abcdefghijABCDEFGHIJ012345", false),
            ("npm_0123456789abcdefghijABCDEFGHIJ012345", false),
            ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", false),
            ("AKIAIOSFODNN7EXAMPLE", false),
            ("0123456789abcdef01234567", false),
            ("0f0e0d0c-1a2b-3c4d-5e6f-0123456789ab", false),
            ("npm.example/;_auth=PW", false),
            ("m.example/token=PW", false),
        ] {
            assert_eq!(display(value), if shown { format!("{value:?}") } else { display("@") }, "{value}");
        }
    }

    #[test]
    fn ids_of_requests() {
        let (longest, longer) = ("a".repeat(128), "a".repeat(129));
        let many: Vec<_> = (0..21).map(|id| id.to_string()).collect();
        accepts(
            request_ids,
            &["a50129ea-d1b5-402d-97fc-ee0a17cdb4ed", "a, b", "a,a", &longest, &many[..20].join(",")],
            &["", "*", "a/b", "a,", "-a", "--latest", "a b", "a;b", "$(a)", &longer, &many.join(",")],
        );
        assert_eq!(request_ids("b, a,b"), Ok(vec!["b".to_owned(), "a".to_owned()]));
    }

    #[test]
    fn ids_of_people() {
        accepts(
            people,
            &["123456789", "+15551234567, @a.b:example.org", "users/1", "nick!user@host", "U123|x"],
            &["", "*", "1,*", "1,", "a b", "${HOME}", "\"", "accessGroup:all"],
        );
    }

    #[test]
    fn run_ids() {
        let long = "x".repeat(129);
        accepts(run_id, &["build 17", "a/b:c"], &["\u{e4}", "a\nb", &long]);
    }
}
