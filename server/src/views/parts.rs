//! Bytes that were made of a state or of a delta, shared by all that want the same.
//!
//! Their memory counts as that of [`SharedBytes`]: a client that asks for many different parts and reads none of them
//! is refused at the limit of its own account.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use crate::budget::{Account, Budget, Limits, Resource, Share};
use crate::error::Error;
use crate::shared_bytes::SharedBytes;

/// Maximum number of parts of a size chosen by a client that are kept of one state while nobody has them.
const MAX_CHOSEN: usize = 16;
/// Number of parts of one state up to which unused parts of a size chosen by a client are never swept out.
const UNSWEPT_PARTS: usize = 64;
/// Maximum number of parts of one state. Beyond it no part of a size chosen by a client is shared: each new part is
/// looked up among all of them.
const MAX_PARTS: usize = 1024;
/// Maximum number of parts that are kept, over all states.
const MAX_KEPT_PARTS: usize = 4096;

/// The kind of message that a part is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PartForm {
    /// An answer to Get.
    Page,
    /// A snapshot for a Watch.
    Snapshot,
    /// A snapshot for a client that has to forget all revisions.
    Reset,
    /// The changes of a delta.
    Changes,
}

/// Where a part begins.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Begin {
    /// With the path's own node, or the first change.
    First,
    /// With the child after this name.
    After(Arc<str>),
    /// With the change of this index.
    At(usize),
}

/// Identifies one part.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PartKey {
    pub(crate) form: PartForm,
    pub(crate) begin: Begin,
    /// Maximum number of children, if the client has chosen one; zero otherwise.
    pub(crate) size: usize,
}

/// One part.
#[derive(Debug, Clone)]
pub(crate) struct MadePart {
    pub(crate) bytes: Bytes,
    /// Where the next part begins; `None` for the last.
    pub(crate) next: Option<Begin>,
}

/// The accounts that pay for parts: all connections together, and the room for parts that are kept while nobody has
/// them.
#[derive(Debug)]
pub(super) struct Payers {
    pub(super) common: Account,
    pub(super) kept: KeptParts,
}

/// The room for parts that are kept while nobody has them. The oldest parts make room for new ones.
#[derive(Debug)]
pub(super) struct KeptParts {
    account: Account,
    bytes: usize,
    /// The kept parts, the oldest first. Some of them may be gone by now.
    order: Mutex<VecDeque<(Weak<Mutex<Inner>>, PartKey)>>,
}

impl KeptParts {
    /// Room for this number of bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let limits = Limits { bytes, ..Limits::NONE };
        Self { account: Budget::new(Limits::NONE, limits).account(), bytes, order: Mutex::default() }
    }

    /// Takes room for a part of a state; frees the oldest parts if there is none. No state may be locked.
    fn take(&self, parts: &Parts, key: &PartKey, bytes: usize) -> Option<Share> {
        if bytes > self.bytes {
            return None;
        }
        loop {
            let oldest = {
                let mut order = self.order.lock();
                if order.len() < MAX_KEPT_PARTS
                    && let Ok(share) = self.account.take(Resource::Bytes, bytes)
                {
                    order.push_back((Arc::downgrade(&parts.0), key.clone()));
                    return Some(share);
                }
                order.pop_front()?
            };
            let (state, key) = oldest;
            if let Some(state) = state.upgrade() {
                let mut state = state.lock();
                let kept = state.parts.get_mut(&key).and_then(|part| part.kept.take());
                drop(state);
                drop(kept);
            }
        }
    }
}

/// The parts of one state or delta. While it is the present one of its view they are kept, as far as there is room.
/// After that a part lives for as long as a reader has it, so that readers that are behind share their bytes, too.
///
/// A part is kept only if another part leads to it: a client names the place where a part begins, and could name any.
#[derive(Debug)]
pub(crate) struct Parts(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    parts: HashMap<PartKey, Part>,
    /// The kept parts of a size chosen by a client, the oldest first.
    chosen: VecDeque<PartKey>,
    is_present: bool,
    sweep_above: usize,
}

