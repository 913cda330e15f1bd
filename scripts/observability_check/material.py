"""What is compared, read from the repository."""

import dataclasses
import json
import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "k8s" / "observability"
RUNBOOK = "docs/operations.md"


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
