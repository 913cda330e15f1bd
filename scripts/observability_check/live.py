"""What a live Prometheus that has scraped a run answers."""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request

import promql_parser as promql

from uses import plain, uses_of

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
