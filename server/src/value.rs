//! Values of nodes: converts between the bytes in the znode and the values of clients.
//!
//! An object is compact JSON, text its UTF-8 bytes, raw is raw; an empty node has no value. Objects get the keys `pid`
//! and `created` in front, as nd_service_registry writes them, unless the caller has set them.

use std::io::Write as _;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Map, Number, Value as Json};

/// Maximum depth of an object that is shown as one, itself included.
const MAX_OBJECT_DEPTH: usize = 16;

/// Length of a text, in bytes, above which the parser checks that it is JSON before it builds an object.
const LARGE: usize = 16 * 1024;

/// The key of an object that the JSON parser takes for a number.
const NUMBER_MARK: &str = "$serde_json::private::Number";

/// The data of a znode, as a client gets it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// A JSON object whose numbers are all doubles without loss.
    Object(Map<String, Json>),
    /// UTF-8 text.
    Text(String),
    /// Any bytes.
    Raw(Bytes),
}

/// A value that a client sent, as the bytes for the znode without the server's keys. It takes only these bytes, however
/// long it waits for ZooKeeper, and is parsed only to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodedValue {
    bytes: Bytes,
    kind: ValueKind,
}

/// The kind of an [`EncodedValue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueKind {
    /// A JSON object, compact, and whether the caller has set the server's keys in it.
    Object { has_pid: bool, has_created: bool },
    /// Text, or any bytes.
    Plain,
}

/// The keys that the server adds to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The client's process id, if it sent one.
    pub(crate) pid: Option<u32>,
    /// The time of the call, UTC, as `%Y-%m-%d %H:%M:%S`.
    pub(crate) created: String,
}

impl Value {
    /// The value of a znode's bytes; `None` for an empty node.
    ///
    /// A JSON object comes back raw if it is nested deeper than [`MAX_OBJECT_DEPTH`], or has a number that a double
    /// changes or can't hold, or has half of a surrogate pair.
    pub(crate) fn from_bytes(bytes: &Bytes) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return Some(Self::Raw(bytes.clone())) };
        let is_braced = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
        if text.contains(NUMBER_MARK) || is_braced && has_number_mark(bytes) {
            return Some(Self::Raw(bytes.clone()));
        }
        if !is_braced {
            return Some(Self::Text(text.to_owned()));
        }
        if text.len() > LARGE && serde_json::from_str::<IgnoredAny>(text).is_err() {
            // Checked here, so that no large object is built up to a fault in its last byte.
            return Some(Self::Text(text.to_owned()));
        }
        Some(match serde_json::from_str(text) {
            Ok(Json::Object(object)) if object.values().all(|value| is_faithful(value, MAX_OBJECT_DEPTH - 1)) => {
                Self::Object(object)
            }
            Ok(_) => Self::Raw(bytes.clone()),
            // A text that the parser refuses may still be JSON: too deep for it, or with half of a surrogate pair.
            Err(_) if serde_json::from_str::<IgnoredAny>(text).is_ok() => Self::Raw(bytes.clone()),
            Err(_) => Self::Text(text.to_owned()),
        })
    }
}

impl EncodedValue {
    /// An object, as compact JSON, and whether the caller has set the server's keys in it.
    pub(crate) fn object(json: &[u8], has_pid: bool, has_created: bool) -> Self {
        Self { bytes: own(json), kind: ValueKind::Object { has_pid, has_created } }
    }

    /// The object without members.
    pub(crate) fn empty_object() -> Self {
        Self::object(b"{}", false, false)
    }

    /// Text, or any bytes. They are copied, so that the buffer that they are a part of is not kept for them.
    pub(crate) fn plain(bytes: &[u8]) -> Self {
        Self { bytes: own(bytes), kind: ValueKind::Plain }
    }

    /// Number of bytes, without the server's keys.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes for the znode, stamped.
    pub(crate) fn to_stamped_bytes(&self, stamp: &Stamp) -> Bytes {
        self.with_keys(stamp.pid.map(Json::from), || Json::from(stamp.created.clone()))
    }

