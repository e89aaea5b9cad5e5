"""For each path: the registration that is wanted, the request that was sent, and the answer. Pure."""

import collections
import enum
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Set, Union

from rollcall import v1
from rollcall.errors import ServiceRegistryException, lost_reason, refusal

# Maximum number of requests without an answer.
_WINDOW = 256
# Numbers of google.rpc.Code.
RESOURCE_EXHAUSTED = 8
_UNAVAILABLE = 14

# Called once, with None or the error.
Waiter = Callable[[Optional[ServiceRegistryException]], None]


#: Maximum number of its own late requests that a registration survives. It is larger than the usual number of
#: replicas.
MOST_LATE = 8


class Lost(NamedTuple):
    """A registration that is gone for good; the client does not bring it back."""

    path: str
    # TAKEN_OVER, SESSION_LOST, REMOVED or EVICTED; or the reason with which a replica refused to take it again.
    reason: str


class Wish(enum.Enum):
    HOLD = enum.auto()
    LEAVE = enum.auto()


class _Unset(enum.Enum):
    SAID = enum.auto()


class Entry:
    def __init__(self, path: str, data: Dict[str, Any], value: v1.Value) -> None:
        self.path = path
        # The data as the program gave them, and the value that is sent.
        self.data = data
        self.value = value
        self.wish = Wish.HOLD
        # Version of the wanted value. It rises with each change.
        self.version = 0
        # The value that was last accepted, while another one is wanted.
        self.accepted: Optional[v1.Value] = None
        # The request that is not answered yet, on the present stream: a version, or an unset.
        self.said: Union[int, _Unset, None] = None
        # The version that was answered, on the present stream.
        self.answered: Optional[int] = None
        # The generation that was last received.
        self.generation: Optional[int] = None
        # The transaction that created the node, or last wrote it.
        self.transaction = 0
        # The last generation that was lost while the program asked for the path anew. Further messages about it are no
        # news.
        self.past = 0
        # Number of sets that earlier streams have not answered. Each may still be carried out, once; another replica
        # then takes the path over, for us.
        self.late = 0
        self.is_queued = False
        # Whether it waits while another client has the path, instead of taking it over.
        self.is_exclusive = False
        # Whether a stream was refused while it had no answer. It is then sent alone, to find out whether it was the
        # cause.
        self.is_suspect = False
        self.waiters: List[Waiter] = []

    @property
    def is_registered(self) -> bool:
        return self.wish is Wish.HOLD and self.answered == self.version

    def answer(self, outcome: Optional[ServiceRegistryException]) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter(outcome)


