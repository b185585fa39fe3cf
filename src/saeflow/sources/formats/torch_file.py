"""Reading the state dict of a .pt file, and nothing else that a pickle can do.

A .pt is a zip archive whose data.pkl says how tensors are put together from the other members. Loading a pickle
runs what it names; `torch.load(weights_only=True)` names a short list of harmless things and refuses the rest.
What it does not look at is looked at first: that no member is compressed, so that a small file cannot become a
huge one, and afterwards that no tensor claims more values than the file has bytes for. Tensors are mapped, so
opening reads no values.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.reading import opened_zip
from saeflow.sources.formats.tensors import FETCH_AGAIN, SPOILED, not_floating

_PICKLE: Final = 4 << 20
_COMPILED: Final = "_orig_mod."
"""What `torch.compile` puts before every name."""


class TorchFile:
    """A state dict in a .pt file, memory-mapped. Scalars are among the tensors, with an empty shape."""

    def __init__(self, path: Path) -> None:
        """Read names and shapes.

        Raises:
            BadFile: when there is no such file, it is truncated, it is no zip archive of PyTorch 1.6 or later, or
                it holds anything but named tensors.
        """
        self._path = path
        _check_archive(path)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._load().items()}

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
        tensor = self._tensor(name)
        if not tensor.is_floating_point():
            raise BadFile(not_floating(self._path, name, str(tensor.dtype)))
        return tensor.to(torch.float32)

    def number(self, name: str) -> float:
        """A tensor of one value, of any type.

        Raises:
            BadFile: when it holds several values, or one that is not finite.
        """
        tensor = self._tensor(name)
        if tensor.numel() != 1 or not math.isfinite(float(tensor)):
            raise BadFile(
                f"{self._path}: tensor {name!r} of shape {list(tensor.shape)} is not one finite number. {FETCH_AGAIN}"
            )
        return float(tensor)

    def _tensor(self, name: str) -> Tensor:
        tensors = self._load()
        if name not in tensors or tuple(tensors[name].shape) != self._shapes.get(name):
            raise BadFile(f"{self._path}: tensor {name!r} is not what it was when opened. {FETCH_AGAIN}")
        return tensors[name]

    def _load(self) -> dict[str, Tensor]:
        try:
            data: object = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            reason = str(error).strip().splitlines()[0]
            raise BadFile(
                f"{self._path}: holds more than tensors, and loading that could run code, so it was not loaded "
                f"({reason}). Use a file that holds a state_dict alone, from a source you trust."
            ) from error
        except Exception as error:  # torch's unpickler of damaged bytes raises whatever its stack gives
            raise BadFile(f"{self._path}: cannot be read as tensors ({_first_line(error)}). {FETCH_AGAIN}") from error
        return self._checked(data)

    def _checked(self, data: object) -> dict[str, Tensor]:
        if not isinstance(data, dict) or not data:
            raise BadFile(
                f"{self._path}: holds {type(data).__name__}, expected a dict of tensors. Save sae.state_dict()."
            )
        size, tensors = self._path.stat().st_size, dict[str, Tensor]()
        for name, tensor in data.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise BadFile(
                    f"{self._path}: entry {name!r} is {type(tensor).__name__}, expected tensors by name. Save "
                    "sae.state_dict()."
                )
            if tensor.layout is not torch.strided or tensor.is_quantized:
                raise BadFile(f"{self._path}: tensor {name!r} is not dense. Convert it with to_dense().")
            if tensor.numel() * tensor.element_size() > size:
                raise BadFile(
                    f"{self._path}: tensor {name!r} of shape {list(tensor.shape)} claims more than the {size} bytes of "
                    f"the file. {FETCH_AGAIN}"
                )
            tensors[name.removeprefix(_COMPILED)] = tensor.detach()
        return tensors


def _check_archive(path: Path) -> None:
    try:
        with opened_zip(path) as archive:
            large = [info for info in archive.infolist() if info.filename.endswith(".pkl") and info.file_size > _PICKLE]
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except SPOILED as error:
        raise BadFile(
            f"{path}: cannot be opened as a .pt archive ({error}). {FETCH_AGAIN} A file of PyTorch before 1.6 has "
            "to be loaded and saved again."
        ) from error
    if large:
        raise BadFile(
            f"{path}: {large[0].filename!r}, which lists the tensors, has {large[0].file_size} bytes, and at most "
            f"{_PICKLE} are read. Save sae.state_dict() alone."
        )
    if packed:
        raise BadFile(f"{path}: member {packed[0]!r} is compressed, as torch.save never writes it. {FETCH_AGAIN}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
