"""Unpacks from the wheels of torch and of two CUDA libraries what a CPU build of llm-surgeon links against.

    unpack_libtorch.py DESTINATION WHEEL...

Kept: the CPU libraries, the headers, the version and the licences. The torch wheel is a CUDA build; its CPU library
names libcudart and libcupti as dependencies, so these two are put beside it. Does not download or verify anything.
"""

import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

LIBRARIES = {
    "libc10.so",
    "libtorch.so",
    "libtorch_cpu.so",
    "libgomp.so.1",
    "libcudart.so.13",
    "libcupti.so.13",
}


def destination_of(member: str) -> str | None:
    """Returns where a wheel's member goes, or None if it is not kept."""
    path = PurePosixPath(member)
    if path.name in LIBRARIES and path.parent.name == "lib":
        return f"torch/lib/{path.name}"
    if member.startswith("torch/include/") or member == "torch/version.py":
        return member
    if ".dist-info/licenses/" in member or (path.parent.name.endswith(".dist-info") and path.name.startswith("License")):
        return member
    return None


def main() -> None:
    destination = Path(sys.argv[1])
    for wheel in sys.argv[2:]:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                target = None if member.is_dir() else destination_of(member.filename)
                if target is None:
                    continue
                path = destination / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    missing = sorted(name for name in LIBRARIES if not (destination / "torch/lib" / name).is_file())
    if missing:
        sys.exit(f"unpack_libtorch: the wheels lack {', '.join(missing)}")


if __name__ == "__main__":
    main()
