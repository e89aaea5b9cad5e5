//! The table of views: which connections use each view, which of them pays for it, and which views have been idle
//! longest. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use super::scope::Scope;
use super::view::View;
use crate::budget::{Account, Resource, Share};
use crate::error::Error;

/// The moment at which a view became idle; the number tells apart views with the same moment, and the later one's is
/// larger.
type IdleSince = (Instant, u64);

/// All views. No operation on one view takes time that grows with their number.
#[derive(Debug)]
pub(super) struct Slots {
    slots: HashMap<Scope, ViewSlot>,
    /// The views that nobody uses.
    idle: BTreeMap<IdleSince, Scope>,
    max_idle: usize,
    next: u64,
}

#[derive(Debug)]
struct ViewSlot {
    view: Arc<View>,
    /// By the number of the connection: its account, and how many uses it has.
    users: BTreeMap<u64, (Account, usize)>,
    /// The share that one of them pays, and its number.
    share: Option<(u64, Share)>,
    idle_since: Option<IdleSince>,
}

impl Slots {
    pub(super) fn new(max_idle: usize) -> Self {
        Self { slots: HashMap::new(), idle: BTreeMap::new(), max_idle, next: 0 }
    }

    /// Number of views.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn views(&self) -> Vec<Arc<View>> {
        self.slots.values().map(|slot| slot.view.clone()).collect()
    }

    /// Begins a use of a view by a connection, which pays for the view if it is its only user. `make` makes the view
    /// for this connection if it does not exist.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the connection, or the replica, has too many paths, or no room for the view.
    pub(super) fn open(
        &mut self,
        scope: &Scope,
        account: &Account,
        make: impl FnOnce() -> Arc<View>,
    ) -> Result<Arc<View>, Error> {
        let pay = || account.take(Resource::Paths, 1).map(|share| Some((account.id(), share)));
        let Some(slot) = self.slots.get_mut(scope) else {
            let share = pay()?;
            let view = make();
            let users = BTreeMap::from([(account.id(), (account.clone(), 1))]);
            let slot = ViewSlot { view: view.clone(), users, share, idle_since: None };
            self.slots.insert(scope.clone(), slot);
            return Ok(view);
        };
        let share = if slot.share.is_none() { pay()? } else { None };
        if !slot.users.contains_key(&account.id()) {
            slot.view.join(account)?;
        }
        if share.is_some() {
            slot.share = share;
        }
        if let Some(idle) = slot.idle_since.take() {
            self.idle.remove(&idle);
        }
        slot.users.entry(account.id()).or_insert_with(|| (account.clone(), 0)).1 += 1;
        Ok(slot.view.clone())
    }

    /// Ends a use. Returns the view that is dropped because of that, if any: this view, if it was not loaded when its
    /// last user left, or the one that has been idle longest, if there are now too many.
    pub(super) fn close(&mut self, scope: &Scope, account: &Account, now: Instant) -> Option<Arc<View>> {
        let slot = self.slots.get_mut(scope)?;
        let (_, uses) = slot.users.get_mut(&account.id())?;
        *uses -= 1;
        if *uses > 0 {
            return None;
        }
        slot.users.remove(&account.id());
        slot.view.leave(account);
        if slot.users.is_empty() {
            slot.share = None;
            if slot.view.is_unknown() {
                return self.remove(scope);
            }
            let idle_since = (now, self.next);
            self.next += 1;
            slot.idle_since = Some(idle_since);
            self.idle.insert(idle_since, scope.clone());
            return if self.idle.len() > self.max_idle { self.drop_idlest(None) } else { None };
        }
        if slot.share.as_ref().is_some_and(|(payer, _)| *payer == account.id()) {
            // Another user pays from now on. If all are at their limits, this one goes on paying.
            slot.share = None;
            let mut payers = slot.users.values().map(|(user, _)| user).chain([account]);
            slot.share = payers.find_map(|user| Some((user.id(), user.take(Resource::Paths, 1).ok()?)));
        }
        None
    }

    /// Drops the view that has been idle longest; with `before`, only if it became idle no later than that.
    pub(super) fn drop_idlest(&mut self, before: Option<Instant>) -> Option<Arc<View>> {
        let (since, scope) = self.idle.first_key_value()?;
        if before.is_some_and(|before| since.0 > before) {
            return None;
        }
        let scope = scope.clone();
        self.remove(&scope)
    }

    fn remove(&mut self, scope: &Scope) -> Option<Arc<View>> {
        let slot = self.slots.remove(scope)?;
        if let Some(idle) = slot.idle_since {
            self.idle.remove(&idle);
        }
        Some(slot.view)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::budget::{Budget, Limits};
    use crate::types::{NodePath, Zxid};
    use crate::views::ring;
    use crate::views::state::State;

    fn scope(name: &str) -> Scope {
        Scope { path: NodePath::trusted(format!("/{name}")), recursive: false }
    }

    fn budget(paths: usize, in_all: usize) -> Budget {
        Budget::new(Limits { paths, ..Limits::NONE }, Limits { paths: in_all, ..Limits::NONE })
    }

    struct Test {
        slots: Slots,
        now: Instant,
    }

    impl Test {
        fn new(max_idle: usize) -> Self {
            Self { slots: Slots::new(max_idle), now: Instant::now() }
        }

        /// Opens a view and loads it.
        fn open(&mut self, name: &str, account: &Account) -> Result<(), Error> {
            let view = self.open_only(name, account)?;
            view.show_whole_now(State::empty(view.scope.path.clone(), false), Zxid(1), 0);
            Ok(())
        }

        fn open_only(&mut self, name: &str, account: &Account) -> Result<Arc<View>, Error> {
            let limits = ring::Limits { moments: 1, bytes: 1 };
            self.slots.open(&scope(name), account, || Arc::new(View::unbounded(scope(name), limits)))
        }

        /// Returns the path of the view that is dropped.
        fn close(&mut self, name: &str, account: &Account) -> Option<String> {
            self.now += Duration::from_secs(1);
            let dropped = self.slots.close(&scope(name), account, self.now)?;
            Some(dropped.scope.path.as_str().to_owned())
        }
    }

    #[test]
    fn a_connection_pays_for_what_it_alone_reads_and_only_as_long_as_it_does() {
        let mut test = Test::new(10);
        let budget = budget(2, 3);
        let (one, other) = (budget.account(), budget.account());
        test.open("a", &one).unwrap();
        test.open("b", &one).unwrap();
        assert_eq!(test.open("c", &one).unwrap_err().reason(), "TOO_MANY_PATHS");
        assert_eq!(test.slots.len(), 2);
        test.open("c", &other).unwrap();
        // A connection does not pay for a view that another one reads.
        test.open("c", &one).unwrap();
        test.open("a", &other).unwrap();
        test.open("a", &one).unwrap();
        assert_eq!((one.used(Resource::Paths), other.used(Resource::Paths)), (2, 1));
        assert!(test.open("d", &other).is_err(), "the replica has no more");
        // The connection that goes on reading pays then.
        test.close("a", &one);
        assert_eq!(one.used(Resource::Paths), 2, "it reads it twice");
        test.close("a", &one);
        assert_eq!((one.used(Resource::Paths), other.used(Resource::Paths)), (1, 2));
        test.close("c", &other);
        assert_eq!((one.used(Resource::Paths), other.used(Resource::Paths)), (2, 1));
        for (name, account) in [("a", &other), ("b", &one), ("c", &one)] {
            test.close(name, account);
        }
        assert_eq!(budget.used(Resource::Paths), 0);
        assert_eq!(test.slots.len(), 3, "idle ones stay");
    }

    #[test]
    fn what_nobody_else_can_pay_for_stays_counted() {
        let mut test = Test::new(10);
        let budget = budget(1, 10);
        let (one, other) = (budget.account(), budget.account());
        test.open("a", &one).unwrap();
        test.open("b", &other).unwrap();
        test.open("a", &other).unwrap();
        test.close("a", &one);
        assert_eq!(budget.used(Resource::Paths), 2);
        test.close("a", &other);
        assert_eq!(budget.used(Resource::Paths), 1);
    }

    #[test]
    fn what_was_never_loaded_goes_with_its_last_user() {
        let mut test = Test::new(10);
        let account = Account::unlimited();
        test.open_only("a", &account).unwrap();
        test.open_only("a", &account).unwrap();
        assert_eq!(test.close("a", &account), None);
        assert_eq!(test.close("a", &account).unwrap(), "/a");
        assert_eq!(test.slots.len(), 0);
    }

    #[test]
    fn the_idlest_makes_room_and_what_is_used_again_is_not_idle() {
        let mut test = Test::new(2);
        let account = Account::unlimited();
        for name in ["a", "b", "c"] {
            test.open(name, &account).unwrap();
        }
        assert_eq!((test.close("a", &account), test.close("b", &account)), (None, None));
        test.open("a", &account).unwrap();
        assert_eq!(test.close("a", &account), None);
        assert_eq!(test.close("c", &account).unwrap(), "/b");
        let since = test.now - Duration::from_millis(1);
        assert_eq!(test.slots.drop_idlest(Some(since)).unwrap().scope, scope("a"));
        assert!(test.slots.drop_idlest(Some(since)).is_none());
        assert_eq!(test.slots.drop_idlest(None).unwrap().scope, scope("c"));
        assert_eq!((test.slots.len(), test.slots.idle.len()), (0, 0));
    }

    #[test]
    fn the_idlest_of_very_many_is_found_at_once() {
        const MANY: usize = 5_000;
        let mut test = Test::new(MANY);
        let account = Account::unlimited();
        for round in 0..3 {
            for number in 0..MANY {
                let name = format!("{round}/{number}");
                test.open(&name, &account).unwrap();
                test.close(&name, &account);
            }
        }
        assert_eq!(test.slots.len(), MANY);
    }
}
