"""Curvature without a run: a calibrator that works alone sweeps a model over text and gives the Kronecker factors of each
block; a surgeon that works alone takes factors and gives removal paths and new weights.

    with Calibrator("localhost:7101") as calibrator:
        for block in calibrator.curvature(run_spec("/models/Llama-2-7b", ["/data/c4.jsonl.zst"])):
            a, g = block.inputs["model.layers.31.mlp.down_proj"], block.gradients["model.layers.31.mlp.down_proj"]

Both are started with `--standalone`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import blake3
import crc32c
import grpc
import numpy as np
import numpy.typing as npt

from llm_surgeon.connection import Connection, SurgeonError, Waits, refusal, request_id
from llm_surgeon.v1 import calibrator_service_pb2 as calibrator_messages
from llm_surgeon.v1 import calibrator_service_pb2_grpc as calibrator_stubs
from llm_surgeon.v1 import path_pb2, run_pb2, worker_service_pb2
from llm_surgeon.v1 import surgeon_service_pb2 as surgeon_messages
from llm_surgeon.v1 import surgeon_service_pb2_grpc as surgeon_stubs

CHUNK = 1 << 20
# Computing takes as long as it takes; loading a model or factorising a block may be minutes.
COMPUTE_TIMEOUT = 3600.0
# Blocks of one sweep that may come damaged before that is an error.
MAX_DAMAGED = 3

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BlockFactors:
    """One block's Kronecker factors, summed over tokens: a safetensors file, `file`, as it came over the wire.

    `inputs` and `gradients` are its means: A = mean of x xᵀ over tokens, [C, C] (with a bias, x ends in 1), and G = mean of
    g gᵀ, [R, R], g the gradient of the sequence's summed loss; then F ≈ G ⊗ A for row-major weights.
    """

    block: int
    file: bytes

    @property
    def tokens(self) -> int:
        """Tokens over which the sums are."""
        return int(_header(self.file)[0]["__metadata__"]["tokens"])

    @property
    def inputs(self) -> dict[str, Array]:
        """A by layer; layers that are fed by the same tensor share that of the first."""
        return self._means("A")

    @property
    def gradients(self) -> dict[str, Array]:
        """G by layer."""
        return self._means("G")

    def _means(self, side: str) -> dict[str, Array]:
        tokens = self.tokens
        found = {name.split(":", 1)[1]: values for name, values in read_tensors(self.file).items() if name.startswith(side + ":")}
        return {layer: _square(packed) / np.float32(tokens) for layer, packed in found.items()}


@dataclass(frozen=True)
class NewLayer:
    """One layer after a cut. `weight` and `bias` hold the kept units only; `state` says which those are."""

    state: worker_service_pb2.LayerState
    predicted: float
    """Predicted rise of the loss, nats per token."""
    weight: Array
    bias: Array | None


class Calibrator(Connection):
    """A calibrator that works alone."""

    def __init__(self, target: str, **options: Any) -> None:
        """As `Connection`."""
        super().__init__(target, **options)
        self._stub = calibrator_stubs.CalibratorServiceStub(self.channel)
        self.result: worker_service_pb2.CalibrateResult | None = None
        """Loss, counts and times of the last sweep that came to its end."""

    def load(self, spec: run_pb2.RunSpec) -> calibrator_messages.LoadModelResponse:
        """Loads model and data and says what is in them: layers with `curvature` are those that a sweep gives factors of."""
        return self.call(self._stub.LoadModel, calibrator_messages.LoadModelRequest(spec=spec), COMPUTE_TIMEOUT)

    def curvature(
        self,
        spec: run_pb2.RunSpec,
        *,
        first_sample: int = 0,
        samples: int = 0,
        blocks: Sequence[int] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[BlockFactors]:
        """Sweeps samples (0: all that follow the first) and returns each block's factors as they become ready, the last
        block first. Sums over parts of the samples add up. The sweep waits while nobody takes its blocks, and ends when the
        iterator is closed."""
        request = calibrator_messages.CalibrateRequest(
            spec=spec, first_sample=first_sample, samples=samples, blocks=blocks
        )
        sweep = self._stub.Calibrate(request, metadata=self.metadata)
        try:
            opened = _next(sweep).opened
            yield from self._factors(opened, sweep)
            for answer in _all(sweep):
                if answer.WhichOneof("part") == "progress" and progress is not None:
                    progress(answer.progress.done, answer.progress.total)
                elif answer.WhichOneof("part") == "result":
                    self.result = answer.result
        finally:
            sweep.cancel()

    def _factors(self, opened: calibrator_messages.SweepOpened, sweep: Any) -> Iterator[BlockFactors]:
        """A stream that breaks goes on where it broke; a block counts when it matches its digest."""
        missing = set(opened.blocks)
        header: calibrator_messages.FactorHeader | None = None
        received = bytearray()
        waits = Waits(self.retry_limit)
        damaged = 0
        while missing:
            request = calibrator_messages.StreamFactorsRequest(
                run=opened.run, shot=opened.shot, shard=opened.shard, generation=opened.generation, blocks=sorted(missing),
            )
            if header is not None and received:
                request.resume_block, request.resume_offset = header.block, len(received)
            stream = self._stub.StreamFactors(request, metadata=self.metadata)
            try:
                for answer in stream:
                    if answer.WhichOneof("part") == "header":
                        if header is None or answer.header != header:
                            received.clear()
                        header = answer.header
                        continue
                    assert header is not None, "a header comes before its chunks"
                    received += answer.chunk.payload
                    if len(received) < header.bytes:
                        continue
                    file, whole = bytes(received), header
                    header = None
                    received.clear()
                    if blake3.blake3(file).hexdigest() != whole.blake3:
                        damaged += 1
                        if damaged > MAX_DAMAGED:
                            raise ValueError(f"the factors of block {whole.block} do not match their digest")
                        break  # the block is asked for again
                    block = whole.block
                    waits = Waits(self.retry_limit)
                    yield BlockFactors(block, file)
                    missing.discard(block)
                    self._release(opened, block)
            except grpc.RpcError as error:
                if not sweep.is_active():
                    for _ in _all(sweep):  # it knows better why it ended
                        pass
                waits.after(error)
            finally:
                stream.cancel()

    def _release(self, opened: calibrator_messages.SweepOpened, block: int) -> None:
        request = calibrator_messages.ReleaseFactorsRequest(
            request_id=request_id(), run=opened.run, shot=opened.shot, shard=opened.shard,
            generation=opened.generation, block=block,
        )
        self.call(self._stub.ReleaseFactors, request)


class Surgeon(Connection):
    """A surgeon that works alone. `run` is any name: what is uploaded under one belongs together."""

    def __init__(self, target: str, **options: Any) -> None:
        """As `Connection`."""
        super().__init__(target, **options)
        self._stub = surgeon_stubs.SurgeonServiceStub(self.channel)

    def upload(self, run: str, factors: BlockFactors, shard: int = 0) -> None:
        """Brings one block's factors of one shard; goes on where it was when a connection breaks."""
        file = factors.file
        digest = blake3.blake3(file).hexdigest()
        offset = 0
        waits = Waits(self.retry_limit)
        while True:
            header = surgeon_messages.UploadHeader(
                run=run, shard=shard, offset=offset,
                factors=calibrator_messages.FactorHeader(block=factors.block, bytes=len(file), blake3=digest),
            )
            try:
                answer = self._stub.UploadFactors(_upload(header, file), metadata=self.metadata, timeout=COMPUTE_TIMEOUT)
            except grpc.RpcError as error:
                waits.after(error)
                continue
            if answer.complete:
                return
            offset = answer.received

    def finalize(
        self, run: str, spec: run_pb2.RunSpec, block: int, shards: int = 1
    ) -> surgeon_messages.FinalizeFactorsResponse:
        """Adds a block's shards and checks that they fit the model."""
        request = surgeon_messages.FinalizeFactorsRequest(run=run, spec=spec, block=block, shards=shards)
        return self.call(self._stub.FinalizeFactors, request, COMPUTE_TIMEOUT)

    def paths(
        self, run: str, spec: run_pb2.RunSpec, block: int, shards: int = 1
    ) -> dict[str, path_pb2.LayerPath]:
        """Returns the removal path of each of a block's layers."""
        request = surgeon_messages.ComputePathRequest(run=run, spec=spec, block=block, shards=shards)
        answer = self.call(self._stub.ComputePath, request, COMPUTE_TIMEOUT)
        return {path.layer: path for path in answer.paths}

    def cut(
        self, run: str, spec: run_pb2.RunSpec, block: int, steps: Mapping[str, int], shards: int = 1
    ) -> dict[str, NewLayer]:
        """Carries out so many steps of each layer's path; returns the layers that changed."""
        cuts = [path_pb2.LayerCut(layer=layer, steps=count) for layer, count in steps.items()]
        request = surgeon_messages.ApplyCutRequest(run=run, spec=spec, block=block, shards=shards, cuts=cuts)
        found: list[tuple[surgeon_messages.NewLayer, bytearray]] = []
        for answer in _all(self._stub.ApplyCut(request, metadata=self.metadata, timeout=COMPUTE_TIMEOUT)):
            if answer.WhichOneof("part") == "layer":
                found.append((answer.layer, bytearray()))
            else:
                found[-1][1].extend(answer.chunk.payload)
        return {new.state.layer: _new_layer(new, bytes(file)) for new, file in found if file}

    def drop(self, run: str) -> None:
        """Forgets everything under a name."""
        self.call(self._stub.DropFactors, surgeon_messages.DropFactorsRequest(run=run))


