"""Checkpoints: everything the next step depends on, whole or not at all, without pickle.

    OUT/checkpoint.json           names the last complete folder, and holds plain values
    OUT/checkpoint-STEP/          learners.safetensors, buffer.safetensors

`checkpoint.json` is replaced last, by a rename, and only then is the previous folder removed. A run killed at any
moment resumes from the last complete checkpoint.
"""

from __future__ import annotations

import errno
import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.files import add_check, agrees_with_check, atomic_file, write_atomic, write_error
from saeflow.reading import read_json, safetensors

POINTER: Final = "checkpoint.json"
VERSION: Final = 1
_PARTS: Final = ("learners", "buffer")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after `step` steps: tensors of the learners and of the buffer, and plain values."""

    step: int
    learners: Mapping[str, Tensor]
    buffer: Mapping[str, Tensor]
    values: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Its approximate size on disk."""
        return sum(t.nbytes for part in (self.learners, self.buffer) for t in part.values())


def save(out: Path, state: Checkpoint) -> None:
    """Write a checkpoint, and remove the previous one.

    Raises:
        OSError: when the disk has no room for it, or cannot be written.
    """
    require_space(out, state.nbytes, "a checkpoint")
    folder = out / f"checkpoint-{state.step}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in zip(_PARTS, (state.learners, state.buffer), strict=True):
        save_tensors(folder / f"{name}.safetensors", tensors)
    header = {"version": VERSION, "folder": folder.name, "step": state.step, "state": dict(state.values)}
    sums = {"learners": _sum(state.learners), "buffer": _sum(state.buffer)}
    write_atomic(out / POINTER, f"{json.dumps(add_check({**header, 'sums': sums}))}\n".encode())
    for other in out.glob("checkpoint-*"):
        if other != folder and other.is_dir():
            shutil.rmtree(other)


def load(out: Path) -> Checkpoint | None:
    """The last complete checkpoint of a folder, or None.

    Raises:
        BadFile: when it is damaged, or of another version.
    """
    path = out / POINTER
    if not path.exists():
        return None
    try:
        data: dict[str, Any] = read_json(path)
        if data["version"] != VERSION:
            raise BadFile(
                f"{path} is of version {data['version']}, and this saeflow writes {VERSION}. Finish the run with the "
                "saeflow that began it, or remove the folder."
            )
        folder = out / str(data["folder"])
        if not agrees_with_check(data):
            raise ValueError("it has changed since it was written")
        sums = data.get("sums", {})  # older checkpoints have none
        learners, buffer = (_read(folder / f"{name}.safetensors", sums.get(name)) for name in _PARTS)
        return Checkpoint(int(data["step"]), learners, buffer, data["state"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(
            f"{path} cannot be read ({type(error).__name__}: {error}). Remove the folder to begin again."
        ) from error


def remove(out: Path) -> None:
    """Remove the checkpoint of a finished run, if there is one."""
    (out / POINTER).unlink(missing_ok=True)
    for folder in out.glob("checkpoint-*"):
        shutil.rmtree(folder, ignore_errors=True)


def require_space(folder: Path, nbytes: int, what: str) -> None:
    """Raise an error before writing what does not fit on the disk.

    Raises:
        OSError: with ENOSPC, naming both sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{what} takes {nbytes / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB left. Free some, give a smaller "
            "--buffer, or another --out",
            str(folder),
        )


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: when it cannot be written.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as part:
        try:
            save_file(ready, part)
        except SafetensorError as error:
            # safetensors reports a full disk only in the text of its error
            raise write_error(error, path) or OSError(errno.EIO, str(error), str(path)) from error


def _read(path: Path, expected: str | None) -> dict[str, Tensor]:
    with safe_open(safetensors(path), framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if expected not in (None, _sum(held)):
        raise ValueError(f"{path.name} has changed since it was written")
    return held


def _sum(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors and their names."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found = zlib.crc32(data.data, zlib.crc32(name.encode(), found))
    return f"{found:08x}"
