//! ZooKeeper's own record: its transaction logs, read back.
//!
//! A watch sees nothing while its connection is away, which is just the time that these tests are about. The logs have
//! every transaction of the ensemble, with its time by the leader's clock. So they show whether a name was absent
//! between two transactions. A takeover, which deletes and creates in one transaction, is no absence.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rollcall_wire::{Decoder, Malformed};

/// The history of an ensemble's tree.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    transactions: BTreeMap<i64, Transaction>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Transaction {
    at: SystemTime,
    /// The ZooKeeper session that sent it.
    session: i64,
    changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Created { path: String, owner: i64, data: Bytes },
    Deleted { path: String },
    SessionClosed { session: i64 },
}

/// An ephemeral removed by a transaction.
struct Removed {
    path: String,
    session: i64,
    with_session: bool,
}

/// One incarnation of a node, ephemeral or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The path.
    pub path: String,
    /// The data that it was created with.
    pub data: Bytes,
    /// The session that created it.
    pub session: i64,
    /// The transaction that created it.
    pub created: i64,
    /// The time of its creation.
    pub from: SystemTime,
    /// The transaction that ended it, and its time.
    pub ended: Option<(i64, SystemTime)>,
}

/// An interval in which a name was absent after it had existed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absence {
    /// The path.
    pub path: String,
    /// The time of its deletion.
    pub from: SystemTime,
    /// The time of its next creation, if any.
    pub until: Option<SystemTime>,
    /// The ZooKeeper session that owned it.
    pub session: i64,
    /// Whether it was removed by the end of that session.
    pub with_session: bool,
}

impl Absence {
    /// The duration, if the absence is over.
    pub fn length(&self) -> Option<Duration> {
        Some(self.until?.duration_since(self.from).unwrap_or_default())
    }
}

impl Journal {
    /// Reads the logs of an ensemble's servers, each from its data directory. Transactions that only a minority has
    /// logged were never agreed on, and are left out. So are paths outside of `chroot`; paths inside begin below it.
    ///
    /// # Panics
    /// When a log has an unknown format.
    pub fn read(directories: &[PathBuf], chroot: &str) -> Journal {
        let mut seen: BTreeMap<i64, (usize, Transaction)> = BTreeMap::new();
        for directory in directories {
            for (zxid, transaction) in read_server(directory, chroot) {
                seen.entry(zxid).or_insert_with(|| (0, transaction)).0 += 1;
            }
        }
        let agreed = seen.into_iter().filter(|(_, (count, _))| 2 * count > directories.len());
        Journal { transactions: agreed.map(|(zxid, (_, transaction))| (zxid, transaction)).collect() }
    }

    /// The absences of paths for which `concerns` returns true, in the order of their beginning.
    pub fn absences(&self, concerns: impl Fn(&str) -> bool) -> Vec<Absence> {
        let mut found: Vec<Absence> = Vec::new();
        // The index in `found` of the current absence of each path.
        let mut absent: HashMap<String, usize> = HashMap::new();
        self.replay(|at, before, after| {
            for Removed { path, session, with_session } in before {
                if !after.contains_key(path.as_str()) && concerns(path) {
                    absent.insert(path.clone(), found.len());
                    let (path, session, with_session) = (path.clone(), *session, *with_session);
                    found.push(Absence { path, from: at, until: None, session, with_session });
                }
            }
            for path in after.keys() {
                if let Some(index) = absent.remove(path) {
                    found[index].until = Some(at);
                }
            }
        });
        found
    }

    /// The lives of the nodes for which `concerns` returns true, in the order of their creation.
    pub fn lives(&self, concerns: impl Fn(&str) -> bool) -> Vec<Life> {
        let mut lives: Vec<Life> = Vec::new();
        // The existing nodes by path: the index in `lives`, and the owner.
        let mut standing: HashMap<String, (usize, i64)> = HashMap::new();
        for (zxid, transaction) in &self.transactions {
            let end = Some((*zxid, transaction.at));
            for change in &transaction.changes {
                match change {
                    Change::Created { path, owner, data } if concerns(path) => {
                        standing.insert(path.clone(), (lives.len(), *owner));
                        lives.push(Life {
                            path: path.clone(),
                            data: data.clone(),
                            session: transaction.session,
                            created: *zxid,
                            from: transaction.at,
                            ended: None,
                        });
                    }
                    Change::Created { .. } => {}
                    Change::Deleted { path } => {
                        if let Some((index, _)) = standing.remove(path) {
                            lives[index].ended = end;
                        }
                    }
                    Change::SessionClosed { session } => {
                        for (_, (index, _)) in standing.extract_if(|_, (_, owner)| owner == session) {
                            lives[index].ended = end;
                        }
                    }
                }
            }
        }
        lives
    }

