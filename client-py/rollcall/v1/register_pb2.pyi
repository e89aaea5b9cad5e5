from google.protobuf import duration_pb2 as _duration_pb2
from rollcall.v1 import data_pb2 as _data_pb2
from rollcall.v1 import stream_pb2 as _stream_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRequest(_message.Message):
    __slots__ = ("open", "set", "unset", "keep_alive", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    UNSET_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: OpenSession
    set: SetRegistration
    unset: UnsetRegistration
    keep_alive: KeepAlive
    close: CloseSession
    def __init__(self, open: _Optional[_Union[OpenSession, _Mapping]] = ..., set: _Optional[_Union[SetRegistration, _Mapping]] = ..., unset: _Optional[_Union[UnsetRegistration, _Mapping]] = ..., keep_alive: _Optional[_Union[KeepAlive, _Mapping]] = ..., close: _Optional[_Union[CloseSession, _Mapping]] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("ttl", "client_name", "pid")
    TTL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ttl: _duration_pb2.Duration
    client_name: str
    pid: int
    def __init__(self, ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., client_name: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class SetRegistration(_message.Message):
    __slots__ = ("path", "value", "generation", "exclusive")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    path: str
    value: _data_pb2.Value
    generation: int
    exclusive: bool
    def __init__(self, path: _Optional[str] = ..., value: _Optional[_Union[_data_pb2.Value, _Mapping]] = ..., generation: _Optional[int] = ..., exclusive: bool = ...) -> None: ...

class UnsetRegistration(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class KeepAlive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseSession(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("opened", "registered", "unregistered", "pending", "overwritten", "lost", "rejected", "kept_alive", "draining")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    UNREGISTERED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    OVERWRITTEN_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    KEPT_ALIVE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    registered: Registered
    unregistered: Unregistered
    pending: Pending
    overwritten: Overwritten
    lost: Lost
    rejected: Rejected
    kept_alive: KeptAlive
    draining: _stream_pb2.Draining
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., registered: _Optional[_Union[Registered, _Mapping]] = ..., unregistered: _Optional[_Union[Unregistered, _Mapping]] = ..., pending: _Optional[_Union[Pending, _Mapping]] = ..., overwritten: _Optional[_Union[Overwritten, _Mapping]] = ..., lost: _Optional[_Union[Lost, _Mapping]] = ..., rejected: _Optional[_Union[Rejected, _Mapping]] = ..., kept_alive: _Optional[_Union[KeptAlive, _Mapping]] = ..., draining: _Optional[_Union[_stream_pb2.Draining, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session_id", "ttl", "keep_alive_interval", "horizon")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    ttl: _duration_pb2.Duration
    keep_alive_interval: _duration_pb2.Duration
    horizon: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., keep_alive_interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., horizon: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Registered(_message.Message):
    __slots__ = ("path", "generation", "stat", "restored", "adopted")
    PATH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAT_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    path: str
    generation: int
    stat: _data_pb2.Stat
    restored: bool
    adopted: bool
    def __init__(self, path: _Optional[str] = ..., generation: _Optional[int] = ..., stat: _Optional[_Union[_data_pb2.Stat, _Mapping]] = ..., restored: bool = ..., adopted: bool = ...) -> None: ...

class Unregistered(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class Pending(_message.Message):
    __slots__ = ("path", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    reason: str
    def __init__(self, path: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Overwritten(_message.Message):
    __slots__ = ("path", "value", "stat")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STAT_FIELD_NUMBER: _ClassVar[int]
    path: str
    value: _data_pb2.Value
    stat: _data_pb2.Stat
    def __init__(self, path: _Optional[str] = ..., value: _Optional[_Union[_data_pb2.Value, _Mapping]] = ..., stat: _Optional[_Union[_data_pb2.Stat, _Mapping]] = ...) -> None: ...

class Lost(_message.Message):
    __slots__ = ("path", "generation", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    generation: int
    reason: _stream_pb2.LostReason
    def __init__(self, path: _Optional[str] = ..., generation: _Optional[int] = ..., reason: _Optional[_Union[_stream_pb2.LostReason, str]] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("path", "code", "reason", "message")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    path: str
    code: int
    reason: str
    message: str
    def __init__(self, path: _Optional[str] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class KeptAlive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
