//! The environment of the container.

use std::collections::BTreeMap;

use crate::config::env::PINNED;
use crate::text::MIB;

/// `NAME=value`, sorted by name: defaults, over them the operator's variables, over them the pinned ones. Node's heap
/// gets half of the `memory` in bytes that the container may use.
pub(super) fn variables(operator: &BTreeMap<String, String>, memory: u64) -> Vec<String> {
    let heap = format!("--max-old-space-size={}", memory / 2 / MIB);
    let defaults = [("TZ", "UTC"), ("TERM", "xterm-256color"), ("NODE_OPTIONS", heap.as_str())];
    let operator = operator.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let variables: BTreeMap<_, _> = defaults.into_iter().chain(operator).chain(PINNED).collect();
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_raw_string_hashes, reason = "UPDATE_EXPECT=1 writes them")]
    use super::*;
    use expect_test::expect;

    #[test]
    fn pinned_variables_win_over_the_operators_and_those_over_defaults() {
        let operator = [("HOME", "/x"), ("TZ", "Asia/Tokyo"), ("HTTPS_PROXY", "http://proxy.example:3128")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        expect![[r#"
            GOG_HOME=/home/node/.openclaw/gogcli
            GOG_KEYRING_BACKEND=file
            HOME=/home/node
            HTTPS_PROXY=http://proxy.example:3128
            NODE_ENV=production
            NODE_OPTIONS=--max-old-space-size=1536
            NO_COLOR=1
            OPENCLAW_CONFIG_PATH=/home/node/.openclaw/openclaw.json
            OPENCLAW_HOME=/home/node
            OPENCLAW_NO_AUTO_UPDATE=1
            OPENCLAW_STATE_DIR=/home/node/.openclaw
            OPENCLAW_SUPERVISOR_MODE=external
            TERM=xterm-256color
            TZ=Asia/Tokyo
            XDG_CACHE_HOME=/home/node/.openclaw/cache"#]]
        .assert_eq(&variables(&operator.into(), 3 << 30).join("\n"));
    }
}
