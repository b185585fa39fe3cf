"""Generation with checked sampling settings that do not depend on the defaults a model ships with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from saeflow.errors import InvalidArgument


def check_sampling(*, max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Check that sampling settings are in range. Raises InvalidArgument for the first one that is not."""
    if max_new_tokens < 1:
        raise InvalidArgument(f"max_new_tokens = {max_new_tokens} asks for no text. Give 1 or more.")
    if not 0 <= temperature < float("inf"):
        raise InvalidArgument(f"temperature = {temperature} is not one. Give 0 (greedy) or more.")
    if not 0 < top_p <= 1:
        raise InvalidArgument(f"top_p = {top_p} is no share of probability. Give a number in (0, 1].")


def check_context(hf_model: PreTrainedModel, n_tokens: int, new_tokens: int = 0) -> None:
    """Refuse more tokens than the model has positions for: learned embeddings end there, rotary ones break down.

    The limit is the config's `max_position_embeddings`, times the factor of its rotary scaling, if any.

    Raises:
        InvalidArgument: with the numbers of tokens.
    """
    config: Any = hf_model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or n_tokens + new_tokens <= most:
        return
    # `rope_parameters` since transformers 5; some models have one entry per kind of layer
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    most = int(most * max([1.0, *(float(one.get("factor") or 1.0) for one in kinds)]))
    if n_tokens + new_tokens <= most:
        return
    raise InvalidArgument(
        f"a prompt of {n_tokens} tokens and {new_tokens} new ones do not fit the model's context of {most}. Give a "
        "shorter prompt, or ask for fewer tokens (max_new_tokens)."
        if new_tokens
        else f"a text of {n_tokens} tokens does not fit the model's context of {most}. Cut it (max_length)."
    )


def sampling_config(
    *, max_new_tokens: int, temperature: float, top_p: float, end: Sequence[int], pad: int
) -> GenerationConfig:
    """The settings as a transformers `GenerationConfig`; a temperature of 0 is greedy.

    Raises:
        InvalidArgument: for a setting outside its range.
    """
    check_sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=list(end) or None, pad_token_id=pad, do_sample=False
    )
    if temperature > 0:
        config.update(do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
    return config


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Generator[None, None, None]:
    """Seed torch's generators inside the context, and restore their state afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def complete(
    hf_model: PreTrainedModel,
    input_ids: Int[Tensor, "n pos"],
    attention_mask: Int[Tensor, "n pos"],
    config: GenerationConfig,
    *,
    processors: Sequence[LogitsProcessor] = (),
    criteria: Sequence[StoppingCriteria] = (),
) -> Int[Tensor, "n new"]:
    """The generated tokens, padded on the right after an end-of-text token.

    Args:
        hf_model: the model; the generation settings it ships with are not used.
        input_ids: the prompts.
        attention_mask: 1 on real tokens.
        config: from `sampling_config`.
        processors: these see and may change the scores at every step, in this order.
        criteria: called after every step; they may end the generation.

    Raises:
        InvalidArgument: when prompts and new tokens do not fit the model's context.
    """
    check_context(hf_model, input_ids.shape[1], cast("int", config.max_new_tokens))
    run = cast("Callable[..., Tensor]", hf_model.generate)
    # hide the settings a model ships with: `generate` fills in unset values from them
    own = cast("GenerationConfig | None", hf_model.generation_config)
    hf_model.generation_config = GenerationConfig()
    try:
        out = run(
            input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    finally:
        hf_model.generation_config = cast("GenerationConfig", own)
    return out[:, input_ids.shape[1] :]
