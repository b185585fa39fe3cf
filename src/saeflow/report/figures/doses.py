"""Trials over something that varies: the coefficient r, the layer, what is removed (figures 6, 7, 15b)."""

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
from saeflow.report.figures.parts import Box, Tone, boxes, line, mark, reach, strip
from saeflow.report.figures.style import (
    ACCENT,
    FAINT,
    GONE,
    INK,
    MUTED,
    PAPER,
    Canvas,
    Medium,
    advance,
    colour,
    foot,
    key_height,
    layer_axis,
    numbers_axis,
    shares_axis,
    tidy,
)  # fmt: skip
from saeflow.report.figures.trials import (
    CHANGE,
    CONTROL,
    CONTROL_BRIEFLY,
    DEACTIVATED,
    Measure,
    both,
    control_key,
    told,
)  # fmt: skip

LOSS = Measure("relative loss change", lambda e: percent(e.value, 2), percent, "%")
_Columns = tuple[str, str, str, str]
_DOSES: tuple[tuple[Measure, _Columns, _Columns], ...] = (
    (
        CHANGE,
        ("change", "change_low", "change_high", "n"),
        ("control_change", "control_change_low", "control_change_high", "control_n"),
    ),
    (
        DEACTIVATED,
        ("deactivated", "low", "high", "n"),
        ("control_deactivated", "control_low", "control_high", "control_n"),
    ),
    (
        LOSS,
        ("loss_change", "loss_low", "loss_high", "loss_n"),
        ("control_loss_change", "control_loss_low", "control_loss_high", "control_loss_n"),
    ),
)


