#!/usr/bin/env python3
"""Soak: many small runs through one coordinator, a calibrator and a surgeon, while a crowd watches and strangers knock.

    scripts/soak.sh [RUNS] [--watchers N] [--rate CALLS_A_SECOND] [--delete] [--keep FOLDER]

Phases: warm-up; quiet runs; runs under a flood of bad requests while watchers wait on queued runs, which then come to their
turn; quiet runs again. Prints a table, what failed, and a line of JSON; exits with 1 if a check failed.

With --delete every run is deleted once it has ended, and the coordinator must not grow with their number.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import hashlib
import heapq
import json
import os
import pathlib
import random
import re
import secrets
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from llm_surgeon import Client, run_spec
from llm_surgeon.v1 import calibrator_service_pb2_grpc as calibrator_stubs
from llm_surgeon.v1 import calibrator_service_pb2 as calibrator_messages
from llm_surgeon.v1 import coordinator_service_pb2 as messages
from llm_surgeon.v1 import coordinator_service_pb2_grpc as stubs
from llm_surgeon.v1 import run_pb2
from llm_surgeon.v1 import worker_service_pb2 as work
from llm_surgeon.v1 import worker_service_pb2_grpc as work_stubs

MIB = 1 << 20
SERVICES = ("coordinator", "calibrator", "surgeon")
SUCCEEDED, PAUSED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_PAUSED

# What the coordinator may keep of a run: its journal, and several times as much for what that says.
KEPT_A_RUN = 192 << 10
# What quiet runs may leave behind besides, and what watchers and flood may: memory that the allocator keeps for the next time.
LEFT_BEHIND = 8 * MIB
LEFT_BY_FLOOD = 128 * MIB
GROWTH_WORKER = 48 * MIB
# What refused messages of up to 65 MiB may hold at a time.
PEAK = 512 * MIB
# How much longer a run may take under the flood: both share the machine's cores.
SLOWER = 3.0
# A watcher hears something every 15 s; what a busy machine may add.
SILENCE = 15.0 + 10.0
# A connection on which nothing came is closed after this: 20 s until it is probed, 10 s for the answer, and slack.
HELD = 45.0
# Streams of one connection; the coordinator allows 256.
STREAMS = 200
# Runs that are submitted together.
BATCH = 10
# While nothing moves, so that watchers hear nothing but heartbeats, so many come and leave again, so often; this long after
# it is noticed that they have left. The first times show how much room the allocator takes for so many at once; what the others
# may add after them: a task that stays behind takes 13 KiB, so as many as come would take 39 MiB.
PASSERS_BY, TIMES, FIRST_TIMES, NOTICED = 1000, 6, 3, 18.0
LEFT_BY_PASSERS_BY = 16 * MIB


# ---- the services ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Usage:
    """What a process holds: bytes, threads, open files; processor time in seconds."""

    resident: int
    peak: int
    threads: int
    files: int
    cpu: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        folder = pathlib.Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        size = {name: int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}
        times = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        cpu = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        return cls(size["VmRSS"], size["VmHWM"], int(status["Threads"]), len(list((folder / "fd").iterdir())), cpu)


class Cluster:
    """Three services on loopback that want a token."""

    def __init__(self, programs: pathlib.Path, folder: pathlib.Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(16)
        (folder / "token").write_text(self.token)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        ports = free_ports(len(SERVICES))
        self.targets = {name: f"127.0.0.1:{port}" for name, port in zip(SERVICES, ports)}
        for name, target in self.targets.items():
            words = [programs / name, "--store", folder / "store", "--listen", target, "--token-file", folder / "token"]
            if name != "coordinator":
                words += ["--coordinator", f"http://{self.targets['coordinator']}", "--worker", name]
                words += ["--device", "cpu", "--threads", "1"]
            with open(folder / f"{name}.log", "wb") as log:
                self.running[name] = subprocess.Popen([str(word) for word in words], stderr=log)

    def client(self) -> Client:
        return Client(self.targets["coordinator"], token=self.token, retry_limit=60.0)

    def usage(self) -> dict[str, Usage]:
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        if ended:
            raise SystemExit(f"soak: error: {ended[0]} has ended: {self.said(ended[0])[-2000:]}")
        return {name: Usage.of(process.pid) for name, process in self.running.items()}

    def drain(self, worker: str, undo: bool = False) -> None:
        with grpc.insecure_channel(self.targets["coordinator"]) as channel:
            request = messages.DrainWorkerRequest(request_id=secrets.token_hex(8), name=f"workers/{worker}", undo=undo)
            metadata = (("authorization", f"Bearer {self.token}"),)
            stubs.CoordinatorServiceStub(channel).DrainWorker(request, metadata=metadata, timeout=30)

    def forget_peaks(self) -> None:
        for process in self.running.values():
            pathlib.Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


# ---- watchers --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Watcher:
    """One who follows a run from its first record; what it has seen."""

    run: str
    records: int = 0
    heartbeats: int = 0
    longest_silence: float = 0.0
    heard: float = 0.0
    state: int | None = None
    fault: str = ""

    @property
    def alive(self) -> bool:
        return self.state is None and not self.fault

    async def follow(self, stub: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self.heard = time.monotonic()
        try:
            async for response in stub.WatchRun(messages.WatchRunRequest(name=self.run, from_sequence=1), metadata=metadata):
                now = time.monotonic()
                self.longest_silence = max(self.longest_silence, now - self.heard)
                self.heard = now
                event = response.event
                kind = event.WhichOneof("event")
                if kind == "record_json":
                    self.records += 1
                    if event.sequence != self.records:
                        self.fault = f"record {event.sequence} came after {self.records - 1}"
                elif kind == "heartbeat":
                    self.heartbeats += 1
                elif kind == "ended":
                    self.state = event.ended.state
            if self.state is None:
                self.fault = self.fault or "its stream ended before the run"
        except grpc.RpcError as error:
            self.fault = told(error)
        except asyncio.CancelledError:
            self.fault = "it hung up"


# ---- the flood -------------------------------------------------------------------------------------------------------


def told(error: Any) -> str:
    """Returns a refusal's code and reason."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return f"{error.code().name} {info.reason}"
    return str(error.code().name)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RESET, SETTINGS, CONTINUATION = 1, 3, 4, 9
