"""Beyond the paper: how alike in norm controls are to what they control."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame, in_order
from saeflow.paper.kinds import RATIO, Drawing, Line, forest
from saeflow.paper.style import Medium, colour
from saeflow.paper.trials import main_strategy
from saeflow.paper.words import count, decimal


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How alike controls are in norm to what they control: medians and quartiles of the ratio."""
    lines: list[Line] = []
    for strategy in frame.distinct("strategy"):
        head = strategy
        rows = frame.where(strategy=strategy)
        found = rows.lookup("removed")
        for removed in in_order(rows.distinct("removed"), GROUPS):
            row = found[(removed,)]
            ratio = row.estimate("median", "q25", "q75", "controls")
            lines.append(Line(removed, colour(removed), ((ratio, None),), row.number("controls"), head))
            head = ""
    return forest(lines, (RATIO,), medium, caption, controls=False)


def sentence(frame: Frame) -> str:
    """How alike in norm the controls of the main strategy are."""
    main = main_strategy(frame)
    rows = [row for row in frame.where(strategy=main).records if row.number("median") is not None]
    if not rows:
        return ""
    medians = [row.number("median") or 0.0 for row in rows]
    n, all_n = sum(row.count("controls") for row in rows), sum(row.count("trials") for row in rows)
    reach = decimal(medians[0]) if len(rows) == 1 else f"{decimal(min(medians))} to {decimal(max(medians))}"
    have = f"{count(n)} of {count(all_n)} trials have one"
    return f"The median control of {main} has {reach} times the norm of what it controls; {have}."


DRAWING: Final = Drawing(figure, sentence, ("strategy", "removed", "median"))
