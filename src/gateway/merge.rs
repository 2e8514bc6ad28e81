//! The operator's settings in a document: merged (RFC 7396), and taken back when they are no longer set.

use serde_json::{Map, Value};

use crate::config::{SettingsPatch, display_path};
use crate::state::Owned;

/// How much of what was there before is kept. The container's user decides what it is.
const KEPT_BYTES: usize = 256 << 10;

/// A document with the operator's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) document: Value,
    /// Which paths are the operator's, and what was there before.
    pub(super) owned: Vec<Owned>,
}

/// What `document` becomes by `patch`, after everything that the operator `owned` until now went back to what was there
/// before. What he still sets is set again by the patch. `None`: what was there is more than a record should hold.
pub(super) fn decide(document: &Value, patch: &SettingsPatch, owned: &[Owned]) -> Option<Merged> {
    let mut document = document.clone();
    for owned in owned {
        restore(&mut document, owned);
    }
    let (mut kept, mut owned) = (0, Vec::new());
    for leaf in patch.leaves() {
        let Some((depth, value)) = before(&document, &leaf.path, leaf.value) else { continue };
        kept += value.map_or(0, weight);
        if kept > KEPT_BYTES {
            return None;
        }
        let keys = leaf.path.iter().map(|&key| key.to_owned());
        let (value, is_object) = (value.cloned(), leaf.value.is_object());
        owned.push(Owned { path: keys.collect(), depth, value, is_object });
    }
    merge(&mut document, patch.value());
    Some(Merged { document, owned })
}

/// About how many bytes a value takes as JSON.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(list) => list.iter().map(|value| weight(value) + 1).sum::<usize>() + 2,
        Value::Object(object) => object.iter().map(|(key, value)| key.len() + weight(value) + 4).sum::<usize>() + 2,
        _ => 8,
    }
}

/// RFC 7396, section 2.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            object(target).remove(key);
        } else {
            merge(object(target).entry(key).or_insert(Value::Null), value);
        }
    }
    object(target);
}

/// The patch that makes `to` of `from`; `None` when they are equal. It cannot ask for a null.
pub(super) fn diff(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = after.iter().filter_map(|(key, value)| {
        let change = before.get(key).map_or_else(|| Some(value.clone()), |before| diff(before, value));
        change.map(|change| (key.clone(), change))
    });
    let patch: Map<_, _> = gone.chain(changed).collect();
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The value as an object, made one if need be.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it was made one"),
    }
}

/// What is at `path`; `None` when nothing is, or when a part of the path is no object.
fn get<'a>(document: &'a Value, path: &[impl AsRef<str>]) -> Option<&'a Value> {
    path.iter().try_fold(document, |place, key| place.as_object()?.get(key.as_ref()))
}

fn remove(document: &mut Value, path: &[String]) {
    let Some((last, parents)) = path.split_last() else { return };
    let parent = parents.iter().try_fold(document, |place, key| place.as_object_mut()?.get_mut(key));
    if let Some(Value::Object(parent)) = parent {
        parent.remove(last);
    }
}

/// Puts a value at `path`. What is in its way and no object gives way.
pub(super) fn set(document: &mut Value, path: &[String], value: Value) {
    let place = path.iter().fold(document, |place, key| object(place).entry(key).or_insert(Value::Null));
    *place = value;
}

/// What the operator's value at `path` takes the place of, and after how many of the keys; `None` for an object where
/// one is already.
fn before<'a>(document: &'a Value, path: &[&str], value: &Value) -> Option<(usize, Option<&'a Value>)> {
    if value.is_object() && get(document, path).is_some_and(Value::is_object) {
        return None;
    }
    // The first of the keys that leads to no object is where the document differs.
    let depth = (1..path.len()).find(|&depth| !get(document, &path[..depth]).is_some_and(Value::is_object));
    let depth = depth.unwrap_or(path.len());
    Some((depth, get(document, &path[..depth])))
}

/// Takes the operator's value away and puts back what was there. Objects that were made for it go when they are empty;
/// what somebody else has put into them stays, and so do they.
fn restore(document: &mut Value, owned: &Owned) {
    let Owned { path, depth, value, is_object } = owned;
    let is_somebodys = |value: &Value| value.as_object().is_none_or(|object| !object.is_empty());
    if *is_object && get(document, path).is_some_and(is_somebodys) {
        return;
    }
    remove(document, path);
    for length in (*depth..path.len()).rev() {
        match get(document, &path[..length]) {
            Some(place) if is_somebodys(place) => return,
            _ => remove(document, &path[..length]),
        }
    }
    let is_blocked = (1..*depth).any(|length| get(document, &path[..length]).is_some_and(|place| !place.is_object()));
    if let Some(value) = value.as_ref().filter(|_| !is_blocked) {
        set(document, &path[..*depth], value.clone());
    }
}

