"""Submits runs to a coordinator, follows them across lost connections, and fetches their reports.

    with Client("localhost:7100") as client:
        run = client.submit(run_spec("/models/Llama-2-7b", ["/data/c4.jsonl.zst"], "/models/smaller", target_size=0.7))
        for event in client.watch(run.name):
            print(event.sequence, event.record or event.progress)
        print(client.report(run.name)["evaluation_after"]["perplexity"])
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from llm_surgeon.v1 import coordinator_service_pb2 as messages
from llm_surgeon.v1 import coordinator_service_pb2_grpc as stubs
from llm_surgeon.v1 import run_pb2

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


@dataclass(frozen=True)
class Event:
    """One thing that happened to a run: a journal record, the progress of a stage, or the end."""

    sequence: int
    """Number of the journal record; 0 for what is not journalled."""
    record: dict[str, Any] | None = None
    progress: run_pb2.StageProgress | None = None
    ended: run_pb2.Run | None = None


def run_spec(
    model: str,
    data: Sequence[str],
    output: str,
    *,
    target_size: float | None = None,
    target_parameters: int | None = None,
    target_bytes: int | None = None,
    eval_data: Sequence[str] = (),
    **others: Any,
) -> run_pb2.RunSpec:
    """Returns a specification with the command line's defaults. Paths are as the workers see them.

    `others` are fields of `RunSpec` by name; the shape follows the structure if it is not said.
    """
    structure = others.get("structure", run_pb2.STRUCTURE_COUPLED)
    coupled = structure == run_pb2.STRUCTURE_COUPLED
    rows = structure == run_pb2.STRUCTURE_ROW_COLUMN
    masked = structure in (run_pb2.STRUCTURE_ELEMENT, run_pb2.STRUCTURE_N_OF_M)
    spec = run_pb2.RunSpec(
        model=model,
        data=data,
        eval_data=eval_data,
        output=output,
        text_column="text",
        structure=structure,
        attention_unit=run_pb2.ATTENTION_UNIT_KV_GROUP,
        shape=run_pb2.SHAPE_UNIFORM if coupled else run_pb2.SHAPE_PER_LAYER,
        scoring=run_pb2.SCORING_SEQUENTIAL,
        update=run_pb2.UPDATE_CORRELATED,
        curvature=run_pb2.CURVATURE_KFAC,
        fisher=run_pb2.FISHER_EMPIRICAL,
        fisher_samples=1,
        kronecker_rank=1,
        shots=8 if rows else 1,
        rounds=4 if masked else 1,
        schedule=run_pb2.SCHEDULE_LINEAR,
        max_rise=0.05,
        shot_data=run_pb2.SHOT_DATA_NEW,
        samples=128,
        shards=1,
        seq_len=2048,
        eval_samples=12,
        damping_scale=run_pb2.DAMPING_SCALE_DIAGONAL,
        damping_a=0.1,
        damping_g=0.3 if rows else 0.1 if masked else 0.01,
        max_damped_layers=2**32 - 1,
        max_correlate=2000,
        multiple_of=64,
        correct_steps=32,
        correct_rate=1e-3,
        dtype=run_pb2.DTYPE_F32,
        boundary_dtype=others.get("dtype", run_pb2.DTYPE_F32),
        memory_bytes=1 << 30,
        format=run_pb2.FORMAT_HF,
        gguf_type=run_pb2.GGUF_TYPE_AUTO,
    )
    if target_size is not None:
        spec.target_size = target_size
    if target_parameters is not None:
        spec.target_parameters = target_parameters
    if target_bytes is not None:
        spec.target_bytes = target_bytes
    spec.MergeFrom(run_pb2.RunSpec(**others))
    for name, value in others.items():
        if not isinstance(value, (list, tuple)) and not hasattr(value, "DESCRIPTOR"):
            setattr(spec, name, value)  # what is 0 or false is not merged
    return spec


@dataclass
class _Token(grpc.AuthMetadataPlugin):
    token: str = field(repr=False)

    def __call__(self, context: Any, callback: Any) -> None:
        callback((("authorization", f"Bearer {self.token}"),), None)


class Client:
    """A coordinator's client. Calls that may be repeated are, while the coordinator is away."""

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
        self._retry_limit = retry_limit
        self._metadata: tuple[tuple[str, str], ...] = ()
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.keepalive_time_ms", 20_000),
        ]
        if target.startswith("unix:"):
            options.append(("grpc.default_authority", "localhost"))  # a path is no authority to HTTP/2 servers
        if root_certificates is None:
            self._channel = grpc.insecure_channel(target, options)
            if token is not None:
                self._metadata = (("authorization", f"Bearer {token}"),)
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates, private_key, certificate)
            if token is not None:
                credentials = grpc.composite_channel_credentials(
                    credentials, grpc.metadata_call_credentials(_Token(token))
                )
            self._channel = grpc.secure_channel(target, credentials, options)
        self._stub = stubs.CoordinatorServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; runs go on."""
        self._channel.close()

    def submit(self, spec: run_pb2.RunSpec) -> run_pb2.Run:
        """Starts a run, or continues the one that the same specification started before."""
        request = messages.CreateRunRequest(request_id=_request_id(), spec=spec)
        return self._call(self._stub.CreateRun, request).run

    def validate(self, spec: run_pb2.RunSpec) -> None:
        """Raises `SurgeonError` if the coordinator would not take the specification."""
        self._call(self._stub.CreateRun, messages.CreateRunRequest(spec=spec, validate_only=True))

    def run(self, name: str) -> run_pb2.Run:
        """Returns a run by name, with or without `runs/`."""
        return self._call(self._stub.GetRun, messages.GetRunRequest(name=_resource(name))).run

    def runs(self) -> Iterator[run_pb2.Run]:
        """Returns all runs, newest first."""
        token = ""
        while True:
            page = self._call(self._stub.ListRuns, messages.ListRunsRequest(page_token=token))
            yield from page.runs
            token = page.next_page_token
            if not token:
                return

    def watch(self, name: str, from_sequence: int = 1) -> Iterator[Event]:
        """Returns a run's journal from a record on, then what happens, until it ends or pauses. A stream that breaks is
        opened again where it broke: no record comes twice, none is missed."""
        following = from_sequence
        waits = _Waits(self._retry_limit)
        while True:
            request = messages.WatchRunRequest(name=_resource(name), from_sequence=following)
            try:
                for response in self._stub.WatchRun(request, metadata=self._metadata):
                    waits = _Waits(self._retry_limit)
                    event = response.event
                    kind = event.WhichOneof("event")
                    if kind == "record_json":
                        following = event.sequence + 1
                        yield Event(event.sequence, record=json.loads(event.record_json))
                    elif kind == "progress":
                        yield Event(0, progress=event.progress)
                    elif kind == "ended":
                        yield Event(0, ended=event.ended)
                        return
            except grpc.RpcError as error:
                waits.after(error)

    def wait(self, name: str) -> run_pb2.Run:
        """Waits until a run ends or pauses, and returns it."""
        for event in self.watch(name):
            if event.ended is not None:
                return event.ended
        raise AssertionError("a stream that ends well ends with the run")

    def report(self, name: str) -> dict[str, Any]:
        """Returns the content of pruning_report.json, as far as the run has come."""
        request = messages.GetRunReportRequest(name=_resource(name))
        report: dict[str, Any] = json.loads(self._call(self._stub.GetRunReport, request).report_json)
        return report

    def pause(self, name: str) -> run_pb2.Run:
        """Stops a run until it is resumed."""
        request = messages.PauseRunRequest(request_id=_request_id(), name=_resource(name))
        return self._call(self._stub.PauseRun, request).run

    def resume(self, name: str) -> run_pb2.Run:
        """Continues a paused run."""
        request = messages.ResumeRunRequest(request_id=_request_id(), name=_resource(name))
        return self._call(self._stub.ResumeRun, request).run

    def cancel(self, name: str) -> run_pb2.Run:
        """Stops a run for good."""
        request = messages.CancelRunRequest(request_id=_request_id(), name=_resource(name))
        return self._call(self._stub.CancelRun, request).run

    def delete(self, name: str) -> None:
        """Removes a run that is not under way, and all it has in the store."""
        request = messages.DeleteRunRequest(request_id=_request_id(), name=_resource(name))
        self._call(self._stub.DeleteRun, request)

    def workers(self) -> list[messages.Worker]:
        """Returns the workers that have been heard of lately."""
        return list(self._call(self._stub.ListWorkers, messages.ListWorkersRequest()).workers)

    def _call(self, method: Callable[..., Answer], request: object) -> Answer:
        waits = _Waits(self._retry_limit)
        while True:
            try:
                return method(request, timeout=CALL_TIMEOUT, metadata=self._metadata)
            except grpc.RpcError as error:
                waits.after(error)


class _Waits:
    """Full jitter, doubling, and a limit in time."""

    def __init__(self, limit: float) -> None:
        self._ends = time.monotonic() + limit
        self._ceiling = WAITS[0]

    def after(self, error: grpc.RpcError) -> None:
        """Waits before the next try, or raises what stays."""
        wait = random.uniform(0.0, self._ceiling)
        code = error.code() if isinstance(error, grpc.Call) else None
        if code not in TRANSIENT or time.monotonic() + wait > self._ends:
            raise _refusal(error) from error
        time.sleep(wait)
        self._ceiling = min(2 * self._ceiling, WAITS[1])


def _refusal(error: grpc.RpcError) -> SurgeonError:
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


def _resource(name: str) -> str:
    return name if name.startswith("runs/") else f"runs/{name}"


def _request_id() -> str:
    return f"python-{uuid.uuid4()}"
