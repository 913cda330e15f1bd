#!/usr/bin/env python3
"""Writes the Grafana dashboards under k8s/observability/dashboards/; with --check, says whether they are what it would write.

One list of panels a dashboard. Names and labels of metrics come from docs/telemetry.json; scripts/observability_check
compares both. Needs nothing but Python.
"""

import json
import pathlib
import sys
import urllib.parse

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "k8s" / "observability" / "dashboards"
SCHEMA_VERSION = 39
TAG = "llm-surgeon"

PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
TEMPO = {"type": "tempo", "uid": "${tempo}"}
LOKI = {"type": "loki", "uid": "${loki}"}

SERVICES = 'resource.service.name =~ "coordinator|calibrator|surgeon"'
RUN_TRACES = f'{{ {SERVICES} && span.run =~ "$run" }}'
SHOT_TRACES = f'{{ {SERVICES} && span.run =~ "$run" && span.shot = $shot }}'
FAILED_TRACES = f'{{ {SERVICES} && span.run =~ "$run" && status = error }}'
STREAMS = '{service_name=~"coordinator|calibrator|surgeon"}'
RUN_LOGS = "$logs |~ `$run`"
FAULT_LOGS = '$logs |~ `$run` |~ `"level":"(WARN|ERROR)"`'

COORDINATOR = "llm_surgeon_coordinator_"
CALIBRATOR = "llm_surgeon_calibrator_"
SURGEON = "llm_surgeon_surgeon_"
SERVICE = "llm_surgeon_service_"
OF_SLOT = '{slot=~"$slot"}'
OF_INSTANCE = '{instance=~"$instance"}'

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


# ---- parts of a dashboard --------------------------------------------------------------------------------------------


def target(expr, legend, ref, instant=False):
    query = {"datasource": PROMETHEUS, "expr": expr, "legendFormat": legend, "refId": ref, "editorMode": "code"}
    return query | ({"instant": True, "range": False} if instant else {"instant": False, "range": True})


def thresholds(*steps):
    """thresholds("green", ("yellow", 5)): the first colour is that of everything below."""
    base, *rest = steps
    parts = [{"color": base, "value": None}] + [{"color": color, "value": value} for color, value in rest]
    return {"mode": "absolute", "steps": parts}


def panel(kind, title, good, width, height, targets, unit="none", datasource=PROMETHEUS, **more):
    """A panel without its place. `good` is the description: what is shown, and what good looks like."""
    defaults = {"unit": unit} | more.pop("defaults", {})
    options = more.pop("options", {})
    overrides = more.pop("overrides", [])
    return {
        "type": kind, "title": title, "description": good, "datasource": datasource, "targets": targets,
        "gridPos": {"w": width, "h": height, "x": 0, "y": 0}, "options": options,
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
    } | more


def series(title, good, queries, unit="none", width=12, height=8, stacked=False, log=False, low=None, high=None, links=()):
    """Lines over time; queries are (expression, legend)."""
    custom = {
        "drawStyle": "line", "lineInterpolation": "linear", "lineWidth": 1, "fillOpacity": 25 if stacked else 5, "showPoints": "auto",
        "spanNulls": False, "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
    }
    defaults = {"custom": custom, "color": {"mode": "palette-classic"}}
    defaults |= {"min": low} if low is not None else {}
    defaults |= {"max": high} if high is not None else {}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    targets = [target(expr, legend, chr(ord("A") + n)) for n, (expr, legend) in enumerate(queries)]
    more = {"links": list(links)} if links else {}
    return panel("timeseries", title, good, width, height, targets, unit, defaults=defaults, options=options, **more)


