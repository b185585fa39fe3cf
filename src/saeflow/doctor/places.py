"""Which tensors of a model a dictionary may have been trained on: its own, and those around it.

Own is the tap the release says. Around it are the same tap a layer before and after, the other taps of its layer
and of the layer before, and, in models with a norm after each part, what the part gives before that norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.sources.activity import TextBatch
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.hooks import watch_output
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens

_RAW = (Tap.ATT, Tap.MLP)
"""What a sandwich norm follows."""


@dataclass(frozen=True, order=True)
class Spot:
    """A tensor of a layer: at a tap, or what the part at that tap gives before its norm (`raw`)."""

    layer: int
    tap: Tap
    raw: bool = False

    def __str__(self) -> str:
        """`3/att`, `3/att before o_proj`, `3/mlp before its norm`, `embedding`."""
        if self.layer < 0:
            return "embedding"
        told = {Tap.Z: "att before o_proj", Tap.MLP_IN: "mlp_in", Tap.MID: "mid"}.get(self.tap, self.tap.value)
        return f"{self.layer}/{told}{' before its norm' if self.raw else ''}"


@dataclass(frozen=True, eq=False)
class Seen:
    """Hidden states of the tokens that count, and of the first token of each text."""

    rest: Mapping[Spot, Float[Tensor, "n d"]]
    first: Mapping[Spot, Float[Tensor, "k d"]]


def own_spot(dictionary: Dictionary) -> Spot:
    """Where the release says the dictionary reads."""
    point = dictionary.point
    return Spot(point.layer, point.tap, raw=point.view is View.MODULE)


def written_spot(dictionary: Dictionary) -> Spot:
    """What it reconstructs: what it reads, but for a transcoder."""
    raw = dictionary.training.view is View.MODULE
    site = dictionary.site
    return Spot(site.layer, Tap.of(site.part), raw=raw) if dictionary.is_transcoder else own_spot(dictionary)


def spots_around(dictionary: Dictionary, model: LanguageModel) -> tuple[Spot, ...]:
    """The spots to try for a dictionary, its own first; those of another width are left out when they are read.

    Raises:
        Nothing.
    """
    own = own_spot(dictionary)
    taps = list(Tap)
    spots = [own, *(Spot(own.layer + step, own.tap) for step in (-1, 1))]
    spots += [Spot(own.layer + step, tap) for step in (0, -1) for tap in taps]
    if model.architecture.att_norm is not None:
        spots += [Spot(own.layer, tap, raw=True) for tap in _RAW]
    embedding = Spot(-1, Tap.RES)
    return tuple(dict.fromkeys(spot for spot in spots if 0 <= spot.layer < model.n_layers or spot == embedding))


def see(model: LanguageModel, batches: Sequence[TextBatch], spots: Sequence[Spot]) -> Seen:
    """Run the model over the batches and keep the hidden states at the spots.

    Raises:
        UnknownSite: for a layer the model does not have.
    """
    rest: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}
    first: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}
    for batch in batches:
        held = _held(model, batch.tokens, spots)
        start = torch.zeros_like(batch.real)
        start[:, 0] = True
        for spot in spots:
            rest[spot].append(held[spot][batch.real & ~start].float())
            first[spot].append(held[spot][:, 0].float())
    return Seen(
        {spot: torch.cat(parts) for spot, parts in rest.items()},
        {spot: torch.cat(parts) for spot, parts in first.items()},
    )


def n_seen(batches: Sequence[TextBatch]) -> int:
    """How many tokens `see` keeps of each spot: those that count and are not the first of their text."""
    return sum(int(batch.real[:, 1:].sum()) for batch in batches)


def _held(model: LanguageModel, tokens: Tokens, spots: Sequence[Spot]) -> dict[Spot, Tensor]:
    kept: dict[Spot, Tensor] = {}
    plain = [spot for spot in spots if not spot.raw and spot.layer >= 0]
    embedded = [spot for spot in spots if spot.layer < 0]
    with ExitStack() as stack:
        for spot in spots:
            if spot.raw:
                module = model.block(spot.layer).get_submodule(model.architecture.module(spot.tap, View.MODULE))

                def keep(h: Tensor, spot: Spot = spot) -> None:
                    kept[spot] = h.detach()

                stack.callback(watch_output(module, keep).remove)
        captured = model.capture(
            tokens,
            [(spot.layer, spot.tap) for spot in plain],
            inputs=[0] if embedded else [],
            stop_after_last=not any(spot.raw for spot in spots),
        )
    found = {spot: captured[spot.layer, spot.tap] for spot in plain}
    return kept | found | dict.fromkeys(embedded, captured.inputs.get(0, torch.empty(0)))
