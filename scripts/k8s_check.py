#!/usr/bin/env python3
"""Checks rendered manifests for what schemas cannot know: k8s_check.py --programs FOLDER FILE...

Each file is one deployment as kustomize renders it. FOLDER holds coordinator, calibrator, surgeon and llm-surgeon, whose
--help says which flags and variables there are. With --self-test, each check must find what is broken on purpose in a copy of
the files. Says nothing about a cluster: whether a class of storage or a node exists is seen when it is applied.
"""

import argparse
import copy
import dataclasses
import functools
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Object = dict[str, Any]

SERVICES = ("coordinator", "calibrator", "surgeon")
PROGRAMS = (*SERVICES, "llm-surgeon")
# Variables of libraries: OpenTelemetry's SDK and object_store.
STANDARD = {
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"),
    *("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT", "AWS_ALLOW_HTTP"),
}
# Who may dial whom in the namespace, and at which port.
CONNECTIONS = {
    ("calibrator", "coordinator", 7100),
    ("surgeon", "coordinator", 7100),
    ("client", "coordinator", 7100),
    ("surgeon", "calibrator", 7101),
}
# A service stops within this after SIGTERM, in seconds.
DRAIN = 12
GPU = "nvidia.com/gpu"
NAME_LABEL = "app.kubernetes.io/name"


# ---- what there is ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Help:
    """Flags and variables that a program's --help names."""

    flags: frozenset[str]
    variables: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs in a folder, asked for their --help once each."""

    folder: pathlib.Path

    @functools.lru_cache(maxsize=None)  # noqa: B019 - as long-lived as the program
    def help(self, *command: str) -> Help:
        """Returns what a command line such as ("llm-surgeon", "submit") can take."""
        line = [str(self.folder / command[0]), *command[1:], "--help"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            sys.exit(f"{' '.join(line)} exits with {done.returncode}: {done.stderr.strip()[:300]}\n  build the programs: make build")
        flags = re.findall(r"^\s+(?:-\w, )?(--[a-z][a-z0-9-]*)", done.stdout, re.MULTILINE)
        variables = re.findall(r"\[env:\s+([A-Z0-9_]+)=", done.stdout)
        return Help(frozenset(flags), frozenset(variables))


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with an object, and what to do about it."""

    kind: str
    name: str
    wrong: str
    mend: str

    def told(self, file: str) -> str:
        return f"{file}: {self.kind}/{self.name}: {self.wrong}; {self.mend}"


def fault(thing: Object, wrong: str, mend: str) -> Fault:
    return Fault(thing["kind"], thing["metadata"]["name"], wrong, mend)


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


# ---- checks ----------------------------------------------------------------------------------------------------------

Faults = Iterator[Fault]


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


def allowed(all_of: Deployment, way: str, pod: Pod, peer: Pod, port: int) -> bool:
    """Whether policies let `pod` take (ingress) or open (egress) a connection with `peer` at a port."""
    side, applying = {"ingress": "from", "egress": "to"}[way], False
    for policy in all_of.of("NetworkPolicy"):
        spec = policy["spec"]
        if way.capitalize() not in spec["policyTypes"] or not selects(spec["podSelector"], pod.labels):
            continue
        applying = True
        for rule in spec.get(way, []):
            inside = side not in rule or any(
                "podSelector" in p and "namespaceSelector" not in p and selects(p["podSelector"], peer.labels) for p in rule[side]
            )
            if inside and ("ports" not in rule or port in (p["port"] for p in rule["ports"])):
                return True
    return not applying


def network(all_of: Deployment) -> Faults:
    """Policies deny by default, and let pass exactly the connections that there are."""
    default = [p["spec"] for p in all_of.of("NetworkPolicy") if p["spec"]["podSelector"] == {} and not {"ingress", "egress"} & set(p["spec"])]
    if not any(set(spec["policyTypes"]) == {"Ingress", "Egress"} for spec in default):
        yield Fault("NetworkPolicy", "default-deny", "nothing denies by default", "add a policy of all pods with both types and no rule")
    pods = all_of.pods()
    ports = {port["containerPort"] for pod in pods for container in pod.containers() for port in container.get("ports", [])}
    for source in pods:
        for target in pods:
            for port in ports:
                wanted = (source.role, target.role, port) in CONNECTIONS
                passes = allowed(all_of, "egress", source, target, port) and allowed(all_of, "ingress", target, source, port)
                if wanted != passes:
                    verb = "cannot" if wanted else "can"
                    yield source.fault(f"{verb} dial {target.role} at {port}", "mend the NetworkPolicies of both")


