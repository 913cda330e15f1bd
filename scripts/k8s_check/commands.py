"""What programs are started with is what they take, and what their containers are given for it."""

import re

from faults import Faults
from manifests import Deployment, program, quantity, variable
from programs import PROGRAMS

# Variables of libraries: OpenTelemetry's SDK and object_store.
STANDARD = {
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"),
    *("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT", "AWS_ALLOW_HTTP"),
}

GPU = "nvidia.com/gpu"


def variables(all_of: Deployment) -> Faults:
    """Every variable is one of the program, of a library, or stands in one further down; `$(NAME)` is set further up."""
    for pod in all_of.pods():
        # What others there are is the affair of `flags`.
        for container in (c for c in pod.containers() if program(c) in PROGRAMS):
            command = [part for part in container.get("command", []) if not part.startswith("-")]
            known = all_of.programs.help(*command).variables
            above: set[str] = set()
            entries = container.get("env", [])
            used = {name for entry in entries for name in re.findall(r"\$\((\w+)\)", str(entry.get("value", "")))}
            for entry in entries:
                for name in re.findall(r"\$\((\w+)\)", str(entry.get("value", ""))):
                    if name not in above:
                        yield pod.fault(f"{entry['name']} uses $({name}), which is not set above it", "move it up", container)
                if entry["name"] not in known | STANDARD | used:
                    yield pod.fault(f"{program(container)} has no variable {entry['name']}", "see its --help", container)
                above.add(entry["name"])


def flags(all_of: Deployment) -> Faults:
    """Every program is ours or known, and has every flag that it is started with."""
    for pod in all_of.pods():
        for container in pod.containers():
            name = program(container)
            if name not in PROGRAMS:
                yield pod.fault(f"starts '{name}'", f"command is one of {', '.join(PROGRAMS)}", container)
                continue
            words = [*container["command"], *container.get("args", [])]
            line = [name, words[1]] if name == "llm-surgeon" else [name]
            for word in words:
                if word.startswith("--") and word.split("=")[0] not in all_of.programs.help(*line).flags:
                    yield pod.fault(f"{' '.join(line)} has no flag {word.split('=')[0]}", "see its --help", container)


def listening(all_of: Deployment) -> Faults:
    """What a service listens at is a port of its container, under the name of its purpose, and the other way round."""
    for pod, container in all_of.services():
        values = all_of.environment(pod, container)
        ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
        for purpose, flag in (("grpc", "LISTEN"), ("admin", "ADMIN"), ("metrics", "METRICS")):
            address = values.get(variable(container, flag))
            if (address and address.rpartition(":")[2]) != (str(ports[purpose]) if purpose in ports else None):
                yield pod.fault(f"listens at {address}, port {purpose} is {ports.get(purpose)}", "make them the same", container)


def devices(all_of: Deployment) -> Faults:
    """A worker asks for a GPU if and only if it computes on CUDA; nobody else does."""
    for pod in all_of.pods():
        for container in pod.containers():
            asked = {part: quantity(container.get("resources", {}).get(part, {}).get(GPU, 0)) for part in ("requests", "limits")}
            device = all_of.environment(pod, container).get(variable(container, "DEVICE"), "cpu")
            if program(container) in ("calibrator", "surgeon") and device not in ("cpu", "cuda"):
                yield pod.fault(f"device is '{device}'", "say cpu or cuda, not auto: a pod without its GPU must fail", container)
            if asked["requests"] != asked["limits"] or (asked["limits"] > 0) != device.startswith("cuda"):
                yield pod.fault(f"device is {device}, GPUs asked for: {asked}", "ask for GPUs where the device is cuda", container)