    /// The bytes for the znode, with the server's keys as they are in `first`, the bytes of an earlier write for the
    /// same holder. `stamp` gives the keys that `first` does not have.
    pub(crate) fn to_bytes_keeping(&self, first: &Bytes, stamp: &Stamp) -> Bytes {
        if self.kind == ValueKind::Plain {
            return self.bytes.clone();
        }
        let Some(mut kept) = stored_object(first) else { return self.to_stamped_bytes(stamp) };
        let pid = kept.remove("pid").or(stamp.pid.map(Json::from));
        self.with_keys(pid, || kept.remove("created").unwrap_or_else(|| Json::from(stamp.created.clone())))
    }

    /// Compact JSON: the server's keys first, then the caller's, which win over both.
    fn with_keys(&self, pid: Option<Json>, created: impl FnOnce() -> Json) -> Bytes {
        let ValueKind::Object { has_pid, has_created } = self.kind else { return self.bytes.clone() };
        let pid = pid.filter(|_| !has_pid).map(|pid| format!("\"pid\":{pid}"));
        let created = (!has_created).then(|| format!("\"created\":{}", created()));
        // The members and the closing brace.
        let own_members = self.bytes.get(1..).unwrap_or_default();
        let mut text = Vec::with_capacity(self.bytes.len() + 64);
        text.push(b'{');
        for member in [pid, created].into_iter().flatten() {
            text.extend_from_slice(member.as_bytes());
            text.push(b',');
        }
        if own_members == b"}" && text.len() > 1 {
            text.pop();
        }
        text.extend_from_slice(own_members);
        own(&text)
    }

    /// Whether the value equals the data of a znode: by `compare` for objects, and byte for byte where their members
    /// can't be compared.
    fn is_equal(&self, bytes: &Bytes, compare: impl Fn(&Map<String, Json>, Map<String, Json>) -> bool) -> bool {
        if self.kind == ValueKind::Plain || *bytes == self.bytes {
            return self.bytes == *bytes;
        }
        stored_object(&self.bytes).zip(stored_object(bytes)).is_some_and(|(object, other)| compare(&object, other))
    }

    /// Whether these bytes are the server's keys, followed by exactly this object. Nothing that may be large is parsed.
    fn is_stamped(&self, bytes: &[u8]) -> bool {
        let ValueKind::Object { has_pid, has_created } = self.kind else { return false };
        let own_members = self.bytes.get(1..).unwrap_or_default();
        let Some(keys) = bytes.strip_suffix(own_members) else { return false };
        let keys = keys.strip_suffix(b",").unwrap_or(keys);
        let keys: Option<Map<String, Json>> = serde_json::from_slice(&[keys, b"}"].concat()).ok();
        let is_ours = |key: &str| (key == "pid" && !has_pid) || (key == "created" && !has_created);
        own_members != b"}" && keys.is_some_and(|keys| keys.keys().all(|key| is_ours(key)))
    }

    /// Whether a znode with these bytes holds this very value, with the keys that the server may have added.
    pub(crate) fn is_identical(&self, bytes: &Bytes) -> bool {
        self.is_equal(bytes, |object, other| objects_equal(object, &other))
    }

    /// Whether a znode with these bytes holds the same data: equal as JSON, without the keys that the server added.
    pub(crate) fn is_same_data(&self, bytes: &Bytes) -> bool {
        // The form in which every replica writes it.
        self.is_stamped(bytes)
            || self.is_equal(bytes, |object, mut other| {
                for added in ["pid", "created"] {
                    if !object.contains_key(added) {
                        other.remove(added);
                    }
                }
                objects_equal(object, &other)
            })
    }
}

/// The object in the bytes of a znode, also if clients get it raw: objects are compared as they are stored. `None` if
/// the bytes are no object, or one that the parser would change.
fn stored_object(bytes: &[u8]) -> Option<Map<String, Json>> {
    if has_number_mark(bytes) { None } else { serde_json::from_slice(bytes).ok() }
}

/// Whether JSON contains the [`NUMBER_MARK`], also with characters of it written as `\u0024`.
fn has_number_mark(json: &[u8]) -> bool {
    let has_mark = |json: &[u8]| json.windows(NUMBER_MARK.len()).any(|window| window == NUMBER_MARK.as_bytes());
    has_mark(json) || json.contains(&b'\\') && has_mark(&without_escapes(json))
}

