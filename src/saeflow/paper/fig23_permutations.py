"""Figure 23: explained variance of permutations and of the best cosine, each in three units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Row, in_order, only
from saeflow.paper.kinds import Drawing
from saeflow.paper.style import INK, Medium
from saeflow.paper.transition import (
    BASELINES,
    LOWEST,
    TONES,
    DotLine,
    applied_signs,
    baselines_beside,
    best_row,
    dots,
    map_told,
    one_pair,
    shown_as,
)
from saeflow.paper.words import decimal_interval

METHODS: Final = {
    "cosine top-1": "best cosine",
    "permutation": "permutation",
    "permutation + encoder": "+ encoder",
    "permutation + encoder + b_enc": "+ encoder + b_enc",
}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Explained variance of permutations and of the best cosine, each in three units (fig. 23)."""
    lines = [_baseline(row) for row in _baselines(frame, skip=("mean",))]
    for method in in_order(frame.where(kind="matching").distinct("method"), tuple(METHODS)):
        rows = frame.where(kind="matching", method=method)
        for matched in rows.distinct("matched"):
            here = rows.where(matched=matched).records
            marks = tuple(
                (found, TONES.get(row.words("applied"), INK), map_told(row, found, f"matched {matched}"), False)
                for row in here
                if (found := row.estimate("ev"))
            )
            first = matched == "raw"
            name = METHODS.get(method, method) if first else ""
            several = len(rows.distinct("matched")) > 1
            lines.append(DotLine(name, f"matched {matched}" if several else "", marks, first))
    return dots(lines, medium, caption, "explained variance", floor=LOWEST, signs=applied_signs())


def _baselines(frame: Frame, *, skip: Sequence[str] = ()) -> list[Row]:
    column = "method" if "method" in frame.columns else "weights"
    found = {row.words(column): row for row in frame.where(kind="baseline").records}
    return [found[name] for name in in_order(found, tuple(BASELINES)) if name not in skip]


def _baseline(row: Row) -> DotLine:
    name = BASELINES.get(row.words("method"), row.words("method"))
    found = row.estimate("ev")
    marks = () if found is None else ((found, INK, f"{name}: {decimal_interval(found, 3)}", True),)
    return DotLine(name, "", marks)


def sentence(frame: Frame) -> str:
    """The best cosine against the best permutation, in the units that suit each, and what folding does."""
    here = one_pair(frame)
    cosine = best_row(here.where(method="cosine top-1"))
    names = [name for name in here.where(kind="matching").distinct("method") if name.startswith("permutation")]
    tops = [row for name in names if (row := best_row(here.where(method=name))) is not None]
    top = max(tops, key=lambda row: row.number("ev") or 0.0) if tops else None
    if cosine is None or top is None:
        return ""
    told = (
        f"The best cosine explains {shown_as(cosine)} of the variance (applied {cosine.words('applied')}), the best "
        f"permutation {shown_as(top)} ({top.words('method')}, matched {top.words('matched')}, applied "
        f"{top.words('applied')}){baselines_beside(here, 'method')}."
    )
    raw, folded = (only(here, method="cosine top-1", applied=how) for how in ("raw", "folded"))
    if raw is None or folded is None or raw.number("ev") is None or folded.number("ev") is None:
        return told
    return f"{told} Folded when applied, the best cosine explains {shown_as(folded)} in place of {shown_as(raw)}."


DRAWING: Final = Drawing(figure, sentence, ("pair", "kind", "method", "matched", "applied", "ev"), each=("pair",))
