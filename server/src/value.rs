//! What a node holds, between the bytes in the znode and what clients say.
//!
//! An object is compact JSON, text its UTF-8 bytes, raw is raw; an empty node has no value. Objects get the keys `pid`
//! and `created` as nd_service_registry writes them, in front, where the caller has not set them.

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Map, Number, Value as Json};

/// How deep an object may nest, itself included, to be shown as one.
const MAX_DEPTH: usize = 16;

/// What the JSON parser takes for a number when it is the key of an object.
const NUMBER_MARK: &str = "$serde_json::private::Number";

/// A value as a client gives or gets it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// A JSON object whose numbers are all doubles without loss.
    Object(Map<String, Json>),
    /// UTF-8 text.
    Text(String),
    /// Any bytes.
    Raw(Bytes),
}

/// The keys that the server adds to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The client's process id, when it told one.
    pub(crate) pid: Option<u32>,
    /// The time of the call, UTC, as `%Y-%m-%d %H:%M:%S`.
    pub(crate) created: String,
}

impl Value {
    /// What the bytes of a znode mean; `None` for an empty node.
    ///
    /// JSON objects come back raw where an object would lie or hurt: nested deeper than [`MAX_DEPTH`], with a number that
    /// a double changes or can't hold, or with half of a surrogate pair.
    pub(crate) fn from_bytes(bytes: &Bytes) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return Some(Self::Raw(bytes.clone())) };
        let is_braced = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
        if text.contains(NUMBER_MARK) {
            return Some(Self::Raw(bytes.clone()));
        }
        if !is_braced {
            return Some(Self::Text(text.to_owned()));
        }
        Some(match serde_json::from_str(text) {
            Ok(Json::Object(object)) if object.values().all(|value| is_faithful(value, MAX_DEPTH - 1)) => {
                Self::Object(object)
            }
            Ok(_) => Self::Raw(bytes.clone()),
            // What the parser refuses may still be JSON: too deep for it, or with half of a surrogate pair.
            Err(_) if serde_json::from_str::<IgnoredAny>(text).is_ok() => Self::Raw(bytes.clone()),
            Err(_) => Self::Text(text.to_owned()),
        })
    }

    /// The bytes for the znode; an object without the keys that the server adds.
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Self::Object(object) => write_object(None, None, object),
            Self::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Self::Raw(bytes) => bytes.clone(),
        }
    }

    /// The bytes for the znode, stamped.
    pub(crate) fn to_stamped_bytes(&self, stamp: &Stamp) -> Bytes {
        let Self::Object(object) = self else { return self.to_bytes() };
        write_object(stamp.pid.map(Json::from), Some(Json::from(stamp.created.clone())), object)
    }

    /// The bytes for the znode, with the server's keys as they stand in `first`: the bytes of an earlier write for the
    /// same holder. Where `first` has none, `stamp` gives them.
    pub(crate) fn to_bytes_keeping(&self, first: &Bytes, stamp: &Stamp) -> Bytes {
        let Self::Object(object) = self else { return self.to_bytes() };
        let Some(Self::Object(mut kept)) = Self::from_bytes(first) else { return self.to_stamped_bytes(stamp) };
        let created = kept.remove("created").unwrap_or_else(|| Json::from(stamp.created.clone()));
        let pid = kept.remove("pid").or(stamp.pid.map(Json::from));
        write_object(pid, Some(created), object)
    }

    /// Whether a znode with these bytes holds this very value, the keys that the server may have added included.
    pub(crate) fn is_identical(&self, bytes: &Bytes) -> bool {
        let Self::Object(object) = self else { return self.to_bytes() == *bytes };
        matches!(Self::from_bytes(bytes), Some(Self::Object(other)) if objects_equal(object, &other))
    }

    /// Whether a znode with these bytes holds the same data: equal as JSON, without the keys that the server added.
    pub(crate) fn is_same_data(&self, bytes: &Bytes) -> bool {
        let Self::Object(object) = self else { return self.to_bytes() == *bytes };
        let Some(Self::Object(mut other)) = Self::from_bytes(bytes) else { return false };
        for added in ["pid", "created"] {
            if !object.contains_key(added) {
                other.remove(added);
            }
        }
        objects_equal(object, &other)
    }
}

/// Writes compact JSON: the server's keys first, then the caller's, which win over both.
fn write_object(pid: Option<Json>, created: Option<Json>, object: &Map<String, Json>) -> Bytes {
    let added = [("pid", pid), ("created", created)];
    let mut text = Vec::with_capacity(256);
    text.push(b'{');
    let added = added.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?)));
    let added = added.filter(|(key, _)| !object.contains_key(*key));
    for (key, value) in added.chain(object.iter().map(|(key, value)| (key.as_str(), value))) {
        if text.len() > 1 {
            text.push(b',');
        }
        // Neither a text nor a value fails to be written into memory.
        drop(serde_json::to_writer(&mut text, key));
        text.push(b':');
        drop(serde_json::to_writer(&mut text, value));
    }
    text.push(b'}');
    text.shrink_to_fit();
    Bytes::from(text)
}

/// A JSON number for a double: whole ones without a fraction, as long as they are written out by everybody. `None` for
/// what is no number in JSON.
pub(crate) fn number(double: f64) -> Option<Number> {
    const WRITTEN_OUT: f64 = 1e21;
    if double.fract() == 0.0 && double.abs() < WRITTEN_OUT {
        // `{:.0}` writes the exact value of a whole double; zero loses its sign.
        return serde_json::from_str(&format!("{:.0}", if double == 0.0 { 0.0 } else { double })).ok();
    }
    Number::from_f64(double)
}