/// A part that was made once.
#[derive(Debug)]
struct Part {
    kept: Option<(Arc<SharedBytes>, Share)>,
    /// Alive while anybody has them.
    bytes: Weak<SharedBytes>,
    next: Option<Begin>,
}

impl Parts {
    /// A part, if it exists.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the connection has no room for it.
    pub(super) fn get(&self, key: &PartKey, account: &Account) -> Result<Option<MadePart>, Error> {
        self.lock().get(key, account)
    }

    /// Adds a part that was just made, unless another caller has added it meanwhile.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the connection, or the replica, has no room for it.
    pub(super) fn put(
        &self,
        key: PartKey,
        made: MadePart,
        account: &Account,
        payers: &Payers,
    ) -> Result<MadePart, Error> {
        // Two statements, since making room locks the parts of states, including these.
        let is_to_be_kept = self.lock().is_to_be_kept(&key);
        let room = if is_to_be_kept { payers.kept.take(self, &key, made.bytes.len()) } else { None };
        let mut inner = self.lock();
        if let Some(made) = inner.get(&key, account)? {
            return Ok(made);
        }
        let MadePart { bytes, next } = made;
        let shared = Arc::new(SharedBytes::new(bytes, &payers.common)?);
        let made = shared.held_by(account).map(|bytes| MadePart { bytes, next: next.clone() });
        if inner.lead_to(&key) {
            // The state may have ceased to be the present one meanwhile.
            let bytes = Arc::downgrade(&shared);
            let kept = if inner.is_present { room.map(|room| (shared, room)) } else { None };
            // Insert it even if this connection has no room for it: the connection asks again, and others may have
            // room.
            inner.insert(key, Part { kept, bytes, next });
        }
        made
    }

    /// The state or delta is not the present one any more: frees the kept parts.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.is_present = false;
        inner.parts.values_mut().for_each(|part| part.kept = None);
        inner.chosen.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

impl Inner {
    fn get(&self, key: &PartKey, account: &Account) -> Result<Option<MadePart>, Error> {
        let Some(part) = self.parts.get(key) else { return Ok(None) };
        let Some(bytes) = part.bytes.upgrade() else { return Ok(None) };
        Ok(Some(MadePart { bytes: bytes.held_by(account)?, next: part.next.clone() }))
    }

    /// Whether a part is the first or begins where another of the same size ends, and there is room for it.
    fn lead_to(&self, key: &PartKey) -> bool {
        if key.size > 0 && self.parts.len() >= MAX_PARTS {
            return false;
        }
        let leads = |(other, part): (&PartKey, &Part)| {
            (other.form, other.size) == (key.form, key.size) && part.next.as_ref() == Some(&key.begin)
        };
        key.begin == Begin::First || self.parts.iter().any(leads)
    }

    /// Whether a part is kept even while nobody has it.
    fn is_to_be_kept(&self, key: &PartKey) -> bool {
        self.is_present && self.lead_to(key)
    }

    fn insert(&mut self, key: PartKey, part: Part) {
        if key.size > 0 && part.kept.is_some() {
            self.chosen.push_back(key.clone());
            if self.chosen.len() > MAX_CHOSEN
                && let Some(oldest) = self.chosen.pop_front()
                && let Some(part) = self.parts.get_mut(&oldest)
            {
                part.kept = None;
            }
        }
        self.parts.insert(key, part);
        if self.parts.len() > self.sweep_above {
            self.parts.retain(|key, part| key.size == 0 || part.bytes.strong_count() > 0);
            self.sweep_above = 2 * self.parts.len() + UNSWEPT_PARTS;
        }
    }
}

impl Default for Parts {
    fn default() -> Self {
        let inner =
            Inner { parts: HashMap::new(), chosen: VecDeque::new(), is_present: true, sweep_above: UNSWEPT_PARTS };
        Self(Arc::new(Mutex::new(inner)))
    }
}

/// A copy of a state becomes another state, so it begins without parts.
impl Clone for Parts {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Parts are ignored when states are compared.
impl PartialEq for Parts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Parts {}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 10_000;

