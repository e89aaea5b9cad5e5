//! Converts the bytes of a `google.protobuf.Struct` from and to JSON.
//!
//! The bytes come from clients. Only the JSON itself is built from them, and it stops at its limit: the time and the
//! memory that it takes are at most in proportion to what was sent.

use prost::bytes::Buf as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use serde_json::{Map, Value as Json};

use crate::value::{EncodedValue, exact_double, write_number};

/// Maximum depth of a value, itself included.
const MAX_STRUCT_DEPTH: usize = 32;

// Field numbers of struct.proto.
const STRUCT_FIELDS: u32 = 1;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;
const VALUE_NULL: u32 = 1;
const VALUE_NUMBER: u32 = 2;
const VALUE_STRING: u32 = 3;
const VALUE_BOOL: u32 = 4;
const VALUE_STRUCT: u32 = 5;
const VALUE_LIST: u32 = 6;
const LIST_VALUES: u32 = 1;

// Bytes that each element counts for: the least that it takes as JSON.
/// `"":0,`, and the key.
const MEMBER: usize = 5;
/// `0,`
const ITEM: usize = 2;
/// An unknown field takes no bytes, but it takes time.
const UNKNOWN: usize = 2;

/// Why a `Struct` is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Fault {
    /// Its JSON has this many bytes, or more.
    #[error("it has {0} bytes or more")]
    TooLarge(usize),
    #[error("it nests deeper than {MAX_STRUCT_DEPTH} levels")]
    TooDeep,
    #[error("it is not a google.protobuf.Struct")]
    Malformed,
    #[error("it has a string that is not UTF-8")]
    NotUtf8,
    #[error("JSON can't express the number {0}")]
    NotANumber(f64),
}

/// Compact JSON of at most `limit` bytes, with its keys in order. Of a field that comes twice the last counts.
pub(super) fn to_json(encoded: &[u8], limit: usize) -> Result<EncodedValue, Fault> {
    let mut writer = JsonWriter::new(encoded.len(), limit);
    let members = writer.object(encoded, MAX_STRUCT_DEPTH)?;
    let has = |name: &str| members.iter().any(|(key, _)| *key == name);
    Ok(EncodedValue::object(&writer.json, has("pid"), has("created")))
}

struct JsonWriter {
    json: Vec<u8>,
    limit: usize,
    /// Bytes of JSON that are left for further values, whether they are written or not: a value that is not written
    /// takes time, too.
    left: usize,
}

/// A key and its encoded value.
type Member<'a> = (&'a str, &'a [u8]);

impl JsonWriter {
    fn new(encoded_len: usize, limit: usize) -> Self {
        Self { json: Vec::with_capacity(encoded_len.min(limit)), limit, left: limit }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.json.extend_from_slice(bytes);
        self.check(0)
    }

    /// Fails if `more` bytes exceed the limit.
    fn check(&self, more: usize) -> Result<(), Fault> {
        let length = self.json.len() + more;
        if length > self.limit { Err(Fault::TooLarge(length)) } else { Ok(()) }
    }

    fn text(&mut self, text: &str) -> Result<(), Fault> {
        self.check(text.len() + 2)?;
        // Writing a text into memory does not fail.
        drop(serde_json::to_writer(&mut self.json, text));
        self.check(0)
    }

    /// Counts an element before anything of it is kept, by the least number of bytes that it takes as JSON.
    fn count(&mut self, least: usize) -> Result<(), Fault> {
        self.left = self.left.checked_sub(least).ok_or(Fault::TooLarge(self.limit + 1))?;
        Ok(())
    }