def covered(all_of: Deployment, pod: Pod, host: str) -> bool:
    """Whether the certificate that a pod mounts is for a host."""
    mounted = {v["secret"]["secretName"] for v in pod.spec.get("volumes", []) if "secret" in v}
    names = [n for c in all_of.of("Certificate") if c["spec"]["secretName"] in mounted for n in c["spec"].get("dnsNames", [])]
    return any(host == name or (name.startswith("*.") and host.partition(".")[2] == name[2:]) for name in names)


def addresses(all_of: Deployment) -> Faults:
    """Workers are advertised under the name that their pod has in DNS, which their certificate covers; all dial the coordinator."""
    for pod in all_of.pods():
        for container in pod.containers():
            values, own = all_of.environment(pod, container), pod.owner["metadata"].get("namespace", "")
            advertised = values.get(variable(container, "ADVERTISE"), "")
            secure = any(c["kind"] == "Certificate" for c in all_of.objects)
            scheme = "https" if secure else "http"
            if program(container) in ("calibrator", "surgeon"):
                port = values.get(variable(container, "LISTEN"), "").rpartition(":")[2]
                host = f"{pod.host}.{pod.subdomain}.{own}.svc"
                if advertised != f"{scheme}://{host}:{port}":
                    yield pod.fault(f"advertises {advertised}", f"its name in DNS is {scheme}://{host}:{port}", container)
                if values.get(variable(container, "WORKER")) != pod.host:
                    yield pod.fault("is not named after its pod", f"the worker's name is {pod.host}", container)
                if secure and not covered(all_of, pod, host):
                    yield pod.fault(f"its certificate is not for {host}", "add it to the Certificate's dnsNames", container)
                headless = all_of.named("Service", pod.subdomain or "")
                if pod.owner["kind"] != "JobSet" and (not headless or headless["spec"].get("clusterIP") != "None"):
                    yield pod.fault(f"no headless Service {pod.subdomain}", "without it pods have no names", container)
            if program(container) in ("calibrator", "surgeon", "llm-surgeon"):
                name = "LLM_SURGEON_COORDINATOR" if program(container) == "llm-surgeon" else variable(container, "COORDINATOR")
                service = all_of.named("Service", "coordinator") or {"spec": {"ports": []}}
                urls = [f"{scheme}://coordinator:{port['port']}" for port in service["spec"]["ports"]]
                if values.get(name) not in urls:
                    yield pod.fault(f"{name} is {values.get(name)}", f"the coordinator is at {urls}", container)


def transport(all_of: Deployment) -> Faults:
    """Everybody has certificates that exist and plain text is off, or nobody has and everybody says so."""
    secure = bool(all_of.of("Certificate"))
    for pod in all_of.pods():
        for container in pod.containers():
            values = all_of.environment(pod, container)
            words = dict(w.partition("=")[::2] for w in container.get("args", []) if w.startswith("--"))
            plain = "--insecure" in words or values.get(variable(container, "INSECURE")) == "true"
            files = [words.get(f"--tls-{part}") or values.get(variable(container, f"TLS_{part.upper()}")) for part in ("cert", "key", "ca")]
            if plain == secure:
                yield pod.fault("sends plain text beside certificates" if secure else "has neither TLS nor insecure", "one of both", container)
            if secure and not all(files):
                yield pod.fault("lacks certificate, key or authority", "set all three", container)
            mounts = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", [])}
            secrets = {v["name"]: v["secret"]["secretName"] for v in pod.spec.get("volumes", []) if "secret" in v}
            made = {c["spec"]["secretName"] for c in all_of.of("Certificate")}
            for file in filter(None, files):
                if secrets.get(mounts.get(str(pathlib.PurePath(file).parent), "")) not in made:
                    yield pod.fault(f"{file} is in no Certificate's secret", "mount the secret there", container)
    issuers = {c["metadata"]["name"] for c in all_of.of("Issuer")}
    for certificate in all_of.of("Certificate"):
        if certificate["spec"]["issuerRef"]["name"] not in issuers:
            yield fault(certificate, "its Issuer is not there", f"one of {sorted(issuers)}")


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


