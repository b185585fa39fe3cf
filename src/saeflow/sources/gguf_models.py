"""Models in GGUF files: transformers converts them, and what it leaves out is restored or refused here.

A GGUF file holds configuration, tokenizer and weights, mostly quantised. transformers maps sizes and the base of the
rotary embedding. It silently drops the scaling of rotary frequencies (Llama 3.1 and later, long-context versions of
Qwen, Gemma 3 from 4B), caps on logits, Gemma's attention scale where it differs from the usual one of the head width,
the width of Qwen 3's heads, the context length of GPT-2, and biases that the configuration does not request. Without
them a model still runs but computes something else.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from saeflow.errors import BadFile, MissingExtra, UnknownArchitecture, UnknownRelease, UnsupportedFormat
from saeflow.sources.architectures import architecture_of

_FREQUENCIES: Final = "rope_freqs.weight"
_LLAMA_3: Final = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA_3_CONTEXT: Final = 8192
_LARGEST_GEMMA: Final = {"gemma2": 46, "gemma3": 62}
"""Number of layers of the 27B models, whose attention is scaled by d_model / heads instead of the head width. The file
does not say so; llama.cpp recognises them in the same way."""


def gguf_file(place: Path) -> Path | None:
    """The GGUF file at a path: the file itself, or the only one in a folder without a config.json; None otherwise.

    Raises:
        UnknownRelease: when a folder holds several.
    """
    if place.is_file():
        return place if place.suffix.lower() == ".gguf" else None
    if not place.is_dir() or (place / "config.json").is_file():
        return None
    found = sorted(path for path in place.iterdir() if path.suffix.lower() == ".gguf")
    if len(found) > 1:
        raise UnknownRelease(
            f"the folder {str(place)!r} holds {len(found)} GGUF files: {', '.join(path.name for path in found[:6])}. "
            "Give the path of one."
        )
    return found[0] if found else None


def load_gguf(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a GGUF file, unpacked to `dtype` in ordinary modules, and its tokenizer.

    Raises:
        UnknownArchitecture: when the sites of this kind of model are not mapped.
        MissingExtra: when gguf or accelerate is not installed.
        BadFile: when transformers cannot convert the file.
        UnsupportedFormat: when transformers would leave out something that cannot be restored.
    """
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{file} is a GGUF file, which transformers converts with gguf and accelerate; {' and '.join(missing)} not "
            "installed.",
            "gguf",
            ", or give the folder of the model as safetensors",
        )
    from gguf import GGUFReader

    # later versions of transformers keep weights packed in special modules by default; earlier ones never do
    settings: Any = getattr(transformers, "GgufConfig", None)
    unpacked = {} if settings is None else {"quantization_config": settings(dequantize=True)}
    try:
        named = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        config = AutoConfig.from_pretrained(**named)
        architecture_of(config)
        reader: Any = GGUFReader(file)
        _mend_config(file, reader, config)
        hf_model: Any = AutoModelForCausalLM.from_pretrained(**named, config=config, dtype=dtype, **unpacked)
        _refuse_incomplete(file, reader, hf_model)
        tokenizer = AutoTokenizer.from_pretrained(**named)
        tokenizer("a")
    except (UnknownArchitecture, UnsupportedFormat):
        raise
    except Exception as error:  # on bytes that are not GGUF, gguf and numpy raise errors of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadFile(
            f"the GGUF file {str(file)!r} does not load as a model through transformers {transformers.__version__}: "
            f"{reason} Give the model that it was converted from, as a folder of safetensors or a name on the hub."
        ) from error
    quantizer = getattr(hf_model, "hf_quantizer", None)
    if quantizer is not None:  # the weights are plain now, but save_pretrained would refuse them as quantised
        quantizer.remove_quantization_config(hf_model)
    hf_model.config.name_or_path = str(file)
    return cast("PreTrainedModel", hf_model), tokenizer


def _mend_config(file: Path, reader: Any, config: Any) -> None:
    """Restore in a configuration what transformers left out of a GGUF file.

    Args:
        file: the GGUF file.
        reader: its `GGUFReader`.
        config: the configuration that `AutoConfig` made of it; changed in place.

    Raises:
        UnsupportedFormat: when the file scales its rotary frequencies in an unknown way.
    """
    family = str(reader.fields["general.architecture"].contents())

    def field(name: str) -> Any:
        found = reader.fields.get(f"{family}.{name}")
        return None if found is None else found.contents()

    width, heads = int(field("embedding_length")), int(field("attention.head_count"))
    head = int(field("attention.key_length") or width // heads)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if family == "gpt2":
        config.n_positions, config.n_inner = int(field("context_length")), int(field("feed_forward_length"))
        return
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
    """The Llama 3 rotary setting that reproduces the file's factors, one per frequency; empty if all are 1.

    The formula is that of Llama 3.1's configuration: frequencies with wavelengths below a quarter of the original
    context stay, those above the context are divided by the factor, and those between are interpolated.
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
    else:  # where layers have separate settings, those with a sliding window are not scaled
        entries.get("full_attention", entries).update(scaling)


def _refuse_incomplete(file: Path, reader: Any, hf_model: Any) -> None:
    """Check that the model made from a GGUF file has exactly as many weights as the file.

    transformers skips tensors that it does not know, and initialises missing weights at random.

    Raises:
        UnsupportedFormat: when the two numbers differ.
    """
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name != _FREQUENCIES)
    made = sum(parameter.numel() for parameter in hf_model.parameters())
    if stored != made:
        raise UnsupportedFormat(
            f"{file} holds {stored:,} weights, and the {hf_model.config.model_type} that transformers makes of it "
            f"{made:,}: some would be left out, or random. Give the model that it was converted from, as a folder of "
            "safetensors."
        )
