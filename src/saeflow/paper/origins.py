"""What the tables of origins share: data sets, groups, scores, and tests that tell groups apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from saeflow.paper.frame import GROUPS, Frame, Interval, TableRow, in_order
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


def shares_of(frame: Frame, **where: str) -> dict[str, Interval]:
    """The shares of the groups in the rows with these words."""
    rows = frame.where(**where).records
    return {r.words("group"): e for r in rows if r.words("group") in GROUPS and (e := r.estimate("share"))}


def largest_of(shares: Mapping[str, Interval]) -> str:
    """The group with the largest share."""
    return max(shares, key=lambda group: shares[group].value)


def every_of(frame: Frame) -> str:
    """All data sets together where the table has them, else the first one."""
    datasets = frame.distinct("dataset")
    return in_order(datasets, ("all",))[0] if datasets else ""


def short(group: str) -> str:
    """A group in few letters, for the head of a narrow column: `RM`."""
    return _SHORT.get(group) or "".join(_SHORT.get(part, part) for part in group.split(" & "))


def share_tested(row: TableRow | None) -> float | None:
    """The share of tests that passed; a gap where there was none."""
    return row.number("share") if row is not None and row.count("tests") else None


def tests_passed(row: TableRow | None) -> str:
    """`12 of 40 tests`, for tips."""
    if row is None or not row.count("tests"):
        return "no test"
    return f"{count(row.number('passed'))} of {count(row.number('tests'))} tests"


def name_of(dataset: str) -> str:
    """How a data set is called on a figure."""
    return "all datasets" if dataset == EVERY else dataset
