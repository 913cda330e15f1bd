#!/usr/bin/env python3
"""Checks dashboards, alerts, runbook and what services tell against the contract, docs/telemetry.json.

    observability_check.py                          contract, dashboards, alerts, runbook
    observability_check.py --npm FOLDER             also with Grafana's own types and query grammars (installs them in FOLDER)
    observability_check.py --prometheus URL         also: every panel and alert finds data in a live Prometheus
    observability_check.py --metrics FILE...        also: text scraped from /metrics says what the contract says
    observability_check.py --self-test              also: every check notices what it is for

Packages: scripts/requirements/observability.txt. promtool (Debian: prometheus) is used if it is there; --require-promtool
insists. Ends with 1 if anything is wrong, and says all that is.
"""

import argparse
import collections
import copy
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import promql_parser as promql
import yaml
from grafana_foundation_sdk.models import dashboard as grafana
from grafana_foundation_sdk.models import units as grafana_units
from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "k8s" / "observability"
RUNBOOK = "docs/operations.md"

# Labels that Prometheus or a collector adds to what a process tells.
TARGET_LABELS = {"job", "instance", "namespace", "pod"}
# Labels and families that the exporter adds by OpenTelemetry's rules.
EXPORTER_LABELS = re.compile(r"otel_scope_\w+")
EXPORTER_FAMILIES = {"target", "target_info", "otel_scope", "otel_scope_info"}
# Metrics of Prometheus itself that panels may use, with their labels; None: any.
BUILTIN = {"ALERTS": None}

RATES = {"rate", "irate", "increase", "resets"}
GAUGE_ONLY = {"delta", "idelta", "deriv", "predict_linear"}
UNITS = {"By": {"bytes", "Bps", "percentunit"}, "s": {"s", "percentunit", "none"}}
SEVERITIES = {"critical", "warning"}

# Expressions that may find nothing, and why: (what they contain, reason).
MAY_BE_EMPTY = [
    ("device_memory_used", "the machine has no GPU"),
    ("ALERTS{", "nothing fires"),
    ('outcome="failed"', "no attempt has failed"),
    ('outcome!="completed"', "every attempt has completed"),
    ('rpc_response_status_code!="OK"', "no call has failed"),
    ("FAILED_PRECONDITION", "no worker was refused"),
    ("PauseRun", "nobody has paused a run"),
]


@dataclasses.dataclass
class Material:
    """All that is compared."""

    contract: dict
    dashboards: dict
    alerts: dict
    alert_tests: dict
    runbook: str
    reasons: dict  # name → gRPC code
    exits: dict  # program → exit codes


def load():
    status = (ROOT / "crates/service/src/status.rs").read_text()
    reasons = {name: screaming(code) for name, code in re.findall(r'^\s+\w+ = "([A-Z_]+)", (\w+);', status, re.MULTILINE)}
    exits = {
        "llm-surgeon": exit_codes("crates/cli/src/error/exit.rs"),
        "services": exit_codes("crates/service/src/program/exit.rs"),
    }
    return Material(
        contract=json.loads((ROOT / "docs/telemetry.json").read_text()),
        dashboards={path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))},
        alerts=yaml.safe_load((FOLDER / "alerts.yaml").read_text()),
        alert_tests=yaml.safe_load((FOLDER / "alerts_test.yaml").read_text()),
        runbook=(ROOT / RUNBOOK).read_text(),
        reasons=reasons,
        exits=exits,
    )


def screaming(name):
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def exit_codes(path):
    text = (ROOT / path).read_text()
    codes = {int(code) for code in re.findall(r"Self::\w+ => (\d+),", text)}
    return codes | ({130, 143} if "Signal::Terminate.exit_code()" in text else set())


# ---- the contract ----------------------------------------------------------------------------------------------------

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


# ---- expressions -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Use:
    """An expression, and where it is."""

    where: str
    expr: str
    legend: str = ""
    unit: str = ""
    is_panel: bool = False


