//! Bytes that somebody has made of a state, for all others that want the same of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

/// What is made of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// An answer to Get.
    Page,
    /// A snapshot for a Watch.
    Snapshot,
    /// The same, for one who has to forget all revisions.
    Reset,
}

/// One part of it.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    /// Its bytes.
    pub(crate) bytes: Bytes,
    /// After which name the next part begins; `None` for the last.
    pub(crate) next: Option<Arc<str>>,
}

/// The parts that were made of one state, by form and by the name that they begin after. They are kept for as long as it
/// is the present state of its view, and after that for as long as a reader has them: those who are behind share what
/// they are told, too.
///
/// Only a part that another one leads to is kept. Clients name the place where a part begins, and could name any.
#[derive(Debug)]
pub(super) struct Ready(Mutex<Parts>);

#[derive(Debug)]
struct Parts {
    parts: HashMap<(Form, Option<Arc<str>>), Part>,
    is_present: bool,
}

/// A part that was made once.
#[derive(Debug)]
struct Part {
    /// While the state is the present one.
    kept: Option<Bytes>,
    /// While anybody has it.
    whole: Weak<Bytes>,
    next: Option<Arc<str>>,
}

/// Bytes that tell whether anybody still has them.
struct Whole(Arc<Bytes>);

impl Ready {
    /// The part, which is made by the first that wants it; others that want one wait meanwhile.
    pub(super) fn part(&self, form: Form, after: Option<&Arc<str>>, make: impl FnOnce() -> Made) -> Made {
        let mut parts = self.lock();
        if !parts.lead_to(form, after) {
            drop(parts);
            return make();
        }
        let key = (form, after.cloned());
        if let Some(bytes) = parts.parts.get(&key).and_then(Part::bytes) {
            return Made { bytes, next: parts.parts[&key].next.clone() };
        }
        let Made { bytes, next } = make();
        let whole = Arc::new(bytes);
        let bytes = Bytes::from_owner(Whole(whole.clone()));
        let kept = parts.is_present.then(|| bytes.clone());
        parts.parts.insert(key, Part { kept, whole: Arc::downgrade(&whole), next: next.clone() });
        Made { bytes, next }
    }

    /// The state is not the present one any more.
    pub(super) fn close(&self) {
        let mut parts = self.lock();
        parts.is_present = false;
        parts.parts.values_mut().for_each(|part| part.kept = None);
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parts {
    /// Whether a part begins where another ends, or is the first.
    fn lead_to(&self, form: Form, after: Option<&Arc<str>>) -> bool {
        after.is_none() || self.parts.iter().any(|((other, _), part)| *other == form && part.next.as_ref() == after)
    }
}

impl Part {
    fn bytes(&self) -> Option<Bytes> {
        self.kept.clone().or_else(|| Some(Bytes::from_owner(Whole(self.whole.upgrade()?))))
    }
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Default for Ready {
    fn default() -> Self {
        Self(Mutex::new(Parts { parts: HashMap::new(), is_present: true }))
    }
}

/// A copy of a state becomes another one.
impl Clone for Ready {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// It adds nothing to what a state is.
impl PartialEq for Ready {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Ready {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a part, which a part after «a» follows, unless it is there; gives how many were made when it was.
    fn part(ready: &Ready, count: &mut u32, form: Form, after: Option<&str>) -> Bytes {
        let make = || {
            *count += 1;
            Made { bytes: Bytes::from(format!("{count}")), next: after.is_none().then(|| "a".into()) }
        };
        ready.part(form, after.map(Arc::from).as_ref(), make).bytes
    }

    #[test]
    fn a_part_is_made_once_until_the_state_is_over() {
        let (ready, mut count) = (Ready::default(), 0);
        let mut part = |ready: &Ready, form, after| part(ready, &mut count, form, after);
        assert_eq!(part(&ready, Form::Page, None), part(&ready, Form::Page, None));
        assert_eq!(part(&ready, Form::Page, Some("a")), "2");
        assert_eq!(part(&ready, Form::Snapshot, None), "3");
        assert_eq!(part(&ready, Form::Page, Some("a")), "2");
        let copy = ready.clone();
        assert_eq!((part(&copy, Form::Page, None), part(&copy, Form::Page, None)), ("4".into(), "4".into()));
        ready.close();
        assert_eq!(part(&ready, Form::Page, None), "5");
        assert_eq!(part(&ready, Form::Page, None), "6");
    }

    #[test]
    fn what_was_made_of_a_past_state_is_shared_for_as_long_as_anybody_has_it() {
        let (ready, mut count) = (Ready::default(), 0);
        let mut part = |after| part(&ready, &mut count, Form::Snapshot, after);
        let slow = part(None);
        ready.close();
        assert_eq!((slow.as_ptr(), part(Some("a"))), (part(None).as_ptr(), "2".into()));
        let slice = part(Some("a")).slice(..1);
        assert_eq!((slice.clone(), part(Some("a"))), ("3".into(), "3".into()));
        drop(slice);
        assert_eq!(part(Some("a")), "4");
        drop(slow);
        assert_eq!(part(None), "5");
        assert!(ready.lock().parts.values().all(|part| part.bytes().is_none()));
    }

    #[test]
    fn parts_that_begin_where_none_ends_are_not_kept() {
        let (ready, mut count) = (Ready::default(), 0);
        part(&ready, &mut count, Form::Page, None);
        for name in 0..100 {
            part(&ready, &mut count, Form::Page, Some(&name.to_string()));
            // It is where a page begins, but no part of a snapshot.
            part(&ready, &mut count, Form::Snapshot, Some("a"));
        }
        assert_eq!((count, ready.lock().parts.len()), (201, 1));
    }
}
