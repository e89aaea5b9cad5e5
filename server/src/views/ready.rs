//! Bytes that somebody has made of a state, for all others that want the same of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
/// is the present state of its view: whoever is behind makes its own, so that no reader keeps them in memory.
///
/// Only a part that another one leads to is kept. Clients name the place where a part begins, and could name any.
#[derive(Debug)]
pub(super) struct Ready(Mutex<Option<Parts>>);

type Parts = HashMap<(Form, Option<Arc<str>>), Made>;

impl Ready {
    /// The part, which is made by the first that wants it; others that want one wait meanwhile.
    pub(super) fn part(&self, form: Form, after: Option<&Arc<str>>, make: impl FnOnce() -> Made) -> Made {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parts) = kept.as_mut().filter(|parts| leads_to(parts, form, after)) {
            return parts.entry((form, after.cloned())).or_insert_with(make).clone();
        }
        drop(kept);
        make()
    }

    /// The state is not the present one any more.
    pub(super) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whether a part begins where another ends, or is the first.
fn leads_to(parts: &Parts, form: Form, after: Option<&Arc<str>>) -> bool {
    after.is_none() || parts.iter().any(|((other, _), made)| *other == form && made.next.as_ref() == after)
}

impl Default for Ready {
    fn default() -> Self {
        Self(Mutex::new(Some(Parts::new())))
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
        assert_ne!(part(&ready, Form::Page, None), part(&ready, Form::Page, None));
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
        assert_eq!((count, ready.0.lock().unwrap().as_ref().unwrap().len()), (201, 1));
    }
}
