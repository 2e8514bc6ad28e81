//! JSON5 that somebody else may have written, the gateway's agent or an operator: limited in depth and in values
//! before any of it is kept.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};

/// How many lists and objects may lie within each other, as in `serde_json`; the parser's stack grows with each.
const DEPTH_LIMIT: u32 = 128;

/// How many values there may be: each takes far more memory than its text, and an object (700 bytes with one key) as
/// much as several.
const VALUES_LIMIT: u32 = 50_000;
const VALUES_OF_OBJECT: u32 = 10;

/// Below it every whole number is exact, in the gateway, too.
const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;

/// The document that `text` is.
pub(crate) fn parse(text: &str) -> Result<Value, json5::Error> {
    json5::from_str(text).map(|Document(value)| value)
}

struct Document(Value);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Room { depth: DEPTH_LIMIT, values: &Cell::new(VALUES_LIMIT) }.deserialize(deserializer).map(Self)
    }
}

/// What is left of the limits.
#[derive(Clone, Copy)]
struct Room<'a> {
    depth: u32,
    values: &'a Cell<u32>,
}

impl Room<'_> {
    fn take<E: de::Error>(self, values: u32) -> Result<(), E> {
        let left = self.values.get().checked_sub(values);
        self.values.set(left.ok_or_else(|| E::custom(format!("more than {VALUES_LIMIT} values")))?);
        Ok(())
    }

    fn inside<E: de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1);
        let depth = depth.ok_or_else(|| E::custom(format!("more than {DEPTH_LIMIT} levels within each other")))?;
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Room<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.take(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Room<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON5 value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    /// JSON has one kind of number: `1.0` is 1.
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        let is_whole = value.fract() == 0.0 && value.abs() < LARGEST_WHOLE;
        let whole = is_whole.then(|| format!("{value:.0}").parse::<i64>().ok()).flatten();
        Ok(whole.map_or(value.into(), Value::from))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let (inside, mut values) = (self.inside()?, Vec::new());
        while let Some(value) = list.next_element_seed(inside)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        self.take(VALUES_OF_OBJECT)?;
        let (inside, mut values) = (self.inside()?, Map::new());
        while let Some(key) = object.next_key::<String>()? {
            values.insert(key, object.next_value_seed(inside)?);
        }
        Ok(values.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_document_is_what_the_parser_alone_would_make_of_it() {
        for text in [
            "{a: [1, -2, 0x10, 1.5, 1e400, NaN, Infinity, null, true, 'x\\\ny'], /* c */ b: {'c d': \"e\"}, b: 2,}",
            "18446744073709551615",
            "-9223372036854775808",
            "'text'",
            "[]",
        ] {
            assert_eq!(parse(text).unwrap(), json5::from_str::<Value>(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn brackets_without_end_are_an_error_and_no_overflow() {
        let nested = |open: &str, close: &str, depth: usize| open.repeat(depth) + "0" + &close.repeat(depth);
        let cases = [
            ("[".repeat(200_000), "128 levels"),
            ("{a:".repeat(200_000), "128 levels"),
            ("[{a:".repeat(100_000), "128 levels"),
            ("//\r[".repeat(100_000), "128 levels"),
            (nested("[", "]", 129), "128 levels"),
            (format!("[{}]", "0,".repeat(200_000)), "50000 values"),
            (format!("[{}]", "{a:0},".repeat(10_000)), "50000 values"),
        ];
        for (text, reason) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{}: {error}", &text[..8]);
        }
        assert!(parse(&nested("[", "]", 128)).is_ok());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|object| Value::Object(object.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_what_it_is(value in json()) {
            prop_assert_eq!(parse(&value.to_string()).unwrap(), value);
        }

        #[test]
        fn any_text_is_a_document_or_an_error(text in "[\\[\\]{}:,'\"/*\\\\ua0-9.+ \\n-]{0,60}|\\PC{0,60}") {
            let (ours, theirs) = (parse(&text), json5::from_str::<Value>(&text));
            // Their `0.0` is our 0.
            let theirs = theirs.map(|value| parse(&value.to_string()).unwrap());
            prop_assert_eq!(ours.ok(), theirs.ok());
        }
    }
}
