"""Plans as functions of hidden states, with one plan per row of the batch, so that many settings share a batch.

For the hidden state h_i of row i at a point, with the plan of that row,

    activate   h_i + D_i                      D [rows 1 d_model]: the sum of s V over the plan's features there
               h_i + (S_i * (a(h_i) > 0)) V   where a plan adds features only where they are active
    suppress   h_i + ((F_i - 1) * a(h_i)) V   V, a: decoder rows and activations of all features any row rescales
                                              there; F [rows 1 k]: their factors r, 1 where the row's plan has none

where activations are read from the current hidden state of each prompt or decoded token. Rows whose plans keep the norm
are scaled back to the length of h_i at every point. A zero change is represented as -0.0, which leaves every bit of
what it is added to: a row whose plan has nothing at a point, or s = 0, or r = 1, stays bit-identical. Each point has
its own `RowChange`, so no layer can receive another's vectors.

`ShareMeter` measures how far the plans move the stream while the model runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.interventions import EVERYWHERE, Add, Rescale, Where
from saeflow.sources.architectures import Point, Tap, named
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.hooks import (
    ActiveAddition,
    Change,
    Clock,
    FeatureContribution,
    Placed,
    Timed,
    active_at,
    added,
    at_norm_of,
    dictionary_of,
    indices,
    negative_zeros,
    rescaled_at,
)
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import LanguageModel
from saeflow.steering.plan import SteeringPlan


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
        plans: a single plan for all rows of any batch, or one per row; None changes nothing.
        dictionaries: of the plans' sites; None loads those of the release the plans name.
        model: the model that will run.
        meter: records how far each row is moved.

    Raises:
        InvalidArgument: without plans, for plans of several releases without dictionaries, or for a transcoder's
            features to suppress or to add where they are active. The returned functions raise it when a batch has
            another number of rows than there are plans.
        UnknownSite: without a dictionary at a site of a plan.
        UnknownFeature: for an index outside its dictionary.
        WidthMismatch: for a dictionary on z that is not this model's.
    """
    if not plans:
        raise InvalidArgument("no plan was given. Pass one for all rows, or one a row; None changes nothing.")
    rows_of: dict[int, list[int]] = {}
    for row, plan in enumerate(plans):
        rows_of.setdefault(id(plan), []).append(row)
    distinct = {id(plan): plan for plan in plans if plan is not None}
    if dictionaries is None:
        releases = sorted({plan.release for plan in distinct.values() if plan.release})
        if len(releases) > 1:
            raise InvalidArgument(
                f"the plans are of releases {', '.join(releases)}. Pass the dictionaries all their features are in."
            )
        dictionaries = load_dictionaries(releases[0]) if releases else None

    # 1. collect by point and row: vectors to add, and features to rescale or to add where active
    vectors: defaultdict[Point, dict[int, Tensor]] = defaultdict(dict)
    factors: defaultdict[Point, dict[int, dict[int, float]]] = defaultdict(dict)
    strengths: defaultdict[Point, dict[int, dict[int, float]]] = defaultdict(dict)
    read: dict[Point, Dictionary] = {}
    for key, plan in distinct.items():
        for edit in plan.edits:
            if isinstance(edit, Rescale) or (isinstance(edit, Add) and edit.only_active):
                point, values = _read_at(edit, dictionary := dictionary_of(edit, dictionaries).for_model(model))
                if values:
                    kind = factors if isinstance(edit, Rescale) else strengths
                    kind[point] |= dict.fromkeys(rows_of[key], values)
                    read[point] = dictionary
                continue
            vector = added(edit, dictionaries, model)
            if vector.any():
                here = vectors[Point.at(edit.site)]
                here |= {row: vector + here[row] if row in here else vector for row in rows_of[key]}

    # 2. sort the points, and with a meter the residual points, in order of computation: z precedes attention's output
    changed = vectors.keys() | factors.keys() | strengths.keys()
    watched = {Point(point.layer, Tap.RES) for point in changed} if meter else set[Point]()
    points = sorted(changed | watched, key=lambda point: (point.layer, point.tap.part.rank, point.tap is not Tap.Z))
    clock = Clock()
    if meter:
        rows = {point: [*vectors[point], *factors[point], *strengths[point]] for point in changed}
        meter.begin(points, rows, len(plans), clock)

    # 3. make a function for each point
    where = tuple(plan.tokens if plan else EVERYWHERE for plan in plans)
    kept = tuple(row for row, plan in enumerate(plans) if plan and plan.keep_norm)
    made: dict[Point, Change] = {}
    for point in points:
        of_rows = (vectors[point], factors[point], strengths[point])
        made[point] = RowChange(point, where, *of_rows, kept, read.get(point), clock, model, meter)
    return Timed(made, clock)


