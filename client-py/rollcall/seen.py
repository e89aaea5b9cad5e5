"""The latest transaction that any answer has told of: what is read after that, on whichever replica, is not older."""

from rollcall import v1


class Seen:
    """Revisions, generations and fencing tokens are all ZooKeeper's transactions. Belongs to the loop."""

    def __init__(self) -> None:
        # What to ask for; 0: nothing.
        self.latest = 0

    def note(self, transaction: int) -> None:
        self.latest = max(self.latest, transaction)

    def note_stat(self, stat: v1.Stat) -> None:
        self.note(max(stat.czxid, stat.mzxid))

    def note_registration(self, message: v1.RegisterResponse) -> None:
        """What a Register stream said."""
        self.note(message.registered.generation)
        self.note_stat(message.registered.stat)
        self.note_stat(message.overwritten.stat)

    def note_answer(self, known: int, answer: v1.GetResponse) -> None:
        """An answer to a Get; `known` is what `latest` was when it was asked for."""
        if answer.reset and self.latest == known:
            # ZooKeeper has lost it. When it has changed meanwhile, there is something newer.
            self.latest = 0
        self.note(answer.revision)

    def note_watch(self, message: v1.WatchResponse) -> None:
        if message.snapshot.reset and message.revision > 0:
            # ZooKeeper went back in time: what was known before means nothing now.
            self.latest = message.revision
        else:
            self.note(message.revision)
