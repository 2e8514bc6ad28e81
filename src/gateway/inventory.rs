//! What a gateway has loaded: its plugins, which its channels and model providers are, too.
//!
//! At every start it says so in a line of its log, `http server listening (2 plugins: a, b; 5.2s)`, and then names the
//! configured channels for which it has none (measured, 2026.9.6). It is not to be trusted: such words are compared and
//! told, and nothing else follows from them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Gateway, NAME, inspect, logs, openclaw_json};
use crate::error::RUN_AGAIN;
use crate::paths::INVENTORY;
use crate::text::printable;

/// How the lines begin.
const LISTENING: &str = "http server listening (";
const WITHOUT_PLUGIN: &str = "configured channel warning: channels.";

/// By these words the watcher knows what it cannot see mended.
pub const NOT_LOADED: &str = "is not loaded, though openclaw.json asks for it";

/// How many names are kept, and how many bytes of each.
const NAMES_LIMIT: usize = 256;
const NAME_BYTES: usize = 64;

/// How long a gateway that is ready may take until its log has the line.
const LOG_DELAY: Duration = Duration::from_secs(1);

/// What the gateway said at its last start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The plugins that it has loaded, by their ids.
    pub plugins: BTreeSet<String>,
    /// The channels of `openclaw.json` for which it has no plugin.
    pub channels_without: BTreeSet<String>,
}

/// What was read at one start of the container. Later runs of the boot need not read the log again.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    started_at: Timestamp,
    inventory: Option<Inventory>,
}

impl Gateway<'_> {
    /// What the gateway has loaded; `None` where it does not say. The log is read once for each start of the container.
    pub async fn inventory(&self) -> Result<Option<Inventory>> {
        let Some(started_at) = self.started_at().await? else { return Ok(None) };
        match self.note().await? {
            Some(note) if note.started_at == started_at => Ok(note.inventory),
            _ => self.take_inventory().await,
        }
    }

    /// The same, from the log of now: a gateway may have begun anew inside its container.
    pub async fn take_inventory(&self) -> Result<Option<Inventory>> {
        let Some(started_at) = self.started_at().await? else { return Ok(None) };
        let mut inventory = self.read_inventory(started_at).await;
        if inventory.is_none() {
            tokio::time::sleep(LOG_DELAY).await;
            inventory = self.read_inventory(started_at).await;
        }
        // The line may have left the log since.
        let known = self.note().await?.filter(|note| note.started_at == started_at).and_then(|note| note.inventory);
        let inventory = inventory.or(known);
        let note = serde_json::to_vec(&Note { started_at, inventory: inventory.clone() })?;
        self.host.note_file(INVENTORY, note).await.context("noting what the gateway has")?;
        Ok(inventory)
    }

    async fn note(&self) -> Result<Option<Note>> {
        Ok(self.host.read(INVENTORY).await?.and_then(|note| serde_json::from_slice(&note).ok()))
    }

    async fn started_at(&self) -> Result<Option<Timestamp>> {
        let state = inspect(self.engine, NAME).await?.and_then(|container| container.state).unwrap_or_default();
        Ok(state.started_at.filter(|_| state.running == Some(true)).and_then(|at| at.parse().ok()))
    }

    async fn read_inventory(&self, since: Timestamp) -> Option<Inventory> {
        let mut found = None;
        logs::each_line(self.engine, NAME, since, |line| see(&mut found, line)).await;
        found
    }

    /// What the gateway has, and what it lacks of what `openclaw.json` asks for: plugins that were loaded `before`, and
    /// those of its channels. `None` where it does not say.
    pub async fn stock(&self, before: &BTreeSet<String>) -> Result<Option<(Inventory, Lacks)>> {
        let Some(inventory) = self.inventory().await? else { return Ok(None) };
        let lacks = self.lacks(before, &inventory).await;
        if lacks.plugins.is_empty() && lacks.channels.is_empty() {
            return Ok(Some((inventory, lacks)));
        }
        // It may have begun anew inside its container since.
        let inventory = self.take_inventory().await?.unwrap_or(inventory);
        let lacks = self.lacks(before, &inventory).await;
        Ok(Some((inventory, lacks)))
    }

    /// Of the plugins that were loaded `before`, those that are not any more although `openclaw.json` asks for them.
    pub async fn lost(&self, before: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        Ok(self.stock(before).await?.map(|(_, lacks)| lacks.plugins).unwrap_or_default())
    }

    async fn lacks(&self, before: &BTreeSet<String>, now: &Inventory) -> Lacks {
        // With a file that cannot be read the gateway would not run.
        let document = openclaw_json::read(self.host, self.data).await.ok().flatten().unwrap_or_default();
        let plugins = before.difference(&now.plugins).filter(|plugin| asks_for(&document, plugin));
        let is_configured = |channel: &&String| is_on(document["channels"].get(channel.as_str()));
        let channels = now.channels_without.iter().filter(is_configured);
        Lacks { plugins: plugins.cloned().collect(), channels: channels.cloned().collect() }
    }
}