def endings(all_of: Deployment) -> Faults:
    """Pods have the time to stop."""
    for pod in all_of.pods():
        given = pod.spec.get("terminationGracePeriodSeconds", 0)
        if given < DRAIN + 3:
            yield pod.fault(f"has {given} s to stop", f"services take up to {DRAIN} s")


def coordinators(all_of: Deployment) -> Faults:
    """There is one coordinator, and never two for a moment."""
    made = [pod for pod, container in all_of.services() if program(container) == "coordinator"]
    for pod in made:
        spec = pod.owner["spec"]
        if spec.get("replicas") != 1 or spec.get("strategy") != {"type": "Recreate"}:
            yield pod.fault("is not one replica that is recreated", "set replicas: 1 and strategy Recreate")
    if len(made) != 1:
        yield Fault("Deployment", "coordinator", f"{len(made)} coordinators for one store", "have one")


def disruptions(all_of: Deployment) -> Faults:
    """Replicated services have a budget of disruptions that lets nodes be drained; Jobs have none."""
    for pod, _ in all_of.services():
        budgets = [b for b in all_of.of("PodDisruptionBudget") if selects(b["spec"]["selector"], pod.labels)]
        replicated = pod.owner["kind"] in ("Deployment", "StatefulSet")
        if len(budgets) != replicated:
            yield pod.fault(f"{len(budgets)} budgets of disruptions", "one for a Deployment or StatefulSet, none for Jobs")
        for budget in budgets:
            if budget["spec"].get("maxUnavailable", 0) in (0, "0%") or budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
                yield fault(budget, "a node may never be drained", "set maxUnavailable and unhealthyPodEvictionPolicy: AlwaysAllow")


def jobs_of(all_of: Deployment) -> Iterator[tuple[Object, str, Object]]:
    for thing in all_of.of("Job"):
        yield thing, thing["metadata"]["name"], thing["spec"]
    for thing in all_of.of("JobSet"):
        for part in thing["spec"]["replicatedJobs"]:
            yield thing, part["name"], part["template"]["spec"]


def jobs(all_of: Deployment) -> Faults:
    """Jobs outlive disruptions; those of workers give an evicted worker, which exits with 0, a successor."""
    for owner, name, job in jobs_of(all_of):
        rules = job.get("podFailurePolicy", {}).get("rules", [])
        if not any(r["action"] == "Ignore" and "DisruptionTarget" in str(r.get("onPodConditions")) for r in rules):
            yield fault(owner, f"{name}: a reclaimed node counts as a failure", "Ignore DisruptionTarget in podFailurePolicy")
        if job["template"]["spec"].get("restartPolicy") != "Never":
            yield fault(owner, f"{name}: restarts in place", "podFailurePolicy wants restartPolicy: Never")
        if not any(program(c) in SERVICES for c in job["template"]["spec"].get("containers", [])):
            continue
        if job.get("completionMode") != "Indexed" or "backoffLimitPerIndex" not in job:
            yield fault(owner, f"{name}: workers have no names of their own", "Indexed, with backoffLimitPerIndex")
        if job.get("completions", 1) < 100 * job.get("parallelism", 1):
            yield fault(owner, f"{name}: evicted workers soon have no successor", "completions far above parallelism")


def queues(all_of: Deployment) -> Faults:
    """A JobSet's queue exists and has room for all that its pods ask for, in resources that it covers."""
    for thing in all_of.of("JobSet"):
        local = all_of.named("LocalQueue", thing["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name", ""))
        queue = all_of.named("ClusterQueue", local["spec"]["clusterQueue"]) if local else None
        if not queue:
            yield fault(thing, "its queue is not there", "name a LocalQueue with a ClusterQueue in kueue.x-k8s.io/queue-name")
            continue
        quota: dict[str, float] = {}
        for flavor in (flavor for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]):
            if not all_of.named("ResourceFlavor", flavor["name"]):
                yield fault(queue, f"its flavor {flavor['name']} is not there", "add the ResourceFlavor")
            for resource in flavor["resources"]:
                quota[resource["name"]] = quota.get(resource["name"], 0) + quantity(resource["nominalQuota"])
        asked: dict[str, float] = {}
        for pod in pods_of(thing):
            for container in pod.containers():
                for name, amount in container["resources"].get("requests", {}).items():
                    asked[name] = asked.get(name, 0) + pod.count * quantity(amount)
        for name, amount in asked.items():
            if amount > quota.get(name, 0):
                yield fault(thing, f"asks for {amount:g} of {name}, its queue has {quota.get(name, 0):g}", "it would wait for ever")


