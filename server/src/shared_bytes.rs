//! Bytes that many calls send. Their memory counts once for the replica, and once for each connection that has them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::budget::{Account, Resource, Share};
use crate::error::Error;

/// Size up to which bytes count for no connection: the call that sends them costs more.
const UNCOUNTED_BYTES: usize = 4 * 1024;

/// Bytes that many calls send, and the share that all connections together pay for them.
#[derive(Debug)]
pub(crate) struct SharedBytes {
    bytes: Bytes,
    _share: Share,
    /// The shares of the connections, by number.
    holders: Mutex<HashMap<u64, Weak<Share>>>,
}

/// The bytes as one connection has them, and the share that it pays for them.
struct PaidBytes {
    shared: Arc<SharedBytes>,
    _share: Option<Arc<Share>>,
}

impl SharedBytes {
    /// `common` is the account of all connections together.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the replica has no room for them.
    pub(crate) fn new(bytes: Bytes, common: &Account) -> Result<Self, Error> {
        let share = common.take(Resource::Bytes, bytes.len())?;
        Ok(Self { bytes, _share: share, holders: Mutex::default() })
    }

    /// The bytes for one connection, which pays for them until it has sent them all.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the connection has no room for them.
    pub(crate) fn held_by(self: &Arc<Self>, account: &Account) -> Result<Bytes, Error> {
        let share = if self.bytes.len() > UNCOUNTED_BYTES { Some(self.share(account)?) } else { None };
        Ok(Bytes::from_owner(PaidBytes { shared: self.clone(), _share: share }))
    }

    fn share(&self, account: &Account) -> Result<Arc<Share>, Error> {
        let mut holders = self.holders.lock();
        if let Some(share) = holders.get(&account.id()).and_then(Weak::upgrade) {
            return Ok(share);
        }
        let share = Arc::new(account.of_connection().take(Resource::Bytes, self.bytes.len())?);
        if holders.len() == holders.capacity() {
            holders.retain(|_, share| share.strong_count() > 0);
        }
        holders.insert(account.id(), Arc::downgrade(&share));
        Ok(share)
    }
}

impl AsRef<[u8]> for PaidBytes {
    fn as_ref(&self) -> &[u8] {
        &self.shared.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Limits};

    #[test]
    fn a_connection_pays_once_for_the_same_bytes_and_is_refused_at_its_limit() {
        const LARGE: usize = 10_000;
        let budget = Budget::new(Limits { bytes: LARGE, ..Limits::NONE }, Limits::NONE);
        let (account, other, common) = (budget.account(), budget.account(), budget.common_account());
        let first = Arc::new(SharedBytes::new(vec![1; LARGE].into(), &common).unwrap());
        let second = Arc::new(SharedBytes::new(vec![2; LARGE].into(), &common).unwrap());
        let held: Vec<_> = (0..100).map(|_| first.held_by(&account).unwrap()).collect();
        assert_eq!((held[0].as_ptr(), held[99][0]), (held[99].as_ptr(), 1));
        assert_eq!(second.held_by(&account).unwrap_err().reason(), "TOO_MANY_BYTES");
        let _others = first.held_by(&other).unwrap();
        assert_eq!((account.used(Resource::Bytes), other.used(Resource::Bytes)), (LARGE, LARGE));
        assert_eq!(budget.used(Resource::Bytes), 2 * LARGE);
        drop(held);
        assert_eq!(account.used(Resource::Bytes), 0);
        assert_eq!(second.held_by(&account).unwrap()[0], 2);
        let small = Arc::new(SharedBytes::new(vec![0; UNCOUNTED_BYTES].into(), &common).unwrap());
        let _held = small.held_by(&account).unwrap();
        assert_eq!(account.used(Resource::Bytes), 0);
    }
}
