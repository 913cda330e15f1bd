"""The runbook has every reason and exit code that the code has, and no other."""

import re

from material import RUNBOOK


def anchors(markdown):
    """Returns the anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def check_runbook(m):
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `?([A-Z_]+)`? \|", m.runbook, re.MULTILINE))
    for name, code in m.reasons.items():
        if name not in rows:
            yield f"{RUNBOOK}: no row of a table for the reason {name}"
        elif rows[name] != code:
            yield f"{RUNBOOK}: {name} goes with {code}, not {rows[name]}"
    for name in sorted(set(rows) - set(m.reasons)):
        yield f"{RUNBOOK}: {name} is no reason that is published"
    for program, codes in m.exits.items():
        section = re.search(rf"^### Exit codes of [^\n]*{program}$(.*?)(?=^##)", m.runbook, re.MULTILINE | re.DOTALL)
        listed = set(map(int, re.findall(r"^\| (\d+) \|", section[1], re.MULTILINE))) if section else set()
        for code in sorted(codes ^ listed):
            yield f"{RUNBOOK}: exit code {code} of {program} is {'not there' if code in codes else 'none'}"
    for link in re.findall(r"\]\(#([\w-]+)\)", m.runbook):
        if link not in anchors(m.runbook):
            yield f"{RUNBOOK}: #{link} leads nowhere"
