"""How active every feature is on each of some texts: the means over tokens, sparse, streamed over the texts.

The model runs once over the texts for each group of sites; of a unit of texts only the per-text sums are kept.
Special tokens are left out, the begin-of-text token above all: many features fire there on any text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import Part, Site
from saeflow.records import Progress
from saeflow.sources.activity import ENCODED_AT_ONCE, special_tokens
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

TEXTS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """The mean activations of the features of some sites on some texts.

    Attributes:
        sites: in order of computation.
        means: for each site a CSR matrix, texts by features: the mean over the tokens of the text that are not
            special, in the units of the dictionary. What is not stored never fired.
        lengths: how many tokens of each text counted.
    """

    sites: tuple[Site, ...]
    means: Mapping[Site, sp.csr_array]
    lengths: Int[np.ndarray, " n"]


def activity(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    texts: Sequence[str],
    *,
    sites: Iterable[Site] | None = None,
    max_length: int = 128,
    sites_at_once: int | None = None,
    progress: Progress | None = None,
) -> Activity:
    """Mean activation of every feature at `sites` on each of `texts`.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: by site.
        texts: one or more, each with a token that is not special.
        sites: where; all residual sites when not given.
        max_length: tokens of a text that are read, the begin-of-text token included.
        sites_at_once: dictionaries in memory at a time, unloaded afterwards; all, and kept, when not given.
        progress: is told (units done, units, what).

    Raises:
        InvalidArgument: for no sites, or a text without a token that is not special.
        UnknownSite: for a site without a dictionary.
        WidthMismatch: for a dictionary that does not fit the model.
    """
    asked = chosen_sites(dictionaries, sites)
    step = sites_at_once or len(asked)
    groups = [asked[start : start + step] for start in range(0, len(asked), step)]
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    kept: dict[Site, list[sp.csr_array]] = {site: [] for site in asked}
    lengths = np.zeros(len(texts), dtype=np.int64)
    for number, group in enumerate(groups):
        for unit, start in enumerate(starts):
            if progress:
                progress(number * len(starts) + unit, len(groups) * len(starts), f"at {group[0]} to {group[-1]}")
            some = texts[start : start + TEXTS_AT_ONCE]
            counted, rows = _unit(model, {site: dictionaries[site] for site in group}, some, max_length)
            lengths[start : start + len(some)] = counted
            for site, matrix in rows.items():
                kept[site].append(matrix)
        if len(groups) > 1:
            for site in group:
                dictionaries[site].unload()
    means = {site: sp.csr_array(sp.vstack(parts, format="csr")) for site, parts in kept.items()}
    return Activity(asked, means, lengths)


def chosen_sites(dictionaries: Mapping[Site, Dictionary], sites: Iterable[Site] | None) -> tuple[Site, ...]:
    """The sites asked for, in order of computation; all residual ones when None is.

    Raises:
        InvalidArgument: when there is none.
    """
    asked = [site for site in dictionaries if site.part is Part.RES] if sites is None else set(sites)
    if not asked:
        raise InvalidArgument("there is no site to look at. Name some, such as 2/res.")
    return tuple(sorted(asked))


def _unit(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], texts: Sequence[str], max_length: int
) -> tuple[Int[np.ndarray, " n"], dict[Site, sp.csr_array]]:
    """For some texts: how many tokens counted in each, and the mean activations at each site."""
    tokens = model.tokenize(texts, max_length=max_length)
    real = ~special_tokens(model, tokens)
    counted = real.sum(dim=1)
    empty = torch.nonzero(counted == 0).flatten().tolist()
    if empty:
        raise InvalidArgument(
            f"the text {texts[empty[0]]!r} has no token that is not special. Leave it out, or raise max_length."
        )
    text_of_token = real.nonzero()[:, 0]
    places = {site: dictionary.point for site, dictionary in dictionaries.items()}
    held = model.capture(tokens, places.values())
    rows = {
        site: _means(dictionaries[site], held[place][real], text_of_token, counted) for site, place in places.items()
    }
    return counted.cpu().numpy(), rows


def _means(
    dictionary: Dictionary,
    h: Float[Tensor, "pos d_in"],
    text_of_token: Int[Tensor, " pos"],
    counted: Int[Tensor, " batch"],
) -> sp.csr_array:
    """Mean activations, texts by features, from the hidden states of all their tokens."""
    sums = torch.zeros(len(counted), dictionary.n_features, dtype=torch.float32, device=h.device)
    with torch.no_grad():
        for some, of_text in zip(h.split(ENCODED_AT_ONCE), text_of_token.split(ENCODED_AT_ONCE), strict=True):
            sums.index_add_(0, of_text, dictionary.encode(some).float())
    return sp.csr_array((sums / counted[:, None]).cpu().numpy())
