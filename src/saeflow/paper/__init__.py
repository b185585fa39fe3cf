"""One module per figure of the paper: how its table is drawn, its sentence, and the claims it checks. No torch.

    fig07_rescale.py   figure 7: `figure` draws its table, `sentence` says what it shows, `claim_loss` checks a claim
    kinds.py           the chart types they are made of; style.py colours and panels; saving.py SVG, PNG and PDF
    trials.py, origins.py, steering.py, transition.py   what the figures of one experiment share
    claims.py          claims.toml and items.toml: what the paper says; verdicts.py how a claim is judged
    evidence.py        the results of a run, as claims read them
    results.py         the page of a results folder
    comparison.py      two or more dictionaries side by side

`draw(table)` returns the figures of any table of a results folder, `reading(table)` its sentence, and
`save(figure, path)` writes a figure. The package imports matplotlib; the rest of saeflow imports it only to draw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Final

from matplotlib.figure import Figure

from saeflow.errors import InvalidArgument
from saeflow.experiments.results import Cell, SummaryTable
from saeflow.paper.frame import Frame
from saeflow.paper.kinds import Drawing
from saeflow.paper.saving import printed_svg, save, svg_text
from saeflow.paper.style import COLUMN, MEDIA, PAGE, PHONE, SPREAD, Medium, house, nothing

PRINTS: Final = 256
"""The most figures whose SVG is kept: a report shows again what the pages of its stages showed."""
_PRINTED: Final[dict[str, bytes]] = {}
"""SVG by what determines it."""


@dataclass(frozen=True, eq=False)
class Plate:
    """A figure of a table.

    Attributes:
        name: a file name without extension, unique within a table.
        of: the column values it shows, in words; empty for a table that is not split by values.
        rows: the rows that it shows.
        medium: where it will be shown.
        keys: those values by column.
    """

    name: str
    of: str
    rows: Frame
    medium: Medium
    keys: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def figure(self) -> Figure:
        """The figure, drawn when first asked for."""
        with house(self.medium.text):
            return _painted(self.rows, self.medium, self.of)

    @property
    def svg(self) -> bytes:
        """The SVG from matplotlib, for `svg_text`; what looks the same as an earlier figure is not drawn again."""
        looks = repr((self.rows, self.medium, self.of))
        printed = _PRINTED.get(looks)
        if printed is None:
            if len(_PRINTED) >= PRINTS:
                _PRINTED.clear()
            printed = _PRINTED[looks] = printed_svg(self.figure)
        return printed


_MODULES: Final = (
    "fig05_layers fig12_datasets fig03_scores fig14_separability fig04_activity fig13_contexts fig17_counts "
    "fig18_methods matching fig06_strategies fig07_rescale fig08_one_predecessor fig15_groups table1 "
    "beyond_deactivation fig09_layers fig10_strengths fig17_features steering_comparisons steering_best "
    "fig23_permutations fig24_top_k beyond_transition comparison"
)
FIGURES: Final[Mapping[str, Drawing]] = {
    name: drawing
    for module in _MODULES.split()
    for name, drawing in import_module(f"saeflow.paper.{module}").DRAWINGS.items()
}
"""How each table with a figure is drawn, by its name."""


def draw(table: SummaryTable, *, medium: Medium = PAGE) -> tuple[Plate, ...]:
    """The figures of a table: one, or one for each method, strategy, or theme and direction it holds.

    They are drawn when they are first used. A table without rows gives a figure that says so.

    Raises:
        InvalidArgument: for a table without a figure (the message lists those with one), or one that lacks a
            column its figure needs.
    """
    frame = Frame.read(table)
    if frame.name not in FIGURES:
        raise InvalidArgument(f"table {frame.name!r} has no figure. Those that have one: {', '.join(FIGURES)}.")
    drawing = FIGURES[frame.name]
    missing = [column for column in drawing.needs if column not in frame.columns]
    if missing and frame.rows:
        raise InvalidArgument(
            f"table {frame.name!r} lacks the column {', '.join(missing)}; it has {', '.join(frame.columns)}. "
            "Write the summary again."
        )
    parted = _parted(frame, drawing.each)
    if len(parted) < 2:
        keys = parted[0][0] if parted else {}
        return (Plate(frame.name, ", ".join(keys.values()), frame, medium, keys),)
    plates: list[Plate] = []
    names: set[str] = set()
    for keys, rows in parted:
        slugs = (re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-") or "other" for value in keys.values())
        name = _new_name("-".join((frame.name, *slugs)), names)
        plates.append(Plate(name, ", ".join(keys.values()), rows, medium, keys))
    return tuple(plates)


def reading(table: SummaryTable) -> str:
    """A sentence or two on what a table shows; empty if it has no figure, no rows, or nothing to report.

    A sentence reports and does not explain. It names the method, gives intervals where the table has them, and leaves
    out whatever the table leaves open.
    """
    frame = Frame.read(table)
    return FIGURES[frame.name].sentence(frame) if frame.name in FIGURES and frame.rows else ""


def _parted(frame: Frame, columns: Sequence[str]) -> list[tuple[dict[str, str], Frame]]:
    """The rows by the values of these columns, in order of first appearance; columns it lacks and gaps are left out."""
    known = [column for column in columns if column in frame.columns]
    found = dict.fromkeys(tuple(row.words(column) for column in known) for row in frame.records)
    keys = [dict(zip(known, values, strict=True)) for values in found if all(values)] if known else []
    return [(values, frame.where(**values)) for values in keys]


def _new_name(name: str, taken: set[str]) -> str:
    """`name`, numbered if another value already gave the same file name; adds the result to `taken`."""
    fresh = next(found for i in range(1, len(taken) + 2) if (found := name if i == 1 else f"{name}-{i}") not in taken)
    taken.add(fresh)
    return fresh


def agreement_by_layer(rows: Sequence[Mapping[str, Cell]], *, medium: Medium = PAGE) -> Figure:
    """Draw how far matching methods agree, by layer (C.4).

    `rows` have method_a, method_b, part ("res", "mlp", "att"), layer, `same` and `in_top_k` (shares in
    [0, 1]) and n.

    Raises:
        InvalidArgument: when a row lacks a column.
    """
    return _of_rows("agreement_by_layer", "Agreement of matching methods", "C.4", rows, medium)


def calibrated_thresholds(rows: Sequence[Mapping[str, Cell]], *, medium: Medium = PAGE) -> Figure:
    """Draw thresholds calibrated against a null by layer and part, beside the fixed 0.5 and 0.15 of B.2.

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


def _painted(frame: Frame, medium: Medium, of: str) -> Figure:
    cited = frame.paper and (
        "beyond the paper" if "beyond" in frame.paper else f"cf. {frame.paper} of arXiv 2502.03032"
    )
    parts = [frame.title or frame.name, of, cited]
    caption = " · ".join(part for part in parts if part)
    return FIGURES[frame.name].figure(frame, medium, caption) if frame.rows else nothing(medium, caption)


__all__ = [
    "COLUMN",
    "FIGURES",
    "MEDIA",
    "PAGE",
    "PHONE",
    "SPREAD",
    "Drawing",
    "Frame",
    "Medium",
    "Plate",
    "agreement_by_layer",
    "calibrated_thresholds",
    "draw",
    "reading",
    "save",
    "svg_text",
]
