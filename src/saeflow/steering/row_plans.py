"""Plans as functions of hidden states, one plan for each row of the batch: many settings run in one batch.

For the hidden state h of row i at a point, with the plan of that row,

    activate   h_i + D_i                      D [rows 1 d_model]: the sum of s V over the plan's features there
    suppress   h_i + ((F_i - 1) * a(h_i)) V   V, a: decoder rows and activations of all features any row rescales
                                              there; F [rows 1 k]: their factors r, 1 where the row's plan has none

The activations are those of the current hidden state, of the prompt's and of every decoded token. What changes
nothing is -0.0, which leaves every bit of what it is added to: a row whose plan has nothing at a point, or s = 0, or
r = 1, comes out bit-equal. Each point gets an object of its own, so that no layer can get another's vectors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.interventions import EVERYWHERE, Add, Where
from saeflow.sources.architectures import Point, Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.hooks import (
    Change,
    Clock,
    FeatureContribution,
    Placed,
    Timed,
    added,
    dictionary_of,
    indices,
    negative_zeros,
    rescaled_at,
)
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import LanguageModel
from saeflow.steering.plan import SteeringPlan
from saeflow.steering.share_meter import ShareMeter


def row_changes(
    plans: Sequence[SteeringPlan | None],
    dictionaries: Mapping[Site, Dictionary] | None,
    model: LanguageModel,
    *,
    meter: ShareMeter | None = None,
) -> dict[Point, Change]:
    """The functions that apply plans, for `model.intervening`.

        with model.intervening(row_changes([plan, None], dictionaries, model)):
            ...  # a batch of two rows: the first is steered

    Args:
        plans: one plan for every row there will be, or one for each row; None changes nothing.
        dictionaries: where the plans' features are; without any, those of the release the plans name.
        model: the model that will run.
        meter: records how far each row is moved.

    Raises:
        InvalidArgument: for no plan, plans of several releases without dictionaries, or a transcoder's features to
            suppress. Of the functions: for a batch with another number of rows than there are plans.
        UnknownSite: without a dictionary at a site of a plan.
        UnknownFeature: for an index outside its dictionary.
        WidthMismatch: for a dictionary on z that is not this model's.
    """
    if not plans:
        raise InvalidArgument("no plan was given. Pass one for all rows, or one a row; None changes nothing.")
    drafts = _drafts(plans, dictionaries, model)
    clock = Clock()
    where = tuple(plan.tokens if plan else EVERYWHERE for plan in plans)
    watched = {Point(point.layer, Tap.RES) for point in drafts} if meter else set[Point]()
    points = sorted(drafts.keys() | watched, key=_order)
    if meter:
        meter.begin(points, _last_layers(drafts, len(plans)), clock)
    made = {point: drafts[point].made(point, where, model, clock, meter) for point in points}
    return Timed(made, clock)


@dataclass
class _Draft:
    """What rows want at one point."""

    rows: int
    vectors: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    factors: dict[int, dict[int, float]] = field(default_factory=dict[int, dict[int, float]])
    dictionary: Dictionary | None = None

    def made(
        self, point: Point, where: tuple[Where, ...], model: LanguageModel, clock: Clock, meter: ShareMeter | None
    ) -> RowChange:
        added_rows = None
        if self.vectors:
            added_rows = torch.zeros(self.rows, 1, model.d_model)
            added_rows[list(self.vectors), 0] = torch.stack(list(self.vectors.values()))
            added_rows = Placed(negative_zeros(added_rows))
        rescaled = None if self.dictionary is None else _Rescaled.of(self.dictionary, self.factors, self.rows)
        return RowChange(point, self.rows, added_rows, rescaled, _Inside.of(where, clock), model, meter)


def _drafts(
    plans: Sequence[SteeringPlan | None], dictionaries: Mapping[Site, Dictionary] | None, model: LanguageModel
) -> defaultdict[Point, _Draft]:
    drafts: defaultdict[Point, _Draft] = defaultdict(lambda: _Draft(len(plans)))
    rows_of: dict[int, list[int]] = {}
    for row, plan in enumerate(plans):
        rows_of.setdefault(id(plan), []).append(row)
    distinct = {id(plan): plan for plan in plans if plan is not None}
    if dictionaries is None:
        dictionaries = _released(tuple(distinct.values()))
    for key, plan in distinct.items():
        for edit in plan.edits:
            dictionary = dictionary_of(edit, dictionaries).for_model(model)
            if isinstance(edit, Add):
                vector = added(edit, dictionary, model)
                if vector.any():
                    drafts[Point.at(edit.site)].vectors |= dict.fromkeys(rows_of[key], vector)
                continue
            moved = zip(indices(edit.features, dictionary), edit.factors, strict=True)
            if factors := {index: r for index, r in moved if r != 1.0}:
                draft = drafts[rescaled_at(edit, dictionary)]
                draft.factors |= dict.fromkeys(rows_of[key], factors)
                draft.dictionary = dictionary
    return drafts


def _released(plans: Sequence[SteeringPlan]) -> Mapping[Site, Dictionary] | None:
    """The dictionaries of the one release that plans name; None where none is named."""
    releases = sorted({plan.release for plan in plans if plan.release})
    if len(releases) > 1:
        raise InvalidArgument(
            f"the plans are of releases {', '.join(releases)}. Pass the dictionaries all their features are in."
        )
    return load_dictionaries(releases[0]) if releases else None


def _order(point: Point) -> tuple[int, int, bool]:
    """In order of computation: z comes before what attention writes."""
    return point.layer, point.tap.part.rank, point.tap is not Tap.Z


def _last_layers(drafts: Mapping[Point, _Draft], rows: int) -> dict[int, Float[Tensor, " n"]]:
    """Of each layer, 1 for the rows that are changed there and at no later one."""
    last: dict[int, int] = {}
    for point, draft in drafts.items():
        for row in (*draft.vectors, *draft.factors):
            last[row] = max(point.layer, last.get(row, 0))
    found: dict[int, Tensor] = {}
    for row, layer in last.items():
        found.setdefault(layer, torch.zeros(rows))[row] = 1.0
    return found


@dataclass
class _Rescaled:
    """What is rescaled in some rows of a batch."""

    contribution: FeatureContribution
    factors: Placed
    """r - 1, of shape [touched 1 k]."""
    rows: Placed | None
    """The rows touched; None for all of them."""

    @staticmethod
    def of(dictionary: Dictionary, factors: Mapping[int, Mapping[int, float]], rows: int) -> _Rescaled:
        features = sorted({index for of_row in factors.values() for index in of_row})
        touched = sorted(factors)
        table = [[factors[row].get(index, 1.0) - 1.0 for index in features] for row in touched]
        placed = Placed(torch.tensor(table, dtype=torch.float64)[:, None])
        some = None if len(touched) == rows else Placed(torch.tensor(touched))
        return _Rescaled(FeatureContribution(dictionary, features), placed, some)

    def change(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        """What is added to `h`; -0.0 in the other rows."""
        rows = None if self.rows is None else self.rows.like(h, torch.long)
        change = self.contribution.rescaling(h if rows is None else h[rows], self.factors)
        if rows is None:
            return change
        return torch.full_like(h, -0.0).index_copy_(0, rows, change)


@dataclass
class _Inside:
    """Which tokens each row's plan reaches."""

    distinct: tuple[Where, ...]
    row: Placed
    clock: Clock

    @staticmethod
    def of(where: tuple[Where, ...], clock: Clock) -> _Inside | None:
        """None where every plan reaches every token."""
        distinct = tuple(dict.fromkeys(where))
        if distinct == (EVERYWHERE,):
            return None
        return _Inside(distinct, Placed(torch.tensor([distinct.index(one) for one in where])), clock)

    def mask(self, h: Float[Tensor, "batch pos d_in"]) -> Bool[Tensor, "n pos 1"]:
        """Where changes apply."""
        masks = torch.stack([self.clock.inside(where) for where in self.distinct]).to(h.device)
        row = self.row.like(h, torch.long)
        rows = max(len(row), masks.shape[1])
        masks = masks.expand(-1, rows, -1)
        return masks[row.expand(rows), torch.arange(rows, device=h.device)][..., None]


