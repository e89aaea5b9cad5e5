from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from rollcall.v1 import stream_pb2 as _stream_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AcquireLockRequest(_message.Message):
    __slots__ = ("path", "simultaneous", "wait", "ttl", "name", "lock_id", "heartbeat")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIMULTANEOUS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    path: str
    simultaneous: int
    wait: _duration_pb2.Duration
    ttl: _duration_pb2.Duration
    name: str
    lock_id: str
    heartbeat: _duration_pb2.Duration
    def __init__(self, path: _Optional[str] = ..., simultaneous: _Optional[int] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., name: _Optional[str] = ..., lock_id: _Optional[str] = ..., heartbeat: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AcquireLockResponse(_message.Message):
    __slots__ = ("queued", "held", "suspended", "lost", "heartbeat", "draining")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    queued: Queued
    held: Held
    suspended: Suspended
    lost: LockLost
    heartbeat: Heartbeat
    draining: _stream_pb2.Draining
    def __init__(self, queued: _Optional[_Union[Queued, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ..., suspended: _Optional[_Union[Suspended, _Mapping]] = ..., lost: _Optional[_Union[LockLost, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., draining: _Optional[_Union[_stream_pb2.Draining, _Mapping]] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("lock_id", "position", "holders")
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    lock_id: str
    position: int
    holders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lock_id: _Optional[str] = ..., position: _Optional[int] = ..., holders: _Optional[_Iterable[str]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("lock_id", "fencing_token", "ttl", "horizon")
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    lock_id: str
    fencing_token: int
    ttl: _duration_pb2.Duration
    horizon: _duration_pb2.Duration
    def __init__(self, lock_id: _Optional[str] = ..., fencing_token: _Optional[int] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., horizon: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Suspended(_message.Message):
    __slots__ = ("remaining",)
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    remaining: _duration_pb2.Duration
    def __init__(self, remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LockLost(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: _stream_pb2.LostReason
    def __init__(self, reason: _Optional[_Union[_stream_pb2.LostReason, str]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseLockRequest(_message.Message):
    __slots__ = ("lock_id",)
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    lock_id: str
    def __init__(self, lock_id: _Optional[str] = ...) -> None: ...

class ReleaseLockResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: bool = ...) -> None: ...

class DescribeLockRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class DescribeLockResponse(_message.Message):
    __slots__ = ("path", "simultaneous", "holders", "waiters")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIMULTANEOUS_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    WAITERS_FIELD_NUMBER: _ClassVar[int]
    path: str
    simultaneous: int
    holders: _containers.RepeatedCompositeFieldContainer[LockParty]
    waiters: _containers.RepeatedCompositeFieldContainer[LockParty]
    def __init__(self, path: _Optional[str] = ..., simultaneous: _Optional[int] = ..., holders: _Optional[_Iterable[_Union[LockParty, _Mapping]]] = ..., waiters: _Optional[_Iterable[_Union[LockParty, _Mapping]]] = ...) -> None: ...

class LockParty(_message.Message):
    __slots__ = ("name", "fencing_token", "since_time", "foreign", "ttl", "replica")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    name: str
    fencing_token: int
    since_time: _timestamp_pb2.Timestamp
    foreign: bool
    ttl: _duration_pb2.Duration
    replica: str
    def __init__(self, name: _Optional[str] = ..., fencing_token: _Optional[int] = ..., since_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., foreign: bool = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., replica: _Optional[str] = ...) -> None: ...
