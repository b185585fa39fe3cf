"""Figure 6: what removing all predecessors does, by strategy and by the layer or the group of the target."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saeflow.experiments.deactivation_tables import CONTROL, TOP_1
from saeflow.experiments.statistics import GAP
from saeflow.paper.frame import GROUPS, Frame, FrameRow, only
from saeflow.paper.kinds import (
    CHANGE,
    DEACTIVATED,
    Drawing,
    Line,
    control_signs,
    forest,
    line,
    measure_axis,
    measure_tip,
    reach,
)
from saeflow.paper.style import ACCENT, MUTED, Medium, colour, layer_axis, nothing, panels, title
from saeflow.paper.trials import (
    ALIKE,
    WITH_RES,
    both,
    control_beside,
    control_rate,
    is_control,
    less,
    main_strategy,
    of_means,
    on_same_targets,
    rate_words,
    removing,
)
from saeflow.paper.verdicts import ClaimNumber, Rule
from saeflow.paper.words import count, listed, percent, percent_interval


def layer_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw rates and changes by layer, with a column of panels for each strategy, and controls (fig. 6)."""
    strategies, layers = frame.distinct("strategy"), frame.layers()
    across = medium.across(len(strategies), 12.5, beside=3)
    groups = [strategies[i : i + across] for i in range(0, len(strategies), across)]
    mosaic = [[f"{name} {i}" for name in group] + ["."] * (across - len(group)) for group in groups for i in range(2)]
    names = sorted(f"{name} {i}" for name in strategies for i in range(2))
    drawn, found_axes = panels(medium, caption, mosaic, 7.5, signs=control_signs(), over=4.0)
    place = dict(zip(names, found_axes, strict=True))
    for number, strategy in enumerate(strategies):
        rows = frame.where(strategy=strategy).lookup("layer")
        for i, measure in enumerate((DEACTIVATED, CHANGE)):
            axes = place[f"{strategy} {i}"]
            pairs = [both(rows[str(n)])[i] for n in layers]
            for which, tone in ((1, MUTED), (0, ACCENT)):  # controls beneath what they control
                name = f"control of {strategy}" if which else strategy
                series = [pair[which] for pair in pairs]
                tips = [
                    measure_tip(f"{name}, layer {n}", e, measure) if e else ""
                    for n, e in zip(layers, series, strict=True)
                ]
                line(axes, layers, series, tips, tone=tone, hollow=bool(which))
            measure_axis(axes, measure, *reach(e for row in frame.records for e in both(row)[i]))
            first = number % across == 0
            layer_axis(axes, layers, f"↑ {measure.head} · layer" if first else "")
            if not first:
                axes.set_yticklabels([])
            if i == 0:
                title(axes, strategy, _in_all(rows["all"]), room=medium.ems / across - 2.0)
    return drawn


def _in_all(row: FrameRow) -> str:
    """The rate over all layers, if the table has it: `all 70 %, control 5 %`."""
    if not row:
        return ""
    control = row.number("control_deactivated")
    return f"all {percent(row.number('deactivated'))}" + ("" if control is None else f", control {percent(control)}")


def layer_sentence(frame: Frame) -> str:
    """Each strategy with its control over all layers, or else the lowest and highest layer of the main one."""
    main = main_strategy(frame)
    every = only(frame, strategy=main, layer="all")
    found = every.estimate("deactivated")
    if found is not None:
        said = f"{main} deactivates {percent_interval(found)} of {count(found.n)} targets"
        control = control_rate(every)
        if control is not None:
            said += f"; the active control {percent_interval(control)}"
        known = [
            f"{name} {percent(row.number('deactivated'))}{control_beside(row)}"
            for name in frame.distinct("strategy")
            if name != main and (row := only(frame, strategy=name, layer="all")).number("deactivated") is not None
        ]
        return f"{said}. Of the targets of each: {listed(known)}." if known else f"{said}."
    each = {n: only(frame, strategy=main, layer=str(n)) for n in frame.layers()}
    rows = {n: row for n, row in each.items() if row.number("deactivated") is not None}
    if not rows:
        return ""
    low, high = (pick(rows, key=lambda n: rows[n].number("deactivated") or 0.0) for pick in (min, max))
    ends = [rate_words(rows[layer], f"at layer {layer}") for layer in dict.fromkeys((low, high))]
    return f"{main} deactivates {'; and '.join(ends)}."


