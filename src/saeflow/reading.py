"""Bounded reading of untrusted files: only regular files, with limits on size, nesting and number of members.

A config, theme, word list or archive may come from anywhere, and a small or odd one must not take gigabytes, hang, or
end in a traceback. All reading of outside files goes through this module. A file over a limit raises a ValueError that
says why, as does invalid JSON or UTF-8; the caller adds the file name and what to do.

    JSON file                        JSON bytes, lists or objects nested DEPTH deep
    TOML file                        TOML bytes, DEPTH as above, no dates
    text file                        TEXTS bytes
    lines of a gzip file             LINE bytes each, LINES lines; in all RATIO times the file, at least UNPACKED bytes
    shard of activations             SHARD bytes, as saeflow wrote it
    header of a safetensors file     HEADER bytes
    directory of a zip archive       DIRECTORY bytes, MEMBERS members
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import stat
import tomllib
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

JSON: Final = 32 << 20
TOML: Final = 1 << 20
TEXTS: Final = 1 << 30
SHARD: Final = 4 << 30
DEPTH: Final = 100
LINE: Final = 16 << 20
LINES: Final = 1 << 22
RATIO: Final = 100
UNPACKED: Final = 64 << 20
HEADER: Final = 16 << 20
DIRECTORY: Final = 1 << 20
MEMBERS: Final = 10_000

PACKED_WRONG: Final = (OSError, EOFError, ValueError, zlib.error)
"""The exceptions raised on reading a gzip file that is damaged or over a limit."""

_DEEP: Final = f"lists or tables lie more than {DEPTH} deep inside each other"
_WHEN: Final = (datetime, date, time)
_LONG_KEY: Final = re.compile(rb"""(?:[\w"'-]+[ \t]*\.[ \t]*){%d}""" % DEPTH)


def regular(path: Path) -> int:
    """The size in bytes of a regular file; links are followed.

    Raises:
        OSError: when the file does not exist.
        ValueError: when it is a folder, pipe or device; these are never opened.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"it is {kind}, and no file")
    return state.st_size


def read_bytes(path: Path, most: int = JSON) -> bytes:
    """The contents of a regular file.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is not a regular file, or has more than `most` bytes.
    """
    size = regular(path)
    if size <= most:
        with path.open("rb") as file:
            data = file.read(size + 1)
        if len(data) <= size:
            return data
        raise ValueError(f"it says that it has {size:,} bytes, and has more")  # such as a file in /proc
    raise ValueError(f"it has {size:,} bytes, and at most {most:,} are read")


def read_text(path: Path, most: int = JSON) -> str:
    """The contents of a UTF-8 text file, with line ends converted to "\\n".

    Raises:
        OSError, ValueError: as for `read_bytes`; also ValueError when it is not UTF-8.
    """
    text = read_bytes(path, most).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_json(path: Path, most: int = JSON) -> Any:
    """Parse a JSON file. Raises OSError, ValueError like `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, most))


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON; `options` are passed to `json.loads`.

    Raises:
        ValueError: when it is not JSON, or is nested more than DEPTH deep.
    """
    try:
        found = json.loads(text, **options)
        opened = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
        # with at most DEPTH opening brackets the nesting cannot be deeper: skip the walk
        return found if sum(map(cast("Any", text.count), opened)) <= DEPTH else shallow(found)
    except RecursionError:
        raise ValueError(_DEEP) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        OSError, ValueError: as for `read_bytes`; also ValueError when it is not TOML, is nested more than DEPTH deep,
            or holds a date.
    """
    data = read_bytes(path, TOML)
    if _LONG_KEY.search(data):  # tomllib takes quadratic time in the length of a dotted key
        raise ValueError(_DEEP)
    try:
        return shallow(tomllib.loads(data.decode("utf-8")))
    except RecursionError:
        raise ValueError(_DEEP) from None


def shallow(value: T) -> T:
    """Return the value unchanged if its lists and mappings are nested at most DEPTH deep.

    Raises:
        ValueError: when they are nested deeper, or hold a date or a time.
    """
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        inner = [one for held in level for one in (held.values() if isinstance(held, dict) else held)]
        level = [one for one in inner if isinstance(one, dict | list)]
        when = next((one for one in inner if isinstance(one, _WHEN)), None)
        if when is not None:
            raise ValueError(f"it holds the date {when}, which is not in quotes")
        if not level:
            return value
    raise ValueError(_DEEP)


def gzip_lines(path: Path, errors: str = "strict") -> Iterator[str]:
    """Yield the lines of a UTF-8 gzip file (`errors` as for `bytes.decode`) without newlines, one in memory at a time.

    Raises:
        One of PACKED_WRONG: when it is damaged, not a regular file, or over a limit.
    """
    left = max(UNPACKED, RATIO * regular(path))
    with _Packed(path.open("rb", buffering=0)) as raw, gzip.GzipFile(fileobj=raw) as file:
        number = 0
        while line := file.readline(LINE + 1):
            number += 1
            left -= len(line)
            if left < 0 or len(line) > LINE or number > LINES:
                raise ValueError(
                    f"it unpacks to a line of more than {LINE:,} bytes, to more than {LINES:,} lines, or to more than "
                    f"{RATIO} times its size"
                )
            yield line.removesuffix(b"\n").decode("utf-8", errors)


def unpacked(data: bytes, most: int | None = None) -> bytes:
    """Decompress gzip data in memory.

    Raises:
        One of PACKED_WRONG: when it is damaged, or unpacks to more than `most` bytes; the default for `most` is RATIO
            times the data, at least UNPACKED.
    """
    most = max(UNPACKED, RATIO * len(data)) if most is None else most
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"its {len(data):,} bytes unpack to more than {most:,}")
    return found


def safetensors(path: Path) -> Path:
    """Return the path, ready for safetensors, if it is a regular file with a header of at most HEADER bytes.

    Raises:
        OSError, ValueError: otherwise.
    """
    size = regular(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if HEADER < length <= size:
        raise ValueError(f"its header has {length:,} bytes, and at most {HEADER:,} are read")
    return path


@contextmanager
def opened_zip(path: Path) -> Generator[zipfile.ZipFile]:
    """Open a zip archive whose directory has at most DIRECTORY bytes and MEMBERS members.

    Raises:
        OSError, ValueError: when it is not a regular file, or is over a limit.
        zipfile.BadZipFile: when it is not a zip archive.
    """
    regular(path)
    with _Pieces(path) as raw, zipfile.ZipFile(cast("Any", raw)) as archive:
        yield few(archive)


def few(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    """Return the archive if it has at most MEMBERS members. Raises ValueError when it has more."""
    if len(archive.filelist) > MEMBERS:
        raise ValueError(f"it has {len(archive.filelist):,} members, and at most {MEMBERS:,} are read")
    return archive


def piece(n: int) -> int:
    """Return `n` if a zip reader may read that many bytes at once.

    Raises:
        ValueError: when it is more than a directory may have.
    """
    if n > DIRECTORY:
        raise ValueError(f"its directory has {n:,} bytes, and at most {DIRECTORY:,} are read")
    return n


class _Packed(io.BufferedReader):
    """A gzip file. `gzip` reads the bytes around a member one by one, and these could go on for gigabytes."""

    _single = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._single = self._single + 1 if size == 1 else 0
        if self._single > UNPACKED >> 10:
            raise ValueError("it holds very many bytes that are no part of what is packed")
        return super().read(size)


class _Pieces(io.FileIO):
    """A file with bounded reads: `zipfile` would read a directory in one go, at whatever length it claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        at_most = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(piece(at_most if size is None or size < 0 else size)) or b""
