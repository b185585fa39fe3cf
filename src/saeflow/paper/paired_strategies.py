"""Beyond the paper: differences in the deactivation rate of two strategies over the same targets."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame
from saeflow.paper.kinds import DIFFERENCE, Drawing, Line, chance, forest
from saeflow.paper.style import ACCENT, Medium
from saeflow.paper.trials import MAIN
from saeflow.paper.words import points_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Differences in the deactivation rate of two strategies over the same targets."""
    lines: list[Line] = []
    for scope in frame.distinct("scope") or ("",):
        head = f"targets for which {scope} a predecessor" if scope else ""
        for row in (frame.where(scope=scope) if scope else frame).records:
            a, b, p = row.words("strategy_a"), row.words("strategy_b"), row.number("p")
            label = f"{a} − {b}" + ("" if p is None else f", p {chance(p)}")
            lines.append(Line(label, ACCENT, ((row.estimate("difference"), None),), row.number("n"), head))
            head = ""
    return forest(lines, (DIFFERENCE,), medium, caption, controls=False)


def sentence(frame: Frame) -> str:
    """The main strategy against each other one on the same targets."""
    scopes = frame.distinct("scope")
    rows = frame.where(scope=scopes[0]) if scopes else frame
    told = [
        f"{points_interval(e)} over {row.words('strategy_b')}"
        for row in rows.records
        if row.words("strategy_a") == MAIN and (e := row.estimate("difference"))
    ]
    return f"Deactivation by {MAIN} on the same targets: {', '.join(told)}." if told else ""


DRAWING: Final = Drawing(figure, sentence, ("strategy_a", "strategy_b", "difference"))
