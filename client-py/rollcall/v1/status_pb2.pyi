from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from rollcall.v1 import read_pb2 as _read_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_SERVING: _ClassVar[ReplicaState]
    REPLICA_STATE_NOT_SERVING: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]

class BackendKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_KIND_UNSPECIFIED: _ClassVar[BackendKind]
    BACKEND_KIND_ZOOKEEPER: _ClassVar[BackendKind]
    BACKEND_KIND_EMBEDDED: _ClassVar[BackendKind]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_SERVING: ReplicaState
REPLICA_STATE_NOT_SERVING: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
BACKEND_KIND_UNSPECIFIED: BackendKind
BACKEND_KIND_ZOOKEEPER: BackendKind
BACKEND_KIND_EMBEDDED: BackendKind

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("replica", "version", "start_time", "state", "state_cause", "remaining", "backend", "sessions", "counts", "memory", "view_memory", "replicas", "replicas_time")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_CAUSE_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    VIEW_MEMORY_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_TIME_FIELD_NUMBER: _ClassVar[int]
    replica: str
    version: str
    start_time: _timestamp_pb2.Timestamp
    state: ReplicaState
    state_cause: str
    remaining: _duration_pb2.Duration
    backend: BackendStatus
    sessions: _containers.RepeatedCompositeFieldContainer[SessionStatus]
    counts: ReplicaCounts
    memory: Usage
    view_memory: Usage
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaSessions]
    replicas_time: _timestamp_pb2.Timestamp
    def __init__(self, replica: _Optional[str] = ..., version: _Optional[str] = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., state_cause: _Optional[str] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., backend: _Optional[_Union[BackendStatus, _Mapping]] = ..., sessions: _Optional[_Iterable[_Union[SessionStatus, _Mapping]]] = ..., counts: _Optional[_Union[ReplicaCounts, _Mapping]] = ..., memory: _Optional[_Union[Usage, _Mapping]] = ..., view_memory: _Optional[_Union[Usage, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaSessions, _Mapping]]] = ..., replicas_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class BackendStatus(_message.Message):
    __slots__ = ("kind", "state", "since_time", "servers", "last_error")
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    kind: BackendKind
    state: _read_pb2.BackendState
    since_time: _timestamp_pb2.Timestamp
    servers: _containers.RepeatedScalarFieldContainer[str]
    last_error: str
    def __init__(self, kind: _Optional[_Union[BackendKind, str]] = ..., state: _Optional[_Union[_read_pb2.BackendState, str]] = ..., since_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., servers: _Optional[_Iterable[str]] = ..., last_error: _Optional[str] = ...) -> None: ...

class SessionStatus(_message.Message):
    __slots__ = ("id", "connected", "server", "watching", "path_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    WATCHING_FIELD_NUMBER: _ClassVar[int]
    PATH_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    connected: bool
    server: str
    watching: bool
    path_bytes: Usage
    def __init__(self, id: _Optional[int] = ..., connected: bool = ..., server: _Optional[str] = ..., watching: bool = ..., path_bytes: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("used", "limit")
    USED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    used: int
    limit: int
    def __init__(self, used: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ReplicaCounts(_message.Message):
    __slots__ = ("connections", "calls", "register_streams", "watch_streams", "lock_streams", "waiting_gets", "registrations", "locks", "views")
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    REGISTER_STREAMS_FIELD_NUMBER: _ClassVar[int]
    WATCH_STREAMS_FIELD_NUMBER: _ClassVar[int]
    LOCK_STREAMS_FIELD_NUMBER: _ClassVar[int]
    WAITING_GETS_FIELD_NUMBER: _ClassVar[int]
    REGISTRATIONS_FIELD_NUMBER: _ClassVar[int]
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    connections: int
    calls: int
    register_streams: int
    watch_streams: int
    lock_streams: int
    waiting_gets: int
    registrations: int
    locks: int
    views: int
    def __init__(self, connections: _Optional[int] = ..., calls: _Optional[int] = ..., register_streams: _Optional[int] = ..., watch_streams: _Optional[int] = ..., lock_streams: _Optional[int] = ..., waiting_gets: _Optional[int] = ..., registrations: _Optional[int] = ..., locks: _Optional[int] = ..., views: _Optional[int] = ...) -> None: ...

class ReplicaSessions(_message.Message):
    __slots__ = ("replica", "sessions")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    replica: str
    sessions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, replica: _Optional[str] = ..., sessions: _Optional[_Iterable[int]] = ...) -> None: ...
