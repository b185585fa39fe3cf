"""Where each tensor lies in a file that is elsewhere: read from its headers, a few kilobytes.

    .npz            a zip: its directory at the end (ZIP64 too), a header before each member, and in the member the
                    header of an .npy; uncompressed members are the values as they are, others are inflated
    .safetensors    8 bytes that say how long the header is, the header as JSON, the values

The zip is read by Python's zipfile over a file object that fetches what is read from it.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from saeflow.errors import BadFile
from saeflow.reading import HEADER, few, parse_json, piece
from saeflow.sources.formats.tensors import FETCH_AGAIN, member_header, member_start

BytesAt: TypeAlias = Callable[[int, int], bytes]
"""The bytes of the file from one place to another."""

_BLOCK: Final = 1 << 14
_END: Final = 22
"""Bytes of the end of a zip's directory."""
_TORCH: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_BYTES: Final = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class Segment:
    """One tensor of a remote file.

    Attributes:
        start: its first byte in the file; of an .npz, that of the member.
        stop: the byte after its last.
        offset: bytes of the (inflated) segment before the first value.
        shape: of the tensor.
        dtype: as safetensors names it, or as numpy does, such as "<f4".
        fortran: whether the first axis varies fastest.
        packed: whether the segment is deflated.
        crc: the CRC-32 of the (inflated) segment, where the format has one.
    """

    start: int
    stop: int
    offset: int
    shape: tuple[int, ...]
    dtype: str
    fortran: bool = False
    packed: bool = False
    crc: int | None = None

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The type of a safetensors tensor of floating-point numbers; None for all else."""
        return _TORCH.get(self.dtype)

    def is_sound(self, path: Path) -> bool:
        """Whether what a file holds has the segment's CRC-32; True where there is none.

        Raises:
            OSError: when the file cannot be read.
        """
        if self.crc is None:
            return True
        crc, inflate = 0, zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            with path.open("rb") as file:
                while piece := file.read(1 << 16):  # a thousand times as many where packed
                    crc = zlib.crc32(inflate.decompress(piece) if self.packed else piece, crc)
        except zlib.error:
            return False
        return zlib.crc32(inflate.flush(), crc) == self.crc if self.packed else crc == self.crc


def read_index(name: str, size: int, bytes_at: BytesAt, *, where: str = "") -> dict[str, Segment]:
    """Where the tensors of a file are, by name. The ending of `name` tells the format; `where` is for messages.

    Raises:
        BadFile: when the headers are not as the format says.
    """
    try:
        if name.endswith(".npz"):
            return _npz_index(size, bytes_at)
        return _safetensors_index(size, bytes_at)
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise BadFile(f"{where or name}: its headers cannot be read ({error}). {FETCH_AGAIN}") from error


def _safetensors_index(size: int, bytes_at: BytesAt) -> dict[str, Segment]:
    first = bytes_at(0, min(size, _BLOCK))
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or not 0 < length <= min(size - 8, HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    start = 8 + length
    header: Any = parse_json(first[8:start] if len(first) >= start else bytes_at(8, start))
    found: dict[str, Segment] = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        begin, end = (int(place) for place in told["data_offsets"])
        shape = tuple(int(n) for n in told["shape"])
        dtype = str(told["dtype"])
        bits = _TORCH[dtype].itemsize if dtype in _TORCH else _BYTES.get(dtype)
        if not 0 <= begin <= end <= size - start or (bits and end - begin != math.prod(shape) * bits):
            raise ValueError(f"{name!r} of shape {list(shape)} and type {dtype} is said to lie at {begin} to {end}")
        found[name] = Segment(start + begin, start + end, 0, shape, dtype)
    return found


def _npz_index(size: int, bytes_at: BytesAt) -> dict[str, Segment]:
    raw = _Fetched(size, bytes_at)
    raw.seek(max(0, size - _END))
    raw.read(_END)  # here, as zipfile takes whatever keeps it from reading this for no zip
    with zipfile.ZipFile(raw) as archive:
        infos = [info for info in few(archive).infolist() if info.filename.endswith(".npy")]
        return {info.filename[:-4]: _member(archive, raw, info) for info in infos}


def _member(archive: zipfile.ZipFile, raw: _Fetched, info: zipfile.ZipInfo) -> Segment:
    shape, fortran, dtype, offset = member_header(archive, info)
    packed = info.compress_type != zipfile.ZIP_STORED
    if packed and info.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{info.filename} is packed by method {info.compress_type}, and numpy deflates")
    start = member_start(raw, info)
    return Segment(start, start + info.compress_size, offset, shape, np.dtype(dtype).str, fortran, packed, info.CRC)


class _Fetched(io.RawIOBase):
    """A file object over bytes that are elsewhere; each block is fetched once."""

    def __init__(self, size: int, bytes_at: BytesAt) -> None:
        self._size, self._bytes_at, self._at = size, bytes_at, 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"place {at} lies before the file")
        self._at = at
        return at

    def read(self, size: int = -1, /) -> bytes:
        return super().read(piece(self._size - self._at if size < 0 else size)) or b""

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._size)
        done = 0
        while self._at < stop:
            number, within = divmod(self._at, _BLOCK)
            if number not in self._blocks:
                begin = number * _BLOCK
                self._blocks[number] = self._bytes_at(begin, min(begin + _BLOCK, self._size))
            piece = self._blocks[number][within : within + stop - self._at]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done