def read_tensors(file: bytes) -> dict[str, Array]:
    """Returns the f32 tensors of a safetensors file by name, without a copy."""
    header, start = _header(file)
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, end = entry["data_offsets"]
        if entry["dtype"] != "F32":
            raise ValueError(f"{name} is {entry['dtype']}, not F32")
        found[name] = np.frombuffer(file, "<f4", (end - first) // 4, start + first).reshape(entry["shape"])
    return found


def _header(file: bytes) -> tuple[dict[str, Any], int]:
    start = 8 + int.from_bytes(file[:8], "little")
    header: dict[str, Any] = json.loads(file[8:start])
    return header, start


def _square(packed: Array) -> Array:
    """Returns the symmetric matrix of a packed lower triangle, by rows."""
    n = int((np.sqrt(8 * packed.size + 1) - 1) / 2 + 0.5)
    square = np.zeros((n, n), np.float32)
    rows, columns = np.tril_indices(n)
    square[rows, columns] = packed
    square[columns, rows] = packed
    return square


def _new_layer(new: surgeon_messages.NewLayer, file: bytes) -> NewLayer:
    if blake3.blake3(file).hexdigest() != new.weights.blake3:
        raise ValueError(f"the new weights of {new.state.layer} do not match their digest")
    tensors = read_tensors(file)
    return NewLayer(new.state, new.predicted, tensors["weight"], tensors.get("bias"))


def _upload(header: surgeon_messages.UploadHeader, file: bytes) -> Iterator[surgeon_messages.UploadFactorsRequest]:
    yield surgeon_messages.UploadFactorsRequest(header=header)
    for offset in range(header.offset, len(file), CHUNK):
        payload = file[offset : offset + CHUNK]
        chunk = calibrator_messages.FactorChunk(
            block=header.factors.block, offset=offset, crc32c=crc32c.crc32c(payload), payload=payload
        )
        yield surgeon_messages.UploadFactorsRequest(chunk=chunk)


def _all(stream: Any) -> Iterator[Any]:
    """Returns a stream's answers; its failure as `SurgeonError`."""
    try:
        yield from stream
    except grpc.RpcError as error:
        raise refusal(error) from error


def _next(stream: Any) -> Any:
    for answer in _all(stream):
        return answer
    raise SurgeonError(grpc.StatusCode.INTERNAL, "", "the stream ended without an answer", {})