class Registrations:
    """All registrations of a session. They are sent on one stream, and after its end on the next."""

    def __init__(self) -> None:
        self.entries: Dict[str, Entry] = {}
        # The paths for which a request may be due, each once.
        self._queue: Deque[str] = collections.deque()
        # The paths for which a replica had no room. They are sent again later.
        self._later: List[str] = []
        self._unanswered = 0
        # The paths with a request that waits for ZooKeeper, according to the present stream.
        self._without_zookeeper: Set[str] = set()
        # The suspect that was sent and has no answer.
        self._trial: Optional[Entry] = None

    def set(self, path: str, data: Dict[str, Any], value: v1.Value, waiter: Waiter, is_exclusive: bool = False) -> None:
        """Asks for a registration of the path with this data; with `is_exclusive`, only while no other client has
        it."""
        entry = self.entries.get(path)
        if entry is None:
            entry = self.entries[path] = Entry(path, data, value)
        else:
            if entry.wish is Wish.HOLD and entry.generation is not None and entry.accepted is None:
                entry.accepted = entry.value
            entry.data, entry.value, entry.wish = data, value, Wish.HOLD
            entry.version += 1
            entry.answered = None
        entry.is_exclusive = is_exclusive
        entry.waiters.append(waiter)
        self._enqueue(entry)

    def unset(self, path: str, waiter: Waiter) -> None:
        """Asks for the end of a registration."""
        entry = self.entries.get(path)
        if entry is None:
            return waiter(None)
        if entry.wish is Wish.HOLD:
            entry.answer(refusal(f"{path} was taken down meanwhile", "UNSET"))
        entry.wish = Wish.LEAVE
        entry.waiters.append(waiter)
        self._enqueue(entry)

    def is_empty(self) -> bool:
        return not self.entries

    def is_settled(self) -> bool:
        """Whether everything that is wanted has been answered on the present stream."""
        return not self._queue and self._unanswered == 0

    def lacks_room(self) -> bool:
        """Whether the replica of the present stream had no room for a registration, which another stream alone may hold
        then."""
        later = (self.entries.get(path) for path in self._later)
        return any(entry is not None and entry.generation is not None for entry in later)

    def is_without_zookeeper(self) -> bool:
        """Whether the replica of the present stream keeps a request waiting because it has no ZooKeeper."""
        return bool(self._without_zookeeper)

    def begin(self) -> None:
        """Begins a new stream: everything is sent again on it."""
        self._without_zookeeper.clear()
        self._later.clear()
        self._queue.clear()
        self._unanswered, self._trial = 0, None
        for entry in sorted(self.entries.values(), key=lambda entry: entry.is_suspect):
            entry.late = min(entry.late + isinstance(entry.said, int), MOST_LATE)
            entry.said, entry.answered, entry.is_queued = None, None, False
            self._enqueue(entry)

    def try_again(self) -> None:
        """Sends the requests again for which a replica had no room."""
        later, self._later = self._later, []
        for path in later:
            if path in self.entries:
                self._enqueue(self.entries[path])

    def next_request(self) -> Optional[v1.RegisterRequest]:
        """The next request to send on the present stream, if there is room."""
        while self._queue and self._unanswered < _WINDOW:
            entry = self.entries.get(self._queue[0])
            if entry is not None and (self._trial is not None or entry.is_suspect and self._unanswered):
                return None
            self._queue.popleft()
            if entry is None:
                continue
            entry.is_queued = False
            if entry.said is not None or entry.is_registered:
                continue
            # A registration that another replica may still hold is taken from it before it is taken down.
            is_held_elsewhere = entry.answered is None and entry.generation is not None
            self._unanswered += 1
            self._trial = entry if entry.is_suspect else None
            if entry.wish is Wish.LEAVE and not is_held_elsewhere:
                entry.said = _Unset.SAID
                return v1.RegisterRequest(unset=v1.UnsetRegistration(path=entry.path))
            entry.said = entry.version
            wanted = v1.SetRegistration(path=entry.path, value=entry.value)
            if entry.generation is not None:
                wanted.generation = entry.generation
            else:
                wanted.exclusive = entry.is_exclusive
            return v1.RegisterRequest(set=wanted)
        return None

    def take(self, response: v1.RegisterResponse) -> Optional[Lost]:
        """Takes in a response of the present stream."""
        kind = response.WhichOneof("response")
        if kind not in ("registered", "unregistered", "pending", "lost", "rejected"):
            return None
        entry = self.entries.get(getattr(response, kind).path)
        if entry is None:
            return None
        if kind == "pending":
            if response.pending.reason == "BACKEND_UNAVAILABLE" and entry.said is not None:
                self._without_zookeeper.add(entry.path)
        elif kind == "registered":
            self._registered(entry, response.registered)
        elif kind == "unregistered":
            self._unregistered(entry)
        elif kind == "lost":
            return self._lost(entry, response.lost)
        elif kind == "rejected":
            return self._rejected(entry, response.rejected)
        return None

    def refuse(self, error: ServiceRegistryException) -> None:
        """A replica refuses to open a stream. Registrations that were never made end with the refusal; the others are
        tried again."""
        for entry in [entry for entry in self.entries.values() if entry.generation is None]:
            self._end(entry, error)

    def suspect(self, error: ServiceRegistryException) -> None:
        """A replica has ended the stream because of a request on it. One registration that is not valid must not block
        the others."""
        said = [entry for entry in self.entries.values() if isinstance(entry.said, int)]
        if len(said) == 1:
            self._end(said[0], error)
            return
        for entry in said:
            entry.is_suspect = True

    def forget(self, path: str) -> None:
        """Gives a path up, and does not wait."""
        entry = self.entries.get(path)
        if entry is not None:
            entry.wish = Wish.LEAVE
            self._enqueue(entry)

    def _enqueue(self, entry: Entry) -> None:
        if not entry.is_queued:
            entry.is_queued = True
            self._queue.append(entry.path)

    def _answered(self, entry: Entry) -> Union[int, _Unset, None]:
        said, entry.said = entry.said, None
        self._unanswered -= said is not None
        if said is not None:
            self._without_zookeeper.discard(entry.path)
            entry.is_suspect = False
            self._trial = None if self._trial is entry else self._trial
        return said

    def _registered(self, entry: Entry, registered: v1.Registered) -> None:
        entry.generation = registered.generation
        entry.transaction = max(registered.generation, registered.stat.mzxid)
        if not registered.restored and isinstance(entry.said, int):
            entry.answered = entry.said
            self._answered(entry)
            if entry.answered == entry.version:
                entry.accepted = None
                if entry.wish is Wish.HOLD:
                    entry.answer(None)
        if not entry.is_registered:
            self._enqueue(entry)

    def _unregistered(self, entry: Entry) -> None:
        said = self._answered(entry)
        if said is _Unset.SAID and entry.wish is Wish.LEAVE:
            entry.answer(None)
            del self.entries[entry.path]
            return
        # The path was taken down before the program asked for it again.
        entry.answered, entry.generation = None, None
        self._enqueue(entry)

    def _lost(self, entry: Entry, lost: v1.Lost) -> Optional[Lost]:
        if lost.reason == v1.LOST_REASON_EXPIRED:
            # No other client has it, so it is registered again.
            self._say_again(entry)
            return None
        if lost.generation <= entry.past or (entry.generation is not None and lost.generation < entry.generation):
            return None  # It has been made again since.
        if entry.waiters and entry.wish is Wish.HOLD and lost.reason == v1.LOST_REASON_TAKEN_OVER:
            # The program has just asked for the path. It takes the path back, as it would have a moment later.
            self._answered(entry)
            entry.past, entry.generation, entry.answered, entry.accepted = lost.generation, None, None, None
            self._enqueue(entry)
            return None
        if entry.late > 0 and lost.reason == v1.LOST_REASON_TAKEN_OVER:
            # The path may have been taken over by ourselves. A replica that is asked once more answers by the node that
            # exists there.
            entry.late -= 1
            self._say_again(entry)
            return None
        reason = lost_reason(lost.reason)
        return self._end(entry, refusal(f"{entry.path} was lost: {reason}", reason))

    def _say_again(self, entry: Entry) -> None:
        """The answer of the present stream about a path no longer holds."""
        self._answered(entry)
        entry.answered = None
        self._enqueue(entry)

    def _rejected(self, entry: Entry, rejected: v1.Rejected) -> Optional[Lost]:
        version = self._answered(entry)
        if version != entry.version:
            self._enqueue(entry)
            return None
        if entry.wish is Wish.LEAVE:
            # There is no node of ours; the answer to the unset makes it certain.
            entry.generation, entry.answered = None, None
            self._enqueue(entry)
            return None
        if entry.is_exclusive and entry.generation is None and rejected.reason == "NAME_TAKEN":
            self._later.append(entry.path)
            return None
        error = refusal(rejected.message, rejected.reason, {"path": entry.path})
        if entry.generation is not None and entry.accepted is not None:
            # The node keeps the data that was accepted earlier.
            entry.value, entry.accepted, entry.answered = entry.accepted, None, None
            entry.answer(error)
            self._enqueue(entry)
            return None
        if entry.generation is not None and rejected.code in (RESOURCE_EXHAUSTED, _UNAVAILABLE):
            self._later.append(entry.path)
            return None
        return self._end(entry, error)

    def _end(self, entry: Entry, error: ServiceRegistryException) -> Optional[Lost]:
        """Ends a registration without a request of the program, unless the program has meanwhile asked for its end."""
        self._answered(entry)
        del self.entries[entry.path]
        entry.answer(None if entry.wish is Wish.LEAVE else error)
        if entry.wish is Wish.LEAVE or entry.generation is None:
            return None
        return Lost(entry.path, getattr(error, "reason", "READ_ONLY"))
