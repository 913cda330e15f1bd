"""How pods come, go and are replaced: time to stop, disruptions, Jobs, queues."""

from collections.abc import Iterator

from faults import Fault, Faults, Object, fault
from manifests import Deployment, pods_of, program, quantity, selects
from programs import SERVICES

# A service stops within this after SIGTERM, in seconds.
DRAIN = 12


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
