"""Shares of the eight groups: by layer, by data set, by method, by strategy (figures 5, 12a, 15, 17a, 18, 19a-b)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.report.figures.frame import (
    GROUPS,
    Estimate,
    Frame,
    Row,
    count,
    in_order,
    percent,
)
from saeflow.report.figures.parts import Box, boxes, line, mark, reach, said, stack, strip
from saeflow.report.figures.style import (
    INK,
    MUTED,
    PAPER,
    RULE,
    Canvas,
    Medium,
    advance,
    colour,
    foot,
    key_height,
    layer_axis,
    shares_axis,
    spread,
    tidy,
)  # fmt: skip

EVERY = "all"
_SHAPES = ("o", "D", "s", "^")


def name_of(dataset: str) -> str:
    """How a data set is called on a figure."""
    return "all datasets" if dataset == EVERY else dataset


def shares_by_layer(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups by layer (fig. 5, 19b): stacks for every data set, and lines with intervals for all of them."""
    datasets, groups, layers = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups(), frame.layers()
    wide = medium.wide
    first, rest = datasets[:1], datasets[1:] if len(datasets) > 2 or EVERY not in datasets else ()
    across = min(medium.across(max(1, len(rest)), 15 if wide else 13), 4)
    rows = -(-len(rest) // across)
    big, small = (15.0, 8.5) if wide else (13.0, 7.5)
    keyed = key_height(medium, groups)
    top = keyed + 1.8
    below = top + (big if wide else 2 * big + 4.2) + 4.4
    canvas = Canvas(medium, below + rows * (small + 4.2) - (0 if rows else 1.2) + foot(medium, caption) - 0.6)
    canvas.key(0.2, 0.2, groups)
    half = (canvas.width - 4 - 10.5) / 2 - 1 if wide else canvas.width - 4
    found = frame.lookup("dataset", "layer", "group")
    _stack_panel(canvas, Box(3, top, half, big), first[0], found, groups, layers)
    lines = Box(3 + half + 4, top, half - 1, big) if wide else Box(3, top + big + 4.2, half - 8, big)
    _line_panel(canvas, lines, first[0], found, groups, layers)
    area = Box(3, below, canvas.width - 4, small)
    for dataset, box in zip(rest, boxes(len(rest), across, area, gap=1.6, drop=4.2), strict=True):
        _stack_panel(canvas, box, dataset, found, groups, layers, axis=box.left == area.left)
    canvas.caption(caption)
    return canvas.figure


def _title(canvas: Canvas, box: Box, text: str, n: float | None = None) -> None:
    canvas.title(box.left, box.top - 0.6, box.width, text, "" if n is None else f"n = {count(n)}")


def _stack_panel(
    canvas: Canvas,
    box: Box,
    dataset: str,
    found: dict[tuple[str, ...], Row],
    groups: Sequence[str],
    layers: Sequence[int],
    *,
    axis: bool = True,
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    columns = {group: [_share(found, dataset, layer, group) for layer in layers] for group in groups}
    stack(
        axes, layers, columns, [f"layer {layer}" for layer in layers], width=0.94 if len(layers) < 14 else 1.0
    )
    shares_axis(axes, "y", 0, 1)
    layer_axis(axes, layers, box.width)
    axes.set_xlim(layers[0] - 0.55, layers[-1] + 0.55)
    if not axis:
        axes.set_yticks([])
    if axis:
        canvas.write(box.left, box.top + box.height + 2.3, "layer", size=0.74, colour=MUTED)
    _title(canvas, box, name_of(dataset), _total(found, dataset, layers, groups))


def _share(found: dict[tuple[str, ...], Row], dataset: str, layer: int, group: str) -> float | None:
    row = found.get((dataset, str(layer), group))
    return None if row is None else row.number("share")


def _total(
    found: dict[tuple[str, ...], Row], dataset: str, layers: Sequence[int], groups: Sequence[str]
) -> float | None:
    """n of a data set: the n of a share is that of its layer, the same for every group."""
    known: list[float] = []
    for layer in layers:
        ns = [n for g in groups if (row := found.get((dataset, str(layer), g))) and (n := row.number("n"))]
        known += [max(ns)] if ns else []
    return sum(known) if known else None


def _line_panel(
    canvas: Canvas,
    box: Box,
    dataset: str,
    found: dict[tuple[str, ...], Row],
    groups: Sequence[str],
    layers: Sequence[int],
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    values = {
        group: [
            row.estimate("share") if (row := found.get((dataset, str(layer), group))) else None
            for layer in layers
        ]
        for group in groups
    }
    _, high = reach([e for column in values.values() for e in column])
    high = min(1.0, high)
    for group, column in values.items():
        tips = [said(f"{group}, layer {n}", e) if e else "" for n, e in zip(layers, column, strict=True)]
        line(axes, layers, column, group, tone=colour(group), em=em, tips=tips)
    shares_axis(axes, "y", 0, high)
    layer_axis(axes, layers, box.width)
    axes.set_xlim(layers[0] - 0.3, layers[-1] + 0.3)
    tidy(axes, values="y", em=em)
    ends = {g: last[-1] for g, c in values.items() if (last := [e.value for e in c if e is not None])}
    label_ends(canvas, box, ends, (0, high))
    _title(canvas, box, f"{name_of(dataset)}, 95 % intervals")


def label_ends(canvas: Canvas, box: Box, ends: dict[str, float], limits: tuple[float, float]) -> None:
    """Names at the right ends of lines, moved apart, each led to its line."""
    low, high = limits
    heights = [box.height * (value - low) / (high - low) for value in ends.values()]
    moved = spread(heights, 1.25, 0.2, box.height)
    for (name, _), true, height in zip(ends.items(), heights, moved, strict=True):
        y = box.top + box.height - height
        x = box.left + box.width
        lead = ((x + 0.3) / canvas.width, (x + 1.0) / canvas.width)
        at = (1 - (box.top + box.height - true) / canvas.height, 1 - y / canvas.height)
        canvas.link(lead, at, colour(name))
        canvas.write(x + 1.25, y + 0.28, name, size=0.78)


def shares_by_dataset(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups of every data set (fig. 12a, 19a): bars with intervals and their numbers."""
    datasets, groups = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups()
    names = max(advance(group, 0.82) for group in groups) + 1.0
    across = medium.across(len(datasets), 16, beside=names)
    rows = -(-len(datasets) // across)
    height = 1.75 * len(groups)
    canvas = Canvas(medium, 2.4 + rows * (height + 4.2) - 1.4 + foot(medium, caption))
    area = Box(names + 0.4, 2.2, canvas.width - names - 2.2, height)
    found = frame.lookup("dataset", "group")
    _, high = reach([row.estimate("share") for row in frame.records])
    for dataset, box in zip(datasets, boxes(len(datasets), across, area, gap=2.0, drop=4.2), strict=True):
        rows_of = {group: row for group in groups if (row := found.get((dataset, group)))}
        _bar_panel(canvas, box, rows_of, groups, high, names=box.left == area.left)
        ns = [n for row in rows_of.values() if (n := row.number("n"))]
        _title(canvas, box, name_of(dataset), max(ns) if ns else None)
    canvas.caption(caption)
    return canvas.figure


def _bar_panel(
    canvas: Canvas, box: Box, rows: dict[str, Row], groups: Sequence[str], high: float, *, names: bool
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    # Room at the right for the number beside the longest bar.
    high *= 1 + 3.4 / max(box.width - 3.4, 4)
    for i, group in enumerate(groups):
        found = rows[group].estimate("share") if group in rows else None
        if found is None:
            continue
        axes.barh(i, found.value, height=0.68, color=colour(group), zorder=2)
        _whisker(axes, i, found, em)
        top = found.value + found.reach[1]
        axes.text(
            top + 0.35 * high / box.width,
            i,
            percent(found.value),
            va="center_baseline",
            fontsize=0.8 * em,
            zorder=5,
        )
    shares_axis(axes, "x", 0, high)
    tidy(axes, values="x", em=em)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), list(groups) if names else [""] * len(groups))
    axes.tick_params(axis="y", labelcolor=INK)


def _whisker(axes: Axes, y: float, found: Estimate, em: float) -> None:
    below, above = found.reach
    if below or above:
        ends = (found.value - below, found.value + above)
        axes.plot(ends, (y, y), color=PAPER, lw=0.2 * em, zorder=3.9)  # seen on the darkest bar too
        axes.plot(ends, (y, y), color=INK, lw=0.1 * em, zorder=4)


def methods(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Groups under each matching method by data set (fig. 18); data sets new to a method's table are marked."""
    datasets, groups = in_order(frame.distinct("dataset"), (EVERY,)), frame.groups()
    given = frame.distinct("method")
    names = max(advance(group, 0.82) for group in groups) + 1.0
    across = medium.across(len(datasets), 16, beside=names)
    height = (0.62 * len(given) + 0.75) * len(groups)
    rows = -(-len(datasets) // across)
    canvas = Canvas(medium, 4.4 + rows * (height + 4.4) - 1.4 + foot(medium, caption))
    out = {r.words("dataset") for r in frame.records if r.words("in_distribution") in {"False", "0"}}
    shapes = {method: _SHAPES[i % len(_SHAPES)] for i, method in enumerate(given)}
    _shape_key(canvas, shapes, foreign=bool(out))
    area = Box(names + 0.4, 4.2, canvas.width - names - 2.2, height)
    _, high = reach([row.estimate("share") for row in frame.records])
    found = frame.lookup("dataset", "group", "method")
    for dataset, box in zip(datasets, boxes(len(datasets), across, area, gap=2.0, drop=4.4), strict=True):
        _methods_panel(
            canvas, box, dataset, found, groups, shapes, min(1.0, high), names=box.left == area.left
        )
        ns = [n for row in frame.where(dataset=dataset).records if (n := row.number("n"))]
        _title(canvas, box, name_of(dataset) + (" †" if dataset in out else ""), max(ns) if ns else None)
    canvas.caption(caption)
    return canvas.figure


def _shape_key(canvas: Canvas, shapes: dict[str, str], *, foreign: bool) -> None:
    x = 0.6
    for i, (method, shape) in enumerate(shapes.items()):
        canvas.marker(x, 1.0, shape, hollow=i > 0)
        canvas.write(x + 0.8, 1.3, method, size=0.82)
        x += advance(method, 0.82) + 2.6
    if foreign:
        text = "† texts the Pearson tables were not made on" if canvas.medium.wide else "† new to Pearson"
        y, x = (1.3, x) if x + advance(text, 0.8) < canvas.width else (2.7, 0.2)
        canvas.write(x, y, text, size=0.8, colour=MUTED)


def _methods_panel(
    canvas: Canvas,
    box: Box,
    dataset: str,
    found: dict[tuple[str, ...], Row],
    groups: Sequence[str],
    shapes: dict[str, str],
    high: float,
    *,
    names: bool,
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    pitch = 0.7 / max(1, len(shapes))
    for i, group in enumerate(groups):
        for j, (method, shape) in enumerate(shapes.items()):
            row = found.get((dataset, group, method))
            if row is None or (estimate := row.estimate("share")) is None:
                continue
            y = i + (j - (len(shapes) - 1) / 2) * pitch
            mark(
                axes, y, estimate, f"{method}, {group}", tone=colour(group), em=em, hollow=j > 0, shape=shape
            )
        if i:
            axes.axhline(i - 0.5, color=RULE, lw=0.045 * em, zorder=1)
    shares_axis(axes, "x", 0, high)
    tidy(axes, values="x", em=em)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), list(groups) if names else [""] * len(groups))
    axes.tick_params(axis="y", labelcolor=INK)


def most_probable(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How many features of each layer have which group most often (C.1)."""
    return _counted(frame, medium, caption, "features", "features", shares=True)


def counts(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How many features and trials there are at each layer (as fig. 17a)."""
    return _counted(frame, medium, caption, "features", "trials", shares=False)


def _counted(frame: Frame, medium: Medium, caption: str, column: str, other: str, *, shares: bool) -> Figure:
    """A strip a layer: shares of the features in each group, or their number; the totals beside."""
    groups, layers = frame.groups(), frame.layers()
    keyed = key_height(medium, groups)
    canvas = Canvas(
        medium, keyed + 1.2 + 1.7 * len(layers) + (2.4 if shares else 2.0) + foot(medium, caption)
    )
    canvas.key(0.2, 0.2, groups)
    right = 8.6 if shares else 13.0
    box = Box(4.6, keyed + 1.2, canvas.width - 4.6 - right, 1.7 * len(layers))
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    totals = [_sums(frame, layer, column) for layer in layers]
    most = max((sum(total.values()) for total in totals), default=0) or 1
    for i, (layer, total) in enumerate(zip(layers, totals, strict=True)):
        whole = sum(total.values()) or 1
        ordered = {group: total[group] / (whole if shares else most) for group in groups if group in total}
        share_of = 1.0 if shares else whole / most
        strip(
            axes,
            i,
            ordered,
            f"layer {layer}",
            height=0.84,
            em=medium.text,
            whole=share_of,
            room=box.width * share_of,
        )
        text = f"{count(whole)} {column}"
        if not shares:
            text += f", {count(sum(_sums(frame, layer, other).values()))} {other}"
        x = box.left + box.width * share_of + 0.6
        canvas.write(x, box.top + 1.7 * i + 1.15, text, size=0.8, colour=MUTED)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    if shares:
        shares_axis(axes, "x", 0, 1)
    else:
        axes.set_xticks([])
    canvas.caption(caption)
    return canvas.figure


def _sums(frame: Frame, layer: int, column: str) -> dict[str, float]:
    rows = [row for row in frame.where(layer=str(layer)).records if row.words("group") in GROUPS]
    return {row.words("group"): row.number(column) or 0.0 for row in rows}


def groups_by_strategy(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Which groups each matching strategy finds among the same features (fig. 15a)."""
    strategies, groups = frame.distinct("strategy"), frame.groups()
    keyed = key_height(medium, groups)
    names = max(advance(strategy, 0.82) for strategy in strategies) + 1.0
    height = 2.1 * len(strategies)
    canvas = Canvas(medium, keyed + 0.8 + height + 2.2 + foot(medium, caption))
    canvas.key(0.2, 0.2, groups)
    box = Box(names, keyed + 0.8, canvas.width - names - 7.2, height)
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    for i, strategy in enumerate(strategies):
        rows = {row.words("group"): row for row in frame.where(strategy=strategy).records}
        shares = {group: rows[group].number("share") or 0.0 for group in groups if group in rows}
        strip(axes, i, shares, strategy, em=medium.text, room=box.width)
        n = sum(row.count("features") for row in rows.values())
        y = box.top + 2.1 * i + 1.35
        canvas.write(box.left + box.width + 0.6, y, f"n = {count(n)}", size=0.8, colour=MUTED)
    shares_axis(axes, "x", 0, 1)
    axes.set_ylim(len(strategies) - 0.5, -0.5)
    axes.set_yticks(range(len(strategies)), list(strategies))
    axes.tick_params(axis="y", labelcolor=INK)
    canvas.caption(caption)
    return canvas.figure
