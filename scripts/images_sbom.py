"""Writes the bill of materials of an image: CycloneDX 1.6 in JSON, checked against the schema.

    images_sbom.py IMAGE ROOT FILE      ROOT: the image's root, as images_root.py made it

What is in it: the programs with the crates that they are made of, Rust's standard library, the Python packages that
libtorch and CUDA come from, and the Debian packages; of each the version, the package URL, the digest that it was
fetched by, the licence where its source says one, and the files of the root that come from it with their digests.

What is not: crates that only build others (build scripts, procedural macros) or test them, and compilers. Features are
those that Cargo gives the image's programs when it builds just these, as the Containerfiles do. The same root gives the
same bytes.
"""

import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

from images_root import IMAGES, REPOSITORY, Line, digests_of, lines_of, packages, sha256

TARGET = "x86_64-unknown-linux-gnu"
# The wheels' own words for it, where they are SPDX identifiers.
WHEEL_LICENCES = {"torch": "BSD-3-Clause"}


def cargo(*arguments: str) -> str:
    return subprocess.run(["cargo", *arguments, "--locked"], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked_crates(programs: list[str]) -> set[tuple[str, str]]:
    """Returns name and version of each crate that is linked into the programs of these packages."""
    chosen = [word for package in programs for word in ("--package", package)]
    tree = cargo("tree", *chosen, "--edges", "normal,no-proc-macro", "--target", TARGET, "--prefix", "none", "--no-dedupe", "--format", "{p}")
    return {(words[0], words[1].removeprefix("v")) for line in tree.splitlines() if len(words := line.split()) > 1}


def purl_of(kind: str, name: str, version: str, namespace: str | None = None, **qualifiers: str) -> str:
    return PackageURL(kind, namespace, name, version, qualifiers).to_string()


def hashes(digest: str | None) -> dict:
    return {"hashes": [{"alg": "SHA-256", "content": digest}]} if digest else {}


def licence(expression: str | None) -> dict:
    """Cargo's old form with slashes is no SPDX expression; it means OR."""
    return {"licenses": [{"expression": re.sub(r"\s*/\s*", " OR ", expression)}]} if expression else {}


class Bill:
    """Collects components and who depends on whom."""

    def __init__(self, image: str, root: Path):
        self.image, self.root = image, root
        self.lines = lines_of(image)
        self.components: dict[str, dict] = {}
        self.depends: dict[str, set[str]] = {}

    def add(self, kind: str, name: str, version: str, purl: str, lines: list[Line] = (), **rest) -> str:
        files = [
            {"type": "file", "bom-ref": f"file:{line.path}", "name": line.path, **hashes(sha256(path))}
            for line in lines
            if (path := self.root / line.path.strip("/")).is_file() and not path.is_symlink()
        ]
        nested = {"components": files} if files else {}
        self.components[purl] = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl, **rest, **nested}
        self.depends.setdefault(purl, set())
        return purl

    def crates(self) -> list[str]:
        """Adds the image's programs and all that is linked into them; returns the programs."""
        metadata = json.loads(cargo("metadata", "--format-version", "1", "--filter-platform", TARGET))
        locked = {(package["name"], package["version"]): package.get("checksum")
                  for package in tomllib.loads((REPOSITORY / "Cargo.lock").read_text())["package"]}
        packages_by_id = {package["id"]: package for package in metadata["packages"]}
        names = {package["id"]: (package["name"], package["version"]) for package in metadata["packages"]}
        nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
        rust = tomllib.loads((REPOSITORY / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
        standard = self.add("library", "rust-std", rust, purl_of("generic", "rust-std", rust, target=TARGET), **licence("MIT OR Apache-2.0"))

        program_lines = {line.name: line for line in self.lines if line.why == "start"}
        owners = {target["name"]: package["id"] for package in metadata["packages"] if package["source"] is None
                  for target in package["targets"] if "bin" in target["kind"]}
        linked = linked_crates([names[owners[program]][0] for program in program_lines])
        ref_of: dict[str, str] = {}

        def visit(package_id: str) -> str:
            if package_id in ref_of:
                return ref_of[package_id]
            package = packages_by_id[package_id]
            name, version = names[package_id]
            mine = [line for program, line in program_lines.items() if owners[program] == package_id]
            ours = package["source"] is None
            purl = purl_of("generic", name, version, "llm-surgeon") if ours else purl_of("cargo", name, version)
            ref_of[package_id] = purl
            self.add("application" if mine else "library", name, version, purl, mine,
                     **hashes(locked.get((name, version))), **licence(package["license"]))
            for dependency in nodes[package_id]["deps"]:
                if names[dependency["pkg"]] in linked and any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                    self.depends[purl].add(visit(dependency["pkg"]))
            self.depends[purl].add(standard)
            return purl

        return sorted(visit(owners[program]) for program in program_lines)

    def wheels(self) -> list[str]:
        """Adds the Python packages that libraries come from."""
        files = digests_of(REPOSITORY / "scripts/libtorch.sha256", IMAGES / "cuda.sha256")
        wheels = {name.split("-")[0].replace("_", "-"): name for name in files if name.endswith(".whl")}
        found = []
        for name in sorted({line.source for line in self.lines if line.is_wheel}):
            wheel = wheels[name]
            version = wheel.split("-")[1]
            found.append(self.add("library", name, version, purl_of("pypi", name, version, file_name=wheel),
                                  [line for line in self.lines if line.is_wheel and line.source == name],
                                  **hashes(files[wheel]), **licence(WHEEL_LICENCES.get(name))))
        return found

    def debian(self) -> list[str]:
        """Adds the Debian packages that files come from."""
        listed, found = packages(), []
        for name in sorted({line.value for line in self.lines if line.kind in ("debian", "bundle")}):
            package = listed[name]
            purl = purl_of("deb", name, package.version, "debian", arch=package.architecture, distro="debian-12")
            found.append(self.add("library", name, package.version, purl,
                                  [line for line in self.lines if line.kind in ("debian", "bundle") and line.value == name],
                                  **hashes(package.digest)))
        return found

    def document(self) -> dict:
        programs, wheels, debian = self.crates(), self.wheels(), self.debian()
        version = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["workspace"]["package"]["version"]
        image = f"image:{self.image}@{version}"
        for program in programs:
            self.depends[program].update(wheels, (purl for purl in debian if "/ca-certificates@" in purl or "/libc6@" in purl or "/libgcc-s1@" in purl))
        for wheel in wheels:
            self.depends[wheel].update(purl for purl in debian if "/libc6@" in purl or "/libstdc" in purl or "/zlib1g@" in purl)
        self.depends[image] = {*programs, *wheels, *debian}
        document = {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "component": {"type": "container", "bom-ref": image, "name": f"llm-surgeon-{self.image}", "version": version},
                "tools": {"components": [{"type": "application", "name": "scripts/images_sbom.py"}]},
                "lifecycles": [{"phase": "build"}],
            },
            "components": [self.components[purl] for purl in sorted(self.components)],
            "dependencies": [{"ref": purl, "dependsOn": sorted(self.depends[purl])} for purl in sorted(self.depends)],
        }
        document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True)).urn
        return document


def unlisted(document: dict, lines: list[Line], root: Path) -> list[str]:
    """Returns the programs and libraries of the root that the bill does not name."""
    named = {file["name"] for component in document["components"] for file in component.get("components", ())}
    binaries = [line.path for line in lines if line.why.startswith(("start", "needed", "loaded")) and line.kind != "host"]
    return [path for path in binaries if path not in named or not (root / path.strip("/")).is_file()]


def main() -> None:
    image, root, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    bill = Bill(image, root)
    document = bill.document()
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if missing := unlisted(document, bill.lines, root):
        sys.exit(f"images_sbom: error: the bill does not name {', '.join(missing)}")
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"images_sbom: error: not CycloneDX 1.6: {str(fault)[:2000]}")
    target.write_text(text)
    kinds = [sum(f"pkg:{kind}/" in purl for purl in bill.components) for kind in ("cargo", "pypi", "deb")]
    print(f"images_sbom: {image}: {kinds[0]} crates, {kinds[1]} Python packages, {kinds[2]} Debian packages; the schema holds")


if __name__ == "__main__":
    main()
