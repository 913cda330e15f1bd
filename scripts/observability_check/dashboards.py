"""Dashboards are what Grafana takes, are laid out well, and are what the generator writes."""

import collections
import copy
import json
import re
import subprocess
import sys
import urllib.parse

from grafana_foundation_sdk.models import dashboard as grafana
from grafana_foundation_sdk.models import units as grafana_units

from material import ROOT
from uses import panels_of


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
