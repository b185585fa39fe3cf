"""What the tables of deactivation share: rates and changes, each beside its control.

A control is the same edit of a random active feature of the same site and norm.
"""

from __future__ import annotations

from typing import Final

from saeflow.paper.frame import Frame, Interval, TableRow, in_order
from saeflow.paper.words import count, decimal, percent, percent_interval

MAIN: Final = "top-1"


def main_strategy(frame: Frame) -> str:
    """The strategy that sentences speak of; "" where there is none."""
    strategies = frame.distinct("strategy")
    return in_order(strategies, (MAIN,))[0] if strategies else ""


def rate_told(row: TableRow, whence: str) -> str:
    """`70 % (68–73) of 2,712 targets from RES, control 5 % (4–6)`."""
    found = row.estimate("deactivated")
    if found is None:
        return ""
    of = "" if found.n is None else f" of {count(found.n)} targets"
    control = row.estimate("control_deactivated", "control_low", "control_high", "control_n")
    beside = "" if control is None else f", control {percent_interval(control)}"
    return f"{percent_interval(found)}{of} {whence}{beside}"


def control_beside(row: TableRow, column: str = "control_deactivated") -> str:
    """` (control 5 %)`; empty for a gap."""
    value = row.number(column)
    return "" if value is None else f" (control {percent(value)})"


def control_change(row: TableRow) -> str:
    """` (control 0.02)`: the change of the control; empty for a gap."""
    value = row.number("control_change")
    return "" if value is None else f" (control {decimal(value)})"


def both(row: TableRow) -> tuple[tuple[Interval | None, Interval | None], ...]:
    """The two measures of a row with their controls, as the tables of deactivation name them."""
    return (
        (row.estimate("deactivated"), row.estimate("control_deactivated", "control_low", "control_high", "control_n")),
        (
            row.estimate("change", "change_low", "change_high"),
            row.estimate("control_change", "control_change_low", "control_change_high", "control_n"),
        ),
    )


def is_control(row: TableRow) -> bool:
    """Whether a row is itself a control."""
    return row.words("control") == "True" or row.words("strategy") == "active control"
