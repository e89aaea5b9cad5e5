//! The memory that a view holds, and the connection that pays for it: one of its users; while it has no user, the
//! replica alone. Pure.

use std::collections::BTreeMap;

use crate::budget::{Account, Resource, Share};
use crate::error::Error;

/// Number of bytes that a view may hold uncounted: small paths are read however large others are.
pub(super) const UNCOUNTED: usize = 16 * 1024;
/// Maximum number of users that are tried when the payer has no room.
const ASKED: usize = 16;

#[derive(Debug)]
pub(super) struct Purse {
    share: Share,
    /// The accounts of the users, by the number of the connection.
    users: BTreeMap<u64, Account>,
    /// The account that pays for an idle view: the replica's alone.
    common: Account,
    /// Maximum size of the view, in bytes.
    limit: usize,
}

impl Purse {
    /// The memory of a view that one connection uses.
    pub(super) fn new(user: &Account, common: Account, limit: usize) -> Self {
        let users = BTreeMap::from([(user.id(), user.clone())]);
        Self { share: user.share(Resource::ViewBytes), users, common, limit }
    }

    /// Number of bytes that are counted.
    pub(super) fn amount(&self) -> usize {
        self.share.amount()
    }

    /// The numbers of the connections that use the view.
    pub(super) fn users(&self) -> impl Iterator<Item = u64> {
        self.users.keys().copied()
    }

    /// The error for a view that is too large for every reader.
    pub(super) fn too_large(&self) -> Error {
        Error::path_too_large(self.limit)
    }

    /// A connection begins to use the view. It pays if no other connection uses it.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when it has no room; then it does not use the view.
    pub(super) fn join(&mut self, user: &Account) -> Result<(), Error> {
        if self.users.is_empty() {
            self.share.move_to(user)?;
        }
        self.users.insert(user.id(), user.clone());
        Ok(())
    }

    /// A connection stops using the view. Another user takes over what it pays; if none has room, it goes on paying.
    pub(super) fn leave(&mut self, user: &Account) {
        self.users.remove(&user.id());
        if self.users.is_empty() {
            // Only the replica's limit applies to this account, and that counts these bytes already.
            let _ = self.share.move_to(&self.common);
        } else if self.share.account_id() == user.id() {
            self.hand_over(self.amount());
        }
    }

    /// Holds this many bytes for a view that is loaded for the first time.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the view is too large, or when the replica, or every connection that uses it, has
    /// no room.
    pub(super) fn load(&mut self, bytes: usize) -> Result<(), Error> {
        self.resize(bytes, 0, Share::resize)
    }

    /// Holds this many bytes for a view that is loaded, and `beside` for what exists only for a while. The replica's
    /// limit does not apply: the memory of other connections never ends a view that is in use.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the view is too large, or no connection that uses it has room.
    pub(super) fn grow(&mut self, bytes: usize, beside: usize) -> Result<(), Error> {
        self.resize(bytes, beside, Share::resize_beyond_replica)
    }

    fn resize(
        &mut self,
        bytes: usize,
        beside: usize,
        resize: fn(&mut Share, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if bytes > self.limit {
            return Err(self.too_large());
        }
        let amount = bytes.saturating_add(beside).saturating_sub(UNCOUNTED);
        let Err(error) = resize(&mut self.share, amount) else { return Ok(()) };
        if self.hand_over(amount) && resize(&mut self.share, amount).is_ok() {
            return Ok(());
        }
        Err(error)
    }

    /// Finds another user that has room for this many bytes, and makes it pay for what is held; returns whether there
    /// is one.
    fn hand_over(&mut self, amount: usize) -> bool {
        let payer = self.share.account_id();
        let others = self.users.values().filter(|user| user.id() != payer).take(ASKED);
        for other in others {
            if other.has_room(Resource::ViewBytes, amount) && self.share.move_to(other).is_ok() {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Limits};

    /// One mebibyte for each connection, and four for all.
    fn budget() -> Budget {
        let of = |mebibytes: usize| Limits { view_bytes: mebibytes << 20, ..Limits::NONE };
        Budget::new(of(1), of(4))
    }

    fn used(account: &Account) -> usize {
        account.used(Resource::ViewBytes)
    }

    #[test]
    fn one_connection_pays_for_what_it_alone_uses_and_is_refused_at_its_share() {
        let budget = budget();
        let (one, other) = (budget.account(), budget.account());
        let purse = |account: &Account| Purse::new(account, budget.common_account(), 1 << 20);
        let (mut first, mut second, mut others) = (purse(&one), purse(&one), purse(&other));
        first.load(700 << 10).unwrap();
        assert_eq!(second.load(700 << 10).unwrap_err().reason(), "TOO_MANY_VIEW_BYTES");
        assert!(second.grow(700 << 10, 0).is_err());
        others.load(700 << 10).unwrap();
        assert_eq!(budget.used(Resource::ViewBytes), used(&one) + used(&other));
        drop(first);
        second.load(700 << 10).unwrap();
    }

    #[test]
    fn what_is_held_moves_to_who_has_room_and_to_nobody_in_particular_when_it_is_idle() {
        let budget = budget();
        let (one, other, third) = (budget.account(), budget.account(), budget.account());
        let mut purse = Purse::new(&one, budget.common_account(), 1 << 20);
        purse.load(700 << 10).unwrap();
        let amount = purse.amount();
        purse.join(&other).unwrap();
        assert_eq!((used(&one), used(&other)), (amount, 0));
        // The payer has no more room; another user has.
        let rest = one.take(Resource::ViewBytes, (1 << 20) - amount).unwrap();
        purse.grow(900 << 10, 0).unwrap();
        assert_eq!(used(&other), purse.amount());
        purse.leave(&other);
        assert_eq!(used(&other), purse.amount(), "nobody else has room: it goes on");
        purse.leave(&one);
        let held = purse.amount();
        drop(rest);
        assert_eq!((used(&one), used(&other), budget.used(Resource::ViewBytes)), (0, 0, held));
        // A connection that has no room for it can't use it.
        let full = third.take(Resource::ViewBytes, 1 << 20).unwrap();
        assert!(purse.join(&third).is_err());
        drop(full);
        purse.join(&third).unwrap();
        assert_eq!((used(&third), budget.used(Resource::ViewBytes)), (held, held));
    }

    #[test]
    fn a_replica_that_is_full_refuses_what_is_new_and_nothing_that_is_loaded() {
        let budget = budget();
        let account = budget.account();
        let mut loaded = Purse::new(&account, budget.common_account(), 1 << 20);
        loaded.load(100 << 10).unwrap();
        let room = (4 << 20) - budget.used(Resource::ViewBytes);
        let _others = budget.common_account().take(Resource::ViewBytes, room).unwrap();
        let mut new = Purse::new(&budget.account(), budget.common_account(), 1 << 20);
        assert!(new.load(100 << 10).is_err());
        loaded.grow(500 << 10, 0).unwrap();
        assert!(budget.used(Resource::ViewBytes) > 4 << 20);
        let error = loaded.grow((1 << 20) + 1, 0).unwrap_err();
        assert_eq!(error, loaded.too_large(), "its own bound holds all the same");
    }
}