/// JSON whose ASCII characters that are written as `\u0024` are written as themselves. The result is no longer JSON.
fn without_escapes(json: &[u8]) -> Vec<u8> {
    let mut written = Vec::with_capacity(json.len());
    let mut rest = json;
    while let Some((&byte, after)) = rest.split_first() {
        let escape = rest.strip_prefix(b"\\u00").and_then(|hex| hex.split_at_checked(2));
        let code = escape.and_then(|(hex, _)| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        if let Some((code, (_, after))) = code.zip(escape) {
            written.push(code);
            rest = after;
            continue;
        }
        written.push(byte);
        rest = after;
        // An escaped character begins no escape of its own.
        if byte == b'\\'
            && let Some((&escaped, after)) = rest.split_first()
        {
            written.push(escaped);
            rest = after;
        }
    }
    written
}

/// Copies bytes into an allocation of exactly their size. A part of a buffer that was read from a socket would keep the
/// whole buffer.
pub(crate) fn own(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Writes a double as JSON: a whole number without a fraction, as far as every JSON writer writes it out. `false` if it
/// is no number in JSON.
pub(crate) fn write_number(json: &mut Vec<u8>, double: f64) -> bool {
    const WRITTEN_OUT: f64 = 1e21;
    const EXACT: f64 = 9_007_199_254_740_992.0;
    // Writing into memory does not fail.
    let written = if double.fract() != 0.0 || double.abs() >= WRITTEN_OUT {
        serde_json::to_writer(json, &double).is_ok()
    } else if double.abs() <= EXACT {
        // Zero loses its sign.
        #[allow(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        serde_json::to_writer(json, &(double as i64)).is_ok()
    } else {
        write!(json, "{double:.0}").is_ok()
    };
    written && double.is_finite()
}

/// The double of a JSON number; `None` for an integer that a double changes, and for a number out of range.
pub(crate) fn exact_double(number: &Number) -> Option<f64> {
    let text = number.as_str();
    let double: f64 = text.parse().ok().filter(|double: &f64| double.is_finite())?;
    let is_integer = !text.contains(['.', 'e', 'E']);
    let digits = text.trim_start_matches('-');
    // A double holds every integer of at most 15 digits.
    let unchanged = || digits.len() <= 15 || format!("{:.0}", double.abs()) == digits;
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

    fn object(text: &str) -> EncodedValue {
        let object: Map<String, Json> = serde_json::from_str(text).unwrap();
        let json = serde_json::to_vec(&object).unwrap();
        EncodedValue::object(&json, object.contains_key("pid"), object.contains_key("created"))
    }

    fn number(double: f64) -> Option<String> {
        let mut json = Vec::new();
        write_number(&mut json, double).then(|| String::from_utf8(json).unwrap())
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
            assert_eq!(number(double).unwrap(), text);
        }
        assert_eq!(number(1e300).unwrap().parse::<f64>().unwrap(), 1e300);
        for double in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(number(double), None);
        }
    }

    #[test]
    fn the_servers_keys_alone_are_an_object_too() {
        let (empty, none) = (EncodedValue::empty_object(), stamp(None));
        assert_eq!(empty.to_stamped_bytes(&none), r#"{"created":"2026-11-22 09:38:38"}"#);
        assert_eq!(object(r#"{"pid":1,"created":2}"#).to_stamped_bytes(&none), r#"{"created":2,"pid":1}"#);
        assert_eq!(EncodedValue::plain(b"{}").to_stamped_bytes(&none), "{}");
        assert!(
            empty.is_same_data(&empty.to_stamped_bytes(&none)) && !empty.is_identical(&empty.to_stamped_bytes(&none))
        );
    }

    #[test]
    fn a_value_keeps_its_own_bytes_and_not_the_buffer_that_it_came_in() {
        let buffer = Bytes::from(vec![b'x'; 64 * 1024]);
        let value = EncodedValue::plain(&buffer[100..200]);
        assert_eq!(value.len(), 100);
        assert!(!buffer.as_ptr_range().contains(&value.bytes.as_ptr()));
        assert!(buffer.is_unique());
    }

    #[test]
    fn what_a_replica_has_written_is_the_same_data_without_a_parser_and_nothing_else_is() {
        let value = object(r#"{"a":{"b":1}}"#);
        for same in [r#"{"pid":7,"created":"x","a":{"b":1}}"#, r#"{"created":"x","a":{"b":1}}"#, r#"{"a":{"b":1}}"#] {
            assert!(value.is_stamped(same.as_bytes()), "{same}");
        }
        for other in [
            r#"{"pid":7,"other":1,"a":{"b":1}}"#,
            r#"{"created":{"a":{"b":1}}"#,
            r#"{"created":"x","c":{"a":{"b":1}}}"#,
            r#"["a":{"b":1}}"#,
            r#""a":{"b":1}}"#,
            "",
        ] {
            assert!(!value.is_stamped(other.as_bytes()), "{other}");
        }
        let stamped = br#"{"pid":7,"created":"x","pid":1}"#;
        assert!(!object(r#"{"pid":1}"#).is_stamped(stamped), "the caller's keys win");
    }

    /// The other program writes the keys in another order, so that the values are not the same byte for byte.
    #[test]
    fn what_clients_get_raw_is_the_same_data_all_the_same() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(32), "}".repeat(32));
        for own in [deep.as_str(), &format!("{}1{}", "[".repeat(31), "]".repeat(31)), "1e300", "100000000000000000000"]
        {
            let value = object(&format!(r#"{{"b":"x","value":{own}}}"#));
            let stands = format!(r#"{{"value": {own}, "b": "x", "created": "then", "pid": 7}}"#);
            let stands = Bytes::from(stands.into_bytes());
            assert!(value.is_same_data(&stands), "{own}");
            assert!(!object(&format!(r#"{{"b":"y","value":{own}}}"#)).is_same_data(&stands), "{own}");
            let kept = value.to_bytes_keeping(&stands, &stamp(None));
            assert!(kept.starts_with(br#"{"pid":7,"created":"then","b":"x","#), "{kept:?}");
        }
        let own = object(&format!(r#"{{"created":"x","value":{deep}}}"#));
        assert!(own.is_identical(&Bytes::from(format!(r#"{{"value":{deep},"created":"x"}}"#).into_bytes())));
        assert!(!own.is_identical(&Bytes::from(format!(r#"{{"value":{deep},"created":"y"}}"#).into_bytes())));
    }

    #[test]
    fn data_that_the_parser_would_change_are_the_same_as_they_were_written_and_as_nothing_else() {
        let value = EncodedValue::object(br#"{"a":{"$serde_json::private::Number":"1"}}"#, false, false);
        assert!(value.is_same_data(&value.to_stamped_bytes(&stamp(Some(7)))));
        assert!(!value.is_same_data(&Bytes::from_static(br#"{"a":1}"#)));
        assert!(!object(r#"{"a":1}"#).is_same_data(&value.to_stamped_bytes(&stamp(None))));
        let text = EncodedValue::plain(br#"{"a": 1}"#);
        assert!(text.is_same_data(&Bytes::from_static(br#"{"a": 1}"#)));
        assert!(!text.is_same_data(&Bytes::from_static(br#"{"a":1}"#)), "a text is its bytes");
    }

    #[test]
    fn what_the_parser_takes_for_a_number_is_found_however_it_is_written() {
        let one = object(r#"{"a":1}"#);
        for mark in [
            r"$serde_json::private::Number",
            r"\u0024serde_json::private::Number",
            r"$serde_json\u003a\u003Aprivate::Number",
            r"$serde_json::priv\u0061te::\u004eumber",
        ] {
            let stands = Bytes::from(format!(r#"{{"created":"x", "a":{{"{mark}":"1"}}}}"#).into_bytes());
            assert!(!one.is_same_data(&stands), "{mark}");
            assert_eq!(Value::from_bytes(&stands), Some(Value::Raw(stands.clone())), "{mark}");
        }
        // An escaped backslash, and characters that are written in two ways.
        let stands = Bytes::from_static(br#"{"a":{"\\u0024serde_json::private::Number":"1"},"b":"\u0041\""}"#);
        assert!(matches!(Value::from_bytes(&stands), Some(Value::Object(_))));
        assert!(object(r#"{"b":"A\"","a":{"\\u0024serde_json::private::Number":"1"}}"#).is_same_data(&stands));
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

    /// JSON as clients send it: every number is a double.
    #[derive(Debug, bolero::TypeGenerator)]
    enum Drawn {
        Null,
        Bool(bool),
        Whole(i32),
        Double(f64),
        Text(String),
        List(#[generator(bolero::produce_with::<Vec<Drawn>>().len(0_usize..4))] Vec<Drawn>),
        Object(#[generator(bolero::produce_with::<Vec<(String, Drawn)>>().len(0_usize..4))] Vec<(String, Drawn)>),
    }

    impl Drawn {
        fn json(&self) -> Json {
            match self {
                Self::Null => Json::Null,
                Self::Bool(value) => (*value).into(),
                Self::Whole(number) => (*number).into(),
                Self::Double(double) => number(*double).map_or(Json::Null, |text| serde_json::from_str(&text).unwrap()),
                Self::Text(text) => text.as_str().into(),
                Self::List(items) => items.iter().map(Self::json).collect(),
                Self::Object(members) => members_of(members).into(),
            }
        }
    }

    fn members_of(members: &[(String, Drawn)]) -> Map<String, Json> {
        members.iter().map(|(key, value)| (key.clone(), value.json())).collect()
    }

    /// Asserts that bytes are read without loss: what is read has the same bytes, or is the same JSON.
    fn assert_faithful(bytes: &Bytes) {
        match Value::from_bytes(bytes) {
            None => assert!(bytes.is_empty()),
            Some(Value::Text(text)) => assert_eq!(text.as_bytes(), bytes),
            Some(Value::Raw(raw)) => assert_eq!(raw, bytes),
            Some(Value::Object(object)) => {
                let again = Bytes::from(serde_json::to_vec(&object).unwrap());
                assert!(serde_json::from_slice::<Json>(bytes).is_ok_and(|json| json == Json::Object(object.clone())));
                assert_eq!(Value::from_bytes(&again), Some(Value::Object(object)));
            }
        }
    }

    #[test]
    fn fuzz_any_bytes_are_read_without_loss() {
        bolero::check!().with_type::<(Vec<u8>, String)>().for_each(|(bytes, text)| {
            let text = text.as_bytes();
            for bytes in [bytes, text, &[b"{", &bytes[..]].concat(), &[b"{\"a\":\"", text, b"\"}"].concat()] {
                assert_faithful(&Bytes::copy_from_slice(bytes));
            }
        });
    }

    #[test]
    fn fuzz_objects_are_read_as_they_were_written_and_stamps_do_not_change_them() {
        type Input = (Vec<(String, Drawn)>, Option<u32>, bool, Vec<(usize, u8)>);
        bolero::check!().with_type::<Input>().for_each(|(members, pid, has_pid, changes)| {
            let mut object = members_of(members);
            if *has_pid {
                object.insert("pid".to_owned(), Json::Null);
            }
            let json = serde_json::to_vec(&object).unwrap();
            let value = EncodedValue::object(&json, object.contains_key("pid"), object.contains_key("created"));
            let stamped = value.to_stamped_bytes(&stamp(*pid));
            assert!(value.is_identical(&Bytes::copy_from_slice(&json)) && value.is_same_data(&stamped));
            let later = Stamp { created: "later".to_owned(), ..stamp(*pid) };
            assert_eq!(value.to_bytes_keeping(&stamped, &later), stamped);
            let read: Map<String, Json> = serde_json::from_slice(&stamped).unwrap();
            assert!(object.iter().all(|(key, value)| read[key] == *value), "the caller's keys win");
            assert_faithful(&stamped);
            let mut changed = stamped.to_vec();
            for (at, byte) in changes {
                let length = changed.len();
                changed[at % length] = *byte;
            }
            let changed = Bytes::from(changed);
            assert_faithful(&changed);
            if value.is_identical(&changed) {
                assert!(value.is_same_data(&changed));
            }
        });
    }

    #[test]
    fn fuzz_every_double_that_is_a_number_in_json_is_read_back() {
        bolero::check!().with_type::<f64>().cloned().for_each(|double| match number(double) {
            None => assert!(!double.is_finite()),
            Some(text) => {
                let read: Number = serde_json::from_str(&text).unwrap();
                assert_eq!(exact_double(&read), Some(double));
            }
        });
    }
}
