"""Makes the root file system of an image from k8s/images/files.txt; see there for what the list says.

    images_root.py IMAGE DESTINATION --programs DIR --libtorch DIR --packages DIR
    images_root.py --check IMAGE DESTINATION      only whether an existing root is complete, and has nothing that none needs

DIRs: what cargo built; the folder that holds torch/ (scripts/setup.sh made it); the .deb files of debian.txt.
Large libraries become hard links where that is possible. Does not fetch anything.
"""

import argparse
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import images_elf

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = REPOSITORY / "k8s/images"
LIBRARIES = "usr/local/lib/llm-surgeon"
RPATH = "$ORIGIN/../lib/llm-surgeon"


@dataclass(frozen=True)
class Line:
    """A line of files.txt."""

    path: str
    source: str
    why: str

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def kind(self) -> str:
        return self.source.split(":", 1)[0]

    @property
    def value(self) -> str:
        return self.source.partition(":")[2]

    @property
    def is_wheel(self) -> bool:
        return self.path.startswith(f"/{LIBRARIES}/")


def fail(*lines: str) -> None:
    sys.exit("images: error: " + "\n  ".join(lines))


def lines_of(image: str) -> list[Line]:
    """Returns what files.txt says of an image."""
    lines, images = [], set()
    for text in (IMAGES / "files.txt").read_text().splitlines():
        if not text.strip() or text.startswith("#"):
            continue
        path, source, names, why = text.split(maxsplit=3)
        images.update(names.split(","))
        if any(fnmatch.fnmatch(image, name) for name in names.split(",")):
            lines.append(Line(path, source, why))
    if not any(line.why == "start" for line in lines):
        fail(f"k8s/images/files.txt has no program for an image '{image}'")
    return lines


def digests_of(*lists: Path) -> dict[str, str]:
    """Returns the SHA-256 of each name of lists in the form of sha256sum."""
    pairs = (line.split() for file in lists for line in file.read_text().splitlines() if line.strip() and not line.startswith("#"))
    return {name: digest for digest, name in pairs}


def library_digests() -> dict[str, str]:
    """Returns the SHA-256 of each library by its file name."""
    listed = digests_of(REPOSITORY / "scripts/libtorch.sha256", IMAGES / "cuda.sha256")
    return {name.rsplit("/", 1)[-1]: digest for name, digest in listed.items() if "/" in name}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Package:
    """A line of debian.txt."""

    name: str
    version: str
    architecture: str
    digest: str


