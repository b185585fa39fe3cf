"""Figure 14 (and 19d): how often a score tells two groups apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame, FrameRow, in_order
from saeflow.paper.kinds import Drawing, heat
from saeflow.paper.origins import SCORES, first_method, share_tested, short, tests_passed
from saeflow.paper.style import Medium, panels, title
from saeflow.paper.words import listed, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw, for each pair of groups, the share of tests that tell them apart by a score (fig. 14, 19d)."""
    columns = in_order(frame.distinct("score"), SCORES)
    present = {*frame.distinct("group_a"), *frame.distinct("group_b")}
    groups = tuple(group for group in GROUPS if group in present)
    found = frame.lookup("score", "group_a", "group_b")
    across = len(columns) if medium.wide else 1
    drawn, places = panels(medium, caption, len(columns), 1.9 * (len(groups) - 1), across=across, over=3.6)
    for number, (score, axes) in enumerate(zip(columns, places, strict=True)):
        # the triangle below the diagonal; NaN above it, where no cell is drawn
        values: list[list[float | None]] = []
        tips: list[list[str]] = []
        for i, below in enumerate(groups[1:], start=1):
            rows = [found[score, a, below] or found[score, below, a] for a in groups[:-1]]
            values.append([math.nan if j >= i else share_tested(row) for j, row in enumerate(rows)])
            pairs = zip(groups[:-1], rows, strict=True)
            tips.append([f"{a} against {below}, {score}: {tests_passed(row)}" for a, row in pairs])
        names = groups[1:] if number % across == 0 else [""] * (len(groups) - 1)
        heat(axes, values, (names, [short(group) for group in groups[:-1]]), tips)
        title(axes, score, "% of tests passed")
    return drawn


def sentence(frame: Frame) -> str:
    """How often each score tells groups apart, and the pair that is hardest to tell apart."""
    frame, method = first_method(frame)
    by_score = {
        s: share for s in frame.distinct("score") if (share := _pooled(frame.where(score=s).records)) is not None
    }
    if not by_score:
        return ""
    differ = listed([f"{s} in {percent(share)}" for s, share in by_score.items()])
    text = f"Two groups differ by {differ} of the tests{method}"
    pairs: dict[tuple[str, str], list[FrameRow]] = {}
    for row in frame.records:
        pairs.setdefault((row.words("group_a"), row.words("group_b")), []).append(row)
    tested = {pair: share for pair, rows in pairs.items() if (share := _pooled(rows)) is not None}
    hardest = min(tested, key=tested.__getitem__)
    if len(tested) > 1:
        a, b = hardest
        text += f"; hardest to tell apart are {a} and {b} ({percent(tested[hardest])} over the scores)"
    return f"{text}."


def _pooled(rows: Iterable[FrameRow]) -> float | None:
    given = list(rows)
    tests = sum(row.count("tests") for row in given)
    return sum(row.count("passed") for row in given) / tests if tests else None


DRAWINGS: Final = {
    "separability": Drawing(figure, sentence, ("group_a", "group_b", "score", "share"), each=("method",))
}
