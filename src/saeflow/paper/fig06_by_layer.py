"""Figure 6: what removing all predecessors does at each layer, by strategy."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, TableRow, only
from saeflow.paper.kinds import CHANGE, DEACTIVATED, Drawing, control_signs, line, reach, told
from saeflow.paper.style import ACCENT, MUTED, Medium, layer_axis, panels, title, value_axis
from saeflow.paper.trials import both, control_beside, main_strategy, rate_told
from saeflow.paper.words import count, listed, percent, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Rates and changes by layer, a column of panels for each strategy, with controls (fig. 6)."""
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
            pairs = [both(row)[i] if (row := rows.get((str(n),))) else (None, None) for n in layers]
            for which, tone in ((1, MUTED), (0, ACCENT)):  # controls lie under what they control
                name = f"control of {strategy}" if which else strategy
                series = [pair[which] for pair in pairs]
                tips = [
                    told(f"{name}, layer {n}", e, measure) if e else "" for n, e in zip(layers, series, strict=True)
                ]
                line(axes, layers, series, tips, tone=tone, hollow=bool(which))
            low, high = reach(e for row in frame.records for e in both(row)[i])
            value_axis(axes, "y", low, min(high, 1.02) if measure is DEACTIVATED else high, unit=measure.unit)
            first = number % across == 0
            layer_axis(axes, layers, f"↑ {measure.head} · layer" if first else "")
            if not first:
                axes.set_yticklabels([])
            if i == 0:
                title(axes, strategy, _in_all(rows.get(("all",))), room=medium.ems / across - 2.0)
    return drawn


def _in_all(row: TableRow | None) -> str:
    """What all layers give together, where the table says so: `all 70 %, control 5 %`."""
    if row is None:
        return ""
    control = row.number("control_deactivated")
    return f"all {percent(row.number('deactivated'))}" + ("" if control is None else f", control {percent(control)}")


def sentence(frame: Frame) -> str:
    """Each strategy with its control over all layers, or between which layers the main one varies."""
    main = main_strategy(frame)
    every = only(frame, strategy=main, layer="all")
    found = every.estimate("deactivated") if every is not None else None
    if every is not None and found is not None:
        said = f"{main} deactivates {percent_interval(found)} of {count(found.n)} targets"
        control = every.estimate("control_deactivated", "control_low", "control_high", "control_n")
        if control is not None:
            said += f"; the active control {percent_interval(control)}"
        known = [
            f"{name} {percent(row.number('deactivated'))}{control_beside(row)}"
            for name in frame.distinct("strategy")
            if name != main
            and (row := only(frame, strategy=name, layer="all"))
            and row.number("deactivated") is not None
        ]
        return f"{said}. Of the targets of each: {listed(known)}." if known else f"{said}."
    rows = {
        n: r
        for n in frame.layers()
        if (r := only(frame, strategy=main, layer=str(n))) and r.number("deactivated") is not None
    }
    if not rows:
        return ""
    low, high = (pick(rows, key=lambda n: rows[n].number("deactivated") or 0.0) for pick in (min, max))
    ends = [rate_told(rows[layer], f"at layer {layer}") for layer in dict.fromkeys((low, high))]
    return f"{main} deactivates {'; and '.join(ends)}."


DRAWING: Final = Drawing(figure, sentence, ("strategy", "layer", "deactivated"))
