"""Reading what others wrote, within bounds: regular files alone, no larger, deeper or fuller than stated here.

A config, a theme, words or an archive may come from anywhere, and a small or odd one must not take gigabytes, hang, or
end in a traceback. All reading of files from outside goes through here. What is out of bounds is a ValueError that
says why, like JSON or UTF-8 that is not valid; the caller names the file and says what to do.

    a JSON file                      JSON bytes, DEPTH lists or objects inside each other
    a TOML file                      TOML bytes, DEPTH as above, no dates
    a file of texts                  TEXTS bytes
    lines in a gzip                  LINE bytes each, LINES in all; RATIO times the file, UNPACKED bytes in any case
    a shard of activations           SHARD bytes, as we wrote it
    the header of a safetensors      HEADER bytes
    the directory of a zip           DIRECTORY bytes, MEMBERS in all
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
"""What reading a gzip file raises of one that is damaged or out of bounds."""

_DEEP: Final = f"lists or tables lie more than {DEPTH} deep inside each other"
_WHEN: Final = (datetime, date, time)
_LONG_KEY: Final = re.compile(rb"""(?:[\w"'-]+[ \t]*\.[ \t]*){%d}""" % DEPTH)


def regular(path: Path) -> int:
    """The size in bytes of a regular file, or of the one a link leads to.

    Raises:
        OSError: when there is none.
        ValueError: when it is a folder, a pipe or a device, which is not opened.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"it is {kind}, and no file")
    return state.st_size


def read_bytes(path: Path, most: int = JSON) -> bytes:
    """What a regular file holds.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is no regular file, or has more than `most` bytes.
    """
    size = regular(path)
    if size <= most:
        with path.open("rb") as file:
            data = file.read(size + 1)
        if len(data) <= size:
            return data
        raise ValueError(f"it says that it has {size:,} bytes, and has more")  # as files of /proc
    raise ValueError(f"it has {size:,} bytes, and at most {most:,} are read")


def read_text(path: Path, most: int = JSON) -> str:
    """A text in UTF-8, its line ends as in any text file.

    Raises:
        OSError, ValueError: as `read_bytes`; ValueError when it is not UTF-8.
    """
    text = read_bytes(path, most).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_json(path: Path, most: int = JSON) -> Any:
    """What a file of JSON says. Raises OSError, ValueError as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, most))


def parse_json(text: str | bytes, **options: Any) -> Any:
    """What JSON says; `options` are those of `json.loads`.

    Raises:
        ValueError: when it is not JSON, or lists and objects are more than DEPTH deep inside each other.
    """
    try:
        found = json.loads(text, **options)
        opened = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
        # most JSON has no more brackets than levels are allowed
        return found if sum(map(cast("Any", text.count), opened)) <= DEPTH else shallow(found)
    except RecursionError:
        raise ValueError(_DEEP) from None


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        OSError, ValueError: as `read_bytes`; ValueError when it is no TOML, more than DEPTH deep, or holds a date.
    """
    data = read_bytes(path, TOML)
    if _LONG_KEY.search(data):  # tomllib takes time by the square of it
        raise ValueError(_DEEP)
    try:
        return shallow(tomllib.loads(data.decode("utf-8")))
    except RecursionError:
        raise ValueError(_DEEP) from None


def shallow(value: T) -> T:
    """The value, where lists and mappings are at most DEPTH deep inside each other.

    Raises:
        ValueError: when they are deeper, or one holds a date or a time.
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
    """The lines of a gzip file in UTF-8 (`errors` as for `bytes.decode`), without their ends, one in memory at a time.

    Raises:
        One of PACKED_WRONG: when it is damaged, no regular file, or out of bounds.
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
    """What a gzip in memory unpacks to.

    Raises:
        One of PACKED_WRONG: when it is damaged, or unpacks to more than `most` bytes, or out of bounds where None.
    """
    most = max(UNPACKED, RATIO * len(data)) if most is None else most
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"its {len(data):,} bytes unpack to more than {most:,}")
    return found


def safetensors(path: Path) -> Path:
    """The path, where a regular file with a header of at most HEADER bytes is there: it is then given to safetensors.

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
    """A zip archive with a directory of at most DIRECTORY bytes and MEMBERS members.

    Raises:
        OSError, ValueError: when it is no regular file, or larger.
        zipfile.BadZipFile: when it is no archive.
    """
    regular(path)
    with _Pieces(path) as raw, zipfile.ZipFile(cast("Any", raw)) as archive:
        yield few(archive)


def few(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    """The archive, where it has at most MEMBERS members. Raises ValueError when it has more."""
    if len(archive.filelist) > MEMBERS:
        raise ValueError(f"it has {len(archive.filelist):,} members, and at most {MEMBERS:,} are read")
    return archive


def piece(n: int) -> int:
    """The number of bytes, where a zip may ask for so many at once.

    Raises:
        ValueError: when it is more than its directory may have.
    """
    if n > DIRECTORY:
        raise ValueError(f"its directory has {n:,} bytes, and at most {DIRECTORY:,} are read")
    return n


class _Packed(io.BufferedReader):
    """A gzip file. What stands before and after a member is read byte by byte, and could go on for gigabytes."""

    _single = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._single = self._single + 1 if size == 1 else 0
        if self._single > UNPACKED >> 10:
            raise ValueError("it holds very many bytes that are no part of what is packed")
        return super().read(size)


class _Pieces(io.FileIO):
    """A file that is read in small pieces alone: `zipfile` takes a directory whole, of the length that it claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        at_most = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(piece(at_most if size is None or size < 0 else size)) or b""
