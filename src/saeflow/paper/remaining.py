"""Beyond the paper: what silences a target, its predecessors, another feature, a small set, or nothing tried."""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from saeflow.experiments.groups import EXHAUSTIVE
from saeflow.experiments.statistics import RATE, Estimate
from saeflow.paper.frame import GROUPS, Frame, in_order
from saeflow.paper.kinds import CONTROL, DEACTIVATED, Drawing, Mark, Strip, Tone, strips, told
from saeflow.paper.style import ACCENT, FAINT, INK, MUTED, PAPER, SQUARE, Medium, Sign
from saeflow.paper.trials import control_beside, over_targets, per_target
from saeflow.paper.verdicts import ClaimNumber, Rule
from saeflow.paper.words import count, listed, percent

_OUTCOMES: dict[str, Tone] = {
    "deactivated by its predecessors": ((ACCENT, 0.95), PAPER),
    "by another single feature": ((ACCENT, 0.5), INK),
    "by a set of up to five": ((ACCENT, 0.2), INK),
    "by none tried": (FAINT, INK),
}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """What silences a target: its predecessors, another feature, a small set, or nothing that was tried."""
    outcomes = in_order(frame.distinct("outcome"), tuple(_OUTCOMES))
    found = frame.lookup("group", "outcome")
    rows: list[Strip] = []
    for group in in_order(frame.distinct("group"), ("all", *GROUPS)):
        known = {outcome: row for outcome in outcomes if (row := found.get((group, outcome)))}
        shares = {outcome: row.number("share") or 0.0 for outcome, row in known.items()}
        columns = ("control_share", "control_low", "control_high", "control_n")
        control = next((e for row in known.values() if (e := row.estimate(*columns))), None)
        mark = Mark(control, told(f"control of {group}", control, DEACTIVATED), hollow=True) if control else None
        n = max((row.number("n") or 0.0 for row in known.values()), default=0.0)
        rows.append(Strip(group, shares, group, f"n = {count(n)}", mark=mark))
    signs = [Sign(outcome, _OUTCOMES.get(outcome, (MUTED, PAPER))[0], SQUARE) for outcome in outcomes]
    if any(row.mark for row in rows):
        signs.append(Sign(f"deactivated by the {CONTROL}", hollow=True))
    return strips({"": rows}, medium, caption, signs=signs, tones=_OUTCOMES, axis=False)


def sentence(frame: Frame) -> str:
    """What silences targets of all groups together."""
    rows = [row for row in frame.where(group="all").records if row.number("share") is not None]
    told = [
        f"{row.words('outcome')} {percent(row.number('share'))}{control_beside(row, 'control_share')}" for row in rows
    ]
    n = max((row.number("n") or 0.0 for row in rows), default=0.0)
    return f"Of {count(n)} targets: {listed(told)}." if told else ""


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_missed(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Of the targets that stay, another single active feature silences some: causes that matching misses."""
    first = per_target(trials, trials["strategy"].cat.categories[0])
    stay = first["named"] & (first["deactivated"] == 0)
    estimates: list[Estimate] = []
    for control in (False, True):
        gone = per_target(trials, EXHAUSTIVE, control=control)["deactivated"]
        where = stay & gone.notna()
        tally = over_targets(first[where], gone[where])
        estimates.append(tally.told(n=float(tally.sums[:, 1].sum()), span=RATE, sizes=tally.sums[:, 1]))
    words = "targets that their predecessors do not silence and another single active feature does"
    return [ClaimNumber(words, estimates[0], Rule("above", 0.05), "share", estimates[1])]


DRAWING: Final = Drawing(figure, sentence, ("group", "outcome", "share"))