def images(all_of: Deployment) -> Faults:
    """Images have a version."""
    for pod in all_of.pods():
        for container in pod.containers():
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if tag in ("", "latest"):
                yield pod.fault(f"image {container['image']} may be another one tomorrow", "give it a version", container)


def dashboards(all_of: Deployment) -> Faults:
    """Dashboards are JSON and rules YAML."""
    for found in all_of.of("ConfigMap"):
        for key, text in found.get("data", {}).items():
            try:
                json.loads(text) if key.endswith(".json") else None
                yaml.safe_load(text) if key.endswith(".yaml") else None
            except (ValueError, yaml.YAMLError) as error:
                yield fault(found, f"{key} cannot be read: {str(error)[:100]}", "mend the file")


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


def closed_part(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed_part(part) for part in schema]
    return closed(schema) if isinstance(schema, dict) else schema


def closed(schema: Object) -> Object:
    """Returns a JSON schema without room for fields that it does not describe."""
    parts = {name: closed_part(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict):
        parts["additionalProperties"] = False
    return parts


def record(required: dict[str, Any], optional: dict[str, Any] | None = None) -> Object:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def kueue(kind: str, spec: Object) -> Object:
    return record({"apiVersion": {"const": "kueue.x-k8s.io/v1beta2"}, "kind": {"const": kind}, "metadata": {"type": "object"}, "spec": spec})


@functools.cache
def schema_of(api: str, kind: str) -> Object | None:
    """Returns the schema of a custom resource: its project's own from a package; for Kueue, in no package, what we use of it."""
    text, some = {"type": "string"}, {"type": "array", "minItems": 1}
    texts = {"type": "object", "additionalProperties": text}
    match api, kind:
        case "cert-manager.io/v1", "Certificate" | "Issuer":
            from cloudcoil.models.cert_manager import v1 as certificates

            return closed(getattr(certificates, kind).model_json_schema())
        case "monitoring.coreos.com/v1", "PodMonitor":
            from cloudcoil.models.prometheus_operator import v1 as monitoring

            return closed(monitoring.PodMonitor.model_json_schema())
        case "jobset.x-k8s.io/v1alpha2", "JobSet":
            from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

            return closed(JobsetV1alpha2JobSet.model_json_schema())
        case "kueue.x-k8s.io/v1beta2", "LocalQueue":
            return closed(kueue(kind, record({"clusterQueue": text}, {"stopPolicy": text})))
        case "kueue.x-k8s.io/v1beta2", "ResourceFlavor":
            taint = record({"key": text, "effect": text}, {"value": text})
            toleration = record({"operator": text}, {"key": text, "value": text, "effect": text})
            lists = {"nodeTaints": {"type": "array", "items": taint}, "tolerations": {"type": "array", "items": toleration}}
            return closed(kueue(kind, record({}, {"nodeLabels": texts, **lists})))
        case "kueue.x-k8s.io/v1beta2", "ClusterQueue":
            resource = record({"name": text, "nominalQuota": {"type": ["string", "integer"]}})
            flavor = record({"name": text, "resources": {**some, "items": resource}})
            group = record({"coveredResources": {**some, "items": text}, "flavors": {**some, "items": flavor}})
            fifo = {"enum": ["StrictFIFO", "BestEffortFIFO"]}
            within = {"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]}
            more = {"queueingStrategy": fifo, "preemption": record({}, {"withinClusterQueue": within}), "cohortName": text}
            return closed(kueue(kind, record({"namespaceSelector": {"type": "object"}, "resourceGroups": {**some, "items": group}}, more)))
    return None


def built_in(api: str) -> bool:
    group = api.rpartition("/")[0]
    return "." not in group or group in ("networking.k8s.io", "scheduling.k8s.io", "storage.k8s.io", "rbac.authorization.k8s.io")


def custom_resources(all_of: Deployment) -> Faults:
    """Custom resources are as their schemas say; Kubernetes' own are kubernetes-validate's affair."""
    for thing in all_of.objects:
        if built_in(thing["apiVersion"]):
            continue
        schema = schema_of(thing["apiVersion"], thing["kind"])
        if schema is None:
            yield fault(thing, f"no schema of {thing['apiVersion']} is known here", "add one to schema_of")
            continue
        checked, parts = copy.deepcopy(thing), []
        if thing["kind"] == "JobSet":
            # Templates are Kubernetes' own Jobs.
            parts = [part.pop("template") for part in checked["spec"]["replicatedJobs"]]
            for part in checked["spec"]["replicatedJobs"]:
                part["template"] = {}
        for error in jsonschema.Draft202012Validator(schema).iter_errors(checked):
            yield fault(thing, f"{error.json_path}: {deepest(error).message[:200]}", "see its documentation")
        for part in parts:
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "part"}, **part}
            try:
                kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
            except kubernetes_validate.ValidationError as error:
                yield fault(thing, f"a Job in it: {error.message[:200]}", "see Kubernetes' batch/v1")


