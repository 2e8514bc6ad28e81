//! `openclaw-owner-CHANNEL`: the people to whom the gateway belongs, by what a channel calls them.

use serde_json::json;

use super::attributes::Attributes;
use super::settings::{SettingsPatch, display};
use super::{check, keys};

/// Who may give the gateway orders, `CHANNEL:ID` of each (docs.openclaw.ai/channels/pairing).
const COMMANDS: [&str; 2] = ["commands", "ownerAllowFrom"];

/// Adds to the operator's settings that the owners may talk to the gateway and give it orders.
pub(super) fn read(attributes: &mut Attributes<'_>, settings: &mut SettingsPatch) {
    let mut owners = Vec::new();
    for (key, channel) in attributes.beginning_with(keys::OWNER_PREFIX) {
        let talks = talks(channel);
        if !is_channel(channel) {
            attributes.reject(key, format!("{key} must end in the name of a channel, such as openclaw-owner-telegram"));
        } else if let Some(path) = [&talks[..], &COMMANDS].into_iter().find(|path| settings.sets(path)) {
            let path = display(path);
            attributes.reject(key, format!("openclaw-config and {key} both set {path}: remove one of them"));
        } else if let Some(people) = attributes.get(key, check::people) {
            owners.push((channel, talks, people));
        }
    }
    let commands: Vec<String> =
        owners.iter().flat_map(|(channel, _, people)| people.iter().map(move |id| format!("{channel}:{id}"))).collect();
    for (_, talks, people) in &owners {
        settings.set(keys::OWNER, talks, json!(people));
    }
    if !commands.is_empty() {
        settings.set(keys::OWNER, &COMMANDS, json!(commands));
    }
}

fn is_channel(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    name.len() <= 64 && name.starts_with(|first: char| first.is_ascii_lowercase()) && name.bytes().all(is_plain)
}

/// Where the gateway has who may talk to it on a channel (its settings, 2026.9.6).
fn talks(channel: &str) -> Vec<&str> {
    let rest: &[&str] = match channel {
        "matrix" => &["dm", "allowFrom"],
        "tlon" => &["dmAllowlist"],
        _ => &["allowFrom"],
    };
    ["channels", channel].into_iter().chain(rest.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use crate::config::Config;
    use crate::error::{Code, code_of, one_line};

    fn read(pairs: &[(&str, &str)]) -> Result<Value, (Code, String)> {
        let given: BTreeMap<_, _> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let read = Config::from_attributes(&given).map_err(|error| (code_of(&error), one_line(&error)));
        read.map(|(config, warnings)| {
            assert!(warnings.is_empty(), "{warnings:?}");
            config.gateway.settings.value().clone()
        })
    }

    #[test]
    fn owners_of_every_channel_are_one_list() -> Result<(), (Code, String)> {
        let settings = read(&[
            ("openclaw-owner-telegram", "123, 456"),
            ("openclaw-owner-matrix", "@a:example.org"),
            ("openclaw-owner-tlon", "~zod"),
            (
                "openclaw-config",
                r#"{"channels": {"telegram": {"dmPolicy": "allowlist"}}, "commands": {"bash": false}}"#,
            ),
        ])?;
        let expected = serde_json::json!({
            "channels": {
                "matrix": {"dm": {"allowFrom": ["@a:example.org"]}},
                "telegram": {"dmPolicy": "allowlist", "allowFrom": ["123", "456"]},
                "tlon": {"dmAllowlist": ["~zod"]},
            },
            "commands": {
                "bash": false,
                "ownerAllowFrom": ["matrix:@a:example.org", "telegram:123", "telegram:456", "tlon:~zod"],
            },
        });
        assert_eq!(settings, expected);
        Ok(())
    }

    #[test]
    fn what_is_no_owner_and_what_two_attributes_set_is_named() {
        let telegram = ("openclaw-owner-telegram", "1");
        let config = |value| vec![telegram, ("openclaw-config", value)];
        for (given, words) in [
            (vec![("openclaw-owner-telegram", "*")], "openclaw-owner-telegram"),
            (vec![("openclaw-owner-telegram", "")], "is empty"),
            (vec![("openclaw-owner-", "1")], "name of a channel"),
            (vec![("openclaw-owner-Telegram", "1")], "name of a channel"),
            (vec![("openclaw-owner-a.b", "1")], "name of a channel"),
            (config(r#"{"commands": {"ownerAllowFrom": ["*"]}}"#), "both set commands.ownerAllowFrom"),
            (config(r#"{"channels": {"telegram": {"allowFrom": []}}}"#), "both set channels.telegram.allowFrom"),
            (config(r#"{"channels": {"telegram": []}}"#), "both set channels.telegram.allowFrom"),
            (config(r#"{"channels": null}"#), "both set channels.telegram.allowFrom"),
            (config(r#"{"commands": "x"}"#), "both set commands.ownerAllowFrom"),
        ] {
            let Err((code, sentence)) = read(&given) else { panic!("{given:?} was accepted") };
            assert_eq!(code, Code::ConfigInvalid);
            assert!(sentence.contains(words), "{given:?}: {sentence}");
        }
        assert!(read(&config(r#"{"channels": {"telegram": {}}, "commands": {}}"#)).is_ok());
    }
}
