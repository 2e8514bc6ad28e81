//! `openclaw-publish`: ports on which channels listen, and the webhooks of channels.

use super::attributes::Attributes;
use super::check::{self, Checked};
use super::{DEFAULT_PORT, keys};

/// A path below the domain that is open to everybody, with everything below it. It is passed on as it is: providers
/// sign their webhooks' addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPath {
    /// It begins with a slash and ends without one.
    pub path: String,
    /// The port of the channel that it leads to; `None`: the gateway's own.
    pub port: Option<u16>,
}

/// `/PATH:PORT`, `/PATH` or `PORT`.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    path: Option<String>,
    port: Option<u16>,
}

/// The paths and the ports, whatever the order in which they are named. `at` is where the gateway is published.
pub(super) fn read(attributes: &mut Attributes<'_>, at: u16) -> (Vec<OpenPath>, Vec<u16>) {
    let entries = attributes.get(keys::PUBLISH, entries).unwrap_or_default();
    let has_domain = attributes.has(keys::DOMAIN);
    let mut reject = |what: String| attributes.reject(keys::PUBLISH, format!("{}: {what}", keys::PUBLISH));
    let mut ports: Vec<u16> = entries.iter().filter_map(|entry| entry.port).collect();
    ports.sort_unstable();
    for port in &ports {
        if [DEFAULT_PORT, at].contains(port) {
            reject(format!("{port} is the gateway's own port; a path of its own is published without a port"));
        } else if has_domain && [80, 443].contains(port) {
            reject(format!("{port} is a port of {}", keys::DOMAIN));
        }
    }
    let paths = entries.into_iter().filter_map(|Entry { path, port }| Some(OpenPath { path: path?, port }));
    let mut paths: Vec<OpenPath> = paths.collect();
    // What lies below another one comes before it.
    paths.sort_unstable_by(|one, other| other.path.cmp(&one.path));
    if let Some([twice, _]) = ports.windows(2).find(|pair| pair[0] == pair[1]) {
        reject(format!("port {twice} is there twice"));
    }
    if let Some([twice, _]) = paths.windows(2).find(|pair| pair[0].path == pair[1].path) {
        reject(format!("{} is there twice", twice.path));
    }
    if let Some(OpenPath { path, .. }) = paths.iter().find(|open| open.port.is_none() && !has_domain) {
        reject(format!("{path} without a port is of use only beside {}: set that, or remove it", keys::DOMAIN));
    }
    (paths, ports)
}

fn entries(value: &str) -> Checked<Vec<Entry>> {
    value.split(',').map(|text| entry(text.trim())).collect::<Option<_>>().ok_or_else(|| {
        "must be /PATH:PORT, /PATH or PORT, several separated by commas, such as /voice:3334,/googlechat".to_owned()
    })
}

fn entry(text: &str) -> Option<Entry> {
    let (path, port) = match text.rsplit_once(':') {
        Some((path, port)) => (Some(path), Some(port)),
        None if text.starts_with('/') => (Some(text), None),
        None => (None, Some(text)),
    };
    let port = port.map(check::port).transpose().ok()?;
    path.is_none_or(is_path).then(|| Entry { path: path.map(str::to_owned), port })
}

/// Nothing in it means something to Caddy, and it is no other path when it is taken apart again.
fn is_path(path: &str) -> bool {
    let is_segment = |segment: &str| {
        let is_plain = segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.~".contains(&byte));
        is_plain && !["", ".", ".."].contains(&segment)
    };
    path.len() <= 128 && path.strip_prefix('/').is_some_and(|path| path.split('/').all(is_segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_path_a_port_or_both() {
        let longest = format!("/{}", "a".repeat(127));
        for (text, path, port) in [
            ("/voice:3334", Some("/voice"), Some(3334)),
            ("/api/messages:3978", Some("/api/messages"), Some(3978)),
            ("/googlechat", Some("/googlechat"), None),
            ("1455", None, Some(1455)),
            (&longest, Some(&*longest), None),
        ] {
            let expected = Entry { path: path.map(str::to_owned), port };
            assert_eq!(entry(text), Some(expected), "{text}");
        }
        let too_long = format!("{longest}a");
        for text in [
            "",
            "/",
            ":1",
            "/:1",
            "//a:1",
            "/a/",
            "/a/:1",
            "/a/../b",
            "/./a",
            "/a*",
            "/a b",
            "/a{b}",
            "/%2e",
            "/a:0",
            "/a:65536",
            "/a:",
            "/a:+1",
            "voice:3334",
            "googlechat",
            "0",
            "127.0.0.1:1",
            "/a:1:2",
            "/\u{e4}",
            &too_long,
        ] {
            assert_eq!(entry(text), None, "{text}");
        }
    }
}