/// The paths that a merge patch changes.
pub(super) fn paths(patch: &Value) -> String {
    fn collect(value: &Value, path: &mut Vec<String>, found: &mut Vec<String>) {
        let Some(object) = value.as_object().filter(|object| !object.is_empty()) else {
            return found.push(display_path(path));
        };
        for (key, value) in object {
            path.push(key.clone());
            collect(value, path, found);
            path.pop();
        }
    }
    let mut found = Vec::new();
    collect(patch, &mut Vec::new(), &mut found);
    found.join(", ")
}

/// The lists of models that a patch replaces: the tool asks for a word more before one of them loses an entry.
pub(super) fn lists_of_models(patch: &Value) -> Vec<String> {
    let providers = patch.pointer("/models/providers").and_then(Value::as_object);
    let lists = providers.into_iter().flatten().filter(|(_, provider)| provider["models"].is_array());
    lists.map(|(name, _)| display_path(&["models", "providers", name, "models"])).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn decided(document: &Value, patch: &SettingsPatch, owned: &[Owned]) -> Merged {
        decide(document, patch, owned).unwrap()
    }

    /// A cut between the record and the file: the record has both sets, the file is the old one or the new one.
    #[test]
    fn what_was_there_outlives_a_cut_anywhere() {
        for (document, first, second) in [
            ("{a: 1}", "{a: 2}", "{}"),
            ("{a: 1}", "{a: 2}", "{b: 3}"),
            ("{a: 5}", "{a: {b: 1, c: 2}}", "{a: {c: 2}}"),
            ("{a: 1}", "{a: 2}", "{a: {b: 1}}"),
            ("{}", "{a: {b: {c: 1}}}", "{a: {b: {d: 1}}}"),
        ] {
            let (document, second) = (value(document), patch(&value(second)));
            let one = decided(&document, &patch(&value(first)), &[]);
            let two = decided(&one.document, &second, &one.owned);
            let left = one.owned.iter().filter(|old| two.owned.iter().all(|new| new.path != old.path));
            let both: Vec<_> = two.owned.iter().chain(left).cloned().collect();
            for file in [&one.document, &two.document] {
                assert_eq!(decided(file, &second, &both), two, "{file}");
                assert_eq!(decided(file, &patch(&json!({})), &both).document, document, "{file}");
            }
        }
    }

    #[test]
    fn lists_of_models_are_replaced_by_name() {
        let models =
            json!({"models": {"providers": {"a/b": {"models": [{"id": "c"}]}, "d": {"models": null}}}, "e": [1]});
        assert_eq!(lists_of_models(&models), [r#"models.providers["a/b"].models"#]);
        assert_eq!(lists_of_models(&json!({"models": []})), [""; 0]);
    }

    #[test]
    fn more_than_a_record_should_hold_is_not_taken() {
        let long = "x".repeat(100 << 10);
        let set = patch(&value("{a: {b: 1, c: 2, d: 3}}"));
        assert!(decide(&json!({ "a": long }), &set, &[]).is_none());
        assert!(decide(&json!({ "a": long[..1 << 10] }), &set, &[]).is_some());
    }

    fn value(text: &str) -> Value {
        json5::from_str(text).unwrap()
    }

    fn patch(value: &Value) -> SettingsPatch {
        let attributes = [("openclaw-config".to_owned(), value.to_string())].into();
        Config::from_attributes(&attributes).unwrap().0.gateway.settings
    }

    /// Appendix A of RFC 7396.
    #[test]
    fn the_examples_of_the_rfc() {
        let cases = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ];
        for (original, patch, result) in cases {
            let mut target = value(original);
            merge(&mut target, &value(patch));
            assert_eq!(target, value(result), "{original} {patch}");
        }
    }

    /// Each step: what the operator sets, what somebody then writes into the file, and how it is after that.
    #[test]
    fn what_is_no_longer_set_goes_back_and_the_rest_stays() {
        type Step<'a> = (&'a str, &'a str, &'a str);
        #[rustfmt::skip]
        let cases: [(&str, &[Step<'_>]); 10] = [
            ("{a: 1}", &[("{a: 2}", "{}", "{a: 2}"), ("{}", "{}", "{a: 1}")]),
            ("{a: 1}", &[("{a: 2}", "{b: 3}", "{a: 2, b: 3}"), ("{a: 4}", "{}", "{a: 4, b: 3}"), ("{}", "{}", "{a: 1, b: 3}")]),
            ("{}", &[("{a: {b: {c: 1}}}", "{}", "{a: {b: {c: 1}}}"), ("{}", "{}", "{}")]),
            ("{}", &[("{a: {b: {c: 1}}}", "{a: {d: 2}}", "{a: {b: {c: 1}, d: 2}}"), ("{}", "{}", "{a: {d: 2}}")]),
            ("{a: 5}", &[("{a: {b: 1, c: 2}}", "{}", "{a: {b: 1, c: 2}}"), ("{a: {c: 2}}", "{}", "{a: {c: 2}}"), ("{}", "{}", "{a: 5}")]),
            ("{a: {b: 1}}", &[("{a: null}", "{}", "{}"), ("{}", "{}", "{a: {b: 1}}")]),
            ("{a: [1]}", &[("{a: [2, 3]}", "{}", "{a: [2, 3]}"), ("{a: {x: 1}}", "{}", "{a: {x: 1}}"), ("{}", "{}", "{a: [1]}")]),
            ("{a: 1}", &[("{a: 2}", "{a: 9}", "{a: 9}"), ("{a: 2}", "{}", "{a: 2}"), ("{}", "{}", "{a: 1}")]),
            ("{}", &[("{m: {'x/y': {}}}", "{}", "{m: {'x/y': {}}}"), ("{}", "{}", "{}")]),
            ("{}", &[("{m: {'x/y': {}}}", "{m: {'x/y': {alias: 'z'}}}", "{m: {'x/y': {alias: 'z'}}}"), ("{}", "{}", "{m: {'x/y': {alias: 'z'}}}")]),
        ];
        for (document, steps) in cases {
            let mut now = Merged { document: value(document), owned: Vec::new() };
            for (set, written, expected) in steps {
                now = decided(&now.document, &patch(&value(set)), &now.owned);
                assert_eq!(decided(&now.document, &patch(&value(set)), &now.owned), now, "a second run changes it");
                merge(&mut now.document, &value(written));
                assert_eq!(now.document, value(expected), "{document}: {set}, then {written}");
            }
            assert!(now.owned.is_empty(), "{now:?}");
        }
    }

    #[test]
    fn a_patch_of_the_difference_has_only_what_differs() {
        let cases = [
            ("{a: 1}", "{a: 1}", None),
            ("{a: 1, b: {c: 2, d: 3}}", "{b: {c: 4, d: 3}, e: {}}", Some(json!({"a": null, "b": {"c": 4}, "e": {}}))),
            ("{a: [1]}", "{a: [1, 2]}", Some(json!({"a": [1, 2]}))),
            ("{a: 1}", "{a: {b: 1}}", Some(json!({"a": {"b": 1}}))),
        ];
        for (from, to, expected) in cases {
            assert_eq!(diff(&value(from), &value(to)), expected, "{from} {to}");
        }
    }

    /// Objects of few keys, so that two of them meet; with nulls only in a patch.
    fn documents(leaf: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
        let tree = leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(Just(json!(1)), 0..2).prop_map(Value::from),
                proptest::collection::btree_map("[abc]", inner, 0..3)
                    .prop_map(|object| Value::Object(object.into_iter().collect())),
            ]
        });
        proptest::collection::btree_map("[abc]", tree, 0..4)
            .prop_map(|object| Value::Object(object.into_iter().collect()))
    }

    fn plain() -> BoxedStrategy<Value> {
        prop_oneof![any::<bool>().prop_map(Value::from), (0..3).prop_map(Value::from)].boxed()
    }

    fn or_null() -> BoxedStrategy<Value> {
        prop_oneof![plain(), Just(Value::Null)].boxed()
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_document_to_the_other(from in documents(plain()), to in documents(plain())) {
            let mut target = from.clone();
            merge(&mut target, &diff(&from, &to).unwrap_or_else(|| json!({})));
            prop_assert_eq!(target, to);
        }

        /// Whatever is set, in whatever order: it is so, it stays so, and without it everything is as it was.
        #[test]
        fn settings_come_and_go_without_a_trace(
            document in documents(plain()),
            patches in proptest::collection::vec(documents(or_null()), 1..4),
        ) {
            let mut now = Merged { document: document.clone(), owned: Vec::new() };
            for set in &patches {
                now = decided(&now.document, &patch(set), &now.owned);
                let mut expected = document.clone();
                merge(&mut expected, set);
                prop_assert_eq!(&now.document, &expected);
                prop_assert_eq!(&decided(&now.document, &patch(set), &now.owned), &now);
            }
            let Merged { document: last, owned } = decided(&now.document, &patch(&json!({})), &now.owned);
            prop_assert_eq!((last, owned.len()), (document, 0));
        }
    }
}
