//! The codec of this API's calls, between messages and bytes.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::server::v1;

/// Initial size of the buffers of a call, one for each direction, in bytes; they grow with their contents. A stream
/// keeps its buffers for as long as it is open, and tonic would begin with 8 KiB.
const BUFFER: usize = 256;
/// Size at which a buffer is handed on, though more could follow, in bytes; tonic's default.
const YIELD_AT: usize = 32 * 1024;

/// Maximum number of fields in a request, those of its messages included. A request has a dozen. A field can have two
/// bytes, and a million of them take longer to decode than a thread of the server may be kept.
const MAX_FIELDS: usize = 1024;
/// Size from which the fields of a request are counted, in bytes. For smaller requests that would be a waste of time.
const COUNTED_FROM: usize = 16 * 1024;

/// tonic's codec for protobuf, with small buffers.
#[derive(Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD_AT))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD_AT))
    }
}

/// The same for the server, which refuses requests with too many fields before they are decoded.
#[derive(Debug)]
pub struct Guarded<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Guarded<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Guarded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Nested + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = GuardedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        SmallBuffers::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        GuardedDecoder(SmallBuffers::<T, U>::default().decoder())
    }
}

/// The decoder of [`Guarded`].
#[derive(Debug)]
pub struct GuardedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Nested + Default> Decoder for GuardedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic keeps a message in one piece.
        let mut left = MAX_FIELDS;
        if buffer.remaining() >= COUNTED_FROM && has_too_many(buffer.chunk(), &U::NESTED, &mut left) {
            return Err(Status::internal(format!("it has more than {MAX_FIELDS} fields, or a group")));
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// The fields of a message that are messages, each with those of its own.
#[derive(Debug)]
pub struct Shape(&'static [(u32, Shape)]);

/// A request, whose fields can be counted before it is decoded.
pub trait Nested {
    /// Its shape.
    const NESTED: Shape;
}

/// A message with only scalars.
const FLAT: Shape = Shape(&[]);

/// Gives each request its shape, and lists the shapes for the test that compares them with the API.
macro_rules! shapes {
    ($($request:ident: $shape:expr;)*) => {
        $(impl Nested for v1::$request {
            const NESTED: Shape = $shape;
        })*

        #[cfg(test)]
        const SHAPES: &[(&str, Shape)] = &[$((stringify!($request), v1::$request::NESTED)),*];
    };
}

shapes! {
    RegisterRequest: Shape(&[(1, Shape(&[(1, FLAT)])), (2, Shape(&[(2, FLAT)])), (3, FLAT), (4, FLAT), (5, FLAT)]);
    PutRequest: Shape(&[(2, FLAT)]);
    GetRequest: Shape(&[(3, FLAT)]);
    WatchRequest: Shape(&[(4, FLAT)]);
    AcquireLockRequest: Shape(&[(3, FLAT), (4, FLAT), (7, FLAT)]);
    ReleaseLockRequest: FLAT;
    DescribeLockRequest: FLAT;
    DeleteRequest: FLAT;
    EvictRequest: Shape(&[(2, FLAT)]);
    StatusRequest: FLAT;
}

/// Whether a message, those within it included, has more than `left` fields, or a group, of which this API has none.
/// Bytes that are no protobuf have neither: their decoder reports them.
fn has_too_many(mut bytes: &[u8], shape: &Shape, left: &mut usize) -> bool {
    while !bytes.is_empty() {
        let Some(rest) = left.checked_sub(1) else { return true };
        *left = rest;
        let Ok((tag, wire_type)) = decode_key(&mut bytes) else { return false };
        match wire_type {
            WireType::StartGroup | WireType::EndGroup => return true,
            WireType::LengthDelimited => {
                let length = decode_varint(&mut bytes).ok().and_then(|length| usize::try_from(length).ok());
                let Some((content, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else {
                    return false;
                };
                bytes = rest;
                if shape.0.iter().any(|(nested, shape)| *nested == tag && has_too_many(content, shape, left)) {
                    return true;
                }
            }
            _ if skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).is_err() => return false,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use prost_types::field_descriptor_proto::Type;
    use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

    use super::*;

    /// All messages, by full name.
    fn messages() -> BTreeMap<String, DescriptorProto> {
        let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).expect("a descriptor set");
        let named = |file: FileDescriptorProto| {
            let package = file.package().to_owned();
            file.message_type.into_iter().map(move |message| (format!(".{package}.{}", message.name()), message))
        };
        set.file.into_iter().flat_map(named).collect()
    }

    /// Whether a shape names all fields that are messages.
    fn fits(shape: &Shape, name: &str, messages: &BTreeMap<String, DescriptorProto>) -> bool {
        // The server leaves a `Struct` encoded.
        let nested = messages[name]
            .field
            .iter()
            .filter(|field| field.r#type() == Type::Message && field.type_name() != ".google.protobuf.Struct");
        let numbers: Vec<_> = nested.clone().map(|field| field.number().unsigned_abs()).collect();
        numbers == shape.0.iter().map(|(number, _)| *number).collect::<Vec<_>>()
            && nested.zip(shape.0).all(|(field, (_, shape))| fits(shape, field.type_name(), messages))
    }

    #[test]
    fn every_request_of_the_api_has_its_shape() {
        let messages = messages();
        for (name, shape) in SHAPES {
            assert!(fits(shape, &format!(".rollcall.v1.{name}"), &messages), "{name}");
        }
        let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).expect("a descriptor set");
        let services =
            set.file.into_iter().filter(|file| file.package() == "rollcall.v1").flat_map(|file| file.service);
        let requests = services.flat_map(|service| service.method).map(|method| method.input_type().to_owned());
        let named = SHAPES.iter().map(|(name, _)| format!(".rollcall.v1.{name}"));
        assert_eq!(named.collect::<BTreeSet<_>>(), requests.collect::<BTreeSet<_>>());
    }

    #[test]
    fn fields_are_counted_wherever_they_are() {
        let is_refused = |bytes: &[u8]| has_too_many(bytes, &v1::RegisterRequest::NESTED, &mut MAX_FIELDS.clone());
        let within = |tag: u8, content: &[u8]| {
            let mut bytes = vec![tag << 3 | 2];
            prost::encoding::encode_varint(u64::try_from(content.len()).unwrap_or_default(), &mut bytes);
            bytes.extend_from_slice(content);
            bytes
        };
        for unit in [&b"\x12\x00"[..], b"\x12\x02\x0a\x00", b"\x78\x01", b"\x0a\x02\x0a\x00"] {
            assert!(is_refused(&unit.repeat(MAX_FIELDS + 1)), "{unit:?}");
            assert!(!is_refused(&unit.repeat(MAX_FIELDS / 2)), "{unit:?}");
        }
        let many = b"\x0a\x01x".repeat(MAX_FIELDS);
        assert!(is_refused(&within(2, &many)) && is_refused(&within(2, &within(2, &many))));
        // A value is no message, whatever is in it.
        assert!(!is_refused(&within(2, &within(2, &within(1, &many)))));
        assert!(is_refused(b"\x7b\x7c"));
        assert!(!is_refused(b"\x0a\x7f"), "it is for the decoder to say what is wrong");
    }
}