PATH = b"/llm_surgeon.v1.CoordinatorService/GetRun"
# :method POST, :scheme http, :path, :authority
BLOCK = b"\x83\x86\x44" + bytes([len(PATH)]) + PATH + b"\x41\x01a"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


OPENING = PREFACE + frame(SETTINGS, 0, 0)
# Bytes to which the only answer is to hang up.
NONSENSE: dict[str, Callable[[], bytes]] = {
    "random bytes": lambda: random.randbytes(random.randint(64, 4096)),
    "HTTP/1.1": lambda: b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "a TLS hello": lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(500),
    "random frames": lambda: OPENING + random.randbytes(4096),
    "a frame of 16 MiB": lambda: OPENING + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(1024),
    "headers without end": lambda: OPENING
    + frame(HEADERS, 0, 1, BLOCK)
    + b"".join(frame(CONTINUATION, 0, 1, b"\x00\x01a\x7f\x81\x7f" + bytes(16000)) for _ in range(64)),
    "streams reset at once": lambda: OPENING
    + b"".join(frame(HEADERS, 4, n, BLOCK) + frame(RESET, 0, n, bytes(4)) for n in range(1, 8001, 2)),
}
# Openings after which nothing more comes.
HALF_OPEN = {
    "nothing": b"",
    "half a preface": PREFACE[:10],
    "a preface": PREFACE,
    "a preface and settings": OPENING,
    "half a header": OPENING + frame(HEADERS, 0, 1, BLOCK[:8]),
    "a call without a body": OPENING + frame(HEADERS, 4, 1, BLOCK),
}


def named(size: int) -> bytes:
    """Returns a GetRunRequest whose name has so many bytes."""
    length, rest = b"", size
    while rest >= 128:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return b"\x0a" + length + bytes([rest]) + b"x" * size


