from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from rollcall.v1 import data_pb2 as _data_pb2
from rollcall.v1 import stream_pb2 as _stream_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Consistency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSISTENCY_UNSPECIFIED: _ClassVar[Consistency]
    CONSISTENCY_CACHED: _ClassVar[Consistency]
    CONSISTENCY_LATEST: _ClassVar[Consistency]

class ChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_KIND_UNSPECIFIED: _ClassVar[ChangeKind]
    CHANGE_KIND_ADDED: _ClassVar[ChangeKind]
    CHANGE_KIND_UPDATED: _ClassVar[ChangeKind]
    CHANGE_KIND_REMOVED: _ClassVar[ChangeKind]
    CHANGE_KIND_CREATED: _ClassVar[ChangeKind]
    CHANGE_KIND_DATA_CHANGED: _ClassVar[ChangeKind]
    CHANGE_KIND_DELETED: _ClassVar[ChangeKind]

class BackendState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_STATE_UNSPECIFIED: _ClassVar[BackendState]
    BACKEND_STATE_CONNECTED: _ClassVar[BackendState]
    BACKEND_STATE_SUSPENDED: _ClassVar[BackendState]
    BACKEND_STATE_LOST: _ClassVar[BackendState]
CONSISTENCY_UNSPECIFIED: Consistency
CONSISTENCY_CACHED: Consistency
CONSISTENCY_LATEST: Consistency
CHANGE_KIND_UNSPECIFIED: ChangeKind
CHANGE_KIND_ADDED: ChangeKind
CHANGE_KIND_UPDATED: ChangeKind
CHANGE_KIND_REMOVED: ChangeKind
CHANGE_KIND_CREATED: ChangeKind
CHANGE_KIND_DATA_CHANGED: ChangeKind
CHANGE_KIND_DELETED: ChangeKind
BACKEND_STATE_UNSPECIFIED: BackendState
BACKEND_STATE_CONNECTED: BackendState
BACKEND_STATE_SUSPENDED: BackendState
BACKEND_STATE_LOST: BackendState

class GetRequest(_message.Message):
    __slots__ = ("path", "consistency", "wait", "recursive", "page_size", "page_token", "min_revision")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MIN_REVISION_FIELD_NUMBER: _ClassVar[int]
    path: str
    consistency: Consistency
    wait: _duration_pb2.Duration
    recursive: bool
    page_size: int
    page_token: str
    min_revision: int
    def __init__(self, path: _Optional[str] = ..., consistency: _Optional[_Union[Consistency, str]] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., recursive: bool = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., min_revision: _Optional[int] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("node", "revision", "stale", "as_of", "next_page_token", "reset")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    node: _data_pb2.Node
    revision: int
    stale: bool
    as_of: _timestamp_pb2.Timestamp
    next_page_token: str
    reset: bool
    def __init__(self, node: _Optional[_Union[_data_pb2.Node, _Mapping]] = ..., revision: _Optional[int] = ..., stale: bool = ..., as_of: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., next_page_token: _Optional[str] = ..., reset: bool = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("path", "recursive", "since_revision", "heartbeat", "full", "min_revision")
    PATH_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    SINCE_REVISION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    MIN_REVISION_FIELD_NUMBER: _ClassVar[int]
    path: str
    recursive: bool
    since_revision: int
    heartbeat: _duration_pb2.Duration
    full: bool
    min_revision: int
    def __init__(self, path: _Optional[str] = ..., recursive: bool = ..., since_revision: _Optional[int] = ..., heartbeat: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., full: bool = ..., min_revision: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("revision", "stale", "snapshot", "delta", "current", "backend", "draining")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    revision: int
    stale: bool
    snapshot: Snapshot
    delta: Delta
    current: Current
    backend: Backend
    draining: _stream_pb2.Draining
    def __init__(self, revision: _Optional[int] = ..., stale: bool = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., current: _Optional[_Union[Current, _Mapping]] = ..., backend: _Optional[_Union[Backend, _Mapping]] = ..., draining: _Optional[_Union[_stream_pb2.Draining, _Mapping]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("node", "more", "reset")
    NODE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    node: _data_pb2.Node
    more: bool
    reset: bool
    def __init__(self, node: _Optional[_Union[_data_pb2.Node, _Mapping]] = ..., more: bool = ..., reset: bool = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("changes", "more")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    more: bool
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., more: bool = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("kind", "name", "child")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHILD_FIELD_NUMBER: _ClassVar[int]
    kind: ChangeKind
    name: str
    child: _data_pb2.Child
    def __init__(self, kind: _Optional[_Union[ChangeKind, str]] = ..., name: _Optional[str] = ..., child: _Optional[_Union[_data_pb2.Child, _Mapping]] = ...) -> None: ...

class Current(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Backend(_message.Message):
    __slots__ = ("state", "as_of")
    STATE_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    state: BackendState
    as_of: _timestamp_pb2.Timestamp
    def __init__(self, state: _Optional[_Union[BackendState, str]] = ..., as_of: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
