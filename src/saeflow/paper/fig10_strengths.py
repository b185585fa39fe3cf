"""Figures 10 and 11: steering scores over the coefficient r or s, for one theme and direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.experiments.statistics import ratio
from saeflow.paper.evidence import SteeringRun
from saeflow.paper.frame import Frame, Interval, best
from saeflow.paper.kinds import Drawing, line, point, reach
from saeflow.paper.steering import (
    ACTIVATE,
    BETTER,
    MULTI,
    SUPPRESS,
    by_value,
    dashed,
    default_of,
    direction_of,
    dose,
    find,
    look,
    method_signs,
    methods,
    of_blocks,
    of_themes,
    over_themes,
    plain,
    score_of,
    score_signs,
    score_tip,
    scored,
    themes,
    unsteered,
    verb,
)
from saeflow.paper.style import MUTED, RULE, Medium, apart, ems, nothing, panels, value_axis
from saeflow.paper.verdicts import ABOVE_0, BELOW_0, ClaimNumber, NotMeasured, Rule
from saeflow.paper.words import decimal, decimal_interval, listed

MARK: Final = 5.0
"""The highest mark that a judge gives for behavior or coherence (B.1, B.2)."""


_MEASURES: Final = (
    ("score", "score", "low", "high"),
    ("behavior, 0 to 5", "behavior", "behavior_low", "behavior_high"),
    ("coherence, 0 to 5", "coherence", "coherence_low", "coherence_high"),
)
"""Head, column and the columns of its interval."""


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw score, behavior and coherence over r (fig. 10) or s (fig. 11), each at the best layer, and their trade-off.

    The last panel sets coherence against behavior: a method's path through it is its choice of coefficients, and along
    a thin curve the score is constant.
    """
    shown = [m for m in methods(frame) if m not in {"none", "prompt"}]
    values = frame.numbers("value")
    if not shown or not values:
        return nothing(medium, caption, "no method was swept over a coefficient")
    default, suppress = default_of(frame), direction_of(frame) == SUPPRESS
    mosaic = [["a"] * 3, ["b", "c", "d"]] if medium.wide else [["a"], ["b"], ["c"], ["d"]]
    tall = [13.0, *[11.0] * (len(mosaic) - 1)]
    signs = method_signs(shown) + score_signs(frame)
    drawn, places = panels(medium, caption, mosaic, tall, signs=signs)
    # coefficients to scale if their steps are similar, else at equal steps
    steps = [b - a for a, b in pairwise(values)]
    even = not steps or max(steps) <= 3 * min(steps)
    at = dict(zip(values, values if even else [float(i) for i in range(len(values))], strict=True))
    note = "r: factor of each activation, 1" if suppress else "s: strength of each feature, 0"
    note += " changes nothing" + ("" if even else "; not to scale")
    for number, (axes, (head, *columns)) in enumerate(zip(places, _MEASURES, strict=False)):
        everything: list[Interval | None] = []
        if number == 0 and default is not None:
            dashed(axes, default)
            everything.append(Interval(default))
        for method in shown:
            rows = frame.where(method=method).by_number("value")
            found = [row.estimate(*columns) for row in rows.values()]
            tips = [score_tip(row, e, columns[0]) if e else "" for row, e in zip(rows.values(), found, strict=True)]
            kind = look(method)
            line(axes, [at[v] for v in rows], found, tips, tone=kind.tone, hollow=kind.hollow, shape=kind.shape)
            everything += found
        value_axis(axes, "y", *(reach(everything) if number == 0 else (0.0, MARK)))
        across = 1 if number == 0 else len(mosaic[1])
        ticks = apart([at[v] for v in values], 2.6 * across / medium.ems)
        axes.set_xticks(ticks, [plain(v) for v in values if at[v] in ticks])
        air = 0.03 * max(at[values[-1]] - at[values[0]], 1.0)
        axes.set_xlim(at[values[0]] - air, at[values[-1]] + air)
        axes.set_title(head)
        axes.set_xlabel(note if number == 0 else note[:1])
    _trade(places[3], frame, shown, suppress=suppress)
    return drawn