class Flood:
    """Bad requests of all kinds, so many a second, and what was answered to each."""

    # Kinds whose messages are large come this seldom.
    LARGE_SHARE = 0.004
    NONSENSE_SHARE = 0.15

    def __init__(self, cluster: Cluster, rate: float) -> None:
        self.cluster = cluster
        self.rate = rate
        self.answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.held: list[tuple[str, float | None]] = []
        self.kinds: dict[str, tuple[set[str], Callable[[], Awaitable[object]]]] = {}
        self.large: dict[str, tuple[set[str], Callable[[], Awaitable[object]]]] = {}

    def open(self) -> None:
        """Names what is asked and which refusals are right."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        channel = grpc.aio.insecure_channel(self.cluster.targets["coordinator"], options)
        calibrator = grpc.aio.insecure_channel(self.cluster.targets["calibrator"], options)
        self.channels = [channel, calibrator]
        public, workers = stubs.CoordinatorServiceStub(channel), work_stubs.WorkerServiceStub(channel)
        factors = calibrator_stubs.CalibratorServiceStub(calibrator)
        plain: Any = channel.unary_unary(PATH.decode())
        create: Any = channel.unary_unary("/llm_surgeon.v1.CoordinatorService/CreateRun")
        nothing: Any = channel.unary_unary("/llm_surgeon.v1.CoordinatorService/Explode")
        ours = (("authorization", f"Bearer {self.cluster.token}"),)
        wrong = (("authorization", f"Bearer {secrets.token_hex(16)}"),)
        usual: dict[str, Any] = {"metadata": ours, "timeout": 30}
        bad_spec = run_spec("", ["x"], "y", target_size=1.5, multiple_of=0, eval_data=["\0"] * 50)
        unknown: dict[str, Any] = {"name": "runs/r-0000000000000000"}

        def any_of(*calls: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
            return lambda: random.choice(calls)()

        async def drained(stream: Any) -> None:
            async for _ in stream:
                pass

        def on(calls: list[tuple[Any, Any]], fields: dict[str, Any]) -> Callable[[], Awaitable[object]]:
            return any_of(*(lambda call=call, kind=kind: call(kind(**fields), **usual) for call, kind in calls))

        by_name: list[tuple[Any, Any]] = [
            (public.GetRun, messages.GetRunRequest), (public.CancelRun, messages.CancelRunRequest),
            (public.PauseRun, messages.PauseRunRequest), (public.ResumeRun, messages.ResumeRunRequest),
            (public.DeleteRun, messages.DeleteRunRequest), (public.GetRunReport, messages.GetRunReportRequest),
        ]
        watch = lambda: drained(public.WatchRun(messages.WatchRunRequest(**unknown), **usual))  # noqa: E731
        bad_names = ("", "runs/", "runs/../../etc/passwd", "runs/" + "x" * 100_000, "workers/a", "runs/\u2028")
        held: dict[str, Any] = {"worker": "calibrator", "task_id": "r-0-00000001", "generation": 7}
        self.kinds = {
            "spec with faults": ({"INVALID_ARGUMENT SPEC_INVALID"},
                                 lambda: public.CreateRun(messages.CreateRunRequest(spec=bad_spec), **usual)),
            "no spec": ({"INVALID_ARGUMENT MESSAGE_INVALID"},
                        lambda: public.CreateRun(messages.CreateRunRequest(request_id="a"), **usual)),
            "unknown run": ({"NOT_FOUND RUN_NOT_FOUND"}, any_of(on(by_name, unknown), watch)),
            "bad name": ({"INVALID_ARGUMENT MESSAGE_INVALID"}, lambda: on(by_name, {"name": random.choice(bad_names)})()),
            "no token": ({"UNAUTHENTICATED UNAUTHENTICATED"},
                         lambda: public.ListRuns(messages.ListRunsRequest(), timeout=30)),
            "wrong token": ({"UNAUTHENTICATED UNAUTHENTICATED"},
                            any_of(lambda: public.ListRuns(messages.ListRunsRequest(), metadata=wrong, timeout=30),
                                   lambda: workers.LeaseTasks(work.LeaseTasksRequest(worker="calibrator"), metadata=wrong,
                                                              timeout=30))),
            "not a message": ({"INVALID_ARGUMENT", "INTERNAL"}, lambda: create(b"\x12" + random.randbytes(3000), **usual)),
            "unknown method": ({"UNIMPLEMENTED"}, lambda: nothing(b"", **usual)),
            "unknown worker": ({"NOT_FOUND WORKER_UNKNOWN"},
                               lambda: workers.LeaseTasks(work.LeaseTasksRequest(worker="stranger"), **usual)),
            "another version": ({"FAILED_PRECONDITION VERSION_MISMATCH"},
                                lambda: workers.RegisterWorker(work.RegisterWorkerRequest(
                                    worker="stranger", role=work.WORKER_ROLE_SURGEON, version="0.0.0"), **usual)),
            "unknown task": ({"NOT_FOUND TASK_UNKNOWN"},
                             any_of(lambda: workers.FailTask(work.FailTaskRequest(
                                        failure=work.FAILURE_CLASS_INTERNAL, message="x", **held), **usual),
                                    lambda: workers.ReleaseTask(work.ReleaseTaskRequest(**held), **usual),
                                    lambda: workers.CompleteTask(work.CompleteTaskRequest(
                                        calibrate=work.CalibrateResult(), **held), **usual))),
            "factors of nobody": ({"DEADLINE_EXCEEDED"},  # it waits 10 s for a sweep that may be about to begin
                                  lambda: drained(factors.StreamFactors(calibrator_messages.StreamFactorsRequest(
                                      run="r-0", shot=1, blocks=[0], generation=1), metadata=ours, timeout=0.2))),
        }
        over, large = named(65 * MIB), named(8 * MIB)
        too_large = {"OUT_OF_RANGE", "RESOURCE_EXHAUSTED"}
        self.large = {
            "message of 65 MiB": (too_large, lambda: plain(over, **usual)),
            "that without token": ({"UNAUTHENTICATED UNAUTHENTICATED"}, lambda: plain(over, timeout=30)),
            "name of 8 MiB": ({"INVALID_ARGUMENT MESSAGE_INVALID"}, lambda: plain(large, **usual)),
        }

    def expected(self) -> dict[str, set[str]]:
        calls = {kind: right for kind, (right, _) in (self.kinds | self.large).items()}
        return calls | {kind: {"closed"} for kind in NONSENSE}

    async def run(self, stop: asyncio.Event) -> None:
        self.open()
        held = [asyncio.create_task(self.hold(kind, stop)) for kind in HALF_OPEN for _ in range(40)]
        await asyncio.gather(*map(self.ask, self.kinds | self.large), *map(self.talk_nonsense, NONSENSE))  # each at least once
        hands = 16
        await asyncio.gather(*(self.hand(hands / self.rate, stop) for _ in range(hands)))
        await asyncio.gather(*held)
        for channel in self.channels:
            await channel.close()

    async def hand(self, pause: float, stop: asyncio.Event) -> None:
        while not stop.is_set():
            chance = random.random()
            if chance < self.LARGE_SHARE:
                await self.ask(random.choice(list(self.large)))
            elif chance < self.LARGE_SHARE + self.NONSENSE_SHARE:
                await self.talk_nonsense(random.choice(list(NONSENSE)))
            else:
                await self.ask(random.choice(list(self.kinds)))
            await asyncio.sleep(random.expovariate(1 / pause))

    async def ask(self, kind: str) -> None:
        try:
            await (self.kinds | self.large)[kind][1]()
            self.answers[kind]["OK"] += 1
        except grpc.RpcError as error:
            self.answers[kind][told(error)] += 1

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.cluster.targets["coordinator"].split(":")
        return await asyncio.open_connection(host, int(port))

    async def talk_nonsense(self, kind: str) -> None:
        answer = "held"
        reader, writer = await self.connect()
        try:
            writer.write(NONSENSE[kind]())
            async with asyncio.timeout(HELD):
                while await reader.read(1 << 16):
                    pass
            answer = "closed"
        except ConnectionError:
            answer = "closed"
        except TimeoutError:
            pass
        finally:
            writer.close()
        self.answers[kind][answer] += 1

    async def hold(self, kind: str, stop: asyncio.Event) -> None:
        """Opens a connection by halves, and notes after how long it was closed."""
        reader, writer = await self.connect()
        start = time.monotonic()
        closed = None
        try:
            writer.write(HALF_OPEN[kind])
            while not stop.is_set() or time.monotonic() - start < HELD:
                try:
                    async with asyncio.timeout(1):
                        if not await reader.read(1 << 16):
                            closed = time.monotonic() - start
                            break
                except TimeoutError:
                    continue
        except ConnectionError:
            closed = time.monotonic() - start
        finally:
            writer.close()
        self.held.append((kind, closed))


class Crowd:
    """Watchers and flood, on a thread of their own."""

    def __init__(self, cluster: Cluster, rate: float) -> None:
        self.flood = Flood(cluster, rate)
        self.watchers: list[Watcher] = []
        self.cluster = cluster
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.stop = asyncio.Event()
        self.flooding: Any = None
        self.following: list[Any] = []
        self.channels: list[Any] = []

    def start_flood(self) -> None:
        self.flooding = asyncio.run_coroutine_threadsafe(self.flood.run(self.stop), self.loop)

    def stop_flood(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.flooding.result(HELD + 60)

    def watch(self, runs: list[str], count: int) -> list[Watcher]:
        """Has so many watchers follow the runs, spread evenly."""
        new = [Watcher(runs[n % len(runs)]) for n in range(count)]
        asyncio.run_coroutine_threadsafe(self.open(new), self.loop).result(60)
        self.watchers += new
        return new

    async def open(self, watchers: list[Watcher]) -> None:
        metadata = (("authorization", f"Bearer {self.cluster.token}"),)
        for start in range(0, len(watchers), STREAMS):
            # A pool of its own gives each channel a connection of its own.
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(self.cluster.targets["coordinator"], options)
            self.channels.append(channel)
            stub = stubs.CoordinatorServiceStub(channel)
            for watcher in watchers[start : start + STREAMS]:
                self.following.append(asyncio.create_task(watcher.follow(stub, metadata)))

    def pass_by(self, runs: list[str], count: int) -> None:
        """Has so many watch for a moment and hang up."""

        async def look() -> None:
            channels, following = self.channels, self.following
            self.channels, self.following = [], []
            await self.open([Watcher(runs[n % len(runs)]) for n in range(count)])
            await asyncio.sleep(3)
            for channel in self.channels:
                await channel.close()
            await asyncio.wait(self.following)
            self.channels, self.following = channels, following

        asyncio.run_coroutine_threadsafe(look(), self.loop).result(120)

    def close(self) -> None:
        """Waits for the watchers' ends and hangs up."""

        async def end() -> None:
            await asyncio.wait(self.following, timeout=60)
            for channel in self.channels:
                await channel.close()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(120)


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Ran:
    """One run that has ended."""

    name: str
    number: int
    state: int
    records: int
    created: float
    ended: float
    journal_bytes: int
    seconds: float = 0.0


