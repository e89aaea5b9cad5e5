"""The values of nodes, between Python and the wire; read and written as nd_service_registry does."""

import json
import math
import time
from typing import Any, Dict, Mapping, NamedTuple, Optional, Union

from google.protobuf import struct_pb2

from rollcall import v1

# The data that programs pass in: a dict, a string, or nothing.
Data = Union[Mapping[str, Any], str, None]
# The largest whole number that doubles carry exactly, and the number of levels to which the server parses an object.
_EXACT = 2**53
_DEEPEST = 16


class ZnodeStat(NamedTuple):
    """ZooKeeper's record of a node, with the names that kazoo uses. Times are milliseconds since 1970."""

    czxid: int
    mzxid: int
    ctime: int
    mtime: int
    version: int
    cversion: int
    aversion: int
    ephemeralOwner: int
    dataLength: int
    numChildren: int
    pzxid: int


def to_dict(data: Data) -> Dict[str, Any]:
    """The fields of the node without the added keys; a string becomes `string_value`."""
    if data is None:
        return {}
    if isinstance(data, str):
        return {"string_value": data}
    # Converted to JSON and back, so that invalid data fail now, not later, and the program can't change them
    # afterwards.
    found: Dict[str, Any] = json.loads(json.dumps(data))
    return found


def is_same(held: Any, value: v1.Value, given: Mapping[str, Any]) -> bool:
    """Whether a node that holds `held` need not be written with `value`: the two are equal except for the keys that are
    added to the program's data."""

    def compared(data: Any) -> Any:
        if not isinstance(data, dict):
            return None
        kept = {name: each for name, each in data.items() if name in given or name not in ("pid", "created")}
        # Compared as JSON, where True is not 1.
        return json.dumps(kept, sort_keys=True)

    return isinstance(held, dict) and compared(held) == compared(from_value(value))


def now() -> str:
    """The value of `created`: UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())


def to_value(data: Mapping[str, Any], pid: int) -> v1.Value:
    """A Value of an object. `pid` is added where the server would not add it: to text."""
    if _fits(data, 1):
        fields = struct_pb2.Struct()
        fields.update(data)
        return v1.Value(data=fields)
    # A double would change a number, so the object is sent as text, whose bytes stay as they are.
    return v1.Value(text=json.dumps({"pid": pid, **data}, separators=(",", ":")))


def _fits(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        return depth <= _DEEPEST and all(_fits(each, depth + 1) for each in value.values())
    if isinstance(value, list):
        return depth <= _DEEPEST and all(_fits(each, depth + 1) for each in value)
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) <= _EXACT
    return not isinstance(value, float) or math.isfinite(value)


def from_value(value: v1.Value) -> Any:
    """The content of a node: a dict; `{"string_value": …}` for other text; bytes that are no text; None for an empty
    node."""
    kind = value.WhichOneof("kind")
    if kind == "data":
        return {name: _plain(field) for name, field in value.data.fields.items()}
    if kind == "text":
        return _from_text(value.text)
    if kind == "raw":
        try:
            return _from_text(value.raw.decode("utf-8"))
        except UnicodeDecodeError:
            return bytes(value.raw)
    return None


def _from_text(text: str) -> Any:
    text = text.strip()
    if not text:
        return {}
    if text.startswith("{") and text.endswith("}"):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return {"string_value": text}


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "struct_value":
        return {name: _plain(field) for name, field in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(each) for each in value.list_value.values]
    return getattr(value, kind) if kind and kind != "null_value" else None


def from_stat(stat: v1.Stat) -> ZnodeStat:
    return ZnodeStat(
        stat.czxid,
        stat.mzxid,
        stat.ctime,
        stat.mtime,
        stat.version,
        stat.cversion,
        stat.aversion,
        stat.ephemeral_owner,
        stat.data_length,
        stat.num_children,
        stat.pzxid,
    )


class State(NamedTuple):
    """A node and its children at one moment. A State is never changed: a change makes a new one."""

    data: Any
    stat: Optional[ZnodeStat]
    children: Dict[str, Any]

    def same(self, other: "Optional[State]") -> bool:
        """Whether a program could tell them apart by the statistics at most."""
        return (
            other is not None
            and (self.stat is None) == (other.stat is None)
            and self.data == other.data
            and self.children == other.children
        )


ABSENT = State(None, None, {})
