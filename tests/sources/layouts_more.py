"""Writers of further on-disk layouts: sparsify, dictionary_learning, transcoders, gated SAEs, older sae-lens.

As in `layouts`: exactly the files, names, shapes, orientations and dtypes of the release, small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layouts import Arrays, arrays
from safetensors.torch import save_file

D_OUT = 5
CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)


@dataclass
class Gate:
    """What a gated SAE has in place of b_enc."""

    b_gate: np.ndarray
    b_mag: np.ndarray
    r_mag: np.ndarray


def gate(seed: int = 4, n_features: int = 7) -> Gate:
    rng = np.random.default_rng(seed)
    return Gate(*(rng.normal(size=n_features).astype(np.float32) for _ in range(3)))


def transcoder_arrays(seed: int = 0, d_in: int = 4, d_out: int = D_OUT) -> tuple[Arrays, np.ndarray]:
    """A transcoder between two widths, and its skip [d_out d_in]."""
    a, wide = arrays(seed, d_in=d_in), arrays(seed + 1, d_in=d_out)
    skip = np.random.default_rng(seed + 2).normal(size=(d_out, d_in)).astype(np.float32)
    return Arrays(a.W_enc, a.b_enc, wide.W_dec, wide.b_dec, a.threshold), skip


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def write_sparsify(
    root: Path,
    a: Arrays,
    *,
    hookpoint: str = "layers.3",
    k: int = 3,
    W_skip: np.ndarray | None = None,
    run: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """EleutherAI/sae-pythia-70m-32k: {hookpoint}/cfg.json and sae.safetensors, config.json beside them."""
    folder = root / "sae-tiny-32k" / hookpoint
    folder.mkdir(parents=True)
    n_features, d_in = a.W_enc.shape
    told = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": n_features,
        "k": k,
        "multi_topk": False,
        "skip_connection": W_skip is not None,
        "d_in": d_in,
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(told))
    if run is not None:
        (folder.parent / "config.json").write_text(json.dumps(run))
    named = {"encoder.weight": a.W_enc, "encoder.bias": a.b_enc, "W_dec": a.W_dec, "b_dec": a.b_dec}
    named |= {} if W_skip is None else {"W_skip": W_skip}
    save_file({name: tensor(array) for name, array in named.items()}, folder / "sae.safetensors")
    return folder


def dictionary_learning_state(a: Arrays, dict_class: str, g: Gate, *, k: int = 3) -> dict[str, torch.Tensor]:
    """The state dict of a class, names and orientations as `dictionary_learning/dictionary.py` has them."""
    linear = {"encoder.weight": a.W_enc, "encoder.bias": a.b_enc, "decoder.weight": a.W_dec.T}
    plain = {"W_enc": a.W_enc.T, "b_enc": a.b_enc, "W_dec": a.W_dec, "b_dec": a.b_dec}
    gated = {"gate_bias": g.b_gate, "mag_bias": g.b_mag, "r_mag": g.r_mag, "decoder_bias": a.b_dec}
    made = {
        "AutoEncoder": {**linear, "bias": a.b_dec},
        "AutoEncoderNew": {**linear, "decoder.bias": a.b_dec},
        "GatedAutoEncoder": {"encoder.weight": a.W_enc, "decoder.weight": a.W_dec.T, **gated},
        "JumpReluAutoEncoder": {**plain, "threshold": a.threshold},
        "AutoEncoderTopK": {**linear, "b_dec": a.b_dec},
        "BatchTopKSAE": {**linear, "b_dec": a.b_dec},
        "MatryoshkaBatchTopKSAE": plain,
    }[dict_class]
    state = {name: tensor(array) for name, array in made.items()}
    if "TopK" in dict_class:
        state |= {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(0.3)}
    if "Matryoshka" in dict_class:
        state["group_sizes"] = torch.tensor([3, 4])
    return state


def write_dictionary_learning(
    root: Path,
    a: Arrays,
    *,
    dict_class: str = "AutoEncoder",
    g: Gate | None = None,
    submodule: str = "resid_post_layer_3",
    layer: int = 3,
    state: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """{folder}/ae.pt, a state dict, and config.json with trainer and buffer, as `training.py` writes them."""
    folder = root / "trainer_0"
    folder.mkdir(parents=True)
    trainer = {
        "dict_class": dict_class,
        "trainer_class": "StandardTrainer",
        "activation_dim": a.W_dec.shape[1],
        "dict_size": a.W_dec.shape[0],
        "layer": layer,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": submodule,
    }
    told = {"trainer": trainer, "buffer": {"d_submodule": a.W_dec.shape[1], "io": "out", "ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(told if config is None else config))
    torch.save(dictionary_learning_state(a, dict_class, g or gate()) if state is None else state, folder / "ae.pt")
    return folder


def write_gemma_transcoder(root: Path, a: Arrays, *, layer: int = 5) -> Path:
    """google/gemma-scope-2b-pt-transcoders: params.npz with lower-case matrices."""
    folder = root / "gemma-scope-2b-pt-transcoders" / f"layer_{layer}" / "width_16k" / "average_l0_49"
    folder.mkdir(parents=True)
    named = {"w_enc": np.ascontiguousarray(a.W_enc.T), "w_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec}
    np.savez(folder / "params.npz", **named, threshold=a.threshold)
    return folder / "params.npz"


def write_gemma_2_transcoder(
    root: Path, a: Arrays, *, skip: np.ndarray | None = None, layer: int = 7, config: bool = True
) -> Path:
    """google/gemma-scope-2-1b-pt: transcoder_all/..., the skip stored [d_in d_out]."""
    name = f"layer_{layer}_width_16k_l0_small" + ("" if skip is None else "_affine")
    folder = root / "transcoder_all" / name
    folder.mkdir(parents=True)
    if config:
        told = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-1b-pt",
            "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
            "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
            "affine_connection": skip is not None,
        }
        (folder / "config.json").write_text(json.dumps(told))
    named = {"w_enc": a.W_enc.T, "w_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec, "threshold": a.threshold}
    named |= {} if skip is None else {"affine_skip_connection": skip.T}
    save_file({name: tensor(array) for name, array in named.items()}, folder / "params.safetensors")
    return folder


def write_sae_lens_more(
    root: Path,
    tensors: dict[str, np.ndarray],
    *,
    architecture: str,
    metadata: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A sae-lens 6 folder of any architecture, its tensors as given."""
    folder = root / "sae"
    folder.mkdir(parents=True)
    told = {
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "architecture": architecture,
        "metadata": {"model_name": "gpt2-small", "hook_name": "blocks.5.hook_resid_post", **(metadata or {})},
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(told))
    save_file({name: tensor(array) for name, array in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def write_old_sae_lens(root: Path, a: Arrays, **config: Any) -> Path:
    """A folder of sae-lens before 6, as jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs: one flat cfg.json."""
    folder = root / "v5_32k_layer_0.pt"
    folder.mkdir(parents=True)
    told = {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm",
        "finetuning_scaling_factor": False,
        "dtype": "torch.float32",
        "d_in": a.W_dec.shape[1],
        "d_sae": a.W_dec.shape[0],
        "model_name": "gpt2-small",
        "hook_point": "blocks.0.hook_resid_post",
        "hook_point_layer": 0,
        "hook_point_head_index": None,
        "prepend_bos": False,
        "sae_lens_training_version": None,
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(told))
    named = {"W_enc": a.W_enc.T, "b_enc": a.b_enc, "W_dec": a.W_dec, "b_dec": a.b_dec}
    save_file({name: tensor(array) for name, array in named.items()}, folder / "sae_weights.safetensors")
    return folder


def write_circuit_tracer(
    root: Path,
    layers: list[Arrays],
    *,
    read: str = "mlp.hook_in",
    written: str = "hook_mlp_out",
    model: str = "Qwen/Qwen3-0.6B",
    skip: np.ndarray | None = None,
    threshold: bool = False,
    **config: Any,
) -> Path:
    """mwhanna/qwen3-0.6b-transcoders-lowl0: config.yaml and a layer_L.safetensors for each layer."""
    folder = root / "qwen3-0.6b-transcoders"
    folder.mkdir(parents=True)
    told = {
        "model_name": model,
        "model_kind": "transcoder_set",
        "feature_input_hook": read,
        "feature_output_hook": written,
        **config,
    }
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in told.items()))
    for layer, a in enumerate(layers):
        named = {"W_enc": a.W_enc, "W_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec}
        named |= {"activation_function.threshold": a.threshold} if threshold else {}
        named |= {} if skip is None else {"W_skip": skip}
        save_file({name: tensor(array) for name, array in named.items()}, folder / f"layer_{layer}.safetensors")
    return folder


def write_openmoss(
    root: Path,
    a: Arrays,
    *,
    hooks: tuple[str, str] = ("blocks.7.hook_resid_post", "blocks.7.hook_resid_post"),
    norms: tuple[float, float] | None = (7.0, 7.0),
    former: bool = False,
    **config: Any,
) -> Path:
    """A folder of Llamascopium: config.json, sae_weights.safetensors; `former` as Llama Scope R1 Distill is."""
    folder = root / "L7R"
    folder.mkdir(parents=True)
    told = {
        "sae_type": "sae",
        "hook_point_in": hooks[0],
        "hook_point_out": hooks[1],
        "d_model": a.W_dec.shape[1],
        "expansion_factor": a.W_dec.shape[0] / a.W_dec.shape[1],
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(told))
    now = {"W_E": a.W_enc.T, "b_E": a.b_enc, "W_D": a.W_dec, "b_D": a.b_dec}
    old = {"encoder.weight": a.W_enc, "encoder.bias": a.b_enc, "decoder.weight": a.W_dec.T, "decoder.bias": a.b_dec}
    named = dict(old if former else now)
    named[("" if former else "activation_function.") + "log_jumprelu_threshold"] = np.log(a.threshold)
    if told.get("use_decoder_bias") is False:
        del named["b_D"]
    for hook, norm in zip(hooks, norms or (), strict=False):
        named[f"dataset_average_activation_norm.{hook}"] = np.array(norm, np.float32)
    save_file({name: tensor(array) for name, array in named.items()}, folder / "sae_weights.safetensors")
    return folder


def write_qwen_scope(root: Path, layers: list[Arrays], *, repo: str = "SAE-Res-Qwen3-8B-Base-W64K-L0_3") -> Path:
    """Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50: a layer{L}.sae.pt for each layer."""
    folder = root / repo
    folder.mkdir(parents=True)
    for layer, a in enumerate(layers):
        named = {"W_enc": a.W_enc, "b_enc": a.b_enc, "W_dec": a.W_dec.T, "b_dec": a.b_dec}
        torch.save({name: tensor(array) for name, array in named.items()}, folder / f"layer{layer}.sae.pt")
    return folder


def write_goodfire(
    root: Path, a: Arrays, *, name: str = "Llama-3.1-8B-Instruct-SAE-l19.pth", linear: str = "_linear"
) -> Path:
    """Goodfire/Llama-3.1-8B-Instruct-SAE-l19: one .pth; without `linear` as qresearch's of DeepSeek R1."""
    folder = root / name.partition(".p")[0]
    folder.mkdir(parents=True)
    named = {f"encoder{linear}.weight": a.W_enc, f"encoder{linear}.bias": a.b_enc}
    named |= {f"decoder{linear}.weight": a.W_dec.T, f"decoder{linear}.bias": a.b_dec}
    torch.save({name: tensor(array) for name, array in named.items()}, folder / name)
    return folder
