"""Skip a layer through a mapping: the test of SAE Match (Balagansky et al. 2024, arXiv 2410.07656, section 4).

The output of the blocks between A and B is replaced by what a map predicts from h_A; the rest of the model runs on. The
loss is compared with that of the model left alone, with plainly skipping the blocks (h_A in place of h_B), with the
reconstruction of h_B by its own dictionary, and with the mean in place of h_B. Special tokens keep their own hidden
states, without which every model fails: what is measured is the skipped layer, not the lost begin-of-text token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.experiments.transition.maps import TransitionMap
from saeflow.experiments.transition.measure import DictionaryPair, Ends, Fitted, baselines, written
from saeflow.experiments.transition.variants import CLEAN, MapSource, MapVariant, Scaling
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens

_LOGITS_AT_ONCE: Final = 1 << 27
"""Logits of one pass at most: half a gigabyte in float32."""


_DECODERS: Final = {
    Scaling.RAW: {(1, True), (2, True), (1, False), (2, False), (5, False), (10, False)},
    Scaling.FOLDED: {(1, True), (2, False)},
}
"""Of the decoders' product: entries kept, and whether they are binary."""


def is_run(variant: MapVariant) -> bool:
    """Whether a layer is skipped through this variant: those that the paper names, and a few around them."""
    if variant.matched is not Scaling.RAW or variant.applied is Scaling.MEAN:
        return False
    raw = variant.applied is Scaling.RAW
    if variant.source.one_to_one:
        return variant.source is MapSource.PERMUTATION or (raw and variant.source is MapSource.PERMUTATION_BIAS)
    if variant.source is MapSource.READS:
        return raw and (variant.k, variant.binary) in {(1, True), (None, False)}
    return (variant.k, variant.binary) in _DECODERS[variant.applied]


def loss_through(
    model: LanguageModel,
    pair: DictionaryPair,
    tokens: Tokens,
    real: Bool[Tensor, "batch pos"],
    ends: Ends,
    maps: Mapping[str, TransitionMap],
    fitted: Fitted,
) -> dict[str, float]:
    """Mean next-token loss of one text in nats, with each prediction in place of h_B, and left alone (`CLEAN`).

    Args:
        model: the model.
        pair: the dictionaries.
        tokens: one text.
        real: its tokens that are replaced.
        ends: what stands at both ends on those.
        maps: by name.
        fitted: the regressions.

    Raises:
        InvalidArgument: for other than one text of two tokens or more.
    """
    if len(tokens.input_ids) != 1 or tokens.input_ids.shape[1] < 2:
        raise InvalidArgument(
            f"a loss was asked of tokens of shape {tuple(tokens.input_ids.shape)}. Give one text of two tokens or more."
        )
    b_dec = pair.target.b_dec.float()
    said = dict(baselines(pair, ends, fitted))
    said |= {name: written(ends, one) + b_dec for name, one in maps.items()}
    n_pos, n_vocab = tokens.input_ids.shape[1], int(model.hf_model.config.get_text_config().vocab_size)
    at_once = max(1, _LOGITS_AT_ONCE // (n_pos * n_vocab))
    names = list(said)
    found = {CLEAN: float(model.loss(tokens).nanmean())}
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        rows = torch.stack([said[name] for name in some])
        found |= dict(zip(some, _losses(model, pair, tokens, real[0], rows), strict=True))
    return found


def _losses(
    model: LanguageModel,
    pair: DictionaryPair,
    tokens: Tokens,
    real: Bool[Tensor, " pos"],
    rows: Float[Tensor, "batch n d_out"],
) -> list[float]:
    """The loss with each of `rows` in place of h_B on the real tokens, all in one pass."""

    def replaced(h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        out = h.clone()
        out[:, real] = rows.to(out)
        return out

    many = Tokens(tokens.input_ids.expand(len(rows), -1), tokens.attention_mask.expand(len(rows), -1))
    with model.intervening({pair.target.point: replaced}):
        return model.loss(many).double().nanmean(dim=1).tolist()
