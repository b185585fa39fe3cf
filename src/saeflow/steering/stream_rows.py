"""What chosen features write into the residual stream: rows, a factor for each token, and the scales of folding.

An activation a of feature i writes a * factor * row_i, where row_i is its decoder row in the stream. The factor is 1
but in two cases, where it differs from token to token and texts are needed to know it:

    a dictionary that normalises each token    what its `decode` restores
    z behind a norm (Gemma 2 and 3)            1 / rms of what attention wrote, held fixed while z changes

Folding (Balagansky et al. 2024, arXiv 2410.07656; appendix B.2) divides encoder rows by the thresholds of JumpReLU and
multiplies decoder rows by them: every threshold becomes 1, and a decoder row is what its feature writes when it just
fires, so that one coefficient suits features of different size. To steer with folded rows is to add s times that: with
|W_i| the length of the row in the stream

    scale_i = threshold_i |W_i|        strength_i = s' scale_i

Activations without a threshold of each feature's own (ReLU, TopK) say nothing of its size; there a typical
activation, measured on texts, takes the place of the threshold.
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
from saeflow.sources import weights
from saeflow.sources.activations import BatchTopK, JumpReLU
from saeflow.sources.activity import special_tokens
from saeflow.sources.architectures import PointLike, Tap, View
from saeflow.sources.dictionary import Dictionary, Norm
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens

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


def read_places(dictionary: Dictionary, model: LanguageModel) -> tuple[PointLike, ...]:
    """What has to be captured to know activations and factors at a dictionary's site."""
    if _behind_norm(dictionary, model):
        return (dictionary.point, dictionary.site)
    return (dictionary.point,)


def token_factors(
    dictionary: Dictionary,
    model: LanguageModel,
    h: Float[Tensor, "n d_in"],
    after: Float[Tensor, "n d_model"] | None = None,
) -> Float64[Tensor, "n 1"]:
    """The scale of a feature's contribution on each of n tokens, computed from the tensors captured at `read_places`.

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


def fold_scales(
    dictionaries: Mapping[Site, Dictionary],
    features: Iterable[FeatureId],
    *,
    activity: Mapping[FeatureId, float] | None = None,
    model: LanguageModel | None = None,
    texts: Sequence[str] | None = None,
) -> dict[FeatureId, float]:
    """The length of what each feature writes into the stream at its threshold, in units of the hidden state.

    Args:
        dictionaries: by site.
        features: which of them; each is in the answer once, sorted.
        activity: a typical activation of features without a threshold above 0, such as `typical_activations` gives.
        model: projects rows of z; not needed elsewhere.
        texts: where a dictionary normalises each token, or reads z behind a norm (Gemma 2 and 3), what it
            writes depends on the token: the mean factor over these texts is taken. Not needed elsewhere.

    Raises:
        InvalidArgument: when a feature has neither a threshold above 0 nor an activity, or texts are needed.
        WidthMismatch: on z without a model, or with a model whose z has another width.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    found: dict[FeatureId, float] = {}
    for dictionary, here in by_site(features, dictionaries):
        sizes: list[float] = []
        for feature in here:
            size = _threshold(dictionary, feature)
            size = (activity or {}).get(feature) if size is None else size
            if size is None or not size > 0:
                raise InvalidArgument(
                    f"{feature} cannot be folded: its activation {dictionary.activation.kind.value} has no threshold "
                    "above 0 for it, and no typical activation is known. Pass activity={feature: activation}, from "
                    "typical_activations on texts where it fires; or steer without folding (--no-fold)."
                )
            sizes.append(size)
        size_of = torch.tensor(sizes, dtype=torch.float64)
        length = torch.linalg.vector_norm(stream_rows(dictionary, here, model), dim=1)
        factor = _mean_factor(dictionary, model, texts)
        found |= dict(zip(here, (length * size_of * factor).tolist(), strict=True))
    return found


def has_threshold(dictionary: Dictionary, feature: FeatureId) -> bool:
    """Whether `fold_scales` needs no activity for a feature.

    Raises:
        BadFile: when a threshold read at first use is not finite.
    """
    return _threshold(dictionary, feature) is not None


def typical_activations(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    features: Iterable[FeatureId],
    texts: Sequence[str],
    *,
    max_length: int = MAX_LENGTH,
) -> dict[FeatureId, float]:
    """The mean activation of each feature over the tokens where it is active; those that never are, are missing.

    Args:
        model: what the texts run through.
        dictionaries: by site.
        features: which of them.
        texts: one or more; special tokens do not count.
        max_length: tokens a text is cut to.

    Raises:
        InvalidArgument: when no text has a token that is not special.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
    """
    groups = list(by_site(features, dictionaries))
    total = {feature: 0.0 for _, here in groups for feature in here}
    count = dict.fromkeys(total, 0)
    places = [dictionary.point for dictionary, _ in groups]
    for tokens, real in token_batches(model, texts, max_length=max_length):
        held = model.capture(tokens, places)
        for place, (dictionary, here) in zip(places, groups, strict=True):
            h = held[place][real].to(dictionary.W_enc)
            index = torch.tensor([feature.index for feature in here], device=h.device)
            acts = dictionary.encode_only(h, index)
            for feature, some in zip(here, acts.T, strict=True):
                total[feature] += float(some.double().sum())
                count[feature] += int((some > 0).sum())
    return {feature: total[feature] / count[feature] for feature in total if count[feature]}


def _threshold(dictionary: Dictionary, feature: FeatureId) -> float | None:
    activation = dictionary.activation
    if not isinstance(activation, JumpReLU | BatchTopK):
        return None
    threshold = activation.threshold
    value = float(threshold if threshold.ndim == 0 else threshold[feature.index])
    return value if value > 0 else None


def _mean_factor(dictionary: Dictionary, model: LanguageModel | None, texts: Sequence[str] | None) -> float:
    """What an activation is multiplied by before it reaches the stream, on average over tokens; 1 mostly."""
    normed = dictionary.preprocessing.norm is not Norm.NONE and not dictionary.is_transcoder
    if not normed and not _behind_norm(dictionary, model):
        return 1.0
    if model is None or not texts:
        raise InvalidArgument(
            f"what the features at {dictionary.site} write depends on the token: it passes a norm. Pass model and "
            "texts, to take the mean over their tokens; or steer without folding (--no-fold)."
        )
    places = read_places(dictionary, model)
    total, n = 0.0, 0
    for tokens, real in token_batches(model, texts):
        held = model.capture(tokens, places)
        factors = token_factors(dictionary, model, *(held[place][real] for place in places))
        total, n = total + float(factors.sum()), n + len(factors)
    return total / n


def _behind_norm(dictionary: Dictionary, model: LanguageModel | None) -> bool:
    before = dictionary.tap is Tap.Z or dictionary.training.view is View.MODULE
    return before and model is not None and model.architecture.att_norm is not None


def _length(h: Float[Tensor, "n d_model"]) -> Float64[Tensor, "n 1"]:
    return torch.linalg.vector_norm(h.double(), dim=-1, keepdim=True).cpu()
