"""Figure 4: tests that tell groups apart, by whether a module is active in one, both or neither."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, in_order
from saeflow.paper.kinds import Box, Drawing, boxes, heat
from saeflow.paper.origins import OWN_SCORES, SCORES, first_method, heat_head, share_tested, tests_passed
from saeflow.paper.style import MUTED, Canvas, Medium, foot
from saeflow.paper.words import listed, percent

MODULES = ("RES", "MLP", "ATT")
KINDS = {"AO": "active in only one", "AB": "active in both", "IB": "inactive in both"}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Share of tests passed by whether a module is active in one, both or neither group (fig. 4)."""
    kinds = in_order(frame.distinct("kind"), tuple(KINDS))
    modules, columns = in_order(frame.distinct("module"), MODULES), in_order(frame.distinct("score"), SCORES)
    found = frame.lookup("kind", "module", "score")
    height = 2.3 * len(modules)
    canvas = Canvas(medium, 6.2 + height + 0.4 + foot(medium, caption))
    area = Box(4.4, 5.8, min(canvas.width - 5.0, 56.0), height)
    for kind, box in zip(kinds, boxes(len(kinds), len(kinds), area, gap=1.4, drop=0), strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        rows = [[found.get((kind, module, score)) for score in columns] for module in modules]
        tips = [
            [
                f"{score}, {module} {KINDS.get(kind, '')}: {tests_passed(row)}"
                for score, row in zip(columns, line, strict=True)
            ]
            for module, line in zip(modules, rows, strict=True)
        ]
        names = list(modules) if box.left == area.left else [""] * len(modules)
        heat(axes, [[share_tested(r) for r in line] for line in rows], (names, columns), em=medium.text, tips=tips)
        heat_head(canvas, axes, Box(box.left, box.top - 1.4, box.width, 0), kind)
        canvas.write(box.left, box.top - 2.0, KINDS.get(kind, ""), size=0.74, colour=MUTED)
    canvas.caption(caption)
    return canvas.figure


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
