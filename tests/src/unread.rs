//! Watch streams whose messages are not decoded: thousands of them, with large snapshots, cost a test little.

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use rollcall_proto::v1::{WatchRequest, WatchResponse};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::client::next;
use crate::wait::soon;

/// A Watch stream. Messages that are not taken stall once its window is full.
#[derive(Debug)]
pub struct Unread(Streaming<Bytes>);

impl Unread {
    /// Starts a watch, without reading yet.
    ///
    /// # Panics
    /// When the call is refused.
    pub async fn watch(channel: &Channel, request: WatchRequest) -> Unread {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.expect("the connection stands");
        let method = PathAndQuery::from_static("/rollcall.v1.Registry/Watch");
        let call = client.server_streaming(Request::new(request), method, Raw);
        Unread(soon("headers of Watch", call).await.expect("Watch begins").into_inner())
    }

    /// Takes the next message.
    ///
    /// # Panics
    /// When the stream ends.
    pub async fn take(&mut self) -> Bytes {
        next("a message of Watch", &mut self.0).await.expect("the stream stands").expect("the stream goes on")
    }

    /// Takes the next message, and decodes it.
    ///
    /// # Panics
    /// When the stream ends.
    pub async fn read(&mut self) -> WatchResponse {
        WatchResponse::decode(self.take().await).expect("a message of Watch")
    }
}

/// A codec that leaves messages encoded.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = WatchRequest;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = WatchRequest;
    type Error = Status;

    fn encode(&mut self, request: WatchRequest, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
