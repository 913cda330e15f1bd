"""Who may dial whom, under which name, and with which certificate."""

import pathlib

from faults import Fault, Faults, fault
from manifests import Deployment, Pod, program, selects, variable

# Who may dial whom in the namespace, and at which port.
CONNECTIONS = {
    ("calibrator", "coordinator", 7100),
    ("surgeon", "coordinator", 7100),
    ("client", "coordinator", 7100),
    ("surgeon", "calibrator", 7101),
}


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
