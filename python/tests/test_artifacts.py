"""Bulk data against a real coordinator, which is killed now and then."""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
from collections.abc import Iterator

import blake3
import pytest

from llm_surgeon import Client, SurgeonError

PROGRAMS = pathlib.Path(os.environ["LLM_SURGEON_PROGRAMS"])
MIB = 1 << 20


class Coordinator:
    """A coordinator on a Unix socket."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.target = f"unix://{folder}/coordinator.sock"
        self.start()

    def start(self) -> None:
        words: list[str | pathlib.Path] = [PROGRAMS / "coordinator", "--store", self.folder / "store", "--listen", self.target]
        words += ["--artifact-limit", "40MiB"]
        with open(self.folder / "log", "ab") as log:
            self.running = subprocess.Popen(words, stderr=log)

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def visible(self) -> list[str]:
        """Names of what lies in the store whole."""
        folder = self.folder / "store/artifacts"
        return sorted(file.name for file in folder.iterdir() if "#" not in file.name) if folder.is_dir() else []


@pytest.fixture
def coordinator(tmp_path: pathlib.Path) -> Iterator[Coordinator]:
    service = Coordinator(tmp_path)
    yield service
    service.kill()


def write(path: pathlib.Path, size: int) -> bytes:
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    return content


def test_a_file_comes_back_as_it_went(coordinator: Coordinator, tmp_path: pathlib.Path) -> None:
    content = write(tmp_path / "Data.JSONL.gz", 3 * MIB + 5)
    digest = blake3.blake3(content).hexdigest()
    with Client(coordinator.target) as client:
        address = client.upload(tmp_path / "Data.JSONL.gz")
        assert address == f"artifact:{digest}.jsonl.gz"
        assert client.upload(tmp_path / "Data.JSONL.gz") == address, "what is there is not sent again"
        (found,) = client.artifacts()
        assert (found.name, found.bytes, found.blake3) == (f"artifacts/{digest}", len(content), digest)
        assert [artifact.name for artifact in client.artifacts("runs")] == []
        told: list[tuple[int, int]] = []
        client.fetch(found.name, tmp_path / "back", lambda done, of: told.append((done, of)))
        assert (tmp_path / "back").read_bytes() == content and told[-1] == (len(content), len(content))
        with pytest.raises(FileExistsError):
            client.fetch(found.name, tmp_path / "back")
        client.delete_artifact(found.name)
        with pytest.raises(SurgeonError) as absent:
            client.fetch(found.name, tmp_path / "again")
        assert absent.value.reason == "OBJECT_NOT_FOUND"
        assert sorted(file.name for file in tmp_path.glob("*again*")) == []


def test_an_upload_outlasts_the_coordinator(coordinator: Coordinator, tmp_path: pathlib.Path) -> None:
    content = write(tmp_path / "data.txt", 30 * MIB)
    kills = iter([6, 13, 21])
    following = next(kills, None)

    def disturb(done: int, _: int) -> None:
        nonlocal following
        if following is not None and done >= following * MIB:
            following = next(kills, None)
            assert coordinator.visible() == []
            coordinator.restart()

    with Client(coordinator.target) as client:
        client.upload(tmp_path / "data.txt", disturb)
        assert following is None and coordinator.visible() == [blake3.blake3(content).hexdigest()]


def test_a_fetch_outlasts_the_coordinator_and_its_own_process(coordinator: Coordinator, tmp_path: pathlib.Path) -> None:
    content = write(tmp_path / "data.txt", 30 * MIB)
    name = "artifacts/" + blake3.blake3(content).hexdigest()

    def restart(done: int, _: int) -> None:
        if done == 5 * MIB:
            coordinator.restart()
        if done == 20 * MIB:
            raise InterruptedError("as if the process were killed")

    with Client(coordinator.target) as client:
        client.upload(tmp_path / "data.txt")
        with pytest.raises(InterruptedError):
            client.fetch(name, tmp_path / "back", restart)
        assert not (tmp_path / "back").exists()
        began: list[int] = []
        client.fetch(name, tmp_path / "back", lambda done, _: began.append(done))
        assert (tmp_path / "back").read_bytes() == content and began[0] > 20 * MIB
        assert list(tmp_path.glob("*.part")) == []


def test_refusals_say_why(coordinator: Coordinator, tmp_path: pathlib.Path) -> None:
    write(tmp_path / "large.txt", 41 * MIB)
    (tmp_path / "empty.txt").touch()
    with Client(coordinator.target) as client:
        for file, reason in (("large.txt", "ARTIFACT_TOO_LARGE"), ("empty.txt", "MESSAGE_INVALID")):
            with pytest.raises(SurgeonError) as refused:
                client.upload(tmp_path / file)
            assert refused.value.reason == reason
        with pytest.raises(SurgeonError) as refused:
            client.fetch("runs/r/journal/0000000001", tmp_path / "back")
        assert refused.value.reason == "MESSAGE_INVALID" and "names[0]" in refused.value.violations
