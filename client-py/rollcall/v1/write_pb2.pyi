from rollcall.v1 import data_pb2 as _data_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PutRequest(_message.Message):
    __slots__ = ("path", "value", "expected_version", "create_only")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    path: str
    value: _data_pb2.Value
    expected_version: int
    create_only: bool
    def __init__(self, path: _Optional[str] = ..., value: _Optional[_Union[_data_pb2.Value, _Mapping]] = ..., expected_version: _Optional[int] = ..., create_only: bool = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("stat",)
    STAT_FIELD_NUMBER: _ClassVar[int]
    stat: _data_pb2.Stat
    def __init__(self, stat: _Optional[_Union[_data_pb2.Stat, _Mapping]] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("path", "expected_version", "recursive")
    PATH_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    path: str
    expected_version: int
    recursive: bool
    def __init__(self, path: _Optional[str] = ..., expected_version: _Optional[int] = ..., recursive: bool = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
