#!/usr/bin/env python3
"""Hosts of their own: a coordinator, two calibrators, two surgeons and a caller, each in a network namespace with an address,
mTLS between them and a store that all share. While a run goes on hosts are cut off from the others and come back; the run
must end with what one process gives, to the byte.

    sudo scripts/hosts.sh [--rounds N] [--seconds S] [--cut silent|unplugged] [--shots N] [--netem 'delay 5ms loss 0.5%']

A silent cut drops every frame in the switch, so that nobody is told; an unplugged host sees that its cable is dead. Prints
what happened in each cut and a line of JSON; exits with 1 if a check failed. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

NETWORK = "10.203.77"
PREFIX = "llm-surgeon-"
# Hosts and the last part of their addresses.
HOSTS = {"coordinator": 1, "calibrator-0": 11, "calibrator-1": 12, "surgeon-0": 21, "surgeon-1": 22, "caller": 99}
PORT = 7100
# Longest time that anything is waited for, in seconds.
PATIENCE = 600.0
# From the end of a cut to the next record: connections are probed for 30 s, calls are repeated after up to 10 s.
RECOVERY = 90.0


def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit(f"hosts: error: {' '.join(str(word) for word in words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done


# ---- the network -----------------------------------------------------------------------------------------------------


class Network:
    """Hosts on one switch. The switch is a namespace as well: nothing is left outside of them."""

    def __init__(self) -> None:
        self.switch = self.namespace("switch")

    def namespace(self, host: str) -> str:
        return f"{PREFIX}{os.getpid()}-{host}"

    def address(self, host: str) -> str:
        return f"{NETWORK}.{HOSTS[host]}"

    def port(self, host: str) -> str:
        """Returns the name of a host's cable at the switch."""
        return f"port{HOSTS[host]}"

    def build(self) -> None:
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge", "stp_state", "0")
        run("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for host in HOSTS:
            namespace, port = self.namespace(host), self.port(host)
            run("ip", "netns", "add", namespace)
            run("ip", "link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", port, "netns", self.switch)
            run("ip", "-n", self.switch, "link", "set", port, "master", "bridge", "up")
            run("ip", "-n", namespace, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")
            run("ip", "-n", namespace, "link", "set", "lo", "up")

    def slow_down(self, netem: str) -> str:
        """Adds latency and loss at every port; returns what is wrong if the kernel cannot."""
        for host in HOSTS:
            words = ["tc", "-n", self.switch, "qdisc", "add", "dev", self.port(host), "root", "netem", *netem.split()]
            added = run(*words, check=False)
            if added.returncode != 0:
                return added.stderr.strip()
        return ""

    def cut(self, host: str, kind: str) -> None:
        if kind == "silent":
            run("bridge", "-n", self.switch, "link", "set", "dev", self.port(host), "state", "0")
        else:
            run("ip", "-n", self.switch, "link", "set", self.port(host), "down")

    def heal(self, host: str, kind: str) -> None:
        if kind == "silent":
            run("bridge", "-n", self.switch, "link", "set", "dev", self.port(host), "state", "3")
        else:
            run("ip", "-n", self.switch, "link", "set", self.port(host), "up")

    def reaches(self, host: str, other: str) -> bool:
        """Says whether one host can open a connection to another's service."""
        probe = f"import socket; socket.create_connection(('{self.address(other)}', {PORT}), 2).close()"
        return run("ip", "netns", "exec", self.namespace(host), sys.executable, "-c", probe, check=False).returncode == 0

    @staticmethod
    def remove(owner: int) -> None:
        """Ends what runs in a process's namespaces and removes them; cables go with them."""
        listed = run("ip", "netns", "list", check=False).stdout.split("\n")
        for namespace in (line.split()[0] for line in listed if line.startswith(f"{PREFIX}{owner}-")):
            for pid in run("ip", "netns", "pids", namespace, check=False).stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            run("ip", "netns", "delete", namespace, check=False)

    @classmethod
    def remove_leftovers(cls) -> None:
        """Removes the namespaces of processes that were killed before they could."""
        for owner in {int(n) for n in re.findall(rf"^{PREFIX}(\d+)-", run("ip", "netns", "list").stdout, re.MULTILINE)}:
            if not pathlib.Path(f"/proc/{owner}").exists():
                cls.remove(owner)


class Certificates:
    """An authority, and a certificate for each host's address, good for callers and services."""

    def __init__(self, folder: pathlib.Path, hosts: dict[str, str]) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        run("openssl", "req", "-x509", *curve, "-days", 2, "-subj", f"/CN=authority of {folder.name}",
            "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
        for host, address in hosts.items():
            extensions = folder / f"{host}.ext"
            extensions.write_text(
                f"subjectAltName=DNS:{host},IP:{address}\nbasicConstraints=critical,CA:FALSE\n"
                "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
            )
            run("openssl", "req", "-new", *curve, "-subj", f"/CN={host}",
                "-keyout", folder / f"{host}.key", "-out", folder / f"{host}.csr")
            run("openssl", "x509", "-req", "-in", folder / f"{host}.csr", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key",
                "-CAcreateserial", "-days", 2, "-extfile", extensions, "-out", folder / f"{host}.pem")

    def flags(self, host: str, ca: pathlib.Path | None = None) -> list[str]:
        own, key = self.folder / f"{host}.pem", self.folder / f"{host}.key"
        return ["--tls-cert", str(own), "--tls-key", str(key), "--tls-ca", str(ca or self.folder / "ca.pem")]


# ---- the services ----------------------------------------------------------------------------------------------------


class Hosts:
    """The programs, each on its host."""

    def __init__(self, network: Network, folder: pathlib.Path, programs: pathlib.Path) -> None:
        self.network, self.folder, self.programs = network, folder, programs
        self.store = folder / "store"
        self.certificates = Certificates(folder / "tls", {host: network.address(host) for host in HOSTS})
        self.strangers = Certificates(folder / "strangers", {"caller": network.address("caller")})
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def url(self, host: str) -> str:
        return f"https://{self.network.address(host)}:{PORT}"

    def start(self, host: str) -> None:
        program = host.split("-")[0]
        words = [self.programs / program, "--store", self.store, "--listen", f"{self.network.address(host)}:{PORT}"]
        words += self.certificates.flags(host)
        if program != "coordinator":
            words += ["--coordinator", self.url("coordinator"), "--advertise", self.url(host), "--worker", host]
            words += ["--device", "cpu", "--threads", "1"]
        with open(self.log(host), "ab") as log:
            self.running[host] = self.on(host, words, stderr=log)

    def on(self, host: str, words: list[Any], **others: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["ip", "netns", "exec", self.network.namespace(host), *map(str, words)], **others)

    def client(self, *words: object, flags: list[str] | None = None) -> list[str]:
        program, *rest = words
        command = [str(self.programs / "llm-surgeon"), str(program), "--coordinator", self.url("coordinator")]
        return command + (flags if flags is not None else self.certificates.flags("caller")) + [str(word) for word in rest]

    def ask(self, *words: object, flags: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        return run("ip", "netns", "exec", self.network.namespace("caller"), *self.client(*words, flags=flags), check=False)

    def workers(self) -> dict[str, int]:
        """Returns the workers that the coordinator knows, with how many tasks each holds."""
        lines = [json.loads(line) for line in self.ask("workers", "--json").stdout.splitlines()]
        return {line["worker"].removeprefix("workers/"): line["tasks"] for line in lines}

    def log(self, host: str) -> pathlib.Path:
        return self.folder / f"{host}.log"

    def said(self, host: str) -> str:
        return self.log(host).read_text(errors="replace")

    def records(self) -> int:
        """Returns how many journal records there are. The store writes under another name first."""
        return sum(path.name.isdigit() for path in self.store.glob("runs/*/journal/*"))

    def check_alive(self) -> None:
        for host, process in self.running.items():
            if process.poll() is not None:
                raise SystemExit(f"hosts: error: {host} has ended with {process.returncode}:\n{self.said(host)[-3000:]}")

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def digest(folder: pathlib.Path) -> str:
    """Returns a digest over the names and contents of all files, but for report.html, which tells times."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "report.html"):
        content = path.read_bytes()
        whole.update(str(path.relative_to(folder)).encode() + b"\0" + len(content).to_bytes(8, "little") + content)
    return whole.hexdigest()


# ---- the test --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Cut:
    """One host that was away for a while."""

    host: str
    tasks: int
    before: int
    during: int = 0
    recovered: float = 0.0
    expired: int = 0


class Checks:
    def __init__(self) -> None:
        self.failed: list[str] = []

    def __call__(self, right: bool, claim: str) -> None:
        print(f"  {'ok    ' if right else 'FAILED'}  {claim}", flush=True)
        if not right:
            self.failed.append(claim)


def say(text: str) -> None:
    print(f"hosts: {text}", flush=True)


def wait_for(what: str, look: Any, patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"hosts: error: {what} did not come within {patience:.0f} s")
        time.sleep(0.05)
    return found


def cut_off(hosts: Hosts, kind: str, role: str, seconds: float, follower: subprocess.Popen[bytes], check: Checks) -> Cut:
    """Cuts off a host of a kind that is at work, heals it, and waits for the run to move on."""
    if role == "coordinator":
        host, tasks = role, 0
    else:
        # Whoever holds a task has something to lose.
        busy = wait_for(f"a {role} at work", lambda: follower.poll() is not None or next(
            ((host, tasks) for host, tasks in hosts.workers().items() if host.startswith(role) and tasks > 0), None))
        if busy is True:
            raise SystemExit(f"hosts: error: the run ended before a {role} was cut off; give it more --shots")
        host, tasks = busy
    hosts.check_alive()
    cut = Cut(host, tasks, hosts.records())
    expired = hosts.said("coordinator").count("lease expired")
    hosts.network.cut(host, kind)
    start = time.monotonic()
    check(not hosts.network.reaches("caller", host), f"{host}, which holds {tasks} tasks, is cut off")
    time.sleep(max(0.0, start + seconds - time.monotonic()))
    cut.during = hosts.records() - cut.before
    ended = follower.poll() is not None
    hosts.network.heal(host, kind)
    healed, after = time.monotonic(), hosts.records()
    if ended:
        raise SystemExit(f"hosts: error: the run ended while {host} was away; give it more --shots")
    wait_for(f"a record after the return of {host}", lambda: follower.poll() is not None or hosts.records() > after, RECOVERY * 3)
    cut.recovered = time.monotonic() - healed
    cut.expired = hosts.said("coordinator").count("lease expired") - expired
    check(hosts.network.reaches("caller", host), f"{host} is back; {cut.during} records came in {seconds:.0f} s without it, "
          f"{cut.expired} leases expired, the next record {cut.recovered:.1f} s after its return")
    return cut


def test(hosts: Hosts, arguments: argparse.Namespace) -> list[str]:
    check = Checks()
    network = hosts.network
    output = hosts.folder / "pruned"
    flags = ["--data", f"{arguments.text}/calibration", "--eval-data", f"{arguments.text}/heldout", "--eval-samples", "8",
             "--samples", "96", "--seq-len", "128", "--shards", "4", "--shots", str(arguments.shots), "--target-size", "0.6",
             "--multiple-of", "1", "--out", str(output)]
    say(f"one process, {arguments.shots} shots")
    start = time.monotonic()
    run(hosts.programs / "llm-surgeon", "prune", arguments.model, *flags, "--device", "cpu", "--threads", "1", "--quiet")
    alone = time.monotonic() - start
    expected = digest(output)
    shutil.rmtree(output)

    network.build()
    shaped = network.slow_down(arguments.netem) if arguments.netem else "not asked for"
    if arguments.netem and shaped:
        say(f"no latency and no loss: the kernel has no netem ({shaped})")
    for host in HOSTS:
        if host != "caller":
            hosts.start(host)
    wait_for("four workers", lambda: len(hosts.workers()) == 4, 60)
    hosts.check_alive()
    say(f"six hosts, mTLS{', ' + arguments.netem if arguments.netem and not shaped else ''}")
    nobody = hosts.ask("list", flags=["--tls-ca", str(hosts.certificates.folder / "ca.pem")])
    refused = nobody.returncode != 0 and "wants a client certificate" in nobody.stderr
    check(refused, f"who shows no certificate is refused: {nobody.stderr.strip()[:100]}")
    stranger = hosts.ask("list", flags=hosts.strangers.flags("caller", hosts.certificates.folder / "ca.pem"))
    check(stranger.returncode != 0, f"so is who shows another authority's: {stranger.stderr.strip()[:100]}")

    cuts = []
    start = time.monotonic()
    with open(hosts.log("caller"), "wb") as log:
        submit = hosts.client("submit", arguments.model, *flags, "--follow")
        follower = hosts.on("caller", submit, stdout=subprocess.DEVNULL, stderr=log)
    wait_for("the first shot", lambda: hosts.records() > 10 or follower.poll() is not None)
    for _ in range(arguments.rounds):
        for role in ("calibrator", "surgeon", "coordinator"):
            say(f"cutting off a {role}" if role != "coordinator" else "cutting off the coordinator")
            cuts.append(cut_off(hosts, arguments.cut, role, arguments.seconds, follower, check))
    wait_for("the end of the run", lambda: follower.poll() is not None)
    took = time.monotonic() - start
    hosts.check_alive()

    said = hosts.said("caller").strip()[-200:] if follower.returncode else ""
    check(follower.returncode == 0, f"the run ended well, and with it who followed it through {len(cuts)} cuts {said}")
    found = digest(output) if output.is_dir() else "no folder"
    check(found == expected, f"{found[:16]} is what one process gave ({expected[:16]})")
    slow = [cut for cut in cuts if cut.recovered > RECOVERY]
    check(not slow, f"after each cut the run moved on within {RECOVERY:.0f} s {slow or ''}")
    lines = [f"{host}: {line}" for host in hosts.running for line in hosts.said(host).splitlines()]
    faults = [line for line in lines if re.search(r"panicked|\bERROR\b", line)]
    check(not faults, f"no service logged an error or a panic {faults[:3] or ''}")
    print(f"\n{'cut off':16}{'tasks':>8}{'records before':>16}{'during':>8}{'leases expired':>16}{'moved on after':>16}")
    for cut in cuts:
        print(f"{cut.host:16}{cut.tasks:>8}{cut.before:>16}{cut.during:>8}{cut.expired:>16}{cut.recovered:>14.1f} s")
    print(f"one process: {alone:.0f} s; hosts, with {len(cuts)} cuts of {arguments.seconds:.0f} s: {took:.0f} s\n")
    print(json.dumps({
        "cuts": [dataclasses.asdict(cut) for cut in cuts], "kind": arguments.cut, "seconds": arguments.seconds,
        "netem": arguments.netem if arguments.netem and not shaped else None, "alone_s": round(alone, 1), "hosts_s": round(took, 1),
        "digest": found, "expected": expected, "failed": check.failed,
    }))
    return check.failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="how often each kind of host is cut off")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long a host is away")
    parser.add_argument("--cut", choices=("silent", "unplugged"), default="silent")
    parser.add_argument("--shots", type=int, default=24)
    parser.add_argument("--netem", metavar="SETTINGS", help="latency and loss at every port, as for tc")
    parser.add_argument("--keep", metavar="FOLDER", help="leave store, logs and certificates there")
    parser.add_argument("--programs", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--model", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--text", required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    Network.remove_leftovers()
    with tempfile.TemporaryDirectory(prefix="hosts-") as temporary:
        folder = pathlib.Path(arguments.keep or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        hosts = Hosts(Network(), folder, pathlib.Path(arguments.programs))
        try:
            failed = test(hosts, arguments)
        finally:
            hosts.stop()
            Network.remove(os.getpid())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
