"""Figure 6: what removing all predecessors does, by the target's group and strategy."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame, only
from saeflow.paper.kinds import CHANGE, DEACTIVATED, Drawing, Line, forest
from saeflow.paper.style import Medium, colour, nothing
from saeflow.paper.trials import both, is_control, main_strategy, rate_told


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Rates and changes by the target's group and strategy, with controls: all it names removed (fig. 6).

    Only strategies that have controls are drawn. An exhaustive search reports, for each target, the edit
    that worked best, so that its rates by what it removed are chosen by their outcome.
    """
    controlled = {r.words("strategy") for r in frame.records if r.number("control_deactivated") is not None}
    strategies = [s for s in frame.distinct("strategy") if s in controlled or not controlled]
    found = frame.lookup("group", "removed", "strategy")
    lines: list[Line] = []
    for group in frame.groups():
        head = group
        for strategy in strategies:
            row = found.get((group, group, strategy))
            if row is not None:
                hollow = is_control(row)
                lines.append(Line(strategy, colour(group), both(row), row.number("n"), head, hollow))
                head = ""
    if not lines:
        return nothing(medium, caption, "no trial removed all predecessors of its target")
    return forest(
        lines, (DEACTIVATED, CHANGE), medium, f"{caption} · all available predecessors removed", controls=True
    )


def sentence(frame: Frame) -> str:
    """The group in which removing everything works best, and that in which it works worst."""
    main = main_strategy(frame)
    rows = {
        g: r
        for g in GROUPS
        if (r := only(frame, strategy=main, group=g, removed=g)) and r.number("deactivated") is not None
    }
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda g: -(rows[g].number("deactivated") or 0.0))
    ends = [rate_told(rows[group], f"from {group}") for group in dict.fromkeys((ordered[0], ordered[-1]))]
    return f"Removing all that {main} names deactivates {'; and '.join(ends)}."


DRAWING: Final = Drawing(figure, sentence, ("strategy", "group", "deactivated"))