def panels_of(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def uses_of(m):
    for name, dashboard in m.dashboards.items():
        for panel in panels_of(dashboard):
            for target in panel.get("targets", []):
                if target.get("datasource", {}).get("type") == "prometheus":
                    where = f"dashboard {name}, panel '{panel['title']}'"
                    unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
                    yield Use(where, target["expr"], target.get("legendFormat", ""), unit, True)
    for rule in rules_of(m):
        texts = " ".join(rule.get("annotations", {}).values())
        legend = " ".join(f"{{{{{label}}}}}" for label in re.findall(r"\$labels\.(\w+)", texts))
        yield Use(f"alert {rule['alert']}", rule["expr"], legend)


def rules_of(m):
    return [rule for group in m.alerts["groups"] for rule in group["rules"]]


def plain(expr, rate_interval="5m", span="1h"):
    """Returns an expression without Grafana's variables: text as its default, selections as all."""
    for name, value in (("__rate_interval", rate_interval), ("__interval", rate_interval), ("__range", span)):
        expr = re.sub(rf"\$({name}\b|{{{name}}})", value, expr)
    return re.sub(r"\$\{?\w+\}?", ".*", expr)


class Reader:
    """Walks one expression and notes what is wrong with it."""

    def __init__(self, contract, use):
        self.names, self.use = series_names(contract), use
        self.faults, self.metrics = [], set()

    def fault(self, text):
        self.faults.append(f"{self.use.where}: {text}")

    def read(self):
        try:
            tree = promql.parse(plain(self.use.expr))
        except ValueError as error:
            self.fault(f"is no PromQL: {error}")
            return self
        labels = self.labels(tree, within=None)
        for label in re.findall(r"{{\s*(\w+)\s*}}", self.use.legend):
            if labels is not None and label not in labels:
                self.fault(f"names the label {label}, which the result does not have ({', '.join(sorted(labels)) or 'none'})")
        return self

    def labels(self, node, within):
        """Returns the labels that a result may have (None: any); `within` is the function around a range."""
        match node:
            case promql.VectorSelector():
                return self.selector(node, within)
            case promql.MatrixSelector():
                return self.selector(node.vector_selector, within)
            case promql.SubqueryExpr() | promql.ParenExpr() | promql.UnaryExpr():
                return self.labels(node.expr, within)
            case promql.AggregateExpr():
                return self.aggregated(node, within)
            case promql.Call():
                return self.called(node)
            case promql.BinaryExpr():
                return self.joined(node, within)
            case promql.NumberLiteral() | promql.StringLiteral():
                return set()
        raise TypeError(f"unknown node {type(node)}")

    def selector(self, node, within):
        matchers = [(matcher.name, matcher.op, matcher.value) for matcher in node.matchers.matchers]
        if node.name in BUILTIN:
            return BUILTIN[node.name]
        if node.name not in self.names:
            self.fault(f"uses {node.name}, which the contract does not have{self.hint(node.name)}")
            return None
        metric, suffix = self.names[node.name]
        self.metrics.add(metric["prometheus"])
        cumulative = metric["kind"] in ("counter", "histogram")
        if within in RATES and not cumulative:
            self.fault(f"{within}() of {node.name}, which is a gauge")
        if within in GAUGE_ONLY and cumulative:
            self.fault(f"{within}() of {node.name}, which only grows")
        if self.use.is_panel and cumulative and within not in RATES:
            self.fault(f"shows {node.name} as it is; it only grows, and starts at 0 with its process: use rate() or increase()")
        extra = {"le"} if suffix == "_bucket" else set()
        for label, op, value in matchers:
            self.matcher(node.name, metric, extra, label, op, value)
        return set(metric["labels"]) | TARGET_LABELS | extra

    def hint(self, name):
        base = re.sub(r"_(bucket|sum|count|total)$", "", name or "")
        near = [known for known in self.names if known.startswith(base)]
        return f" (it has {', '.join(near)})" if near else ""

    def matcher(self, name, metric, extra, label, op, value):
        if label in TARGET_LABELS | extra:
            return
        if label not in metric["labels"]:
            self.fault(f"selects {name} by {label}, a label that it does not have")
            return
        allowed = metric["labels"][label]
        if op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
            if isinstance(allowed, list) and value not in allowed:
                self.fault(f"selects {name} by {label}={value}; there are {', '.join(allowed)}")
        elif isinstance(allowed, list) and value != ".*":
            for part in value.split("|"):
                if not any(re.fullmatch(part, one) for one in allowed):
                    self.fault(f"selects {name} by {label}=~{part}, which is none of {', '.join(allowed)}")

    def aggregated(self, node, within):
        inner = self.labels(node.expr, within)
        if node.modifier is None:
            return set()
        named = set(node.modifier.labels)
        if node.modifier.type == promql.AggModifierType.Without:
            return None if inner is None else inner - named
        for label in sorted(named - inner) if inner is not None else ():
            self.fault(f"aggregates by {label}, a label that is not there")
        return named

    def called(self, node):
        name = node.func.name
        vectors = [self.labels(arg, name) for arg in node.args]
        if name in ("absent", "absent_over_time", "scalar", "vector", "time"):
            return set()
        labels = vectors[-1] if vectors else set()
        if name == "histogram_quantile":
            if labels is not None and "le" not in labels:
                self.fault("histogram_quantile() without le")
            return None if labels is None else labels - {"le"}
        return labels

    def joined(self, node, within):
        left, right = self.labels(node.lhs, within), self.labels(node.rhs, within)
        if str(node.op).startswith("or"):
            return None if None in (left, right) else left | right
        if isinstance(node.lhs, (promql.NumberLiteral, promql.StringLiteral)):
            return right
        return left


def check_expressions(m):
    used = set()
    for use in uses_of(m):
        reader = Reader(m.contract, use).read()
        used |= reader.metrics
        yield from reader.faults
        units = {metrics_of(m.contract)[name]["unit"] for name in reader.metrics}
        if use.is_panel and len(units) == 1 and (unit := units.pop()) in UNITS:
            kinds = {metrics_of(m.contract)[name]["kind"] for name in reader.metrics}
            counted = kinds == {"histogram"} and "_bucket" not in use.expr
            if use.unit not in UNITS[unit] and not counted:
                yield f"{use.where}: shows {unit} in the unit '{use.unit}'"
    for name in sorted(set(metrics_of(m.contract)) - used):
        yield f"contract: {name} is in no panel and no alert"


def check_variables(m):
    names = series_names(m.contract)
    for name, dashboard in m.dashboards.items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] != "query":
                continue
            asked = variable["query"]["query"]
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", asked)
            if not found:
                yield f"dashboard {name}, variable {variable['name']}: '{asked}' is not label_values(METRIC, LABEL)"
            elif found[1] not in names:
                yield f"dashboard {name}, variable {variable['name']}: {found[1]} is not in the contract"
            elif found[2] not in set(names[found[1]][0]["labels"]) | TARGET_LABELS:
                yield f"dashboard {name}, variable {variable['name']}: {found[1]} has no label {found[2]}"


