"""Read one tensor of a file without reading the others: safetensors, .npz and .pt.

The lowest layer of the readers. Names and shapes come from headers; values are memory-mapped where the file allows
it (safetensors and .pt always; .npz when the member is stored uncompressed and aligned, as `numpy.savez` writes it).
Half-precision values are returned as float32.

A .pt is a zip archive whose data.pkl describes how tensors are assembled from the other members. Loading a pickle
calls what it names; `torch.load(weights_only=True)` allows a short list of harmless callables and refuses the rest.
What it does not check is checked here: beforehand, that data.pkl is not too large and that no member is compressed, so
that a small file cannot become a huge one; afterwards, that no tensor claims more values than the file has bytes for.
"""

from __future__ import annotations

import glob
import io
import math
import pickle
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.reading import RATIO, UNPACKED, opened_zip, safetensors

FETCH_AGAIN: Final = "The file is truncated or damaged: fetch it again."
SPOILED: Final = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, OSError, ValueError, EOFError)
"""What `zipfile` and numpy raise for a damaged archive; RuntimeError if it claims to be encrypted, or packed by an
unknown method."""
_SHARDS: Final = 100_000
_PICKLE: Final = 4 << 20
_COMPILED: Final = "_orig_mod."
"""The prefix that `torch.compile` puts before every name."""


class TensorFile(ABC):
    """A file of named tensors.

    Attributes:
        path: the file, as errors name it.
        shapes: the shape of every tensor, from headers.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Read one tensor as float32.

        Raises:
            BadFile: when it cannot be read, has changed since the headers were read, or is not floating-point.
        """

    def read_range(self, name: str, axis: int, start: int, stop: int) -> Tensor:
        """Read entries `start` to `stop` - 1 along an axis as float32; reads only these where the format allows it.

        Raises:
            BadFile: as `read`.
        """
        return self.read(name).narrow(axis, start, stop - start)