/// What a gateway lacks although `openclaw.json` asks for it.
#[derive(Debug, Default)]
pub struct Lacks {
    /// Plugins that were loaded before.
    pub plugins: BTreeSet<String>,
    /// Channels for which it has no plugin.
    pub channels: BTreeSet<String>,
}

impl Lacks {
    /// For the report.
    pub fn sentences(&self) -> impl Iterator<Item = String> {
        let plugins = self.plugins.iter().map(|plugin| lacks_plugin(plugin));
        plugins.chain(self.channels.iter().map(|channel| lacks_channel(channel)))
    }
}

/// What is said of a plugin that was loaded before.
fn lacks_plugin(plugin: &str) -> String {
    format!("the plugin {plugin} {NOT_LOADED}: see `sudo openclaw plugins list`, then run `{RUN_AGAIN}`")
}

/// What is said of a channel without a plugin.
fn lacks_channel(channel: &str) -> String {
    format!("the plugin of channels.{channel} {NOT_LOADED}: see `sudo openclaw doctor`, then run `{RUN_AGAIN}`")
}

/// What one line of the log adds.
fn see(found: &mut Option<Inventory>, line: &str) {
    if let Some((_, rest)) = line.split_once(LISTENING) {
        // A gateway that begins anew begins with nothing.
        *found = plugins(rest).map(|plugins| Inventory { plugins, ..Inventory::default() });
    } else if let Some((_, rest)) = line.split_once(WITHOUT_PLUGIN)
        && let Some(inventory) = found
        && inventory.channels_without.len() < NAMES_LIMIT
    {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
        inventory.channels_without.insert(printable(&rest[..end], NAME_BYTES));
    }
}

/// `2 plugins: a, b; 5.2s)`, or `0 plugins, 5.2s)`.
fn plugins(text: &str) -> Option<BTreeSet<String>> {
    let (count, rest) = text.split_once(" plugin")?;
    if count == "0" {
        return Some(BTreeSet::new());
    }
    let (_, names) = rest.split_once(": ")?;
    let names = names.split([';', ')']).next().unwrap_or_default();
    Some(names.split(", ").take(NAMES_LIMIT).map(|name| printable(name, NAME_BYTES)).collect())
}

/// Whether `openclaw.json` asks for the plugin by its name: as a plugin, a channel, or a provider of models.
fn asks_for(document: &Value, plugin: &str) -> bool {
    let places = [&["plugins", "entries"][..], &["channels"], &["models", "providers"]];
    let named = places.iter().filter_map(|place| place.iter().try_fold(document, |at, key| at.get(key))?.get(plugin));
    let mut named = named.peekable();
    let plugins = &document["plugins"];
    let list = |name: &str| plugins[name].as_array().filter(|list| !list.is_empty());
    let is_listed = |name: &str| list(name).is_some_and(|list| list.iter().any(|it| it == plugin));
    let is_allowed = list("allow").is_none() || is_listed("allow");
    // One memory at a time.
    let memory = plugins["slots"]["memory"].as_str().filter(|_| plugin.starts_with("memory-"));
    plugins["enabled"] != false
        && is_allowed
        && !is_listed("deny")
        && memory.is_none_or(|memory| memory == plugin)
        && named.peek().is_some()
        && named.all(|entry| is_on(Some(entry)))
}

