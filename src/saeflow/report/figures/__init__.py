"""Figures of summary tables: one painter a table, one style, SVG, PNG and PDF. No torch.

`draw(table)` gives the figures of any table of a results folder, `save(figure, path)` writes one. The
package imports matplotlib, and nothing else of saeflow imports this package before a figure is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from matplotlib.figure import Figure

from saeflow.errors import InvalidArgument
from saeflow.report.figures import (
    doses,
    matching,
    scores,
    shares,
    steering,
    steering_layers,
    steering_themes,
    transition,
    trials,
)
from saeflow.report.figures.frame import Cell, Frame, TableLike
from saeflow.report.figures.saving import save, svg_text
from saeflow.report.figures.style import COLUMN, MEDIA, PAGE, PHONE, SPREAD, Medium, house, nothing

Painter = Callable[[Frame, Medium, str], Figure]


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a table is drawn: by what, what it cannot do without, and one figure for each value of which columns."""

    paint: Painter
    needs: tuple[str, ...]
    each: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plate:
    """A finished figure.

    Attributes:
        name: a file name without ending, its own within a table.
        of: the values it stands for, in words; empty where the table has one figure.
        figure: as drawn.
        keys: those values by column.
    """

    name: str
    of: str
    figure: Figure
    keys: Mapping[str, str] = field(default_factory=dict[str, str])


FIGURES: Final[Mapping[str, Drawing]] = {
    "shares_by_layer": Drawing(shares.shares_by_layer, ("dataset", "layer", "group", "share"), ("method",)),
    "shares_by_dataset": Drawing(shares.shares_by_dataset, ("dataset", "group", "share"), ("method",)),
    "scores": Drawing(scores.scores, ("layer", "group", "score"), ("method",)),
    "separability": Drawing(scores.separability, ("group_a", "group_b", "score", "share"), ("method",)),
    "activity_differences": Drawing(
        scores.activity_differences, ("module", "score", "kind", "share"), ("method",)
    ),
    "transition": Drawing(scores.transition, ("group_a", "group_b", "probability"), ("method",)),
    "most_probable": Drawing(shares.most_probable, ("layer", "group", "features"), ("method",)),
    "methods": Drawing(shares.methods, ("method", "dataset", "group", "share")),
    "agreement": Drawing(matching.agreement, ("method_a", "method_b", "part", "layer")),
    "by_strategy": Drawing(trials.by_strategy, ("strategy", "group", "deactivated")),
    "by_strategy_layer": Drawing(doses.by_strategy_layer, ("strategy", "layer", "deactivated")),
    "by_rescale": Drawing(doses.by_rescale, ("r", "group", "change")),
    "one_predecessor": Drawing(trials.one_predecessor, ("group", "removed", "change")),
    "groups_by_strategy": Drawing(shares.groups_by_strategy, ("strategy", "group", "share")),
    "new_group": Drawing(doses.new_group, ("group", "removed", "new_group", "probability"), ("strategy",)),
    "counts": Drawing(shares.counts, ("layer", "group", "features")),
    "table_1": Drawing(trials.table_1, ("strategy", "deactivated")),
    "paired": Drawing(trials.paired, ("strategy_a", "strategy_b", "difference")),
    "remaining": Drawing(doses.remaining, ("group", "outcome", "share")),
    "control_match": Drawing(trials.control_match, ("strategy", "removed", "median")),
    "agreement_by_layer": Drawing(matching.agreement, ("method_a", "method_b", "part", "layer")),
    "calibrated_thresholds": Drawing(matching.calibrated_thresholds, ("layer", "part", "threshold")),
    "steering_by_layer": Drawing(
        steering.by_layer, ("theme", "direction", "method", "layer", "value", "score"), ("theme", "direction")
    ),
    "steering_by_value": Drawing(
        steering.by_value, ("theme", "direction", "method", "value", "score"), ("theme", "direction")
    ),
    "steering_features": Drawing(
        steering_layers.theme_features, ("theme", "layer", "part", "features", "starts")
    ),
    "steering_by_share": Drawing(
        steering_layers.themes_by_share,
        ("theme", "direction", "method", "share_limit", "score"),
        ("direction",),
    ),
    "steering_best": Drawing(
        steering_themes.themes_best, ("theme", "direction", "method", "score"), ("direction",)
    ),
    "steering_paired": Drawing(
        steering_themes.themes_paired,
        ("theme", "direction", "method_a", "method_b", "difference"),
        ("direction",),
    ),
    "steering_sensitivity": Drawing(
        steering_themes.themes_sensitivity, ("theme", "direction", "method", "mean_score"), ("direction",)
    ),
    "transition_permutations": Drawing(
        transition.permutations, ("pair", "kind", "method", "matched", "applied", "ev"), ("pair",)
    ),
    "transition_top_k": Drawing(
        transition.top_k, ("pair", "kind", "weights", "k", "entries", "applied", "ev"), ("pair",)
    ),
    "transition_loss": Drawing(transition.losses, ("pair", "kind", "map", "change"), ("pair",)),
    "transition_paired": Drawing(transition.differences, ("pair", "a", "b", "difference"), ("pair",)),
}
"""Every table that has a figure."""


