"""Dashboards as TypeScript, for Grafana's own types."""

import json
import re
import shutil

PANEL_TYPES = {"timeseries": "timeseries", "stat": "stat", "bargauge": "bargauge", "heatmap": "heatmap", "logs": "logs", "table": "table"}


def write_types(m, folder):
    """Writes check.ts: each dashboard, each panel's options and field settings, as constants of Grafana's types.

    The types' enums become unions of their values, because JSON has no enums.
    """
    types, source = folder / "types", folder / "node_modules/@grafana/schema/dist/types"
    shutil.rmtree(types, ignore_errors=True)
    shutil.copytree(source, types)
    for path in types.rglob("*.d.ts"):
        text = re.sub(r"(export )?declare enum (\w+) \{(.*?)\}", as_union, path.read_text(), flags=re.DOTALL)
        path.write_text(text.replace("'@grafana/schema'", f"'{(types / 'index').as_posix()}'"))
    raw = types / "raw"
    lines = ["import type * as d from './types/raw/dashboard/x/types.gen.js';"]
    for kind, name in PANEL_TYPES.items():
        (found,) = (raw / "composable" / name).rglob("*.gen.d.ts")
        lines.append(f"import type * as {kind} from './{found.relative_to(folder).as_posix().removesuffix('.d.ts')}.js';")
    custom = {"timeseries": "FieldConfig", "heatmap": "FieldConfig", "table": None}
    for n, (name, dashboard) in enumerate(m.dashboards.items()):
        lines.append(f"export const d{n}: d.Dashboard = {json.dumps(dashboard)};")
        for panel in dashboard["panels"]:
            kind = panel["type"]
            if kind in PANEL_TYPES:
                lines.append(f"export const o{n}_{panel['id']}: Partial<{kind}.Options> = {json.dumps(panel['options'])};")
            if custom.get(kind):
                given = panel["fieldConfig"]["defaults"]["custom"]
                lines.append(f"export const f{n}_{panel['id']}: Partial<{kind}.{custom[kind]}> = {json.dumps(given)};")
    (folder / "check.ts").write_text("\n".join(lines) + "\n")


def as_union(found):
    values = re.findall(r"=\s*(\"[^\"]*\"|-?\d+)", found[3])
    return f"export type {found[2]} = {' | '.join(values)};"
