//! An independent view of ZooKeeper: the crate zookeeper-client, which the server does not use, so that tests can
//! compare the server's answers with the nodes.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, CreateOptions, Error, EventType, Permission, Stat};

use crate::wait::{SOON, eventually};

/// A ZooKeeper session of its own. Dropping it closes the session, and its ephemeral nodes go.
///
/// A call that takes longer than [`SOON`], or that ZooKeeper refuses, is a panic, except for the methods that say
/// otherwise. Absent nodes are `None`.
#[derive(Clone, Debug)]
pub struct Witness {
    client: Client,
}

/// A node as ZooKeeper has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// The bytes.
    pub data: Vec<u8>,
    /// ZooKeeper's record of the node.
    pub stat: Stat,
}

impl Znode {
    /// The bytes, which must be UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.data).expect("the node's data is UTF-8")
    }

    /// The bytes, which must be JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.data).expect("the node's data is JSON")
    }

    /// Whether a session owns it.
    pub fn is_ephemeral(&self) -> bool {
        self.stat.ephemeral_owner != 0
    }
}

/// The watched end of a node. See [`Witness::ending`].
#[derive(Debug)]
pub struct Ending {
    path: String,
    seen: JoinHandle<Instant>,
}

impl Ending {
    /// Waits until the node is gone, and returns when ZooKeeper reported it: never before the end, and little later.
    ///
    /// # Panics
    /// When the node exists for longer than any test lets it outlive its owner.
    pub async fn at(self) -> Instant {
        match timeout(3 * SOON, self.seen).await {
            Ok(seen) => seen.expect("the watch is kept"),
            Err(_) => panic!("{} still stands", self.path),
        }
    }
}

impl Witness {
    /// Connects to `host:port,…/chroot` with a session time-out of 30 s.
    pub async fn connect(hosts: &str) -> Witness {
        Witness::connect_with(hosts, Duration::from_secs(30), None).await
    }

    /// Connects with credentials of ZooKeeper's digest scheme, `user:password`.
    pub async fn connect_as(hosts: &str, user_and_password: &str) -> Witness {
        Witness::connect_with(hosts, Duration::from_secs(30), Some(user_and_password)).await
    }

    /// Connects with all options given.
    pub async fn connect_with(hosts: &str, session: Duration, digest: Option<&str>) -> Witness {
        let what = format!("a ZooKeeper session with {hosts}");
        let client = eventually(&what, 2 * SOON, async || {
            let mut connector = Client::connector().with_session_timeout(session);
            if let Some(digest) = digest {
                connector = connector.with_auth("digest", digest.as_bytes());
            }
            // A server that has just started can leave a client without an answer.
            match timeout(Duration::from_secs(5), connector.connect(hosts)).await {
                Ok(connected) => connected.map_err(|error| error.to_string()),
                Err(_) => Err("no answer within 5 s".to_owned()),
            }
        })
        .await;
        Witness { client }
    }

    /// The crate's client, for calls that this wrapper does not have.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The id of the session, as in the `ephemeral_owner` of its nodes.
    pub fn session(&self) -> i64 {
        self.client.session_id().0
    }

    /// Creates a durable node, and its parents where they are missing. The node must not exist yet.
    pub async fn create(&self, path: &str, data: &[u8]) {
        self.create_with(path, data, &CreateMode::Persistent.with_acls(Acls::anyone_all())).await;
    }

    /// Creates an ephemeral node of this session.
    pub async fn create_ephemeral(&self, path: &str, data: &[u8]) {
        self.create_with(path, data, &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).await;
    }

    /// Creates a durable node that only `user:password` of [`connect_as`](Self::connect_as) may read or change. This
    /// session must have credentials.
    pub async fn create_private(&self, path: &str, data: &[u8]) {
        self.create_with(path, data, &CreateMode::Persistent.with_acls(Acls::creator_all())).await;
    }

    /// Creates a durable node that everybody may read and nobody may change.
    pub async fn create_read_only(&self, path: &str, data: &[u8]) {
        let acls = [Acl::new(Permission::READ, AuthId::anyone())];
        self.create_with(path, data, &CreateMode::Persistent.with_acls(Acls::new(&acls))).await;
    }

    /// Changes a node's ACL so that everybody may read it and nobody may change it.
    pub async fn make_read_only(&self, path: &str) {
        let acls = [Acl::new(Permission::READ, AuthId::anyone())];
        bounded(path, self.client.set_acl(path, &acls, None)).await.unwrap();
    }

    /// Creates a node, and its parents where they are missing.
    pub async fn create_with(&self, path: &str, data: &[u8], options: &CreateOptions<'_>) {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !parent.is_empty()
        {
            let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
            bounded(path, self.client.mkdir(parent, &open)).await.unwrap();
        }
        bounded(path, self.client.create(path, data, options)).await.unwrap();
    }

    /// Creates durable nodes with the same data, all or none. Their parents must exist.
    pub async fn create_many(&self, paths: impl IntoIterator<Item = String>, data: &[u8]) {
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        let mut writer = self.client.new_multi_writer();
        for path in paths {
            writer.add_create(&path, data, &open).unwrap();
        }
        timeout(SOON, writer.commit()).await.expect("many nodes are made soon").unwrap();
    }

