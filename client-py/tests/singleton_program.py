"""KazooServiceRegistry returns the first instance to every caller."""

import json
import sys

from rollcall import KazooServiceRegistry

first = KazooServiceRegistry(server=sys.argv[1], timeout=20)
print(json.dumps([KazooServiceRegistry() is first, first.get("/nothing")["children"]]), flush=True)
