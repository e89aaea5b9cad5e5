//! The value of a node, as a program has it and as it is sent.

use bytes::Bytes;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use prost::Message as _;
use rollcall_proto::v1;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value as Json, json};

use crate::error::{Error, Reason, Refusal};

/// Maximum size of a request, in bytes. A replica refuses a larger request, and ends the stream on which it comes.
const MAX_MESSAGE_BYTES: usize = 2 << 20;
/// Bytes of a request besides its path and its value.
const ENVELOPE_BYTES: usize = 256;

/// The value of a node. An empty node has no value at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A JSON object, the usual case. Numbers are doubles.
    Data(Map<String, Json>),
    /// Text that is not a JSON object.
    Text(String),
    /// Anything else, including JSON that `Data` could not represent without loss.
    Raw(Bytes),
}

impl Value {
    /// Data from anything that serializes to a JSON object: a map, a struct, `json!({…})`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not a JSON object.
    pub fn from_data(data: impl Serialize) -> Result<Self, Error> {
        match serde_json::to_value(data) {
            Ok(Json::Object(fields)) => Ok(Self::Data(fields)),
            Ok(other) => Err(Error::invalid("data", format!("{other} is not a JSON object"))),
            Err(error) => Err(Error::invalid("data", error)),
        }
    }

    /// The JSON object, if the value is one.
    #[must_use]
    pub fn as_data(&self) -> Option<&Map<String, Json>> {
        match self {
            Self::Data(fields) => Some(fields),
            Self::Text(_) | Self::Raw(_) => None,
        }
    }

    /// Converts the data to a type of your own.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the value is not data, or does not fit the type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let Self::Data(fields) = self else { return Err(Error::invalid("value", "it is not a JSON object")) };
        serde_json::from_value(Json::Object(fields.clone())).map_err(|error| Error::invalid("value", error))
    }

    /// Converts to JSON, for people and for files: data as it is, text as `{"string_value": …}`, as
    /// `nd_service_registry` shows it, and bytes as `{"raw": "…"}` in hexadecimal digits.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            Self::Data(fields) => Json::Object(fields.clone()),
            Self::Text(text) => json!({ "string_value": text }),
            Self::Raw(bytes) => json!({ "raw": to_hex(bytes) }),
        }
    }

    pub(crate) fn into_proto(self) -> Result<v1::Value, Error> {
        use v1::value::Kind;
        let kind = match self {
            Self::Data(fields) => Kind::Data(to_struct(fields)?),
            Self::Text(text) => Kind::Text(text),
            Self::Raw(bytes) => Kind::Raw(bytes),
        };
        Ok(v1::Value { kind: Some(kind) })
    }

    pub(crate) fn from_proto(value: Option<v1::Value>) -> Option<Self> {
        use v1::value::Kind;
        Some(match value?.kind? {
            Kind::Data(data) => Self::Data(from_struct(data)),
            Kind::Text(text) => Self::Text(text),
            Kind::Raw(bytes) => Self::Raw(bytes),
        })
    }
}

impl From<Map<String, Json>> for Value {
    fn from(fields: Map<String, Json>) -> Self {
        Self::Data(fields)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::Raw(bytes)
    }
}

/// A value that is kept to be sent again: one allocation, where a tree of JSON has many.
#[derive(Debug, Clone)]
pub(crate) enum Compact {
    Data(Box<str>),
    Text(Box<str>),
    Raw(Bytes),
}

impl Compact {
    /// # Errors
    /// [`Error::Invalid`] when the value can't be sent.
    pub(crate) fn new(value: Value) -> Result<Self, Error> {
        Ok(match value {
            Value::Data(fields) => {
                let fields = Json::Object(fields);
                check_numbers(&fields)?;
                Self::Data(fields.to_string().into())
            }
            Value::Text(text) => Self::Text(text.into()),
            Value::Raw(bytes) => Self::Raw(bytes),
        })
    }

    /// # Errors
    /// Those of [`check_size`].
    pub(crate) fn check_size(&self, path: &str) -> Result<(), Error> {
        // A list of digits grows most on the wire, compared with its text: each digit takes eleven bytes.
        const MOST_GROWTH: usize = 8;
        let bytes = match self {
            Self::Data(text) => MOST_GROWTH * text.len(),
            Self::Text(text) => text.len(),
            Self::Raw(bytes) => bytes.len(),
        };
        let is_small = path.len() + bytes <= MAX_MESSAGE_BYTES - ENVELOPE_BYTES;
        if is_small { Ok(()) } else { check_size(path, self.to_proto().as_ref()) }
    }

    pub(crate) fn to_proto(&self) -> Option<v1::Value> {
        let value = match self {
            Self::Data(text) => Value::Data(serde_json::from_str(text).ok()?),
            Self::Text(text) => Value::Text(text.to_string()),
            Self::Raw(bytes) => Value::Raw(bytes.clone()),
        };
        value.into_proto().ok()
    }
}

/// # Errors
/// [`Error::Refused`], reason [`ValueTooLarge`](Reason::ValueTooLarge), as a replica would answer, when the request
/// would be too large to be read.
pub(crate) fn check_size(path: &str, value: Option<&v1::Value>) -> Result<(), Error> {
    let bytes = path.len() + value.map_or(0, v1::Value::encoded_len);
    if bytes <= MAX_MESSAGE_BYTES - ENVELOPE_BYTES {
        return Ok(());
    }
    let name: String = path.chars().take(100).collect();
    let message = format!("{name} and its value take {bytes} bytes, and a message has at most {MAX_MESSAGE_BYTES}");
    Err(Error::Refused(Refusal::in_stream(
        tonic::Code::InvalidArgument.into(),
        Reason::ValueTooLarge.as_str(),
        message,
    )))
}

