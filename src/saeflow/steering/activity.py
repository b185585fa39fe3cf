"""Mean activation of every feature on each text: the mean over tokens, stored sparsely, streamed over the texts.

Special tokens are left out, especially the begin-of-text token, where many features fire on any text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Int

from saeflow.errors import InvalidArgument
from saeflow.ids import Part, Site
from saeflow.plain_types import Progress
from saeflow.sources.activity import ENCODED_AT_ONCE, TextBatch, encoded, site_states
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

TEXTS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """The mean activations of the features of some sites on some texts.

    Attributes:
        sites: in order of computation.
        means: for each site a CSR matrix, texts by features: the mean over the tokens of the text that are not
            special, in the units of the dictionary. Entries that are not stored are zero.
        lengths: how many tokens of each text count.
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
    progress: Progress | None = None,
) -> Activity:
    """Mean activation of every feature at `sites` on each of `texts`.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: by site.
        texts: one or more, each with a token that is not special.
        sites: where to look; all residual sites by default.
        max_length: tokens read from each text, including the begin-of-text token.
        progress: called with (batches done, batches, where).

    Raises:
        InvalidArgument: without sites, or for a text that has only special tokens.
        UnknownSite: for a site without a dictionary.
        WidthMismatch: for a dictionary that does not fit the model.
    """
    chosen = [site for site in dictionaries if site.part is Part.RES] if sites is None else set(sites)
    if not chosen:
        raise InvalidArgument("there is no site to look at. Name some, such as 2/res.")
    wanted = tuple(sorted(chosen))
    kept: dict[Site, list[sp.csr_array]] = {site: [] for site in wanted}
    lengths: list[int] = []
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    for unit, start in enumerate(starts):
        if progress:
            progress(unit, len(starts), f"at {wanted[0]} to {wanted[-1]}")
        # 1. tokenise a batch; its tokens that count, concatenated, are the rows of what follows
        some = texts[start : start + TEXTS_AT_ONCE]
        batch = TextBatch.of(model, some, max_length=max_length)
        counted = batch.real.sum(dim=1)
        if empty := torch.nonzero(counted == 0).flatten().tolist():
            raise InvalidArgument(
                f"the text {some[empty[0]]!r} has no token that is not special. Leave it out, or raise max_length."
            )
        lengths += counted.tolist()
        text_of_token = batch.real.nonzero()[:, 0].split(ENCODED_AT_ONCE)
        # 2. run it, and at each site sum the activations by text
        for site, h in site_states(model, dictionaries, wanted, batch.tokens).items():
            sums = torch.zeros(len(some), dictionaries[site].n_features, dtype=torch.float32, device=h.device)
            for acts, of_text in zip(encoded(dictionaries[site], h[batch.real]), text_of_token, strict=True):
                sums.index_add_(0, of_text, acts.float())
            kept[site].append(sp.csr_array((sums / counted[:, None]).cpu().numpy()))
    means = {site: sp.csr_array(sp.vstack(parts, format="csr")) for site, parts in kept.items()}
    return Activity(wanted, means, np.array(lengths, dtype=np.int64))
