"""Checks rendered manifests for what schemas cannot know: k8s_check --programs FOLDER FILE...

Each file is one deployment as kustomize renders it. FOLDER holds coordinator, calibrator, surgeon and llm-surgeon, whose
--help says which flags and variables there are. With --self-test, each check must find what is broken on purpose in a copy of
the files. Says nothing about a cluster: whether a class of storage or a node exists is seen when it is applied.

What there is: manifests.py, programs.py. What must hold: the modules that checks.py lists. Whether it is noticed when it does
not: self_test.py, with broken.py and changes.py.
"""

import argparse
import pathlib
import sys

import yaml

from checks import CHECKS
from manifests import Deployment
from programs import Programs
from self_test import self_test


def load(path: pathlib.Path, programs: Programs) -> Deployment:
    objects = [thing for thing in yaml.safe_load_all(path.read_text()) if thing]
    if not objects:
        sys.exit(f"{path} has no object; render it again")
    return Deployment(objects, programs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="k8s_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder with the built programs")
    parser.add_argument("--self-test", action="store_true", help="check the checks on broken copies of the files")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    programs = Programs(arguments.programs)
    files = {path.name: load(path, programs) for path in arguments.files}
    if arguments.self_test:
        missed = self_test(files)
        sys.exit(f"{missed} faults went unseen" if missed else None)
    faults = sorted({found.told(name) for name, all_of in files.items() for check in CHECKS for found in check(all_of)})
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    sys.exit(f"{len(faults)} faults" if faults else None)


if __name__ == "__main__":
    main()