# ---- dashboards ------------------------------------------------------------------------------------------------------


def dropped(before, after, path=""):
    """Returns paths of what Grafana's model did not take over."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key not in after:
                if value not in (None, "", [], {}, False):
                    yield f"{path}.{key}"
            else:
                yield from dropped(value, after[key], f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for n, (one, other) in enumerate(zip(before, after)):
            yield from dropped(one, other, f"{path}[{n}]")
    elif before != after:
        yield path


def as_json(value):
    return json.loads(json.dumps(value, default=lambda o: o.to_json()))


# What Grafana takes and its model of 11.6 does not know.
BEYOND_MODEL = re.compile(
    r"\.timepicker$|\.fieldConfig\.defaults\.thresholds\.steps\[0\]\.value$|\.templating\.list\[\d+\]\.\w+$|\.targets\[\d+\]\.(format|editorMode)$"
)


def check_dashboards(m):
    known_units = {value for name, value in vars(grafana_units).items() if isinstance(value, str) and not name.startswith("__")}
    uids = collections.Counter(d.get("uid") for d in m.dashboards.values())
    for name in ("run", "transfer", "workers", "failures"):
        if name not in m.dashboards:
            yield f"dashboard {name}: there is none"
    for name, dashboard in m.dashboards.items():
        where = f"dashboard {name}"
        if not dashboard.get("uid") or uids[dashboard["uid"]] > 1:
            yield f"{where}: its uid is not its own"
        if dashboard.get("schemaVersion", 0) < 39:
            yield f"{where}: schemaVersion is below 39"
        variables = {v["name"]: v["type"] for v in dashboard["templating"]["list"]}
        for wanted, kind in {
            "datasource": "datasource", "tempo": "datasource", "loki": "datasource", "slot": "query", "run": "textbox", "shot": "textbox",
        }.items():
            if variables.get(wanted) != kind:
                yield f"{where}: has no variable {wanted} of type {kind}"
        text = json.dumps(dashboard)
        for used in set(re.findall(r"\$\{?([a-zA-Z]\w*)\}?", text)):
            if used not in variables:
                yield f"{where}: uses the variable ${used}, which it does not have"
        if not any("traceql" in urllib.parse.unquote(link["url"]) for link in dashboard["links"]):
            yield f"{where}: has no link to traces"
        yield from check_panels(where, dashboard, known_units)
        try:
            model = as_json(grafana.Dashboard.from_json(copy.deepcopy(dashboard)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield f"{where}: Grafana's model does not load it: {error!r}"
            continue
        for path in dropped(dashboard, model):
            if not BEYOND_MODEL.search(path):
                yield f"{where}: Grafana's model does not know {path}"


def check_panels(where, dashboard, known_units):
    ids = collections.Counter(panel["id"] for panel in panels_of(dashboard))
    taken = {}
    for panel in panels_of(dashboard):
        at = f"{where}, panel '{panel['title']}'"
        if ids[panel["id"]] > 1:
            yield f"{at}: its id is not its own"
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"{at}: is wider than the page"
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            if taken.setdefault(cell, panel["title"]) != panel["title"]:
                yield f"{at}: lies over '{taken[cell]}'"
                break
        if panel["type"] == "row":
            continue
        if len(panel.get("description", "")) < 40:
            yield f"{at}: has no description"
        for source in [panel.get("datasource", {})] + [t.get("datasource", {}) for t in panel.get("targets", [])]:
            if source.get("uid") not in ("${datasource}", "${tempo}", "${loki}"):
                yield f"{at}: its datasource is no variable"
        unit = panel["fieldConfig"]["defaults"].get("unit", "")
        if unit not in known_units:
            yield f"{at}: Grafana has no unit '{unit}'"


def check_generated(_):
    """The committed JSON is what the generator writes."""
    command = [sys.executable, "-B", str(ROOT / "scripts/dashboards.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        yield run.stderr.strip()


# ---- alerts and runbook ----------------------------------------------------------------------------------------------


def anchors(markdown):
    """Returns the anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def check_alerts(m):
    known = anchors(m.runbook)
    for rule in rules_of(m):
        where, notes = f"alert {rule['alert']}", rule.get("annotations", {})
        if rule.get("labels", {}).get("severity") not in SEVERITIES:
            yield f"{where}: its severity is none of {', '.join(sorted(SEVERITIES))}"
        for key, holder in (("for", rule), ("summary", notes), ("description", notes), ("runbook_url", notes)):
            if key not in holder:
                yield f"{where}: has no {key}"
        page, _, anchor = notes.get("runbook_url", "").partition("#")
        if page != RUNBOOK or anchor not in known:
            yield f"{where}: {notes.get('runbook_url')} is no heading of {RUNBOOK}"
        if anchor != rule["alert"].lower():
            yield f"{where}: its runbook_url is that of another alert"
    yield from check_alert_tests(m)


def check_alert_tests(m):
    fires, quiet = set(), set()
    for test in m.alert_tests["tests"]:
        namespaces = {re.search(r'namespace="([^"]+)"', s["series"])[1] for s in test["input_series"]}
        for one in test["alert_rule_test"]:
            expected = one.get("exp_alerts") or []
            roles = {(one["alertname"], alert["exp_labels"].get("role")) for alert in expected}
            fires |= roles
            spared = namespaces - {alert["exp_labels"].get("namespace") for alert in expected}
            if spared or not expected:
                quiet.add(one["alertname"])
    for rule in rules_of(m):
        if (rule["alert"], rule["labels"].get("role")) not in fires:
            yield f"alert {rule['alert']}: no test in which it fires"
        if rule["alert"] not in quiet:
            yield f"alert {rule['alert']}: no test in which it must not fire"


