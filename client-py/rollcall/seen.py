"""The latest transaction that any answer has shown. Later reads, on any replica, are not older."""

from rollcall import v1


class Seen:
    """The latest transaction. Revisions, generations and fencing tokens are all ZooKeeper transactions. Belongs to the
    loop."""

    def __init__(self) -> None:
        # The transaction to ask for; 0: none.
        self.latest = 0

    def note(self, transaction: int) -> None:
        self.latest = max(self.latest, transaction)

    def note_stat(self, stat: v1.Stat) -> None:
        self.note(max(stat.czxid, stat.mzxid))

    def note_registration(self, message: v1.RegisterResponse) -> None:
        """Takes in a message of a Register stream."""
        self.note(message.registered.generation)
        self.note_stat(message.registered.stat)
        self.note_stat(message.overwritten.stat)

    def note_answer(self, known: int, answer: v1.GetResponse) -> None:
        """Takes in an answer to a Get; `known` is the value of `latest` at the time of the request."""
        if answer.reset and self.latest == known:
            # ZooKeeper has lost that transaction. If the value has changed meanwhile, there is a newer one.
            self.latest = 0
        self.note(answer.revision)

    def note_watch(self, message: v1.WatchResponse) -> None:
        if message.snapshot.reset and message.revision > 0:
            # ZooKeeper went back in time: the transactions known before mean nothing now.
            self.latest = message.revision
        else:
            self.note(message.revision)
