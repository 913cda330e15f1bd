"""What every client shares: a channel with credentials, calls that are repeated while a service is away, refusals."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from typing_extensions import Self

# How long a call may take, and how long one that may be repeated is repeated, in seconds.
CALL_TIMEOUT = 30.0
RETRY_LIMIT = 300.0
# Waits between tries: anything up to these, doubling from the first to the last, in seconds.
WAITS = (0.1, 10.0)
MAX_MESSAGE = 64 << 20

TRANSIENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

Answer = TypeVar("Answer")


class SurgeonError(Exception):
    """A call that was refused. `reason` is from the published list, `violations` name bad fields."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, violations: dict[str, str]) -> None:
        super().__init__(f"[{reason or code.name}] {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = violations


@dataclass
class _Token(grpc.AuthMetadataPlugin):
    token: str = field(repr=False)

    def __call__(self, context: Any, callback: Any) -> None:
        callback((("authorization", f"Bearer {self.token}"),), None)


class Connection:
    """A service's client. Calls that may be repeated are, while the service is away."""

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        root_certificates: bytes | None = None,
        certificate: bytes | None = None,
        private_key: bytes | None = None,
        retry_limit: float = RETRY_LIMIT,
    ) -> None:
        """`target`: host:port or unix:///path. With `root_certificates` (PEM) the connection has TLS."""
        self.retry_limit = retry_limit
        self.metadata: tuple[tuple[str, str], ...] = ()
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.keepalive_time_ms", 20_000),
        ]
        if target.startswith("unix:"):
            options.append(("grpc.default_authority", "localhost"))  # a path is no authority to HTTP/2 servers
        if root_certificates is None:
            self.channel = grpc.insecure_channel(target, options)
            if token is not None:
                self.metadata = (("authorization", f"Bearer {token}"),)
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates, private_key, certificate)
            if token is not None:
                credentials = grpc.composite_channel_credentials(
                    credentials, grpc.metadata_call_credentials(_Token(token))
                )
            self.channel = grpc.secure_channel(target, credentials, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; what goes on at the service goes on."""
        self.channel.close()

    def call(self, method: Callable[..., Answer], request: object, timeout: float | None = CALL_TIMEOUT) -> Answer:
        """Returns the answer of a call that may be repeated."""
        waits = Waits(self.retry_limit)
        while True:
            try:
                return method(request, timeout=timeout, metadata=self.metadata)
            except grpc.RpcError as error:
                waits.after(error)


class Waits:
    """Full jitter, doubling, and a limit in time."""

    def __init__(self, limit: float) -> None:
        self._ends = time.monotonic() + limit
        self._ceiling = WAITS[0]

    def after(self, error: grpc.RpcError) -> None:
        """Waits before the next try, or raises what stays."""
        asked = _retry_delay(error)
        wait = random.uniform(0.0, self._ceiling) + min(asked or 0.0, WAITS[1])
        code = error.code() if isinstance(error, grpc.Call) else None
        if (code not in TRANSIENT and asked is None) or time.monotonic() + wait > self._ends:
            raise refusal(error) from error
        time.sleep(wait)
        self._ceiling = min(2 * self._ceiling, WAITS[1])


def _retry_delay(error: grpc.RpcError) -> float | None:
    """Returns when to ask again, in seconds, if a service that is used up says it."""
    if not isinstance(error, grpc.Call) or error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None


def refusal(error: grpc.RpcError) -> SurgeonError:
    """Returns what a failed call says, with its reason and violations."""
    reason = ""
    violations: dict[str, str] = {}
    assert isinstance(error, grpc.Call)  # every error that a call raises is
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            violations = {found.field: found.description for found in bad.field_violations}
    return SurgeonError(error.code(), reason, error.details() or "", violations)


def request_id() -> str:
    """Returns a name for one mutation."""
    return f"python-{uuid.uuid4()}"
