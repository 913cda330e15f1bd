"""What one object names in another is there, and what is there is named by one."""

from collections.abc import Iterator

from faults import Fault, Faults, Object, fault
from manifests import Deployment, program, selects, variable
from programs import SERVICES


def accounts(all_of: Deployment) -> Faults:
    """Accounts and priorities that pods name exist; accounts hold no token."""
    for pod in all_of.pods():
        account = all_of.named("ServiceAccount", pod.spec.get("serviceAccountName", ""))
        if not account:
            yield pod.fault("no ServiceAccount of its own", "name one that the base has")
        elif account.get("automountServiceAccountToken") is not False:
            yield fault(account, "mounts its token", "set automountServiceAccountToken: false")
        if not all_of.named("PriorityClass", pod.spec.get("priorityClassName", "")):
            yield pod.fault("no PriorityClass, or one that is not there", "name one that the base has")


def service_ports(all_of: Deployment) -> Faults:
    """Every port of a Service is a container's port in the pods that it selects."""
    for service in all_of.of("Service"):
        for pod in all_of.pods():
            if not selects({"matchLabels": service["spec"]["selector"]}, pod.labels):
                continue
            there = [port for container in pod.containers() for port in container.get("ports", [])]
            known = {port["name"] for port in there} | {port["containerPort"] for port in there}
            for port in service["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in known:
                    yield fault(service, f"port {port['name']} goes to none of the pod's ports", f"name one of {sorted(map(str, known))}")


def selectors_of(thing: Object) -> Iterator[tuple[str, Object]]:
    """Yields the selectors of an object that must take a pod of the file."""
    spec = thing.get("spec", {})
    match thing["kind"]:
        case "Service":
            yield "selector", {"matchLabels": spec["selector"]}
        case "PodDisruptionBudget" | "PodMonitor":
            yield "selector", spec["selector"]
        case "NetworkPolicy":
            yield "podSelector", spec["podSelector"]
            for way, side in (("ingress", "from"), ("egress", "to")):
                for peer in (peer for rule in spec.get(way, []) for peer in rule.get(side, [])):
                    if "podSelector" in peer and "namespaceSelector" not in peer:
                        yield f"{way}'s podSelector", peer["podSelector"]


def selectors(all_of: Deployment) -> Faults:
    """Every selector takes pods: of its own template, and of some in the file."""
    for thing in all_of.objects:
        for where, selector in selectors_of(thing):
            if not any(selects(selector, pod.labels) for pod in all_of.pods()):
                yield fault(thing, f"{where} takes no pod", "compare it with the pods' labels")
    for pod in all_of.pods():
        own = pod.owner["spec"].get("selector")
        if own and not selects(own, pod.labels):
            yield pod.fault("does not select its own pods", "give template and selector the same labels")
        for kind in ("podAffinity", "podAntiAffinity"):
            for term in pod.spec.get("affinity", {}).get(kind, {}).get("requiredDuringSchedulingIgnoredDuringExecution", []):
                if not any(selects(term["labelSelector"], other.labels) for other in all_of.pods()):
                    yield pod.fault(f"waits for ever: its {kind} takes no pod", "compare it with the pods' labels")


def settings(all_of: Deployment) -> Faults:
    """Every key of a ConfigMap is read, and every key that is read exists."""
    read: set[tuple[str, str]] = set()
    for pod in all_of.pods():
        for container in pod.containers():
            for entry in container.get("env", []):
                reference = entry.get("valueFrom", {}).get("configMapKeyRef")
                if not reference:
                    continue
                read.add((reference["name"], reference["key"]))
                found = all_of.named("ConfigMap", reference["name"])
                if not found or reference["key"] not in found["data"]:
                    yield pod.fault(f"reads {reference['key']} of ConfigMap {reference['name']}", "add the key, or mend the name", container)
    for found in all_of.of("ConfigMap"):
        # Read by Grafana and Prometheus.
        if {"grafana_dashboard", "prometheus_rules"} & set(found["metadata"].get("labels", {})):
            continue
        for key in found.get("data", {}):
            if (found["metadata"]["name"], key) not in read:
                yield fault(found, f"nobody reads {key}", "take it away, or read it")


def volumes(all_of: Deployment) -> Faults:
    """Mounts have volumes and volumes mounts; claims exist and are used; store and paths of a run lie on a claim."""
    claims = {claim["metadata"]["name"] for claim in all_of.of("PersistentVolumeClaim")}
    used: set[str] = set()
    for pod in all_of.pods():
        there = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        mounted = {mount["name"] for container in pod.containers() for mount in container.get("volumeMounts", [])}
        if mounted != set(there):
            yield pod.fault(f"volumes {sorted(there)}, mounted {sorted(mounted)}", "mount each, and only those")
        claimed = {v["persistentVolumeClaim"]["claimName"] for v in there.values() if "persistentVolumeClaim" in v}
        used |= claimed
        for name in claimed - claims:
            yield pod.fault(f"claim {name} is not there", "name one of the PersistentVolumeClaims")
        for container in (c for c in pod.containers() if program(c) in SERVICES):
            store = all_of.environment(pod, container).get(variable(container, "STORE"), "")
            paths = {m["mountPath"] for m in container.get("volumeMounts", []) if "persistentVolumeClaim" in there.get(m["name"], {})}
            if not store.startswith("s3://") and store not in paths:
                yield pod.fault(f"its store '{store}' is on no claim", "mount the claim there", container)
    for name in claims - used:
        yield fault(all_of.named("PersistentVolumeClaim", name) or {}, "nobody mounts it", "take it away")


def namespaces(all_of: Deployment) -> Faults:
    """All is in one namespace, which refuses pods with more rights."""
    cluster = {"Namespace", "PriorityClass", "ClusterQueue", "ResourceFlavor"}
    names = {thing["metadata"].get("namespace") for thing in all_of.objects if thing["kind"] not in cluster}
    own = all_of.of("Namespace")
    if {thing["metadata"]["name"] for thing in own} != names:
        yield Fault("Namespace", "llm-surgeon", f"objects are in {sorted(map(str, names))}", "put all into the one namespace")
    for thing in own:
        if thing["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield fault(thing, "takes pods with any rights", "label it pod-security.kubernetes.io/enforce: restricted")
