//! States that clients page through, kept for a while after the view has moved on. Pure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::scope::Scope;
use super::state::State;
use crate::types::Revision;

/// The pinned states. When full, the state that was used least recently is dropped, and its pages with it.
#[derive(Debug)]
pub(super) struct Pins {
    pins: Vec<Pin>,
    most: usize,
    most_bytes: usize,
    life: Duration,
}

#[derive(Debug)]
struct Pin {
    state: Arc<State>,
    used: Instant,
}

impl Pins {
    /// Room for this many states, and this many bytes.
    pub(super) fn new((most, most_bytes): (usize, usize), life: Duration) -> Self {
        Self { pins: Vec::new(), most, most_bytes, life }
    }

    /// Keeps a state.
    pub(super) fn put(&mut self, state: &Arc<State>, now: Instant) {
        self.forget(now);
        self.pins.retain(|pin| !is(&pin.state, &state.path, state.recursive, state.revision));
        let others = |pins: &[Pin]| pins.iter().map(|pin| pin.state.bytes()).sum::<usize>();
        while (self.pins.len() >= self.most || others(&self.pins) + state.bytes() > self.most_bytes)
            && let Some(oldest) = (0..self.pins.len()).min_by_key(|index| self.pins[*index].used)
        {
            self.pins.swap_remove(oldest);
        }
        self.pins.push(Pin { state: state.clone(), used: now });
    }

    /// The state of this revision, which now counts as just used.
    pub(super) fn get(&mut self, scope: &Scope, revision: Revision, now: Instant) -> Option<Arc<State>> {
        self.forget(now);
        let pin = self.pins.iter_mut().find(|pin| is(&pin.state, &scope.path, scope.recursive, revision))?;
        pin.used = now;
        Some(pin.state.clone())
    }

    fn forget(&mut self, now: Instant) {
        self.pins.retain(|pin| now.duration_since(pin.used) < self.life);
    }
}

fn is(state: &State, path: &crate::types::NodePath, recursive: bool, revision: Revision) -> bool {
    state.revision == revision && state.recursive == recursive && state.path == *path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodePath;

    #[test]
    fn pins_end_with_disuse_and_make_room_for_newer_ones() {
        let start = Instant::now();
        let second = |seconds| start + Duration::from_secs(seconds);
        let scope = Scope { path: NodePath::trusted("/a"), recursive: false };
        let state = |revision| {
            let mut state = State::empty(scope.path.clone(), scope.recursive);
            state.revision = Revision(revision);
            Arc::new(state)
        };
        let mut pins = Pins::new((2, 1000), Duration::from_secs(60));
        pins.put(&state(1), second(0));
        pins.put(&state(2), second(1));
        assert!(pins.get(&scope, Revision(1), second(2)).is_some());
        pins.put(&state(3), second(3));
        assert!(pins.get(&scope, Revision(2), second(4)).is_none());
        assert!(pins.get(&scope, Revision(1), second(50)).is_some());
        assert!(pins.get(&scope, Revision(3), second(63)).is_none());
        assert!(pins.get(&scope, Revision(1), second(64)).is_some());
        let tree = Scope { recursive: true, ..scope };
        assert!(pins.get(&tree, Revision(1), second(65)).is_none());
    }

    #[test]
    fn pins_are_bounded_by_what_they_occupy() {
        let now = Instant::now();
        let scope = Scope { path: NodePath::trusted("/a"), recursive: false };
        let state = |revision, bytes| {
            let node = Arc::new(super::super::node::ViewNode::new(&vec![0; bytes], crate::types::Stat::default()));
            Arc::new(State::restored(scope.clone(), Revision(revision), Some(node), Vec::new()))
        };
        let mut pins = Pins::new((10, 10_000), Duration::from_secs(60));
        for revision in 1..=3 {
            pins.put(&state(revision, 4000), now);
        }
        let mut is_there = |revision| pins.get(&scope, Revision(revision), now).is_some();
        assert_eq!([is_there(1), is_there(2), is_there(3)], [false, true, true]);
        // It is pinned though it is too large: its pages are read while it is the present state.
        pins.put(&state(4, 20_000), now);
        assert_eq!(pins.pins.len(), 1);
    }
}