def number(title, good, queries, unit="none", width=6, height=5, steps=(BLUE,), links=(), decimals=None):
    """The latest values, large."""
    defaults = {"thresholds": thresholds(*steps), "color": {"mode": "thresholds"}}
    defaults |= {"decimals": decimals} if decimals is not None else {}
    options = {
        "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto", "textMode": "value_and_name",
        "wideLayout": True, "showPercentChange": False, "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    targets = [target(expr, legend, chr(ord("A") + n)) for n, (expr, legend) in enumerate(queries)]
    more = {"links": list(links)} if links else {}
    return panel("stat", title, good, width, height, targets, unit, defaults=defaults, options=options, **more)


def bars(title, good, queries, unit="none", width=12, height=8, steps=(BLUE,), low=0, high=None):
    """One horizontal bar for each series' latest value."""
    defaults = {"thresholds": thresholds(*steps), "color": {"mode": "thresholds"}, "min": low}
    defaults |= {"max": high} if high is not None else {}
    options = {
        "displayMode": "gradient", "orientation": "horizontal", "valueMode": "color", "namePlacement": "auto", "showUnfilled": True,
        "sizing": "auto", "minVizWidth": 8, "minVizHeight": 16, "maxVizHeight": 300,
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    targets = [target(expr, legend, chr(ord("A") + n), instant=True) for n, (expr, legend) in enumerate(queries)]
    return panel("bargauge", title, good, width, height, targets, unit, defaults=defaults, options=options)


def heat(title, good, expr, unit, width=12, height=8):
    """A histogram's buckets over time."""
    query = target(expr, "{{le}}", "A") | {"format": "heatmap"}
    options = {
        "calculate": False, "cellGap": 1, "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        "color": {"mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "scale": "exponential", "exponent": 0.5, "steps": 64, "reverse": False},
        "cellValues": {}, "rowsFrame": {"layout": "auto"}, "showValue": "never",
        "filterValues": {"le": 1e-9}, "exemplars": {"color": "rgba(255,0,255,0.7)"}, "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
    }
    custom = {"hideFrom": {"legend": False, "tooltip": False, "viz": False}, "scaleDistribution": {"type": "linear"}}
    return panel("heatmap", title, good, width, height, [query], unit, defaults={"custom": custom}, options=options)


def grid_options():
    return {"showHeader": True, "cellHeight": "sm"}


def traces(title, good, query, width=12, height=9):
    """A table of traces that a search finds; a click on one opens it."""
    search = {
        "datasource": TEMPO, "queryType": "traceql", "query": query, "limit": 20, "spss": 3, "tableType": "traces", "filters": [], "refId": "A",
    }
    defaults = {"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}}
    return panel("table", title, good, width, height, [search], datasource=TEMPO, defaults=defaults, options=grid_options())


def logs(title, good, query, width=24, height=9):
    """Log lines, newest first; the field trace_id leads to the trace if the Loki datasource has such a derived field."""
    search = {"datasource": LOKI, "expr": query, "queryType": "range", "refId": "A", "editorMode": "code", "maxLines": 500}
    options = {
        "showTime": True, "showLabels": False, "showCommonLabels": False, "wrapLogMessage": True, "prettifyLogMessage": False,
        "enableLogDetails": True, "dedupStrategy": "none", "sortOrder": "Descending",
    }
    return panel("logs", title, good, width, height, [search], datasource=LOKI, options=options)


def firing(title, good, width=12, height=9):
    """A table of our alerts that fire."""
    expr = 'sum by (alertname, severity, slot, role, phase, instance) (ALERTS{alertname=~"LlmSurgeon.+", alertstate="firing"})'
    query = target(expr, "", "A", instant=True) | {"format": "table"}
    defaults = {"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}}
    hide = {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}, "indexByName": {}, "renameByName": {}}}
    return panel("table", title, good, width, height, [query], defaults=defaults, options=grid_options(), transformations=[hide])


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": 24, "h": 1, "x": 0, "y": 0}}


def explore(datasource, query):
    """Returns the address of Grafana's Explore with a query; its variables are filled in when somebody clicks."""
    kind = datasource["type"]
    ask = {"refId": "A", "datasource": datasource}
    ask |= {"queryType": "traceql", "query": query} if kind == "tempo" else {"queryType": "range", "expr": query}
    pane = {"a": {"datasource": datasource["uid"], "queries": [ask], "range": {"from": "${__from}", "to": "${__to}"}}}
    quoted = urllib.parse.quote(json.dumps(pane, separators=(",", ":")), safe="${}")
    return f"/explore?schemaVersion=1&panes={quoted}"


def link(title, url, **more):
    return {
        "title": title, "type": "link", "icon": "external link", "url": url, "tooltip": "", "tags": [], "asDropdown": False,
        "targetBlank": True, "includeVars": False, "keepTime": False,
    } | more


def datasource_variable(name, label, kind):
    return {
        "name": name, "label": label, "type": "datasource", "query": kind, "hide": 0, "refresh": 1, "regex": "",
        "includeAll": False, "multi": False, "options": [], "skipUrlSync": False,
    }


def label_variable(name, label, metric, of, about):
    query = f"label_values({metric}, {of})"
    return {
        "name": name, "label": label, "description": about, "type": "query", "datasource": PROMETHEUS,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "hide": 0, "refresh": 2, "sort": 3, "regex": "", "includeAll": True, "allValue": ".*", "multi": True, "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]}, "skipUrlSync": False,
    }


def text_variable(name, label, value, about):
    current = {"selected": True, "text": value, "value": value}
    return {
        "name": name, "label": label, "description": about, "type": "textbox", "query": value, "hide": 0, "current": current,
        "options": [current], "skipUrlSync": False,
    }


def variables(by_instance):
    given = [
        datasource_variable("datasource", "Metrics", "prometheus"),
        datasource_variable("tempo", "Traces", "tempo"),
        datasource_variable("loki", "Logs", "loki"),
        label_variable(
            "slot", "Slot", COORDINATOR + "run_shots", "slot",
            "A run's place among those under way. The span run and the log line 'run begins' say which run has which.",
        ),
    ]
    if by_instance:
        about = "Processes, as Prometheus scrapes them."
        given.append(label_variable("instance", "Instance", SERVICE + "memory_peak_bytes", "instance", about))
    return given + [
        text_variable("run", "Run", ".*", "Name of a run (r-0123456789abcdef), for traces and logs; a regular expression. Metrics have no names of runs."),
        text_variable("shot", "Shot", "1", "Number of a shot, for its trace."),
        text_variable("logs", "Log stream", STREAMS, "How Loki's streams of the services are selected."),
    ]


def placed(panels):
    """Gives panels their numbers and places: left to right, a new line where the width of 24 is used up or a row begins."""
    x = y = line = 0
    for number_, part in enumerate(panels, start=1):
        at = part["gridPos"]
        if part["type"] == "row" or x + at["w"] > 24:
            y, x, line = y + line, 0, 0
        at["x"], at["y"] = x, y
        x, line = x + at["w"], max(line, at["h"])
        if part["type"] == "row":
            y, x, line = y + 1, 0, 0
        part["id"] = number_
    return panels


def dashboard(name, title, about, panels, by_instance=False):
    links = [
        link("LLM Surgeon", "", type="dashboards", tags=[TAG], asDropdown=True, includeVars=True, keepTime=True, targetBlank=False, icon="external link"),
        link("Traces of the run", explore(TEMPO, RUN_TRACES)),
        link("Trace of the shot", explore(TEMPO, SHOT_TRACES)),
        link("Logs of the run", explore(LOKI, f"{STREAMS} |~ `$run`")),  # not $logs: its quotes would break the address
    ]
    return {
        "uid": f"llm-surgeon-{name}", "title": f"LLM Surgeon / {title}", "description": about, "tags": [TAG], "schemaVersion": SCHEMA_VERSION,
        "editable": True, "graphTooltip": 1, "fiscalYearStartMonth": 0, "timezone": "browser", "weekStart": "", "refresh": "30s", "version": 1,
        "time": {"from": "now-3h", "to": "now"}, "timepicker": {}, "annotations": {"list": []}, "links": links,
        "templating": {"list": variables(by_instance)}, "panels": placed(panels),
    }


# ---- the dashboards --------------------------------------------------------------------------------------------------


def rate(metric, by, labels=""):
    return f"sum by ({by}) (rate({metric}{labels}[$__rate_interval]))"


def quantile(q, metric, by, labels=""):
    inner = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({q}, sum by ({inner}) (rate({metric}_bucket{labels}[$__rate_interval])))"


def run_panels():
    seconds = COORDINATOR + "task_duration_seconds"
    shot_trace = link("Trace of shot $shot", explore(TEMPO, SHOT_TRACES))
    run_trace = link("Traces of the run", explore(TEMPO, RUN_TRACES))
    return [
        row("Where runs stand"),
        number("Runs", "Runs in the store by state. Good: none failed, none paused but by a caller; queued ones only while as many run as --parallel-runs allows.",
               [(f"max by (state) ({COORDINATOR}runs)", "{{state}}")], width=10, height=6),
        number("Shots", "Shots of each run under way that are done, and that its schedule plans (adaptive schedules: so far). Good: done grows until it meets planned.",
               [(f"max by (slot, kind) ({COORDINATOR}run_shots{OF_SLOT})", "slot {{slot}} {{kind}}")], width=7, height=6, links=[run_trace]),
        number("Idle", "Time since a run's last journal record or sign of progress. Good: seconds; a long task says how far it is. Ten minutes is the alert LlmSurgeonRunStalled.",
               [(f"max by (slot) ({COORDINATOR}run_idle_seconds{OF_SLOT})", "slot {{slot}}")], "s", 7, 6, (GREEN, (YELLOW, 120), (RED, 600)), links=[run_trace]),
        bars("Progress of the shot", "Share of the present shot's tasks that are in the journal. Good: grows steadily to 100 %, then begins anew with the next shot.",
             [(f"max by (slot) ({COORDINATOR}shot_progress_ratio{OF_SLOT})", "slot {{slot}}")], "percentunit", 12, 7, high=1),
        bars("Time by stage", "Time that workers have computed for the run, by phase, summed over its tasks. Good: calibrate and score take most; a long evaluate or correct is a choice of the run's flags.",
             [(f"max by (slot, phase) ({COORDINATOR}run_stage_time_seconds{OF_SLOT}) > 0", "slot {{slot}} {{phase}}")], "s", 12, 7),
        row("What it costs"),
        series("Size", "Size relative to the dense model, in the figure that the target is given in. Good: current falls to the target with the last shot and never below by more than one unit.",
               [(f"max by (slot, kind) ({COORDINATOR}run_size_ratio{OF_SLOT})", "slot {{slot}} {{kind}}")], "percentunit", low=0, links=[shot_trace]),
        series("Held-out loss", "Nats per token on held-out text: dense model and after the last shot. Good: current rises slowly from shot to shot; a jump means that a shot removed too much or the calibration text does not fit. No line: the run has no --eval-data.",
               [(f"max by (slot, kind) ({COORDINATOR}run_loss{OF_SLOT})", "slot {{slot}} {{kind}}")], links=[shot_trace]),
        series("Threshold", "Cost per parameter freed at the last cut, nats per token and parameter. Good: rises from shot to shot, smoothly; the unit removed last cost this much.",
               [(f"max by (slot) ({COORDINATOR}run_threshold{OF_SLOT})", "slot {{slot}}")], "sci", log=True, links=[shot_trace]),
        series("Largest damping", "Largest damping that any layer needed so far, relative to the mean of its diagonal. Good: what --damping asks for. Ten or a hundred times that: too few calibration tokens.",
               [(f"max by (slot) ({COORDINATOR}run_damping_ratio{OF_SLOT})", "slot {{slot}}")], "sci", log=True, links=[shot_trace]),
        heat("Damping of blocks", "How many blocks' factors could be factorised with which largest damping. Good: one band, at what --damping asks for.",
             f"sum by (le) (increase({SURGEON}damping_ratio_bucket[$__rate_interval]))", "sci", 12, 8),
        series("Duration of tasks", "From lease to end of an attempt, median and 95th percentile by phase. Good: steady within a shot. A 95th percentile far above the median: one worker is slower than the others.",
               [(quantile(0.5, seconds, "phase"), "{{phase}} p50"), (quantile(0.95, seconds, "phase"), "{{phase}} p95")], "s"),
        row("Tasks"),
        series("Waiting", "Tasks that wait for a worker. Good: falls while workers are ready. Flat with no ready worker of the role is the alert LlmSurgeonNoWorker.",
               [(f'max by (phase) ({COORDINATOR}tasks{{state="waiting"}})', "{{phase}}")], width=8, stacked=True, low=0),
        series("Leased and committing", "Tasks that workers hold, and results on their way into the journal. Good: leased is never 0 while tasks wait; committing is close to 0.",
               [(f'max by (phase, state) ({COORDINATOR}tasks{{state=~"leased|committing"}})', "{{state}} {{phase}}")], width=8, stacked=True, low=0),
        series("Leases given", "Leases a minute by phase. Good: follows the number of tasks; many leases with few tasks done are attempts that fail (dashboard Failures).",
               [(f"60 * {rate(COORDINATOR + 'task_attempts_total', 'phase')}", "{{phase}}")], width=8, low=0),
        row("Traces and logs of the run named above"),
        traces("Traces of the run", "The run's trace and those of its shots, which are linked to it. Click one to open it. Good: each shot's trace ends; its longest span is calibrate or score.", RUN_TRACES),
        traces("Trace of the shot", "One trace a shot, across all services and over restarts of the coordinator.", SHOT_TRACES),
        logs("Logs of the run", "What all services said of the run. Each line has trace_id and span_id. Good: no WARN, no ERROR.", RUN_LOGS),
    ]


def transfer_panels():
    sent, received = CALIBRATOR + "factors_sent_bytes_total", SURGEON + "factors_received_bytes_total"
    part = CALIBRATOR + "sweep_time_seconds_total"
    rpc = "rpc_server_call_duration_seconds"
    return [
        row("Factors from calibrators to surgeons"),
        series("Factor bytes", "Factor bytes a second, sent by calibrators and received by surgeons. Good: both alike, in bursts while a sweep hands over blocks. More sent than received: transfers break and begin again.",
               [(rate(sent, "job"), "sent"), (rate(received, "job"), "received")], "Bps", low=0),
        series("Factor bytes by process", "Factor bytes a second of each process. Good: surgeons get equal shares; one far below the others owns few blocks or waits for its disk.",
               [(rate(sent, "instance", OF_INSTANCE), "sent {{instance}}"), (rate(received, "instance", OF_INSTANCE), "received {{instance}}")], "Bps", low=0),
        number("Bytes in the time shown", "Factor bytes sent and received in the time shown. Good: equal, and near what llm-surgeon plan says for the shots in it (a shard's factors times the shards).",
               [(f"sum(increase({sent}[$__range]))", "sent"), (f"sum(increase({received}[$__range]))", "received")], "bytes", 8, 5),
        number("Transfers resumed", "Streams of factors that broke and were opened again, in the time shown. Good: 0; a few when a worker is stopped. Nothing is lost, bytes are sent again.",
               [(f"sum(increase({SURGEON}transfers_resumed_total[$__range]))", "resumed")], "none", 8, 5, (GREEN, (YELLOW, 1), (RED, 50)), decimals=0),
        number("Checksum failures", "Chunks or artifacts whose checksum did not match, in the time shown. Good: 0, always. More: a failing memory, disk or network card (alert LlmSurgeonChecksumFailures).",
               [(f"sum(increase({SURGEON}transfers_checksum_failures_total[$__range]))", "failures")], "none", 8, 5, (GREEN, (RED, 1)), decimals=0),
        series("Resumes and checksum failures", "The same over time, by surgeon. Good: no line. Always the same surgeon: look at its node.",
               [(f"sum by (instance) (increase({SURGEON}transfers_resumed_total{OF_INSTANCE}[$__rate_interval]))", "resumed {{instance}}"),
                (f"sum by (instance) (increase({SURGEON}transfers_checksum_failures_total{OF_INSTANCE}[$__rate_interval]))", "checksum {{instance}}")], low=0),
        series("Streams of factors opened", "Calls that hand over factors, by code, a minute. Good: OK. UNAVAILABLE: a calibrator is gone or its sweep has not begun; RESOURCE_EXHAUSTED: the receiver has no room and is asked again.",
               [(f'60 * sum by (rpc_method, rpc_response_status_code) (rate({rpc}_count{{rpc_method=~".*(StreamFactors|UploadFactors)"}}[$__rate_interval]))',
                 "{{rpc_method}} {{rpc_response_status_code}}")], low=0),
        row("Waiting"),
        series("In flight against the limit", "Memory held for factors between a calibrator and the store, and --receive-memory. Good: below the limit. At the limit: the store is slower than the network.",
               [(f"sum by (instance) ({SURGEON}transfers_in_flight_bytes{OF_INSTANCE})", "{{instance}}"),
                (f"max({SURGEON}transfers_limit_bytes{OF_INSTANCE})", "limit")], "bytes", low=0),
        bars("Share of the limit in use", "In flight relative to --receive-memory, by surgeon. Good: below 80 % most of the time.",
             [(f"max by (instance) ({SURGEON}transfers_in_flight_bytes{OF_INSTANCE} / {SURGEON}transfers_limit_bytes{OF_INSTANCE})", "{{instance}}")],
             "percentunit", 12, 8, (GREEN, (YELLOW, 0.8), (RED, 0.98)), high=1),
        series("Blocks waiting", "Finished blocks that no surgeon has stored yet. Good: 0 to 1. At 2 the sweep of that calibrator stands still until one is taken.",
               [(f"sum by (instance) ({CALIBRATOR}factors_waiting{OF_INSTANCE})", "{{instance}}")], low=0),
        series("Share of sweep time spent waiting", "Of the time of sweeps, how much calibrators waited for a surgeon. Good: below 10 %. More: add surgeons, or give them more --receive-memory, a faster store or network.",
               [(f'sum by (instance) (rate({part}{{part="wait", instance=~"$instance"}}[$__rate_interval])) / sum by (instance) (rate({part}{OF_INSTANCE}[$__rate_interval]))', "{{instance}}")],
               "percentunit", low=0, high=1),
        row("Artifacts of callers, through the coordinator"),
        series("Artifact bytes", "Bytes a second that callers bring (in) and take (out). Good: bursts around submit --upload and fetch. Out without end: somebody fetches again and again.",
               [(f"sum by (direction) (rate({COORDINATOR}artifacts_moved_bytes_total[$__rate_interval]))", "{{direction}}")], "Bps", low=0),
        number("Unfinished uploads", "Bytes that uploads under way will have. Good: 0 when nobody uploads; what is broken off goes after an hour. At --upload-limit further uploads are put off.",
               [(f"sum({COORDINATOR}artifacts_unfinished_bytes)", "unfinished")], "bytes", 6, 8),
        number("Checksum failures of artifacts", "Chunks or artifacts of callers that are not what their sender said, in the time shown. Good: 0. More: a caller's memory or network, or a client that is wrong.",
               [(f"sum(increase({COORDINATOR}artifacts_checksum_failures_total[$__range]))", "failures")], "none", 6, 8, (GREEN, (YELLOW, 1)), decimals=0),
        row("Traces and logs of the run named above"),
        traces("Trace of the shot", "The shot's trace: calibrate spans of all shards, and score spans of the blocks that waited for them.", SHOT_TRACES),
        traces("Failed spans", "Traces of the run with a span that failed.", FAILED_TRACES),
        logs("Transfers in the logs", "Lines of the run about factors. Good: none that says 'factors will be asked for again'.", RUN_LOGS + " |~ `factors|checksum`"),
    ]


def worker_panels():
    part = CALIBRATOR + "sweep_time_seconds_total"
    ended = COORDINATOR + "task_duration_seconds_count"
    return [
        row("Workers"),
        number("Workers", "Workers that have registered, by role and state. Good: as many ready as were deployed. Draining: told to take no more tasks. Silent: not heard of for 20 s; forgotten after ten minutes.",
               [(f"max by (role, state) ({COORDINATOR}workers)", "{{role}} {{state}}")], width=12, height=7),
        series("Workers over time", "The same over time. Good: flat. A silent one after a scale-down is gone from here within ten minutes.",
               [(f"max by (role, state) ({COORDINATOR}workers)", "{{role}} {{state}}")], height=7, low=0),
        series("Silence of compute threads", "For how long a compute thread's job has given no sign of life; 0 without a job. Good: seconds. Above --stuck-after (900 s) the process says that it is not alive, and Kubernetes restarts it.",
               [(f"max by (job, instance) ({SERVICE}compute_silence_seconds{OF_INSTANCE})", "{{job}} {{instance}}")], "s", low=0),
        series("Attempts ended", "Attempts at tasks that ended, a minute, by outcome. Good: completed only. Released: workers that stop. Failed and expired: dashboard Failures.",
               [(f"60 * {rate(ended, 'outcome')}", "{{outcome}}")], low=0),
        row("Memory"),
        series("Largest resident memory", "Peak of each process so far. Good: flat after the first shot, and near what llm-surgeon plan says. Growing from shot to shot: a leak, please report it.",
               [(f"max by (job, instance) ({SERVICE}memory_peak_bytes{OF_INSTANCE})", "{{job}} {{instance}}")], "bytes", low=0),
        series("GPU memory in use", "Memory of each GPU, by all processes on it. Good: below the device's size. No line on a CPU.",
               [(f"max by (job, instance) ({SERVICE}device_memory_used_bytes{OF_INSTANCE})", "{{job}} {{instance}}")], "bytes", low=0),
        row("Sweeps"),
        series("Tokens a second", "Tokens swept a second, by calibrator. Good: alike on alike devices, and flat within a sweep; 0 between sweeps.",
               [(rate(CALIBRATOR + "tokens_total", "instance", OF_INSTANCE), "{{instance}}")], low=0),
        number("Tokens in the time shown", "Tokens swept by all calibrators in the time shown. Good: samples times tokens a sample, for each shot in it.",
               [(f"sum(increase({CALIBRATOR}tokens_total[$__range]))", "tokens")], "short", 12, 8, decimals=0),
        series("Sweep time by part", "Seconds a second that sweeps spend in each part, all calibrators. Good: backward and gram are the most; wait is small (dashboard Transfer).",
               [(rate(part, "part", OF_INSTANCE), "{{part}}")], "percentunit", stacked=True, low=0),
        bars("Parts of sweeps in the time shown", "Share of sweep time by part. Good: wait below 10 %, forward about a third of backward.",
             [(f"sum by (part) (increase({part}{OF_INSTANCE}[$__range])) / scalar(sum(increase({part}{OF_INSTANCE}[$__range])))", "{{part}}")], "percentunit", 12, 8, high=1),
        row("Traces and logs of the run named above"),
        traces("Traces of the run", "Spans calibrate, score and update are of the workers; their length is the task's.", RUN_TRACES),
        traces("Trace of the shot", "Compare the workers' spans of one phase: the longest is what the shot waited for.", SHOT_TRACES),
        logs("Workers in the logs", "Registrations, refusals and stops. Good: 'worker registered' once for each start.", "$logs |~ `worker|stopped|refus`"),
    ]


def failure_panels():
    seconds = COORDINATOR + "task_duration_seconds"
    append = COORDINATOR + "journal_append_duration_seconds"
    rpc = "rpc_server_call_duration_seconds"
    share = f"{SERVICE}store_free_bytes / {SERVICE}store_size_bytes"
    return [
        row("Now"),
        firing("Alerts that fire", "Alerts of k8s/observability/alerts.yaml. Good: no rows. What each means and what to do: docs/operations.md.", 12, 7),
        number("Runs failed and paused", "Good: failed does not grow; paused only what a caller paused. Why: llm-surgeon list.",
               [(f'max by (state) ({COORDINATOR}runs{{state=~"failed|paused"}})', "{{state}}")], width=6, height=7, steps=(GREEN, (YELLOW, 1))),
        number("Room in the store", "Free share of the store's file system, the least of what any service sees. Good: above 20 %. No value: the store is a bucket.",
               [(f"min({share})", "free")], "percentunit", 6, 7, (RED, (YELLOW, 0.1), (GREEN, 0.2))),
        row("Attempts"),
        series("Leases expired", "Leases of workers that fell silent, by phase. Good: none; some when nodes are reclaimed. The tenth of one task fails its run.",
               [(f"sum by (phase) (increase({COORDINATOR}leases_expired_total[$__rate_interval]))", "{{phase}}")], width=8, low=0),
        series("Failed attempts", "Attempts that failed, by phase. Good: none. Whether one is retried depends on its reason: docs/operations.md.",
               [(f'sum by (phase) (increase({seconds}_count{{outcome="failed"}}[$__rate_interval]))', "{{phase}}")], width=8, low=0),
        series("Share of attempts without a result", "Attempts that failed, expired or were released, of all that ended. Good: below 5 %.",
               [(f'sum by (phase) (rate({seconds}_count{{outcome!="completed"}}[$__rate_interval])) / sum by (phase) (rate({seconds}_count[$__rate_interval]))', "{{phase}}")],
               "percentunit", 8, low=0, high=1),
        row("Journal and store"),
        series("Journal append", "Until a record is durable: median, 95th, 99th percentile. Good: milliseconds in a folder, a tenth of a second in a bucket. Every step of a run waits for it. Above 1 s: alert LlmSurgeonJournalSlow.",
               [(quantile(q, append, "", '{outcome="written"}'), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)], "s", low=0),
        series("Journal records", "Records a minute by outcome. Good: written only. Refused: the store failed, or another coordinator has taken the run over.",
               [(f"60 * {rate(append + '_count', 'outcome')}", "{{outcome}}")], low=0),
        series("Free room", "Room in the store's file system, as each service sees it. Good: more than the forecast of llm-surgeon plan for a shot of each run that --parallel-runs allows.",
               [(f"min by (job, instance) ({SERVICE}store_free_bytes{OF_INSTANCE})", "{{job}} {{instance}}")], "bytes", low=0),
        series("Free share", "The same relative to the file system's size. Below 10 %: alert LlmSurgeonStoreNearlyFull.",
               [(f"min by (job, instance) ({SERVICE}store_free_bytes{OF_INSTANCE} / {SERVICE}store_size_bytes{OF_INSTANCE})", "{{job}} {{instance}}")], "percentunit", low=0, high=1),
        row("Calls"),
        series("Calls that fail", "Calls a minute by method and code, without OK. Good: none that lasts. ABORTED and NOT_FOUND: a worker that was thought dead came back. UNAVAILABLE: something restarts. INTERNAL and DATA_LOSS: look at once.",
               [(f'60 * sum by (rpc_method, rpc_response_status_code) (rate({rpc}_count{{rpc_response_status_code!="OK"}}[$__rate_interval]))', "{{rpc_method}} {{rpc_response_status_code}}")], low=0),
        series("Time to the head of the answer", "99th percentile by method. Good: milliseconds; LeaseTasks and GetPlan wait up to 30 s for something to say (buckets end at 10 s), CompleteTask takes as long as a journal append.",
               [(quantile(0.99, rpc, "rpc_method"), "{{rpc_method}}")], "s", low=0),
        series("All calls", "Calls a second by service. Good: steady; workers ask for tasks every 20 s when there are none.",
               [(rate(rpc + "_count", "job"), "{{job}}")], "reqps", low=0),
        traces("Failed spans", "Traces of the run with a span that failed; the span has the error.", FAILED_TRACES, height=8),
        logs("Warnings and errors", "Of all services, for the run named above (.* for all). The field error has the causal chain. Good: none.", FAULT_LOGS),
    ]


def all_dashboards():
    return {
        "run": dashboard("run", "Run overview", "Where runs stand, what the shots cost, and what their tasks do.", run_panels()),
        "transfer": dashboard("transfer", "Transfer", "Factors on their way from calibrators to surgeons.", transfer_panels(), by_instance=True),
        "workers": dashboard("workers", "Workers", "Calibrators and surgeons: who is there, what they hold, how fast they are.", worker_panels(), by_instance=True),
        "failures": dashboard("failures", "Failures", "What goes wrong: attempts, journal, store, calls.", failure_panels(), by_instance=True),
    }


def main(arguments):
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = []
    for name, content in all_dashboards().items():
        path = FOLDER / f"{name}.json"
        text = json.dumps(content, indent=2) + "\n"
        if arguments == ["--check"]:
            if not path.is_file() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.write_text(text)
    if stale:
        sys.exit(f"dashboards: {', '.join(stale)} differ from what scripts/dashboards.py writes; run it")


if __name__ == "__main__":
    main(sys.argv[1:])
