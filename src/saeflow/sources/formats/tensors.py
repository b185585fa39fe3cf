"""Reading one tensor of a file without reading the others: safetensors and .npz.

The bottom of the readers. Names and shapes come from headers; values are memory-mapped where the file allows
it (safetensors always; .npz when the member is stored uncompressed and aligned, as `numpy.savez` writes it).
Nothing here unpickles. Half-precision values are returned as float32.
"""

from __future__ import annotations

import glob
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.reading import RATIO, UNPACKED, opened_zip, safetensors

_PARTS: Final = 100_000
FETCH_AGAIN = "The file is truncated or damaged: fetch it again."


@runtime_checkable
class TensorFile(Protocol):
    """A file of named tensors."""

    @property
    def path(self) -> Path:
        """The file, as errors name it."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, from headers."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor as float32.

        Raises:
            BadFile: when it cannot be read or holds no floating-point numbers.
        """
        ...


@runtime_checkable
class ReadsRange(Protocol):
    """A file that reads part of a tensor without the rest."""

    def read_range(self, name: str, axis: int, start: int, stop: int) -> Tensor:
        """Entries `start` to `stop` - 1 along an axis of a matrix, or of a vector, as float32.

        Raises:
            BadFile: when they cannot be read or are no floating-point numbers.
        """
        ...


class SafetensorsFile:
    """A .safetensors file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            BadFile: when there is no such file or it is truncated.
        """
        self._path = path
        try:
            with safe_open(safetensors(path), framework="pt") as file:
                names: list[str] = list(file.keys())
                self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            raise BadFile(f"{path}: cannot be opened as safetensors ({error}). {FETCH_AGAIN}") from error

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return self._shapes

    def read(self, name: str) -> Tensor:
        """One tensor as float32; float32 on disk is not copied.

        Raises:
            BadFile: when the file changed since it was opened, or the tensor is of another type.
        """
        return self._read(name, ())

    def read_range(self, name: str, axis: int, start: int, stop: int) -> Tensor:
        """Part of a tensor as float32; the rest is not read.

        Raises:
            BadFile: as `read`.
        """
        return self._read(name, (slice(None),) * axis + (slice(start, stop),))

    def _read(self, name: str, part: tuple[slice, ...]) -> Tensor:
        try:
            with safe_open(self._path, framework="pt") as file:
                tensor: Tensor = file.get_slice(name)[part] if part else file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BadFile(f"{self._path}: tensor {name!r} cannot be read ({error}). {FETCH_AGAIN}") from error
        if not tensor.is_floating_point():
            raise BadFile(not_floating(self._path, name, str(tensor.dtype)))
        return tensor.to(torch.float32)


def shards_of(path: Path) -> list[Path]:
    """The parts that stand for a .safetensors file: `model-00001-of-00002.safetensors` and so on; empty where none do.

    Raises:
        BadFile: when some are missing.
    """
    parts = sorted(path.parent.glob(f"{glob.escape(path.stem)}-[0-9]*-of-[0-9]*{path.suffix}"))
    if not parts:
        return []
    many = parts[0].stem.rpartition("-")[2]
    wanted = [f"{path.stem}-{i + 1:0{len(many)}}-of-{many}{path.suffix}" for i in range(min(int(many), _PARTS))]
    missing = sorted(set(wanted) - {part.name for part in parts})
    if missing or len(parts) != int(many):
        lacks = f", {missing[0]} not" if missing else ""
        raise BadFile(f"{path}: is in {int(many)} parts; {len(parts)} are here{lacks}. Fetch all of them.")
    return parts


class ShardedFile:
    """A .safetensors file in several parts, each tensor whole in one of them. Meets `TensorFile`."""

    def __init__(self, path: Path, parts: list[Path]) -> None:
        """Read the header of every part; `path` is the file they stand for.

        Raises:
            BadFile: when one is truncated, or a tensor is in two.
        """
        self._path = path
        self._holder: dict[str, SafetensorsFile] = {}
        for file in map(SafetensorsFile, parts):
            for name in file.shapes:
                if name in self._holder:
                    raise BadFile(
                        f"{path}: tensor {name!r} is in {self._holder[name].path.name} and in {file.path.name}. "
                        "Fetch both again."
                    )
                self._holder[name] = file

    @property
    def path(self) -> Path:
        """The file that the parts stand for."""
        return self._path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: file.shapes[name] for name, file in self._holder.items()}

    def read(self, name: str) -> Tensor:
        """One tensor as float32.

        Raises:
            BadFile: as `SafetensorsFile.read`.
        """
        return self._holder[name].read(name)

    def read_range(self, name: str, axis: int, start: int, stop: int) -> Tensor:
        """Part of a tensor as float32; the rest is not read.

        Raises:
            BadFile: as `read`.
        """
        return self._holder[name].read_range(name, axis, start, stop)


