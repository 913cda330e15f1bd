"""Submits runs to a coordinator, follows them across lost connections, and fetches their reports.

    with Client("localhost:7100") as client:
        run = client.submit(run_spec("/models/Llama-2-7b", ["/data/c4.jsonl.zst"], "/models/smaller", target_size=0.7))
        for event in client.watch(run.name):
            print(event.sequence, event.record or event.progress)
        print(client.report(run.name)["evaluation_after"]["perplexity"])
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from llm_surgeon.artifacts import ArtifactClient
from llm_surgeon.connection import Waits, request_id
from llm_surgeon.v1 import coordinator_service_pb2 as messages
from llm_surgeon.v1 import coordinator_service_pb2_grpc as stubs
from llm_surgeon.v1 import run_pb2

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
    output: str = "",
    *,
    target_size: float | None = None,
    target_parameters: int | None = None,
    target_bytes: int | None = None,
    eval_data: Sequence[str] = (),
    **others: Any,
) -> run_pb2.RunSpec:
    """Returns a specification with the command line's defaults. Paths are as the workers see them. Curvature alone needs
    neither output nor target.

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
        damping_g=0.3 if rows else 10.0 if masked else 0.01,
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


class Client(ArtifactClient):
    """A coordinator's client: runs, workers, and the bulk data of its store. Calls that may be repeated are, while the coordinator
    is away."""

    def __init__(self, target: str, **options: Any) -> None:
        """As `Connection`."""
        super().__init__(target, **options)
        self._stub = stubs.CoordinatorServiceStub(self.channel)

    def submit(self, spec: run_pb2.RunSpec) -> run_pb2.Run:
        """Starts a run, or continues the one that the same specification started before."""
        request = messages.CreateRunRequest(request_id=request_id(), spec=spec)
        return self.call(self._stub.CreateRun, request).run

    def validate(self, spec: run_pb2.RunSpec) -> None:
        """Raises `SurgeonError` if the coordinator would not take the specification."""
        self.call(self._stub.CreateRun, messages.CreateRunRequest(spec=spec, validate_only=True))

    def run(self, name: str) -> run_pb2.Run:
        """Returns a run by name, with or without `runs/`."""
        return self.call(self._stub.GetRun, messages.GetRunRequest(name=_resource(name))).run

    def runs(self) -> Iterator[run_pb2.Run]:
        """Returns all runs, newest first."""
        token = ""
        while True:
            page = self.call(self._stub.ListRuns, messages.ListRunsRequest(page_token=token))
            yield from page.runs
            token = page.next_page_token
            if not token:
                return

    def watch(self, name: str, from_sequence: int = 1) -> Iterator[Event]:
        """Returns a run's journal from a record on, then what happens, until it ends or pauses. A stream that breaks is
        opened again where it broke: no record comes twice, none is missed."""
        following = from_sequence
        waits = Waits(self.retry_limit)
        while True:
            request = messages.WatchRunRequest(name=_resource(name), from_sequence=following)
            try:
                for response in self._stub.WatchRun(request, metadata=self.metadata):
                    waits = Waits(self.retry_limit)
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
        report: dict[str, Any] = json.loads(self.call(self._stub.GetRunReport, request).report_json)
        return report

    def shots(self, name: str) -> Iterator[messages.Shot]:
        """Returns a run's committed shots, the first first."""
        token = ""
        while True:
            request = messages.ListShotsRequest(parent=_resource(name), page_token=token)
            page = self.call(self._stub.ListShots, request)
            yield from page.shots
            token = page.next_page_token
            if not token:
                return

    def layers(self, shot: str) -> Iterator[messages.LayerRemoval]:
        """Returns what one shot, by its name, took from each layer."""
        token = ""
        while True:
            page = self.call(self._stub.ListLayers, messages.ListLayersRequest(parent=shot, page_token=token))
            yield from page.layers
            token = page.next_page_token
            if not token:
                return

    def pause(self, name: str) -> run_pb2.Run:
        """Stops a run until it is resumed."""
        request = messages.PauseRunRequest(request_id=request_id(), name=_resource(name))
        return self.call(self._stub.PauseRun, request).run

    def resume(self, name: str) -> run_pb2.Run:
        """Continues a paused run."""
        request = messages.ResumeRunRequest(request_id=request_id(), name=_resource(name))
        return self.call(self._stub.ResumeRun, request).run

    def cancel(self, name: str) -> run_pb2.Run:
        """Stops a run for good."""
        request = messages.CancelRunRequest(request_id=request_id(), name=_resource(name))
        return self.call(self._stub.CancelRun, request).run

    def delete(self, name: str) -> None:
        """Removes a run that is not under way, and all it has in the store."""
        request = messages.DeleteRunRequest(request_id=request_id(), name=_resource(name))
        self.call(self._stub.DeleteRun, request)

    def workers(self) -> list[messages.Worker]:
        """Returns the workers that have been heard of lately."""
        return list(self.call(self._stub.ListWorkers, messages.ListWorkersRequest()).workers)


def _resource(name: str) -> str:
    return name if name.startswith("runs/") else f"runs/{name}"
