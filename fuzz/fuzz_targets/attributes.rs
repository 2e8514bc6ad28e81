//! The VM's attributes: `KEY=VALUE`, each beginning with a line of its own.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use openclaw_init::config::Config;
use openclaw_init::error::{Code, code_of, one_line};

fuzz_target!(|text: &str| {
    let attributes = text.split("\nopenclaw-").filter_map(|attribute| attribute.split_once('='));
    let attributes: BTreeMap<_, _> =
        attributes.map(|(key, value)| (format!("openclaw-{key}"), value.to_owned())).collect();
    if let Err(error) = Config::from_attributes(&attributes) {
        assert_eq!(code_of(&error), Code::ConfigInvalid);
        let sentence = one_line(&error);
        // A name that nobody can set is escaped, or cut.
        let is_plain = |key: &String| key.len() < 200 && key.bytes().all(|byte| byte.is_ascii_graphic());
        let is_named = attributes.keys().any(|key| sentence.contains(key.as_str()));
        assert!(is_named || !attributes.keys().all(is_plain), "{sentence}");
        assert!(!sentence.contains(['\n', '\u{1b}']), "{sentence:?}");
    }
});
