"""Beyond figure 23: explained variance of one map less that of another, on the same tokens."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, only
from saeflow.paper.kinds import DotRow, Drawing, Mark
from saeflow.paper.style import Medium
from saeflow.paper.transition import named_maps, one_pair
from saeflow.paper.words import decimal_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Explained variance of one map less that of another, on the same tokens."""
    rows: list[DotRow] = []
    for row in frame.records:
        found, a, b = row.estimate("difference"), row.words("a"), row.words("b")
        if found is not None:
            rows.append(
                DotRow(f"{a}\nless {b}", [Mark(found, f"{a} less {b}: {decimal_interval(found, 3)}")], height=1.7)
            )
    return named_maps(rows, medium, caption, "difference in explained variance", within=(-1.0, 1.0))


def sentence(frame: Frame) -> str:
    """How far the best cosine is above the permutation, both as they are."""
    row = only(one_pair(frame), a="cosine top-1", b="permutation")
    found = row.estimate("difference") if row else None
    if found is None:
        return ""
    way = "more" if found.value > 0 else "less"
    return f"As they are, the best cosine explains {decimal_interval(found, 3)} {way} than the permutation."


DRAWING: Final = Drawing(figure, sentence, ("pair", "a", "b", "difference"), each=("pair",))
