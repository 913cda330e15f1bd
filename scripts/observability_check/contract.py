"""The contract's metrics: their names to Prometheus, their series and labels."""

import collections
import re

# Labels that Prometheus or a collector adds to what a process tells.
TARGET_LABELS = {"job", "instance", "namespace", "pod"}

UNIT_SUFFIX = {"s": "_seconds", "By": "_bytes"}


def prometheus_name(metric):
    """Returns the name that OpenTelemetry's rules give."""
    name = re.sub(r"[^a-zA-Z0-9_]", "_", metric["name"])
    suffix = UNIT_SUFFIX.get(metric["unit"], "_ratio" if metric["unit"] == "1" and metric["kind"] != "counter" else "")
    name += "" if name.endswith(suffix) else suffix
    return name + ("_total" if metric["kind"] == "counter" and not name.endswith("_total") else "")


def labels_of_metric(contract, metric):
    """Returns label → allowed values, or a pattern, or None for anything."""
    by_name = {m["name"].rsplit(".", 1)[-1]: m for m in contract["metrics"]}
    out = {}
    for label, values in metric["labels"].items():
        if isinstance(values, str) and values.startswith("as "):
            values = by_name[values.removeprefix("as ")]["labels"][label]
        out[label] = values if isinstance(values, list) else re.compile(r"\d+") if values == "number" else None
    return out


def metrics_of(contract):
    return {m["prometheus"]: m | {"labels": labels_of_metric(contract, m)} for m in contract["metrics"]}


def series_names(contract):
    """Returns series name → (metric, suffix)."""
    names = {}
    for name, metric in metrics_of(contract).items():
        suffixes = ("_bucket", "_sum", "_count") if metric["kind"] == "histogram" else ("",)
        names |= {name + suffix: (metric, suffix) for suffix in suffixes}
    return names


def check_contract(m):
    names = [metric["prometheus"] for metric in m.contract["metrics"]]
    for name, count in collections.Counter(names).items():
        if count > 1:
            yield f"contract: {name} is there {count} times"
    for metric in m.contract["metrics"]:
        if metric["kind"] not in ("gauge", "counter", "histogram"):
            yield f"contract: {metric['name']} is of kind {metric['kind']}"
        if prometheus_name(metric) != metric["prometheus"]:
            yield f"contract: {metric['name']} is {prometheus_name(metric)} to Prometheus, not {metric['prometheus']}"
        for label in metric["labels"]:
            if label in ("run", "worker", "layer", "block", "shard", "task", "span_id", "trace_id"):
                yield f"contract: {metric['name']} has the id {label} as a label"
