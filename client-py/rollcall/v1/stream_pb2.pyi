from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LostReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOST_REASON_UNSPECIFIED: _ClassVar[LostReason]
    LOST_REASON_TAKEN_OVER: _ClassVar[LostReason]
    LOST_REASON_EXPIRED: _ClassVar[LostReason]
    LOST_REASON_SESSION_LOST: _ClassVar[LostReason]
    LOST_REASON_REMOVED: _ClassVar[LostReason]
    LOST_REASON_EVICTED: _ClassVar[LostReason]
LOST_REASON_UNSPECIFIED: LostReason
LOST_REASON_TAKEN_OVER: LostReason
LOST_REASON_EXPIRED: LostReason
LOST_REASON_SESSION_LOST: LostReason
LOST_REASON_REMOVED: LostReason
LOST_REASON_EVICTED: LostReason

class Draining(_message.Message):
    __slots__ = ("remaining",)
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    remaining: _duration_pb2.Duration
    def __init__(self, remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...
