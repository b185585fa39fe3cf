"""Sampling settings of a generation: checked, complete, and independent of what a model ships with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from saeflow.errors import InvalidArgument


def sampling_config(
    *, max_new_tokens: int, temperature: float, top_p: float, end: int | list[int] | None, pad: int
) -> GenerationConfig:
    """The settings as transformers takes them; a temperature of 0 is greedy.

    Raises:
        InvalidArgument: for a setting outside its range.
    """
    if max_new_tokens < 1:
        raise InvalidArgument(f"max_new_tokens = {max_new_tokens} asks for no text. Give 1 or more.")
    if not 0 <= temperature < float("inf"):
        raise InvalidArgument(f"temperature = {temperature} is not one. Give 0 (greedy) or more.")
    if not 0 < top_p <= 1:
        raise InvalidArgument(f"top_p = {top_p} is no share of probability. Give a number in (0, 1].")
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=pad, do_sample=False
    )
    if temperature > 0:
        config.update(do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
    return config


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Generator[None, None, None]:
    """Run with torch's generators seeded, and leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def complete(
    hf_model: PreTrainedModel,
    input_ids: Int[Tensor, "n pos"],
    attention_mask: Int[Tensor, "n pos"],
    config: GenerationConfig,
) -> Int[Tensor, "n new"]:
    """The tokens that follow, padded on the right after an end-of-text token."""
    run = cast("Callable[..., Tensor]", hf_model.generate)
    return run(input_ids, attention_mask=attention_mask, generation_config=config)[:, input_ids.shape[1] :]
