//! The API: one file an RPC. Each file checks the request, calls a handle, and converts the answer. None keeps state.

mod acknowledged;
mod admission;
mod call;
mod convert;
mod deadline;
mod delete;
mod download;
mod evict;
mod faults;
mod frames;
mod front;
mod gate;
mod get;
mod heartbeat;
mod locks;
mod message;
mod pace;
mod page;
mod pings;
mod put;
mod register;
mod report;
mod status;
mod times;
mod turnstile;
mod upload;
mod watch;
mod write_coalescer;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt as _, stream};
use prost::Message;
use rollcall_proto::server::v1;
use rollcall_proto::server::v1::registry_server::{Registry, RegistryServer};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use admission::Admission;
use frames::Frame;
use front::Front;
pub(crate) use gate::Gate;
use message::MAX_MESSAGE_BYTES;
pub(crate) use turnstile::Turnstile;
pub(crate) use write_coalescer::WriteCoalescer;

use crate::budget::Budget;
use crate::drain::{Drain, DrainPhase};
use crate::durable::Durable;
use crate::error::Error;
use crate::evictions::Evictions;
use crate::locks::Locks;
use crate::metrics::Metrics;
use crate::sessions::Sessions;
use crate::standing::Standing;
use crate::types::{NodePath, PathError};
use crate::views::Views;

/// The settings of the API.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Maximum size of a value, in bytes as the znode holds it.
    pub(crate) max_value_bytes: usize,
    /// Whether every write, lock and registration is refused.
    pub(crate) read_only: bool,
    /// Whether all paths lie below a chroot.
    pub(crate) has_chroot: bool,
    /// Time without a message after which a stream gets a heartbeat.
    pub(crate) heartbeat: Duration,
}

/// The service `rollcall.v1.Registry`.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) sessions: Sessions,
    pub(crate) views: Views,
    pub(crate) locks: Locks,
    pub(crate) durable: Durable,
    pub(crate) evictions: Evictions,
    pub(crate) admission: Admission,
    pub(crate) metrics: Metrics,
    pub(crate) settings: Arc<Settings>,
    pub(crate) drain: Drain,
    pub(crate) budget: Budget,
    pub(crate) standing: Standing,
}

/// The service, ready to be served.
pub(crate) fn serve(service: Service) -> Front<RegistryServer<Service>> {
    Front(RegistryServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

impl Settings {
    /// Parses a path that a request wants to write, register or lock.
    fn path_to_write(&self, text: &str) -> Result<NodePath, Error> {
        let path = convert::path_below_root(text)?;
        if path.is_zookeepers() && !self.has_chroot {
            return Err(convert::invalid_path(text, PathError::ZooKeepers));
        }
        Ok(path)
    }

    fn check_size(&self, path: &NodePath, bytes: usize) -> Result<(), Error> {
        let limit = self.max_value_bytes;
        if bytes <= limit {
            return Ok(());
        }
        Err(Error::ValueTooLarge { path: path.clone(), bytes, limit })
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The empty stream that tonic gets when the messages are handed over as bytes.
type HandedOver<T> = stream::Empty<Result<T, Status>>;

impl Service {
    /// Ends all streams. Registrations stay, for clients that come back on another replica. Locks without a ttl are
    /// released. Waits until everything that clients gave back before is removed.
    pub(crate) async fn go_down(&self) {
        self.sessions.leave_standing();
        self.drain.go_to(DrainPhase::Over);
        tokio::join!(self.views.save(), self.locks.drained(), self.sessions.settled());
    }

    fn answer<T>(&self, method: &'static str, result: Result<T, Error>) -> Result<Response<T>, Status> {
        self.metrics.call(method, result.as_ref().err().map_or("", Error::reason));
        result.map(Response::new).map_err(|error| status::status(&error))
    }

    /// Answers with a stream, which ends at its deadline and tells its client of a drain.
    fn stream<T: deadline::Response + Message>(
        &self,
        method: &'static str,
        responses: Result<Responses<T>, Error>,
        deadline: Option<Instant>,
    ) -> Result<Response<HandedOver<T>>, Status> {
        let responses = self.answer(method, responses)?.into_inner();
        let bounded = deadline::bound(responses, deadline, self.drain.phases());
        Ok(frames::hand_over(stream::empty(), bounded.map_ok(|response| Frame::of(&response))))
    }

    /// Interval of a quiet stream's heartbeats: the request's, or the server's default. Zero means none.
    fn heartbeat(&self, asked: Option<prost_types::Duration>) -> Result<Duration, Error> {
        const HEARTBEATS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
        match convert::duration_or_zero("heartbeat", asked)? {
            None => Ok(self.settings.heartbeat),
            Some(heartbeat) if heartbeat.is_zero() || HEARTBEATS.contains(&heartbeat) => Ok(heartbeat),
            Some(_) => Err(Error::Protocol { field: "heartbeat", cause: "it must be zero, or 1s to 600s".to_owned() }),
        }
    }

    /// A place for a stream.
    fn admit(&self, kind: admission::CallKind) -> Result<admission::CallPlace, Error> {
        if self.drain.is_serving() { Ok(self.admission.admit(kind)) } else { Err(Error::Draining) }
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.settings.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl Registry for Service {
    type RegisterStream = HandedOver<v1::RegisterResponse>;

    async fn register(
        &self,
        request: Request<Streaming<v1::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let deadline = deadline::of(request.metadata().as_ref());
        self.stream("Register", self.do_register(request), deadline)
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        self.answer("Put", self.do_put(request).await)
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        self.answer("Delete", self.do_delete(request).await)
    }

    type AcquireLockStream = HandedOver<v1::AcquireLockResponse>;

    async fn acquire_lock(
        &self,
        request: Request<v1::AcquireLockRequest>,
    ) -> Result<Response<Self::AcquireLockStream>, Status> {
        let deadline = deadline::of(request.metadata().as_ref());
        self.stream("AcquireLock", self.do_acquire_lock(request), deadline)
    }

    async fn release_lock(
        &self,
        request: Request<v1::ReleaseLockRequest>,
    ) -> Result<Response<v1::ReleaseLockResponse>, Status> {
        self.answer("ReleaseLock", self.do_release_lock(request).await)
    }

    async fn describe_lock(
        &self,
        request: Request<v1::DescribeLockRequest>,
    ) -> Result<Response<v1::DescribeLockResponse>, Status> {
        let frame = self.answer("DescribeLock", self.do_describe_lock(request).await)?.into_inner();
        Ok(frames::hand_over(v1::DescribeLockResponse::default(), stream::iter([Ok(frame)])))
    }

    async fn evict(&self, request: Request<v1::EvictRequest>) -> Result<Response<v1::EvictResponse>, Status> {
        self.answer("Evict", self.do_evict(request.into_inner()).await)
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.answer("Status", Ok(self.do_status().await))
    }

    type WatchStream = HandedOver<v1::WatchResponse>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let deadline = deadline::of(request.metadata().as_ref());
        let frames = self.do_watch(request).map(|frames| deadline::bound(frames, deadline, self.drain.phases()));
        let frames = self.answer("Watch", frames)?.into_inner();
        Ok(frames::hand_over(stream::empty(), frames))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let frame = self.answer("Get", self.do_get(request).await)?.into_inner();
        Ok(frames::hand_over(v1::GetResponse::default(), stream::iter([Ok(frame)])))
    }
}
