"""What a coefficient of 1 means for each feature, so that one coefficient suits features of different size (B.2).

Folding (Balagansky et al. 2024, arXiv 2410.07656) divides encoder rows by the thresholds of JumpReLU and multiplies
decoder rows by them: every threshold becomes 1, and a decoder row is what its feature writes when it just fires. To
steer with folded rows is to add s times that, so that with |W_i| the length of the row in the stream

    scale_i = threshold_i |W_i|        strength_i = s' scale_i

Activations without a threshold of each feature's own (ReLU, TopK) say nothing of its size; there a typical
activation, measured on texts, takes the place of the threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.sources.activations import BatchTopK, JumpReLU
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.steering.written import (
    MAX_LENGTH,
    by_site,
    depends_on_token,
    read_places,
    stream_rows,
    token_batches,
    token_factors,
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
        size = _sizes(dictionary, here, activity or {})
        length = torch.linalg.vector_norm(stream_rows(dictionary, here, model), dim=1)
        factor = _mean_factor(dictionary, model, texts)
        found |= dict(zip(here, (length * size * factor).tolist(), strict=True))
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
    places = [dictionary.place for dictionary, _ in groups]
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


def _sizes(
    dictionary: Dictionary, features: Sequence[FeatureId], activity: Mapping[FeatureId, float]
) -> Tensor:
    """The threshold of each feature, or its typical activation."""
    sizes: list[float] = []
    for feature in features:
        size = _threshold(dictionary, feature)
        size = activity.get(feature) if size is None else size
        if size is None or not size > 0:
            raise InvalidArgument(
                f"{feature} cannot be folded: its activation {dictionary.activation.kind.value} has no threshold above "
                "0 for it, and no typical activation is known. Pass activity={feature: activation}, from "
                "typical_activations on texts where it fires; or steer without folding (--no-fold)."
            )
        sizes.append(size)
    return torch.tensor(sizes, dtype=torch.float64)


def _threshold(dictionary: Dictionary, feature: FeatureId) -> float | None:
    activation = dictionary.activation
    if not isinstance(activation, JumpReLU | BatchTopK):
        return None
    threshold = activation.threshold
    value = float(threshold if threshold.ndim == 0 else threshold[feature.index])
    return value if value > 0 else None


def _mean_factor(dictionary: Dictionary, model: LanguageModel | None, texts: Sequence[str] | None) -> float:
    """What an activation is multiplied by before it reaches the stream, on average over tokens; 1 mostly."""
    if not depends_on_token(dictionary, model):
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
