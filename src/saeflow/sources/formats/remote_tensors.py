"""Tensors of a file on the hub, each fetched by its byte range when it is first read.

In the place of such a file lies a pointer: JSON that says which file of which commit it is, and where in it each
tensor lies. It is a few kilobytes, and all that opening a dictionary needs; `open_tensors` opens it like the
file itself. Where the hub's cache holds the whole file, that is read; where a server sends whole files only,
the whole file is fetched.

    {HF_HUB_CACHE}/models--google--gemma-scope-2b-pt-res/saeflow/
        refs/{revision}                 the commit, as last asked
        {commit}/{path in the repo}     the pointer, and beside it the small files of the dictionary
        ranges/{etag}/...               the bytes; see saeflow.sources.remote.ranges
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import huggingface_hub
import numpy as np
import torch
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.reading import parse_json, read_bytes, regular
from saeflow.sources.formats.remote_index import Segment, read_index
from saeflow.sources.formats.tensors import (
    FETCH_AGAIN,
    NpzFile,
    SafetensorsFile,
    ShardedFile,
    TensorFile,
    is_floating,
    not_floating,
    shards_of,
)
from saeflow.sources.remote.hub_file import REFUSALS, HubFile, refused
from saeflow.sources.remote.ranges import Ranges, sha256
from saeflow.sources.remote.transport import RangesIgnored, fetch_whole

_MARK: Final = "saeflow-pointer"
_VERSION: Final = 1
_BEGINS: Final = f'{{"{_MARK}":'.encode()
ENDINGS: Final = (".npz", ".safetensors")
"""Files whose tensors can be fetched one by one."""


def open_tensors(path: Path) -> TensorFile:
    """The tensors of an .npz or .safetensors file that is here, whole or in parts, or that a pointer stands for.

    Raises:
        BadFile: when there is no such file, or it is damaged.
    """
    pointer = read_pointer(path)
    if pointer is not None:
        return RemoteTensors(path, pointer)
    return _open_whole(path)


def _open_whole(path: Path) -> TensorFile:
    if path.suffix == ".npz":
        return NpzFile(path)
    parts = [] if path.is_file() else shards_of(path)
    return ShardedFile(path, parts) if parts else SafetensorsFile(path)


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which file, and where in it each tensor lies."""

    file: HubFile
    index: Mapping[str, Segment]

    def ranges(self, path: Path) -> Ranges:
        """The ranges of the file, for the pointer that lies at `path`."""
        return Ranges(path.parents[len(PurePosixPath(self.file.file).parts)], self.file)


