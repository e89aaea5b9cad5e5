"""Durable nodes: written and deleted so that a write can be repeated when its answer was lost.

A write names the version of the node that it replaces. So a write that is still under way can never undo a later one,
and reading the node shows whether the write was made.
"""

import asyncio
import os
from typing import Any, Dict, Optional, Tuple

from rollcall import v1
from rollcall.errors import NoConnection, OutcomeUnknown, Refused, ServiceRegistryException
from rollcall.replicas import Replicas, check_size
from rollcall.values import from_value, is_same, now, to_value

# Another client has written between the read and the write.
_OVERTAKEN = ("VERSION_MISMATCH", "NODE_EXISTS", "NO_NODE")


class Durable:
    """Belongs to the loop. Its calls raise NoConnection, OutcomeUnknown and Refused."""

    def __init__(self, replicas: Replicas, patience: float) -> None:
        self._replicas = replicas
        self._patience = patience

    async def put(self, path: str, given: Dict[str, Any]) -> int:
        """Writes a node, unless it holds the same data. `pid` and `created` are added. Returns the transaction that
        wrote it."""
        value = to_value({"pid": os.getpid(), "created": now(), **given}, os.getpid())
        check_size(v1.PutRequest(path=path, value=value))
        deadline = asyncio.get_running_loop().time() + self._patience
        unknown: Optional[OutcomeUnknown] = None
        before: Optional[Tuple[int, int]] = None
        while True:
            node = await self._read(path, deadline, unknown)
            if node is not None and node.exists and is_same(from_value(node.value), value, given):
                return int(node.stat.mzxid)
            if unknown is not None and (node is None or _version(node) != before):
                # Another client has written, either instead of this write or over it.
                raise unknown
            request = v1.PutRequest(path=path, value=value)
            if node is not None:
                before = _version(node)
                if node.exists:
                    request.expected_version = node.stat.version
                else:
                    request.create_only = True
            try:
                put = await self._replicas.call(
                    "Put", request, v1.PutResponse, self._left(deadline), is_write=True
                )
                self._replicas.seen.note_stat(put.stat)
                return int(put.stat.mzxid)
            except OutcomeUnknown as error:
                unknown = error
            except Refused as refused:
                if refused.reason not in _OVERTAKEN:
                    raise

    async def delete(self, path: str) -> None:
        """Deletes a node, if it exists."""
        deadline = asyncio.get_running_loop().time() + self._patience
        unknown: Optional[OutcomeUnknown] = None
        request = v1.DeleteRequest(path=path)
        while True:
            try:
                await self._replicas.call("Delete", request, v1.DeleteResponse, self._left(deadline), is_write=True)
                return
            except OutcomeUnknown as error:
                unknown = error
            except Refused as refused:
                if refused.reason == "NO_NODE":
                    return
                if unknown is not None and refused.reason in _OVERTAKEN:
                    raise unknown from None
                raise
            node = await self._read(path, deadline, unknown)
            if node is None:
                raise unknown
            if not node.exists:
                return
            request.expected_version = node.stat.version

    def _left(self, deadline: float) -> float:
        return max(0.0, deadline - asyncio.get_running_loop().time())

    async def _read(self, path: str, deadline: float, unknown: Optional[OutcomeUnknown]) -> Optional[v1.Node]:
        """The node as ZooKeeper has it; None if the replica has no room to read it. If `unknown` is given, it is raised
        when no replica answers."""
        request = v1.GetRequest(path=path, consistency=v1.CONSISTENCY_LATEST, page_size=1)
        known = self._replicas.seen.latest
        try:
            found = await self._replicas.call(
                "Get", request, v1.GetResponse, self._left(deadline), waits_for_room=False
            )
        except ServiceRegistryException as error:
            if isinstance(error, Refused) and error.is_lack_of_room:
                return None
            if unknown is not None and isinstance(error, NoConnection):
                raise unknown from None
            raise
        self._replicas.seen.note_answer(known, found)
        return found.node  # type: ignore[no-any-return]


def _version(node: v1.Node) -> Tuple[int, int]:
    return (node.stat.czxid, node.stat.version)
