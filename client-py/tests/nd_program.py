"""The real nd_service_registry in a process of its own: its methods by name, and `seen`, the calls of its callback."""

import json
import sys

from nd_service_registry import KazooServiceRegistry

registry = KazooServiceRegistry(server=sys.argv[1], timeout=20, rate_limit_calls=None)
seen = []
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    if verb == "seen":
        answer = seen
    elif verb == "add_callback":
        answer = registry.add_callback(*arguments, callback=lambda node: seen.append(list(node["children"])))
    else:
        answer = getattr(registry, verb)(*arguments)
    print(json.dumps(answer), flush=True)
