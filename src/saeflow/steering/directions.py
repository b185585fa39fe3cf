"""Directions that need no dictionary: what people steer with besides features.

    difference    mean state over texts that hold a theme, less the mean over texts that do not: difference of means,
                  or contrastive activation addition (Rimsky et al. 2024, arXiv 2312.06681)
    probe         the weights of a logistic regression that tells the two kinds of text, as AxBench steers with
                  (Wu et al. 2025, arXiv 2501.17148)

Both are made from the same numbers: the mean state of each text at a site, over tokens that are neither special nor
massive. Every text counts the same, however long it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float64
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.sources.activity import text_batches
from saeflow.sources.massive import ordinary
from saeflow.sources.model import LanguageModel
from saeflow.steering.judges.topic import scikit_learn
from saeflow.steering.sizes import MAX_LENGTH

DIFFERENCE: Final = "difference"
PROBE: Final = "probe"


def text_means(
    model: LanguageModel, sites: Iterable[Site], texts: Sequence[str]
) -> dict[Site, Float64[Tensor, "n d_model"]]:
    """The mean state of each text at some sites, in the order of the texts, but for those without a token that counts.

    Raises:
        InvalidArgument: when no text has a token that is not special.
        UnknownSite: for a layer the model does not have.
    """
    wanted = sorted(set(sites))
    found: dict[Site, list[Tensor]] = {site: [] for site in wanted}
    for batch in text_batches(model, texts, max_length=MAX_LENGTH, least=1):
        held = model.capture(batch.tokens, wanted)
        for site in wanted:
            h = held[site].double().cpu()
            counted = ordinary(held[site], batch.real).cpu()
            found[site] += [states[kept].mean(0) for states, kept in zip(h, counted, strict=True) if kept.any()]
    return {site: torch.stack(means) for site, means in found.items()}


def theme_directions(
    on: Mapping[Site, Float64[Tensor, "n d_model"]], off: Mapping[Site, Float64[Tensor, "k d_model"]], kind: str
) -> dict[Site, Float64[Tensor, " d_model"]]:
    """A unit vector at each site that points from texts without a theme to texts that hold it.

    Args:
        on: `text_means` of texts that hold it.
        off: the same of texts that do not.
        kind: "difference" or "probe".

    Raises:
        InvalidArgument: for another kind, or where both kinds of text have the same mean.
        MissingExtra: for a probe, when scikit-learn is not installed.
    """
    if kind not in (DIFFERENCE, PROBE):
        raise InvalidArgument(f"there is no direction {kind!r}. Known: {DIFFERENCE}, {PROBE}.")
    found: dict[Site, Tensor] = {}
    for site in on:
        if kind == DIFFERENCE:
            vector = on[site].mean(0) - off[site].mean(0)
        else:
            both = torch.cat([on[site], off[site]])
            # one unit for all dimensions, so that the weights are a direction
            both = (both - both.mean(0)) / both.std()
            which = [1] * len(on[site]) + [0] * len(off[site])
            model = scikit_learn("linear_model").LogisticRegression(class_weight="balanced", max_iter=2000)
            vector = torch.tensor(model.fit(both.numpy(), which).coef_[0], dtype=torch.float64)
        length = float(torch.linalg.vector_norm(vector))
        if not length > 0:
            raise InvalidArgument(f"both kinds of text have the same mean state at {site}. Give other texts.")
        found[site] = vector / length
    return found
