//! The client, and the parts that all calls share.

use std::fmt;
use std::future::IntoFuture;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Status;

use crate::background::Background;
use crate::cache::Cache;
use crate::choice::FOREVER;
use crate::contact::Contact;
use crate::endpoints::{Credentials, Endpoints, Tls, addresses};
use crate::error::{Error, Failure, Reason};
use crate::node::Lookup;
use crate::register::session::Sessions;
use crate::replicas::{Replica, Replicas, Stub};

/// Time after which a call is given up, unless the client is given another.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time that one replica may take to answer before another is asked.
const ATTEMPT: Duration = Duration::from_secs(4);

/// A client of any number of replicas. Clones are cheap and share connections, registrations and everything else.
///
/// It needs a Tokio runtime. Calls go to one replica for as long as it answers. When it does not, or says that it is
/// about to stop, they go to another. Registrations, watches and locks with a ttl move along.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("replicas", &self.0.replicas.names()).finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    pub(crate) replicas: Replicas,
    pub(crate) patience: Duration,
    pub(crate) name: String,
    pub(crate) cache: Option<Cache>,
    pub(crate) sessions: Sessions,
    pub(crate) background: Background,
}

/// A builder of a client: from [`Client::connect`].
#[derive(Clone)]
#[must_use = "nothing happens before it is awaited, or `lazy` is called"]
pub struct Connect {
    endpoints: Endpoints,
    tls: Option<Tls>,
    token: Option<String>,
    name: Option<String>,
    patience: Duration,
    cache_file: Option<PathBuf>,
}

impl Client {
    /// Begins to connect to one or more replicas: `"localhost:7700"`, `"a:7700,b:7700"`, `["a:7700", "b:7700"]`.
    ///
    /// Awaiting the builder waits until one of them answers; [`Connect::lazy`] does not wait.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), rollcall::Error> {
    /// let client = rollcall::Client::connect("localhost:7700").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connect(endpoints: impl Into<Endpoints>) -> Connect {
        Connect {
            endpoints: endpoints.into(),
            tls: None,
            token: None,
            name: None,
            patience: PATIENCE,
            cache_file: None,
        }
    }

    /// Waits until everything that was dropped has been given back: locks, places in queues, registrations. A program
    /// calls it last, since a runtime that ends does not finish its background work.
    ///
    /// # Errors
    /// [`Error::Unreachable`]: no replica could be reached within the client's time-out; the rest goes with its ttl.
    ///
    /// # Cancellation
    /// Safe.
    ///
    /// # Connection loss
    /// Another replica is asked.
    pub async fn settled(&self) -> Result<(), Error> {
        let Shared { replicas, patience, background, .. } = self.shared();
        // Each of these tasks goes on for that long at most, and has begun some time ago.
        let settled = timeout(*patience, background.settled()).await;
        settled.map_err(|_| Error::Unreachable { replicas: replicas.names(), source: None })
    }

    /// How the replicas answer, as it changes: Tokio's watch channel. It is for messages; it does not decide which
    /// replica a call goes to next.
    #[must_use]
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.replicas().contact()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }

    pub(crate) fn replicas(&self) -> &Replicas {
        &self.0.replicas
    }

    /// The cache file's answer, marked as stale; `None` when there is no file, or nothing about the path in it.
    pub(crate) fn cached(&self, path: &str, recursive: bool) -> Option<Lookup> {
        self.0.cache.as_ref()?.get(path, recursive)
    }

    /// Keeps an answer, if there is a cache file.
    pub(crate) async fn remember(&self, recursive: bool, lookup: Arc<Lookup>) {
        if let Some(cache) = &self.0.cache {
            cache.remember(recursive, lookup).await;
        }
    }
}

impl Connect {
    /// Encrypts the connections.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sends this token with every call, as `authorization: Bearer …`. Use it with TLS only: without TLS, everybody on
    /// the way can read it.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The program's name in the replicas' logs and, unless a lock is given another, as the holder of locks. Default:
    /// host name and process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Time that a call may take, with all replicas that it tries, before it ends with [`Error::Unreachable`]. Default:
    /// 10 seconds. Streams go on for ever.
    pub fn timeout(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Keeps the last known answers of lookups and views in this file. When no replica can be reached, they are given
    /// from the file, with `stale` and `as_of`. The file is JSON, only its owner can read it, and it is always whole.
    /// An empty list never replaces a list with names. Each program needs a file of its own.
    pub fn cache_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.cache_file = Some(file.into());
        self
    }

