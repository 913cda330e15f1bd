"""Expressions of panels and alerts, and where they are."""

import dataclasses
import re


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
