"""Tiny random models of every mapped family, built from configs: no file, no network.

Norm gains and biases are random, so that one that is left out shows; z is wider than the stream where
the family allows it, so that a swapped width shows; Gemma's sliding window is shorter than the texts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from saeflow.sources.model import LanguageModel

VOCAB, D_MODEL, N_LAYERS = 48, 24, 3
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 40,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **IDS,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
GEMMA = {**HEADS, "sliding_window": 6, "query_pre_attn_scalar": 8}


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
PARTLY = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
NEO = {"vocab_size": VOCAB, "hidden_size": D_MODEL, "num_layers": N_LAYERS, "num_heads": 4, **IDS}


def config(name: str, **settings: object) -> Callable[[], PretrainedConfig]:
    """What makes a configuration of transformers, or skips the test where this version has none of that name."""

    def made() -> PretrainedConfig:
        if not hasattr(transformers, name):
            pytest.skip(f"transformers {transformers.__version__} has no {name}")
        return getattr(transformers, name)(**settings)

    return made


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": config("LlamaConfig", **HEADS),
    "llama4_text": config(
        "Llama4TextConfig",
        **HEADS,
        intermediate_size_mlp=40,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        no_rope_layers=[1, 1, 0],
        attention_chunk_size=6,
    ),
    "mistral": config("MistralConfig", **HEADS, sliding_window=None),
    "ministral3": config("Ministral3Config", **HEADS),
    "mistral3": lambda: transformers.Mistral3Config(
        text_config={"model_type": "mistral", **HEADS, "sliding_window": None},
        vision_config={"model_type": "pixtral", "head_dim": 8, **VISION},
        spatial_merge_size=1,
        **IDS,
    ),
    "qwen2": config("Qwen2Config", **GROUPED),
    "qwen2_moe": config(
        "Qwen2MoeConfig", **GROUPED, **EXPERTS, shared_expert_intermediate_size=16, mlp_only_layers=[1]
    ),
    "qwen3": config("Qwen3Config", **HEADS),
    "qwen3_moe": config("Qwen3MoeConfig", **HEADS, **EXPERTS, mlp_only_layers=[1]),
    "smollm3": config("SmolLM3Config", **GROUPED, no_rope_layers=[1, 1, 0]),
    "gpt_oss": config("GptOssConfig", **HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
    "phi3": config("Phi3Config", **GROUPED),
    "granite": config(
        "GraniteConfig", **GROUPED, residual_multiplier=0.22, embedding_multiplier=3.0, logits_scaling=2.0
    ),
    "glm4": config("Glm4Config", **HEADS),
    "gemma": config("GemmaConfig", **HEADS),
    "gemma2": config("Gemma2Config", **GEMMA),
    "gemma3_text": config("Gemma3TextConfig", **GEMMA),
    "gemma3": lambda: transformers.Gemma3Config(
        text_config=dict(GEMMA), vision_config=VISION, mm_tokens_per_image=4, **IDS
    ),
    "olmo2": config("Olmo2Config", **GROUPED),
    "olmo3": config("Olmo3Config", **GROUPED, sliding_window=6),
    "gpt2": config("GPT2Config", vocab_size=VOCAB, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=4, n_positions=64, **IDS),
    "gpt_neo": config(
        "GPTNeoConfig", **NEO, max_position_embeddings=64, window_size=6, attention_types=[[["global"], N_LAYERS]]
    ),
    "gpt_neox": config("GPTNeoXConfig", **COMMON),
    "falcon": config("FalconConfig", **COMMON, bias=True),
}


def tiny_hf_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, its matrices large enough that every part moves the logits."""
    torch.manual_seed(seed)
    made = {"gemma3": "Gemma3ForConditionalGeneration", "mistral3": "Mistral3ForConditionalGeneration"}.get(model_type)
    make = AutoModelForCausalLM.from_config if made is None else getattr(transformers, made)
    model = make(CONFIGS[model_type]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.4)
            elif "embed" not in name and "vision" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words w3 to w47, split at spaces; ids are the numbers."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106  (a token of text)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tiny_model(model_type: str, seed: int = 0) -> LanguageModel:
    """A random language model of a family."""
    return LanguageModel(tiny_hf_model(model_type, seed), tiny_tokenizer())


MASSIVE = "w5"
"""The token of `massive_model` that is massive in the whole stream, wherever it stands."""


def massive_model(model_type: str = "llama", seed: int = 0) -> LanguageModel:
    """A tiny model with a massive position: one token's embedding is a thousand times as long as any other."""
    model = tiny_model(model_type, seed)
    with torch.no_grad():
        embedding = model.hf_model.get_input_embeddings().weight
        embedding[int(MASSIVE[1:])] *= 1000 * float(embedding.norm(dim=1).max() / embedding[int(MASSIVE[1:])].norm())
    return model


def hooks_on(model: LanguageModel) -> int:
    """How many forward hooks the model carries."""
    modules = list(model.hf_model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


TEXTS = ["w5 w9 w12 w7 w30 w41 w8 w19 w3 w22", "w17 w4 w40", "w11 w11 w25 w6 w33 w2 w9"]
