"""What every pod and container says of itself: limits, probes, confinement, a version."""

from faults import Faults
from manifests import Deployment, quantity, variable


def limits(all_of: Deployment) -> Faults:
    """Every container says what it needs and what it may take."""
    for pod in all_of.pods():
        for container in pod.containers():
            resources = container.get("resources", {})
            for name in ("cpu", "memory", "ephemeral-storage"):
                needs, may = (resources.get(part, {}).get(name) for part in ("requests", "limits"))
                if needs is None or may is None:
                    yield pod.fault(f"no request or no limit of {name}", "say both under resources", container)
                elif quantity(needs) > quantity(may):
                    yield pod.fault(f"requests {needs} of {name} and may take {may}", "ask for no more than the limit", container)


def probes(all_of: Deployment) -> Faults:
    """Every service has its three probes, at the admin port: alive is `live`, ready is the empty name."""
    for pod, container in all_of.services():
        address = all_of.environment(pod, container).get(variable(container, "ADMIN"), "")
        for name, asked in (("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "")):
            probe = container.get(name, {}).get("grpc")
            if not probe:
                yield pod.fault(f"no {name} by gRPC", "add one at the admin port", container)
            elif probe.get("service", "") != asked:
                yield pod.fault(f"{name} asks for '{probe.get('service', '')}'", f"ask for '{asked}'", container)
            elif not address.endswith(f":{probe['port']}"):
                yield pod.fault(f"{name} is at port {probe['port']}, health at '{address}'", "use the admin port", container)


def confinement(all_of: Deployment) -> Faults:
    """Pods fulfil the level `restricted`, with a root that cannot be written and no token."""
    for pod in all_of.pods():
        spec, context = pod.spec, pod.spec.get("securityContext", {})
        wanted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        for key, value in wanted.items():
            if context.get(key) != value:
                yield pod.fault(f"securityContext.{key} of the pod is {context.get(key)}", f"set {value}")
        if not context.get("runAsUser"):
            yield pod.fault("no user, or root", "set runAsUser of the pod")
        if spec.get("automountServiceAccountToken") is not False:
            yield pod.fault("its token for the Kubernetes API is mounted", "set automountServiceAccountToken: false")
        if spec.get("enableServiceLinks") is not False:
            yield pod.fault("variables of Services are set, which may be taken for settings", "set enableServiceLinks: false")
        for container in pod.containers():
            own = container.get("securityContext", {})
            closed = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            for key, value in closed.items():
                if own.get(key) != value:
                    yield pod.fault(f"securityContext.{key} is {own.get(key)}", f"set {value}", container)
        for volume in spec.get("volumes", []):
            if "hostPath" in volume or ("emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {})):
                yield pod.fault(f"volume {volume['name']} has no bound", "an emptyDir with sizeLimit, or a claim")


def images(all_of: Deployment) -> Faults:
    """Images have a version."""
    for pod in all_of.pods():
        for container in pod.containers():
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if tag in ("", "latest"):
                yield pod.fault(f"image {container['image']} may be another one tomorrow", "give it a version", container)
