"""Alerts say what is needed, lead to their heading of the runbook, and are tested both ways."""

import re

from material import RUNBOOK
from runbook import anchors
from uses import rules_of

SEVERITIES = {"critical", "warning"}


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