/// Whether there is such an entry, and it is not switched off.
fn is_on(entry: Option<&Value>) -> bool {
    entry.is_some_and(|entry| entry.get("enabled") != Some(&Value::Bool(false)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_last_start_of_the_log_counts() {
        let time = "2026-11-27T23:05:05.333+00:00 [gateway]";
        let channel = format!(
            "{time} configured channel warning: channels.pigeon is configured but no channel plugin is installed or \
             loadable (no-channel-owner). Run `openclaw doctor --fix`"
        );
        #[rustfmt::skip]
        let cases = [
            (vec![], None),
            (vec!["ready".to_owned(), channel.clone()], None),
            (vec![format!("{time} http server listening (0 plugins, 3.1s)")], Some((&[][..], &[][..]))),
            (vec![format!("{time} http server listening (1 plugin: openai; 3.1s)")], Some((&["openai"], &[]))),
            (vec![format!("{time} http server listening (2 plugins: openai, xai)"), channel.clone()], Some((&["openai", "xai"], &["pigeon"]))),
            (vec!["http server listening (2 plugins: a, b; 1s)".to_owned(), channel, "http server listening (1 plugin: b; 1s)".to_owned()], Some((&["b"], &[]))),
            (vec!["http server listening (what?)".to_owned()], None),
        ];
        for (log, expected) in cases {
            let mut found = None;
            for line in &log {
                see(&mut found, line);
            }
            let found = found.map(|it: Inventory| (it.plugins, it.channels_without));
            assert_eq!(found, expected.map(|(plugins, channels)| (set(plugins), set(channels))), "{log:?}");
        }
        let many = (0..999).map(|number| format!("plugin-{number}")).collect::<Vec<_>>().join(", ");
        assert_eq!(plugins(&format!("999 plugins: {many}; 1s)")).unwrap_or_default().len(), NAMES_LIMIT);
        assert_eq!(plugins("1 plugin: \u{1b}[31mred; 1s)"), Some(set(&[&printable("\u{1b}[31mred", NAME_BYTES)])));
    }

    #[test]
    fn what_openclaw_json_does_not_ask_for_is_no_loss() {
        for (document, expected) in [
            (json!({}), false),
            (json!({"plugins": {"entries": {"pigeon": {"enabled": true}}}}), true),
            (json!({"plugins": {"entries": {"pigeon": {}}}}), true),
            (json!({"plugins": {"entries": {"pigeon": {"enabled": false}}}}), false),
            (json!({"plugins": {"entries": {"other": {}}}}), false),
            (json!({"plugins": {"entries": {"pigeon": {}}, "deny": ["pigeon"]}}), false),
            (json!({"plugins": {"entries": {"pigeon": {}}, "enabled": false}}), false),
            (json!({"plugins": {"entries": {"pigeon": {}}, "allow": []}}), true),
            (json!({"plugins": {"entries": {"pigeon": {}}, "allow": ["pigeon"]}}), true),
            (json!({"plugins": {"entries": {"pigeon": {}}, "allow": ["other"]}}), false),
            (json!({"plugins": {"entries": {"pigeon": {}}, "slots": {"memory": "memory-core"}}}), true),
            (json!({"channels": {"pigeon": {"token": "x"}}}), true),
            (json!({"channels": {"pigeon": {}}, "plugins": {"entries": {"pigeon": {"enabled": false}}}}), false),
            (json!({"models": {"providers": {"pigeon": {"apiKey": "x"}}}}), true),
            (json!({"plugins": "pigeon", "channels": ["pigeon"]}), false),
        ] {
            assert_eq!(asks_for(&document, "pigeon"), expected, "{document}");
        }
        let memory = json!({"plugins": {"entries": {"memory-core": {}}, "slots": {"memory": "memory-lancedb"}}});
        assert!(!asks_for(&memory, "memory-core"));
    }
}
