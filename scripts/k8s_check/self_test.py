"""The checks' own test: each finds what is broken for it in a copy of the files."""

import copy
import sys

from broken import BROKEN
from changes import Change
from checks import CHECKS, Check
from manifests import Deployment


def found_somewhere(check: Check, change: Change, files: dict[str, Deployment]) -> bool | None:
    """Whether the check finds the change in a file that can have it; None if none can."""
    results = []
    for deployment in files.values():
        broken = Deployment(copy.deepcopy(deployment.objects), deployment.programs)
        if change(broken) and broken.objects != deployment.objects:
            results.append(bool(set(check(broken)) - set(check(deployment))))
    # A change can be harmless in some files: plain text left on in one without certificates.
    return any(results) if results else None


def self_test(files: dict[str, Deployment]) -> int:
    """Returns how many changes no check found."""
    missed = 0
    for check, what, change in BROKEN:
        found = found_somewhere(check, change, files)
        if not found:
            missed += 1
            reason = "no file has what it changes" if found is None else "it found nothing"
            print(f"check {check.__name__} against '{what}': {reason}; mend the check or the change", file=sys.stderr)
    for check in set(CHECKS) - {check for check, _, _ in BROKEN}:
        missed += 1
        print(f"check {check.__name__} is not tested; add a change that it must find to BROKEN", file=sys.stderr)
    return missed
