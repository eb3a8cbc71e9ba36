"""Tar archives whose members are read by name, without unpacking."""

import gzip
import os
import re
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from deconvnet.contents import NAME
from deconvnet.errors import InputError

BOMB, LEAST = 20, 1 << 30  # a gzipped archive may hold so many times its size, and so many bytes whatever its size
MOST = 1 << 28  # bytes of one file in it
REMEDY = "correct your own archive; delete a downloaded one, and `dvc repro` fetches it again"


class Archive:
    """A tar or tar.gz whose members are read by name, at random, by any thread, without unpacking.

    A gzip stream has no random access: it is decompressed once into an anonymous temporary file (its directory
    entry is gone before the first byte is written), still as one tar. No name inside an archive ever becomes a path.

    Raises InputError for a file that is absent, truncated or no tar, and for one with absolute names or `..` in it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.members: dict[tuple[str, str], tuple[int, int]] = {}  # (folder, name) -> offset, size
        if not path.is_file():
            known = "not a plain file" if path.exists() else "no such file"
            raise InputError(f"{path}: {known}; run `dvc repro` to fetch it")
        try:
            self._file = open(path, "rb")
            if self._file.read(2) == b"\x1f\x8b":
                self._file = self._decompressed()
            self._index()
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: truncated or no tar archive ({error}); {REMEDY}") from None

    def _decompressed(self):
        self._file.seek(0)
        spool = tempfile.TemporaryFile(dir=self.path.parent)
        room = max(BOMB * self.path.stat().st_size, LEAST)
        with gzip.open(self._file) as stream:
            while chunk := stream.read(1 << 20):
                room -= len(chunk)
                if room < 0:
                    raise ValueError(f"holds more than {BOMB} times its size")
                spool.write(chunk)
        return spool

    def _index(self) -> None:
        self._file.seek(0)
        end, size = 0, self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise InputError(
                        f"{self.path}: holds the name {member.name!r}, as no VOC or SBD archive does; {REMEDY}"
                    )
                end = member.offset_data + member.size
                if not 0 <= member.size <= size - member.offset_data:
                    raise tarfile.ReadError(f"{member.name!r} is longer than the archive")
                if member.isfile() and not member.issparse():
                    self.members[name.parent.name, name.name] = member.offset_data, member.size
        # A tar ends in a zero block. Without it the cut fell between two members, which tarfile takes for the end.
        if os.pread(self._file.fileno(), 512, -(-end // 512) * 512) != bytes(512):
            raise tarfile.ReadError("the end-of-archive mark is missing")

    def __contains__(self, member: tuple[str, str]) -> bool:
        """Whether there is a file .../folder/name."""
        return member in self.members

    def read(self, folder: str, name: str, why: str, remedy: str = REMEDY) -> bytes:
        """Bytes of the file .../folder/name. Raises InputError, with `why` it is needed, where there is none."""
        if (folder, name) not in self.members:
            raise InputError(f"{self.path}: {folder}/{name} is missing, but {why}; {remedy}")
        offset, size = self.members[folder, name]
        if size > MOST:
            raise InputError(f"{self.path}: {folder}/{name} has {size:,} bytes; allowed: {MOST:,}; {remedy}")
        return os.pread(self._file.fileno(), size, offset)

    def ids(self, folder: str, split: str) -> list[str]:
        """The ids of a split list, sorted. Raises InputError for a missing, empty or repeating list."""
        name = f"{split}.txt"
        try:
            ids = self.read(folder, name, "it lists the split").decode("utf-8-sig").split()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: {folder}/{name} is not UTF-8 text ({error}); {REMEDY}") from None
        if strange := [image_id for image_id in ids if not re.fullmatch(NAME, image_id)]:
            raise InputError(f"{self.path}: {folder}/{name}: {strange[0]!r} is no name of an image; {REMEDY}")
        if not ids or len(set(ids)) != len(ids):
            wrong = "names an image twice" if ids else "is empty"
            raise InputError(f"{self.path}: {folder}/{name} {wrong}; {REMEDY}")
        return sorted(ids)