    /// The time of the first creation of each path for which `concerns` returns true.
    pub fn first_created(&self, concerns: impl Fn(&str) -> bool) -> BTreeMap<String, SystemTime> {
        let mut first = BTreeMap::new();
        for transaction in self.transactions.values() {
            for change in &transaction.changes {
                if let Change::Created { path, .. } = change
                    && concerns(path)
                {
                    first.entry(path.clone()).or_insert(transaction.at);
                }
            }
        }
        first
    }

    /// All events of a path, for a human reader: time, transaction, event.
    pub fn story(&self, wanted: &str) -> Vec<String> {
        let mut story = Vec::new();
        let mut owner = 0;
        for (zxid, Transaction { at, changes, .. }) in &self.transactions {
            let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let mut tell = |what: String| story.push(format!("{seconds:.3} {zxid} {what}"));
            for change in changes {
                match change {
                    Change::Created { path, owner: by, .. } if path == wanted => {
                        owner = *by;
                        tell(format!("created by {by:#x}"));
                    }
                    Change::Deleted { path } if path == wanted => tell("deleted".to_owned()),
                    Change::SessionClosed { session } if *session == owner && owner != 0 => {
                        tell(format!("the session {session:#x} is over"));
                    }
                    _ => {}
                }
            }
        }
        story
    }

    /// The transactions that created a path.
    pub fn incarnations(&self, wanted: &str) -> Vec<i64> {
        let is_created = |change: &Change| matches!(change, Change::Created { path, .. } if path == wanted);
        let created = self.transactions.iter().filter(|(_, transaction)| transaction.changes.iter().any(is_created));
        created.map(|(zxid, _)| *zxid).collect()
    }

    /// The ephemerals that exist after the last transaction.
    pub fn standing(&self) -> BTreeSet<String> {
        let mut standing = BTreeSet::new();
        self.replay(|_, before, after| {
            for removed in before {
                standing.remove(&removed.path);
            }
            standing.extend(after.keys().cloned());
        });
        standing
    }

    /// Replays the transactions. `step` gets the time, the ephemerals that a transaction has removed, and those of its
    /// ephemerals that exist afterwards, with their owners.
    fn replay(&self, mut step: impl FnMut(SystemTime, &[Removed], &HashMap<String, i64>)) {
        let mut owners: HashMap<String, i64> = HashMap::new();
        for transaction in self.transactions.values() {
            let mut removed = Vec::new();
            let mut created = HashMap::new();
            for change in &transaction.changes {
                match change {
                    Change::Created { path, owner: 0, .. } => drop(owners.remove(path)),
                    Change::Created { path, owner, .. } => {
                        owners.insert(path.clone(), *owner);
                        created.insert(path.clone(), *owner);
                    }
                    Change::Deleted { path } => {
                        created.remove(path);
                        if let Some(session) = owners.remove(path) {
                            removed.push(Removed { path: path.clone(), session, with_session: false });
                        }
                    }
                    Change::SessionClosed { session } => {
                        let ended: Vec<_> = owners.extract_if(|_, owner| owner == session).collect();
                        let with = |(path, session)| Removed { path, session, with_session: true };
                        removed.extend(ended.into_iter().map(with));
                    }
                }
            }
            if !removed.is_empty() || !created.is_empty() {
                step(transaction.at, &removed, &created);
            }
        }
    }
}

fn read_server(directory: &Path, chroot: &str) -> BTreeMap<i64, Transaction> {
    let mut transactions = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(directory.join("version-2")) else { return transactions };
    for entry in entries {
        let path = entry.expect("a directory can be read").path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.")) {
            read_log(&path, chroot, &mut transactions);
        }
    }
    transactions
}

/// A log is a header of 16 bytes, and then for each entry a checksum, a length, a transaction and a `B`. Zeros follow.
fn read_log(path: &Path, chroot: &str, transactions: &mut BTreeMap<i64, Transaction>) {
    let mut file = BufReader::new(File::open(path).expect("a log can be read"));
    let mut header = [0; 16];
    // A log that has just been created is empty.
    if file.read_exact(&mut header).is_err() {
        return;
    }
    assert_eq!(&header[..8], b"ZKLG\0\0\0\x02", "{} is a transaction log", path.display());
    let mut head = [0; 12];
    while file.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        let mut entry = vec![0; length as usize + 1];
        if length == 0 || file.read_exact(&mut entry).is_err() || entry.pop() != Some(b'B') {
            return;
        }
        let (zxid, transaction) = read_transaction(entry.into(), chroot)
            .unwrap_or_else(|error| panic!("{}: a transaction that can't be read: {error:?}", path.display()));
        transactions.insert(zxid, transaction);
    }
}

fn read_transaction(entry: Bytes, chroot: &str) -> Result<(i64, Transaction), Malformed> {
    let mut decoder = Decoder::new(entry);
    let session = decoder.long()?;
    let _xid = decoder.int()?;
    let zxid = decoder.long()?;
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(decoder.long()?).unwrap_or_default());
    let kind = decoder.int()?;
    let mut changes = Vec::new();
    read_change(kind, session, &mut decoder, chroot, &mut changes)?;
    Ok((zxid, Transaction { at, session, changes }))
}

