//! The JSON schema of a metadata map, made from the table: what Terraform and CI can check before a VM is touched.

use std::collections::BTreeMap;

use expect_test::expect_file;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::{ENV_PREFIX, LOADER_PREFIX, OWNER_PREFIX, ROWS, Row, SECRET_PREFIX};

/// The kinds of values, as regular expressions of ECMA 262 that Rust reads as well. What they let through, a run may
/// still refuse; what a run takes, they let through.
const KINDS: [(&str, &str); 22] = [
    ("ADDRESS", "[0-9A-Fa-f:.]+"),
    ("COMMIT", "[0-9a-f]{40}(,(tree|sha256)=[0-9a-f]+)*"),
    ("DOMAIN", "[0-9A-Za-z-]+(\\.[0-9A-Za-z-]+)+"),
    ("HTTPS", "https://\\S+"),
    ("IMAGE", "\\S+[:@]\\S+"),
    ("JSON", "[\\s\\S]*\\{[\\s\\S]*\\}[\\s\\S]*"),
    ("LIST", "\\S[\\s\\S]*"),
    ("NAME", "[a-z]([-a-z0-9]{0,61}[a-z0-9])?"),
    ("NETWORKS", "[0-9A-Fa-f:./]+( *, *[0-9A-Fa-f:./]+)*"),
    ("NUMBER", "[0-9]+"),
    ("PEM", "[\\s\\S]*-----BEGIN CERTIFICATE-----[\\s\\S]*"),
    ("PORT", "0*[1-9][0-9]{0,4}"),
    ("PUBLISHED", "(/[^\\s,:]+(:[0-9]+)?|[0-9]+)( *, *(/[^\\s,:]+(:[0-9]+)?|[0-9]+))*"),
    ("REGISTRY", "[^\\s/]+(/[^\\s/]+)*/?"),
    ("SECRET", "(secret:)?projects/\\S+"),
    ("SIZE", "[0-9]+[MG]"),
    ("TEXT", "[\\s\\S]*\\S[\\s\\S]*"),
    ("TIME", "[0-9]+[hms]"),
    ("TOKEN", "[!-~]{32,4096}"),
    ("URL", "https?://\\S+"),
    ("VERSION", "[0-9]{1,4}\\.[0-9]{1,4}\\.[0-9]{1,4}(-[0-9A-Za-z.-]+)?"),
    ("ZONE", "[A-Z][0-9A-Za-z_+-]*(/[A-Z][0-9A-Za-z_+-]*)*"),
];

/// The example as it is given: what is somebody's own is in capitals, and a certificate is cut short.
pub(super) fn example(row: &Row) -> String {
    let example = row.example.replace("PROJECT/hub", "project/hub").replace("PROJECT", "project");
    example.replace("-----BEGIN CERTIFICATE-----…", include_str!("../ca/ca.pem"))
}

/// What a value of this kind may be.
fn of_kind(kind: &str) -> Value {
    let words: Vec<&str> = kind.split('|').collect();
    let pattern = |word: &&str| KINDS.iter().find(|(name, _)| name == word).map(|(_, pattern)| *pattern);
    if words.iter().all(|word| pattern(word).is_none()) {
        return json!({"enum": words});
    }
    let patterns: Vec<_> = words.iter().map(|word| pattern(word).unwrap_or(word)).collect();
    json!({"type": "string", "pattern": format!("^({})$", patterns.join("|"))})
}

/// The names of variables and of channels.
const NAME: &str = "[A-Za-z_][A-Za-z0-9_]*";
const CHANNEL: &str = "[0-9A-Za-z_-]+";