SPOILED: Final = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, OSError, ValueError, EOFError)
"""What `zipfile` and numpy raise of a damaged archive; RuntimeError of one that claims to be encrypted or of another
way to pack."""


@dataclass(frozen=True)
class _Member:
    """One array inside an .npz: its header, and where its values start if they are not compressed."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int | None


class NpzFile:
    """An .npz file, one member at a time."""

    def __init__(self, path: Path) -> None:
        """Read the headers of the archive and of every member.

        Raises:
            BadFile: when there is no such file, or it is truncated or no archive of arrays.
        """
        self._path = path
        try:
            with opened_zip(path) as archive:
                infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
                self._members = {info.filename[:-4]: _member(archive, info) for info in infos}
        except SPOILED as error:
            raise BadFile(f"{path}: cannot be opened as .npz ({error}). {FETCH_AGAIN}") from error

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every member."""
        return {name: member.shape for name, member in self._members.items()}

    def read(self, name: str) -> Tensor:
        """One member as float32; aligned float32 stored uncompressed is mapped, copy on write.

        Raises:
            BadFile: when the member is damaged or of another type.
        """
        member = self._members[name]
        if not is_floating(member.dtype):
            raise BadFile(not_floating(self._path, name, str(member.dtype)))
        try:
            tensor = self._stored(member) if member.start is not None else self._compressed(name)
        except SPOILED as error:
            raise BadFile(f"{self._path}: tensor {name!r} cannot be read ({error}). {FETCH_AGAIN}") from error
        return tensor.to(torch.float32)

    def _stored(self, member: _Member) -> Tensor:
        order = "F" if member.fortran else "C"
        native = member.dtype.newbyteorder("=")
        if member.start is not None and member.start % member.dtype.itemsize == 0 and member.shape:
            mapped = np.memmap(self._path, member.dtype, "c", member.start, member.shape, order)
            return torch.from_numpy(mapped.astype(native, copy=False))
        count = int(np.prod(member.shape, dtype=np.int64))
        flat = np.fromfile(self._path, member.dtype, count, offset=member.start or 0)
        return torch.from_numpy(flat.reshape(member.shape, order=order).astype(native, copy=False))

    def _compressed(self, name: str) -> Tensor:
        with opened_zip(self._path) as archive, archive.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether values are floating-point numbers that PyTorch has too: long doubles are none."""
    return dtype.kind == "f" and dtype.itemsize <= 8


@runtime_checkable
class _Reads(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    shape, fortran, dtype, header = member_header(archive, info)
    if info.compress_type != zipfile.ZIP_STORED:
        return _Member(shape, fortran, dtype, None)
    with Path(str(archive.filename)).open("rb") as raw:
        return _Member(shape, fortran, dtype, member_start(raw, info) + header)


def member_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """What `npy_header` says of a member of an archive, and how many bytes that is.

    Raises:
        ValueError: when the member is no .npy, or its values do not fill it.
    """
    if info.file_size > max(UNPACKED, RATIO * info.compress_size):
        raise ValueError(
            f"{info.filename} unpacks from {info.compress_size} bytes to {info.file_size}, more than {RATIO} times that"
        )
    with archive.open(info) as file:
        shape, fortran, dtype = npy_header(file)
        header = file.tell()
    # the product in Python's integers, which do not wrap; objects are refused when they are read
    if dtype.kind != "O" and info.file_size != header + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{info.filename} holds {info.file_size} bytes, which its shape {list(shape)} does not fill")
    return shape, fortran, dtype, header


def member_start(raw: IO[bytes] | io.RawIOBase, info: zipfile.ZipInfo) -> int:
    """Where in the file the bytes of a member begin."""
    # the local header repeats name and extra field, of lengths that the directory's copy need not share
    raw.seek(info.header_offset + 26)
    lengths = raw.read(4) or b""
    return info.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))


def npy_header(file: _Reads) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis varies fastest, and type of an .npy, read up to its first value.

    Raises:
        ValueError: when it is no .npy.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def not_floating(path: Path, name: str, dtype: str) -> str:
    """What is said of a tensor of integers, or of anything else that is no weight.

    Raises:
        Nothing.
    """
    return f"{path}: tensor {name!r} is {dtype}, expected floating-point numbers. Convert the file to float32."
