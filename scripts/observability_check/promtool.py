"""What Prometheus' own tool says."""

import pathlib
import subprocess
import tempfile

import yaml

from material import FOLDER
from uses import plain, uses_of


def check_promtool(m, tool):
    """Prometheus itself reads rules, tests and configuration, and every panel's expression."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "alerts.yaml").write_text(yaml.safe_dump(m.alerts))
        (folder / "alerts_test.yaml").write_text(yaml.safe_dump(m.alert_tests))
        panels = [{"record": f"panel:{n}", "expr": plain(u.expr)} for n, u in enumerate(u for u in uses_of(m) if u.is_panel)]
        (folder / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": panels}]}))
        config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
        for job in config["scrape_configs"]:
            # Debian's promtool is built without Kubernetes.
            if "kubernetes_sd_configs" in job:
                job.pop("kubernetes_sd_configs")
                job["static_configs"] = [{"targets": ["pod:9100"]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        commands = [
            ["check", "rules", folder / "alerts.yaml", folder / "panels.yaml"], ["test", "rules", folder / "alerts_test.yaml"],
            ["check", "config", folder / "prometheus.yaml"],
        ]
        for command in commands:
            run = subprocess.run([tool, *map(str, command)], capture_output=True, text=True, cwd=folder)
            if run.returncode != 0:
                yield f"promtool {command[0]} {command[1]}: {(run.stdout + run.stderr).strip()}"
