"""Tiny random models of every mapped family, built from configs: no file, no network.

Norm gains and biases are random, so that one that is left out shows; z is wider than the stream where
the family allows it, so that a swapped width shows; Gemma's sliding window is shorter than the texts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

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


def _gemma3_with_vision() -> Gemma3Config:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3Config(text_config=dict(GEMMA), vision_config=vision, mm_tokens_per_image=4, **IDS)


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**HEADS),
    "mistral": lambda: MistralConfig(**HEADS, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**HEADS),
    "gemma2": lambda: Gemma2Config(**GEMMA),
    "gemma3_text": lambda: Gemma3TextConfig(**GEMMA),
    "gemma3": _gemma3_with_vision,
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=4, n_positions=64, **IDS),
    "gpt_neox": lambda: GPTNeoXConfig(**COMMON),
}


def tiny_hf_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, its matrices large enough that every part moves the logits."""
    torch.manual_seed(seed)
    config = CONFIGS[model_type]()
    made = Gemma3ForConditionalGeneration if model_type == "gemma3" else AutoModelForCausalLM.from_config
    model = made(config).eval()
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


def hooks_on(model: LanguageModel) -> int:
    """How many forward hooks the model carries."""
    modules = list(model.hf_model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


TEXTS = ["w5 w9 w12 w7 w30 w41 w8 w19 w3 w22", "w17 w4 w40", "w11 w11 w25 w6 w33 w2 w9"]