def _read_at(edit: Rescale | Add, dictionary: Dictionary) -> tuple[Point, dict[int, float]]:
    """For an edit that reads activations, where it acts, and the r or s of each feature that it changes."""
    adds = isinstance(edit, Add)
    point, none = (active_at(edit, dictionary), 0.0) if adds else (rescaled_at(edit, dictionary), 1.0)
    values = edit.strengths.values() if adds else edit.factors
    moved = zip(indices(edit.features, dictionary), values, strict=True)
    return point, {index: value for index, value in moved if value != none}


@dataclass
class RowChange:
    """The function for one point: h plus what each row's plan adds there, as in the module docstring.

    Attributes:
        point: where it acts.
        where: which tokens each row's plan reaches; a single entry serves a batch of any size.
        vectors: row -> the vector to add [d_model].
        factors: row -> the factor r of each feature to rescale, by index.
        strengths: row -> the s of each feature to add only where it is active, by index.
        kept: rows whose hidden states keep their norms.
        dictionary: the dictionary of these features; None without any.
        clock: which tokens the running forward pass holds.
        model: the model that runs.
        meter: records how far each row is moved.
    """

    point: Point
    where: tuple[Where, ...]
    vectors: Mapping[int, Tensor]
    factors: Mapping[int, Mapping[int, float]]
    strengths: Mapping[int, Mapping[int, float]]
    kept: Sequence[int]
    dictionary: Dictionary | None
    clock: Clock
    model: LanguageModel
    meter: ShareMeter | None

    def __post_init__(self) -> None:
        """Lay out the additions [rows 1 d_model], r - 1 and s [touched 1 k], and each row's reach over tokens."""
        n = len(self.where)
        self._added: Placed | None = None
        if self.vectors:
            table = torch.zeros(n, 1, self.model.d_model)
            table[list(self.vectors), 0] = torch.stack(list(self.vectors.values()))
            self._added = Placed(negative_zeros(table))
        self._parts: list[tuple[Placed | None, Change]] = []
        if self.dictionary is not None and self.factors:
            features, less, touched = _by_row(self.factors, n, 1.0)
            contribution = FeatureContribution(self.dictionary, features)
            self._parts.append((touched, lambda h: contribution.rescaling(h, less)))
        if self.dictionary is not None and self.strengths:
            features, values, touched = _by_row(self.strengths, n, 0.0)
            named = [FeatureId(self.dictionary.site, index) for index in features]
            addition = ActiveAddition(self.dictionary, named, self.model)
            self._parts.append((touched, lambda h: addition.adding(h, values)))
        self._keeps = Placed(torch.tensor([row in self.kept for row in range(n)])) if self.kept else None
        self._reaches = tuple(dict.fromkeys(self.where))
        self._reach_of = Placed(torch.tensor([self._reaches.index(one) for one in self.where]))

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        """Return the changed hidden states.

        Raises:
            InvalidArgument: when there are several plans, and the batch has another number of rows.
        """
        if len(self.where) not in (1, len(h)):
            raise InvalidArgument(
                f"there are plans for {len(self.where)} rows, and the batch at {self.point} has {len(h)}. Pass one "
                "plan for all rows, or one a row (prompts times num_return_sequences)."
            )
        moved = self._moved(h)
        if self.meter:
            self.meter.note(self.point, h, None if moved is None else self._in_stream(h, moved))
        return h if moved is None else h + moved

    def _moved(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "#batch #pos d_in"] | None:
        moved = None if self._added is None else self._added.like(h)
        for rows, part in self._parts:
            touched = None if rows is None else rows.like(h, torch.long)
            change = part(h if touched is None else h[touched])
            if touched is not None:
                change = torch.full_like(h, -0.0).index_copy_(0, touched, change)
            moved = change if moved is None else moved + change
        if moved is not None and self._keeps is not None:
            keeps = self._keeps.like(h, torch.bool)[:, None, None]
            moved = torch.where(keeps, negative_zeros(at_norm_of(h, h + moved) - h), moved)
        if self._reaches == (EVERYWHERE,) or moved is None:
            return moved
        masks = torch.stack([self.clock.inside(where) for where in self._reaches]).to(h.device)
        reach = self._reach_of.like(h, torch.long)
        n = max(len(reach), masks.shape[1])
        mask = masks.expand(-1, n, -1)[reach.expand(n), torch.arange(n, device=h.device)]
        return torch.where(mask[..., None], moved, -0.0)

    def _in_stream(
        self, h: Float[Tensor, "batch pos d_in"], moved: Float[Tensor, "#batch #pos d_in"]
    ) -> Float[Tensor, "#batch #pos d_model"]:
        """The change in the stream: for a change of z, what attention writes with it less what it writes without."""
        if self.point.tap is not Tap.Z:
            return moved
        block, paths = self.model.block(self.point.layer), self.model.architecture
        names = [named(paths.o_proj, "z"), *([] if paths.att_norm is None else [paths.att_norm])]
        with_it, without = h + moved, h
        for module in map(block.get_submodule, names):
            # call forward directly, since the module's hooks belong to the running pass
            with_it, without = (cast("Tensor", module.forward(x)) for x in (with_it, without))
        return with_it - without


