"""Reads what an ELF file needs and offers, and says where its program looks for libraries. x86-64 Linux files only.

Does not run anything: it reads the dynamic section, as the dynamic loader does.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

PT_LOAD, PT_DYNAMIC = 1, 2
SHT_DYNSYM = 11
DT_NEEDED, DT_STRTAB, DT_SONAME, DT_RPATH, DT_RUNPATH = 1, 5, 14, 15, 29
DT_VERDEF, DT_VERDEFNUM, DT_VERNEED, DT_VERNEEDNUM = 0x6FFFFFFC, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF
VER_FLG_WEAK = 2


class NotElf(Exception):
    """The file is no ELF file of 64 bits for x86-64."""


@dataclass(frozen=True)
class Elf:
    """What the dynamic loader reads of a file."""

    needed: tuple[str, ...]
    soname: str | None
    rpath: tuple[str, ...]
    versions_needed: dict[str, frozenset[str]]
    versions_offered: frozenset[str]


class _Reader:
    def __init__(self, data):
        self.data = data
        if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 18)[0] != 62:
            raise NotElf
        self.program_headers, self.section_headers = struct.unpack_from("<QQ", data, 32)
        self.entry_size, self.entries = struct.unpack_from("<HH", data, 54)
        self.segments = []
        self.dynamic: list[tuple[int, int, int]] = []  # tag, value, where in the file the value is
        for index in range(self.entries):
            start = self.program_headers + index * self.entry_size
            kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", data, start)
            if kind == PT_LOAD:
                self.segments.append((address, offset, size))
            elif kind == PT_DYNAMIC:
                for at in range(offset, offset + size, 16):
                    tag, value = struct.unpack_from("<QQ", data, at)
                    self.dynamic.append((tag, value, at + 8))
        strings = self.first(DT_STRTAB)
        self.strings = None if strings is None else self.offset_of(strings)

    def first(self, tag: int) -> int | None:
        return next((value for found, value, _ in self.dynamic if found == tag), None)

    def offset_of(self, address: int) -> int:
        for start, offset, size in self.segments:
            if start <= address < start + size:
                return address - start + offset
        raise NotElf

    def string(self, index: int) -> str:
        start = self.strings + index
        return self.data[start : self.data.find(b"\0", start)].decode()

    def needed_versions(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """Returns for each library its name and the versions that are needed of it, as (name, flags); names as indices."""
        found, address = [], self.first(DT_VERNEED)
        at = None if address is None else self.offset_of(address)
        for _ in range(self.first(DT_VERNEEDNUM) or 0):
            _, count, file, aux, following = struct.unpack_from("<HHIII", self.data, at)
            versions, place = [], at + aux
            for _ in range(count):
                _, flags, _, name, step = struct.unpack_from("<IHHII", self.data, place)
                versions.append((name, flags))
                place += step
            found.append((file, versions))
            at += following
        return found

    def offered_versions(self) -> list[int]:
        found, address = [], self.first(DT_VERDEF)
        at = None if address is None else self.offset_of(address)
        for _ in range(self.first(DT_VERDEFNUM) or 0):
            _, _, _, _, _, aux, following = struct.unpack_from("<HHHHIII", self.data, at)
            found.append(struct.unpack_from("<I", self.data, at + aux)[0])
            at += following
        return found

    def symbol_names(self) -> list[int]:
        size, count = struct.unpack_from("<HH", self.data, 58)
        for index in range(count):
            start = self.section_headers + index * size
            if struct.unpack_from("<I", self.data, start + 4)[0] == SHT_DYNSYM:
                offset, length = struct.unpack_from("<QQ", self.data, start + 24)
                return [struct.unpack_from("<I", self.data, at)[0] for at in range(offset, offset + length, 24)]
        return []


def read(path: Path) -> Elf | None:
    """Returns what the loader reads of a file, or None if it is no ELF file."""
    if path.stat().st_size < 64:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            reader = _Reader(data)
        except NotElf:
            return None
        strings = {tag: [reader.string(value) for found, value, _ in reader.dynamic if found == tag] for tag in (DT_NEEDED, DT_SONAME, DT_RPATH, DT_RUNPATH)}
        return Elf(
            needed=tuple(strings[DT_NEEDED]),
            soname=strings[DT_SONAME][0] if strings[DT_SONAME] else None,
            rpath=tuple(folder for text in strings[DT_RPATH] + strings[DT_RUNPATH] for folder in text.split(":")),
            versions_needed={
                reader.string(file): frozenset(reader.string(name) for name, flags in versions if not flags & VER_FLG_WEAK)
                for file, versions in reader.needed_versions()
            },
            versions_offered=frozenset(reader.string(name) for name in reader.offered_versions()),
        )


def set_rpath(path: Path, folder: str) -> None:
    """Puts `folder` in the place of the file's rpath, which must be at least as long; a file without one stays as it is."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        reader = _Reader(data)
        index = reader.first(DT_RPATH)
        if index is None:
            index = reader.first(DT_RUNPATH)
        if index is None:
            return
        old, new = reader.string(index).encode(), folder.encode()
        if len(new) > len(old):
            raise ValueError(f"{path}: the rpath '{old.decode()}' is too short to become '{folder}'; build with a longer cache folder")
        # A linker may let another name be the end of this one.
        names = [value for tag, value, _ in reader.dynamic if tag in (DT_NEEDED, DT_SONAME)] + reader.symbol_names() + reader.offered_versions()
        for file_name, versions in reader.needed_versions():
            names += [file_name, *(name for name, _ in versions)]
        if any(index < name <= index + len(old) for name in names):
            raise ValueError(f"{path}: another name shares the bytes of the rpath '{old.decode()}'")
        start = reader.strings + index
        data[start : start + len(old)] = new + bytes(len(old) - len(new))