    /// Writes an object, and returns its members.
    fn object<'a>(&mut self, encoded: &'a [u8], depth_left: usize) -> Result<Vec<Member<'a>>, Fault> {
        let depth_left = depth_left.checked_sub(1).ok_or(Fault::TooDeep)?;
        let mut members: Vec<Member<'a>> = Vec::new();
        for field in Fields(encoded) {
            let (STRUCT_FIELDS, field) = field? else {
                self.count(UNKNOWN)?;
                continue;
            };
            let member = self.member(field.bytes()?)?;
            self.count(MEMBER + member.0.len())?;
            members.push(member);
        }
        // The sort is stable: of members with the same key the last stays the last.
        members.sort_by_key(|(key, _)| *key);
        self.write(b"{")?;
        let mut is_first = true;
        for (index, (key, value)) in members.iter().enumerate() {
            if members.get(index + 1).is_some_and(|(next, _)| next == key) {
                continue;
            }
            if !std::mem::take(&mut is_first) {
                self.write(b",")?;
            }
            self.text(key)?;
            self.write(b":")?;
            self.value(value, depth_left)?;
        }
        self.write(b"}")?;
        Ok(members)
    }

    /// A member of an object. Of a key or a value that comes twice the last counts.
    fn member<'a>(&mut self, encoded: &'a [u8]) -> Result<Member<'a>, Fault> {
        let (mut key, mut value) = ("", &[][..]);
        for (index, field) in Fields(encoded).enumerate() {
            if index >= 2 {
                self.count(UNKNOWN)?;
            }
            match field? {
                (ENTRY_KEY, field) => key = text(field.bytes()?)?,
                (ENTRY_VALUE, field) => value = field.bytes()?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    fn list(&mut self, encoded: &[u8], depth_left: usize) -> Result<(), Fault> {
        let depth_left = depth_left.checked_sub(1).ok_or(Fault::TooDeep)?;
        self.write(b"[")?;
        let mut is_first = true;
        for field in Fields(encoded) {
            let (LIST_VALUES, field) = field? else {
                self.count(UNKNOWN)?;
                continue;
            };
            self.count(ITEM)?;
            if !std::mem::take(&mut is_first) {
                self.write(b",")?;
            }
            self.value(field.bytes()?, depth_left)?;
        }
        self.write(b"]")
    }

    fn value(&mut self, encoded: &[u8], depth_left: usize) -> Result<(), Fault> {
        let mut last = None;
        for field in Fields(encoded) {
            let field = field?;
            if last.is_some() || !(VALUE_NULL..=VALUE_LIST).contains(&field.0) {
                self.count(UNKNOWN)?;
            }
            if (VALUE_NULL..=VALUE_LIST).contains(&field.0) {
                last = Some(field);
            }
        }
        match last {
            None => self.write(b"null"),
            Some((VALUE_NULL, field)) => {
                field.varint()?;
                self.write(b"null")
            }
            Some((VALUE_NUMBER, field)) => {
                let double = field.double()?;
                if !write_number(&mut self.json, double) {
                    return Err(Fault::NotANumber(double));
                }
                self.check(0)
            }
            Some((VALUE_STRING, field)) => self.text(text(field.bytes()?)?),
            Some((VALUE_BOOL, field)) => self.write(if field.varint()? == 0 { b"false" } else { b"true" }),
            Some((VALUE_STRUCT, field)) => self.object(field.bytes()?, depth_left).map(drop),
            Some((_, field)) => self.list(field.bytes()?, depth_left),
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault::NotUtf8)
}

/// The fields of an encoded message, by number, in the order in which they come.
struct Fields<'a>(&'a [u8]);

/// A field's content, of the types that a `Struct` has.
#[derive(Debug, Clone, Copy)]
enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Field<'a>)> {
        let (tag, wire_type) = decode_key(&mut self.0).ok()?;
        let field = match wire_type {
            WireType::Varint => Field::Varint(decode_varint(&mut self.0).ok()?),
            WireType::SixtyFourBit => Field::Fixed64(self.0.try_get_u64_le().ok()?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Field::Bytes(bytes)
            }
            // No message in a `Struct` has groups, in any version.
            WireType::StartGroup | WireType::EndGroup => return None,
            WireType::ThirtyTwoBit => {
                self.0.try_get_u32_le().ok()?;
                Field::Other
            }
        };
        Some((tag, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Field<'a>), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or(Fault::Malformed);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    fn bytes(self) -> Result<&'a [u8], Fault> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(Fault::Malformed) }
    }

    fn varint(self) -> Result<u64, Fault> {
        if let Self::Varint(number) = self { Ok(number) } else { Err(Fault::Malformed) }
    }

    fn double(self) -> Result<f64, Fault> {
        if let Self::Fixed64(bits) = self { Ok(f64::from_bits(bits)) } else { Err(Fault::Malformed) }
    }
}

/// An object as an encoded `Struct`, if that has at most `limit` bytes.
pub(super) fn from_json(object: &Map<String, Json>, limit: usize) -> Option<Vec<u8>> {
    let mut encoder = Encoder { reversed: Vec::with_capacity(256), limit };
    encoder.object(object)?;
    let mut encoded = encoder.reversed;
    encoded.reverse();
    encoded.shrink_to_fit();
    Some(encoded)
}

/// Writes a message from its end to its beginning, so that the content of a length is complete when the length is
/// written.
struct Encoder {
    reversed: Vec<u8>,
    limit: usize,
}