class Runs:
    """Submits small runs and looks at how they ended."""

    PARALLEL = 2

    def __init__(self, cluster: Cluster, client: Client, model: str, text: pathlib.Path, delete: bool) -> None:
        self.cluster, self.client, self.model, self.text, self.delete = cluster, client, model, text, delete
        self.count = 0
        self.ended: list[Ran] = []
        self.weights: dict[tuple[int, float], set[str]] = collections.defaultdict(set)

    def parameters(self, number: int) -> tuple[int, float]:
        return 4 + number % 5, (0.7, 0.8, 0.9)[number // 5 % 3]

    def submit(self, count: int) -> list[tuple[str, int]]:
        submitted = []
        for number in range(self.count, self.count + count):
            samples, size = self.parameters(number)
            spec = run_spec(
                self.model, [str(self.text / "calibration")], str(self.cluster.folder / "out" / str(number)), target_size=size,
                samples=samples, seq_len=64, shots=1, multiple_of=1,
            )
            submitted.append((self.client.submit(spec).name, number))
        self.count += count
        return submitted

    def finish(self, submitted: list[tuple[str, int]]) -> None:
        """Waits for runs, then looks at each once."""
        for name, _ in submitted:
            self.client.wait(name)
        for name, number in submitted:
            self.ended.append(self.look_at(name, number))
            output = self.cluster.folder / "out" / str(number)
            if (output / "model.safetensors").is_file():
                digest = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
                self.weights[self.parameters(number)].add(digest)
            shutil.rmtree(output, ignore_errors=True)
            if self.delete:
                self.client.delete(name)

    def look_at(self, name: str, number: int) -> Ran:
        records, state = [], 0
        for event in self.client.watch(name):
            if event.record is not None:
                records.append(event.record)
            if event.ended is not None:
                state = event.ended.state
        journal = self.cluster.folder / "store" / name / "journal"
        size = sum(path.stat().st_size for path in journal.iterdir())
        times = [record["time_ms"] / 1e3 for record in records]
        return Ran(name, number, state, len(records), times[0], times[-1], size)

    def batches(self, count: int) -> Iterator[int]:
        """Runs so many, in batches; says after each how many have ended in all."""
        for done in range(0, count, BATCH):
            self.finish(self.submit(min(BATCH, count - done)))
            yield len(self.ended)

    def note_times(self) -> None:
        """Works out how long each took from its turn on: the first come is the first served, and so many run at a time."""
        free = [0.0] * self.PARALLEL
        for run in sorted(self.ended, key=lambda run: run.created):
            start = max(run.created, heapq.heappop(free))
            run.seconds = run.ended - start
            heapq.heappush(free, run.ended)


def slope(points: list[tuple[int, int]]) -> float:
    """Returns the bytes that a run adds, by least squares."""
    if len(points) < 3:
        return 0.0
    return statistics.linear_regression([n for n, _ in points], [size for _, size in points]).slope


# ---- the whole -------------------------------------------------------------------------------------------------------


class Checks:
    def __init__(self) -> None:
        self.failed: list[str] = []

    def __call__(self, right: bool, claim: str) -> None:
        print(f"  {'ok    ' if right else 'FAILED'}  {claim}", flush=True)
        if not right:
            self.failed.append(claim)


def soak(cluster: Cluster, arguments: argparse.Namespace) -> list[str]:
    client = cluster.client()
    while len(client.workers()) < 2:
        time.sleep(0.1)
    runs = Runs(cluster, client, arguments.model, pathlib.Path(arguments.text), arguments.delete)
    crowd = Crowd(cluster, arguments.rate)
    table: list[tuple[str, int, dict[str, Usage]]] = []
    points: dict[str, list[tuple[int, int]]] = {"quiet": [], "flood": [], "after": []}

    def measure(phase: str) -> dict[str, Usage]:
        usage = cluster.usage()
        table.append((phase, len(runs.ended), usage))
        print(f"soak: {phase}: {len(runs.ended)} runs ended, coordinator {usage['coordinator'].resident / MIB:.1f} MiB", flush=True)
        return usage

    def quietly(count: int, phase: str) -> None:
        for ended in runs.batches(count):
            points[phase].append((ended, cluster.usage()["coordinator"].resident))

    def flooded_so_far(submitted: list[tuple[str, int]]) -> None:
        for start in range(0, len(submitted), BATCH):
            runs.finish(submitted[start : start + BATCH])
            points["flood"].append((len(runs.ended), cluster.usage()["coordinator"].resident))

    total = arguments.runs
    warm, before = max(4, total // 10), total * 3 // 10
    flooded = total * 4 // 10
    watched = max(2, flooded // 4)
    after = total - warm - before - flooded
    measure("start")
    for _ in runs.batches(warm):
        pass
    warmed = measure("warm-up")
    quietly(before, "quiet")
    quiet = measure("quiet")
    points["quiet"].insert(0, (warm, warmed["coordinator"].resident))

    # The last of these wait longest: they are who is watched.
    cluster.forget_peaks()
    submitted = runs.submit(flooded)
    waiting, queued = submitted[:-watched], submitted[-watched:]
    watchers = crowd.watch([name for name, _ in queued], arguments.watchers)
    time.sleep(5)
    measure("watched")

    # Without a surgeon nothing moves, neither runs under way nor those that wait for them.
    cluster.drain("surgeon")
    under_way = [run.name for run in client.runs() if run.state == run_pb2.RUN_STATE_RUNNING]
    close_watchers = crowd.watch(under_way, 10)
    left = []
    for _ in range(TIMES):
        crowd.pass_by(under_way, PASSERS_BY)
        time.sleep(NOTICED)
        left.append(cluster.usage()["coordinator"].resident)
    measure("standing still")
    alive = sum(w.alive for w in watchers)
    check_ids = overlong_ids(cluster, client.run(queued[0][0]).spec)
    crowd.start_flood()
    time.sleep(5)
    cluster.drain("surgeon", undo=True)
    half = len(waiting) // 2
    flooded_so_far(waiting[:half])
    measure("flooded, watched")

    # Whoever watches a run that is paused is told; resumed, it goes to the end of the queue.
    paused = queued[-1][0]
    told_of_pause = [w for w in watchers if w.run == paused]
    client.pause(paused)
    time.sleep(2)
    client.resume(paused)
    again = crowd.watch([paused], len(told_of_pause))
    flooded_so_far(waiting[half:])
    runs.finish(queued)
    measure("watched runs over")
    crowd.stop_flood()
    crowd.close()
    over = measure("flood over")
    quietly(after, "after")
    client.close()
    time.sleep(12)  # idle threads go
    end = measure("end")
    runs.note_times()
    return report(runs, crowd, table, points, {
        "warmed": warmed, "quiet": quiet, "over": over, "end": end, "ids": check_ids, "alive": alive, "idle": len(watchers),
        "told_of_pause": told_of_pause, "close": close_watchers, "left": left, "sizes": (warm, before, flooded), "cluster": cluster,
    })


def overlong_ids(cluster: Cluster, spec: run_pb2.RunSpec) -> collections.Counter[str]:
    """Asks again for a run that there is, under request ids of 1 MiB, which are remembered if they are taken."""
    answers: collections.Counter[str] = collections.Counter()
    with grpc.insecure_channel(cluster.targets["coordinator"]) as channel:
        stub, metadata = stubs.CoordinatorServiceStub(channel), (("authorization", f"Bearer {cluster.token}"),)
        for _ in range(8):
            try:
                request = messages.CreateRunRequest(request_id=secrets.token_hex(MIB // 2), spec=spec)
                stub.CreateRun(request, metadata=metadata, timeout=30)
                answers["OK"] += 1
            except grpc.RpcError as error:
                answers[told(error)] += 1
    return answers


def report(runs: Runs, crowd: Crowd, table: list[Any], points: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    check = Checks()
    warm, before, flooded = seen["sizes"]
    start, end = seen["warmed"]["coordinator"], seen["end"]["coordinator"]

    print(f"\n{'':22}{'runs':>6}" + "".join(f"{name + ' MiB, files, threads':>36}" for name in SERVICES))
    for phase, ended, usage in table:
        cells = "".join(f"{u.resident / MIB:>20.1f}{u.files:>8}{u.threads:>8}" for u in usage.values())
        print(f"{phase:22}{ended:>6}{cells}")

    ordered = sorted(runs.ended, key=lambda run: run.created)
    phases = {"warm-up": ordered[:warm], "quiet": ordered[warm : warm + before],
              "flooded": ordered[warm + before : warm + before + flooded], "after": ordered[warm + before + flooded :]}
    medians = {phase: statistics.median(run.seconds for run in part) for phase, part in phases.items() if part}
    print("\nseconds a run, median: " + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in medians.items()))
    # Against before and after: other work on the machine may have slowed down either.
    ratios = {phase: medians["flooded"] / medians[phase] for phase in ("quiet", "after")}

    added = {phase: slope(part) for phase, part in points.items()}
    journal = statistics.mean(run.journal_bytes for run in runs.ended)
    print(f"journal of a run: {journal / 1024:.1f} KiB; the coordinator grows by KiB a run: "
          + ", ".join(f"{phase} {size / 1024:.1f}" for phase, size in added.items()))

    flood = crowd.flood
    print("\nbad requests and what was answered:")
    for kind, answers in sorted(flood.answers.items()):
        print(f"  {kind:24}" + ", ".join(f"{count} × {answer}" for answer, count in answers.most_common()))
    print("connections opened by halves, closed by the coordinator, after seconds:")
    held: dict[str, list[float | None]] = collections.defaultdict(list)
    for kind, closed in flood.held:
        held[kind].append(closed)
    for kind, all_closed in held.items():
        times = [t for t in all_closed if t is not None]
        print(f"  {kind:24}{len(times)} of {len(all_closed)}" + (f", {min(times):.0f} to {max(times):.0f} s" if times else ""))

    print()
    names = {run.name: run for run in runs.ended}
    check(len(names) == runs.count == len(runs.ended), f"{runs.count} runs, each of its own")
    lost = [run.name for run in runs.ended if run.state != SUCCEEDED]
    check(not lost, f"all succeeded{': not ' + ', '.join(lost[:5]) if lost else ''}")
    several = [key for key, digests in runs.weights.items() if len(digests) != 1]
    check(not several, f"runs of equal settings gave equal weights, flooded or not ({len(runs.weights)} settings)")

    grown = end.resident - start.resident
    calm_growth = seen["quiet"]["coordinator"].resident - start.resident + end.resident - seen["over"]["coordinator"].resident
    left_by_flood = grown - calm_growth
    calm_runs = len(runs.ended) - warm - flooded
    kept = 0 if runs.delete else KEPT_A_RUN
    bound = kept * calm_runs + LEFT_BEHIND
    deleted = " that were deleted" if runs.delete else ""
    check(calm_growth <= bound, f"the coordinator grew by {calm_growth / MIB:.1f} MiB in {calm_runs} quiet runs{deleted}, "
          f"{bound / MIB:.1f} at most: {kept >> 10} KiB a run and {LEFT_BEHIND / MIB:.0f} MiB")
    bound = kept * flooded + LEFT_BY_FLOOD
    check(left_by_flood <= bound, f"and by {left_by_flood / MIB:.1f} MiB in {flooded} runs with watchers and flood, "
          f"{bound / MIB:.1f} at most")
    if runs.delete:
        left = [path.name for path in (seen["cluster"].folder / "store" / "runs").glob("*") if any(path.rglob("*"))]
        check(not left, f"nothing of deleted runs is in the store ({len(left)} left)")
    peak = max(usage["coordinator"].peak for _, _, usage in table[3:])
    check(peak <= PEAK, f"its peak in the flood was {peak / MIB:.1f} MiB, {PEAK / MIB:.0f} at most")
    for name in SERVICES[1:]:
        size = seen["end"][name].resident - seen["warmed"][name].resident
        check(size <= GROWTH_WORKER, f"the {name} grew by {size / MIB:.1f} MiB, {GROWTH_WORKER / MIB:.0f} at most")
    for name in SERVICES:
        first, last = seen["warmed"][name], seen["end"][name]
        check(last.files <= first.files + 8 and last.threads <= first.threads + 8,
              f"the {name} has {last.files} open files ({first.files} after warm-up) and {last.threads} threads ({first.threads})")

    watchers, paused = crowd.watchers, {id(w) for w in seen["told_of_pause"]}
    check(seen["alive"] == seen["idle"], f"{seen['alive']} of {seen['idle']} watchers waited on queued runs")
    check(all(w.state == PAUSED for w in seen["told_of_pause"]), f"{len(paused)} whose run was paused were told so")
    others = [w for w in watchers if id(w) not in paused]
    whole = [w for w in others if w.state == SUCCEEDED and not w.fault and w.records == names[w.run].records]
    faults = collections.Counter(w.fault or f"state {w.state}, {w.records} records" for w in others if w not in whole)
    check(len(whole) == len(others), f"{len(whole)} of {len(others)} watchers had every record once and the run's end "
          f"{dict(faults) or ''}")
    near = {id(w) for w in seen["close"]}
    silence = max((w.longest_silence for w in watchers if id(w) not in near), default=0.0)
    beats = sum(w.heartbeats for w in watchers)
    check(silence <= SILENCE, f"who watched queued runs heard something every {silence:.1f} s at least ({beats} heartbeats)")
    silent = max((w.longest_silence for w in seen["close"]), default=0.0)
    check(silent <= SILENCE, f"so did who watched a run that stood still: every {silent:.1f} s at least")

    more = (seen["left"][-1] - seen["left"][FIRST_TIMES - 1]) / MIB
    check(more <= LEFT_BY_PASSERS_BY / MIB, f"{PASSERS_BY} who watched that run and hung up left nothing behind: "
          f"{more:.1f} MiB more after {TIMES - FIRST_TIMES} times that many again")
    check(set(seen["ids"]) == {"INVALID_ARGUMENT MESSAGE_INVALID"}, f"request ids of 1 MiB are refused {dict(seen['ids'])}")
    expected = flood.expected()
    wrong = {kind: set(answers) - expected[kind] for kind, answers in flood.answers.items() if set(answers) - expected[kind]}
    refusals = sum(sum(answers.values()) for answers in flood.answers.values())
    check(not wrong and refusals > 0, f"{refusals} bad requests were all refused as they should be {wrong or ''}")
    never = [kind for kind in expected if kind not in flood.answers]
    check(not never, f"every kind of them came {never or ''}")
    open_still = collections.Counter(kind for kind, closed in flood.held if closed is None or closed > HELD)
    check(not open_still, f"half-open connections were closed within {HELD:.0f} s {dict(open_still) or ''}")
    check(min(ratios.values()) <= SLOWER, f"a run took {ratios['quiet']:.2f} × as long in the flood as before it, "
          f"{ratios['after']:.2f} × as long as after it; {SLOWER} × at most against one of them")
    said = [line for name in SERVICES for line in seen["cluster"].said(name).splitlines() if re.search(r"panicked|\bERROR\b", line)]
    check(not said, f"no service logged an error or a panic {said[:3] or ''}")

    print(json.dumps({
        "runs": len(runs.ended), "watchers": len(watchers), "deleted": runs.delete,
        "resident_mib": {phase: {name: round(u.resident / MIB, 1) for name, u in usage.items()} for phase, _, usage in table},
        "coordinator_growth_mib": {"quiet": round(calm_growth / MIB, 1), "flood": round(left_by_flood / MIB, 1)},
        "coordinator_peak_mib": round(peak / MIB, 1), "passers_by_mib": round(more, 1),
        "kib_a_run": {phase: round(size / 1024, 1) for phase, size in added.items()}, "journal_kib_a_run": round(journal / 1024, 1),
        "files": {name: usage.files for name, usage in seen["end"].items()},
        "threads": {name: usage.threads for name, usage in seen["end"].items()},
        "coordinator_cpu_seconds": round(end.cpu, 1), "seconds_a_run": {p: round(s, 3) for p, s in medians.items()},
        "flood_ratio": {name: round(ratio, 2) for name, ratio in ratios.items()}, "refusals": refusals,
        "longest_silence_s": round(silence, 1), "failed": check.failed,
    }))
    return check.failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="?", default=200)
    parser.add_argument("--watchers", type=int, default=1000, metavar="N", help="streams that follow queued runs")
    parser.add_argument("--rate", type=float, default=100.0, metavar="CALLS", help="bad requests a second")
    parser.add_argument("--delete", action="store_true", help="delete every run once it has ended")
    parser.add_argument("--keep", metavar="FOLDER", help="leave store and logs there")
    parser.add_argument("--programs", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--model", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--text", required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.runs < 20:
        parser.error("at least 20 runs")
    limit = 900 + 20 * arguments.runs
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"soak: error: not over within {limit} s"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.alarm(limit)
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = pathlib.Path(arguments.keep or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        cluster = Cluster(pathlib.Path(arguments.programs), folder)
        try:
            failed = soak(cluster, arguments)
        finally:
            cluster.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
