"""What features do in the clean pass: activations of a whole dictionary at a token, kept once computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.ids import Site
from saeflow.sources.architectures import Point, Tap, View
from saeflow.sources.blocks import CleanPass
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

_ENCODED_AT_ONCE = 64
"""Tokens encoded in one product, so that the dense activations stay small beside the dictionary."""


class Active(NamedTuple):
    """The active features of one site at one token."""

    features: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    by_index: dict[int, float]


class CleanActivations:
    """The clean activations at the sites around some layers, encoded when first asked for."""

    def __init__(
        self,
        model: LanguageModel,
        clean: CleanPass,
        dictionaries: Mapping[Site, Dictionary],
        positions: Iterable[int],
    ) -> None:
        """`positions` are tokens to encode together when the first of them is asked for."""
        self._model, self._clean, self._dictionaries = model, clean, dictionaries
        self._together = sorted(set(positions))
        self._made: dict[Site, dict[int, Active]] = {}
        self._bound: dict[Site, Dictionary] = {}

    def dictionary(self, site: Site) -> Dictionary:
        """The dictionary at a site.

        Raises:
            UnknownSite: when there is none, or the site is at none of the layers prepared.
            InvalidArgument: for a transcoder, which has no share in a hidden state that a trial could edit or read.
        """
        if site not in self._dictionaries:
            raise UnknownSite(f"there is no dictionary at {site}. Pass one to PreparedText.")
        if site not in self._bound:
            self._bound[site] = self._dictionaries[site].on(self._model)
        found = self._bound[site]
        if found.told.view is not View.OWN:
            raise InvalidArgument(
                f"the dictionary at {site} reads {Point.at(found.place)}, which a trial does not edit. Leave "
                f"{site} out, or give one of the tensor that is added to the stream."
            )
        if found.is_transcoder:
            raise InvalidArgument(
                f"the dictionary at {site} is a transcoder: it reads {found.tap.value} and predicts what is written at "
                f"{site}, so that its activations are no shares of that hidden state, which a trial edits and reads. "
                f"Leave {site} out, or give a sparse autoencoder there."
            )
        return found

    def at(self, site: Site, position: int) -> Active:
        """The active features of a site at a token.

        Raises:
            UnknownSite: as `dictionary`.
            WidthMismatch: for a dictionary of another width than the hidden states.
        """
        made = self._made.setdefault(site, {})
        if position not in made:
            self.encode(site, self._together if position in self._together else [position])
        return made[position]

    def encode(self, site: Site, positions: Iterable[int]) -> None:
        """Make sure the activations of a site at some tokens are there, in as few products as possible.

        Raises:
            UnknownSite: as `dictionary`.
            WidthMismatch: for a dictionary of another width than the hidden states.
        """
        made = self._made.setdefault(site, {})
        missing = [position for position in positions if position not in made]
        dictionary = self.dictionary(site) if missing else None
        for start in range(0, len(missing), _ENCODED_AT_ONCE):
            part = missing[start : start + _ENCODED_AT_ONCE]
            h = self.hidden(site)[part]
            with torch.no_grad():
                acts = dictionary.encode(h.to(dictionary.W_enc)).float()  # pyright: ignore[reportOptionalMemberAccess]
            for position, row in zip(part, acts, strict=True):
                made[position] = _active(row)

    def hidden(self, site: Site) -> Float[Tensor, "pos d_in"]:
        """What the site's dictionary reads in the clean pass.

        Raises:
            UnknownSite: as `dictionary`.
        """
        tap, stages = self.dictionary(site).tap, self._clean.stages
        if site.layer in stages:
            return stages[site.layer].taps[tap]
        if tap is Tap.RES and site.layer + 1 in stages:
            return stages[site.layer + 1].entry
        raise UnknownSite(
            f"{site} is at none of the layers {', '.join(map(str, stages))} this text was prepared for. Name "
            "its layer in PreparedText(layers=...)."
        )

    def check(self, site: Site, index: int) -> None:
        """Refuse a feature that its dictionary does not have.

        Raises:
            UnknownFeature: when the index lies outside.
            UnknownSite: as `dictionary`.
        """
        n_features = self.dictionary(site).n_features
        if index >= n_features:
            raise UnknownFeature(
                f"{site}/{index} lies outside the dictionary at {site}, which has {n_features} features. "
                f"Indices run from 0 to {n_features - 1}."
            )


def _active(row: Float[Tensor, " n_features"]) -> Active:
    index = row.nonzero().flatten()
    value = row[index].cpu().numpy()
    found = index.cpu().numpy()
    return Active(found, value, dict(zip(found.tolist(), value.tolist(), strict=True)))
