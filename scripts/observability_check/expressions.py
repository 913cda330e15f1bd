"""What an expression uses is in the contract, and is used as its kind allows."""

import re

import promql_parser as promql

from contract import TARGET_LABELS, metrics_of, series_names
from uses import plain, uses_of

# Metrics of Prometheus itself that panels may use, with their labels; None: any.
BUILTIN = {"ALERTS": None}

RATES = {"rate", "irate", "increase", "resets"}
GAUGE_ONLY = {"delta", "idelta", "deriv", "predict_linear"}
UNITS = {"By": {"bytes", "Bps", "percentunit"}, "s": {"s", "percentunit", "none"}}


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
