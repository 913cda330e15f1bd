"""What Grafana's own npm packages say."""

import json
import pathlib
import subprocess

from grafana_types import write_types
from queries import queries_of

NPM = {
    "@grafana/schema": "13.2.3", "@grafana/lezer-traceql": "1.0.0", "@grafana/lezer-logql": "0.4.2", "@lezer/common": "1.5.1", "@lezer/highlight": "1.2.3", "@lezer/lr": "1.4.10",
    "@prometheus-io/lezer-promql": "0.315.0", "typescript": "5.9.3",
}
PARSE_JS = """
const { readFileSync } = require("fs");
const grammars = {
  traceql: require("@grafana/lezer-traceql").parser, logql: require("@grafana/lezer-logql").parser,
  promql: require("@prometheus-io/lezer-promql").parser,
};
for (const { where, language, query } of JSON.parse(readFileSync(process.argv[2]))) {
  let at = -1;
  grammars[language].parse(query).iterate({ enter: (node) => { if (node.type.isError && at < 0) at = node.from; } });
  if (at >= 0) console.log(`${where}: ${language} has a fault at ${at}: ${query}`);
}
"""


def check_npm(m, folder):
    """Grafana's own grammars parse every query; its own types take every dashboard and panel."""
    folder = pathlib.Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    package = json.dumps({"name": "check", "private": True, "dependencies": NPM})
    if (folder / "package.json").is_file() is False or (folder / "package.json").read_text() != package:
        (folder / "package.json").write_text(package)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps", "--silent"], check=True, cwd=folder)
    (folder / "queries.json").write_text(json.dumps(list(queries_of(m))))
    (folder / "parse.js").write_text(PARSE_JS)
    run = subprocess.run(["node", "parse.js", "queries.json"], capture_output=True, text=True, cwd=folder)
    yield from run.stdout.splitlines()
    if run.returncode != 0:
        yield f"npm: {run.stderr.strip()}"
    write_types(m, folder)
    run = subprocess.run(["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext",
                          "--moduleResolution", "nodenext", "check.ts"], capture_output=True, text=True, cwd=folder)
    if run.returncode != 0:
        yield from (f"Grafana's types: {line}" for line in run.stdout.splitlines()[:20])
