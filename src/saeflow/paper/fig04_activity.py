"""Figure 4: tests that tell groups apart, by whether a module is active in one, both or neither."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, in_order
from saeflow.paper.kinds import Drawing, heat
from saeflow.paper.origins import OWN_SCORES, SCORES, first_method, share_tested, tests_passed
from saeflow.paper.style import Medium, panels
from saeflow.paper.words import listed, percent

MODULES = ("RES", "MLP", "ATT")
KINDS = {"AO": "active in only one", "AB": "active in both", "IB": "inactive in both"}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Share of tests passed by whether a module is active in one, both or neither group (fig. 4)."""
    kinds = in_order(frame.distinct("kind"), tuple(KINDS))
    modules, columns = in_order(frame.distinct("module"), MODULES), in_order(frame.distinct("score"), SCORES)
    found = frame.lookup("kind", "module", "score")
    drawn, places = panels(medium, caption, len(kinds), 2.3 * len(modules), across=len(kinds), over=3.6)
    for i, (kind, axes) in enumerate(zip(kinds, places, strict=True)):
        rows = [[found.get((kind, module, score)) for score in columns] for module in modules]
        what = KINDS.get(kind, "")
        tips = [
            [f"{score}, {module} {what}: {tests_passed(row)}" for score, row in zip(columns, cells, strict=True)]
            for module, cells in zip(modules, rows, strict=True)
        ]
        names = list(modules) if i == 0 else [""] * len(modules)
        heat(axes, [[share_tested(row) for row in cells] for cells in rows], (names, columns), tips)
        axes.set_title(f"{kind}, {what}" if medium.wide else kind)
    return drawn


def sentence(frame: Frame) -> str:
    """A part's own score where it is active in one of the groups, and where in both."""
    frame, method = first_method(frame)
    found = frame.lookup("module", "score", "kind")
    own = [
        (module, score, found.get((module, score, "AO")), found.get((module, score, "AB")))
        for module, score in OWN_SCORES
    ]
    one = [
        f"{percent(row.number('share'))} ({module}, {score})"
        for module, score, row, _ in own
        if row and row.count("tests")
    ]
    both = [
        percent(row.number("share"))
        for _, _, first, row in own
        if first and first.count("tests") and row and row.count("tests")
    ]
    if not one:
        return ""
    told = f"A module active in only one of two groups parts them by its own score in {listed(one)} of tests{method}"
    return f"{told}; active in both, in {listed(both)}." if len(both) == len(one) else f"{told}."


DRAWING: Final = Drawing(figure, sentence, ("module", "score", "kind", "share"), each=("method",))
