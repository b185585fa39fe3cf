"""What the tables of origins share: data sets, groups, scores, and tests that tell groups apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from matplotlib.axes import Axes

from saeflow.paper.frame import GROUPS, Estimate, Frame, Row, in_order
from saeflow.paper.kinds import Box
from saeflow.paper.style import INK, MUTED, Canvas, advance
from saeflow.paper.words import count

OWN_SCORES: Final = (("RES", "s(R)"), ("MLP", "s(M)"), ("ATT", "s(A)"))
SCORES = ("s(R)", "s(M)", "s(A)")
_SHORT = {"nowhere": "none", "RES": "R", "MLP": "M", "ATT": "A"}
EVERY = "all"


def first_method(frame: Frame) -> tuple[Frame, str]:
    """The rows of cosine, or else of the first method there is, with its name in words."""
    methods = frame.distinct("method")
    if not methods:
        return frame, ""
    name = in_order(methods, ("cosine",))[0]
    return frame.where(method=name), f" under {name}"


def shares_of(frame: Frame, **where: str) -> dict[str, Estimate]:
    """The shares of the groups in the rows with these words."""
    rows = frame.where(**where).records
    return {r.words("group"): e for r in rows if r.words("group") in GROUPS and (e := r.estimate("share"))}


def largest_of(shares: Mapping[str, Estimate]) -> str:
    """The group with the largest share."""
    return max(shares, key=lambda group: shares[group].value)


def every_of(frame: Frame) -> str:
    """All data sets together where the table has them, else the first one."""
    datasets = frame.distinct("dataset")
    return in_order(datasets, ("all",))[0] if datasets else ""


def short(group: str) -> str:
    """A group in few letters, for the head of a narrow column: `RM`."""
    return _SHORT.get(group) or "".join(_SHORT.get(part, part) for part in group.split(" & "))


def heat_head(canvas: Canvas, axes: Axes, box: Box, text: str, more: str = "") -> None:
    """A title over a heat map whose columns are named above it."""
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=INK)
    canvas.write(box.left, box.top - 1.9, text, size=0.9, weight="bold")
    canvas.write(box.left + advance(text, 0.98) + 0.6, box.top - 1.9, more, size=0.8, colour=MUTED)


def share_tested(row: Row | None) -> float | None:
    """The share of tests that passed; a gap where there was none."""
    return row.number("share") if row is not None and row.count("tests") else None


def tests_passed(row: Row | None) -> str:
    """`12 of 40 tests`, for tips."""
    if row is None or not row.count("tests"):
        return "no test"
    return f"{count(row.number('passed'))} of {count(row.number('tests'))} tests"


def name_of(dataset: str) -> str:
    """How a data set is called on a figure."""
    return "all datasets" if dataset == EVERY else dataset


def panel_title(canvas: Canvas, box: Box, text: str, n: float | None = None) -> None:
    """The name of a data set over its panel, with n at the right."""
    canvas.title(box.left, box.top - 0.6, box.width, text, "" if n is None else f"n = {count(n)}")
