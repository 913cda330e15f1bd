"""What Kubernetes' own schemas do not describe has the form that its readers want: custom resources, dashboards, rules."""

import copy
import functools
import json
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from faults import Faults, Object, fault
from manifests import Deployment


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


def dashboards(all_of: Deployment) -> Faults:
    """Dashboards are JSON and rules YAML."""
    for found in all_of.of("ConfigMap"):
        for key, text in found.get("data", {}).items():
            try:
                json.loads(text) if key.endswith(".json") else None
                yaml.safe_load(text) if key.endswith(".yaml") else None
            except (ValueError, yaml.YAMLError) as error:
                yield fault(found, f"{key} cannot be read: {str(error)[:100]}", "mend the file")
