"""Metrics of generated texts that need no judge. No torch.

    losses        how improbable a text is to the unsteered model, in nats per token
    distinct      how little of it repeats (Li et al. 2016, arXiv 1510.03055)

Only `losses` imports torch, so that tables and pages of a finished sweep are made without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.sources.model import LanguageModel
else:  # naming the type would import torch
    LanguageModel: TypeAlias = object

LOGITS_CPU: Final = 2**28
"""The most bytes for the float32 logits of one forward pass on the CPU; `LOGITS_GPU` on an accelerator."""

LOGITS_GPU: Final = 2**32


def losses(
    model: LanguageModel, prompt: str, generations: Sequence[Sequence[int]], *, batch: int | None = None
) -> list[float]:
    """Mean loss of each generated text in nats per token, given the prompt: -1/n sum log p(token | what precedes it).

    Call this outside `intervening`, so that the unsteered model scores steered text. Texts are padded on the right,
    and a text's loss equals that of its sequence computed alone, up to the rounding of matrix products. Tokens of the
    prompt do not count. `exp` of the loss is a perplexity.

    Args:
        model: the unsteered model.
        prompt: what all texts continue; the begin-of-text token is prepended if the model uses one.
        generations: token ids of each text, without the prompt's; a text without tokens has loss NaN.
        batch: texts in one forward pass; None for as many as the limit on logits allows.

    Raises:
        InvalidArgument: for a batch below 1, or a prompt without tokens.
    """
    import torch

    from saeflow.sources.tokens import Tokens

    if batch is not None and batch < 1:
        raise InvalidArgument(f"batch = {batch} texts in a forward pass. Give 1 or more.")
    start: list[int] = model.tokenize([prompt]).input_ids[0].tolist()
    found = [math.nan] * len(generations)
    for group in _groups(model, len(start), list(map(len, generations)), batch):
        rows = [[*start, *generations[number]] for number in group]
        width = max(map(len, rows))
        ids = torch.tensor([row + [model.pad_id] * (width - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        of_tokens = model.loss(Tokens(ids, mask)).double()[:, len(start) - 1 :]
        for number, mean in zip(group, of_tokens.nanmean(dim=1).tolist(), strict=True):
            found[number] = mean
    return found


def _groups(model: LanguageModel, prompt: int, lengths: Sequence[int], batch: int | None) -> Iterator[list[int]]:
    """Numbers of the texts that have tokens, in groups for one forward pass, longest first to keep padding short."""
    order = sorted((number for number, n in enumerate(lengths) if n), key=lambda number: -lengths[number])
    room = LOGITS_CPU if model.device.type == "cpu" else LOGITS_GPU
    row = 4 * int(model.hf_model.config.get_text_config().vocab_size)
    while order:
        fitting = batch or max(1, room // (row * (prompt + lengths[order[0]])))
        yield order[:fitting]
        order = order[fitting:]


def distinct(units: Sequence[int] | Sequence[str], n: int) -> float:
    """distinct-n: the number of different n-grams as a share of all n-grams, 0 to 1.

    Args:
        units: token ids, or words.
        n: length of an n-gram.

    Returns:
        1 if no n-gram repeats; near 0 for a loop; 0 for a text too short to have an n-gram. It falls with the length
        of any text, so compare texts of similar length.

    Raises:
        InvalidArgument: for an `n` below 1.
    """
    if n < 1:
        raise InvalidArgument(f"n = {n} is no length of an n-gram. Give 1 or more.")
    grams = [tuple(units[at : at + n]) for at in range(len(units) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
