"""Figure 14 (and 19d): how often a score tells two groups apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame, Row, in_order
from saeflow.paper.kinds import Drawing, heat, panels
from saeflow.paper.origins import SCORES, first_method, heat_head, share_tested, short, tests_passed
from saeflow.paper.style import Medium, advance
from saeflow.paper.words import listed, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """For each pair of groups the share of tests that tell them apart by a score (fig. 14, 19d)."""
    columns = in_order(frame.distinct("score"), SCORES)
    present = {*frame.distinct("group_a"), *frame.distinct("group_b")}
    groups = tuple(group for group in GROUPS if group in present)
    found = frame.lookup("score", "group_a", "group_b")
    left = max(advance(group, 0.82) for group in groups) + 0.8
    across = len(columns) if medium.wide else 1
    size = len(groups) - 1
    height = 1.9 * size
    canvas, places = panels(
        medium,
        caption,
        len(columns),
        across=across,
        tall=height,
        drop=4.2,
        below=0.6,
        gap=1.6,
        left=left,
        right=0.6,
        head=3.6,
    )
    for score, box in zip(columns, places, strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        values, tips = _pairs(found, score, groups)
        names = [*groups[1:]] if box.left == places[0].left else [""] * size
        heat(axes, values, (names, [short(group) for group in groups[:-1]]), em=medium.text, tips=tips)
        heat_head(canvas, axes, box, score, "% of tests passed")
    return canvas.figure


def _pairs(
    found: dict[tuple[str, ...], Row], score: str, groups: Sequence[str]
) -> tuple[list[list[float | None]], list[list[str]]]:
    """The triangle below the diagonal; NaN above it, where no cell is drawn."""
    values: list[list[float | None]] = []
    tips: list[list[str]] = []
    for i, below in enumerate(groups[1:], start=1):
        line: list[float | None] = []
        told: list[str] = []
        for j, beside in enumerate(groups[:-1]):
            row = found.get((score, beside, below)) or found.get((score, below, beside))
            line.append(math.nan if j >= i else share_tested(row))
            told.append(f"{beside} against {below}, {score}: {tests_passed(row)}")
        values.append(line)
        tips.append(told)
    return values, tips


def sentence(frame: Frame) -> str:
    """By which score groups are told apart most often, and the pair that is hardest."""
    frame, method = first_method(frame)
    by_score = {
        s: share for s in frame.distinct("score") if (share := _pooled(frame.where(score=s).records)) is not None
    }
    if not by_score:
        return ""
    differ = listed([f"{s} in {percent(share)}" for s, share in by_score.items()])
    told = f"Two groups differ by {differ} of the tests{method}"
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in frame.records:
        pairs.setdefault((row.words("group_a"), row.words("group_b")), []).append(row)
    tested = {pair: share for pair, rows in pairs.items() if (share := _pooled(rows)) is not None}
    hardest = min(tested, key=tested.__getitem__)
    if len(tested) > 1:
        a, b = hardest
        told += f"; hardest to tell apart are {a} and {b} ({percent(tested[hardest])} over the scores)"
    return f"{told}."


def _pooled(rows: Iterable[Row]) -> float | None:
    given = list(rows)
    tests = sum(row.count("tests") for row in given)
    return sum(row.count("passed") for row in given) / tests if tests else None


DRAWING: Final = Drawing(figure, sentence, ("group_a", "group_b", "score", "share"), each=("method",))