fn read_change(
    kind: i32,
    session: i64,
    decoder: &mut Decoder,
    chroot: &str,
    changes: &mut Vec<Change>,
) -> Result<(), Malformed> {
    const CREATE: i32 = 1;
    const DELETE: i32 = 2;
    const MULTI: i32 = 14;
    const CREATE_2: i32 = 15;
    const CREATE_CONTAINER: i32 = 19;
    const DELETE_CONTAINER: i32 = 20;
    const CREATE_TTL: i32 = 21;
    const CLOSE_SESSION: i32 = -11;
    const ERROR: i32 = -1;
    let inner = |path: String| path.strip_prefix(chroot).filter(|path| path.starts_with('/')).map(str::to_owned);
    match kind {
        CREATE | CREATE_2 => {
            let path = decoder.string()?;
            let data = decoder.bytes()?;
            decoder.vector(|acl| Ok((acl.int()?, acl.string()?, acl.string()?)))?;
            let owner = if decoder.boolean()? { session } else { 0 };
            changes.extend(inner(path).map(|path| Change::Created { path, owner, data }));
        }
        CREATE_CONTAINER | CREATE_TTL => {
            let (path, data) = (decoder.string()?, decoder.bytes()?);
            changes.extend(inner(path).map(|path| Change::Created { path, owner: 0, data }));
        }
        DELETE | DELETE_CONTAINER => changes.extend(inner(decoder.string()?).map(|path| Change::Deleted { path })),
        CLOSE_SESSION => changes.push(Change::SessionClosed { session }),
        MULTI => {
            let parts = decoder.vector(|part| Ok((part.int()?, part.bytes()?)))?;
            // A failed transaction is logged too, and lists the parts before the failed one as if they had succeeded.
            let has_failed = parts.iter().any(|(kind, _)| *kind == ERROR);
            for (kind, part) in parts.into_iter().filter(|_| !has_failed) {
                read_change(kind, session, &mut Decoder::new(part), chroot, changes)?;
            }
        }
        // All other transactions leave the names unchanged.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use zookeeper_client::{Acls, CreateMode};

    use super::*;
    use crate::zookeeper::{Options, ZooKeeper};

    #[tokio::test]
    async fn what_zookeeper_did_is_read_back() {
        let mut zookeeper = ZooKeeper::standalone(Options::default()).await;
        let sandbox = zookeeper.sandbox("journal").await;
        let (zk, other) = (sandbox.zk().await, sandbox.zk().await);
        let first = zk.session();
        for name in ["deleted", "replaced", "expired", "kept"] {
            zk.create_ephemeral(&format!("/parent/{name}"), b"x").await;
        }
        other.delete("/parent/deleted").await;
        let open = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        let mut multi = other.client().new_multi_writer();
        for name in ["replaced", "kept"] {
            let path = format!("/parent/{name}");
            multi.add_delete(&path, None).unwrap();
            multi.add_create(&path, b"y", &open).unwrap();
        }
        multi.commit().await.unwrap();
        let mut failing = other.client().new_multi_writer();
        failing.add_delete("/parent/kept", None).unwrap();
        failing.add_delete("/parent/never", None).unwrap();
        failing.commit().await.unwrap_err();
        drop(zk);
        other.wait_gone("/parent/expired").await;
        other.create_ephemeral("/parent/expired", b"z").await;

        let journal = zookeeper.journal(&sandbox.chroot);
        let absences = journal.absences(|path| path.starts_with("/parent/"));
        let shown: Vec<_> = absences
            .iter()
            .map(|absence| (absence.path.as_str(), absence.with_session, absence.until.is_some()))
            .collect();
        assert_eq!(shown, [("/parent/deleted", false, false), ("/parent/expired", true, true)]);
        assert_eq!(absences.iter().map(|absence| absence.session).collect::<Vec<_>>(), [first, first]);
        assert!(absences[1].length().unwrap() < Duration::from_secs(20));
        assert_eq!(journal.incarnations("/parent/kept").len(), 2);
        let lives = journal.lives(|path| path == "/parent/kept" || path == "/parent/deleted");
        let shown: Vec<_> = lives.iter().map(|life| (&life.data[..], life.session, life.ended.is_some())).collect();
        assert_eq!(shown, [(&b"x"[..], first, true), (b"x", first, true), (b"y", other.session(), false)]);
        assert_eq!(lives[1].ended.unwrap().0, lives[2].created, "replaced in one transaction");
        let standing: Vec<_> = journal.standing().into_iter().collect();
        assert_eq!(standing, ["/parent/expired", "/parent/kept", "/parent/replaced"]);
        // The log outlives the server.
        zookeeper.kill(0);
        assert_eq!(zookeeper.journal(&sandbox.chroot).absences(|_| true).len(), absences.len());
    }
}