def _trade(axes: Axes, frame: Frame, shown: Sequence[str], *, suppress: bool) -> None:
    """Draw coherence over behavior: a path for each method, with a large mark at its best, over equal-score curves."""
    for score in (0.1, 0.2, 0.4, 0.6, 0.8):
        kept = [MARK * (score + (1 - score) * i / 40) for i in range(41)]  # the factor besides coherence
        xs, ys = [MARK - x for x in kept] if suppress else kept, [MARK * MARK * score / x for x in kept]
        axes.plot(xs, ys, color=RULE, lw=ems(0.09), zorder=1)
        side: dict[str, Any] = {"ha": "left" if suppress else "right", "va": "bottom"}
        axes.text(xs[-1], ys[-1] + 0.06, decimal(score, 1), fontsize=ems(0.66), color=MUTED, zorder=1, **side)
    for method in shown:
        kind = look(method)
        known = sorted(
            (value, behavior, coherence, row)
            for row in frame.where(method=method).records
            if (value := row.number("value")) is not None
            and (behavior := row.number("behavior")) is not None
            and (coherence := row.number("coherence")) is not None
        )
        axes.plot(
            [b for _, b, _, _ in known], [c for _, _, c, _ in known], color=kind.tone, lw=ems(0.1), alpha=0.75, zorder=3
        )
        top = best(row for *_, row in known)
        for _, x, y, row in known:
            size, order = (0.52, 5) if row is top else (0.24, 4)
            score = row.estimate("score")
            more = f", score {decimal_interval(score)}" if score else ""
            text = f"{kind.name}, {dose(row)}: behavior {decimal(x)}, coherence {decimal(y)}{more}"
            text = f"best: {text}" if row is top else text
            point(axes, x, y, text, tone=kind.tone, size=size, shape=kind.shape, order=order)
    value_axis(axes, "x", 0, MARK)
    value_axis(axes, "y", 0, MARK)
    axes.grid(visible=False)
    axes.set_title("coherence over behavior")
    axes.set_xlabel("large: best score; thin: the same score")


def sentence(frame: Frame) -> str:
    """The best coefficient of each method; for several themes, which method reaches the highest score."""
    phrases: list[str] = []
    for direction, rows in frame.by("direction").items():
        themes = rows.by("theme")
        phrases.append(_best_values(rows, direction) if len(themes) == 1 else _winners(themes, direction))
    return " ".join(word for word in phrases if word)


def _best_values(frame: Frame, direction: str) -> str:
    swept = [m for m in methods(frame) if m not in {"none", "prompt"}]
    tops = [row for m in swept if (row := best(frame.where(method=m).records)) is not None]
    phrases = [text for row in sorted(tops, key=score_of, reverse=True) if (text := scored(row))]
    symbol = "r" if direction == SUPPRESS else "s"
    return f"Highest scores over {symbol}: {listed(phrases)}{unsteered(frame)}." if phrases else ""


def _winners(themes: Mapping[str, Frame], direction: str) -> str:
    tops = [row for rows in themes.values() if (row := best(rows.records)) is not None]
    wins = {m: sum(row.words("method") == m for row in tops) for m in {row.words("method") for row in tops}}
    phrases = [f"{look(m).name} in {wins[m]}" for m in sorted(wins, key=lambda m: (-wins[m], m))]
    return (
        f"{verb(direction)}, the highest score of {len(tops)} themes is that of {listed(phrases)}." if phrases else ""
    )


# --- claims -----------------------------------------------------------------------------------------------------------


