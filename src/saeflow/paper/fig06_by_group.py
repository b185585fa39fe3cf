"""Figure 6: what removing all predecessors does, by the target's group and strategy."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saeflow.experiments.deactivation_tables import CONTROL, TOP_1
from saeflow.experiments.statistics import GAP
from saeflow.paper.frame import GROUPS, Frame, only
from saeflow.paper.kinds import CHANGE, DEACTIVATED, Drawing, Line, forest
from saeflow.paper.style import Medium, colour, nothing
from saeflow.paper.trials import (
    ALIKE,
    WITH_RES,
    both,
    is_control,
    less,
    main_strategy,
    of_means,
    on_same_targets,
    rate_told,
    removing,
)
from saeflow.paper.verdicts import ClaimNumber, Rule


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Rates and changes by the target's group and strategy, with controls: all it names removed (fig. 6).

    Only strategies that have controls are drawn. An exhaustive search reports, for each target, the edit
    that worked best, so that its rates by what it removed are chosen by their outcome.
    """
    controlled = {r.words("strategy") for r in frame.records if r.number("control_deactivated") is not None}
    strategies = [s for s in frame.distinct("strategy") if s in controlled or not controlled]
    found = frame.lookup("group", "removed", "strategy")
    lines: list[Line] = []
    for group in frame.groups():
        head = group
        for strategy in strategies:
            row = found.get((group, group, strategy))
            if row is not None:
                hollow = is_control(row)
                lines.append(Line(strategy, colour(group), both(row), row.number("n"), head, hollow))
                head = ""
    if not lines:
        return nothing(medium, caption, "no trial removed all predecessors of its target")
    return forest(
        lines, (DEACTIVATED, CHANGE), medium, f"{caption} · all available predecessors removed", controls=True
    )


def sentence(frame: Frame) -> str:
    """The group in which removing everything works best, and that in which it works worst."""
    main = main_strategy(frame)
    rows = {
        g: r
        for g in GROUPS
        if (r := only(frame, strategy=main, group=g, removed=g)) and r.number("deactivated") is not None
    }
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda g: -(rows[g].number("deactivated") or 0.0))
    ends = [rate_told(rows[group], f"from {group}") for group in dict.fromkeys((ordered[0], ordered[-1]))]
    return f"Removing all that {main} names deactivates {'; and '.join(ends)}."


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_random(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Top-1 silences more than one of the top five at random, on targets both name something for."""
    return [on_same_targets(trials, TOP_1, "random of top-5")]


def claim_cause(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Removing the match silences more than removing another active feature of the same site."""
    return [on_same_targets(trials, TOP_1, CONTROL)]


def claim_modules(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Top-5 does about as well as top-1 where the predecessor is of the MLP or of attention alone."""
    return [
        less(
            trials,
            trials["deactivated"],
            removing(trials, [group], strategy="top-5"),
            removing(trials, [group], strategy=TOP_1),
            f"rate of top-5 less that of top-1, From {group}",
            rule=Rule("within", ALIKE),
            span=GAP,
        )
        for group in ("MLP", "ATT")
    ]


def claim_combined(trials: pd.DataFrame) -> list[ClaimNumber]:
    """What top-5 gains, it gains where a residual predecessor stands with a module."""
    sets = [
        removing(trials, groups, strategy=name) for groups in (WITH_RES, ("MLP", "ATT")) for name in ("top-5", TOP_1)
    ]
    words = "gain of top-5 over top-1 where RES stands with a module, less that in From MLP and From ATT"
    sides = "{} against {} beside a module, {} against {} in From MLP and From ATT"

    def gain(m: np.ndarray) -> np.ndarray:
        return (m[:, 0] - m[:, 1]) - (m[:, 2] - m[:, 3])

    return [of_means(trials, trials["deactivated"], sets, gain, words, sides=sides, span=(-2, 2))]


def claim_residual_most(trials: pd.DataFrame) -> list[ClaimNumber]:
    """A residual predecessor matters more than a module's, alone and beside it."""
    found: list[ClaimNumber] = []
    for part in ("MLP", "ATT"):
        both = f"RES & {part}"
        alone = f"change by RES in From RES less that by {part} in From {part}"
        together = f"change by RES less that by {part}, both in From {both}"
        for first, second, words in (("RES", part, alone), (both, both, together)):
            a, b = removing(trials, [first], ["RES"]), removing(trials, [second], [part])
            found.append(less(trials, trials["change"], a, b, words))
    return found


DRAWING: Final = Drawing(figure, sentence, ("strategy", "group", "deactivated"))