    /// Creates a durable node whose parent exists.
    ///
    /// # Errors
    /// The error of ZooKeeper or of the connection.
    pub async fn try_create(&self, path: &str, data: &[u8]) -> Result<(), Error> {
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        bounded(path, self.client.create(path, data, &open)).await.map(|_| ())
    }

    /// The node.
    pub async fn get(&self, path: &str) -> Option<Znode> {
        match bounded(path, self.client.get_data(path)).await {
            Ok((data, stat)) => Some(Znode { data, stat }),
            Err(Error::NoNode) => None,
            Err(error) => panic!("get {path}: {error}"),
        }
    }

    /// Whether the node exists.
    pub async fn exists(&self, path: &str) -> bool {
        bounded(path, self.client.check_stat(path)).await.unwrap().is_some()
    }

    /// The names of a node's children, in order.
    pub async fn children(&self, path: &str) -> Option<Vec<String>> {
        match bounded(path, self.client.list_children(path)).await {
            Ok(mut names) => {
                names.sort();
                Some(names)
            }
            Err(Error::NoNode) => None,
            Err(error) => panic!("list {path}: {error}"),
        }
    }

    /// Writes an existing node, whatever its version.
    pub async fn set(&self, path: &str, data: &[u8]) {
        bounded(path, self.client.set_data(path, data, None)).await.unwrap();
    }

    /// Deletes an existing node without children, whatever its version.
    pub async fn delete(&self, path: &str) {
        bounded(path, self.client.delete(path, None)).await.unwrap();
    }

    /// Deletes a node and all below it, including nodes that others create there meanwhile.
    pub async fn delete_all(&self, path: &str) {
        loop {
            for child in self.children(path).await.unwrap_or_default() {
                Box::pin(self.delete_all(&format!("{path}/{child}"))).await;
            }
            match bounded(path, self.client.delete(path, None)).await {
                Ok(()) | Err(Error::NoNode) => return,
                Err(Error::NotEmpty) => {}
                Err(error) => panic!("{path}: {error}"),
            }
        }
    }

    /// Catches up with the leader: later reads see every write that was acknowledged before.
    pub async fn sync(&self, path: &str) {
        bounded(path, self.client.sync(path)).await.unwrap();
    }

    /// Waits until the node exists and `accept` returns true, and returns it.
    pub async fn wait_for(&self, path: &str, what: &str, accept: impl Fn(&Znode) -> bool) -> Znode {
        eventually(&format!("{path}: {what}"), SOON, async || match self.get(path).await {
            Some(node) if accept(&node) => Ok(node),
            Some(node) => Err(format!("{:?} {:?}", String::from_utf8_lossy(&node.data), node.stat)),
            None => Err("no node".to_owned()),
        })
        .await
    }

    /// Watches an existing node for its end.
    ///
    /// # Panics
    /// When there is no such node.
    pub async fn ending(&self, path: &str) -> Ending {
        let (zk, path) = (self.clone(), path.to_owned());
        let (stat, mut watcher) = bounded(&path, zk.client.check_and_watch_stat(&path)).await.unwrap();
        assert!(stat.is_some(), "{path} stands");
        let watched = path.clone();
        let seen = tokio::spawn(async move {
            loop {
                let event = watcher.changed().await;
                assert_ne!(event.event_type, EventType::Session, "the session of the watch stands");
                let now = Instant::now();
                if event.event_type == EventType::NodeDeleted {
                    return now;
                }
                let again = bounded(&watched, zk.client.check_and_watch_stat(&watched)).await.unwrap();
                if again.0.is_none() {
                    return Instant::now();
                }
                watcher = again.1;
            }
        });
        Ending { path, seen }
    }

    /// Waits until the node does not exist.
    pub async fn wait_gone(&self, path: &str) {
        eventually(&format!("{path} is gone"), SOON, async || match self.get(path).await {
            None => Ok(()),
            Some(node) => Err(format!("{:?} {:?}", String::from_utf8_lossy(&node.data), node.stat)),
        })
        .await;
    }
}

async fn bounded<T>(path: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match timeout(SOON, call).await {
        Ok(answer) => answer,
        Err(_) => panic!("ZooKeeper does not answer about {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arm::Arm;

    #[tokio::test]
    async fn ephemeral_nodes_go_with_their_session() {
        let sandbox = Arm::ZooKeeper.sandbox("witness").await;
        let (owner, observer) = (sandbox.zk().await, sandbox.zk().await);
        owner.create_ephemeral("/parents/are/made", b"{}").await;
        let node = observer.get("/parents/are/made").await.unwrap();
        assert_eq!((node.text(), node.stat.ephemeral_owner), ("{}", owner.session()));
        let ending = observer.ending("/parents/are/made").await;
        let closed = Instant::now();
        drop(owner);
        assert!(ending.at().await >= closed);
        observer.wait_gone("/parents/are/made").await;
        assert_eq!(observer.children("/parents/are").await, Some(vec![]));
    }

    #[tokio::test]
    async fn private_nodes_are_closed_to_others() {
        let sandbox = Arm::ZooKeeper.sandbox("witness").await;
        let owner = Witness::connect_as(&sandbox.hosts, "ann:secret").await;
        owner.create_private("/private", b"x").await;
        assert_eq!(owner.get("/private").await.unwrap().text(), "x");
        let refused = sandbox.zk().await.client().get_data("/private").await.unwrap_err();
        assert_eq!(refused, Error::NoAuth);
    }
}