    struct Test {
        parts: Parts,
        account: Account,
        payers: Payers,
        made: u8,
    }

    impl Test {
        fn new() -> Self {
            let payers = Payers { common: Account::unlimited(), kept: KeptParts::new(usize::MAX) };
            Self { parts: Parts::default(), account: Account::unlimited(), payers, made: 0 }
        }

        /// A part that holds its number, counted from 1. If it is the first part of its size, a part after «a» follows
        /// it.
        fn part(&mut self, form: PartForm, after: Option<&str>, size: usize) -> Result<Bytes, Error> {
            let begin = after.map_or(Begin::First, |name| Begin::After(name.into()));
            let key = PartKey { form, begin, size };
            if let Some(made) = self.parts.get(&key, &self.account)? {
                return Ok(made.bytes);
            }
            self.made = self.made.wrapping_add(1);
            let next = after.is_none().then(|| Begin::After("a".into()));
            let made = MadePart { bytes: Bytes::from(vec![self.made; LARGE]), next };
            Ok(self.parts.put(key, made, &self.account, &self.payers)?.bytes)
        }

        fn number(&mut self, form: PartForm, after: Option<&str>, size: usize) -> u8 {
            self.part(form, after, size).unwrap()[0]
        }
    }

    #[test]
    fn a_part_is_made_once_until_the_state_is_over() {
        let mut test = Test::new();
        assert_eq!([test.number(PartForm::Page, None, 0), test.number(PartForm::Page, None, 0)], [1, 1]);
        assert_eq!(test.number(PartForm::Page, Some("a"), 0), 2);
        assert_eq!(test.number(PartForm::Snapshot, None, 0), 3);
        assert_eq!(test.number(PartForm::Page, Some("a"), 0), 2);
        test.parts.close();
        assert_eq!([test.number(PartForm::Page, None, 0), test.number(PartForm::Page, None, 0)], [4, 5]);
    }

    #[test]
    fn what_was_made_of_a_past_state_is_shared_for_as_long_as_anybody_has_it() {
        let mut test = Test::new();
        let slow = test.part(PartForm::Snapshot, None, 0).unwrap();
        test.parts.close();
        assert_eq!(slow.as_ptr(), test.part(PartForm::Snapshot, None, 0).unwrap().as_ptr());
        let slice = test.part(PartForm::Snapshot, Some("a"), 0).unwrap().slice(..1);
        assert_eq!((slice[0], test.number(PartForm::Snapshot, Some("a"), 0)), (2, 2));
        drop(slice);
        assert_eq!(test.number(PartForm::Snapshot, Some("a"), 0), 3);
        drop(slow);
        assert_eq!(test.number(PartForm::Snapshot, None, 0), 4);
    }

    #[test]
    fn parts_that_begin_where_none_ends_are_not_kept() {
        let mut test = Test::new();
        test.number(PartForm::Page, None, 0);
        for name in 0..100 {
            test.number(PartForm::Page, Some(&name.to_string()), 0);
            // A page begins here, but no part of a snapshot does.
            test.number(PartForm::Snapshot, Some("a"), 0);
        }
        assert_eq!((test.made, test.parts.lock().parts.len()), (201, 1));
    }

    #[test]
    fn a_page_of_another_size_leads_to_none_of_this_one() {
        let mut test = Test::new();
        // The first page of each size ends with «a».
        let first = test.part(PartForm::Page, None, 7).unwrap();
        for size in [0, 8] {
            test.number(PartForm::Page, Some("a"), size);
        }
        assert_eq!(test.parts.lock().parts.len(), 1);
        test.number(PartForm::Page, Some("a"), 7);
        assert_eq!(test.parts.lock().parts.len(), 2);
        drop(first);
    }

