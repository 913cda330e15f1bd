"""Checks dashboards, alerts, runbook and what services tell against the contract, docs/telemetry.json.

    observability_check                          contract, dashboards, alerts, runbook
    observability_check --npm FOLDER             also with Grafana's own types and query grammars (installs them in FOLDER)
    observability_check --prometheus URL         also: every panel and alert finds data in a live Prometheus
    observability_check --metrics FILE...        also: text scraped from /metrics says what the contract says
    observability_check --self-test              also: every check notices what it is for

Packages: scripts/requirements/observability.txt. promtool (Debian: prometheus) is used if it is there; --require-promtool
insists. Ends with 1 if anything is wrong, and says all that is.
"""

import argparse
import pathlib
import shutil
import sys

from dashboards import check_generated
from example import example_text
from live import check_live
from material import load
from npm import check_npm
from promtool import check_promtool
from scraped import SERVICES, check_metrics
from self_test import self_test
from static import static_faults
from uses import uses_of


def main():
    parser = argparse.ArgumentParser(prog="observability_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
