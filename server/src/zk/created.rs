//! The stats of the nodes that a multi creates.

use rollcall_wire::{CreateMode, ErrorCode, Request, Response};

use crate::types::{Stat, Zxid};

/// The nodes that a multi creates. ZooKeeper answers a create in a multi without the stat. All of it is known but the
/// time, which is the transaction's and the same for all nodes; so one of the nodes is read.
pub(super) struct Created {
    /// A node whose path is known before.
    path: String,
    /// For each operation that is a create: the length of the data, and whether it is an ephemeral.
    parts: Vec<Option<(i32, bool)>>,
}

impl Created {
    /// The creates among a multi's operations; `None` if there is nothing to read.
    pub(super) fn of(ops: &[Request]) -> Option<Self> {
        let path = ops.iter().rev().find_map(|op| match op {
            Request::Create { path, mode: CreateMode::Persistent | CreateMode::Ephemeral, .. } => Some(path.clone()),
            _ => None,
        })?;
        let parts = ops.iter().map(|op| match op {
            Request::Create { data, mode, .. } => {
                Some((i32::try_from(data.len()).unwrap_or(i32::MAX), *mode != CreateMode::Persistent))
            }
            _ => None,
        });
        Some(Self { path, parts: parts.collect() })
    }

    /// The read to send right behind the multi.
    pub(super) fn look(&self) -> Request {
        Request::Exists { path: self.path.clone(), watch: false }
    }

    /// Fills in the stats, unless the node that was read has been replaced meanwhile.
    pub(super) fn complete(&self, results: &mut [Result<Response, ErrorCode>], read: Stat, zxid: Zxid, owner: i64) {
        if read.czxid != zxid.0 {
            return;
        }
        for (result, part) in results.iter_mut().zip(&self.parts) {
            if let (Ok(Response::Created { stat, .. }), Some((data_length, is_ephemeral))) = (result, part) {
                *stat = Stat {
                    czxid: zxid.0,
                    mzxid: zxid.0,
                    pzxid: zxid.0,
                    ctime: read.ctime,
                    mtime: read.ctime,
                    ephemeral_owner: if *is_ephemeral { owner } else { 0 },
                    data_length: *data_length,
                    ..Stat::default()
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::zk::{create, delete, set_data};

    #[test]
    fn one_stat_tells_of_all_that_a_multi_creates() {
        let new = |path: &str| Ok(Response::Created { path: path.to_owned(), stat: Stat::default() });
        let ops = [
            create("/durable", Bytes::new(), CreateMode::Persistent),
            delete("/old", 3),
            create("/ours", Bytes::from_static(b"{}"), CreateMode::Ephemeral),
        ];
        let created = Created::of(&ops).unwrap();
        assert_eq!(created.look(), Request::Exists { path: "/ours".to_owned(), watch: false });
        let answers = || vec![new("/durable"), Ok(Response::Done), new("/ours")];

        let mut results = answers();
        created.complete(&mut results, Stat { czxid: 8, ctime: 99, ..Stat::default() }, Zxid(7), 5);
        assert_eq!(results, answers(), "another stands where the multi's node was");

        created.complete(&mut results, Stat { czxid: 7, ctime: 99, mtime: 100, ..Stat::default() }, Zxid(7), 5);
        let stat = Stat { czxid: 7, mzxid: 7, pzxid: 7, ctime: 99, mtime: 99, ..Stat::default() };
        let of = |result: &Result<Response, ErrorCode>| match result {
            Ok(Response::Created { stat, .. }) => Some(*stat),
            _ => None,
        };
        assert_eq!(of(&results[0]), Some(stat));
        assert_eq!(of(&results[2]), Some(Stat { ephemeral_owner: 5, data_length: 2, ..stat }));
    }

    #[test]
    fn what_creates_nothing_reads_nothing() {
        assert!(Created::of(&[delete("/old", 3), set_data("/node", Bytes::new(), 1)]).is_none());
    }
}
