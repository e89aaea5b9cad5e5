//! Calls whose messages are arbitrary bytes, which no generated client would send.

use bytes::{Buf as _, BufMut as _, Bytes};
use tokio_stream::StreamExt as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::server::SERVICE;
use crate::wait::soon;

/// A codec that passes messages through unchanged.
#[derive(Debug, Default)]
struct AnyBytes;

impl Codec for AnyBytes {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AnyBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for AnyBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Sends these messages to a method, whatever its shape, and ends the request side. Returns the first `most` answers,
/// or fewer if the call ends before.
///
/// # Errors
/// The status that the call ends with.
pub async fn call(channel: &Channel, method: &str, messages: Vec<Bytes>, most: usize) -> Result<Vec<Bytes>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(4 << 20);
    soon("a connection", grpc.ready()).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = format!("/{SERVICE}/{method}").parse().expect("a method's name is a path");
    let request = Request::new(tokio_stream::iter(messages));
    let mut answers = soon("headers", grpc.streaming(request, path, AnyBytes)).await?.into_inner();
    let mut read = Vec::new();
    while read.len() < most {
        match soon("an answer", answers.next()).await {
            Some(answer) => read.push(answer?),
            None => break,
        }
    }
    Ok(read)
}
