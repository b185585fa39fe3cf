"""Figure 15a: the groups that each matching strategy finds among the same features."""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from saeflow.experiments.deactivation_tables import TOP_1
from saeflow.experiments.statistics import GAP
from saeflow.paper.frame import GROUPS, Frame
from saeflow.paper.kinds import Drawing, Strip, strips
from saeflow.paper.style import Medium, group_signs
from saeflow.paper.trials import COMBINED, over_targets, per_target
from saeflow.paper.verdicts import ABOVE_0, ClaimNumber, in_percent
from saeflow.paper.words import count, listed, percent

TOP_5: Final = "top-5"


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Which groups each matching strategy finds among the same features (fig. 15a)."""
    rows: list[Strip] = []
    for strategy in frame.distinct("strategy"):
        found = {row.words("group"): row for row in frame.where(strategy=strategy).records}
        shares = {group: found[group].number("share") or 0.0 for group in frame.groups() if group in found}
        n = sum(row.count("features") for row in found.values())
        rows.append(Strip(strategy, shares, strategy, f"n = {count(n)}"))
    return strips({"": rows}, medium, caption, signs=group_signs(frame.groups()))


def sentence(frame: Frame) -> str:
    """For how many of the same features each strategy names no active predecessor."""
    rows = frame.where(group="nowhere").records
    told = [
        f"{percent(share)} under {row.words('strategy')}" for row in rows if (share := row.number("share")) is not None
    ]
    return f"The share from nowhere is {listed(told)} of the same features." if told else ""


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_more(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Top-5 finds an active predecessor for more targets, and more combined groups, RES & MLP above all."""
    first, five = (per_target(trials, name) for name in (TOP_1, TOP_5))
    asked = {
        "targets with an active predecessor": GROUPS[1:],
        "targets in combined groups": COMBINED,
        "targets in From RES & MLP": ["RES & MLP"],
    }
    found: list[ClaimNumber] = []
    for what, wanted in asked.items():
        own = [targets["group"].isin(wanted).astype(float) for targets in (five, first)]
        tally, n = over_targets(first, *own), len(first)
        estimate = tally.told(lambda x: (x[:, 0] - x[:, 1]) / x[:, 2], n=n, span=GAP, sizes=tally.sums[:, 2])
        beside = " against ".join(in_percent(float(column.mean())) for column in own)
        found.append(ClaimNumber(f"{what} by top-5 less those by top-1", estimate, ABOVE_0, beside=beside))
    return found


DRAWING: Final = Drawing(figure, sentence, ("strategy", "group", "share"))