def check_runbook(m):
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `?([A-Z_]+)`? \|", m.runbook, re.MULTILINE))
    for name, code in m.reasons.items():
        if name not in rows:
            yield f"{RUNBOOK}: no row of a table for the reason {name}"
        elif rows[name] != code:
            yield f"{RUNBOOK}: {name} goes with {code}, not {rows[name]}"
    for name in sorted(set(rows) - set(m.reasons)):
        yield f"{RUNBOOK}: {name} is no reason that is published"
    for program, codes in m.exits.items():
        section = re.search(rf"^### Exit codes of [^\n]*{program}$(.*?)(?=^##)", m.runbook, re.MULTILINE | re.DOTALL)
        listed = set(map(int, re.findall(r"^\| (\d+) \|", section[1], re.MULTILINE))) if section else set()
        for code in sorted(codes ^ listed):
            yield f"{RUNBOOK}: exit code {code} of {program} is {'not there' if code in codes else 'none'}"
    for link in re.findall(r"\]\(#([\w-]+)\)", m.runbook):
        if link not in anchors(m.runbook):
            yield f"{RUNBOOK}: #{link} leads nowhere"


# ---- other people's tools --------------------------------------------------------------------------------------------


def check_promtool(m, tool):
    """Prometheus itself reads rules, tests and configuration, and every panel's expression."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "alerts.yaml").write_text(yaml.safe_dump(m.alerts))
        (folder / "alerts_test.yaml").write_text(yaml.safe_dump(m.alert_tests))
        panels = [{"record": f"panel:{n}", "expr": plain(u.expr)} for n, u in enumerate(u for u in uses_of(m) if u.is_panel)]
        (folder / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": panels}]}))
        config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
        for job in config["scrape_configs"]:
            # Debian's promtool is built without Kubernetes.
            if "kubernetes_sd_configs" in job:
                job.pop("kubernetes_sd_configs")
                job["static_configs"] = [{"targets": ["pod:9100"]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        commands = [
            ["check", "rules", folder / "alerts.yaml", folder / "panels.yaml"], ["test", "rules", folder / "alerts_test.yaml"],
            ["check", "config", folder / "prometheus.yaml"],
        ]
        for command in commands:
            run = subprocess.run([tool, *map(str, command)], capture_output=True, text=True, cwd=folder)
            if run.returncode != 0:
                yield f"promtool {command[0]} {command[1]}: {(run.stdout + run.stderr).strip()}"


NPM = {
    "@grafana/schema": "13.2.3", "@grafana/lezer-traceql": "1.0.0", "@grafana/lezer-logql": "0.4.2", "@lezer/common": "1.5.1", "@lezer/highlight": "1.2.3", "@lezer/lr": "1.4.10",
    "@prometheus-io/lezer-promql": "0.315.0", "typescript": "5.9.3",
}
PARSE_JS = """
const { readFileSync } = require("fs");
const grammars = {
  traceql: require("@grafana/lezer-traceql").parser, logql: require("@grafana/lezer-logql").parser,
  promql: require("@prometheus-io/lezer-promql").parser,
};
for (const { where, language, query } of JSON.parse(readFileSync(process.argv[2]))) {
  let at = -1;
  grammars[language].parse(query).iterate({ enter: (node) => { if (node.type.isError && at < 0) at = node.from; } });
  if (at >= 0) console.log(`${where}: ${language} has a fault at ${at}: ${query}`);
}
"""


def queries_of(m):
    """Returns every query of every panel and link, with what Grafana calls its language."""
    for name, dashboard in m.dashboards.items():
        defaults = {v["name"]: v.get("current", {}).get("value", "") for v in dashboard["templating"]["list"]}
        filled = lambda text: re.sub(r"\$\{?(\w+)\}?", lambda found: str(defaults.get(found[1], found[1])), text)
        targets = [(panel["title"], target) for panel in panels_of(dashboard) for target in panel.get("targets", [])]
        for link in dashboard["links"]:
            if found := re.search(r"panes=(.*)", link["url"]):
                # Grafana fills variables in before it reads this: their values must not break it.
                targets += [(link["title"], query) for query in pane_of(filled(urllib.parse.unquote(found[1])))]
        for title, target in targets:
            kind = target["datasource"]["type"]
            language = {"tempo": "traceql", "loki": "logql", "prometheus": "promql"}[kind]
            text = target["query"] if kind == "tempo" else target["expr"]
            query = plain(text) if kind == "prometheus" else filled(text)
            yield {"where": f"dashboard {name}, '{title}'", "language": language, "query": query}


def pane_of(text):
    """Returns the queries of an Explore address; one that cannot be read gives a query that no grammar takes."""
    try:
        return json.loads(text)["a"]["queries"]
    except (ValueError, KeyError) as error:
        return [{"datasource": {"type": "tempo"}, "query": f"{{ no JSON: {error}"}]


def check_npm(m, folder):
    """Grafana's own grammars parse every query; its own types take every dashboard and panel."""
    folder = pathlib.Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    package = json.dumps({"name": "check", "private": True, "dependencies": NPM})
    if (folder / "package.json").is_file() is False or (folder / "package.json").read_text() != package:
        (folder / "package.json").write_text(package)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps", "--silent"], check=True, cwd=folder)
    (folder / "queries.json").write_text(json.dumps(list(queries_of(m))))
    (folder / "parse.js").write_text(PARSE_JS)
    run = subprocess.run(["node", "parse.js", "queries.json"], capture_output=True, text=True, cwd=folder)
    yield from run.stdout.splitlines()
    if run.returncode != 0:
        yield f"npm: {run.stderr.strip()}"
    write_types(m, folder)
    run = subprocess.run(["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext",
                          "--moduleResolution", "nodenext", "check.ts"], capture_output=True, text=True, cwd=folder)
    if run.returncode != 0:
        yield from (f"Grafana's types: {line}" for line in run.stdout.splitlines()[:20])