def draw(table: TableLike, *, medium: Medium = PAGE) -> tuple[Plate, ...]:
    """The figures of a table: one, or one for each method, strategy, or theme and direction it holds.

    A table without rows gives a figure that says so.

    Raises:
        InvalidArgument: for a table that has no figure, naming those that have one, or one that lacks a
            column its figure needs.
    """
    frame = Frame.of(table)
    if frame.name not in FIGURES:
        raise InvalidArgument(
            f"table {frame.name!r} has no figure. Those that have one: {', '.join(FIGURES)}."
        )
    drawing = FIGURES[frame.name]
    missing = [column for column in drawing.needs if column not in frame.columns]
    if missing and frame.rows:
        raise InvalidArgument(
            f"table {frame.name!r} lacks the column {', '.join(missing)}; it has {', '.join(frame.columns)}. "
            "Write the summary again."
        )
    with house():
        parted = _parted(frame, drawing.each)
        if len(parted) < 2:
            keys = parted[0][0] if parted else {}
            of = ", ".join(keys.values())
            return (Plate(frame.name, of, _painted(drawing, frame, medium, of), keys),)
        plates: list[Plate] = []
        names: set[str] = set()
        for keys, rows in parted:
            of = ", ".join(keys.values())
            name = _new_name("-".join((frame.name, *map(_slug, keys.values()))), names)
            plates.append(Plate(name, of, _painted(drawing, rows, medium, of), keys))
        return tuple(plates)


def _parted(frame: Frame, columns: Sequence[str]) -> list[tuple[dict[str, str], Frame]]:
    """The rows by the values of these columns, in the order they first appear; columns it lacks are passed over."""
    known = [column for column in columns if column in frame.columns]
    found = dict.fromkeys(tuple(row.words(column) for column in known) for row in frame.records)
    keys = [dict(zip(known, values, strict=True)) for values in found if all(values)] if known else []
    return [(values, frame.where(**values)) for values in keys]


def _new_name(name: str, taken: set[str]) -> str:
    """`name`, or with a number where another value has the same in letters of a file name; noted as taken."""
    fresh = next(
        found for i in range(1, len(taken) + 2) if (found := name if i == 1 else f"{name}-{i}") not in taken
    )
    taken.add(fresh)
    return fresh


def agreement_by_layer(rows: Sequence[Mapping[str, Cell]], *, medium: Medium = PAGE) -> Figure:
    """How far matching methods agree, by layer (C.4).

    `rows` have method_a, method_b, part ("res", "mlp", "att"), layer, `same` and `in_top_k` (shares in
    [0, 1]) and n.

    Raises:
        InvalidArgument: when a row lacks a column.
    """
    return _of_rows("agreement_by_layer", "Agreement of matching methods", "C.4", rows, medium)


def calibrated_thresholds(rows: Sequence[Mapping[str, Cell]], *, medium: Medium = PAGE) -> Figure:
    """Thresholds calibrated against a null by layer and part, beside the fixed 0.5 and 0.15 of B.2.

    `rows` have layer, part, threshold, null_q50, null_q99 (scores), kept and kept_fixed (shares in [0, 1],
    or numbers of features).

    Raises:
        InvalidArgument: when a row lacks a column.
    """
    return _of_rows("calibrated_thresholds", "Calibrated thresholds", "section 3.3, B.2", rows, medium)


def _of_rows(name: str, title: str, paper: str, rows: Sequence[Mapping[str, Cell]], medium: Medium) -> Figure:
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    cells = tuple(tuple(row.get(column) for column in columns) for row in rows)
    return draw(Frame(name, title, paper, "", columns, cells), medium=medium)[0].figure


def _painted(drawing: Drawing, frame: Frame, medium: Medium, of: str) -> Figure:
    cited = frame.paper and (
        "beyond the paper" if "beyond" in frame.paper else f"cf. {frame.paper} of arXiv 2502.03032"
    )
    told = [frame.title or frame.name, of, cited]
    caption = " · ".join(part for part in told if part)
    return drawing.paint(frame, medium, caption) if frame.rows else nothing(medium, caption)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "other"


__all__ = [
    "COLUMN", "FIGURES", "MEDIA", "PAGE", "PHONE", "SPREAD", "Drawing", "Frame", "Medium", "Plate", "TableLike",
    "agreement_by_layer", "calibrated_thresholds", "draw", "save", "svg_text",
]  # fmt: skip
