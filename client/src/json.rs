//! D-Bus values as JSON.
//!
//! Owns the one conversion that every `--json` output goes through: dictionaries become
//! objects, arrays and structures become arrays, object paths and signatures become
//! strings, numbers and booleans stay what they are. Invariant: the conversion is total;
//! what JSON cannot say (a file descriptor, a number that is not finite) is `null`.

use osteward_dbus::types::Dict;
use serde_json::{Map, Value};
use zbus::Variant;

use crate::text::drives_terminal;

/// One D-Bus value as JSON.
pub(crate) fn value(variant: &Variant<'_>) -> Value {
    match variant {
        Variant::U8(number) => (*number).into(),
        Variant::Bool(truth) => (*truth).into(),
        Variant::I16(number) => (*number).into(),
        Variant::U16(number) => (*number).into(),
        Variant::I32(number) => (*number).into(),
        Variant::U32(number) => (*number).into(),
        Variant::I64(number) => (*number).into(),
        Variant::U64(number) => (*number).into(),
        Variant::F64(number) => (*number).into(),
        Variant::Str(text) => text.as_str().into(),
        Variant::Signature(signature) => signature.to_string().into(),
        Variant::ObjectPath(path) => path.as_str().into(),
        Variant::Variant(inner) => value(inner),
        Variant::Array(array) => array.inner().iter().map(value).collect(),
        Variant::Structure(structure) => structure.fields().iter().map(value).collect(),
        Variant::Dict(dict) => Value::Object(
            dict.iter()
                .map(|(name, entry)| (key(name), value(entry)))
                .collect(),
        ),
        Variant::Fd(_) => Value::Null,
    }
}

/// A whole dictionary as a JSON object.
pub(crate) fn object(dict: &Dict) -> Map<String, Value> {
    dict.iter()
        .map(|(name, entry)| (name.clone(), value(entry)))
        .collect()
}

/// D-Bus allows any basic type as a key, JSON only strings.
fn key(name: &Variant<'_>) -> String {
    match value(name) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A document on one line, as events are printed.
pub(crate) fn line(document: &Value) -> String {
    harmless(&document.to_string())
}

/// A JSON text that means the same and cannot drive a terminal: what labels of an image could do
/// that with may stand in a string as it is. Outside of strings there are only line breaks.
pub(crate) fn harmless(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && drives_terminal(c) {
            // All of them are in the first plane.
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;
    use zbus::{ObjectPath, OwnedVariant};

    use super::*;

    #[test]
    fn basic_values_keep_their_kind() {
        let cases = [
            (Variant::from(7_u8), json!(7)),
            (Variant::from(true), json!(true)),
            (Variant::from(-3_i32), json!(-3)),
            (Variant::from(u64::MAX), json!(u64::MAX)),
            (Variant::from(0.5_f64), json!(0.5)),
            (Variant::from(f64::NAN), Value::Null),
            (Variant::from("text"), json!("text")),
        ];
        for (variant, expected) in cases {
            assert_eq!(value(&variant), expected, "{variant:?}");
        }
    }

    #[test]
    fn paths_are_strings_and_structures_are_arrays() {
        let path = ObjectPath::try_from("/org/osteward1/Host").unwrap();
        assert_eq!(value(&Variant::from(path)), json!("/org/osteward1/Host"));
        let layers = vec![("sha256:a".to_owned(), 1_u64, 2_u64)];
        assert_eq!(value(&Variant::from(layers)), json!([["sha256:a", 1, 2]]));
    }

    #[test]
    fn nested_dictionaries_lose_their_variants() {
        let mut tracking: Dict = HashMap::new();
        tracking.insert("insecure".into(), OwnedVariant::from(false));
        let mut labels = HashMap::new();
        labels.insert("a".to_owned(), "b".to_owned());
        let mut status: Dict = HashMap::new();
        status.insert(
            "tracking".into(),
            Variant::from(tracking).try_into().unwrap(),
        );
        status.insert("labels".into(), Variant::from(labels).try_into().unwrap());
        let expected = json!({"tracking": {"insecure": false}, "labels": {"a": "b"}});
        assert_eq!(Value::Object(object(&status)), expected);
    }

    #[test]
    fn keys_that_are_not_strings_become_strings() {
        let mut dict = HashMap::new();
        dict.insert(5_u32, true);
        assert_eq!(value(&Variant::from(dict)), json!({"5": true}));
    }

    #[test]
    fn json_that_is_shown_means_the_same() {
        let document = serde_json::json!({"label": "a\u{9b}31m\u{202e}b\u{7f}\nc\u{e9}"});
        let text = harmless(&format!("{document:#}"));
        assert!(
            !text.chars().any(|c| c != '\n' && drives_terminal(c)),
            "{text:?}"
        );
        assert!(
            text.contains("\\u009b31m\\u202eb\\u007f\\nc\u{e9}"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
    }
}