impl Encoder {
    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.reversed.extend(bytes.iter().rev());
        (self.reversed.len() <= self.limit).then_some(())
    }

    fn key(&mut self, tag: u32, wire_type: WireType) -> Option<()> {
        // All field numbers of struct.proto are below 16: one byte.
        self.bytes(&[u8::try_from(tag << 3 | wire_type as u32).ok()?])
    }

    /// Closes a field that was begun when there were `before` bytes.
    fn close(&mut self, tag: u32, before: usize) -> Option<()> {
        let mut length = Vec::with_capacity(5);
        prost::encoding::encode_varint(u64::try_from(self.reversed.len() - before).ok()?, &mut length);
        self.bytes(&length)?;
        self.key(tag, WireType::LengthDelimited)
    }

    fn object(&mut self, object: &Map<String, Json>) -> Option<()> {
        for (key, value) in object.iter().rev() {
            let entry = self.reversed.len();
            self.value(ENTRY_VALUE, value)?;
            let start = self.reversed.len();
            self.bytes(key.as_bytes())?;
            self.close(ENTRY_KEY, start)?;
            self.close(STRUCT_FIELDS, entry)?;
        }
        Some(())
    }

    /// A field that is a `Value`.
    fn value(&mut self, tag: u32, value: &Json) -> Option<()> {
        let before = self.reversed.len();
        match value {
            Json::Null => {
                self.bytes(&[0])?;
                self.key(VALUE_NULL, WireType::Varint)?;
            }
            Json::Bool(value) => {
                self.bytes(&[u8::from(*value)])?;
                self.key(VALUE_BOOL, WireType::Varint)?;
            }
            Json::Number(number) => {
                self.bytes(&exact_double(number)?.to_le_bytes())?;
                self.key(VALUE_NUMBER, WireType::SixtyFourBit)?;
            }
            Json::String(text) => {
                self.bytes(text.as_bytes())?;
                self.close(VALUE_STRING, before)?;
            }
            Json::Array(items) => {
                for item in items.iter().rev() {
                    self.value(LIST_VALUES, item)?;
                }
                self.close(VALUE_LIST, before)?;
            }
            Json::Object(object) => {
                self.object(object)?;
                self.close(VALUE_STRUCT, before)?;
            }
        }
        self.close(tag, before)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::value::Kind;
    use prost_types::{ListValue, Struct, Value as ProtoValue};
    use rand::rngs::StdRng;
    use rand::{Rng as _, RngExt as _, SeedableRng as _};

    use super::*;

    const LIMIT: usize = 256 * 1024;

    fn value(kind: Kind) -> ProtoValue {
        ProtoValue { kind: Some(kind) }
    }

    /// A field of bytes, or of an encoded message.
    fn field(tag: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(tag << 3 | 2).unwrap()];
        prost::encoding::encode_varint(u64::try_from(content.len()).unwrap(), &mut bytes);
        bytes.extend_from_slice(content);
        bytes
    }

    fn list(values: Vec<ProtoValue>) -> ProtoValue {
        value(Kind::ListValue(ListValue { values }))
    }

    fn object(fields: impl IntoIterator<Item = (String, ProtoValue)>) -> Struct {
        Struct { fields: fields.into_iter().collect() }
    }

    fn json(encoded: &[u8]) -> Result<String, Fault> {
        let mut writer = JsonWriter::new(encoded.len(), LIMIT);
        writer.object(encoded, MAX_STRUCT_DEPTH)?;
        Ok(String::from_utf8(writer.json).unwrap())
    }

    /// The JSON that prost's reading of the same bytes gives.
    fn as_prost_has_it(value: &ProtoValue) -> Json {
        match value.kind.as_ref() {
            None | Some(Kind::NullValue(_)) => Json::Null,
            Some(Kind::BoolValue(value)) => Json::Bool(*value),
            Some(Kind::NumberValue(double)) => {
                let mut text = Vec::new();
                assert!(write_number(&mut text, *double));
                serde_json::from_slice(&text).unwrap()
            }
            Some(Kind::StringValue(text)) => Json::String(text.clone()),
            Some(Kind::ListValue(list)) => list.values.iter().map(as_prost_has_it).collect(),
            Some(Kind::StructValue(object)) => {
                object.fields.iter().map(|(key, value)| (key.clone(), as_prost_has_it(value))).collect()
            }
        }
    }

    fn random(rng: &mut StdRng, depth: u32) -> ProtoValue {
        let text = |rng: &mut StdRng| -> String { (0..rng.random_range(0..4)).map(|_| rng.random::<char>()).collect() };
        let kind = match rng.random_range(0..if depth == 0 { 5 } else { 7 }) {
            0 => return ProtoValue { kind: None },
            1 => Kind::NullValue(0),
            2 => Kind::BoolValue(rng.random()),
            3 => Kind::NumberValue(f64::from(rng.random::<i32>()) / f64::from(rng.random_range(1..4))),
            4 => Kind::StringValue(text(rng)),
            5 => Kind::ListValue(ListValue {
                values: (0..rng.random_range(0..4)).map(|_| random(rng, depth - 1)).collect(),
            }),
            _ => Kind::StructValue(object((0..rng.random_range(0..4)).map(|_| (text(rng), random(rng, depth - 1))))),
        };
        value(kind)
    }

    #[test]
    fn it_is_read_and_written_as_prost_does() {
        let seed = rand::rng().next_u64();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..2000 {
            let created = ("created".to_owned(), random(&mut rng, 4));
            let original = object([created, ("x".to_owned(), random(&mut rng, 4))]);
            let expected = as_prost_has_it(&value(Kind::StructValue(original.clone())));
            let read = json(&original.encode_to_vec()).unwrap();
            assert_eq!(read, expected.to_string());
            let Json::Object(expected) = expected else { panic!("an object") };
            let written = Struct::decode(&from_json(&expected, LIMIT).unwrap()[..]).unwrap();
            assert_eq!(as_prost_has_it(&value(Kind::StructValue(written))), Json::Object(expected));
        }
    }

    #[test]
    fn of_a_key_that_comes_twice_the_last_counts() {
        let one = |number| object([("a".to_owned(), value(Kind::NumberValue(number)))]).encode_to_vec();
        assert_eq!(json(&[one(1.0), one(2.0)].concat()).unwrap(), r#"{"a":2}"#);
    }

    fn nested(levels: usize) -> Struct {
        (1..levels).fold(Struct::default(), |inner, _| object([(String::new(), value(Kind::StructValue(inner)))]))
    }

    #[test]
    fn the_depth_is_bounded() {
        assert!(json(&nested(MAX_STRUCT_DEPTH).encode_to_vec()).is_ok());
        for levels in [MAX_STRUCT_DEPTH + 1, 1000] {
            assert_eq!(json(&nested(levels).encode_to_vec()), Err(Fault::TooDeep));
        }
        let lists = (0..1000).fold(list(Vec::new()), |inner, _| list(vec![inner]));
        assert_eq!(json(&object([(String::new(), lists)]).encode_to_vec()), Err(Fault::TooDeep));
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_kept() {
        // Empty entries, all with the same key; empty values; values that get longer as JSON; one long text.
        let entries = b"\x0a\x00".repeat(1 << 20);
        let values = list(vec![ProtoValue::default(); 1 << 20]);
        let numbers = list(vec![value(Kind::NumberValue(-1.234_567_890_123_456e-300)); 100_000]);
        let escaped = value(Kind::StringValue("\0".repeat(LIMIT - 10)));
        let long = value(Kind::StringValue("x".repeat(2 << 20)));
        let of_one = |value| object([(String::new(), value)]).encode_to_vec();
        // Unknown fields, and a value whose kind is repeated.
        let unknown = b"\x78\x01".repeat(1 << 20);
        let again = field(STRUCT_FIELDS, &field(ENTRY_VALUE, &b"\x08\x00".repeat(1 << 19)));
        for encoded in [entries, of_one(values), of_one(numbers), of_one(escaped), of_one(long), unknown, again] {
            assert!(matches!(json(&encoded), Err(Fault::TooLarge(bytes)) if bytes > LIMIT));
        }
        assert_eq!(from_json(&(0..100).map(|n| (n.to_string(), Json::Null)).collect(), 500), None);
    }

    #[test]
    fn what_is_no_struct_is_refused() {
        for (encoded, fault) in [
            (&b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..], Fault::Malformed),
            (b"\x0a\x02\x0a", Fault::Malformed),
            (b"\x08\x01", Fault::Malformed),
            (b"\x0a\x03\x0a\x01\xff", Fault::NotUtf8),
            (b"\x0a\x05\x12\x03\x1a\x01\xff", Fault::NotUtf8),
            // Groups, in and beside each other.
            (&[0x13; 5000], Fault::Malformed),
            (b"\x7b\x7c", Fault::Malformed),
        ] {
            assert_eq!(json(encoded), Err(fault), "{encoded:?}");
        }
        let nan = object([("n".to_owned(), value(Kind::NumberValue(f64::INFINITY)))]);
        assert_eq!(json(&nan.encode_to_vec()), Err(Fault::NotANumber(f64::INFINITY)));
        assert_eq!(json(b"\x78\x01\x0a\x00").unwrap(), r#"{"":null}"#, "fields of a later version are skipped");
    }

    #[test]
    fn fuzz_any_bytes_are_read_without_a_panic() {
        bolero::check!().with_type::<(Vec<u8>, u64, Vec<(usize, u8)>)>().for_each(|(bytes, seed, changes)| {
            let value = random(&mut StdRng::seed_from_u64(*seed), 4);
            let mut changed = object([("x".to_owned(), value)]).encode_to_vec();
            for (at, byte) in changes {
                let length = changed.len();
                changed[at % length] = *byte;
            }
            for bytes in [bytes, &changed] {
                let Ok(read) = json(bytes) else { continue };
                // The parser takes an object with such a key for a number.
                if !read.contains("$serde_json") {
                    let object = serde_json::from_str(&read).unwrap();
                    assert_eq!(json(&from_json(&object, LIMIT).unwrap()), Ok(read));
                }
            }
        });
    }
}
