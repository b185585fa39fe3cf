"""How good dictionaries are on text they were not trained on: FVE, L0, silent features, loss recovered.

    FVE              1 - sum |x - x'|^2 / sum |x - mean|^2, over the tokens measured; x is what is written
    L0               mean number of active features a token
    silent           share of features that fire on none of the tokens measured
    loss recovered   (L_zero - L_spliced) / (L_zero - L_clean): the model's loss with zeros, with the reconstruction,
                     and with its own activations at the place that is written
    loss added       L_spliced - L_clean, in nats a token

Special tokens are measured nowhere, and keep their activations when the reconstruction is spliced in: no dictionary
was trained on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.sources.activity import special_tokens
from saeflow.sources.architectures import Point, PointLike
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.training.settings import TrainingTarget


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured of one dictionary; see the head of the file. `tokens` is how many tokens were measured."""

    fve: float
    l0: float
    silent: float
    loss_recovered: float
    loss_added: float
    tokens: int


class Evaluation:
    """Texts kept for measuring, with what they cost the model alone, which is computed once."""

    def __init__(self, model: LanguageModel, batches: Sequence[Tokens], targets: Sequence[TrainingTarget]) -> None:
        """Run nothing yet.

        Raises:
            InvalidArgument: when there are fewer than two tokens that are not special.
        """
        self._model, self._targets = model, tuple(targets)
        self._batches = [(tokens, ~special_tokens(model, tokens)) for tokens in batches]
        self._tokens = sum(int(kept.sum()) for _, kept in self._batches)
        if self._tokens < 2:
            raise InvalidArgument(f"{self._tokens} tokens are kept for measuring. Give more texts, or longer ones.")
        self._clean: float | None = None
        self._zero: dict[Point, float] = {}

    def measure(self, dictionaries: Mapping[Site, Dictionary]) -> dict[Site, Quality]:
        """The quality of the dictionary at each target's site, on raw activations.

        Raises:
            WidthMismatch: when a dictionary does not fit the model.
        """
        fits = self._fits(dictionaries)
        if self._clean is None:
            self._clean = self._loss({})
        found: dict[Site, Quality] = {}
        for target in self._targets:
            written = target.written
            if written not in self._zero:
                self._zero[written] = self._spliced(target, torch.zeros_like)
            dictionary = dictionaries[target.site]
            spliced = self._spliced(target, lambda h, d=dictionary: d.decode(d.encode(h), h))
            lost = self._zero[written] - self._clean
            found[target.site] = Quality(
                *fits[target.site],
                loss_recovered=(self._zero[written] - spliced) / lost if lost else float("nan"),
                loss_added=spliced - self._clean,
                tokens=self._tokens,
            )
        return found

    def _fits(self, dictionaries: Mapping[Site, Dictionary]) -> dict[Site, tuple[float, float, float]]:
        """(FVE, L0, share silent) of each, from one forward pass of each batch for all places."""
        points = tuple(dict.fromkeys(point for target in self._targets for point in target.points))
        sums = {target.site: _Sums() for target in self._targets}
        for tokens, kept in self._batches:
            captured = self._model.capture(tokens, points)
            for target in self._targets:
                read, written = (captured[p][kept].float() for p in (target.read, target.written))
                sums[target.site].add(dictionaries[target.site], read, written)
        return {site: total.told() for site, total in sums.items()}

    def _spliced(self, target: TrainingTarget, put: Callable[[Tensor], Tensor]) -> float:
        """The loss with `put` of what is read in place of what is written."""
        read, written = target.read, target.written
        seen: dict[str, Tensor] = {}

        def remember(h: Tensor) -> Tensor:
            seen["h"] = h
            return h

        def places(kept: Bool[Tensor, "batch pos"]) -> dict[PointLike, Callable[[Tensor], Tensor]]:
            def replace(h: Tensor) -> Tensor:
                source = seen["h"] if target.is_transcoder else h
                made = torch.zeros_like(h) if put is torch.zeros_like else put(source.float()).to(h)
                return torch.where(kept[..., None], made, h)

            own: dict[PointLike, Callable[[Tensor], Tensor]] = {written: replace}
            return {read: remember} | own if target.is_transcoder else own

        return self._loss(places)

    def _loss(
        self,
        places: Callable[[Bool[Tensor, "batch pos"]], dict[PointLike, Callable[[Tensor], Tensor]]]
        | Mapping[None, None],
    ) -> float:
        """Mean loss in nats a token, with what `places` puts in, which is made for the tokens of each batch."""
        total, n = 0.0, 0
        for tokens, kept in self._batches:
            with self._model.intervening(places(kept) if callable(places) else {}):
                losses = self._model.loss(tokens)
            total += float(losses.nansum(dtype=torch.float64))
            n += int(losses.isfinite().sum())
        return total / n


class _Sums:
    """Running sums of one dictionary over batches, in float64 where they are long."""

    def __init__(self) -> None:
        self.n, self.active, self.error = 0, 0, 0.0
        self.sum: Tensor | None = None
        self.squares = 0.0
        self.fired: Tensor | None = None

    def add(self, dictionary: Dictionary, read: Float[Tensor, "n d_in"], written: Float[Tensor, "n d_out"]) -> None:
        acts = dictionary.encode(read)
        self.error += float((dictionary.decode(acts, read) - written).double().square().sum())
        self.n += len(read)
        self.active += int((acts > 0).sum())
        fired, wide = (acts > 0).any(dim=0), written.double()
        self.fired = fired if self.fired is None else self.fired | fired
        self.sum = wide.sum(dim=0) if self.sum is None else self.sum + wide.sum(dim=0)
        self.squares += float(wide.square().sum())

    def told(self) -> tuple[float, float, float]:
        assert self.sum is not None and self.fired is not None  # noqa: S101, PT018 - add was called
        spread = self.squares - float(self.sum.square().sum()) / self.n
        return 1 - self.error / spread, self.active / self.n, float((~self.fired).float().mean())
