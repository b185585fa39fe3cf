"""Beyond the paper: the confirmed score of each method at its best setting, for every theme."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from saeflow.paper.evidence import SteeringRun
from saeflow.paper.frame import Frame, FrameRow, best
from saeflow.paper.kinds import DotRow, Drawing, Mark
from saeflow.paper.steering import (
    BETTER,
    MULTI,
    MethodKey,
    find,
    key_name,
    look,
    of_methods,
    over_themes,
    row_key,
    row_keys,
    score_of,
    score_tip,
    scored,
    theme_panels,
    themes,
    verb,
)
from saeflow.paper.style import DASHES, MUTED, Medium, Sign
from saeflow.paper.verdicts import BELOW_0, ClaimNumber, NotMeasured, Rule
from saeflow.paper.words import decimal, decimal_interval, listed
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import START_LAYER


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the confirmed score of each method at its best setting, with hollow baselines, for every theme.

    The setting was chosen on one set of seeds and is measured here on another, so that no method gains from having had
    more settings to choose from. Random rows stand beneath the method whose features they replace.
    """
    owned = {row_key(row) for row in frame.records}
    shown: dict[str, dict[MethodKey, DotRow]] = {}
    for theme, rows in frame.by("theme").items():
        lines = shown[theme] = {}
        for row in sorted(rows.records, key=lambda row: bool(row.words("mirrors"))):
            found, mirrored = row.estimate("score"), (row.words("mirrors"), "")
            if found is None:
                continue
            kind = look("random" if mirrored in owned else row.words("method"))
            if mirrored in owned:
                text = f"{theme}, {score_tip(row, found)}; random rows in place of those of {mirrored[0]}"
                there = lines.get(mirrored, DotRow(key_name(mirrored)))
                mark = Mark(found, text, kind.tone, kind.shape, kind.hollow, 0.3)
                lines[mirrored] = replace(there, marks=(*there.marks, mark))
                continue
            marks = [
                f"{name} {decimal_interval(e)}"
                for name in ("behavior", "coherence")
                if (e := row.estimate(name, f"{name}_low", f"{name}_high"))
            ]
            text = f"{theme}, {score_tip(row, found)}" + (f"; {', '.join(marks)}" if marks else "")
            mark = Mark(found, text, kind.tone, kind.shape, kind.hollow)
            lines[row_key(row)] = DotRow(key_name(row_key(row)), (mark,), (decimal(found.value),))
    keys = [key for key in row_keys(frame) if any(key in lines for lines in shown.values())]
    signs = [Sign("features of flow graphs"), Sign("baseline", hollow=True)]
    if any(len(row.marks) > 1 for lines in shown.values() for row in lines.values()):
        signs.append(Sign("random rows in their place", MUTED, "^", hollow=True))
    signs += [Sign("unsteered", shape=DASHES), Sign("lines: 95 % intervals", shape="")]
    return theme_panels(frame, shown, keys, medium, caption, "score", signs)


def sentence(frame: Frame) -> str:
    """The best multi-layer method against the others: its scores, or in how many themes it is above them."""
    phrases: list[str] = []
    for direction, rows in frame.by("direction").items():
        themes = rows.by("theme")
        phrases.append(_scores_of(rows, direction) if len(themes) == 1 else _above(themes, direction))
    return " ".join(word for word in phrases if word)


def _scores_of(frame: Frame, direction: str) -> str:
    top = best(of_methods(frame.records, *MULTI))
    known = [row for row in frame.records if row.number("score") is not None]
    rows = sorted((row for row in known if _matters(row, top)), key=score_of, reverse=True)
    theme = next(iter(frame.distinct("theme")), "")
    phrases = [text for row in rows if (text := scored(row))]
    return f"{verb(direction)} {theme}: {listed(phrases)}." if phrases else ""


def _matters(row: FrameRow, top: FrameRow | None) -> bool:
    """Whether to report a row: of the rows that mirror a method, only those of the best multi-layer method."""
    mirrors = row.words("mirrors")
    return not mirrors or (top is not None and mirrors == top.words("method"))