    /// Makes the client without waiting for a replica. Nothing is connected before the first call.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an address, the token or a certificate is not valid.
    pub fn lazy(self) -> Result<Client, Error> {
        let addresses = addresses(&self.endpoints, self.tls.as_ref())?;
        let credentials = self.token.as_deref().map(Credentials::bearer).transpose()?.unwrap_or_default();
        let name = self.name.unwrap_or_else(default_name);
        let replicas = Replicas::new(addresses, credentials);
        let cache = self.cache_file.map(Cache::open);
        let background = Background::default();
        let sessions = Sessions::new(replicas.clone(), name.clone(), background.clone());
        Ok(Client(Arc::new(Shared { replicas, patience: self.patience, name, cache, sessions, background })))
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token must not be logged.
        formatter
            .debug_struct("Connect")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

impl IntoFuture for Connect {
    type Output = Result<Client, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Waits until a replica answers, with ZooKeeper or without.
    ///
    /// # Errors
    /// [`Error::Invalid`] as for [`Connect::lazy`]; [`Error::Unreachable`] when no replica answers in time;
    /// [`Error::Refused`] when the credentials are wrong.
    ///
    /// # Cancellation
    /// Safe.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let client = self.lazy()?;
            let request = v1::GetRequest { path: "/".to_owned(), page_size: 1, ..Default::default() };
            let probe = |attempt: Attempt| {
                let request = request.clone();
                async move { attempt.bounded(attempt.stub().get(request)).await }
            };
            match client.call(Call::read("/"), probe).await {
                // The replica has answered. Its trouble with ZooKeeper concerns only the calls that need ZooKeeper.
                Err(Error::Refused(refusal)) if refusal.reason() == &Reason::BackendUnavailable => Ok(client),
                answer => answer.map(|_| client),
            }
        })
    }
}

fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").ok());
    let host = host.as_deref().map(str::trim).filter(|host| !host.is_empty()).unwrap_or("rollcall");
    format!("{host}:{}", std::process::id())
}

/// A unary call, and how it may be tried again.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    path: String,
    kind: Kind,
    /// Time for which the replica may hold the answer back.
    hold: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To carry it out twice is the same as once.
    Read,
    /// Tried again only when it was certainly not carried out.
    Write,
}

impl Call {
    pub(crate) fn read(path: &str) -> Self {
        Self { path: path.to_owned(), kind: Kind::Read, hold: Duration::ZERO }
    }

    pub(crate) fn write(path: &str) -> Self {
        Self { path: path.to_owned(), kind: Kind::Write, hold: Duration::ZERO }
    }

    pub(crate) fn held_for(self, hold: Duration) -> Self {
        Self { hold, ..self }
    }
}

/// An attempt of a call at one replica.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    replica: Replica,
    bound: Duration,
    /// When the whole call is given up.
    pub(crate) deadline: Instant,
}

impl Attempt {
    pub(crate) fn stub(&self) -> Stub {
        self.replica.stub.clone()
    }

    /// The index of the replica that is asked.
    pub(crate) fn index(&self) -> usize {
        self.replica.index()
    }

    /// Awaits one answer, up to the bound of the attempt.
    pub(crate) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let bound = self.bound.min(self.deadline.saturating_duration_since(Instant::now()));
        match timeout(bound, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::of(status)),
            Err(_) => Err(Failure::silent()),
        }
    }
}

impl Client {
    /// Makes a call: at one replica after another, until one answers or the time is over.
    pub(crate) async fn call<T, F>(&self, call: Call, mut attempt: impl FnMut(Attempt) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let Shared { replicas, patience, .. } = self.shared();
        let deadline = Instant::now() + (*patience + call.hold).min(FOREVER);
        // A write that hangs must not be sent twice, so a single attempt has all the time there is.
        let bound = if call.kind == Kind::Read { ATTEMPT.saturating_add(call.hold) } else { *patience };
        let mut last = None;
        while let Ok(replica) = timeout_at(deadline, replicas.pick()).await {
            let failure = match attempt(Attempt { replica: replica.clone(), bound, deadline }).await {
                Ok(answer) => {
                    replicas.succeeded(&replica);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            match &failure {
                Failure::Refused(refusal) if *refusal.reason() == Reason::PageExpired => {}
                Failure::Refused(_) => {
                    replicas.succeeded(&replica);
                    return Err(Error::Refused(failure.into_refusal()));
                }
                Failure::Broken(_) if call.kind == Kind::Write => {
                    replicas.failed(&replica, &failure);
                    return Err(Error::OutcomeUnknown { path: call.path, source: failure.into_status() });
                }
                Failure::NotSent(_) | Failure::NotNow(_) | Failure::Broken(_) => replicas.failed(&replica, &failure),
            }
            last = Some(failure);
        }
        Err(replicas.given_up(last))
    }
}
