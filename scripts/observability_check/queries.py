"""Queries of panels and links, in all of Grafana's languages."""

import json
import re
import urllib.parse

from uses import panels_of, plain


def queries_of(m):
    """Returns every query of every panel and link, with what Grafana calls its language."""
    for name, dashboard in m.dashboards.items():
        defaults = {v["name"]: v.get("current", {}).get("value", "") for v in dashboard["templating"]["list"]}
        filled = lambda text: re.sub(r"\$\{?(\w+)\}?", lambda found: str(defaults.get(found[1], found[1])), text)
        targets = [(panel["title"], target) for panel in panels_of(dashboard) for target in panel.get("targets", [])]
        for link in dashboard["links"]:
            if found := re.search(r"panes=(.*)", link["url"]):
                # Grafana fills variables in before it reads this: their values must not break it.
                targets += [(link["title"], query) for query in pane_of(filled(urllib.parse.unquote(found[1])))]
        for title, target in targets:
            kind = target["datasource"]["type"]
            language = {"tempo": "traceql", "loki": "logql", "prometheus": "promql"}[kind]
            text = target["query"] if kind == "tempo" else target["expr"]
            query = plain(text) if kind == "prometheus" else filled(text)
            yield {"where": f"dashboard {name}, '{title}'", "language": language, "query": query}


def pane_of(text):
    """Returns the queries of an Explore address; one that cannot be read gives a query that no grammar takes."""
    try:
        return json.loads(text)["a"]["queries"]
    except (ValueError, KeyError) as error:
        return [{"datasource": {"type": "tempo"}, "query": f"{{ no JSON: {error}"}]