def read_pointer(path: Path) -> Pointer | None:
    """The pointer at a path; None where another file lies there, or none.

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
        told: Any = parse_json(check_sha256(read_bytes(path)))
        if told[_MARK] != _VERSION:
            raise ValueError(f"version {told[_MARK]}")
        index = {name: Segment(**(at | {"shape": tuple(at["shape"])})) for name, at in told["index"].items()}
        return Pointer(HubFile(**told["file"]), index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadFile(f"{path}: cannot be read as a pointer ({error}). Remove it: it is made again.") from error


def write_pointer(path: Path, file: HubFile) -> Pointer:
    """Read the headers of a file on the hub, and leave a pointer to it at `path`.

    Raises:
        RangesIgnored: when the server sends whole files only; nothing is left.
        Unreachable: when the hub does not answer.
        BadFile: when the headers are not as the format says.
    """
    empty = Pointer(file, {})
    index = read_index(file.file, file.size, empty.ranges(path).bytes_at, where=str(file))
    pointer = Pointer(file, index)
    told = {_MARK: _VERSION, "file": asdict(file), "index": {name: asdict(at) for name, at in pointer.index.items()}}
    write_atomic(path, add_sha256(json.dumps(told).encode()))
    return pointer


class RemoteTensors:
    """The tensors a pointer leads to. Meets `TensorFile`."""

    def __init__(self, path: Path, pointer: Pointer) -> None:
        """`path` is where the pointer lies. Reads and fetches nothing."""
        self._path, self._pointer = path, pointer
        self._ranges = pointer.ranges(path)

    @property
    def path(self) -> Path:
        """The pointer, whose place names the file."""
        return self._path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: at.shape for name, at in self._pointer.index.items()}

    def read(self, name: str) -> Tensor:
        """One tensor as float32, fetched if it is not here; float32 as it came is mapped, copy on write.

        Raises:
            BadFile: when it is of another type, or what came has another checksum than the file says.
            Unreachable: when it must be fetched and cannot be; NoSpace when the disk is too small.
        """
        segment = self._pointer.index[name]
        if segment.torch_dtype is None and not is_floating(np.dtype(_numpy(segment.dtype))):
            raise BadFile(not_floating(self._path, name, segment.dtype))
        if not self._ranges.has(segment.start, segment.stop):
            whole = self._whole()
            if whole is not None:
                return whole.read(name)
        if segment.start == segment.stop:
            return torch.empty(segment.shape)
        try:
            at = self._ranges.path(segment.start, segment.stop, name, check=segment.is_sound)
        except RangesIgnored:
            return self._fetched_whole().read(name)
        self._check_whole()
        try:
            return _tensor(at, segment).to(torch.float32)
        except (OSError, ValueError, zlib.error) as error:
            raise BadFile(f"{self._path}: tensor {name!r} cannot be read ({error}). {FETCH_AGAIN}") from error

    def _whole(self) -> TensorFile | None:
        """The file where the hub's own cache holds it."""
        file = self._pointer.file
        found = huggingface_hub.try_to_load_from_cache(file.repo, file.file, revision=file.commit)
        return _open_whole(Path(found)) if isinstance(found, str) else None

    def _fetched_whole(self) -> TensorFile:
        file = self._pointer.file
        try:
            return _open_whole(fetch_whole(file.repo, file.file, file.commit))
        except REFUSALS as error:
            raise refused(file.file, file.repo, error, revision=file.commit) from error

    def _check_whole(self) -> None:
        """Once every tensor of a safetensors file is here: does it have the sha256 by which the hub knows it?

        The header is fetched again for this, a few kilobytes.

        Raises:
            BadFile: when it does not; what came is removed.
        """
        file, folder = self._pointer.file, self._ranges.folder
        seal = folder / "whole"
        if len(file.etag) != 64 or not file.file.endswith(".safetensors") or seal.is_file():
            return
        places = sorted((at.start, at.stop) for at in self._pointer.index.values() if at.start < at.stop)
        if not all(self._ranges.has(*place) for place in places):
            return
        head = self._ranges.path(0, places[0][0], "the header")
        ranges = [head, *(folder / f"{start}-{stop}" for start, stop in places)]
        if sha256(*ranges) != file.etag:
            for path in ranges:
                path.unlink(missing_ok=True)
            raise BadFile(
                f"{file}: what was fetched does not have the sha256 {file.etag} by which the hub knows it, and was "
                "removed. Fetch it again; if that repeats, something on the way changes it."
            )
        write_atomic(seal, b"")


def _numpy(dtype: str) -> str:
    """A name that numpy knows; those of safetensors that are no floats are none of its."""
    return dtype if dtype[:1] in "<>|=" else "V1"


def _tensor(path: Path, segment: Segment) -> Tensor:
    """The values, of the type in the file."""
    if segment.packed:
        n_bytes = segment.offset + math.prod(segment.shape) * np.dtype(segment.dtype).itemsize
        # no more than the header says, whatever was packed
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(path.read_bytes(), n_bytes)
        inflated = np.frombuffer(bytearray(unpacked), np.uint8, offset=segment.offset)
    else:
        inflated = np.memmap(path, np.uint8, "c", segment.offset)
    flat = torch.from_numpy(inflated)
    if segment.torch_dtype is not None:
        return flat.view(segment.torch_dtype).reshape(segment.shape)
    values = inflated.view(np.dtype(segment.dtype))
    native = np.require(values, values.dtype.newbyteorder("="), "A")  # a copy only where it has to be one
    return torch.from_numpy(native.reshape(segment.shape, order="F" if segment.fortran else "C"))


def tensors_here(path: Path) -> dict[str, bool] | None:
    """Of the file a pointer stands for: each tensor, and whether it is here; None where there is no pointer.

    Raises:
        Nothing: a damaged pointer counts as none.
    """
    try:
        pointer = read_pointer(path)
    except BadFile:
        return None
    if pointer is None:
        return None
    ranges = pointer.ranges(path)
    return {name: ranges.has(at.start, at.stop) for name, at in pointer.index.items()}


def unlink_pointer(path: Path) -> None:
    """Remove a pointer, so that it is made again; the ranges stay.

    Raises:
        OSError: when the folder cannot be written.
    """
    if path.is_file() and read_pointer(path) is not None:
        os.unlink(path)
