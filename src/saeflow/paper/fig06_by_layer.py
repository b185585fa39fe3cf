"""Figure 6: what removing all predecessors does at each layer, by strategy."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Row, only
from saeflow.paper.kinds import CHANGE, DEACTIVATED, Box, Drawing, control_signs, line, panels, reach, told
from saeflow.paper.style import ACCENT, MUTED, Canvas, Medium, layer_axis, tidy
from saeflow.paper.trials import both, control_beside, main_strategy, measure_axis, rate_told
from saeflow.paper.words import count, listed, percent, percent_interval


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Rates and changes by layer, a column of panels for each strategy, with controls (fig. 6)."""
    strategies = frame.distinct("strategy")
    across = medium.across(len(strategies), 12.5, beside=3)
    tall = 7.5
    canvas, places = panels(
        medium,
        caption,
        len(strategies),
        across=across,
        tall=2 * tall + 6.0,
        drop=2.0,
        below=1.2,
        gap=1.8,
        right=1.2,
        head=2.0,
        signs=control_signs(),
    )
    for strategy, box in zip(strategies, places, strict=True):
        canvas.title(box.left, box.top - 0.6, box.width, strategy)
        canvas.write(box.left, box.top + 0.6, _in_all(frame, strategy), size=0.74, colour=MUTED)
        for i in range(2):
            panel = Box(box.left, box.top + 1.6 + i * (tall + 2.4), box.width, tall)
            _layer_panel(canvas, panel, frame, strategy, i, first=box.left == places[0].left)
    return canvas.figure


def _in_all(frame: Frame, strategy: str) -> str:
    """What all layers give together, where the table says so: `all: 70 %, control 5 %`."""
    row = frame.lookup("strategy", "layer").get((strategy, "all"))
    if row is None:
        return ""
    control = row.number("control_deactivated")
    return f"all layers {percent(row.number('deactivated'))}" + (
        "" if control is None else f", control {percent(control)}"
    )


def _layer_panel(canvas: Canvas, box: Box, frame: Frame, strategy: str, index: int, *, first: bool) -> None:
    """One measure of one strategy over the layers: filled the predecessors, hollow the control."""
    measure, em, layers = (DEACTIVATED, CHANGE)[index], canvas.medium.text, frame.layers()
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    found = frame.where(strategy=strategy).lookup("layer")
    pairs = [both(row)[index] if (row := found.get((str(n),))) else (None, None) for n in layers]
    for which, tone in ((1, MUTED), (0, ACCENT)):
        name = f"control of {strategy}" if which else strategy
        series = [pair[which] for pair in pairs]
        tips = [told(f"{name}, layer {n}", e, measure) if e else "" for n, e in zip(layers, series, strict=True)]
        line(axes, layers, series, name, tone=tone, em=em, hollow=bool(which), tips=tips)
    low, high = reach([e for row in frame.records for e in both(row)[index]])
    measure_axis(axes, measure, low, high)
    if not first:
        axes.set_yticklabels([])
    layer_axis(axes, layers, box.width)
    axes.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
    tidy(axes, values="y", em=em)
    if first:
        canvas.write(box.left, box.top + box.height + 2.1, f"↑ {measure.head} · layer", size=0.74, colour=MUTED)


def sentence(frame: Frame) -> str:
    """Each strategy with its control over all layers, or between which layers the main one varies."""
    main = main_strategy(frame)
    every = only(frame, strategy=main, layer="all")
    if every is not None and every.number("deactivated") is not None:
        return _overall(frame, main, every)
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


def _overall(frame: Frame, main: str, row: Row) -> str:
    found = row.estimate("deactivated")
    if found is None:
        return ""
    told = f"{main} deactivates {percent_interval(found)} of {count(found.n)} targets"
    control = row.estimate("control_deactivated", "control_low", "control_high", "control_n")
    if control is not None:
        told += f"; the active control {percent_interval(control)}"
    names = [name for name in frame.distinct("strategy") if name != main]
    others = [_briefly(name, only(frame, strategy=name, layer="all")) for name in names]
    known = [text for text in others if text]
    return f"{told}. Of the targets of each: {listed(known)}." if known else f"{told}."


def _briefly(name: str, row: Row | None) -> str:
    """`top-5 87 % (control 8 %)`; empty for a gap."""
    if row is None:
        return ""
    value = row.number("deactivated")
    return "" if value is None else f"{name} {percent(value)}{control_beside(row)}"


DRAWING: Final = Drawing(figure, sentence, ("strategy", "layer", "deactivated"))