class RowChange:
    """The function of one point: h plus what each row's plan adds there. See the head of the file."""

    def __init__(
        self,
        point: Point,
        rows: int,
        vectors: Placed | None,
        rescaled: _Rescaled | None,
        inside: _Inside | None,
        model: LanguageModel,
        meter: ShareMeter | None,
    ) -> None:
        """`rows` of 1 takes a batch of any size."""
        self._point, self._rows = point, rows
        self._vectors, self._rescaled, self._inside = vectors, rescaled, inside
        self._model, self._meter = model, meter

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        """The changed hidden state.

        Raises:
            InvalidArgument: when the batch has another number of rows than there are plans.
        """
        if self._rows not in (1, len(h)):
            raise InvalidArgument(
                f"there are plans for {self._rows} rows, and the batch at {self._point} has {len(h)}. Pass one "
                "plan for all rows, or one a row (prompts times num_return_sequences)."
            )
        moved = self._moved(h)
        if self._meter:
            self._meter.note(self._point, h, None if moved is None else self._in_stream(h, moved))
        return h if moved is None else h + moved

    def _moved(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "#batch #pos d_in"] | None:
        moved = None if self._vectors is None else self._vectors.like(h)
        if self._rescaled is not None:
            change = self._rescaled.change(h)
            moved = change if moved is None else moved + change
        if self._inside is None or moved is None:
            return moved
        return torch.where(self._inside.mask(h), moved, -0.0)

    def _in_stream(
        self, h: Float[Tensor, "batch pos d_in"], moved: Float[Tensor, "#batch #pos d_in"]
    ) -> Float[Tensor, "#batch #pos d_model"]:
        """What the stream gets: of a change of z, what attention writes with it less what it writes without."""
        if self._point.tap is not Tap.Z:
            return moved
        block, paths = self._model.block(self._point.layer), self._model.architecture
        names = [paths.o_proj] if paths.att_norm is None else [paths.o_proj, paths.att_norm]
        with_it, without = h + moved, h
        for module in map(block.get_submodule, names):
            # not called as a module: its hooks are for the pass that is running
            with_it, without = (cast("Tensor", module.forward(x)) for x in (with_it, without))
        return with_it - without
