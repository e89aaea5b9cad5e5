"""rollcall.ServiceRegistry in a process of its own: its methods by name."""

import json
import sys

import rollcall

registry = rollcall.ServiceRegistry(
    sys.argv[1], **{"timeout": 20, **(json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})}
)
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    print(json.dumps(getattr(registry, verb)(*arguments)), flush=True)
