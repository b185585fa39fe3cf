"""What the tests of file formats share: reading one dictionary, formulas in numpy, tensors in and out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import Arrays, arrays, write_gemma_scope, write_gemma_scope_2, write_llama_scope, write_sae_lens
from layouts_more import write_dictionary_learning, write_gemma_2_transcoder, write_gemma_transcoder, write_sparsify
from safetensors.torch import load_file, save_file

from saeflow.errors import BadFile
from saeflow.ids import Part, Site
from saeflow.sources.activations import BatchTopK, JumpReLU, ReLU, TopK
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Preprocessing
from saeflow.sources.formats import load, save_release

H = (2 * np.random.default_rng(3).normal(size=(50, 4))).astype(np.float32)
WRITERS: list[Callable[..., Path]] = [
    write_gemma_scope,
    write_gemma_scope_2,
    write_llama_scope,
    write_sae_lens,
    write_sparsify,
    write_dictionary_learning,
    write_gemma_transcoder,
    write_gemma_2_transcoder,
]


def one(path: Path, site: Site | None = None) -> Dictionary:
    found = load(path, site)
    assert isinstance(found, Dictionary)
    return found


def jump(pre: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    return np.where(pre > threshold, np.maximum(pre, 0), 0)


def agree(d: Dictionary, acts: np.ndarray, out: np.ndarray) -> None:
    h = torch.from_numpy(H)
    assert 0 < (acts > 0).mean() < 1, "the case must have features on and off"
    np.testing.assert_allclose(d.encode(h).numpy(), acts, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d.decode(d.encode(h), h).numpy(), out, rtol=1e-4, atol=1e-4)


def only_directions(d: Dictionary, W_dec: np.ndarray, message: str) -> None:
    """Its directions are those of `W_dec`, and whatever encodes is refused with `message`."""
    unit = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    np.testing.assert_allclose(d.directions().numpy(), unit, atol=1e-6)
    with pytest.raises(BadFile, match=message):
        d.encode(torch.from_numpy(H))
    with pytest.raises(BadFile, match=message):
        d.encode_only(torch.from_numpy(H), torch.tensor([0]))


def bfloat16(a: Arrays) -> Arrays:
    def rounded(array: np.ndarray) -> np.ndarray:
        return torch.from_numpy(array).bfloat16().float().numpy()

    return Arrays(*(rounded(getattr(a, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")))


def release(dtype: torch.dtype, folder: Path) -> dict[Site, Dictionary]:
    t = torch.from_numpy
    made: dict[Site, Dictionary] = {}
    activations = {
        "0/res": JumpReLU(t(arrays(0).threshold)),
        "0/att": TopK(2),
        "1/mlp": BatchTopK(torch.tensor(0.3)),
        "1/res": ReLU(),
    }
    for seed, (text, activation) in enumerate(activations.items()):
        a, site = arrays(seed), Site.parse(text)
        made[site] = Dictionary(
            site,
            tap=Tap.Z if site.part is Part.ATT else Tap.of(site.part),
            W_enc=t(a.W_enc),
            b_enc=t(a.b_enc),
            W_dec=t(a.W_dec),
            b_dec=t(a.b_dec),
            activation=activation,
            preprocessing=Preprocessing(subtract_b_dec=text == "1/res"),
        )
    save_release(folder, made, name="tiny", model="none/tiny", dtype=dtype)
    return made


def tensor_file(path: Path) -> Path:
    found = [path] if path.suffix == ".npz" else [*path.rglob("*.safetensors"), *path.rglob("*.pt")]
    assert len(found) == 1
    return found[0]


def folder_of(file: Path) -> Path:
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".npz":
        with np.load(path) as data:
            return {name: torch.from_numpy(data[name]) for name in data}
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    return load_file(path)


def write_tensors(path: Path, named: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in named.items()})
    elif path.suffix == ".pt":
        torch.save(named, path)
    else:
        save_file({name: value.contiguous() for name, value in named.items()}, path)