fn check_numbers(json: &Json) -> Result<(), Error> {
    match json {
        Json::Number(number) => to_double(number).map(|_| ()),
        Json::Array(items) => items.iter().try_for_each(check_numbers),
        Json::Object(fields) => fields.values().try_for_each(check_numbers),
        Json::Null | Json::Bool(_) | Json::String(_) => Ok(()),
    }
}

fn to_struct(fields: Map<String, Json>) -> Result<prost_types::Struct, Error> {
    let fields = fields.into_iter().map(|(key, value)| Ok((key, to_proto(value)?))).collect::<Result<_, Error>>()?;
    Ok(prost_types::Struct { fields })
}

fn to_proto(json: Json) -> Result<prost_types::Value, Error> {
    use prost_types::value::Kind;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(number) => Kind::NumberValue(to_double(&number)?),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(to_proto).collect::<Result<_, _>>()?,
        }),
        Json::Object(fields) => Kind::StructValue(to_struct(fields)?),
    };
    Ok(prost_types::Value { kind: Some(kind) })
}

/// Numbers are sent as doubles. A number that a double would change is refused instead.
fn to_double(number: &Number) -> Result<f64, Error> {
    let text = number.to_string();
    let double = text.parse::<f64>().ok().filter(|double| double.is_finite());
    let is_integer = !text.contains(['.', 'e', 'E']);
    double
        .filter(|double| !is_integer || format!("{:.0}", double.abs()) == text.trim_start_matches('-'))
        .ok_or_else(|| Error::invalid("data", format!("a double can't hold {text}; write it as a string")))
}

fn from_struct(data: prost_types::Struct) -> Map<String, Json> {
    data.fields.into_iter().map(|(key, value)| (key, from_proto(value))).collect()
}

fn from_proto(value: prost_types::Value) -> Json {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(value),
        Some(Kind::NumberValue(double)) => from_double(double).map_or(Json::Null, Json::Number),
        Some(Kind::StringValue(value)) => Json::String(value),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(from_proto).collect(),
        Some(Kind::StructValue(data)) => Json::Object(from_struct(data)),
    }
}

/// Whole numbers stay whole: 10733, never 10733.0.
fn from_double(double: f64) -> Option<Number> {
    const WRITTEN_OUT: f64 = 1e21;
    const LARGEST_INTEGER: f64 = 9_007_199_254_740_992.0;
    if double.fract() != 0.0 || double.abs() >= WRITTEN_OUT {
        return Number::from_f64(double);
    }
    if double.abs() <= LARGEST_INTEGER {
        #[allow(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        return Some(Number::from(double as i64));
    }
    // `{:.0}` writes the exact value.
    serde_json::from_str(&format!("{double:.0}")).ok()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

pub(crate) fn from_hex(text: &str) -> Option<Bytes> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(value: Value) -> Value {
        let kept = Compact::new(value).unwrap();
        Value::from_proto(kept.to_proto()).unwrap()
    }

    #[test]
    fn values_survive_the_wire_and_whole_numbers_stay_whole() {
        let data = json!({"port": 10733, "load": 0.25, "tags": ["a", null, true], "in": {"deep": -1}});
        let value = there_and_back(Value::from_data(&data).unwrap());
        assert_eq!(value.to_json(), data);
        assert_eq!(value.to_json().to_string(), data.to_string());
        assert_eq!(there_and_back("text".into()), Value::Text("text".to_owned()));
        let raw = Value::Raw(Bytes::from_static(&[0, 255]));
        assert_eq!(there_and_back(raw.clone()), raw);
        assert_eq!(Value::from_proto(None), None);
        assert_eq!(Value::from_proto(Some(v1::Value { kind: None })), None);
    }

    #[test]
    fn what_a_double_would_change_is_refused() {
        let number: Json = serde_json::from_str("9007199254740993").unwrap();
        let error = Compact::new(Value::from_data(json!({ "id": [number] })).unwrap()).unwrap_err();
        assert!(error.to_string().contains("9007199254740993"), "{error}");
        assert!(Compact::new(Value::from_data(json!({"id": 9_007_199_254_740_992_u64})).unwrap()).is_ok());
    }

    #[test]
    fn what_no_message_can_carry_is_refused_and_what_just_fits_is_not() {
        let fits = MAX_MESSAGE_BYTES - ENVELOPE_BYTES - "/a".len() - 16;
        let digits = json!({ "list": vec![1; fits / 12] });
        let more_digits = json!({ "list": vec![1; fits / 11 + 1] });
        for (value, is_taken) in [
            (Value::from("x".repeat(fits)), true),
            (Value::from("x".repeat(fits + 100)), false),
            (Value::from_data(digits).unwrap(), true),
            (Value::from_data(more_digits).unwrap(), false),
        ] {
            let checked = Compact::new(value).unwrap().check_size("/a");
            assert_eq!(checked.is_ok(), is_taken, "{checked:?}");
        }
        let long = Compact::new("".into()).unwrap().check_size(&"x".repeat(MAX_MESSAGE_BYTES)).unwrap_err();
        assert_eq!(long.reason(), Some(&Reason::ValueTooLarge));
        assert!(long.to_string().len() < 300, "{long}");
    }

    #[test]
    fn data_is_an_object_and_fits_types() {
        assert!(Value::from_data(json!([1])).is_err());
        let value = Value::from_data(json!({"port": 22})).unwrap();
        let ports: std::collections::HashMap<String, u16> = value.parse().unwrap();
        assert_eq!(ports["port"], 22);
        assert!(Value::from("x").parse::<Json>().is_err());
    }

    #[test]
    fn hex_is_read_back() {
        assert_eq!(to_hex(&[0, 0xab]), "00ab");
        assert_eq!(from_hex("00ab").unwrap().as_ref(), [0, 0xab]);
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