    #[test]
    fn what_is_kept_first_makes_room_for_what_comes_later_in_another_state_too() {
        let mut test = Test::new();
        test.payers.kept = KeptParts::new(3 * LARGE);
        let others = std::mem::take(&mut test.parts);
        for form in [PartForm::Page, PartForm::Snapshot, PartForm::Reset] {
            assert!(test.number(form, None, 0) > 0);
        }
        let first = std::mem::replace(&mut test.parts, others);
        let made = test.number(PartForm::Page, None, 0);
        assert_eq!(test.number(PartForm::Page, None, 0), made, "it is kept");
        assert_eq!(test.payers.kept.account.used(Resource::Bytes), 3 * LARGE);
        test.parts = first;
        assert_eq!(test.number(PartForm::Reset, None, 0), 3, "so is what was kept last");
        assert!(test.number(PartForm::Page, None, 0) > made, "the oldest is not");
    }

    #[test]
    fn what_is_kept_first_makes_room_for_what_comes_later_in_the_same_state() {
        let mut test = Test::new();
        test.payers.kept = KeptParts::new(2 * LARGE);
        for form in [PartForm::Page, PartForm::Snapshot, PartForm::Reset] {
            assert!(test.number(form, None, 0) > 0);
        }
        assert_eq!(test.payers.kept.account.used(Resource::Bytes), 2 * LARGE);
        assert_eq!(test.number(PartForm::Reset, None, 0), 3, "what was kept last is there");
        assert_eq!(test.number(PartForm::Page, None, 0), 4, "the oldest is not");
    }

    #[test]
    fn parts_of_a_clients_own_choice_are_bounded_in_number_though_they_are_in_use() {
        let mut test = Test::new();
        let pages: Vec<_> = (1..=2 * MAX_PARTS).map(|size| test.part(PartForm::Page, None, size).unwrap()).collect();
        assert_eq!((pages.len(), test.parts.lock().parts.len()), (2 * MAX_PARTS, MAX_PARTS));
        test.number(PartForm::Page, None, 0);
        assert_eq!(test.parts.lock().parts.len(), MAX_PARTS + 1, "what is the same for all is shared all the same");
    }

    #[test]
    fn pages_of_any_size_are_shared_and_few_are_kept() {
        let mut test = Test::new();
        for size in 1..=200 {
            let page = test.part(PartForm::Page, None, size).unwrap();
            assert_eq!(page.as_ptr(), test.part(PartForm::Page, None, size).unwrap().as_ptr());
        }
        assert_eq!(test.payers.kept.account.used(Resource::Bytes), MAX_CHOSEN * LARGE);
        assert_eq!(test.payers.common.used(Resource::Bytes), MAX_CHOSEN * LARGE);
        assert!(test.parts.lock().parts.len() <= 2 * MAX_CHOSEN + UNSWEPT_PARTS);
        test.parts.close();
        assert_eq!(test.payers.common.used(Resource::Bytes), 0);
    }

    #[test]
    fn a_connection_pays_once_for_what_it_has_and_is_refused_at_its_limit() {
        let mut test = Test::new();
        let budget = Budget::new(Limits { bytes: 2 * LARGE, ..Limits::NONE }, Limits::NONE);
        (test.account, test.payers.common) = (budget.account(), budget.common_account());
        let one: Vec<_> = (0..10).map(|_| test.part(PartForm::Page, None, 1).unwrap()).collect();
        let other = test.part(PartForm::Page, None, 2).unwrap();
        assert_eq!(test.account.used(Resource::Bytes), 2 * LARGE);
        for _ in 0..2 {
            assert_eq!(test.part(PartForm::Page, None, 3).unwrap_err().reason(), "TOO_MANY_BYTES");
        }
        assert_eq!(test.made, 3, "what it has no room for yet is made once");
        let first = std::mem::replace(&mut test.account, budget.account());
        let others = test.part(PartForm::Page, None, 1).unwrap();
        assert_eq!((others.as_ptr(), budget.used(Resource::Bytes)), (one[0].as_ptr(), 3 * LARGE));
        drop((one, other));
        assert_eq!((first.used(Resource::Bytes), test.account.used(Resource::Bytes)), (0, LARGE));
    }
}
