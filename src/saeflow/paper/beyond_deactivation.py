"""Beyond the paper: strategies on the same targets, what else silences a target, and how well controls match."""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib.figure import Figure

from saeflow.experiments.groups import EXHAUSTIVE
from saeflow.experiments.statistics import RATE, Estimate
from saeflow.paper.frame import GROUPS, Frame, in_order, most
from saeflow.paper.kinds import (
    CONTROL,
    DEACTIVATED,
    DIFFERENCE,
    RATIO,
    Drawing,
    Line,
    Mark,
    Strip,
    Tone,
    chance,
    forest,
    measure_tip,
    strips,
)
from saeflow.paper.style import ACCENT, FAINT, INK, MUTED, PAPER, SQUARE, Medium, Sign, colour
from saeflow.paper.trials import MAIN, control_beside, main_strategy, over_targets, per_target
from saeflow.paper.verdicts import ClaimNumber, Rule
from saeflow.paper.words import count, decimal, listed, percent, points_interval


def paired_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw differences in the deactivation rate between two strategies on the same targets."""
    lines: list[Line] = []
    for scope in frame.distinct("scope") or ("",):
        head = f"targets for which {scope} a predecessor" if scope else ""
        for row in (frame.where(scope=scope) if scope else frame).records:
            a, b, p = row.words("strategy_a"), row.words("strategy_b"), row.number("p")
            label = f"{a} − {b}" + ("" if p is None else f", p {chance(p)}")
            lines.append(Line(label, ACCENT, ((row.estimate("difference"), None),), row.number("n"), head))
    return forest(lines, (DIFFERENCE,), medium, caption, controls=False)


def paired_sentence(frame: Frame) -> str:
    """The main strategy against each other strategy on the same targets."""
    scopes = frame.distinct("scope")
    rows = frame.where(scope=scopes[0]) if scopes else frame
    phrases = [
        f"{points_interval(e)} over {row.words('strategy_b')}"
        for row in rows.records
        if row.words("strategy_a") == MAIN and (e := row.estimate("difference"))
    ]
    return f"Deactivation by {MAIN} on the same targets: {', '.join(phrases)}." if phrases else ""


_OUTCOMES: dict[str, Tone] = {
    "deactivated by its predecessors": ((ACCENT, 0.95), PAPER),
    "by another single feature": ((ACCENT, 0.5), INK),
    "by a set of up to five": ((ACCENT, 0.2), INK),
    "by none tried": (FAINT, INK),
}


def remaining_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw what silences a target: its predecessors, another feature, a small set, or nothing that was tried."""
    outcomes = in_order(frame.distinct("outcome"), tuple(_OUTCOMES))
    found = frame.lookup("group", "outcome")
    rows: list[Strip] = []
    for group in in_order(frame.distinct("group"), ("all", *GROUPS)):
        known = {outcome: row for outcome in outcomes if (row := found[group, outcome])}
        shares = {outcome: row.number("share") or 0.0 for outcome, row in known.items()}
        columns = ("control_share", "control_low", "control_high", "control_n")
        control = next((e for row in known.values() if (e := row.estimate(*columns))), None)
        mark = Mark(control, measure_tip(f"control of {group}", control, DEACTIVATED), hollow=True) if control else None
        rows.append(Strip(group, shares, group, f"n = {count(most(known.values()))}", mark=mark))
    signs = [Sign(outcome, _OUTCOMES.get(outcome, (MUTED, PAPER))[0], SQUARE) for outcome in outcomes]
    if any(row.mark for row in rows):
        signs.append(Sign(f"deactivated by the {CONTROL}", hollow=True))
    return strips({"": rows}, medium, caption, signs=signs, tones=_OUTCOMES, axis=False)


def remaining_sentence(frame: Frame) -> str:
    """What silences targets, over all groups together."""
    rows = [row for row in frame.where(group="all").records if row.number("share") is not None]
    phrases = [
        f"{row.words('outcome')} {percent(row.number('share'))}{control_beside(row, 'control_share')}" for row in rows
    ]
    return f"Of {count(most(rows))} targets: {listed(phrases)}." if phrases else ""


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_missed(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Another single active feature silences some of the targets that stay active: causes that matching misses."""
    first = per_target(trials, trials["strategy"].cat.categories[0])
    stay = first["named"] & (first["deactivated"] == 0)
    estimates: list[Estimate] = []
    for control in (False, True):
        gone = per_target(trials, EXHAUSTIVE, control=control)["deactivated"]
        where = stay & gone.notna()
        estimates.append(over_targets(first[where], gone[where]).of_means(span=RATE))
    words = "targets that their predecessors do not silence and another single active feature does"
    return [ClaimNumber(words, estimates[0], Rule("above", 0.05), "share", estimates[1])]


def match_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw how close controls are in norm to what they control: medians and quartiles of the ratio."""
    lines: list[Line] = []
    for strategy in frame.distinct("strategy"):
        rows = frame.where(strategy=strategy)
        found = rows.lookup("removed")
        for removed in in_order(rows.distinct("removed"), GROUPS):
            row = found[removed]
            ratio = row.estimate("median", "q25", "q75", "controls")
            lines.append(Line(removed, colour(removed), ((ratio, None),), row.number("controls"), strategy))
    return forest(lines, (RATIO,), medium, caption, controls=False)


def match_sentence(frame: Frame) -> str:
    """How close in norm the controls of the main strategy are."""
    main = main_strategy(frame)
    rows = [row for row in frame.where(strategy=main).records if row.number("median") is not None]
    if not rows:
        return ""
    medians = [row.number("median") or 0.0 for row in rows]
    n, all_n = sum(row.count("controls") for row in rows), sum(row.count("trials") for row in rows)
    reach = decimal(medians[0]) if len(rows) == 1 else f"{decimal(min(medians))} to {decimal(max(medians))}"
    have = f"{count(n)} of {count(all_n)} trials have one"
    return f"The median control of {main} has {reach} times the norm of what it controls; {have}."


DRAWINGS: Final = {
    "paired": Drawing(paired_figure, paired_sentence, ("strategy_a", "strategy_b", "difference")),
    "remaining": Drawing(remaining_figure, remaining_sentence, ("group", "outcome", "share")),
    "control_match": Drawing(match_figure, match_sentence, ("strategy", "removed", "median")),
}