fn schema() -> Map<String, Value> {
    let is_prefix = |row: &&Row| row.key.ends_with("-NAME") || row.key.ends_with("-CHANNEL");
    let properties = ROWS.iter().filter(|row| !is_prefix(row)).map(|row| (row.key.to_owned(), of_kind(row.kind)));
    let properties: Map<_, _> = properties.collect();
    let named = |row: &Row| format!("^{}$", row.key.replace("NAME", NAME).replace("CHANNEL", CHANNEL));
    let patterns = ROWS.iter().filter(is_prefix).map(|row| (named(row), of_kind(row.kind)));
    let keys: Vec<&String> = properties.keys().filter(|key| !key.starts_with(LOADER_PREFIX)).collect();
    let others = format!(
        "^(({ENV_PREFIX}|{SECRET_PREFIX}){NAME}|{OWNER_PREFIX}{CHANNEL}|{LOADER_PREFIX}.*|(?!openclaw[-_]).*)$"
    );
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Attributes of openclaw-init",
        "description": "A map of instance attributes; what each means is in docs/settings.md.",
        "type": "object",
        "propertyNames": {"anyOf": [{"enum": keys}, {"pattern": others}]},
        "dependentRequired": {
            "openclaw-domain": ["openclaw-allow-from"],
            "openclaw-allow-from": ["openclaw-domain"],
            "openclaw-acme-directory": ["openclaw-domain"],
            "openclaw-trusted-proxies": ["openclaw-public-url"],
        },
        "patternProperties": patterns.collect::<Map<_, _>>(),
        "properties": properties,
    });
    let Value::Object(schema) = schema else { panic!("it is an object") };
    schema
}

/// Whether the schema takes the value. Only the keywords that [`of_kind`] uses.
fn takes(schema: &Value, value: &str) -> bool {
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().any(|word| word == value);
    }
    let pattern = schema["pattern"].as_str().unwrap_or_else(|| panic!("{schema} has no pattern"));
    Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}")).is_match(value)
}

/// A property on each line.
fn lines(schema: &Map<String, Value>) -> String {
    let members = schema.iter().map(|(key, value)| match value {
        Value::Object(inner) if key.ends_with("roperties") => {
            let inner: Vec<_> = inner.iter().map(|(key, value)| format!("    {}: {value}", json!(key))).collect();
            format!("  {}: {{\n{}\n  }}", json!(key), inner.join(",\n"))
        }
        value => format!("  {}: {value}", json!(key)),
    });
    format!("{{\n{}\n}}\n", members.collect::<Vec<_>>().join(",\n"))
}

/// `UPDATE_EXPECT=1` writes it.
#[test]
fn the_schema_is_made_from_the_table() {
    let text = lines(&schema());
    let read: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(read, Value::Object(schema()));
    expect_file!["../../../docs/settings.schema.json"].assert_eq(&text);
}

#[test]
fn every_example_is_valid_and_a_slip_is_not() {
    for row in ROWS {
        let example = example(row);
        assert!(takes(&of_kind(row.kind), &example), "{}={example}", row.key);
        // Words of the default are values, too.
        if let Some(default) = row.default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
            assert!(takes(&of_kind(row.kind), default), "{}={default}", row.key);
        }
    }
    let kinds: BTreeMap<_, _> = ROWS.iter().map(|row| (row.key, row.kind)).collect();
    for (key, value) in [
        ("openclaw-version", "newest"),
        ("openclaw-image-variant", "chromium"),
        ("openclaw-port", "0"),
        ("openclaw-port", "many"),
        ("openclaw-bind", "localhost"),
        ("openclaw-publish", "voice:3334"),
        ("openclaw-domain", "claw"),
        ("openclaw-allow-from", "anywhere"),
        ("openclaw-acme-directory", "http://ca.example.com"),
        ("openclaw-gateway-token", "short"),
        ("openclaw-config", "true"),
        ("openclaw-ready-timeout", "10"),
        ("openclaw-swap", "2T"),
        ("openclaw-memory", "75%"),
        ("openclaw-pids", "max"),
        ("openclaw-watch", "yes"),
        ("openclaw-run-id", "  "),
        ("openclaw-ca-certificates", "company"),
    ] {
        assert!(!takes(&of_kind(kinds[key]), value), "{key}={value}");
    }
}
