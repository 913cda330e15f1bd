"""All checks that need nothing but the repository and Python."""

from alerts import check_alerts
from contract import check_contract
from dashboards import check_dashboards
from expressions import check_expressions, check_variables
from runbook import check_runbook


def static_faults(m):
    for check in (check_contract, check_expressions, check_variables, check_dashboards, check_alerts, check_runbook):
        yield from check(m)
