"""Files between here and a coordinator's store: brought, shown, fetched, whatever happens to the connection meanwhile.

    with Client("localhost:7100") as client:
        data = client.upload("c4.jsonl.zst")  # "artifact:….jsonl.zst", to be a run's data
        for artifact in client.artifacts("runs/r-0123456789abcdef"):
            client.fetch(artifact.name, "here/" + artifact.name.rsplit("/", 1)[1])
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import blake3
import crc32c
import grpc

from llm_surgeon.connection import Connection, SurgeonError, Waits, request_id
from llm_surgeon.v1 import artifact_service_pb2 as messages
from llm_surgeon.v1 import artifact_service_pb2_grpc as stubs

if sys.platform != "win32":
    import fcntl

CHUNK = 1 << 20
# Artifacts of a page.
PAGE = 1000
# How long a stream may take.
STREAM_TIMEOUT = 86_400.0
# How often a file may not be what its digest says before that is an error.
MAX_DAMAGED = 3
# What tells the format of a data file.
ENDING = re.compile(r"\.(jsonl|ndjson|json|txt|parquet)(\.(gz|zst))?$")

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many have gone their way."""


class ArtifactClient(Connection):
    """A client of the service for bulk data."""

    def __init__(self, target: str, **options: Any) -> None:
        """As `Connection`."""
        super().__init__(target, **options)
        self._artifacts = stubs.ArtifactServiceStub(self.channel)

    def artifacts(self, prefix: str = "") -> Iterator[messages.Artifact]:
        """Returns what there is below `artifacts`, `runs`, `runs/{run}` or a folder of it, by name; everything by default."""
        token = ""
        while True:
            request = messages.StatArtifactsRequest(prefix=prefix, page_size=PAGE, page_token=token)
            page = self.call(self._artifacts.StatArtifacts, request)
            yield from page.artifacts
            token = page.next_page_token
            if not token:
                return

    def upload(self, path: str | os.PathLike[str], progress: Progress | None = None) -> str:
        """Brings a file, unless it is there already, and returns its address for a run's data. Goes on where it was when a
        connection breaks, also one of an earlier call."""
        file = pathlib.Path(path)
        ending = ENDING.search(file.name.lower())
        for _ in range(MAX_DAMAGED):
            digest, size = _digest(file), file.stat().st_size
            try:
                self._bring(file, messages.WriteArtifactHeader(blake3=digest, bytes=size), progress)
            except SurgeonError as error:
                if error.reason != "DIGEST_MISMATCH":
                    raise
            else:
                return f"artifact:{digest}{ending[0] if ending else ''}"
        raise ValueError(f"{file} changes while it is read, or is damaged on the way")

    def fetch(self, name: str, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Writes an artifact to a file that must not exist. It has its name only when it is whole, and matches its digest where
        that is known; until then it is `{path}.….part`, and the same call goes on with it."""
        file = pathlib.Path(path)
        if file.exists():
            raise FileExistsError(f"{file} exists already")
        found = self.call(self._artifacts.StatArtifacts, messages.StatArtifactsRequest(names=[name])).artifacts
        if not found:
            raise SurgeonError(grpc.StatusCode.NOT_FOUND, "OBJECT_NOT_FOUND", f"there is no artifact '{name}'", {})
        artifact = found[0]
        of = blake3.blake3(f"{artifact.name}\n{artifact.bytes}".encode()).hexdigest()[:8]
        partial = file.with_name(f"{file.name}.{of}.part")
        with open(partial, "ab") as out:
            if sys.platform != "win32":
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if out.tell() > artifact.bytes:
                out.seek(out.truncate(0))
            self._take(artifact, out, progress)
            out.flush()
            os.fsync(out.fileno())
            if artifact.blake3 and _digest(partial) != artifact.blake3:
                partial.unlink()
                raise ValueError(f"{name} does not match its digest; what came is removed")
            partial.rename(file)

    def delete_artifact(self, name: str) -> None:
        """Removes what was uploaded, finished or not; refused while a run that has not ended reads it."""
        request = messages.DeleteArtifactRequest(request_id=request_id(), name=name)
        self.call(self._artifacts.DeleteArtifact, request)

    def _bring(self, file: pathlib.Path, header: messages.WriteArtifactHeader, progress: Progress | None) -> None:
        waits = Waits(self.retry_limit)
        reached = 0
        while True:
            try:
                asked = iter([messages.WriteArtifactRequest(header=header)])
                there = self._artifacts.WriteArtifact(asked, metadata=self.metadata, timeout=STREAM_TIMEOUT)
                if there.received > reached:
                    waits, reached = Waits(self.retry_limit), there.received
                if not there.complete:
                    rest = messages.WriteArtifactHeader(blake3=header.blake3, bytes=header.bytes, offset=there.received)
                    parts = _parts(file, rest, progress)
                    there = self._artifacts.WriteArtifact(parts, metadata=self.metadata, timeout=STREAM_TIMEOUT)
                if there.complete:
                    if progress is not None:
                        progress(header.bytes, header.bytes)
                    return
            except grpc.RpcError as error:
                waits.after(error)

    def _take(self, artifact: messages.Artifact, out: Any, progress: Progress | None) -> None:
        waits = Waits(self.retry_limit)
        damaged = 0
        while out.tell() < artifact.bytes:
            request = messages.ReadArtifactRequest(name=artifact.name, offset=out.tell())
            stream = self._artifacts.ReadArtifact(request, metadata=self.metadata, timeout=STREAM_TIMEOUT)
            try:
                for answer in stream:
                    if answer.WhichOneof("part") == "artifact":
                        if answer.artifact.bytes != artifact.bytes:
                            raise ValueError(f"{artifact.name} has changed")
                        continue
                    chunk = answer.chunk
                    if chunk.offset != out.tell() or crc32c.crc32c(chunk.payload) != chunk.crc32c:
                        damaged += 1
                        if damaged > MAX_DAMAGED:
                            raise ValueError(f"{artifact.name} is damaged on the way")
                        break  # what came so far is good; the rest is asked for again
                    out.write(chunk.payload)
                    waits = Waits(self.retry_limit)
                    if progress is not None:
                        progress(out.tell(), artifact.bytes)
            except grpc.RpcError as error:
                waits.after(error)
            finally:
                stream.cancel()


def _digest(file: pathlib.Path) -> str:
    hasher = blake3.blake3()
    with open(file, "rb") as content:
        while piece := content.read(CHUNK):
            hasher.update(piece)
    return str(hasher.hexdigest())


def _parts(
    file: pathlib.Path, header: messages.WriteArtifactHeader, progress: Progress | None
) -> Iterator[messages.WriteArtifactRequest]:
    yield messages.WriteArtifactRequest(header=header)
    offset = header.offset
    with open(file, "rb") as content:
        content.seek(offset)
        while payload := content.read(CHUNK):
            chunk = messages.ArtifactChunk(offset=offset, crc32c=crc32c.crc32c(payload), payload=payload)
            yield messages.WriteArtifactRequest(chunk=chunk)
            offset += len(payload)
            if progress is not None:
                progress(offset, header.bytes)
