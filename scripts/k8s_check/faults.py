"""What a check says of an object."""

import dataclasses
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with an object, and what to do about it."""

    kind: str
    name: str
    wrong: str
    mend: str

    def told(self, file: str) -> str:
        return f"{file}: {self.kind}/{self.name}: {self.wrong}; {self.mend}"


def fault(thing: Object, wrong: str, mend: str) -> Fault:
    return Fault(thing["kind"], thing["metadata"]["name"], wrong, mend)


Faults = Iterator[Fault]
