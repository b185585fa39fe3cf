"""How good dictionaries are on text they were not trained on: FVE, L0, silent features, loss recovered.

    FVE              1 - sum |x - x'|^2 / sum |x - mean|^2, over the positions measured; x is the tensor written
    FVE of all       the same including massive positions, which FVE leaves out (`sources.massive`)
    L0               mean number of active features per position
    silent           share of features that fire at none of the positions measured
    loss recovered   (L_zero - L_spliced) / (L_zero - L_clean): the model's loss with zeros, with the reconstruction,
                     and with its own activations in the tensor written
    loss added       L_spliced - L_clean, in nats per token

No dictionary is trained on special tokens or massive positions. They are not measured, and keep their activations when
the reconstruction is spliced in.

A pass with a reconstruction starts at the splice: earlier blocks return their outputs of the clean pass. Even so, the
loss costs two passes through the rest of the model per dictionary, so in a short run it is measured on the first texts
only (`Affordable`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.sources.activity import special_tokens
from saeflow.sources.architectures import Point, PointLike, Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.hooks import Change, answered_by
from saeflow.sources.massive import is_massive
from saeflow.sources.model import Captured, LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.training.settings import TrainingSettings, TrainingTarget

MEASURED: Final = 0.1
"""Share of the cost of training that measuring may add."""
FEWEST: Final = 512
"""Minimum number of tokens measured on. Spliced and clean losses use the same tokens, so few are enough."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Measurements of one dictionary; see the module docstring.

    Attributes:
        tokens: positions that are not special tokens.
        massive: how many of them are massive at the site, and therefore not measured.
        loss_recovered, loss_added: NaN where the model's loss was not measured.
        loss_tokens: how many next-token predictions the loss was measured on.
    """

    fve: float
    fve_all: float
    l0: float
    silent: float
    loss_recovered: float
    loss_added: float
    tokens: int
    massive: int
    loss_tokens: int = 0


class Evaluation:
    """Held-out texts, with the model's loss on them, which is computed once.

    Attributes:
        n_tokens: how many of their tokens are not special.
    """

    def __init__(
        self,
        model: LanguageModel,
        batches: Sequence[Tokens],
        targets: Sequence[TrainingTarget],
        limits: Mapping[Point, float] | None = None,
        affordable: Affordable | None = None,
    ) -> None:
        """Run nothing yet.

        Args:
            model: the model.
            batches: held-out texts, one item per forward pass.
            targets: what is measured.
            limits: `massive.norm_limit` by point; at a point without one, no position is massive.
            affordable: how many tokens of the first texts to measure on; None for all.

        Raises:
            InvalidArgument: when there are fewer than two tokens that are not special.
        """
        self._model, self._targets, self._limits = model, tuple(targets), limits or {}
        self._batches = [(tokens, ~special_tokens(model, tokens)) for tokens in batches]
        self.n_tokens = sum(int(real.sum()) for _, real in self._batches)
        if self.n_tokens < 2:
            raise InvalidArgument(f"{self.n_tokens} tokens are kept for measuring. Give more texts, or longer ones.")
        self._losses: dict[tuple[int, Point | None], Float[Tensor, " n"]] = {}
        self._between, self._with_loss = (self._first(n) for n in affordable or (math.inf, math.inf))

    def _first(self, n: float) -> int:
        """How many of the first batches hold `n` tokens together; all batches if they hold fewer."""
        before = itertools.accumulate((int(real.sum()) for _, real in self._batches[:-1]), initial=0)
        return sum(so_far < n for so_far in before)

    def measure(
        self, dictionaries: Mapping[Site, Dictionary], *, loss: bool = True, last: bool = True
    ) -> dict[Site, Quality]:
        """The quality of the dictionary at each target's site, on raw activations.

        Args:
            dictionaries: by site.
            loss: also measure the model's loss, which takes most of the time: a pass through the rest of the model per
                dictionary, and the first time another one with zeros, besides the clean loss for all.
            last: measure on all texts; otherwise on as many as are affordable along the way.

        Raises:
            WidthMismatch: when a dictionary does not fit the model.
        """
        points = tuple(dict.fromkeys(point for target in self._targets for point in target.points))
        sums = {target.site: _Sums() for target in self._targets}
        added = {target.site: list[Tensor]() for target in self._targets}
        for number, (tokens, real) in enumerate(self._batches[: None if last else self._between]):
            with_loss = loss and number < self._with_loss
            with self._remembering(with_loss) as outputs:
                captured = self._model.capture(tokens, points)
            for target in self._targets:
                read, written = (captured[point] for point in (target.read, target.written))
                ordinary = self._ordinary(target, captured, real)
                dictionary = dictionaries[target.site]
                sums[target.site].add(dictionary, read[real].float(), written[real].float(), ordinary[real])
                if not with_loss:
                    continue
                for key, put in ((None, written), (target.written, torch.zeros_like(written))):
                    if (number, key) not in self._losses:
                        self._losses[number, key] = self._spliced(target, tokens, outputs, ordinary, put)
                h = read.float()
                made = dictionary.decode(dictionary.encode(h), h).to(written)
                added[target.site].append(self._spliced(target, tokens, outputs, ordinary, made))
        return {target.site: self._quality(target, sums[target.site], added[target.site]) for target in self._targets}

    @contextlib.contextmanager
    def _remembering(self, loss: bool) -> Generator[dict[int, object], None, None]:
        """Collect the outputs of the last block before each splice while the context is open; none without `loss`."""
        outputs: dict[int, object] = {}
        with contextlib.ExitStack() as stack:
            for layer in {first_block(target) - 1 for target in self._targets if loss} - {-1}:

                def keep(_module: object, _args: object, output: object, layer: int = layer) -> None:
                    outputs[layer] = output

                stack.callback(self._model.block(layer).register_forward_hook(keep).remove)
            yield outputs

    def _ordinary(
        self, target: TrainingTarget, captured: Captured, real: Bool[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"]:
        """Mask of the positions measured: neither special nor massive, in the tensors read and written."""
        limits = {point: self._limits.get(point, math.inf) for point in target.points}
        massive = [is_massive(captured[point], limit) for point, limit in limits.items()]
        return real & ~torch.stack(massive).any(dim=0)

    def _spliced(
        self,
        target: TrainingTarget,
        tokens: Tokens,
        outputs: Mapping[int, object],
        ordinary: Bool[Tensor, "batch pos"],
        put: Float[Tensor, "batch pos d_out"],
    ) -> Float[Tensor, " n"]:
        """The loss of each token when `put` replaces the tensor written, at the positions that are measured."""
        start = first_block(target)
        change: Change = lambda h: torch.where(ordinary[..., None], put, h)  # noqa: E731
        places: Mapping[PointLike, Change] = {target.written: change}
        with contextlib.ExitStack() as stack:
            for layer in range(start):
                block = self._model.block(layer)
                stack.enter_context(answered_by(block, lambda *_, **__: outputs[start - 1]))
            stack.enter_context(self._model.intervening(places))
            losses = self._model.loss(tokens)
        return losses[losses.isfinite()].double()

    def _quality(self, target: TrainingTarget, sums: _Sums, added: Sequence[Tensor]) -> Quality:
        recovered = rise = math.nan
        if added:
            clean, zero = (
                float(torch.cat([self._losses[number, key] for number in range(len(added))]).mean())
                for key in (None, target.written)
            )
            spliced = float(torch.cat(list(added)).mean())
            rise = spliced - clean
            recovered = (zero - spliced) / (zero - clean) if zero != clean else math.nan
        assert sums.fired is not None  # noqa: S101 - there is a batch
        return Quality(
            fve=sums.ordinary.fve(),
            fve_all=sums.all.fve(),
            l0=sums.active / max(sums.ordinary.n, 1),
            silent=float((~sums.fired).float().mean()),
            loss_recovered=recovered,
            loss_added=rise,
            tokens=sums.all.n,
            massive=sums.all.n - sums.ordinary.n,
            loss_tokens=sum(map(len, added)),
        )


def first_block(target: TrainingTarget) -> int:
    """The first block that has to run again when the tensor that the target writes is changed."""
    return target.site.layer + (target.written.tap is Tap.RES)


class Affordable(NamedTuple):
    """How many tokens a run measures on, so that measuring costs about a tenth of the multiplications of training.

    Attributes:
        between: in each measurement along the way; the last one uses all held-out texts.
        loss: when the model's loss is measured, once.
    """

    between: int
    loss: int

    @staticmethod
    def of(model: LanguageModel, targets: Sequence[TrainingTarget], settings: TrainingSettings) -> Affordable:
        """Split `MEASURED` in half between measurements along the way and the final loss, each `FEWEST` tokens or more.

        Per token, training multiplies by the blocks up to the last one read and by the encoder of every target; a
        measurement by these and the decoders; the loss by the blocks after each splice and the unembedding, twice.
        """
        blocks = [sum(p.numel() for p in model.block(layer).parameters()) for layer in range(model.n_layers)]
        head = sum(p.numel() for p in cast("nn.Module", model.hf_model.get_output_embeddings()).parameters())
        read = sum(blocks[: 1 + max(target.site.layer for target in targets)])
        encoders = model.d_model * sum(target.width for target in targets)
        spliced = 2 * sum(sum(blocks[first_block(target) :]) + head for target in targets)
        tokens = settings.optimiser.steps * settings.optimiser.batch
        half = MEASURED / 2 * tokens * (read / settings.stream.uses + encoders)
        on_the_way = max(1, tokens // settings.metrics_every if settings.metrics_every else 0)
        between = half / on_the_way / (read + 2 * encoders)
        return Affordable(max(FEWEST, round(between)), max(FEWEST, round(half / spliced)))


class _Errors:
    """Running sums of squared errors and of the variance, in float64."""

    def __init__(self) -> None:
        self.n, self.error, self.squares = 0, 0.0, 0.0
        self.sum: Tensor | float = 0.0

    def add(self, errors: Float[Tensor, " n"], written: Float[Tensor, "n d_out"]) -> None:
        self.n += len(written)
        self.error += float(errors.sum())
        self.sum = written.sum(dim=0) + self.sum
        self.squares += float(written.square().sum())

    def fve(self) -> float:
        """FVE relative to the mean of the positions that were added."""
        spread = self.squares - float(torch.as_tensor(self.sum).square().sum()) / max(self.n, 1)
        return 1 - self.error / spread if spread > 0 else math.nan


class _Sums:
    """Running sums of one dictionary over batches."""

    def __init__(self) -> None:
        self.ordinary, self.all, self.active = _Errors(), _Errors(), 0
        self.fired: Tensor | None = None

    def add(
        self,
        dictionary: Dictionary,
        read: Float[Tensor, "n d_in"],
        written: Float[Tensor, "n d_out"],
        ordinary: Bool[Tensor, " n"],
    ) -> None:
        acts, wide = dictionary.encode(read), written.double()
        errors = (dictionary.decode(acts, read) - written).double().square().sum(dim=1)
        self.all.add(errors, wide)
        self.ordinary.add(errors[ordinary], wide[ordinary])
        on = acts[ordinary] > 0
        self.active += int(on.sum())
        fired = on.any(dim=0)
        self.fired = fired if self.fired is None else self.fired | fired