/// The double that a JSON number is, unless it is an integer that a double changes, or out of range.
pub(crate) fn exact_double(number: &Number) -> Option<f64> {
    let text = number.as_str();
    let double: f64 = text.parse().ok().filter(|double: &f64| double.is_finite())?;
    let is_integer = !text.contains(['.', 'e', 'E']);
    let unchanged = || {
        let digits = text.trim_start_matches('-');
        format!("{:.0}", double.abs()) == digits
    };
    (!is_integer || unchanged()).then_some(double)
}

fn is_faithful(json: &Json, depth_left: usize) -> bool {
    match json {
        Json::Null | Json::Bool(_) | Json::String(_) => true,
        Json::Number(number) => exact_double(number).is_some(),
        Json::Array(items) => depth_left > 0 && items.iter().all(|item| is_faithful(item, depth_left - 1)),
        Json::Object(object) => depth_left > 0 && object.values().all(|value| is_faithful(value, depth_left - 1)),
    }
}

fn objects_equal(left: &Map<String, Json>, right: &Map<String, Json>) -> bool {
    left.len() == right.len()
        && left.iter().all(|(key, value)| right.get(key).is_some_and(|other| json_equal(value, other)))
}

/// Equality as JSON means it: `1`, `1.0` and `1e0` are one number.
fn json_equal(left: &Json, right: &Json) -> bool {
    match (left, right) {
        (Json::Number(left), Json::Number(right)) => exact_double(left) == exact_double(right),
        (Json::Array(left), Json::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| json_equal(left, right))
        }
        (Json::Object(left), Json::Object(right)) => objects_equal(left, right),
        (left, right) => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Value> {
        Value::from_bytes(&Bytes::copy_from_slice(text.as_bytes()))
    }

    fn object(text: &str) -> Value {
        Value::Object(serde_json::from_str(text).unwrap())
    }

    fn stamp(pid: Option<u32>) -> Stamp {
        Stamp { pid, created: "2026-11-22 09:38:38".to_owned() }
    }

    #[test]
    fn objects_are_written_as_nd_service_registry_writes_them() {
        let bytes = object(r#"{"foo":"bar"}"#).to_stamped_bytes(&stamp(Some(22075)));
        assert_eq!(bytes, r#"{"pid":22075,"created":"2026-11-22 09:38:38","foo":"bar"}"#);
    }

    #[test]
    fn the_callers_keys_win_over_the_servers() {
        let bytes = object(r#"{"pid":1,"created":"x"}"#).to_stamped_bytes(&stamp(Some(2)));
        assert_eq!(bytes, r#"{"created":"x","pid":1}"#);
    }

    #[test]
    fn json_that_a_double_would_change_is_raw() {
        for text in [
            r#"{"a":9007199254740993}"#,
            r#"{"a":1e400}"#,
            r#"{"a":-123456789012345678901}"#,
            r#"{"a":"\ud800"}"#,
            &format!("{}1{}", r#"{"a":"#.repeat(17), "}".repeat(17)),
            &format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500)),
        ] {
            assert!(matches!(read(text), Some(Value::Raw(_))), "{text}");
        }
    }

    #[test]
    fn json_that_survives_is_an_object() {
        for text in [
            r#"{"a":9007199254740992,"b":0.1,"c":-1.5e3,"d":100000000000000000000}"#,
            r#" {"a":"\ud83d\ude00"} "#,
            &format!("{}1{}", r#"{"a":"#.repeat(16), "}".repeat(16)),
        ] {
            assert!(matches!(read(text), Some(Value::Object(_))), "{text}");
        }
    }

    #[test]
    fn the_rest_is_text_or_raw_or_nothing() {
        assert_eq!(read(""), None);
        assert_eq!(read("[1]"), Some(Value::Text("[1]".to_owned())));
        assert_eq!(read("{broken"), Some(Value::Text("{broken".to_owned())));
        let bytes = Bytes::from_static(&[0xff, 0xfe]);
        assert_eq!(Value::from_bytes(&bytes), Some(Value::Raw(bytes)));
    }

    #[test]
    fn whole_numbers_stay_whole() {
        for (double, text) in [
            (10733.0, "10733"),
            (-0.0, "0"),
            (1e20, "100000000000000000000"),
            (0.5, "0.5"),
            (9_007_199_254_740_992.0, "9007199254740992"),
        ] {
            assert_eq!(number(double).unwrap().to_string(), text);
        }
        assert_eq!(number(1e300).unwrap().to_string().parse::<f64>().unwrap(), 1e300);
        assert_eq!(number(f64::NAN), None);
    }

    #[test]
    fn the_same_data_is_found_under_the_servers_keys() {
        let value = object(r#"{"foo":1}"#);
        let stands = Bytes::from_static(br#"{"pid":7,"created":"then","foo":1.0}"#);
        assert!(value.is_same_data(&stands));
        assert!(!object(r#"{"foo":2}"#).is_same_data(&stands));
        assert!(!object(r#"{"foo":1,"pid":8}"#).is_same_data(&stands));
        assert_eq!(
            object(r#"{"foo":2}"#).to_bytes_keeping(&stands, &stamp(None)),
            r#"{"pid":7,"created":"then","foo":2}"#
        );
    }
}