def group_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw rates and changes by group and strategy, with controls: all named predecessors removed (fig. 6).

    Only strategies with controls are drawn, if there are any. An exhaustive search reports for each target the edit
    that worked best, so that its rates by what it removed are selected by outcome.
    """
    controlled = {r.words("strategy") for r in frame.records if r.number("control_deactivated") is not None}
    strategies = [s for s in frame.distinct("strategy") if s in controlled or not controlled]
    found = frame.lookup("group", "removed", "strategy")
    lines: list[Line] = []
    for group in frame.groups():
        lines += [
            Line(strategy, colour(group), both(row), row.number("n"), group, is_control(row))
            for strategy in strategies
            if (row := found[group, group, strategy])
        ]
    if not lines:
        return nothing(medium, caption, "no trial removed all predecessors of its target")
    return forest(
        lines, (DEACTIVATED, CHANGE), medium, f"{caption} · all available predecessors removed", controls=True
    )


def group_sentence(frame: Frame) -> str:
    """The groups in which removing everything works best and worst."""
    main = main_strategy(frame)
    each = {group: only(frame, strategy=main, group=group, removed=group) for group in GROUPS}
    rows = {group: row for group, row in each.items() if row.number("deactivated") is not None}
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda g: -(rows[g].number("deactivated") or 0.0))
    ends = [rate_words(rows[group], f"from {group}") for group in dict.fromkeys((ordered[0], ordered[-1]))]
    return f"Removing all that {main} names deactivates {'; and '.join(ends)}."


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_random(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Top-1 silences more than a random one of the top five, on targets for which both name a predecessor."""
    return [on_same_targets(trials, TOP_1, "random of top-5")]


def claim_cause(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Removing the match silences more than removing another active feature of the same site."""
    return [on_same_targets(trials, TOP_1, CONTROL)]


def claim_modules(trials: pd.DataFrame) -> list[ClaimNumber]:
    """Top-5 does about as well as top-1 where the only predecessor is from the MLP or from attention."""
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
    """Top-5 gains more over top-1 where a residual predecessor occurs together with a module's."""
    sets = [
        removing(trials, groups, strategy=name) for groups in (WITH_RES, ("MLP", "ATT")) for name in ("top-5", TOP_1)
    ]
    words = "gain of top-5 over top-1 where RES stands with a module, less that in From MLP and From ATT"
    sides = "{} against {} beside a module, {} against {} in From MLP and From ATT"

    def gain(m: np.ndarray) -> np.ndarray:
        return (m[:, 0] - m[:, 1]) - (m[:, 2] - m[:, 3])

    return [of_means(trials, trials["deactivated"], sets, gain, words, sides=sides, span=(-2, 2))]


def claim_residual_most(trials: pd.DataFrame) -> list[ClaimNumber]:
    """A residual predecessor matters more than a module's, both alone and beside it."""
    found: list[ClaimNumber] = []
    for part in ("MLP", "ATT"):
        both = f"RES & {part}"
        alone = f"change by RES in From RES less that by {part} in From {part}"
        together = f"change by RES less that by {part}, both in From {both}"
        for first, second, words in (("RES", part, alone), (both, both, together)):
            a, b = removing(trials, [first], ["RES"]), removing(trials, [second], [part])
            found.append(less(trials, trials["change"], a, b, words))
    return found


DRAWINGS: Final = {
    "by_strategy_layer": Drawing(layer_figure, layer_sentence, ("strategy", "layer", "deactivated")),
    "by_strategy": Drawing(group_figure, group_sentence, ("strategy", "group", "deactivated")),
}
