"""kazoo connects, creates, watches and lists. It prints what it sees to standard output, a line each. Any kazoo since 2.6.

session.py HOSTS
"""

import queue
import sys

from kazoo.client import KazooClient
from kazoo.exceptions import BadVersionError

SOON = 20
EVENTS = {"CREATED": "created", "DELETED": "deleted", "CHANGED": "changed", "CHILD": "children of"}


def main(hosts):
    client, other = KazooClient(hosts), KazooClient(hosts)
    client.start(SOON)
    other.start(SOON)
    events = queue.Queue()

    def say_event():
        event = events.get(timeout=SOON)
        print("event:", EVENTS[event.type], event.path)

    print("created", client.create("/judged", b"first"))
    print("children", *client.get_children("/judged", watch=events.put))
    print("created", other.create("/judged/a", b"", ephemeral=True))
    say_event()
    print("data", client.get("/judged", watch=events.put)[0].decode())
    print("version", other.set("/judged", b"second").version)
    say_event()
    try:
        client.set("/judged", b"third", version=7)
    except BadVersionError:
        print("refused: version")
    print("created", client.create("/judged/s-", sequence=True))
    print("children", *sorted(client.get_children("/judged")))
    print("exists" if client.exists("/judged/a", watch=events.put) else "no", "/judged/a")
    other.stop()
    say_event()
    print("exists" if client.exists("/judged/a", watch=events.put) else "no", "/judged/a")
    transaction = client.transaction()
    transaction.create("/judged/a", b"")
    transaction.delete("/judged/s-0000000001")
    print("transaction", transaction.commit()[0])
    say_event()
    print("children", *client.get_children("/judged"))
    client.delete("/judged", recursive=True)
    client.stop()


main(sys.argv[1])