def _above(themes: Mapping[str, Frame], direction: str) -> str:
    tops = {t: row for t, rows in themes.items() if (row := best(of_methods(rows.records, *MULTI))) is not None}
    if not tops:
        return ""
    phrases: list[str] = []
    for other in ("start", "single", "prompt", "random", "none"):
        rows = {
            t: [row for row in of_methods(themes[t].records, other) if _matters(row, top)] for t, top in tops.items()
        }
        rivals = {t: row for t, found in rows.items() if (row := best(found)) is not None}
        if rivals:
            higher = sum(score_of(tops[t]) > score_of(row) for t, row in rivals.items())
            clear = sum(_apart(tops[t], row) for t, row in rivals.items())
            apart = f" ({clear})" if phrases else f" (intervals apart in {clear})"
            phrases.append(f"{look(other).name} in {higher}{apart}")
    middle = decimal(statistics.median(score_of(row) for row in tops.values()))
    above = f", and is above {listed(phrases)}" if phrases else ""
    where = f"in the median of {len(tops)} themes"
    return f"{verb(direction)}, the best multi-layer method scores {middle} {where}{above}."


def _apart(upper: FrameRow, lower: FrameRow) -> bool:
    low, high = upper.number("low"), lower.number("high")
    return low is not None and high is not None and low > high


# --- claims -----------------------------------------------------------------------------------------------------------


def _both_ways(run: SteeringRun, measure: str, other: str, words: str, rule: Rule = BETTER) -> list[ClaimNumber]:
    """A measure of the multi-layer methods less that of another method, at settings confirmed on fresh samples.

    There is one finding for each direction that was steered. The control has random rows in place of the features of
    the multi-layer methods.
    """
    fresh, found = run.fresh, list[ClaimNumber]()
    for direction in SteeringDirection:
        if not (fresh.settings["direction"] == direction.value).any():
            continue
        each: dict[str, np.ndarray] = {}
        control: dict[str, np.ndarray] = {}
        for theme in themes(fresh, direction):
            # multi-layer methods that stop at the first layer steer only that one, so they are left out
            first = min(find(run.grid, theme, direction, "single")["layer"], default=-1)
            against, several = (find(fresh, theme, direction, *names) for names in ((other,), MULTI))
            against, several = (places[places["role"] != START_LAYER] for places in (against, several))
            randoms = find(fresh, theme, direction, "random", mirrors=MULTI)
            several, randoms = (places.index[places["layer"] > first] for places in (several, randoms))
            if len(against) and len(several):
                values = fresh.values[measure]
                each[theme] = values[several].mean(0) - values[against.index[0]]
                if len(randoms):
                    control[theme] = values[randoms].mean(0) - values[against.index[0]]
        if each:
            found.append(over_themes(fresh, each, f"{words}, {direction.value}", rule, control=control))
    if not found:
        raise NotMeasured(f"No direction has confirmed settings of several layers and of {other}.")
    return found


def claim_improves(run: SteeringRun) -> list[ClaimNumber]:
    """Several layers steer better than the start features alone, each at its best setting."""
    return _both_ways(run, "score", "start", "score of the multi-layer methods less that of the start features")


def claim_beats_single(run: SteeringRun) -> list[ClaimNumber]:
    """Several layers steer better than the best single layer."""
    return _both_ways(run, "score", "single", "score of the multi-layer methods less that of the best single layer")


def claim_smaller(run: SteeringRun) -> list[ClaimNumber]:
    """At their best, several layers change the hidden state less than a single one."""
    words = "share of the hidden norm that is changed by the multi-layer methods less that by the best single layer"
    return _both_ways(run, "share_total", "single", words, BELOW_0)


DRAWINGS: Final = {
    "steering_best": Drawing(figure, sentence, ("theme", "direction", "method", "score"), each=("direction",))
}