def packages() -> dict[str, Package]:
    """Returns the Debian packages of debian.txt by name."""
    rows = [line.split() for line in (IMAGES / "debian.txt").read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {row[0]: Package(*row) for row in rows}


class Maker:
    """Puts files into a root."""

    def __init__(self, root: Path, programs: Path, libtorch: Path, archives: Path, scratch: Path):
        self.root, self.programs, self.libtorch, self.archives, self.scratch = root, programs, libtorch, archives, scratch
        self.digests = library_digests()
        self.packages = packages()

    def make(self, line: Line) -> None:
        target = self.root / line.path.strip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if line.is_wheel:
            self.library(line, target)
            return
        match line.kind:
            case "host":
                return
            case "folder":
                target.mkdir(exist_ok=True)
                target.chmod(int(line.value, 8))
                return
            case "link":
                target.symlink_to(line.value)
                return
            case "licences":
                self.licences(line, target)
                return
            case "program":
                self.program(line, target)
            case "debian":
                self.debian(line, target)
            case "control":
                control = self.run("dpkg-deb", "--field", self.archive(line.value))
                target.write_bytes(control)
            case "bundle":
                folder = self.unpacked(line.value) / "usr/share/ca-certificates"
                target.write_bytes(b"".join(file.read_bytes().strip() + b"\n" for file in sorted(folder.rglob("*.crt"))))
            case "here":
                shutil.copyfile(IMAGES / "root" / line.path.strip("/"), target)
            case "repository":
                shutil.copyfile(REPOSITORY / line.value, target)
            case _:
                fail(f"k8s/images/files.txt: what is '{line.source}'?")
        target.chmod(0o755 if line.kind == "program" or line.name.startswith("ld-linux") else 0o644)

    def run(self, *command: str | Path) -> bytes:
        done = subprocess.run(command, capture_output=True)
        if done.returncode != 0:
            fail(f"{' '.join(map(str, command))}: exit code {done.returncode}", done.stderr.decode(errors="replace").strip())
        return done.stdout

    def program(self, line: Line, target: Path) -> None:
        source = self.programs / line.name
        if not source.is_file():
            fail(f"{source} is not built", "run: make build")
        self.run("strip", "--strip-debug", "-o", target, source)
        try:
            images_elf.set_rpath(target, RPATH)
        except ValueError as error:
            fail(str(error))

    def library(self, line: Line, target: Path) -> None:
        found = [folder / line.name for folder in (self.libtorch / "torch/lib", *self.libtorch.glob("nvidia/*/lib")) if (folder / line.name).is_file()]
        if not found:
            fail(f"{self.libtorch} has no {line.name}", "the image for CUDA needs the CUDA set: LLM_SURGEON_CUDA=1 scripts/setup.sh")
        if sha256(found[0]) != self.digests.get(line.name):
            fail(f"{found[0]} is not the file that scripts/libtorch.sha256 or k8s/images/cuda.sha256 describes")
        link_or_copy(found[0].resolve(), target)

    def licences(self, line: Line, target: Path) -> None:
        """Texts among the package's metadata, and what its list of files calls a licence."""
        texts = set()
        for info in self.libtorch.glob(f"{line.value.replace('-', '_')}-*.dist-info"):
            record = info / "RECORD"
            names = [row.split(",")[0] for row in record.read_text().splitlines()] if record.is_file() else []
            files = [self.libtorch / name for name in names] + list(info.rglob("*"))
            texts.update(file for file in files if file.is_file() and ("licenses" in file.parts or file.name.lower().startswith("license")))
        if not texts:
            print(f"images: {self.libtorch} has no licence text of {line.value}", file=sys.stderr)
            return
        target.mkdir(exist_ok=True)
        for file in sorted(texts):
            shutil.copyfile(file, target / file.name)
            (target / file.name).chmod(0o644)

    def debian(self, line: Line, target: Path) -> None:
        # Debian 12 installs into /lib what it then finds in /usr/lib.
        unpacked, inside = self.unpacked(line.value), line.path.strip("/")
        for path in (inside, inside.removeprefix("usr/")):
            if (unpacked / path).exists():
                shutil.copyfile(unpacked / path, target)
                return
        fail(f"the Debian package {line.value} has no {line.path}")

    def archive(self, name: str) -> Path:
        package = self.packages.get(name)
        if package is None:
            fail(f"k8s/images/debian.txt does not list {name}")
        archive = self.archives / f"{package.digest}.deb"
        if not archive.is_file():
            fail(f"{name}: {archive} is missing")
        return archive

    def unpacked(self, name: str) -> Path:
        folder = self.scratch / name
        if not folder.exists():
            archive = self.archive(name)
            if sha256(archive) != self.packages[name].digest:
                fail(f"{archive} is not the file that k8s/images/debian.txt describes")
            self.run("dpkg-deb", "--extract", archive, folder)
        return folder


def link_or_copy(source: Path, target: Path) -> None:
    if source.stat().st_mode & 0o444 == 0o444:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another disk, or hard links are not allowed
    shutil.copyfile(source, target)
    target.chmod(0o644)


def faults_of(lines: list[Line], root: Path) -> list[str]:
    """Returns what is missing in a root, and what is there without need."""
    faults = []
    there = {path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}
    listed = {root / line.path.strip("/") for line in lines if line.kind != "host"}
    folders = {path for path in listed if path.is_dir()}
    for path in sorted(there - listed):
        if not any(folder in path.parents for folder in folders):
            faults.append(f"/{path.relative_to(root)} is there, but not listed")
    for path in sorted(path for path in listed if not os.path.lexists(path) and not path.is_relative_to(root / "usr/share/doc")):
        faults.append(f"/{path.relative_to(root)} is listed, but not there")

    host = {line.path for line in lines if line.kind == "host"}
    reasons = {line.name: line.why for line in lines}
    files = {path.name: elf for path in sorted(there & listed) if not path.is_symlink() and (elf := images_elf.read(path))}
    wanted = set()
    for name, elf in files.items():
        if elf.soname and elf.soname != name:
            faults.append(f"{name} calls itself {elf.soname}")
        for needed in elf.needed:
            wanted.add(needed)
            if needed not in files and needed not in host:
                faults.append(f"{name} needs {needed}")
        for library, versions in elf.versions_needed.items():
            offered = files[library].versions_offered if library in files else versions
            for version in sorted(versions - offered):
                faults.append(f"{name} needs {version} of {library}, which offers up to {newest(offered, version)}")
    for name in files:
        if reasons[name] == "needed" and name not in wanted:
            faults.append(f"{name} is there, but nothing needs it")
    for name in host - wanted:
        faults.append(f"{name} is listed as the host's, but nothing needs it")
    return faults


def newest(offered: frozenset[str], like: str) -> str:
    family = like.split("_")[0] + "_"
    numbers = [version for version in offered if version.startswith(family) and version[len(family) :].replace(".", "").isdigit()]
    return max(numbers, key=lambda version: [int(part) for part in version[len(family) :].split(".")], default="no version")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("image")
    parser.add_argument("root", type=Path)
    for folder in ("programs", "libtorch", "packages"):
        parser.add_argument(f"--{folder}", type=Path)
    arguments = parser.parse_args()
    lines, root = lines_of(arguments.image), arguments.root
    if not arguments.check:
        os.umask(0o022)
        if root.exists() and any(root.iterdir()):
            fail(f"{root} is not empty")
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        with tempfile.TemporaryDirectory() as scratch:
            maker = Maker(root, arguments.programs, arguments.libtorch, arguments.packages, Path(scratch))
            # Links to folders first: what lies beyond them comes after.
            for line in sorted(lines, key=lambda line: line.kind != "link" or line.path.count("/") > 1):
                maker.make(line)
    if faults := faults_of(lines, root):
        fail(f"the root of {arguments.image} is not what k8s/images/files.txt describes:", *faults)


if __name__ == "__main__":
    main()
