"""Ways to break a deployment; a change says whether the deployment has what it changes."""

from collections.abc import Callable
from typing import Any

from faults import Object
from manifests import Deployment, Pod, program

Change = Callable[[Deployment], bool]


def container_of(all_of: Deployment, name: str) -> Object | None:
    """Returns the container that runs a program, of the first pod that has one."""
    return next((c for pod in all_of.pods() for c in pod.containers() if program(c) == name), None)


def in_container(name: str, change: Callable[[Object], Any]) -> Change:
    """Returns a change of the container of a program, for files that have one."""

    def apply(all_of: Deployment) -> bool:
        container = container_of(all_of, name)
        if container is not None:
            change(container)
        return container is not None

    return apply


def in_pod(name: str, change: Callable[[Pod], Any]) -> Change:
    """Returns a change of the pods of a role."""

    def apply(all_of: Deployment) -> bool:
        pod = next((pod for pod in all_of.pods() if pod.role == name), None)
        if pod is not None:
            change(pod)
        return pod is not None

    return apply


def in_object(kind: str, change: Callable[[Object], Any], name: str = "") -> Change:
    """Returns a change of the first object of a kind, or of the one with a name."""

    def apply(all_of: Deployment) -> bool:
        thing = all_of.named(kind, name) if name else next(iter(all_of.of(kind)), None)
        if thing is not None:
            change(thing)
        return thing is not None

    return apply


def without(kind: str, name: str) -> Change:
    """Returns a change that takes an object away."""

    def apply(all_of: Deployment) -> bool:
        thing = all_of.named(kind, name)
        if thing is not None:
            all_of.objects.remove(thing)
        return thing is not None

    return apply


def put(name: str, value: str) -> Callable[[Object], None]:
    """Returns a change of a container's variable."""

    def apply(container: Object) -> None:
        container["env"] = [e for e in container["env"] if e["name"] != name] + [{"name": name, "value": value}]

    return apply


def unset(name: str) -> Callable[[Object], None]:
    def apply(container: Object) -> None:
        container["env"] = [e for e in container["env"] if e["name"] != name]

    return apply


def part_of_set(thing: Object) -> Object:
    job: Object = thing["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job
