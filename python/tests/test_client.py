"""The client against real services: a coordinator, a calibrator and a surgeon of their own for each test."""

from __future__ import annotations

import os
import pathlib
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llm_surgeon import Client, SurgeonError, run_spec
from llm_surgeon.v1 import run_pb2

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ["LLM_SURGEON_PROGRAMS"])
MODEL = os.environ["LLM_SURGEON_TEST_MODEL"]
TEXT = ROOT / "testdata/text"


class Cluster:
    """Three services on Unix sockets."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.target = self.endpoint("coordinator")
        for name in ("coordinator", "calibrator", "surgeon"):
            self.start(name)

    def endpoint(self, name: str) -> str:
        return f"unix://{self.folder}/{name}.sock"

    def start(self, name: str) -> None:
        words: list[str | pathlib.Path] = [PROGRAMS / name, "--store", self.folder / "store", "--listen", self.endpoint(name)]
        if name != "coordinator":
            words += ["--coordinator", self.target, "--worker", name, "--device", "cpu", "--threads", "1"]
        with open(self.folder / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(words, stderr=log)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    def spec(self, output: str, **others: Any) -> run_pb2.RunSpec:
        usual: dict[str, Any] = {
            "target_size": 0.8, "shots": 2, "samples": 24, "seq_len": 128, "eval_samples": 8, "multiple_of": 1,
        }
        data = [str(TEXT / "calibration")]
        return run_spec(
            MODEL, data, str(self.folder / output), eval_data=[str(TEXT / "heldout")], **{**usual, **others},
        )


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[Cluster]:
    services = Cluster(tmp_path)
    yield services
    for name in services.running:
        services.kill(name)


def test_a_run_is_submitted_followed_to_its_end_and_told_of(cluster: Cluster) -> None:
    with Client(cluster.target) as client:
        run = client.submit(cluster.spec("out"))
        events = list(client.watch(run.name))
        assert events[-1].ended is not None and events[-1].ended.state == run_pb2.RUN_STATE_SUCCEEDED
        numbers = [event.sequence for event in events if event.record is not None]
        assert numbers == list(range(1, len(numbers) + 1)), "every record once, in order"
        report = client.report(run.name)
        assert report["format"] >= 1 and (cluster.folder / "out/model.safetensors").is_file()
        shots = list(client.shots(run.name))
        assert [shot.predicted for shot in shots] == [shot["predicted"] for shot in report["shots"]]
        layers = list(client.layers(shots[0].name))
        assert [layer.removed for layer in layers] == [layer["removed"] for layer in report["shots"][0]["layers"]]
        assert {worker.name for worker in client.workers()} == {"workers/calibrator", "workers/surgeon"}
        assert [found.name for found in client.runs()] == [run.name]
        client.delete(run.name)
        with pytest.raises(SurgeonError) as refused:
            client.run(run.name)
        assert refused.value.reason == "RUN_NOT_FOUND"


def test_defaults_are_those_of_the_command_line(cluster: Cluster) -> None:
    with Client(cluster.target) as client:
        client.workers()  # the coordinator is there
        cases: list[tuple[list[str], dict[str, Any]]] = [
            ([], {}),
            (["--structure", "2:4", "--target-size", "0.5"],
             {"structure": run_pb2.STRUCTURE_N_OF_M, "pattern": run_pb2.Pattern(n=2, m=4), "target_size": 0.5}),
            (["--structure", "row-column"], {"structure": run_pb2.STRUCTURE_ROW_COLUMN}),
        ]
        for number, (words, fields) in enumerate(cases):
            output = str(cluster.folder / f"out{number}")
            size = [] if "--target-size" in words else ["--target-size", "0.8"]
            submit: list[str | pathlib.Path] = [PROGRAMS / "llm-surgeon", "submit", MODEL, "--data", TEXT / "calibration", "--out", output]
            submit += ["--coordinator", cluster.target, "--seq-len", "128", *size, *words]
            by_command = subprocess.run(submit, check=True, capture_output=True, text=True).stdout.strip()
            client.cancel(by_command)
            asked: dict[str, Any] = {"target_size": 0.8, "seq_len": 128, **fields}
            spec = run_spec(MODEL, [str(TEXT / "calibration")], output, **asked)
            assert client.run(by_command).spec == spec, words


def test_following_outlasts_the_coordinator(cluster: Cluster) -> None:
    with Client(cluster.target) as client:
        run = client.submit(cluster.spec("out", shots=4))
        numbers = []
        for event in client.watch(run.name):
            if event.record is not None:
                numbers.append(event.sequence)
                if len(numbers) in (5, 15):
                    cluster.kill("coordinator")
                    cluster.start("coordinator")
        assert numbers == list(range(1, len(numbers) + 1)), "every record once, in order"
        assert client.run(run.name).state == run_pb2.RUN_STATE_SUCCEEDED


def test_refusals_name_the_fields(cluster: Cluster) -> None:
    with Client(cluster.target) as client:
        with pytest.raises(SurgeonError) as refused:
            client.validate(cluster.spec("out", target_size=1.5, multiple_of=0))
        assert refused.value.reason == "SPEC_INVALID"
        assert {"target", "multiple_of"} <= set(refused.value.violations)
        client.validate(cluster.spec("out"))


def test_runs_are_paused_and_resumed(cluster: Cluster) -> None:
    with Client(cluster.target) as client:
        run = client.submit(cluster.spec("out", shots=8))
        time.sleep(0.5)
        paused = client.pause(run.name)
        if paused.state == run_pb2.RUN_STATE_SUCCEEDED:
            pytest.fail("the run was over too soon to be paused")
        assert paused.reason_code == "RUN_PAUSED"
        assert client.resume(run.name).state == run_pb2.RUN_STATE_RUNNING
        assert client.wait(run.name).state == run_pb2.RUN_STATE_SUCCEEDED


def test_a_coordinator_that_is_not_there_is_told_in_time(tmp_path: pathlib.Path) -> None:
    with Client(f"unix://{tmp_path}/nobody.sock", retry_limit=0.5) as client, pytest.raises(SurgeonError) as refused:
        client.workers()
    assert refused.value.code.name == "UNAVAILABLE"