PANEL_TYPES = {"timeseries": "timeseries", "stat": "stat", "bargauge": "bargauge", "heatmap": "heatmap", "logs": "logs", "table": "table"}


def write_types(m, folder):
    """Writes check.ts: each dashboard, each panel's options and field settings, as constants of Grafana's types.

    The types' enums become unions of their values, because JSON has no enums.
    """
    types, source = folder / "types", folder / "node_modules/@grafana/schema/dist/types"
    shutil.rmtree(types, ignore_errors=True)
    shutil.copytree(source, types)
    for path in types.rglob("*.d.ts"):
        text = re.sub(r"(export )?declare enum (\w+) \{(.*?)\}", as_union, path.read_text(), flags=re.DOTALL)
        path.write_text(text.replace("'@grafana/schema'", f"'{(types / 'index').as_posix()}'"))
    raw = types / "raw"
    lines = ["import type * as d from './types/raw/dashboard/x/types.gen.js';"]
    for kind, name in PANEL_TYPES.items():
        (found,) = (raw / "composable" / name).rglob("*.gen.d.ts")
        lines.append(f"import type * as {kind} from './{found.relative_to(folder).as_posix().removesuffix('.d.ts')}.js';")
    custom = {"timeseries": "FieldConfig", "heatmap": "FieldConfig", "table": None}
    for n, (name, dashboard) in enumerate(m.dashboards.items()):
        lines.append(f"export const d{n}: d.Dashboard = {json.dumps(dashboard)};")
        for panel in dashboard["panels"]:
            kind = panel["type"]
            if kind in PANEL_TYPES:
                lines.append(f"export const o{n}_{panel['id']}: Partial<{kind}.Options> = {json.dumps(panel['options'])};")
            if custom.get(kind):
                given = panel["fieldConfig"]["defaults"]["custom"]
                lines.append(f"export const f{n}_{panel['id']}: Partial<{kind}.{custom[kind]}> = {json.dumps(given)};")
    (folder / "check.ts").write_text("\n".join(lines) + "\n")


def as_union(found):
    values = re.findall(r"=\s*(\"[^\"]*\"|-?\d+)", found[3])
    return f"export type {found[2]} = {' | '.join(values)};"


# ---- live ------------------------------------------------------------------------------------------------------------


def excuse(expr):
    return next((reason for part, reason in MAY_BE_EMPTY if part in expr), None)


def selectors_of(expr):
    """Returns an expression's series, each as an expression of its own."""
    found = []

    def visit(node):
        if isinstance(node, (promql.VectorSelector, promql.MatrixSelector)):
            selector = node.vector_selector if isinstance(node, promql.MatrixSelector) else node
            found.append(str(selector))
        return True

    promql.walk(promql.parse(expr), visit)
    return list(dict.fromkeys(found))


