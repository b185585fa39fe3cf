"""What a GGUF file says of its model and transformers leaves out when it converts it: put right, or refused.

transformers maps sizes and the base of the rotary embedding. Without an error it drops the scaling of rotary
frequencies (Llama 3.1 and later, long versions of Qwen, Gemma 3 from 4B), caps on logits, Gemma's scale of attention
where it is not that of the head's width, the width of Qwen 3's heads, the context of GPT-2, and biases that the
configuration does not ask for. A model without them computes something else and looks well.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import torch

from saeflow.errors import UnsupportedFormat

_FREQUENCIES: Final = "rope_freqs.weight"
_LLAMA_3: Final = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA_3_CONTEXT: Final = 8192
_LARGEST_GEMMA: Final = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose attention is scaled by d_model / heads instead of the head's width; as in llama.cpp,
since the file does not say it."""


def mend_config(file: Path, config: Any) -> Any:
    """The configuration that transformers made of a GGUF file, with what it left out.

    Args:
        file: the GGUF file.
        config: what `AutoConfig` made of it; changed in place.

    Raises:
        UnsupportedFormat: when the file scales its rotary frequencies in a way that is not known.
    """
    from gguf import GGUFReader

    reader: Any = GGUFReader(file)
    family = str(reader.fields["general.architecture"].contents())

    def field(name: str) -> Any:
        found = reader.fields.get(f"{family}.{name}")
        return None if found is None else found.contents()

    width, heads = int(field("embedding_length")), int(field("attention.head_count"))
    head = int(field("attention.key_length") or width // heads)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if family == "gpt2":
        config.n_positions, config.n_inner = int(field("context_length")), int(field("feed_forward_length"))
        return config
    if family in {"llama", "qwen3"}:
        config.head_dim = head
        config.attention_bias = "blk.0.attn_q.bias" in tensors
    if family == "llama":
        config.mlp_bias = "blk.0.ffn_up.bias" in tensors
    if family == "gemma2":
        config.attn_logit_softcapping = field("attn_logit_softcapping")
        config.final_logit_softcapping = field("final_logit_softcapping")
    if family in _LARGEST_GEMMA:
        largest = int(field("block_count")) == _LARGEST_GEMMA[family]
        config.query_pre_attn_scalar = width // heads if largest else head
    scaling = _scaling(file, field)
    if _FREQUENCIES in tensors:
        factors = torch.from_numpy(tensors[_FREQUENCIES].data.copy()).double()
        scaling = scaling or _llama_3(file, factors, float(field("rope.freq_base") or 10_000.0))
    if scaling:
        _set_rotary(config, scaling)
    return config


def _scaling(file: Path, field: Any) -> dict[str, Any]:
    kind, factor = field("rope.scaling.type"), field("rope.scaling.factor")
    if kind in (None, "none") or factor in (None, 0.0, 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn":
        original = int(field("rope.scaling.original_context_length") or field("context_length"))
        return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    raise UnsupportedFormat(
        f"{file} scales its rotary frequencies by {kind!r} (factor {factor}), which transformers would leave out. "
        "Known: linear, yarn. Give the model that it was converted from, as a folder of safetensors."
    )


def _llama_3(file: Path, factors: torch.Tensor, theta: float) -> dict[str, Any]:
    """The setting of Llama 3 that gives the factors, one per frequency, that the file has.

    The formula is that of Llama 3.1's configuration: frequencies with waves shorter than a quarter of the original
    context stay, those longer than it are divided by the factor, and those between are interpolated.
    """
    if bool((factors == 1).all()):
        return {}
    n = len(factors)
    waves = 2 * math.pi * theta ** (torch.arange(n, dtype=torch.float64) / n)
    factor = float(factors.max())
    smooth = (_LLAMA_3_CONTEXT / waves - 1) / 3
    expected = torch.where(waves > _LLAMA_3_CONTEXT, factor, 1 / ((1 - smooth) / factor + smooth))
    expected = torch.where(waves < _LLAMA_3_CONTEXT / 4, 1.0, expected)
    if not torch.allclose(factors, expected, rtol=1e-4):
        raise UnsupportedFormat(
            f"{file} has factors of its rotary frequencies (1 to {factor:g}) that are not those of Llama 3, and "
            "transformers would leave them out. Give the model that it was converted from, as a folder of safetensors."
        )
    return {**_LLAMA_3, "factor": factor, "original_max_position_embeddings": _LLAMA_3_CONTEXT}


def _set_rotary(config: Any, scaling: dict[str, Any]) -> None:
    entries = getattr(config, "rope_parameters", None)
    if entries is None:  # transformers 4
        config.rope_scaling = scaling
    else:  # layers with a sliding window are not scaled
        entries.get("full_attention", entries).update(scaling)


def refuse_incomplete(file: Path, hf_model: Any) -> None:
    """Check that every number of a GGUF file is in the model that was made of it, and no others are.

    transformers skips tensors that it does not know, and makes weights that it does not find at random.

    Raises:
        UnsupportedFormat: otherwise.
    """
    from gguf import GGUFReader

    reader: Any = GGUFReader(file)
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name != _FREQUENCIES)
    made = sum(parameter.numel() for parameter in hf_model.parameters())
    if stored != made:
        raise UnsupportedFormat(
            f"{file} holds {stored:,} weights, and the {hf_model.config.model_type} that transformers makes of it "
            f"{made:,}: some would be left out, or random. Give the model that it was converted from, as a folder of "
            "safetensors."
        )
