"""GGUF files as llama.cpp's converter writes them, from tiny random models; weights plain or in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

FAMILIES = {
    "llama": "llama",
    "mistral": "llama",  # llama.cpp does not tell them apart
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
}
"""model_type -> what llama.cpp calls the family."""


def _stored(name: str, value: torch.Tensor, family: str, config) -> np.ndarray:
    """A parameter as the converter keeps it: Llama's rotary halves interleaved, Gemma's norms + 1, Conv1D turned."""
    if family == "llama" and name.endswith(("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        value = value.reshape(heads, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
    if family.startswith("gemma") and name.endswith("norm.weight"):
        value = value + 1
    if family == "gpt2" and name.startswith("blk") and value.dim() == 2:
        value = value.T
    return value.detach().float().contiguous().numpy()


def write_gguf(  # noqa: PLR0912  (one key after the other)
    model: PreTrainedModel, file: Path, blocks: str = "F32", *, scaling: dict | None = None, extra=None
) -> None:
    """A model of `tiny_hf_model` as a GGUF file.

    Args:
        model: of one of `FAMILIES`.
        file: where to.
        blocks: how matrices are kept: F32, F16, Q8_0, Q4_1 ...
        scaling: entries below `rope.scaling`.
        extra: more tensors by name.
    """
    import gguf

    config, family = model.config, FAMILIES[model.config.model_type]
    vocab, width = config.vocab_size, config.hidden_size
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    writer = gguf.GGUFWriter(file, family)
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_head_count(heads)
    writer.add_vocab_size(vocab)
    if family == "gpt2":
        writer.add_feed_forward_length(4 * width)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        head = getattr(config, "head_dim", None) or width // heads
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(head)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(1_000_000.0 if family == "gemma3" else 10_000.0)
    if family.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    for key, value in (scaling or {}).items():
        add = (
            writer.add_string
            if isinstance(value, str)
            else writer.add_uint32
            if isinstance(value, int)
            else writer.add_float32
        )
        add(f"{family}.rope.scaling.{key}", value)
    letters = [chr(97 + i % 26) * (1 + i // 26) for i in range(vocab - 3)]
    if family.startswith("gemma"):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0] * vocab)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_merges(["a b", "c d"])
        letters[-2:] = ["ab", "cd"]
    writer.add_token_list(["<pad>", "<bos>", "<eos>", *letters])
    writer.add_token_types([3, 3, 3, *[1] * (vocab - 3)])
    for add, token in ((writer.add_pad_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(token)
    kind = getattr(gguf.GGMLQuantizationType, blocks)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), layers)
    tied = {id(model.get_input_embeddings().weight)} if config.tie_word_embeddings else set()
    for name, parameter in model.named_parameters():
        module, _, suffix = name.rpartition(".")
        if id(parameter) in tied and "lm_head" in name:
            continue
        stored = f"{names.get_name(module)}.{suffix}"
        value = _stored(stored, parameter, family, config)
        if blocks == "F32" or value.ndim == 1:
            writer.add_tensor(stored, value)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(value, kind), raw_dtype=kind)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
