"""The loss of a text under counterfactuals, recomputed only for tokens from t on and layers from L on.

An edit at token t of layer L affects no token before t and no layer below L, so their losses, keys and values are
those of the clean pass. The last token predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.experiments.causal.trial import ReducedTrial
from saeflow.sources.architectures import Tap
from saeflow.sources.blocks import CleanPass
from saeflow.sources.tokens import Tokens, nats

_LOGITS_AT_ONCE = 2**24
"""The most logits computed in one product: 64 MiB in float32."""


class ChangedToken(NamedTuple):
    """A reduced trial and its residual stream at the token: what block L reads (None if unedited) and its output."""

    trial: ReducedTrial
    entry: Float[Tensor, " d_model"] | None
    exit: Float[Tensor, " d_model"]


class Losses:
    """The mean next-token losses of one text, clean and under counterfactuals."""

    def __init__(self, clean: CleanPass, tokens: Tokens, n_layers: int) -> None:
        """Prepare without computing; losses are computed on request."""
        self._clean, self._n_layers = clean, n_layers
        self._following = tokens.input_ids[0, 1:]

    @cached_property
    def before(self) -> float:
        """The mean loss of the clean pass, in nats."""
        return float(self._columns.mean())

    def after(self, moved: Sequence[ChangedToken], batch_tokens: int) -> dict[ReducedTrial, float]:
        """The mean loss under each counterfactual, in nats.

        Args:
            moved: the changed tokens, at any layers and positions.
            batch_tokens: the most tokens run through a block in one call, but at least those of one variant.
        """
        groups: dict[tuple[int, int, bool], list[ChangedToken]] = {}
        for one in moved:
            layer, position = one.trial[:2]
            groups.setdefault((layer, position, one.entry is None), []).append(one)
        losses: dict[ReducedTrial, float] = {}
        for (_, position, _), group in groups.items():
            n_batch = max(1, batch_tokens // max(1, self._clean.n_tokens - 1 - position))
            for start in range(0, len(group), n_batch):
                losses.update(self._after_batch(group[start : start + n_batch]))
        return losses

    def _after_batch(self, batch: Sequence[ChangedToken]) -> dict[ReducedTrial, float]:
        layer, position = batch[0].trial[:2]
        stop = self._clean.n_tokens - 1
        if position == stop:
            return {one.trial: self.before for one in batch}
        h = self._onward(layer, batch, position, stop)
        columns = self._loss(h.flatten(0, 1), self._following[position:stop].repeat(len(batch)))
        total = self._columns[:position].sum() + columns.view(len(batch), -1).sum(dim=1)
        means = (total / stop).tolist()
        return {one.trial: mean for one, mean in zip(batch, means, strict=True)}

    def _onward(self, layer: int, batch: Sequence[ChangedToken], position: int, stop: int) -> Tensor:
        """The residual stream after the last block, at the tokens from `position` up to but excluding `stop`."""
        stages = self._clean.stages[layer]
        exits = torch.stack([one.exit for one in batch])
        if batch[0].entry is None:
            h = _variants(stages.taps[Tap.RES][position:stop], exits)
        else:
            entries = torch.stack([one.entry for one in batch if one.entry is not None])
            h = self._clean.onward(layer, _variants(stages.entry[position:stop], entries), position)
            h[:, 0] = exits  # includes edits inside the block, which affect only this token
        for above in range(layer + 1, self._n_layers):
            h = self._clean.onward(above, h, position)
        return h

    @cached_property
    def _columns(self) -> Float[Tensor, " pos"]:
        """The clean loss at each token but the last."""
        return self._loss(self._clean.final[:-1], self._following)

    def _loss(self, h: Float[Tensor, "n d_model"], following: Tensor) -> Float[Tensor, " n"]:
        n = max(1, _LOGITS_AT_ONCE // self._clean.n_vocabulary)
        parts = [
            nats(self._clean.logits(some), tokens) for some, tokens in zip(h.split(n), following.split(n), strict=True)
        ]
        return torch.cat(parts).double()


def _variants(clean: Float[Tensor, "pos d_model"], first: Float[Tensor, "n d_model"]) -> Tensor:
    h = clean.expand(len(first), -1, -1).clone()
    h[:, 0] = first
    return h
