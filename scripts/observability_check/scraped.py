"""What services tell at /metrics."""

import collections
import pathlib
import re

from prometheus_client.parser import text_string_to_metric_families

from contract import metrics_of

# Labels and families that the exporter adds by OpenTelemetry's rules.
EXPORTER_LABELS = re.compile(r"otel_scope_\w+")
EXPORTER_FAMILIES = {"target", "target_info", "otel_scope", "otel_scope_info"}

KIND = {"gauge": "gauge", "counter": "counter", "histogram": "histogram"}
SERVICES = ("coordinator", "calibrator", "surgeon")


def service_of(path, text):
    """Returns whose metrics these are: by target_info, else by the file's name."""
    info = re.search(r'^target_info\{.*service_name="(\w+)"', text, re.MULTILINE)
    name = info[1] if info else next((s for s in SERVICES if s in pathlib.Path(path).stem), None)
    return name if name in SERVICES else None


def check_metrics(m, texts, notes):
    """Compares scraped text (path → text) with the contract, both ways."""
    metrics = metrics_of(m.contract)
    seen = collections.defaultdict(lambda: collections.defaultdict(lambda: collections.defaultdict(set)))  # service, metric, label → values
    for path, text in texts.items():
        service = service_of(path, text)
        if service is None:
            yield f"{path}: neither target_info nor the file's name says whose metrics these are"
            continue
        for family in text_string_to_metric_families(text):
            name = family.name + ("_total" if family.type == "counter" else "")
            if family.name in EXPORTER_FAMILIES:
                continue
            if name not in metrics:
                yield f"{path}: {name} ({family.type}) is not in the contract"
                continue
            yield from check_family(path, service, family, metrics[name], seen[service][name])
    yield from check_unseen(metrics, seen, notes)


def check_family(path, service, family, metric, seen):
    name = metric["prometheus"]
    if KIND[metric["kind"]] != family.type:
        yield f"{path}: {name} is a {family.type}, in the contract a {metric['kind']}"
    if service not in metric["services"]:
        yield f"{path}: {name} is told by {service}, in the contract by {', '.join(metric['services'])}"
    said = set()
    for sample in family.samples:
        if sample.name.endswith("_created"):
            continue
        labels = {k: v for k, v in sample.labels.items() if not EXPORTER_LABELS.fullmatch(k) and k != "le"}
        if set(labels) != set(metric["labels"]) and (differ := tuple(sorted(set(labels) ^ set(metric["labels"])))) not in said:
            said.add(differ)
            yield f"{path}: {name} has the labels {sorted(labels)}, in the contract {sorted(metric['labels'])}"
        for label, value in labels.items():
            seen[label].add(value)
            allowed = metric["labels"].get(label)
            right = value in allowed if isinstance(allowed, list) else not allowed or allowed.fullmatch(value)
            if not right and (label, value) not in said:
                said.add((label, value))
                yield f"{path}: {name} has {label}=\"{value}\", which the contract does not have"
    seen[""].add("seen")


def check_unseen(metrics, seen, notes):
    for service in seen:
        for name, metric in metrics.items():
            if service not in metric["services"]:
                continue
            if name not in seen[service]:
                if "only_with" in metric:
                    notes.append(f"{service}: {name} is not told: only with {metric['only_with']}")
                else:
                    yield f"{service}: {name} is in the contract, but not told"
                continue
            for label, allowed in metric["labels"].items():
                missing = [v for v in allowed if v not in seen[service][name][label]] if isinstance(allowed, list) else []
                if missing:
                    notes.append(f"{service}: {name} was not seen with {label} {', '.join(missing)}")