def deepest(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    return jsonschema.exceptions.best_match([error]) or error


Check = Callable[[Deployment], Faults]

CHECKS: tuple[Check, ...] = (
    *(limits, probes, confinement, accounts, service_ports, selectors, settings, variables, flags, listening, devices, network),
    *(addresses, transport, volumes, endings, coordinators, disruptions, jobs, queues, images, dashboards, namespaces),
    custom_resources,
)


# ---- the checks' own test --------------------------------------------------------------------------------------------

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


# Which check must find which change.
BROKEN: tuple[tuple[Check, str, Change], ...] = (
    (limits, "no limits", in_container("surgeon", lambda c: c["resources"].pop("limits"))),
    (limits, "no request of memory", in_container("llm-surgeon", lambda c: c["resources"]["requests"].pop("memory"))),
    (limits, "more asked for than allowed", in_container("coordinator", lambda c: c["resources"]["requests"].update(memory="9Gi"))),
    (probes, "no startup probe", in_container("calibrator", lambda c: c.pop("startupProbe"))),
    (probes, "liveness asks whether it is ready", in_container("calibrator", lambda c: c["livenessProbe"]["grpc"].pop("service"))),
    (probes, "probe at the public port", in_container("coordinator", lambda c: c["readinessProbe"]["grpc"].update(port=7100))),
    (confinement, "root", in_pod("calibrator", lambda p: p.spec["securityContext"].update(runAsUser=0))),
    (confinement, "a root that can be written", in_container("surgeon", lambda c: c["securityContext"].update(readOnlyRootFilesystem=False))),
    (confinement, "no security context", in_container("llm-surgeon", lambda c: c.pop("securityContext"))),
    (confinement, "a token", in_pod("client", lambda p: p.spec.pop("automountServiceAccountToken"))),
    (confinement, "variables of Services", in_pod("coordinator", lambda p: p.spec.pop("enableServiceLinks"))),
    (confinement, "a volume without bound", in_pod("surgeon", lambda p: p.spec["volumes"][-1].update(emptyDir={}))),
    (accounts, "account with a token", in_object("ServiceAccount", lambda o: o.pop("automountServiceAccountToken"))),
    (accounts, "no account", without("ServiceAccount", "surgeon")),
    (accounts, "no priority", without("PriorityClass", "llm-surgeon-worker")),
    (service_ports, "another port", in_object("Service", lambda o: o["spec"]["ports"][0].update(targetPort="rpc"), "coordinator")),
    (selectors, "own pods not selected", in_object("StatefulSet", lambda o: o["spec"]["selector"]["matchLabels"].update(x="y"))),
    (selectors, "service without pods", in_object("Service", lambda o: o["spec"]["selector"].update(x="y"))),
    (selectors, "budget without pods", in_object("PodDisruptionBudget", lambda o: o["spec"]["selector"]["matchLabels"].update(x="y"))),
    (selectors, "policy without pods", in_object("NetworkPolicy", lambda o: o["spec"]["podSelector"].update(matchLabels={"x": "y"}), "surgeon")),
    (selectors, "monitor without pods", in_object("PodMonitor", lambda o: o["spec"]["selector"].update(matchLabels={"x": "y"}))),
    (selectors, "affinity to nobody", in_pod("surgeon", lambda p: p.spec.update(affinity={"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {"matchLabels": {"x": "y"}}}]}}))),
    (settings, "a key that nobody reads", in_object("ConfigMap", lambda o: o["data"].update(left="over"))),
    (settings, "a key that is not there", in_object("ConfigMap", lambda o: o["data"].pop("store", None) or o["data"].clear())),
    (variables, "an unknown variable", in_container("surgeon", put("SURGEON_COLOUR", "red"))),
    (variables, "a helper that nobody uses", in_container("coordinator", put("POD_COLOUR", "red"))),
    (variables, "a name used before it is set", in_container("calibrator", lambda c: c["env"].reverse())),
    (flags, "an unknown flag", in_container("llm-surgeon", lambda c: c["args"].append("--colour=red"))),
    (flags, "an unknown program", in_container("surgeon", lambda c: c.update(command=["bash"]))),
    (listening, "another port", in_container("surgeon", lambda c: c["ports"][0].update(containerPort=7199))),
    (listening, "a port that nobody listens at", in_container("coordinator", lambda c: c["ports"].append({"name": "metrics", "containerPort": 9999}))),
    (devices, "a GPU on a CPU device", in_container("calibrator", put("CALIBRATOR_DEVICE", "cpu"))),
    (devices, "cuda without a GPU", in_container("surgeon", lambda c: c["resources"]["limits"].pop(GPU, None) or put("SURGEON_DEVICE", "cuda")(c))),
    (devices, "a GPU for the coordinator", in_container("coordinator", lambda c: c["resources"]["limits"].update({GPU: "1"}))),
    (devices, "any device", in_container("surgeon", put("SURGEON_DEVICE", "auto"))),
    (network, "no default", without("NetworkPolicy", "default-deny")),
    (network, "nobody may dial the coordinator", without("NetworkPolicy", "to-coordinator")),
    (network, "everybody may dial everybody", in_object("NetworkPolicy", lambda o: o["spec"].update(podSelector={}, ingress=[{}], egress=[{}], policyTypes=["Ingress", "Egress"]), "names")),
    (addresses, "another host", in_container("calibrator", put("CALIBRATOR_ADVERTISE", "http://calibrator:7101"))),
    (addresses, "another coordinator", in_container("surgeon", put("SURGEON_COORDINATOR", "http://localhost:7100"))),
    (addresses, "another name", in_container("surgeon", put("SURGEON_WORKER", "surgeon"))),
    (addresses, "one address for all", in_object("Service", lambda o: o["spec"].pop("clusterIP"), "calibrator")),
    (addresses, "a certificate for others", in_object("Certificate", lambda o: o["spec"].update(dnsNames=["example.com"]), "surgeon")),
    (transport, "plain text left on", in_container("coordinator", put("COORDINATOR_INSECURE", "true"))),
    (transport, "neither", in_container("surgeon", unset("SURGEON_INSECURE"))),
    (transport, "no key", in_container("calibrator", unset("CALIBRATOR_TLS_KEY"))),
    (transport, "no issuer", in_object("Certificate", lambda o: o["spec"]["issuerRef"].update(name="nobody"), "client")),
    (transport, "another secret", in_object("Certificate", lambda o: o["spec"].update(secretName="other"), "coordinator")),
    (volumes, "a claim that is not there", without("PersistentVolumeClaim", "models")),
    (volumes, "a store on no claim", in_object("ConfigMap", lambda o: o["data"].update(store="/tmp"))),
    (volumes, "not mounted", in_container("surgeon", lambda c: c["volumeMounts"].pop())),
    (endings, "no time", in_pod("surgeon", lambda p: p.spec.update(terminationGracePeriodSeconds=5))),
    (coordinators, "two", in_object("Deployment", lambda o: o["spec"].update(replicas=2))),
    (coordinators, "rolling", in_object("Deployment", lambda o: o["spec"].pop("strategy"))),
    (coordinators, "none", without("Deployment", "coordinator")),
    (disruptions, "no budget", without("PodDisruptionBudget", "calibrator")),
    (disruptions, "no draining", in_object("PodDisruptionBudget", lambda o: o["spec"].update(maxUnavailable=0))),
    (jobs, "reclaimed is failed", in_object("Job", lambda o: o["spec"].pop("podFailurePolicy"))),
    (jobs, "no successors", in_object("JobSet", lambda o: part_of_set(o).update(completions=2))),
    (jobs, "restarts in place", in_object("JobSet", lambda o: part_of_set(o)["template"]["spec"].update(restartPolicy="OnFailure"))),
    (jobs, "no names", in_object("Job", lambda o: o["spec"].pop("completionMode"), "surgeon")),
    (queues, "no queue", in_object("JobSet", lambda o: o["metadata"]["labels"].clear())),
    (queues, "too large", in_object("JobSet", lambda o: part_of_set(o).update(parallelism=99))),
    (queues, "no flavor", without("ResourceFlavor", "gpu")),
    (images, "no version", in_container("surgeon", lambda c: c.update(image="llm-surgeon/worker"))),
    (images, "latest", in_container("coordinator", lambda c: c.update(image="host:5000/coordinator:latest"))),
    (dashboards, "no JSON", in_object("ConfigMap", lambda o: o["data"].update({"run.json": "{"}))),
    (namespaces, "another namespace", in_object("Service", lambda o: o["metadata"].update(namespace="default"))),
    (namespaces, "any rights", in_object("Namespace", lambda o: o["metadata"].pop("labels"))),
    (custom_resources, "an unknown field", in_object("Certificate", lambda o: o["spec"].update(colour="red"))),
    (custom_resources, "no issuer", in_object("Certificate", lambda o: o["spec"].pop("issuerRef"))),
    (custom_resources, "an unknown field of a monitor", in_object("PodMonitor", lambda o: o["spec"]["podMetricsEndpoints"][0].update(colour="red"))),
    (custom_resources, "no name of a part", in_object("JobSet", lambda o: o["spec"]["replicatedJobs"][0].pop("name"))),
    (custom_resources, "an unknown field of a Job in a set", in_object("JobSet", lambda o: part_of_set(o).update(colour="red"))),
    (custom_resources, "no quota", in_object("ClusterQueue", lambda o: o["spec"].pop("resourceGroups"))),
    (custom_resources, "an unknown kind", in_object("LocalQueue", lambda o: o.update(kind="Queue"))),
)


def found_somewhere(check: Check, change: Change, files: dict[str, Deployment]) -> bool | None:
    """Whether the check finds the change in a file that can have it; None if none can."""
    results = []
    for deployment in files.values():
        broken = Deployment(copy.deepcopy(deployment.objects), deployment.programs)
        if change(broken) and broken.objects != deployment.objects:
            results.append(bool(set(check(broken)) - set(check(deployment))))
    # A change can be harmless in some files: plain text left on in one without certificates.
    return any(results) if results else None


def self_test(files: dict[str, Deployment]) -> int:
    """Returns how many changes no check found."""
    missed = 0
    for check, what, change in BROKEN:
        found = found_somewhere(check, change, files)
        if not found:
            missed += 1
            reason = "no file has what it changes" if found is None else "it found nothing"
            print(f"check {check.__name__} against '{what}': {reason}; mend the check or the change", file=sys.stderr)
    for check in set(CHECKS) - {check for check, _, _ in BROKEN}:
        missed += 1
        print(f"check {check.__name__} is not tested; add a change that it must find to BROKEN", file=sys.stderr)
    return missed


# ---- command line ----------------------------------------------------------------------------------------------------


def load(path: pathlib.Path, programs: Programs) -> Deployment:
    objects = [thing for thing in yaml.safe_load_all(path.read_text()) if thing]
    if not objects:
        sys.exit(f"{path} has no object; render it again")
    return Deployment(objects, programs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder with the built programs")
    parser.add_argument("--self-test", action="store_true", help="check the checks on broken copies of the files")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    programs = Programs(arguments.programs)
    files = {path.name: load(path, programs) for path in arguments.files}
    if arguments.self_test:
        missed = self_test(files)
        sys.exit(f"{missed} faults went unseen" if missed else None)
    faults = sorted({found.told(name) for name, all_of in files.items() for check in CHECKS for found in check(all_of)})
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    sys.exit(f"{len(faults)} faults" if faults else None)


if __name__ == "__main__":
    main()
