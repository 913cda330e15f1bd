"""A file of manifests: its objects, the pods that they make, and what its containers see in their environment."""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator

from faults import Fault, Object, fault
from programs import SERVICES, Programs

NAME_LABEL = "app.kubernetes.io/name"


@dataclasses.dataclass(frozen=True)
class Pod:
    """A kind of pod that an object makes; `host` and `subdomain` are those of its first."""

    owner: Object
    template: Object
    count: int
    host: str
    subdomain: str | None

    @property
    def spec(self) -> Object:
        spec: Object = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template.get("metadata", {}).get("labels", {})
        return labels

    @property
    def role(self) -> str:
        return self.labels.get(NAME_LABEL, "")

    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]

    def service(self) -> Object | None:
        """Returns the container that runs one of the three services, if there is one."""
        return next((c for c in self.containers() if program(c) in SERVICES), None)

    def fault(self, wrong: str, mend: str, container: Object | None = None) -> Fault:
        where = f"container {container['name']}: " if container else ""
        return fault(self.owner, f"{where}{wrong}", mend)


def pods_of_job(owner: Object, name: str, job: Object, subdomain: str | None) -> Pod:
    count = min(job.get("parallelism", 1), job.get("completions", sys.maxsize))
    return Pod(owner, job["template"], count, f"{name}-0", subdomain)


def pods_of(thing: Object) -> Iterator[Pod]:
    """Yields the kinds of pods that an object makes."""
    name, spec = thing["metadata"]["name"], thing.get("spec", {})
    match thing["kind"]:
        case "Deployment":
            yield Pod(thing, spec["template"], spec.get("replicas", 1), name, None)
        case "StatefulSet":
            yield Pod(thing, spec["template"], spec.get("replicas", 1), f"{name}-0", spec.get("serviceName"))
        case "Job":
            yield pods_of_job(thing, name, spec, spec["template"]["spec"].get("subdomain"))
        case "JobSet":
            subdomain = spec.get("network", {}).get("subdomain", name)
            for part in spec["replicatedJobs"]:
                pod = pods_of_job(thing, f"{name}-{part['name']}-0", part["template"]["spec"], subdomain)
                yield dataclasses.replace(pod, count=pod.count * part.get("replicas", 1))


class Deployment:
    """All objects of a file."""

    def __init__(self, objects: list[Object], programs: Programs) -> None:
        self.objects = objects
        self.programs = programs

    def of(self, *kinds: str) -> list[Object]:
        return [thing for thing in self.objects if thing["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object | None:
        return next((thing for thing in self.of(kind) if thing["metadata"]["name"] == name), None)

    def pods(self) -> list[Pod]:
        return [pod for thing in self.objects for pod in pods_of(thing)]

    def services(self) -> list[tuple[Pod, Object]]:
        """Returns the containers of the three services with their pods."""
        return [(pod, container) for pod in self.pods() if (container := pod.service())]

    def environment(self, pod: Pod, container: Object) -> dict[str, str]:
        """Returns the variables of a container of a deployment's first pod, `$(NAME)` put in as Kubernetes does."""
        values: dict[str, str] = {}
        for entry in container.get("env", []):
            text = self.value(pod, container, entry)
            values[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], m[0]), text)
        return values

    def value(self, pod: Pod, container: Object, entry: Object) -> str:
        source = entry.get("valueFrom", {})
        if "value" in entry:
            return str(entry["value"])
        if reference := source.get("configMapKeyRef"):
            settings = self.named("ConfigMap", reference["name"]) or {}
            return str(settings.get("data", {}).get(reference["key"], ""))
        if reference := source.get("fieldRef"):
            path = str(reference["fieldPath"])
            known: dict[str, str] = {"metadata.name": pod.host, "metadata.namespace": pod.owner["metadata"].get("namespace", "")}
            return known.get(path, "0" if "job-completion-index" in path else "")
        if reference := source.get("resourceFieldRef"):
            return str(container["resources"]["limits"][reference["resource"].removeprefix("limits.")])
        return ""


def program(container: Object) -> str:
    """Returns the name of the program that a container starts."""
    return pathlib.PurePath((container.get("command") or [""])[0]).name


def variable(container: Object, name: str) -> str:
    """Returns the name of a service's variable: DEVICE is CALIBRATOR_DEVICE in a calibrator."""
    return f"{program(container).upper()}_{name}"


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector takes labels; the empty one takes all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for term in selector.get("matchExpressions", []):
        there, values = labels.get(term["key"]), term.get("values", [])
        holds = {"In": there in values, "NotIn": there not in values, "Exists": there is not None, "DoesNotExist": there is None}
        if not holds[term["operator"]]:
            return False
    return True


def quantity(text: str | int | float) -> float:
    """Returns a Kubernetes quantity as a number: 500m, 2Gi."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if not found or (found[2] and found[2] not in units):
        raise ValueError(f"'{text}' is no quantity")
    return float(found[1]) * (units[found[2]] if found[2] else 1)
