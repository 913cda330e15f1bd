"""Faults that are put in on purpose, and what must be said of them."""

import re

from uses import rules_of


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
