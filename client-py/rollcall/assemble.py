"""Turns the messages of a Watch into states. It joins parts, and the state never goes back. Pure."""

import bisect
from typing import Any, Dict, List, Optional

from rollcall import v1
from rollcall.values import ABSENT, State, from_stat, from_value


class Assembler:
    """The state of one watch, over any number of streams."""

    def __init__(self) -> None:
        # The revision of the last whole state.
        self.revision = 0
        # The last whole state; None before the first.
        self.state: Optional[State] = None
        self._snapshot: Optional[State] = None
        self._reset = False
        self._changes: Optional[List[v1.Change]] = None

    def take(self, message: v1.WatchResponse) -> Optional[State]:
        """A new whole state, if the message completes one."""
        event = message.WhichOneof("event")
        if event == "snapshot":
            return self._take_snapshot(message.snapshot, message.revision)
        if event == "delta":
            return self._take_delta(message.delta, message.revision)
        if event == "current":
            self.revision = max(self.revision, message.revision)
        return None

    def broken(self) -> None:
        """The stream broke. An update that was begun is sent again as a whole."""
        self._snapshot, self._reset, self._changes = None, False, None

    def _take_snapshot(self, snapshot: v1.Snapshot, revision: int) -> Optional[State]:
        node = snapshot.node
        children = {name: from_value(child.value) for name, child in node.children.items()}
        if self._snapshot is None:
            stat = from_stat(node.stat) if node.exists else None
            self._snapshot = State(from_value(node.value), stat, children)
        else:
            self._snapshot.children.update(children)
        self._reset = self._reset or snapshot.reset
        if snapshot.more:
            return None
        state, reset = self._snapshot, self._reset
        state = state._replace(children=dict(sorted(state.children.items())))
        self.broken()
        if revision < self.revision and not reset:
            return None
        return self._show(state, revision)

    def _take_delta(self, delta: v1.Delta, revision: int) -> Optional[State]:
        self._changes = (self._changes or []) + list(delta.changes)
        if delta.more:
            return None
        changes = self._changes
        self.broken()
        if revision <= self.revision or self.state is None:
            return None
        return self._show(apply(self.state, changes), revision)

    def _show(self, state: State, revision: int) -> State:
        self.revision = revision
        self.state = state
        return state


def apply(state: State, changes: List[v1.Change]) -> State:
    """The state after the changes; between them there is none. The children of `state` are in order, and stay so."""
    data, stat, children = state.data, state.stat, dict(state.children)
    # New names. They are behind all others.
    added = set()
    for change in changes:
        if change.kind in (v1.CHANGE_KIND_ADDED, v1.CHANGE_KIND_UPDATED):
            if change.name not in children:
                added.add(change.name)
            children[change.name] = from_value(change.child.value)
        elif change.kind == v1.CHANGE_KIND_REMOVED:
            children.pop(change.name, None)
        elif change.kind in (v1.CHANGE_KIND_CREATED, v1.CHANGE_KIND_DATA_CHANGED):
            data, stat = from_value(change.child.value), from_stat(change.child.stat)
        elif change.kind == v1.CHANGE_KIND_DELETED:
            data, stat, children = ABSENT.data, ABSENT.stat, {}
    return State(data, stat, _in_order(children, sorted(name for name in added if name in children)))


def _in_order(children: Dict[str, Any], added: List[str]) -> Dict[str, Any]:
    """Puts the names at the end where they belong. A long list is not sorted for a single new name."""
    if not added:
        return children
    names = list(children)[: -len(added)]
    first = bisect.bisect(names, added[0])
    # The names before the first of them stay where they are.
    moved = sorted(names[first:] + added)
    children.update(zip(moved, list(map(children.pop, moved))))
    return children