def by_rescale(frame: Frame, medium: Medium, caption: str) -> Figure:
    """What rescaling all predecessors by r does: activation, deactivation and loss (fig. 7). r = 1 is no edit.

    The same edit of other active features is dashed and hollow.
    """
    groups = tuple(group for group in frame.groups() if group in GROUPS)
    tall = 15.0
    across = len(_DOSES) if medium.wide else 1
    rows = -(-len(_DOSES) // across)
    keyed = key_height(medium, groups) + 1.9
    canvas = Canvas(medium, keyed + 1.8 + rows * (tall + 4.8) - 2.0 + foot(medium, caption))
    control_key(canvas, "rescaled", dashed=True)
    canvas.key(0.2, 2.1, groups)
    area = Box(3.6, keyed + 1.8, canvas.width - 4.4, tall)
    for dose, box in zip(_DOSES, boxes(len(_DOSES), across, area, gap=4.6, drop=4.8), strict=True):
        _dose_panel(canvas, box, frame, groups, *dose)
    canvas.caption(caption)
    return canvas.figure


def _dose_panel(
    canvas: Canvas,
    box: Box,
    frame: Frame,
    groups: Sequence[str],
    measure: Measure,
    own: _Columns,
    control: _Columns,
) -> None:
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em = canvas.medium.text
    doses: set[float] = set()
    everything: list[Estimate | None] = []
    for columns, hollow in ((control, True), (own, False)):  # controls lie under what they control
        for group in groups:
            rows = {r: row for row in frame.where(group=group).records if (r := row.number("r")) is not None}
            at = sorted(rows)
            found = [rows[r].estimate(*columns) for r in at]
            doses.update(at)
            everything += found
            name = f"control of {group}" if hollow else group
            tips = [
                told(f"{name}, r = {r:g}", e, measure) if e else "" for r, e in zip(at, found, strict=True)
            ]
            line(axes, at, found, name, tone=colour(group), em=em, hollow=hollow, tips=tips)
    low, high = reach(everything, least=0.001 if measure is LOSS else 0.05)
    _axis(axes, measure, low, high)
    axes.axvline(1, color=MUTED, lw=0.07 * em, ls=(0, (2, 2)), zorder=1)
    if low < 0:
        axes.axhline(0, color=MUTED, lw=0.07 * em, zorder=1)
    shown = _apart(sorted(doses), 1.9 / box.width)
    axes.set_xticks(shown, [f"{r:g}".replace("-", "\u2212") for r in shown])
    tidy(axes, values="y", em=em)
    canvas.write(box.left, box.top - 0.7, measure.head, size=0.9, weight="bold")
    canvas.write(
        box.left, box.top + box.height + 2.6, "r; 0 removes, 1 changes nothing", size=0.74, colour=MUTED
    )


def _axis(axes: Axes, measure: Measure, low: float, high: float) -> None:
    if measure.unit:
        shares_axis(axes, "y", low, min(high, 1.02) if measure is DEACTIVATED else high)
    else:
        numbers_axis(axes, "y", low, high)


def _apart(doses: Sequence[float], share: float) -> list[float]:
    """Those of `doses` that lie at least this share of their reach apart; 1 and the ends before others."""
    if not doses:
        return []
    room = share * max(doses[-1] - doses[0], 1e-9)
    kept: list[float] = []
    for r in sorted(doses, key=lambda r: (r not in {0.0, 1.0}, r not in {doses[0], doses[-1]})):
        if all(abs(r - other) >= room for other in kept):
            kept.append(r)
    return sorted(kept)


def by_strategy_layer(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Rates and changes by layer, a column of panels for each strategy, with controls (fig. 6)."""
    strategies = frame.distinct("strategy")
    across = medium.across(len(strategies), 12.5, beside=3)
    rows = -(-len(strategies) // across)
    tall = 7.5
    block = 2 * tall + 8.0
    canvas = Canvas(medium, 4.6 + rows * block - 0.8 + foot(medium, caption))
    control_key(canvas)
    area = Box(3.2, 4.8, canvas.width - 4.4, block - 2.0)
    for strategy, box in zip(
        strategies, boxes(len(strategies), across, area, gap=1.8, drop=2.0), strict=True
    ):
        canvas.title(box.left, box.top - 0.6, box.width, strategy)
        canvas.write(box.left, box.top + 0.6, _in_all(frame, strategy), size=0.74, colour=MUTED)
        for i in range(2):
            panel = Box(box.left, box.top + 1.6 + i * (tall + 2.4), box.width, tall)
            _layer_panel(canvas, panel, frame, strategy, i, first=box.left == area.left)
    canvas.caption(caption)
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
        tips = [
            told(f"{name}, layer {n}", e, measure) if e else "" for n, e in zip(layers, series, strict=True)
        ]
        line(axes, layers, series, name, tone=tone, em=em, hollow=bool(which), tips=tips)
    low, high = reach([e for row in frame.records for e in both(row)[index]])
    _axis(axes, measure, low, high)
    if not first:
        axes.set_yticklabels([])
    layer_axis(axes, layers, box.width)
    axes.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
    tidy(axes, values="y", em=em)
    if first:
        canvas.write(
            box.left, box.top + box.height + 2.1, f"↑ {measure.head} · layer", size=0.74, colour=MUTED
        )


def new_group(frame: Frame, medium: Medium, caption: str) -> Figure:
    """What becomes of a target of each group when some of its predecessors are removed (fig. 15b)."""
    groups = frame.groups()
    outcomes = in_order(frame.distinct("new_group"), (GONE, *GROUPS))
    rows_of = {group: in_order(frame.where(group=group).distinct("removed"), GROUPS) for group in groups}
    names = max((advance(word, 0.82) for rows in rows_of.values() for word in rows), default=4.0) + 1.0
    across = 2 if medium.wide else 1
    keyed = key_height(medium, outcomes)
    controlled = any(row.number("control_probability") is not None for row in frame.records)
    keyed += 1.9 if controlled else 0.0
    pitch = 2.4 if controlled else 1.8
    tops, height = _panel_tops([pitch * len(rows_of[group]) for group in groups], across)
    canvas = Canvas(medium, keyed + height + foot(medium, caption))
    if controlled:
        _strips_key(canvas)
    canvas.key(0.2, 2.1 if controlled else 0.2, outcomes)
    wide = canvas.width / across
    found = frame.lookup("group", "removed", "new_group")
    for i, (group, top) in enumerate(zip(groups, tops, strict=True)):
        left = (i % across) * wide
        box = Box(left + names, keyed + top, wide - names - 5.4, pitch * len(rows_of[group]))
        canvas.swatch(left + 0.2, box.top - 0.5, colour(group))
        canvas.write(left + 1.3, box.top - 0.5, f"was {group}", size=0.9, weight="bold")
        _outcome_panel(
            canvas,
            box,
            {removed: [found.get((group, removed, o)) for o in outcomes] for removed in rows_of[group]},
            outcomes,
        )
    canvas.caption(caption)
    return canvas.figure


def _strips_key(canvas: Canvas) -> None:
    """What high and low strips are."""
    canvas.swatch(0.2, 1.3, MUTED)
    canvas.write(1.3, 1.3, "predecessors removed" if canvas.medium.wide else "removed", size=0.82)
    x = 17.2 if canvas.medium.wide else 7.4
    canvas.bar(x, 1.1, 1.4, 0.28, MUTED)
    canvas.write(x + 1.8, 1.3, CONTROL if canvas.medium.wide else CONTROL_BRIEFLY, size=0.82)


def _panel_tops(heights: Sequence[float], across: int) -> tuple[list[float], float]:
    """Where panels of these heights begin, in rows of `across`, and the height of all."""
    tops: list[float] = []
    y = 1.6
    for i in range(0, len(heights), across):
        row = heights[i : i + across]
        tops += [y] * len(row)
        y += max(row) + 2.4
    return tops, y - 1.8


def _outcome_panel(
    canvas: Canvas, box: Box, rows: dict[str, list[Row | None]], outcomes: Sequence[str]
) -> None:
    """A strip for each set removed, and a low one under it for its control."""
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    em, pitch = canvas.medium.text, box.height / max(1, len(rows))
    for i, (removed, cells) in enumerate(rows.items()):
        known = [(o, row) for o, row in zip(outcomes, cells, strict=True) if row is not None]
        shares = {o: row.number("probability") or 0.0 for o, row in known}
        controls = {o: p for o, row in known if (p := row.number("control_probability")) is not None}
        own = 1.46 / pitch  # in places of the axis, which are `pitch` ems apart
        at = i - 0.5 + 0.12 / pitch + own / 2 if pitch > 2 else i
        strip(axes, at, shares, f"{removed} removed", em=em, room=box.width, height=own)
        if controls:
            low = 0.28 / pitch
            strip(
                axes, at + own / 2 + 0.1 / pitch + low / 2, controls, f"control of {removed} removed",
                em=em, room=0.0, height=low,
            )  # fmt: skip
        n = max((row.number("n") or 0.0 for _, row in known), default=0.0)
        y = box.top + pitch * (at + 0.5) + 0.3
        canvas.write(box.left + box.width + 0.5, y, f"n = {count(n)}", size=0.74, colour=MUTED)
        axes.text(
            -0.5 / box.width, at, f"−{removed}", ha="right", va="center_baseline", fontsize=0.82 * em,
            color=INK, transform=axes.transData,
        )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])


_OUTCOMES: dict[str, Tone] = {
    "deactivated by its predecessors": ((ACCENT, 0.95), PAPER),
    "by another single feature": ((ACCENT, 0.5), INK),
    "by a set of up to five": ((ACCENT, 0.2), INK),
    "by none tried": (FAINT, INK),
}


def remaining(frame: Frame, medium: Medium, caption: str) -> Figure:
    """What silences a target: its predecessors, another feature, a small set, or nothing that was tried."""
    groups = in_order(frame.distinct("group"), ("all", *GROUPS))
    outcomes = in_order(frame.distinct("outcome"), tuple(_OUTCOMES))
    names = max(advance(group, 0.82) for group in groups) + 1.0
    controlled = any(_share_of_control(row) for row in frame.records)
    top = 1.6 * ((1 if medium.wide else len(outcomes)) + controlled) + 1.6
    canvas = Canvas(medium, top + 1.8 * len(groups) + 0.6 + foot(medium, caption))
    x, y = 0.2, 1.2
    for outcome in outcomes:
        face = _OUTCOMES.get(outcome, (MUTED, PAPER))[0]
        canvas.swatch(x, y, face, line=MUTED)
        canvas.write(x + 1.1, y, outcome, size=0.82)
        x, y = (x + advance(outcome, 0.82) + 2.5, y) if medium.wide else (x, y + 1.6)
    if controlled:
        y = y + 1.6 if medium.wide else y
        canvas.marker(0.55, y - 0.3, "o", hollow=True)
        whole = f"deactivated by the {CONTROL}"
        canvas.write(1.3, y, whole if medium.wide else f"by the {CONTROL_BRIEFLY}", size=0.82)
    box = Box(names, top, canvas.width - names - 5.6, 1.8 * len(groups))
    axes = canvas.axes(box.left, box.top, box.width, box.height)
    found = frame.lookup("group", "outcome")
    for i, group in enumerate(groups):
        rows = {outcome: row for outcome in outcomes if (row := found.get((group, outcome)))}
        shares = {outcome: row.number("share") or 0.0 for outcome, row in rows.items()}
        strip(axes, i, shares, group, em=medium.text, room=box.width, tones=_OUTCOMES)
        control = next((e for row in rows.values() if (e := _share_of_control(row))), None)
        if control is not None:
            name = f"control of {group}"
            mark(
                axes, i, control, name, tone=INK, em=0.9 * medium.text, hollow=True,
                text=told(name, control, DEACTIVATED),
            )  # fmt: skip
        n = max((row.number("n") or 0.0 for row in rows.values()), default=0.0)
        canvas.write(
            box.left + box.width + 0.5, box.top + 1.8 * i + 1.2, f"n = {count(n)}", size=0.74, colour=MUTED
        )
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.tick_params(axis="y", labelcolor=INK)
    canvas.caption(caption)
    return canvas.figure


def _share_of_control(row: Row) -> Estimate | None:
    return row.estimate("control_share", "control_low", "control_high", "control_n")
