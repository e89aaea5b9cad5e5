"""Rollcall's client for Python: registrations, lookups, callbacks and locks, with nd_service_registry's verbs.

    >>> from rollcall import ServiceRegistry
    >>> registry = ServiceRegistry("localhost:7700")
    >>> registry.set_node("/services/ssh/server1:22", data={"foo": "bar"})
    True
    >>> registry.get("/services/ssh")["children"]["server1:22"]["foo"]
    'bar'
    >>> with registry.get_lock("/jobs/nightly") as held:
    ...     print(held)
    True

`rollcall.aio` is the same for asyncio, `rollcall.contrib.django` is for Django, `rollcall.v1` has the generated stubs.
"""

import logging

from rollcall.errors import NoConnection, OutcomeUnknown, ReadOnly, Refused, ServiceRegistryException
from rollcall.lock import Lock
from rollcall.registry import DataNode, EphemeralNode, ServiceRegistry
from rollcall.singleton import KazooServiceRegistry
from rollcall.values import ZnodeStat
from rollcall.version import VERSION

__version__ = VERSION

__all__ = [
    "DataNode",
    "EphemeralNode",
    "KazooServiceRegistry",
    "Lock",
    "NoConnection",
    "OutcomeUnknown",
    "ReadOnly",
    "Refused",
    "ServiceRegistry",
    "ServiceRegistryException",
    "ZnodeStat",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
