from rollcall.v1 import evict_pb2 as _evict_pb2
from rollcall.v1 import lock_pb2 as _lock_pb2
from rollcall.v1 import read_pb2 as _read_pb2
from rollcall.v1 import register_pb2 as _register_pb2
from rollcall.v1 import status_pb2 as _status_pb2
from rollcall.v1 import write_pb2 as _write_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
