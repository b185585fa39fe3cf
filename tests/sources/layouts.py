"""Writers of the on-disk layouts of public SAE releases, with small shapes.

Each writes exactly the files, names, shapes, orientations and dtypes the release has, and returns the folder
or file to load. `Arrays` holds what was written, rows being features, for the numpy formulas of the tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

N_FEATURES, D_IN = 7, 4


@dataclass
class Arrays:
    W_enc: np.ndarray  # [n_features d_in]
    b_enc: np.ndarray
    W_dec: np.ndarray  # [n_features d_in]
    b_dec: np.ndarray
    threshold: np.ndarray


def arrays(seed: int = 0, n_features: int = N_FEATURES, d_in: int = D_IN) -> Arrays:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    threshold = rng.uniform(0.1, 0.8, n_features).astype(np.float32)
    return Arrays(draw(n_features, d_in), draw(n_features), draw(n_features, d_in), draw(d_in), threshold)


def _tensor(array: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def write_gemma_scope(
    root: Path, a: Arrays, *, part: str = "res", layer: int = 24, l0: int = 73, lower: bool = False, pack: bool = False
) -> Path:
    """google/gemma-scope-2b-pt-{part}: params.npz, uncompressed unless `pack`."""
    folder = root / f"gemma-scope-2b-pt-{part}" / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}"
    folder.mkdir(parents=True)
    enc, dec = ("w_enc", "w_dec") if lower else ("W_enc", "W_dec")
    named = {enc: np.ascontiguousarray(a.W_enc.T), dec: a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec}
    (np.savez_compressed if pack else np.savez)(folder / "params.npz", **named, threshold=a.threshold)
    return folder / "params.npz"


def write_gemma_scope_2(root: Path, a: Arrays, *, hook: str = "model.layers.7.output", **config: Any) -> Path:
    """google/gemma-scope-2-1b-pt: config.json and params.safetensors, lower-case names."""
    folder = root / "resid_post" / "layer_7_width_16k_l0_medium"
    folder.mkdir(parents=True)
    told = {"hf_hook_point_in": hook, "model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", **config}
    (folder / "config.json").write_text(json.dumps(told))
    named = {"w_enc": a.W_enc.T, "w_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec, "threshold": a.threshold}
    save_file({name: _tensor(array) for name, array in named.items()}, folder / "params.safetensors")
    return folder


def write_llama_scope(
    root: Path,
    a: Arrays,
    *,
    norm: float = 5.0,
    threshold: float = 0.4,
    hook: str = "blocks.3.hook_resid_post",
    dtype: torch.dtype = torch.bfloat16,
    **config: Any,
) -> Path:
    """fnlp/Llama3_1-8B-Base-LXR-8x: hyperparams.json and checkpoints/final.safetensors, bf16."""
    folder = root / "Llama3_1-8B-Base-L3R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    told = {
        "d_model": a.W_dec.shape[1],
        "d_sae": a.W_dec.shape[0],
        "hook_point_in": hook,
        "hook_point_out": hook,
        "jump_relu_threshold": threshold,
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        **config,
    }
    (folder / "hyperparams.json").write_text(json.dumps(told))
    named = {"encoder.weight": a.W_enc, "encoder.bias": a.b_enc, "decoder.weight": a.W_dec.T, "decoder.bias": a.b_dec}
    tensors = {name: _tensor(array, dtype) for name, array in named.items()}
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    return folder


def write_sae_lens(
    root: Path, a: Arrays, *, architecture: str = "jumprelu", metadata: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A folder as sae-lens 6 saves it: cfg.json and sae_weights.safetensors."""
    folder = root / "blocks.5.hook_resid_post"
    folder.mkdir(parents=True)
    told = {
        "d_in": a.W_dec.shape[1],
        "d_sae": a.W_dec.shape[0],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "gpt2-small",
            "hook_name": "blocks.5.hook_resid_post",
            "hook_head_index": None,
            "prepend_bos": True,
            **(metadata or {}),
        },
        "architecture": architecture,
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(told))
    named = {"W_enc": a.W_enc.T, "W_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec}
    if architecture in ("jumprelu", "batchtopk"):
        named["threshold"] = a.threshold
    save_file({name: _tensor(array) for name, array in named.items()}, folder / "sae_weights.safetensors")
    return folder
