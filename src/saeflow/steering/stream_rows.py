"""What chosen features write into the residual stream, for folding and for budgets: rows, and a factor a token.

An activation a of feature i writes a * factor * row_i, where row_i is its decoder row in the stream. The factor is 1
but in two cases, where it differs from token to token and texts are needed to know it:

    a dictionary that normalises each token    what its `decode` restores
    z behind a norm (Gemma 2 and 3)            1 / rms of what attention wrote, held fixed while z changes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.ids import FeatureId, Site
from saeflow.matching.stream import special_tokens
from saeflow.sources import weights
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Dictionary, Norm
from saeflow.sources.model import LanguageModel
from saeflow.sources.values import Place, Tokens

TEXTS_AT_ONCE: Final = 8
MAX_LENGTH: Final = 128
"""Tokens a text is cut to when sizes are measured."""


def by_site(
    features: Iterable[FeatureId], dictionaries: Mapping[Site, Dictionary]
) -> Iterator[tuple[Dictionary, list[FeatureId]]]:
    """The dictionary of each site that is named and the features there, sorted, each once.

    Raises:
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    for site, group in groupby(sorted(set(features)), key=lambda feature: feature.site):
        here = list(group)
        if site not in dictionaries:
            raise UnknownSite(f"{here[0]} is named, and there is no dictionary at {site}. Pass one for it.")
        dictionary = dictionaries[site]
        if here[-1].index >= dictionary.n_features:
            raise UnknownFeature(
                f"{here[-1]} lies outside the dictionary at {site}, which has {dictionary.n_features} features. "
                f"Indices run from 0 to {dictionary.n_features - 1}."
            )
        yield dictionary, here


def stream_rows(
    dictionary: Dictionary, features: Sequence[FeatureId], model: LanguageModel | None
) -> Float64[Tensor, "n d_model"]:
    """The decoder rows of some features as they stand in the stream, on the CPU; rows of z pass the model's W_O.

    Raises:
        WidthMismatch: on z without a model, or with a model whose z has another width.
    """
    rows = dictionary.finite_rows("W_dec")[[feature.index for feature in features]]
    rows = dictionary.project(rows, model)
    return rows.detach().double().cpu()


def unit_rows(
    dictionary: Dictionary, features: Sequence[FeatureId], model: LanguageModel | None
) -> Float64[Tensor, "n d_model"]:
    """The same at unit length: what an `Add` multiplies by its strengths.

    Raises:
        WidthMismatch: on z without a model, or with a model whose z has another width.
        InvalidArgument: for a feature whose decoder row has no direction.
    """
    return weights.unit_rows(stream_rows(dictionary, features, model), features)


def depends_on_token(dictionary: Dictionary, model: LanguageModel | None) -> bool:
    """Whether the factor differs from token to token, so that texts are needed."""
    normed = dictionary.preprocessing.norm is not Norm.NONE and not dictionary.is_transcoder
    return normed or _behind_norm(dictionary, model)


def read_places(dictionary: Dictionary, model: LanguageModel) -> tuple[Place, ...]:
    """What has to be captured to know activations and factors at a dictionary's site."""
    if _behind_norm(dictionary, model):
        return (dictionary.place, dictionary.site)
    return (dictionary.place,)


def token_factors(
    dictionary: Dictionary,
    model: LanguageModel,
    h: Float[Tensor, "n d_in"],
    after: Float[Tensor, "n d_model"] | None = None,
) -> Float64[Tensor, "n 1"]:
    """The factor on each of n tokens, from what stands at `read_places`: what is read, and what comes after the norm.

    Raises:
        InvalidArgument: behind a norm, without what comes after it.
    """
    scale = dictionary.scale(h)
    factor = torch.ones(len(h), 1, dtype=torch.float64)
    if isinstance(scale, Tensor):
        factor = factor * scale.double().cpu()
    if not _behind_norm(dictionary, model):
        return factor
    if after is None:
        raise InvalidArgument(
            f"the factor at {dictionary.site} needs what the part adds to the stream. Capture all of read_places."
        )
    # the norm's output is gain * (W_O z) / rms: its length over that of gain * (W_O z) is 1 / rms
    before = dictionary.project(h, model)
    return factor * (_length(after) / _length(before).clamp_min(1e-30))


def token_batches(
    model: LanguageModel, texts: Sequence[str], *, max_length: int = MAX_LENGTH
) -> Iterator[tuple[Tokens, Bool[Tensor, "batch pos"]]]:
    """The texts as tokens, a few at a time, and which tokens are real: no padding, no special token such as BOS.

    Raises:
        InvalidArgument: when no text has a real token.
    """
    found = 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        tokens = model.tokenize(texts[start : start + TEXTS_AT_ONCE], max_length=max_length)
        real = ~special_tokens(model, tokens)
        found += int(real.sum())
        yield tokens, real
    if not found:
        raise InvalidArgument(
            f"{len(texts)} texts hold no token to measure on. Give texts, each longer than a special token."
        )


def _behind_norm(dictionary: Dictionary, model: LanguageModel | None) -> bool:
    before = dictionary.tap is Tap.Z or dictionary.told.view is View.MODULE
    return before and model is not None and model.architecture.att_norm is not None


def _length(h: Float[Tensor, "n d_model"]) -> Float64[Tensor, "n 1"]:
    return torch.linalg.vector_norm(h.double(), dim=-1, keepdim=True).cpu()
