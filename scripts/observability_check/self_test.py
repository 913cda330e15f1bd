"""The checks' own test: each notices the faults that are put in for it."""

import copy
import re

from example import example_text
from mutations import mutations, npm_mutations, promtool_mutations, text_mutations
from npm import check_npm
from promtool import check_promtool
from scraped import SERVICES, check_metrics
from static import static_faults


def self_test(m, promtool, npm):
    """Returns what the checks did not notice."""
    count = 0
    for what, mutate, wanted in mutations():
        mutant = copy.deepcopy(m)
        mutate(mutant)
        faults = []
        try:
            faults = list(static_faults(mutant))
        except (KeyError, TypeError, AttributeError) as error:
            faults = [f"does not load: {error!r}"]
        count += 1
        if not any(re.search(wanted, fault) for fault in faults):
            yield f"self-test: {what}: not noticed; said {faults[:3]}"
    texts = {f"{s}.txt": example_text(m.contract, s) for s in SERVICES}
    for fault in check_metrics(m, texts, []):
        yield f"self-test: an example made from the contract is refused: {fault}"
    for what, text, wanted in text_mutations(texts["coordinator.txt"]):
        count += 1
        if text == texts["coordinator.txt"] or not any(re.search(wanted, f) for f in check_metrics(m, texts | {"coordinator.txt": text}, [])):
            yield f"self-test: {what}: not noticed"
    for what, mutate in promtool_mutations() if promtool else ():
        mutant = copy.deepcopy(m)
        mutate(mutant)
        count += 1
        if not list(check_promtool(mutant, promtool)):
            yield f"self-test: {what}: promtool did not notice"
    for what, mutate, wanted in npm_mutations() if npm else ():
        mutant = copy.deepcopy(m)
        mutate(mutant)
        count += 1
        if not any(re.search(wanted, fault) for fault in check_npm(mutant, npm)):
            yield f"self-test: {what}: not noticed"
    print(f"observability_check: {count} faults put in on purpose")
