"""Errors: the exceptions that programs see, and the failures of calls to replicas."""

import enum
from typing import Any, Mapping, Optional

import grpc
from google.rpc import error_details_pb2, status_pb2

from rollcall import v1

_DOMAIN = "rollcall"
_DETAILS = "grpc-status-details-bin"
# Codes with which a proxy or a credentials check on the way may refuse, just like a replica.
_REFUSED_BY_ANYBODY = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
)


class ServiceRegistryException(Exception):
    """The base of all exceptions that this package raises on purpose."""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.value = value


class NoConnection(ServiceRegistryException):
    """No replica answered in time, or none that reaches ZooKeeper."""


class ReadOnly(ServiceRegistryException):
    """A write was asked of a registry that was created with `readonly=True`, or of a server that takes no writes."""


class OutcomeUnknown(NoConnection):
    """The connection broke after a write was sent, so the write may or may not have been made. Read before you try
    again."""


class Refused(ServiceRegistryException):
    """A replica refused. `reason` is stable, such as `NOT_A_LOCK`; the message is for people."""

    def __init__(self, value: str, reason: str, details: Optional[Mapping[str, str]] = None) -> None:
        super().__init__(value)
        self.reason = reason
        self.details = dict(details or {})

    @property
    def is_lack_of_room(self) -> bool:
        """Whether a limit of the replica was reached, which another moment may allow."""
        return self.reason.startswith("TOO_MANY_")


class Kind(enum.Enum):
    """The meaning of a failed call for the next attempt."""

    REFUSED = enum.auto()  # A replica has decided.
    NOT_NOW = enum.auto()  # The replica can't serve now; another may.
    BROKEN = enum.auto()  # The connection broke, or the replica is silent.
    PAUSED = enum.auto()  # This client has broken the connection itself, since the process forks.


class Failure(Exception):
    """The failure of a call to one replica. Never leaves the package."""

    def __init__(
        self,
        kind: Kind,
        message: str,
        reason: str = "",
        details: Optional[Mapping[str, str]] = None,
        asked: float = 0.0,
        code: Optional[grpc.StatusCode] = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.reason = reason
        self.details = details
        # Seconds after which the replica asks the client to come back.
        self.asked = asked
        self.code = code

    @staticmethod
    def silent() -> "Failure":
        return Failure(Kind.BROKEN, "the replica does not answer")

    @staticmethod
    def ended() -> "Failure":
        return Failure(Kind.BROKEN, "the replica ended the stream")

    @staticmethod
    def of(error: Any) -> "Failure":
        """The failure in a grpc.RpcError that is also a call."""
        code, message = error.code(), error.details() or ""
        info, asked = _details(error.trailing_metadata() or ())
        if info is None or info.domain != _DOMAIN:
            kind = Kind.REFUSED if code in _REFUSED_BY_ANYBODY else Kind.BROKEN
            return Failure(kind, message or code.name.lower(), reason=code.name, code=code)
        kind = Kind.REFUSED
        if code is grpc.StatusCode.UNAVAILABLE:
            kind = Kind.NOT_NOW
        elif info.reason == "OUTCOME_UNKNOWN":
            kind = Kind.BROKEN
        return Failure(kind, message, info.reason, dict(info.metadata), asked, code)

    def never_sent(self) -> bool:
        """Whether there was no connection to send the call on. gRPC says so only in words."""
        return self.code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in self.message

    def is_retryable(self) -> bool:
        return (
            self.kind is not Kind.REFUSED
            or self.asked > 0
            or self.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            or self.reason == "PAGE_EXPIRED"
        )

    def to_exception(self) -> ServiceRegistryException:
        if self.kind is not Kind.REFUSED:
            return NoConnection(self.message)
        return refusal(self.message, self.reason, self.details)


def lost_reason(number: Any) -> str:
    """The name of a loss reason. A reason of a later version of the API is named by its number."""
    if number not in v1.LostReason.values():
        return f"REASON_{number}"
    return v1.LostReason.Name(number).replace("LOST_REASON_", "")


def refusal(message: str, reason: str, details: Optional[Mapping[str, str]] = None) -> ServiceRegistryException:
    """A refusal, as programs see it."""
    if reason == "READ_ONLY":
        return ReadOnly(message)
    return Refused(message or reason, reason, details)


def _details(metadata: Any) -> Any:
    """The ErrorInfo of an error, or None, and the seconds that its RetryInfo asks for."""
    info, asked = None, 0.0
    for key, value in metadata:
        if key != _DETAILS:
            continue
        try:
            details = status_pb2.Status.FromString(value).details
            for detail in details:
                if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                    info = error_details_pb2.ErrorInfo.FromString(detail.value)
                elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                    delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                    asked = delay.seconds + delay.nanos / 1e9
        except Exception:  # A detail that is no status, from an intermediary, has no meaning.
            continue
    return info, asked
