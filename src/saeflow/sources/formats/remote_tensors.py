"""Tensors of a file on the hub, each fetched by its byte range when it is first read.

In place of such a file lies a pointer: JSON that states which file of which commit it stands for, and where each
tensor lies in that file. It takes a few kilobytes, and opening a dictionary needs nothing else; `open_tensors` opens it
like the file itself. If the hub's cache holds the whole file, that copy is read; if a server sends only whole files,
the whole file is fetched.

    {HF_HUB_CACHE}/models--google--gemma-scope-2b-pt-res/saeflow/
        refs/{revision}                 the commit that the revision was last resolved to
        {commit}/{path in the repo}     the pointer, and next to it the small files of the dictionary
        ranges/{etag}/...               the bytes; see saeflow.sources.remote.ranges

The places of the tensors are read from the file's own headers, a few kilobytes:

    .npz            a zip: its directory at the end (ZIP64 too), a header before each member, and an .npy header inside
                    each member; uncompressed members hold the values as they are, others are inflated
    .safetensors    8 bytes that state the length of the header, the header as JSON, the values

Python's zipfile reads the zip through a file object that fetches the bytes it reads.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeAlias

import huggingface_hub
import numpy as np
import torch
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.reading import HEADER, few, parse_json, piece, read_bytes, regular
from saeflow.sources.formats.tensors import (
    FETCH_AGAIN,
    NpzFile,
    SafetensorsFile,
    TensorFile,
    is_floating,
    member_header,
    member_start,
    not_floating,
)
from saeflow.sources.remote.hub_file import REFUSALS, HubFile, refused
from saeflow.sources.remote.ranges import Ranges, sha256
from saeflow.sources.remote.transport import RangesIgnored, fetch_whole

BytesAt: TypeAlias = Callable[[int, int], bytes]
"""Returns the bytes of a file from one offset up to another."""

ENDINGS: Final = (".npz", ".safetensors")
"""Suffixes of files whose tensors can be fetched one by one."""
_MARK: Final = "saeflow-pointer"
_VERSION: Final = 1
_BEGINS: Final = f'{{"{_MARK}":'.encode()
_BLOCK: Final = 1 << 14
_END: Final = 22
"""Bytes of the record that ends a zip's directory."""
_TORCH: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_BYTES: Final = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def open_tensors(path: Path) -> TensorFile:
    """Open the tensors of an .npz or .safetensors file that is on disk, whole or sharded, or replaced by a pointer.

    Raises:
        BadFile: when there is no such file, or it is damaged.
    """
    pointer = read_pointer(path)
    return _open_whole(path) if pointer is None else RemoteTensors(path, pointer)


