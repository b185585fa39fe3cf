"""Figure 15: the groups that strategies find, and what becomes of a target when its predecessors are removed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saeflow.experiments.deactivation_tables import TOP_1
from saeflow.experiments.statistics import GAP, RATE
from saeflow.paper.frame import GROUPS, Frame, FrameRow, in_order, most, only
from saeflow.paper.kinds import CONTROL, Drawing, Strip, strips
from saeflow.paper.style import GONE, LINE, MUTED, SQUARE, Medium, Sign, colour, group_signs
from saeflow.paper.trials import (
    ALIKE,
    COMBINED,
    SINGLES,
    all_named,
    control_beside,
    main_strategy,
    of_means,
    of_strategy,
    over_targets,
    per_target,
    removing,
)
from saeflow.paper.verdicts import ABOVE_0, ClaimNumber, Rule, in_percent
from saeflow.paper.words import count, listed, percent

TOP_5: Final = "top-5"


def groups_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw which groups each matching strategy finds among the same features (fig. 15a)."""
    rows: list[Strip] = []
    for strategy in frame.distinct("strategy"):
        found = {row.words("group"): row for row in frame.where(strategy=strategy).records}
        shares = {group: found[group].number("share") or 0.0 for group in frame.groups() if group in found}
        n = sum(row.count("features") for row in found.values())
        rows.append(Strip(strategy, shares, strategy, f"n = {count(n)}"))
    return strips({"": rows}, medium, caption, signs=group_signs(frame.groups()))


def groups_sentence(frame: Frame) -> str:
    """The share of the same features for which each strategy names no active predecessor."""
    rows = frame.where(group="nowhere").records
    phrases = [
        f"{percent(share)} under {row.words('strategy')}" for row in rows if (share := row.number("share")) is not None
    ]
    return f"The share from nowhere is {listed(phrases)} of the same features." if phrases else ""


def new_group_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw what becomes of a target of each group when some of its predecessors are removed (fig. 15b)."""
    groups = frame.groups()
    outcomes = in_order(frame.distinct("new_group"), (GONE, *GROUPS))
    found = frame.lookup("group", "removed", "new_group")
    shown: dict[str, list[Strip]] = {}
    for group in groups:
        rows = shown[f"was {group}"] = []
        for removed in in_order(frame.where(group=group).distinct("removed"), GROUPS):
            known = {o: row for o in outcomes if (row := found[group, removed, o])}
            shares = {o: row.number("probability") or 0.0 for o, row in known.items()}
            controls = {o: p for o, row in known.items() if (p := row.number("control_probability")) is not None}
            n = f"n = {count(most(known.values()))}"
            rows.append(Strip(f"−{removed}", shares, f"{removed} removed", n, control=controls))
    signs = group_signs(outcomes)
    if any(row.control for rows in shown.values() for row in rows):
        signs += [Sign("predecessors removed", MUTED, SQUARE), Sign(CONTROL, MUTED, LINE)]
    across, heads = 2 if medium.wide else 1, {f"was {group}": colour(group) for group in groups}
    return strips(shown, medium, caption, signs=signs, across=across, heads=heads, axis=False)


def new_group_sentence(frame: Frame) -> str:
    """How often targets fall silent when everything is removed, or stay active without a predecessor."""
    main = main_strategy(frame)
    frame = frame.where(strategy=main) if main else frame
    each = {group: _became(frame, group, "deactivated") for group in GROUPS}
    silent = {group: row for group, row in each.items() if row.number("probability") is not None}
    if not silent:
        return ""

    def rate(group: str) -> float:
        return silent[group].number("probability") or 0.0

    def rate_of(row: FrameRow) -> str:
        return f"{percent(row.number('probability'))}{control_beside(row, 'control_probability')}"

    low, high = min(silent, key=rate), max(silent, key=rate)
    under = f" under {main}" if main else ""
    text = f"With all predecessors removed{under}, {rate_of(silent[high])} of targets from {high} fall silent"
    if low != high:
        text += f" and {rate_of(silent[low])} of those from {low}"
    stays = _became(frame, low, "nowhere")
    if stays.number("probability") is None:
        return f"{text}."
    return f"{text}; {rate_of(stays)} of the latter stay active with no active predecessor."


def _became(frame: Frame, group: str, outcome: str) -> FrameRow:
    return only(frame, group=group, removed=group, new_group=outcome)


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_more(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Top-5 finds an active predecessor for more targets, and more combined groups, RES & MLP above all."""
    first, five = (per_target(trials, name) for name in (TOP_1, TOP_5))
    pairs = {
        "targets with an active predecessor": GROUPS[1:],
        "targets in combined groups": COMBINED,
        "targets in From RES & MLP": ["RES & MLP"],
    }
    found: list[ClaimNumber] = []
    for what, wanted in pairs.items():
        own = [targets["group"].isin(wanted).astype(float) for targets in (five, first)]
        tally, n = over_targets(first, *own), len(first)
        estimate = tally.estimate(lambda x: (x[:, 0] - x[:, 1]) / x[:, 2], n=n, span=GAP, sizes=tally.sums[:, 2])
        beside = " against ".join(in_percent(float(column.mean())) for column in own)
        found.append(ClaimNumber(f"{what} by top-5 less those by top-1", estimate, ABOVE_0, beside=beside))
    return found


def claim_equal(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Without RES, a target falls silent about as often as it stays active but loses the module's predecessor too."""
    gone = trials["deactivated"]
    orphan = ((gone == 0) & (trials["new_group"] == "nowhere")).astype(float)
    words = "targets silenced less targets left without a predecessor, RES removed in From {}"
    return [
        of_means(
            trials,
            gone - orphan,
            [removing(trials, [g], ["RES"])],
            lambda m: m[:, 0],
            words.format(g),
            rule=Rule("within", ALIKE),
            span=GAP,
        )
        for g in ("RES & MLP", "RES & ATT")
    ]


def claim_full(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Most targets of combined groups that removing all predecessors silences need the removal of all."""
    gone = (trials["deactivated"] == 1) & ~trials["control"]
    every = trials[removing(trials, COMBINED) & gone].drop_duplicates("target")
    fewer = of_strategy(trials) & trials["removing"] & ~all_named(trials) & trials["group"].isin(COMBINED)
    whole = ~every["target"].isin(trials["target"][fewer & gone])
    found = over_targets(every, whole.astype(float)).of_means(span=RATE)
    words = "targets of combined groups silenced by removing all predecessors and by no fewer"
    return [ClaimNumber(words, found, Rule("above", 0.5), "share")]


def claim_new(trials: pd.DataFrame) -> list[ClaimNumber]:
    """After an edit, a target seldom has a predecessor at a part where it had none."""
    kept, old, new = trials["deactivated"] == 0, *(trials[name].astype(str) for name in ("group", "new_group"))
    fresh = kept & np.logical_or.reduce([new.str.contains(part) & ~old.str.contains(part) for part in SINGLES])
    words, where = "trials after which a part has an active predecessor that had none", of_strategy(trials)
    how: dict[str, Any] = {"rule": Rule("below", 0.1), "unit": "share", "span": RATE}
    return [of_means(trials, fresh.astype(float), [where & trials["removing"]], lambda m: m[:, 0], words, **how)]


DRAWINGS: Final = {
    "groups_by_strategy": Drawing(groups_figure, groups_sentence, ("strategy", "group", "share")),
    "new_group": Drawing(
        new_group_figure, new_group_sentence, ("group", "removed", "new_group", "probability"), each=("strategy",)
    ),
}
