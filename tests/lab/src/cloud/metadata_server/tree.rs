//! The tree as URLs: from a path to a node, from a node to text or JSON.

use serde_json::Value;

/// The keys whose members are named by users, so that URL and JSON spell them alike.
const USER_NAMED: [&str; 3] = ["attributes", "guestAttributes", "partnerAttributes"];

/// The lists that are one value with a line per item; every other list is a directory with an index per item.
/// (`ignorelist` in `salrashid123/gce_metadata_server`, `server.go`.)
const LINES: [&str; 4] = ["aliases", "dnsServers", "scopes", "targetInstanceIps"];

/// The one list that is a value in JSON even when nobody asked for JSON.
const TAGS: &str = "tags";

/// The representation of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// The value, or one key per line.
    Plain,
    /// The value or the whole subtree as JSON.
    Json,
    /// The whole subtree, one `path value` per line.
    RecursiveText,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a> {
    value: &'a Value,
    /// The key that led here, in JSON spelling.
    key: &'a str,
    /// Whether the keys directly below are spelled in the URL as in JSON.
    user_named: bool,
}

impl<'a> Node<'a> {
    /// The root of a tree.
    pub(super) fn root(value: &'a Value) -> Self {
        Self { value, key: "", user_named: false }
    }

    /// Follows a path without leading slash; empty segments stay where they are.
    pub(super) fn find(self, path: &str) -> Option<Self> {
        path.split('/').filter(|segment| !segment.is_empty()).try_fold(self, Self::child)
    }

    fn child(self, segment: &str) -> Option<Self> {
        if !self.is_directory() {
            return None;
        }
        self.children().find(|(name, _)| name == segment).map(|(_, node)| node)
    }

    /// The members with their names in URLs.
    fn children(self) -> Box<dyn Iterator<Item = (String, Self)> + 'a> {
        // Guest attributes have two levels that users name: namespace and key.
        let all_user_named = self.key == "guestAttributes";
        match self.value {
            Value::Object(members) => Box::new(members.iter().map(move |(key, value)| {
                let name = if self.user_named { key.clone() } else { kebab_case(key) };
                let user_named = all_user_named || (!self.user_named && USER_NAMED.contains(&key.as_str()));
                (name, Self { value, key, user_named })
            })),
            Value::Array(items) => Box::new(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, value)| (index.to_string(), Self { value, key: "", user_named: false })),
            ),
            _ => Box::new(std::iter::empty()),
        }
    }

    /// Whether the node is listed with a trailing slash and redirected to when that is missing.
    pub(super) fn is_directory(self) -> bool {
        match self.value {
            Value::Object(_) => true,
            Value::Array(_) => self.key != TAGS && !LINES.contains(&self.key),
            _ => false,
        }
    }

    /// Content type and body.
    pub(super) fn render(self, format: Format) -> (&'static str, String) {
        match format {
            Format::Json => ("application/json", self.value.to_string()),
            Format::RecursiveText => ("application/text", lines(self.flatten("").into_iter())),
            Format::Plain if self.key == TAGS && self.value.is_array() => ("application/json", self.value.to_string()),
            Format::Plain if self.key == "universeDomain" => ("text/plain", self.text()),
            Format::Plain => ("application/text", self.text()),
        }
    }

    fn text(self) -> String {
        match self.value {
            Value::String(text) => text.clone(),
            Value::Array(items) if !self.is_directory() => lines(items.iter().filter_map(Value::as_str)),
            Value::Array(_) | Value::Object(_) => lines(self.children().map(|(name, node)| node.listed(name))),
            scalar => scalar.to_string(),
        }
    }

    /// The node's line in its parent's listing.
    fn listed(self, name: String) -> String {
        if self.is_directory() { name + "/" } else { name }
    }

    /// All values below `path` with their paths.
    fn flatten(self, path: &str) -> Vec<String> {
        if !self.is_directory() {
            return vec![format!("{path} {}", self.text().trim_end())];
        }
        let separator = if path.is_empty() { "" } else { "/" };
        self.children().flat_map(|(name, node)| node.flatten(&format!("{path}{separator}{name}"))).collect()
    }
}

fn lines(items: impl Iterator<Item = impl Into<String>>) -> String {
    items.flat_map(|item| [item.into(), "\n".into()]).collect()
}

/// `networkInterfaces` as it is spelled in URLs: `network-interfaces`.
fn kebab_case(key: &str) -> String {
    key.chars().fold(String::with_capacity(key.len() + 4), |mut name, letter| {
        if letter.is_ascii_uppercase() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
        name
    })
}