class SafetensorsFile(TensorFile):
    """A memory-mapped .safetensors file, or the shards it is split into, each tensor whole in one of them."""

    def __init__(self, path: Path) -> None:
        """Read the header, or that of every shard.

        Raises:
            BadFile: when there is no such file, it or a shard is truncated, or a tensor is in two shards.
        """
        self.path = path
        found: dict[str, tuple[int, ...]] = {}
        self._holder: dict[str, Path] = {}
        for part in ([] if path.is_file() else shards_of(path)) or [path]:
            try:
                with safe_open(safetensors(part), framework="pt") as file:
                    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError, ValueError) as error:
                raise BadFile(f"{part}: cannot be opened as safetensors ({error}). {FETCH_AGAIN}") from error
            if twice := [name for name in shapes if name in self._holder]:
                raise BadFile(
                    f"{path}: tensor {twice[0]!r} is in {self._holder[twice[0]].name} and in {part.name}. "
                    "Fetch both again."
                )
            found |= shapes
            self._holder |= dict.fromkeys(shapes, part)
        self.shapes = found

    def read(self, name: str) -> Tensor:
        """Read one tensor as float32; float32 on disk is not copied. Raises BadFile."""
        return self._read(name, ())

    def read_range(self, name: str, axis: int, start: int, stop: int) -> Tensor:
        """Read part of a tensor as float32, and nothing else. Raises BadFile."""
        return self._read(name, (slice(None),) * axis + (slice(start, stop),))

    def _read(self, name: str, part: tuple[slice, ...]) -> Tensor:
        return _as_float32(self._holder[name], name, self._stored(name, part))

    def _stored(self, name: str, part: tuple[slice, ...]) -> Tensor:
        """Read a tensor, or part of it, in its stored type."""
        path = self._holder[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_slice(name)[part] if part else file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BadFile(f"{path}: tensor {name!r} cannot be read ({error}). {FETCH_AGAIN}") from error
        return tensor


class LoadedTensors(TensorFile):
    """Tensors in memory, presented as a file of named tensors; errors give `name` as its path.

    Tensors that are float32 on the CPU are shared, not copied: changes to their owner show here.
    """

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Hold the tensors, detached."""
        self.path = Path(name)
        self._tensors = {name.removeprefix(_COMPILED): tensor.detach() for name, tensor in tensors.items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """Read one tensor as float32 on the CPU. Raises BadFile for one without values, as in an offloaded module."""
        if self._tensors[name].is_meta:
            raise BadFile(f"{self.path}: tensor {name!r} is a placeholder without values. Load the object's weights.")
        return self._tensors[name].to("cpu", torch.float32)

    def number(self, name: str) -> float:
        """The value of a tensor that holds only one. Raises BadFile when it holds several, or is not finite."""
        return _one_number(self.path, name, self._tensors[name])


def _one_number(path: Path, name: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or not math.isfinite(float(tensor)):
        raise BadFile(f"{path}: tensor {name!r} of shape {list(tensor.shape)} is not one finite number. {FETCH_AGAIN}")
    return float(tensor)


def shards_of(path: Path) -> list[Path]:
    """The shards of a .safetensors file: `model-00001-of-00002.safetensors` and so on; empty where there are none.

    Raises:
        BadFile: when some are missing.
    """
    parts = sorted(path.parent.glob(f"{glob.escape(path.stem)}-[0-9]*-of-[0-9]*{path.suffix}"))
    if not parts:
        return []
    many = parts[0].stem.rpartition("-")[2]
    wanted = [f"{path.stem}-{i + 1:0{len(many)}}-of-{many}{path.suffix}" for i in range(min(int(many), _SHARDS))]
    missing = sorted(set(wanted) - {part.name for part in parts})
    if missing or len(parts) != int(many):
        lacks = f", {missing[0]} not" if missing else ""
        raise BadFile(f"{path}: is in {int(many)} parts; {len(parts)} are here{lacks}. Fetch all of them.")
    return parts


class NpyHeader(NamedTuple):
    """The header of an .npy: shape, whether the first axis varies fastest, type, and the header's length in bytes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    n_bytes: int


class NpzFile(TensorFile):
    """An .npz file, one member at a time."""

    def __init__(self, path: Path) -> None:
        """Read the headers of the archive and of every member.

        Raises:
            BadFile: when there is no such file, or it is truncated or not an archive of arrays.
        """
        self.path = path
        self._members: dict[str, tuple[NpyHeader, int | None]] = {}
        try:
            with opened_zip(path) as archive, path.open("rb") as raw:
                for info in archive.infolist():
                    if info.filename.endswith(".npy"):
                        header = member_header(archive, info)
                        stored = info.compress_type == zipfile.ZIP_STORED
                        start = member_start(raw, info) + header.n_bytes if stored else None
                        self._members[info.filename[:-4]] = header, start
        except SPOILED as error:
            raise BadFile(f"{path}: cannot be opened as .npz ({error}). {FETCH_AGAIN}") from error
        self.shapes = {name: header.shape for name, (header, _) in self._members.items()}

    def read(self, name: str) -> Tensor:
        """Read one member as float32; aligned, uncompressed float32 is mapped, copy on write. Raises BadFile."""
        header, start = self._members[name]
        if not is_floating(header.dtype):
            raise BadFile(not_floating(self.path, name, str(header.dtype)))
        try:
            array = self._compressed(name) if start is None else self._stored(header, start)
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except SPOILED as error:
            raise BadFile(f"{self.path}: tensor {name!r} cannot be read ({error}). {FETCH_AGAIN}") from error
        return tensor.to(torch.float32)

    def _stored(self, header: NpyHeader, start: int) -> np.ndarray:
        shape, dtype, order = header.shape, header.dtype, "F" if header.fortran else "C"
        if start % dtype.itemsize == 0 and shape:
            return np.memmap(self.path, dtype, "c", start, shape, order)
        flat = np.fromfile(self.path, dtype, math.prod(shape), offset=start)
        return flat.reshape(shape, order=order)

    def _compressed(self, name: str) -> np.ndarray:
        with opened_zip(self.path) as archive, archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether a type is a floating-point type that PyTorch has too, which long double is not."""
    return dtype.kind == "f" and dtype.itemsize <= 8


def member_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NpyHeader:
    """Read the header of an .npz member.

    Raises:
        ValueError: when the member is not an .npy, its values do not fill it, or it is packed implausibly tightly.
    """
    if info.file_size > max(UNPACKED, RATIO * info.compress_size):
        raise ValueError(
            f"{info.filename} unpacks from {info.compress_size} bytes to {info.file_size}, more than {RATIO} times that"
        )
    with archive.open(info) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        rest = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        header = NpyHeader(*rest(file), file.tell())
    # multiplied as Python integers, which do not wrap; arrays of objects are refused when they are read
    filled = header.n_bytes + math.prod(header.shape) * header.dtype.itemsize
    if header.dtype.kind != "O" and info.file_size != filled:
        raise ValueError(
            f"{info.filename} holds {info.file_size} bytes, which its shape {list(header.shape)} does not fill"
        )
    return header


def member_start(raw: IO[bytes] | io.RawIOBase, info: zipfile.ZipInfo) -> int:
    """The offset in the file at which the bytes of a member begin."""
    # the local header repeats the name and the extra field, whose lengths may differ from those in the directory
    raw.seek(info.header_offset + 26)
    lengths = raw.read(4) or b""
    return info.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))


def not_floating(path: Path, name: str, dtype: str) -> str:
    """The error message for a tensor of integers, or of anything else that is not floating-point."""
    return f"{path}: tensor {name!r} is {dtype}, expected floating-point numbers. Convert the file to float32."


def _as_float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise BadFile(not_floating(path, name, str(tensor.dtype)))
    return tensor.to(torch.float32)


class TorchFile(TensorFile):
    """A memory-mapped state dict in a .pt file. Scalar tensors are included, with an empty shape."""

    def __init__(self, path: Path) -> None:
        """Read names and shapes.

        Raises:
            BadFile: when there is no such file, it is truncated, it is not a zip archive of PyTorch 1.6 or later, or
                it holds anything but named tensors.
        """
        self.path = path
        try:
            with opened_zip(path) as archive:
                members = archive.infolist()
        except SPOILED as error:
            raise BadFile(
                f"{path}: cannot be opened as a .pt archive ({error}). {FETCH_AGAIN} A file of PyTorch before 1.6 has "
                "to be loaded and saved again."
            ) from error
        large = [info for info in members if info.filename.endswith(".pkl") and info.file_size > _PICKLE]
        if large:
            raise BadFile(
                f"{path}: {large[0].filename!r}, which lists the tensors, has {large[0].file_size} bytes, and at most "
                f"{_PICKLE} are read. Save sae.state_dict() alone."
            )
        packed = [info.filename for info in members if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise BadFile(f"{path}: member {packed[0]!r} is compressed, as torch.save never writes it. {FETCH_AGAIN}")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._load().items()}

    def read(self, name: str) -> Tensor:
        """Read one tensor as float32; float32 on disk is not copied. Raises BadFile."""
        return _as_float32(self.path, name, self._tensor(name))

    def number(self, name: str) -> float:
        """The value of a tensor that holds only one, of any type.

        Raises:
            BadFile: when it holds several values, or one that is not finite.
        """
        return _one_number(self.path, name, self._tensor(name))

    def _tensor(self, name: str) -> Tensor:
        tensors = self._load()
        if name not in tensors or tuple(tensors[name].shape) != self.shapes.get(name):
            raise BadFile(f"{self.path}: tensor {name!r} is not what it was when opened. {FETCH_AGAIN}")
        return tensors[name]

    def _load(self) -> dict[str, Tensor]:
        try:
            data: object = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            reason = str(error).strip().splitlines()[0]
            raise BadFile(
                f"{self.path}: holds more than tensors, and loading that could run code, so it was not loaded "
                f"({reason}). Use a file that holds a state_dict alone, from a source you trust."
            ) from error
        except Exception as error:  # on damaged bytes torch's unpickler may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadFile(f"{self.path}: cannot be read as tensors ({reason}). {FETCH_AGAIN}") from error
        if not isinstance(data, dict) or not data:
            raise BadFile(
                f"{self.path}: holds {type(data).__name__}, expected a dict of tensors. Save sae.state_dict()."
            )
        size, tensors = self.path.stat().st_size, dict[str, Tensor]()
        for name, tensor in data.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise BadFile(
                    f"{self.path}: entry {name!r} is {type(tensor).__name__}, expected tensors by name. Save "
                    "sae.state_dict()."
                )
            if tensor.layout is not torch.strided or tensor.is_quantized:
                raise BadFile(f"{self.path}: tensor {name!r} is not dense. Convert it with to_dense().")
            if tensor.numel() * tensor.element_size() > size:
                raise BadFile(
                    f"{self.path}: tensor {name!r} of shape {list(tensor.shape)} claims more than the {size} bytes of "
                    f"the file. {FETCH_AGAIN}"
                )
            tensors[name.removeprefix(_COMPILED)] = tensor.detach()
        return tensors