def _open_whole(path: Path) -> TensorFile:
    return NpzFile(path) if path.suffix == ".npz" else SafetensorsFile(path)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A file on the hub, and where each tensor lies in it."""

    file: HubFile
    index: Mapping[str, Segment]

    def ranges(self, path: Path) -> Ranges:
        """The byte ranges of the file, for the pointer at `path`."""
        return Ranges(path.parents[len(PurePosixPath(self.file.file).parts)], self.file)


def read_pointer(path: Path) -> Pointer | None:
    """Read the pointer at a path; None where there is no file, or one that is not a pointer.

    Raises:
        BadFile: when it is a pointer of another version, or damaged.
    """
    try:
        regular(path)
        with path.open("rb") as file:
            if file.read(len(_BEGINS)) != _BEGINS:
                return None
    except (OSError, ValueError):
        return None
    try:
        data: Any = parse_json(check_sha256(read_bytes(path)))
        if data[_MARK] != _VERSION:
            raise ValueError(f"version {data[_MARK]}")
        index = {name: Segment(**(at | {"shape": tuple(at["shape"])})) for name, at in data["index"].items()}
        return Pointer(HubFile(**data["file"]), index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadFile(f"{path}: cannot be read as a pointer ({error}). Remove it: it is made again.") from error


def write_pointer(path: Path, file: HubFile) -> Pointer:
    """Read the headers of a file on the hub, and write a pointer to it at `path`.

    Raises:
        RangesIgnored: when the server sends only whole files; nothing is written.
        Unreachable: when the hub does not answer.
        BadFile: when the headers do not follow the format.
    """
    empty = Pointer(file, {})
    index = read_index(file.file, file.size, empty.ranges(path).bytes_at, where=str(file))
    pointer = Pointer(file, index)
    data = {_MARK: _VERSION, "file": asdict(file), "index": {name: asdict(at) for name, at in pointer.index.items()}}
    write_atomic(path, add_sha256(json.dumps(data).encode()))
    return pointer


class RemoteTensors(TensorFile):
    """The tensors of the file that a pointer stands for."""

    def __init__(self, path: Path, pointer: Pointer) -> None:
        """Hold the pointer at `path`, which errors name. Reads and fetches nothing."""
        self.path, self._pointer = path, pointer
        self.shapes = {name: at.shape for name, at in pointer.index.items()}
        self._ranges = pointer.ranges(path)

    def read(self, name: str) -> Tensor:
        """Read one tensor as float32, fetching it if needed; uncompressed float32 is mapped, copy on write.

        Raises:
            BadFile: when it is not floating-point, or the fetched bytes do not have the checksum the file states.
            Unreachable: when it must be fetched and cannot be.
            NoSpace: when the disk is too small.
        """
        segment = self._pointer.index[name]
        # numpy does not know the names of safetensors' types; "V1" stands for those, and is no floating-point type
        known = segment.dtype if segment.dtype[:1] in "<>|=" else "V1"
        if segment.torch_dtype is None and not is_floating(np.dtype(known)):
            raise BadFile(not_floating(self.path, name, segment.dtype))
        file = self._pointer.file
        if not self._ranges.has(segment.start, segment.stop):  # the hub's own cache may hold the whole file
            whole = huggingface_hub.try_to_load_from_cache(file.repo, file.file, revision=file.commit)
            if isinstance(whole, str):
                return _open_whole(Path(whole)).read(name)
        if segment.start == segment.stop:
            return torch.empty(segment.shape)
        try:
            at = self._ranges.path(segment.start, segment.stop, name, check=segment.is_sound)
        except RangesIgnored:
            try:
                path = fetch_whole(file.repo, file.file, file.commit)
            except REFUSALS as error:
                raise refused(file.file, file.repo, error, revision=file.commit) from error
            return _open_whole(path).read(name)
        self._check_whole()
        try:
            return _tensor(at, segment).to(torch.float32)
        except (OSError, ValueError, zlib.error) as error:
            raise BadFile(f"{self.path}: tensor {name!r} cannot be read ({error}). {FETCH_AGAIN}") from error

    def _check_whole(self) -> None:
        """Compare a safetensors file with the sha256 that the hub states, once all of its tensors are on disk.

        This fetches the header again, a few kilobytes.

        Raises:
            BadFile: when they differ; the fetched ranges are removed.
        """
        file, folder = self._pointer.file, self._ranges.folder
        seal = folder / "whole"
        if len(file.etag) != 64 or not file.file.endswith(".safetensors") or seal.is_file():
            return
        spans = sorted((at.start, at.stop) for at in self._pointer.index.values() if at.start < at.stop)
        if not all(self._ranges.has(*span) for span in spans):
            return
        head = self._ranges.path(0, spans[0][0], "the header")
        ranges = [head, *(folder / f"{start}-{stop}" for start, stop in spans)]
        if sha256(*ranges) != file.etag:
            for path in ranges:
                path.unlink(missing_ok=True)
            raise BadFile(
                f"{file}: what was fetched does not have the sha256 {file.etag} by which the hub knows it, and was "
                "removed. Fetch it again; if that repeats, something on the way changes it."
            )
        write_atomic(seal, b"")


def _tensor(path: Path, segment: Segment) -> Tensor:
    """The values in their stored type."""
    if segment.packed:
        n_bytes = segment.offset + math.prod(segment.shape) * np.dtype(segment.dtype).itemsize
        # inflate no more than the header states, whatever the member holds
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(path.read_bytes(), n_bytes)
        inflated = np.frombuffer(bytearray(unpacked), np.uint8, offset=segment.offset)
    else:
        inflated = np.memmap(path, np.uint8, "c", segment.offset)
    flat = torch.from_numpy(inflated)
    if segment.torch_dtype is not None:
        return flat.view(segment.torch_dtype).reshape(segment.shape)
    values = inflated.view(np.dtype(segment.dtype))
    native = np.require(values, values.dtype.newbyteorder("="), "A")  # a copy only for byte order or alignment
    return torch.from_numpy(native.reshape(segment.shape, order="F" if segment.fortran else "C"))


def tensors_here(path: Path) -> dict[str, bool] | None:
    """Whether each tensor of the file a pointer stands for is on disk; None without a readable pointer."""
    try:
        pointer = read_pointer(path)
    except BadFile:
        return None
    if pointer is None:
        return None
    ranges = pointer.ranges(path)
    return {name: ranges.has(at.start, at.stop) for name, at in pointer.index.items()}


def unlink_pointer(path: Path) -> None:
    """Remove a pointer, so that it is made again; the ranges stay. Raises OSError when the folder cannot be written."""
    if path.is_file() and read_pointer(path) is not None:
        os.unlink(path)


@dataclass(frozen=True, slots=True)
class Segment:
    """One tensor of a remote file.

    Attributes:
        start: offset of its first byte in the file; in an .npz, of the member's first byte.
        stop: offset of the byte after its last.
        offset: bytes of the (inflated) segment before the first value.
        shape: shape of the tensor.
        dtype: name of its type in safetensors, or in numpy, such as "<f4".
        fortran: whether the first axis varies fastest.
        packed: whether the segment is deflated.
        crc: the CRC-32 of the (inflated) segment, if the format has one.
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
        """The type of a floating-point safetensors tensor; None for anything else."""
        return _TORCH.get(self.dtype)

    def is_sound(self, path: Path) -> bool:
        """Whether the contents of a file have the segment's CRC-32; True where there is none. Raises OSError."""
        if self.crc is None:
            return True
        crc, inflate = 0, zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            with path.open("rb") as file:
                while piece := file.read(1 << 16):  # inflates to up to a thousand times as many
                    crc = zlib.crc32(inflate.decompress(piece) if self.packed else piece, crc)
        except zlib.error:
            return False
        return zlib.crc32(inflate.flush(), crc) == self.crc if self.packed else crc == self.crc