def _by_row(
    values: Mapping[int, Mapping[int, float]], n: int, unchanged: float
) -> tuple[list[int], Placed, Placed | None]:
    """The features that any row changes, values less `unchanged` [touched 1 k], and the rows touched; None for all."""
    features = sorted({index for of_row in values.values() for index in of_row})
    touched = sorted(values)
    less = [[values[row].get(index, unchanged) - unchanged for index in features] for row in touched]
    placed = Placed(torch.tensor(less, dtype=torch.float64)[:, None])
    return features, placed, None if len(touched) == n else Placed(torch.tensor(touched))


class ShareMeter:
    """Measures how far plans move the stream, from what `RowChange` reports; use one object per batch.

    Changes at several layers accumulate in the stream, so each row of a batch has two shares. Let d_l be the sum of all
    changes by the row's plan at the sites of layer l, and h_l the stream after layer l, with the changes of all earlier
    sites but before the change at this point itself:

        layer l   the mean over tokens of |d_l| / |h_l|
        total     the mean over tokens of |d_0 + ... + d_L| / |h_L|, with L the last layer the plan changes

    The sum counts what a plan adds, not how later layers transform it. `sizes` estimates similar shares in advance,
    relative to the centred norm of unsteered states.

    Attributes:
        live: which rows still count; None for all. Padding follows a text that has ended, and its hidden states
            mean nothing.
    """

    def __init__(self, *, skip: int = 0) -> None:
        """Leave out padding and the first `skip` tokens of each text: 1 leaves out a begin-of-text token."""
        self.live: Bool[Tensor, " batch"] | None = None
        self._skip = skip
        self._clock = Clock()
        self._first: Point | None = None
        self._last: dict[int, Float[Tensor, " n"]] = {}
        """Layer -> 1 for each row whose plan changes this layer last, else 0."""
        self._tokens = torch.zeros(())
        self._weights = torch.zeros(0, 0)
        self._layers: dict[int, Tensor] = {}
        self._total: Tensor | None = None
        self._in_layer: Tensor | None = None
        self._carried: Tensor | None = None

    def begin(self, points: Sequence[Point], changed: Mapping[Point, Sequence[int]], n: int, clock: Clock) -> None:
        """Announce what will be reported.

        Args:
            points: every point that will be reported, in order of computation, with the residual point of each layer.
            changed: the rows that are changed at each point.
            n: how many rows there are plans for.
            clock: which tokens the running forward pass holds.
        """
        self._first, self._clock = points[0] if points else None, clock
        last: dict[int, int] = {}
        for point, rows in changed.items():
            for row in rows:
                last[row] = max(point.layer, last.get(row, 0))
        for row, layer in last.items():
            self._last.setdefault(layer, torch.zeros(n))[row] = 1.0

    def note(
        self, point: Point, h: Float[Tensor, "batch pos d_in"], change: Float[Tensor, "#batch #pos d_model"] | None
    ) -> None:
        """Record the hidden states `h` entering `point`, and the `change` made to the stream; None for no change."""
        if point == self._first:
            self._in_layer = self._carried = None
            counted = (self._clock.positions >= self._skip).to(h.device, torch.float32).expand(h.shape[:2])
            self._weights = counted if self.live is None else counted * self.live.float()[:, None]
            self._tokens = self._tokens + self._weights.sum(dim=1)
        if change is not None:
            # a change that is the same at every token has a single position, and broadcasts
            step = change.float()
            self._in_layer = step if self._in_layer is None else self._in_layer + step
        if point.tap is not Tap.RES or self._in_layer is None:
            return
        layer, size = point.layer, _length(h).clamp_min_(torch.finfo(torch.float32).tiny)
        self._carried = self._in_layer if self._carried is None else self._carried + self._in_layer
        share = self._sum(_length(self._in_layer) / size)
        self._layers[layer] = self._layers[layer] + share if layer in self._layers else share
        if layer in self._last:
            share = self._sum(_length(self._carried) / size) * self._last[layer].to(share)
            self._total = share if self._total is None else self._total + share
        self._in_layer = None

    def by_layer(self) -> dict[int, list[float]]:
        """For each changed layer, the share of each row; 0 if a row's plan has nothing there."""
        return {layer: self._mean(shares) for layer, shares in sorted(self._layers.items())}

    def largest(self, rows: int) -> list[float]:
        """For each of `rows` rows, the largest share of any layer."""
        layers = self.by_layer().values()
        return [max((shares[row] for shares in layers), default=0.0) for row in range(rows)]

    def total(self, rows: int) -> list[float]:
        """For each of `rows` rows, the share of the sum of all changes."""
        return [0.0] * rows if self._total is None else self._mean(self._total)

    def _sum(self, shares: Float[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
        """Sum over the tokens that count; at padding, hidden states may be anything."""
        return shares.masked_fill(self._weights == 0, 0.0).sum(dim=1)

    def _mean(self, sums: Float[Tensor, " batch"]) -> list[float]:
        return (sums / self._tokens.clamp_min(1)).tolist()


def _length(x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