def ask(url, expr, seconds):
    now = time.time()
    step = max(1, seconds // 200)
    query = urllib.parse.urlencode({"query": expr, "start": now - seconds, "end": now, "step": step})
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/query_range?{query}", timeout=30) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error).get("error", str(error))) from error


def check_live(m, url, seconds, rate_interval, notes):
    """Every panel's expression finds data in the last `seconds`, and so does every series of every alert."""
    for name, dashboard in m.dashboards.items():
        for variable in (v for v in dashboard["templating"]["list"] if v["type"] == "query"):
            metric, label = re.findall(r"\w+", variable["query"]["query"])[1:]
            if not ask(url, f'{metric}{{{label}!=""}}', seconds):
                yield f"dashboard {name}, variable {variable['name']}: no values"
    for use in uses_of(m):
        expr = plain(use.expr, rate_interval, f"{seconds}s")
        wanted = [expr] if use.is_panel else selectors_of(expr)
        try:
            ask(url, expr, seconds)
            empty = [one for one in wanted if not any(has_number(series) for series in ask(url, one, seconds))]
        except ValueError as error:
            yield f"{use.where}: Prometheus says {error}"
            continue
        for one in empty:
            if reason := excuse(one):
                notes.append(f"{use.where}: no data, as may be: {reason}")
            else:
                yield f"{use.where}: no data: {one}"


def has_number(series):
    return any(value != "NaN" for _, value in series["values"])


# ---- what services tell ----------------------------------------------------------------------------------------------

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


# ---- the checks of the checks ----------------------------------------------------------------------------------------


def example_text(contract, service):
    """Returns what /metrics of a service would say, every label value once."""
    lines = ["# HELP target_info who this is", "# TYPE target_info gauge", f'target_info{{service_name="{service}"}} 1']
    for name, metric in metrics_of(contract).items():
        if service not in metric["services"]:
            continue
        lines += [f"# HELP {name} {metric['about']}", f"# TYPE {name} {metric['kind']}"]
        for labels in label_sets(metric["labels"], EXAMPLE_METHODS[service]):
            given = ",".join(f'{k}="{v}"' for k, v in labels.items())
            if metric["kind"] == "histogram":
                comma = "," if given else ""
                for bound, count in (("0.01", 1), ("1", 3), ("10", 4), ("+Inf", 4)):
                    lines.append(f'{name}_bucket{{{given}{comma}le="{bound}"}} {count}')
                lines += [f"{name}_sum{{{given}}} 5", f"{name}_count{{{given}}} 4"]
            else:
                lines.append(f"{name}{{{given}}} 3")
    return "\n".join(lines) + "\n"


EXAMPLE_METHODS = {"coordinator": "CoordinatorService/GetRun", "calibrator": "CalibratorService/StreamFactors", "surgeon": "SurgeonService/UploadFactors"}


def label_sets(labels, method):
    """Returns dictionaries in which every value of every label comes up."""
    examples = {"rpc_method": f"llm_surgeon.v1.{method}", "rpc_response_status_code": "OK"}
    lists = {k: v if isinstance(v, list) else [examples.get(k, "0")] for k, v in labels.items()}
    sets = [{}]
    for label, values in lists.items():
        sets = [one | {label: value} for one in sets for value in values]
    return sets


def find_panel(m, title):
    return next(p for d in m.dashboards.values() for p in d["panels"] if p["title"] == title)


def replace_expr(title, old, new):
    def mutate(m):
        target = find_panel(m, title)["targets"][0]
        assert old in target["expr"], (title, old)
        target["expr"] = target["expr"].replace(old, new)
    return mutate


def rule(m, name):
    return next(r for r in rules_of(m) if r["alert"] == name)


def set_in(pick, key, value):
    return lambda m: pick(m).__setitem__(key, value)


def drop_in(pick, key):
    return lambda m: pick(m).pop(key)


def metric_in(m, name):
    return next(x for x in m.contract["metrics"] if x["name"] == name)


def edit_runbook(old, new):
    def mutate(m):
        assert old in m.runbook, old
        m.runbook = m.runbook.replace(old, new)
    return mutate


def mutations():
    """(what is done, how, what must be said)."""
    tasks, workers = "llm_surgeon.coordinator.tasks", "llm_surgeon.coordinator.workers"
    return [
        ("a metric is renamed", lambda m: metric_in(m, workers).update(name=workers + "x", prometheus="llm_surgeon_coordinator_workersx"), r"uses llm_surgeon_coordinator_workers, which"),
        ("a metric is new and nobody shows it", lambda m: m.contract["metrics"].append(metric_in(m, tasks) | {"name": "a.b", "prometheus": "a_b"}), r"a_b is in no panel"),
        ("a name breaks the rules", lambda m: metric_in(m, tasks).update(prometheus="llm_surgeon_tasks"), r"to Prometheus, not llm_surgeon_tasks"),
        ("an id becomes a label", lambda m: metric_in(m, tasks)["labels"].update(run="text"), r"has the id run"),
        ("a label is renamed", lambda m: metric_in(m, workers)["labels"].update(kind=metric_in(m, workers)["labels"].pop("role")), r"role, a label that (is not there|it does not have)"),
        ("a label's value is gone", lambda m: metric_in(m, tasks)["labels"].update(state=["leased", "committing"]), r"state=waiting; there are"),
        ("a value of a regular expression is gone", lambda m: metric_in(m, tasks)["labels"]["phase"].remove("weigh"), r"phase=~weigh, which is none"),
        ("a counter becomes a gauge", lambda m: metric_in(m, "llm_surgeon.calibrator.tokens").update(kind="gauge"), r"which is a gauge"),
        ("a gauge becomes a counter", lambda m: metric_in(m, "llm_surgeon.calibrator.factors.waiting").update(kind="counter"), r"as it is; it only grows"),
        ("a histogram becomes a gauge", lambda m: metric_in(m, "llm_surgeon.surgeon.damping").update(kind="gauge"), r"uses llm_surgeon_surgeon_damping_ratio_bucket, which"),
        ("a panel forgets _bucket", replace_expr("Journal append", "_bucket", ""), r"uses llm_surgeon_coordinator_journal_append_duration_seconds, which"),
        ("a panel forgets le", replace_expr("Journal append", "by (le)", "by (outcome)"), r"histogram_quantile\(\) without le"),
        ("a panel forgets _total", replace_expr("Leases expired", "_total", ""), r"leases_expired, which"),
        ("a panel rates a gauge", replace_expr("Blocks waiting", 'waiting{instance=~"$instance"}', "waiting[5m]"), r"is no PromQL|which is a gauge"),
        ("a panel selects an unknown state", replace_expr("Waiting", "waiting", "idle"), r"state=idle; there are"),
        ("a panel is no PromQL", replace_expr("Waiting", "max by", "max max by"), r"is no PromQL"),
        ("a legend names a lost label", lambda m: find_panel(m, "Waiting")["targets"][0].update(legendFormat="{{state}}"), r"names the label state"),
        ("a panel shows bytes as seconds", lambda m: find_panel(m, "GPU memory in use")["fieldConfig"]["defaults"].update(unit="s"), r"shows By in the unit 's'"),
        ("a panel has a unit of its own", lambda m: find_panel(m, "Size")["fieldConfig"]["defaults"].update(unit="percentage"), r"Grafana has no unit"),
        ("a panel says nothing", lambda m: find_panel(m, "Size").update(description=""), r"has no description"),
        ("a panel lies over another", lambda m: find_panel(m, "Size")["gridPos"].update(x=12), r"lies over"),
        ("a panel has a datasource of its own", lambda m: find_panel(m, "Size")["datasource"].update(uid="abc"), r"is no variable"),
        ("a variable asks for a lost label", lambda m: next(v for v in m.dashboards["run"]["templating"]["list"] if v["name"] == "slot").update(query={"query": "label_values(llm_surgeon_coordinator_runs, slot)"}), r"has no label slot"),
        ("a variable is gone", lambda m: m.dashboards["run"]["templating"]["list"].pop(), r"variable \$logs, which"),
        ("two dashboards share a uid", lambda m: m.dashboards["run"].update(uid="llm-surgeon-workers"), r"its uid is not its own"),
        ("an old schema", lambda m: m.dashboards["run"].update(schemaVersion=36), r"below 39"),
        ("a link to traces is gone", lambda m: m.dashboards["run"].update(links=[]), r"no link to traces"),
        ("a dashboard is gone", lambda m: m.dashboards.pop("transfer"), r"dashboard transfer: there is none"),
        ("a dashboard has a key that Grafana lacks", lambda m: m.dashboards["run"].update(colour="blue"), r"does not know \.colour"),
        ("a panel has a key that Grafana lacks", lambda m: find_panel(m, "Size")["fieldConfig"]["defaults"].update(colour="blue"), r"does not know .*colour"),
        ("a dashboard that does not load", lambda m: m.dashboards["run"].update(templating=[1]), r"does not load|variable"),
        ("an alert without severity", lambda m: rule(m, "LlmSurgeonRunStalled").update(labels={}), r"its severity is none"),
        ("an alert without for", drop_in(lambda m: rule(m, "LlmSurgeonRunStalled"), "for"), r"has no for"),
        ("an alert without description", drop_in(lambda m: rule(m, "LlmSurgeonRunStalled")["annotations"], "description"), r"has no description"),
        ("an alert leads nowhere", set_in(lambda m: rule(m, "LlmSurgeonRunStalled")["annotations"], "runbook_url", "docs/operations.md#none"), r"is no heading"),
        ("an alert uses an unknown metric", set_in(lambda m: rule(m, "LlmSurgeonRunStalled"), "expr", "llm_surgeon_idle > 3"), r"uses llm_surgeon_idle"),
        ("an alert rates a gauge", set_in(lambda m: rule(m, "LlmSurgeonRunStalled"), "expr", "rate(llm_surgeon_coordinator_run_idle_seconds[5m]) > 3"), r"which is a gauge"),
        ("an alert tells a label that it lost", set_in(lambda m: rule(m, "LlmSurgeonRunStalled"), "expr", "max(llm_surgeon_coordinator_run_idle_seconds) > 600"), r"names the label slot"),
        ("an alert is not tested", lambda m: m.alerts["groups"][0]["rules"].append(rule(m, "LlmSurgeonRunStalled") | {"alert": "LlmSurgeonNew"}), r"LlmSurgeonNew: no test in which it fires"),
        ("an alert never stays quiet", lambda m: m.alert_tests.update(tests=[t for t in m.alert_tests["tests"] if "store" not in t["name"]]), r"StoreNearlyFull: no test in which it must not"),
        ("a heading of the runbook is gone", edit_runbook("### LlmSurgeonJournalSlow", "### Slow journal"), r"JournalSlow: .* is no heading"),
        ("a reason is new", lambda m: m.reasons.update(MOON_TOO_FULL="INTERNAL"), r"no row of a table for the reason MOON_TOO_FULL"),
        ("a reason is gone", lambda m: m.reasons.pop("FENCED"), r"FENCED is no reason"),
        ("a reason has another code", lambda m: m.reasons.update(FENCED="INTERNAL"), r"FENCED goes with INTERNAL"),
        ("an exit code is new", lambda m: m.exits["services"].add(99), r"exit code 99 of services is not there"),
        ("an exit code is gone", lambda m: m.exits["llm-surgeon"].discard(75), r"exit code 75 of llm-surgeon is none"),
    ]


def text_mutations(text):
    """(what is done to the coordinator's text, the text, what must be said)."""
    return [
        ("a metric is not told", re.sub(r"(?m)^.*llm_surgeon_coordinator_run_damping_ratio.*\n", "", text), r"run_damping_ratio is in the contract, but not told"),
        ("a metric is unknown", text + "# TYPE surprise gauge\nsurprise 1\n", r"surprise \(gauge\) is not in the contract"),
        ("a type is another", text.replace("# TYPE llm_surgeon_coordinator_runs gauge", "# TYPE llm_surgeon_coordinator_runs unknown"), r"is a unknown"),
        ("a label is too many", text.replace('runs{state="queued"}', 'runs{state="queued",run="r-1"}'), r"has the labels \['run', 'state'\]"),
        ("a label is missing", text.replace('runs{state="queued"}', "runs"), r"has the labels \[\]"),
        ("a value is unknown", text.replace('runs{state="queued"}', 'runs{state="asleep"}'), r'state="asleep"'),
        ("a slot is no number", text.replace('shot_progress_ratio{slot="0"}', 'shot_progress_ratio{slot="r-1"}'), r'slot="r-1"'),
        ("another service tells it", text.replace('service_name="coordinator"', 'service_name="surgeon"'), r"is told by surgeon"),
    ]


def self_test(m, promtool, npm):
    """Returns what the checks did not notice."""
    count = 0
    for what, mutate, wanted in mutations():
        mutant = copy.deepcopy(m)
        mutate(mutant)
        faults = []
        try:
            faults = list(static_faults(mutant))
        except (KeyError, TypeError, AttributeError) as error:
            faults = [f"does not load: {error!r}"]
        count += 1
        if not any(re.search(wanted, fault) for fault in faults):
            yield f"self-test: {what}: not noticed; said {faults[:3]}"
    texts = {f"{s}.txt": example_text(m.contract, s) for s in SERVICES}
    for fault in check_metrics(m, texts, []):
        yield f"self-test: an example made from the contract is refused: {fault}"
    for what, text, wanted in text_mutations(texts["coordinator.txt"]):
        count += 1
        if text == texts["coordinator.txt"] or not any(re.search(wanted, f) for f in check_metrics(m, texts | {"coordinator.txt": text}, [])):
            yield f"self-test: {what}: not noticed"
    for what, mutate in promtool_mutations() if promtool else ():
        mutant = copy.deepcopy(m)
        mutate(mutant)
        count += 1
        if not list(check_promtool(mutant, promtool)):
            yield f"self-test: {what}: promtool did not notice"
    for what, mutate, wanted in npm_mutations() if npm else ():
        mutant = copy.deepcopy(m)
        mutate(mutant)
        count += 1
        if not any(re.search(wanted, fault) for fault in check_npm(mutant, npm)):
            yield f"self-test: {what}: not noticed"
    print(f"observability_check: {count} faults put in on purpose")


def npm_mutations():
    def query(title, key, text):
        return lambda m: find_panel(m, title)["targets"][0].__setitem__(key, text)
    return [
        ("a search for traces lacks a bracket", query("Traces of the run", "query", '{ span.run = "r" '), r"traceql has a fault"),
        ("a search in logs is none", query("Logs of the run", "expr", '{a="b"} |~ |~'), r"logql has a fault"),
        ("a link breaks when its variables are filled in", lambda m: m.dashboards["run"]["links"][3].update(url="/explore?panes={%22a%22:{%22queries%22:[{%22expr%22:%22$logs%22}]}}"), r"no JSON"),
        ("an option has a value that Grafana lacks", lambda m: find_panel(m, "Idle")["options"].update(graphMode="pie"), r"Grafana's types: .*pie"),
        ("a dashboard's setting is of another type", lambda m: m.dashboards["run"].update(graphTooltip="on"), r"Grafana's types: .*DashboardCursorSync"),
    ]


def promtool_mutations():
    return [
        (f"{name} fires never", set_in(lambda m, name=name: rule(m, name), "expr", "vector(1) > 2"))
        for name in ("LlmSurgeonRunStalled", "LlmSurgeonJournalSlow", "LlmSurgeonRunPaused", "LlmSurgeonNoWorker")
    ] + [
        ("a threshold is lower", lambda m: rule(m, "LlmSurgeonRunStalled").update(expr=rule(m, "LlmSurgeonRunStalled")["expr"].replace("600", "60"))),
        ("a pause by a caller is not told apart", lambda m: rule(m, "LlmSurgeonRunPaused").update(expr=rule(m, "LlmSurgeonRunPaused")["expr"].split(" unless")[0])),
    ]


# ---- the program -----------------------------------------------------------------------------------------------------


def static_faults(m):
    for check in (check_contract, check_expressions, check_variables, check_dashboards, check_alerts, check_runbook):
        yield from check(m)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", metavar="URL", help="a live Prometheus that has scraped a run")
    parser.add_argument("--since", metavar="SECONDS", type=int, default=900, help="how far back data may lie there [default: 900]")
    parser.add_argument("--rate-interval", metavar="TIME", default="1m", help="four times its scrape interval at least [default: 1m]")
    parser.add_argument("--metrics", metavar="FILE", nargs="+", default=[], help="text of /metrics; several of one service count together")
    parser.add_argument("--npm", metavar="FOLDER", help="also check with npm packages, which are installed there")
    parser.add_argument("--example", metavar="FOLDER", help="only write SERVICE.txt there: what /metrics would say by the contract")
    parser.add_argument("--require-promtool", action="store_true", help="it is an error if promtool is not there")
    parser.add_argument("--self-test", action="store_true", help="put faults in and see that they are noticed")
    args = parser.parse_args()

    m, notes, promtool = load(), [], shutil.which("promtool")
    if args.example:
        for service in SERVICES:
            pathlib.Path(args.example, f"{service}.txt").write_text(example_text(m.contract, service))
        return
    faults = list(static_faults(m)) + list(check_generated(m))
    if promtool:
        faults += check_promtool(m, promtool)
    elif args.require_promtool:
        faults.append("promtool is not there; on Debian and Ubuntu: apt-get install --no-install-recommends prometheus")
    else:
        notes.append("promtool is not there: rules, their tests and prometheus.yaml were not checked by Prometheus itself")
    if args.npm:
        faults += check_npm(m, args.npm)
    if args.metrics:
        faults += check_metrics(m, {path: pathlib.Path(path).read_text() for path in args.metrics}, notes)
    if args.prometheus:
        faults += check_live(m, args.prometheus, args.since, args.rate_interval, notes)
    if args.self_test:
        faults += self_test(m, promtool, args.npm)

    for note in notes:
        print(f"observability_check: note: {note}")
    for fault in faults:
        print(f"observability_check: error: {fault}", file=sys.stderr)
    uses = list(uses_of(m))
    panels = sum(use.is_panel for use in uses)
    print(f"observability_check: {len(m.contract['metrics'])} metrics, {len(m.dashboards)} dashboards, {panels} expressions of panels, "
          f"{len(uses) - panels} alerts, {len(m.reasons)} reasons: {len(faults) or 'no'} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