def read_index(name: str, size: int, bytes_at: BytesAt, *, where: str = "") -> dict[str, Segment]:
    """Locate the tensors of a file, by name. The suffix of `name` gives the format; `where` is for messages.

    Raises:
        BadFile: when the headers do not follow the format.
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
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (int(offset) for offset in entry["data_offsets"])
        shape = tuple(int(n) for n in entry["shape"])
        dtype = str(entry["dtype"])
        bits = _TORCH[dtype].itemsize if dtype in _TORCH else _BYTES.get(dtype)
        if not 0 <= begin <= end <= size - start or (bits and end - begin != math.prod(shape) * bits):
            raise ValueError(f"{name!r} of shape {list(shape)} and type {dtype} is said to lie at {begin} to {end}")
        found[name] = Segment(start + begin, start + end, 0, shape, dtype)
    return found


def _npz_index(size: int, bytes_at: BytesAt) -> dict[str, Segment]:
    raw = _Fetched(size, bytes_at)
    raw.seek(max(0, size - _END))
    raw.read(_END)  # here, since zipfile would report any failure to fetch it as "not a zip file"
    with zipfile.ZipFile(raw) as archive:
        infos = [info for info in few(archive).infolist() if info.filename.endswith(".npy")]
        found: dict[str, Segment] = {}
        for info in infos:
            shape, fortran, dtype, offset = member_header(archive, info)
            packed = info.compress_type != zipfile.ZIP_STORED
            if packed and info.compress_type != zipfile.ZIP_DEFLATED:
                raise ValueError(f"{info.filename} is packed by method {info.compress_type}, and numpy deflates")
            start = member_start(raw, info)
            stop = start + info.compress_size
            found[info.filename[:-4]] = Segment(start, stop, offset, shape, dtype.str, fortran, packed, info.CRC)
        return found


class _Fetched(io.RawIOBase):
    """A file object over remote bytes; each block is fetched once."""

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
            some = self._blocks[number][within : within + stop - self._at]
            view[done : done + len(some)] = some
            done += len(some)
            self._at += len(some)
        return done