_LIMITS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Limits on the change of a hidden state, as a share of its norm, tried from the smallest up."""


def _over_values(run: SteeringRun, a: str, b: str, *, weak: bool = False) -> dict[str, np.ndarray]:
    """Score of method a less that of method b by theme, averaged over r (over its weaker half if `weak`)."""
    each: dict[str, np.ndarray] = {}
    for theme in themes(run.grid, SUPPRESS):
        one, two = (by_value(run.grid, theme, SUPPRESS, method) for method in (a, b))
        both = [value for value in one if value in two]
        kept = both[: (len(both) + 1) // 2] if weak else both
        if kept:
            each[theme] = np.mean([one[value] - two[value] for value in kept], axis=0)
    return each


def claim_better(run: SteeringRun) -> list[ClaimNumber]:
    """Layers found by flow graphs do better than the start features alone, over all r."""
    words = "score of {} less that of the start features, mean over r"
    return [
        over_themes(run.grid, _over_values(run, method, "start"), words.format(method))
        for method in ("single", "cumulative")
    ]


def claim_weak(run: SteeringRun) -> list[ClaimNumber]:
    """Cumulative does better than single at weak r."""
    each = _over_values(run, "cumulative", "single", weak=True)
    return [over_themes(run.grid, each, "score of cumulative less that of single at the weaker half of r")]


def claim_steady(run: SteeringRun) -> list[ClaimNumber]:
    """The score of cumulative depends less on r than that of the start features, and of single layers."""
    found: list[ClaimNumber] = []
    for other in ("start", "single"):
        blocks: list[np.ndarray] = []
        for theme in themes(run.grid, SUPPRESS):
            one, two = ([*by_value(run.grid, theme, SUPPRESS, m).values()] for m in (other, "cumulative"))
            if len(one) == len(two) > 1:
                blocks.append(np.stack([one, two]))
        if not blocks:
            raise NotMeasured(f"{other} and cumulative were not both run at several r.")
        tally = of_blocks(run.grid, blocks)  # (samples, themes, methods, r)

        def spread(x: np.ndarray) -> np.ndarray:
            means = ratio(x)
            wide = np.fmax.reduce(means, -1) - np.fmin.reduce(means, -1)  # a theme may have fewer r
            return (wide[..., 0] - wide[..., 1]).mean(-1)

        words = f"spread of the score over r of {other} less that of cumulative"
        estimate = tally.estimate(spread, n=float(tally.sums[..., 1].sum()))
        found.append(ClaimNumber(words, estimate, BETTER, "number", beside=of_themes(len(blocks))))
    return found


def claim_small(run: SteeringRun) -> list[ClaimNumber]:
    """Cumulative does better than single where both may change the hidden state only a little."""
    grid = run.grid
    both = {
        theme: steered
        for theme in themes(grid, SUPPRESS)
        if all(map(len, steered := [find(grid, theme, SUPPRESS, method) for method in ("cumulative", "single")]))
    }
    for limit in _LIMITS:
        each: dict[str, np.ndarray] = {}
        for theme, steered in both.items():
            within = [found.index[found["share_total"] <= limit] for found in steered]
            if all(map(len, within)):
                each[theme] = grid.crossfit(within[0]) - grid.crossfit(within[1])
        if len(each) == len(both) > 0:
            words = f"score of cumulative less that of single, both within {100 * limit:.0f} % of the hidden norm"
            return [over_themes(grid, each, words)]
    raise NotMeasured("There is no limit on the change under which every theme has both methods.")


def _same_setting(run: SteeringRun, measure: str, what: str, rule: Rule) -> list[ClaimNumber]:
    """A mark of the multi-layer methods less that of single at the same s and layer, averaged within each theme."""
    grid = run.grid
    each: dict[str, np.ndarray] = {}
    for theme in themes(grid, ACTIVATE):
        single, several = find(grid, theme, ACTIVATE, "single"), find(grid, theme, ACTIVATE, *MULTI)
        several = several[several["layer"] > single["layer"].min()] if len(single) else several
        pairs = several.reset_index().merge(single.reset_index(), on=["value", "layer"], suffixes=("", "_single"))
        if len(pairs):
            values = grid.values[measure]
            each[theme] = (values[pairs["index"]] - values[pairs["index_single"]]).mean(0)
    words = f"{what} (0 to 5) of the multi-layer methods less that of single, at the same s and layer"
    return [over_themes(grid, each, words, rule)]


def claim_topic(run: SteeringRun) -> list[ClaimNumber]:
    """At the same s, steering several layers brings more of the topic than steering only the last of them (fig. 11)."""
    return _same_setting(run, "behavior", "topic", ABOVE_0)


def claim_coherence(run: SteeringRun) -> list[ClaimNumber]:
    """Several layers cost coherence (fig. 11)."""
    return _same_setting(run, "coherence", "coherence", BELOW_0)


DRAWINGS: Final = {
    "steering_by_value": Drawing(
        figure, sentence, ("theme", "direction", "method", "value", "score"), each=("theme", "direction")
    )
}
