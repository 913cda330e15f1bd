#!/usr/bin/env python3
"""Measures what telemetry costs a sweep: none, a collector that takes it, one that never answers, one that is not there.

Three services a case, all cases in turns, the same runs in each; prints medians of the sweeps' seconds (without waiting for
a surgeon) as the journal has them, and their ratio to no telemetry. Spans and metrics are exported far more often than
usual (twice a second).

    scripts/bench_telemetry.py --programs FOLDER --collector rotel-agent --model FOLDER --text FOLDER [--repeat 5]
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

EXPORT = {"OTEL_BSP_SCHEDULE_DELAY": "500", "OTEL_METRIC_EXPORT_INTERVAL": "500"}


def free_port():
    """Returns a port of this host that nobody has."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def sweep_seconds(store):
    """Returns how long the sweeps of a store's runs took, without waiting."""
    records = [json.loads(path.read_text())["record"] for path in store.glob("runs/*/journal/*")]
    swept = [record["seconds"] for record in records if record["event"] == "shard-calibrated"]
    return sum(seconds["total"] - seconds["wait"] for seconds in swept)


def measure(options, work, endpoint):
    """Returns the seconds of the sweeps of one run with telemetry to `endpoint`, or without any."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    variables = {**os.environ, **(EXPORT | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {})}
    coordinator = f"unix://{work}/coordinator.sock"
    services = []
    try:
        for name in ("coordinator", "calibrator", "surgeon"):
            command = [options.programs / name, "--store", work / "store", "--listen", f"unix://{work}/{name}.sock"]
            if name != "coordinator":
                command += ["--coordinator", coordinator, "--device", "cpu", "--threads", "1"]
            log = open(work / f"{name}.log", "w")
            services.append(subprocess.Popen([str(word) for word in command], env=variables, stderr=log))
        client = [options.programs / "llm-surgeon", "submit", options.model, "--coordinator", coordinator, "--data", options.text]
        client += ["--samples", options.samples, "--seq-len", options.seq_len, "--shots", options.shots, "--multiple-of", 1, "--shot-data", "same"]
        client += ["--target-size", 0.8, "--out", work / "out", "--follow", "--quiet"]
        time.sleep(1)
        subprocess.run([str(word) for word in client], check=True, stdout=subprocess.DEVNULL)
    finally:
        for service in services:
            service.terminate()
        for service in services:
            service.wait()
    return sweep_seconds(work / "store")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder of the built programs")
    parser.add_argument("--collector", required=True, help="rotel-agent")
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--shots", type=int, default=6)
    options = parser.parse_args()
    port, http, dead = free_port(), free_port(), free_port()
    silent = socket.create_server(("127.0.0.1", 0), backlog=128)  # takes connections, never reads or answers
    collector = [options.collector, "start", "--exporter", "blackhole", "--otlp-grpc-endpoint", f"127.0.0.1:{port}"]
    collector += ["--otlp-http-endpoint", f"127.0.0.1:{http}"]
    cases = {
        "none": None,
        "taken": f"http://127.0.0.1:{port}",
        "never answered": f"http://127.0.0.1:{silent.getsockname()[1]}",
        "not there": f"http://127.0.0.1:{dead}",
    }
    taken = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        agent = subprocess.Popen(collector, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for turn in range(options.repeat):
                for case, endpoint in cases.items():
                    taken[case].append(measure(options, pathlib.Path(folder) / "run", endpoint))
                print(f"  turn {turn + 1}: " + ", ".join(f"{case} {seconds[-1]:.2f} s" for case, seconds in taken.items()), file=sys.stderr)
        finally:
            agent.terminate()
    print("| telemetry | sweeps, median | against none, median of the turns |\n|---|---|---|")
    for case, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, taken["none"], strict=True))
        print(f"| {case} | {statistics.median(seconds):.2f} s | × {ratio:.3f} |")


if __name__ == "__main__":
    main()
