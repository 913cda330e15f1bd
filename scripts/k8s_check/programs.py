"""Our programs, and what their --help says that they can take."""

import dataclasses
import functools
import pathlib
import re
import subprocess
import sys

SERVICES = ("coordinator", "calibrator", "surgeon")
PROGRAMS = (*SERVICES, "llm-surgeon")


@dataclasses.dataclass(frozen=True)
class Help:
    """Flags and variables that a program's --help names."""

    flags: frozenset[str]
    variables: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs in a folder, asked for their --help once each."""

    folder: pathlib.Path

    @functools.lru_cache(maxsize=None)  # noqa: B019 - as long-lived as the program
    def help(self, *command: str) -> Help:
        """Returns what a command line such as ("llm-surgeon", "submit") can take."""
        line = [str(self.folder / command[0]), *command[1:], "--help"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            sys.exit(f"{' '.join(line)} exits with {done.returncode}: {done.stderr.strip()[:300]}\n  build the programs: make build")
        flags = re.findall(r"^\s+(?:-\w, )?(--[a-z][a-z0-9-]*)", done.stdout, re.MULTILINE)
        variables = re.findall(r"\[env:\s+([A-Z0-9_]+)=", done.stdout)
        return Help(frozenset(flags), frozenset(variables))
