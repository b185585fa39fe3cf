"""Lines of text in one .gz file, readable one at a time. No torch.

A graph needs one feature at each of many sites, and a site of 131,072 features is tens of MB unpacked. The file is
therefore a chain of gzip members of 256 lines each, and ends with an empty member whose header says where the others
begin: in an extra field (RFC 1952, section 2.3.1.1) that ends in a length and a mark, by which it is found from the
end. To any reader of gzip the file is plain lines; a plain .gz file without that last member is read whole.
"""

from __future__ import annotations

import gzip
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

from saeflow.errors import BadFile
from saeflow.files import atomic_file
from saeflow.reading import LINE, PACKED_WRONG, gzip_lines, regular, unpacked

BLOCK: Final = 256
"""Lines of a gzip member."""

_LEVEL: Final = 6
_HEAD: Final = struct.Struct("<4sIxBH2sH")  # magic, method, flags; time; flags, system; lengths of the extra field
_COUNTS: Final = struct.Struct("<IQ")  # lines of a block, lines in all
_TAIL: Final = struct.Struct("<I4s")  # length of the last member, mark
_MARK: Final = b"SFL1"
_EMPTY: Final = b"\x03\x00" + bytes(8)  # an empty deflate stream, its checksum and its length
_LEAST: Final = 20  # minimum bytes of a gzip member
_LONGEST: Final = 1 << 17  # maximum bytes of the last member; its extra field has 65,535 at most
_MOST_BLOCKS: Final = (65_535 - 4 - _COUNTS.size - _TAIL.size) // 4

_Stamp: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Index:
    """Lines per member, lines in all, and where the members begin, followed by the end of the last."""

    block: int
    n_lines: int
    starts: tuple[int, ...]


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines, none of which may hold a line break, whole or not at all; returns the number of lines.

    The same lines give the same bytes.

    Raises:
        OSError: when the folder cannot be written.
    """
    lengths: list[int] = []
    n_lines = 0
    stream = iter(lines)
    with atomic_file(path) as part, part.open("wb") as file:
        while some := list(islice(stream, BLOCK)):
            packed = gzip.compress("".join(f"{line}\n" for line in some).encode(), _LEVEL, mtime=0)
            file.write(packed)
            lengths.append(len(packed))
            n_lines += len(some)
        if len(lengths) <= _MOST_BLOCKS:
            file.write(_last_member(lengths, n_lines))
    return n_lines


def read_line(path: Path, row: int) -> str | None:
    """A single line by its row; None if there is no such file or row. Keeps a few blocks in memory.

    Raises:
        BadFile: when the file cannot be read.
    """
    stamp = _stamp(path)
    if stamp is None or row < 0:
        return None
    index = _index(path, stamp)
    if index is None:
        lines = _whole(path, stamp)
        return lines[row] if row < len(lines) else None
    if row >= index.n_lines:
        return None
    return _block(path, stamp, row // index.block)[row % index.block]


def read_lines(path: Path) -> Iterator[str]:
    """Every line, in order; nothing if there is no such file. Keeps one line in memory.

    Raises:
        BadFile: when the file cannot be read.
    """
    stamp = _stamp(path)
    if stamp is None:
        return
    try:
        _require_some(stamp)
        yield from gzip_lines(path)
    except PACKED_WRONG as error:
        raise _bad(path, error) from None


def is_whole(path: Path) -> bool:
    """Whether the file exists and every byte of it is as it was written; reads all of it."""
    try:
        stamp = _stamp(path)
        if stamp is None:
            return False
        # only a file of very many blocks is written without an index
        if _index(path, stamp) is None and stamp[1] < _MOST_BLOCKS * _LEAST:
            return False
        for _ in gzip_lines(path):
            pass
    except PACKED_WRONG:
        return False
    return True


def _last_member(lengths: list[int], n_lines: int) -> bytes:
    inner = _COUNTS.size + 4 * len(lengths) + _TAIL.size
    total = _HEAD.size + inner + len(_EMPTY)
    head = _HEAD.pack(b"\x1f\x8b\x08\x04", 0, 255, inner + 4, b"SF", inner)
    starts = struct.pack(f"<{len(lengths)}I", *lengths)
    return b"".join((head, _COUNTS.pack(BLOCK, n_lines), starts, _TAIL.pack(total, _MARK), _EMPTY))


def _stamp(path: Path) -> _Stamp | None:
    """A value that changes with the file; None if there is none."""
    try:
        size = regular(path)
        return path.stat().st_mtime_ns, size
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _bad(path, error) from None


@lru_cache(maxsize=1024)
def _index(path: Path, stamp: _Stamp) -> _Index | None:
    """The index at the end of the file; None if there is none."""
    size = stamp[1]
    if size < _HEAD.size + _COUNTS.size + _TAIL.size + len(_EMPTY):
        return None
    try:
        with path.open("rb") as file:
            file.seek(-_TAIL.size - len(_EMPTY), os.SEEK_END)
            length, mark = _TAIL.unpack(file.read(_TAIL.size))
            if mark != _MARK or length > min(size, _LONGEST):
                return None
            file.seek(-length, os.SEEK_END)
            member = file.read(length)
    except OSError as error:
        raise _bad(path, error) from None
    body = member[_HEAD.size : -_TAIL.size - len(_EMPTY)]
    block, n_lines = _COUNTS.unpack_from(body)
    lengths = struct.unpack(f"<{(len(body) - _COUNTS.size) // 4}I", body[_COUNTS.size :])
    starts = (0, *itertools.accumulate(lengths))
    if starts[-1] + length != size or block < 1 or len(lengths) != -(-n_lines // block):
        raise _bad(path, ValueError("its index does not fit its length"))
    return _Index(block, n_lines, starts)


@lru_cache(maxsize=256)
def _block(path: Path, stamp: _Stamp, number: int) -> tuple[str, ...]:
    index = _index(path, stamp)
    assert index is not None  # noqa: S101 - only files with an index are read by blocks
    start, stop = index.starts[number : number + 2]
    expected = min(index.block, index.n_lines - number * index.block)
    try:
        with path.open("rb") as file:
            file.seek(start)
            lines = unpacked(file.read(min(stop - start, LINE))).decode().split("\n")
    except PACKED_WRONG as error:
        raise _bad(path, error) from None
    lines = lines if lines[-1] else lines[:-1]
    if len(lines) != expected:
        raise _bad(path, ValueError(f"block {number} has {len(lines)} lines, not {expected}"))
    return tuple(lines)


@lru_cache(maxsize=128)
def _whole(path: Path, stamp: _Stamp) -> tuple[str, ...]:
    try:
        _require_some(stamp)
        return tuple(gzip_lines(path))
    except PACKED_WRONG as error:
        raise _bad(path, error) from None


def _require_some(stamp: _Stamp) -> None:
    """Refuse an empty file, which must have been cut: even one without lines has a gzip header."""
    if stamp[1] == 0:
        raise EOFError("the file is empty")


def _bad(path: Path, error: Exception) -> BadFile:
    return BadFile(f"{path}: these words cannot be read ({error}). Fetch or build them again.")
