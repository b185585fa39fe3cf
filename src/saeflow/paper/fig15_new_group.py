"""Figure 15b: what becomes of a target when some of its predecessors are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Frame, Row, in_order, only
from saeflow.paper.kinds import CONTROL, Box, Drawing, strip
from saeflow.paper.style import (
    BAR,
    GONE,
    INK,
    MUTED,
    SQUARE,
    Canvas,
    Medium,
    Sign,
    advance,
    colour,
    foot,
    group_signs,
    key_height,
)
from saeflow.paper.trials import control_beside, main_strategy
from saeflow.paper.words import count, percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """What becomes of a target of each group when some of its predecessors are removed (fig. 15b)."""
    groups = frame.groups()
    outcomes = in_order(frame.distinct("new_group"), (GONE, *GROUPS))
    rows_of = {group: in_order(frame.where(group=group).distinct("removed"), GROUPS) for group in groups}
    names = max((advance(word, 0.82) for rows in rows_of.values() for word in rows), default=4.0) + 1.0
    across = 2 if medium.wide else 1
    controlled = any(row.number("control_probability") is not None for row in frame.records)
    signs = group_signs(outcomes)
    if controlled:
        signs += [Sign("predecessors removed", MUTED, SQUARE), Sign(CONTROL, shape=BAR)]
    keyed = key_height(medium, signs)
    pitch = 2.4 if controlled else 1.8
    tops, height = _panel_tops([pitch * len(rows_of[group]) for group in groups], across)
    canvas = Canvas(medium, keyed + height + foot(medium, caption))
    canvas.key(signs)
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


def _panel_tops(heights: Sequence[float], across: int) -> tuple[list[float], float]:
    """Where panels of these heights begin, in rows of `across`, and the height of all."""
    tops: list[float] = []
    y = 1.6
    for i in range(0, len(heights), across):
        row = heights[i : i + across]
        tops += [y] * len(row)
        y += max(row) + 2.4
    return tops, y - 1.8


def _outcome_panel(canvas: Canvas, box: Box, rows: dict[str, list[Row | None]], outcomes: Sequence[str]) -> None:
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
                axes,
                at + own / 2 + 0.1 / pitch + low / 2,
                controls,
                f"control of {removed} removed",
                em=em,
                room=0.0,
                height=low,
            )
        n = max((row.number("n") or 0.0 for _, row in known), default=0.0)
        y = box.top + pitch * (at + 0.5) + 0.3
        canvas.write(box.left + box.width + 0.5, y, f"n = {count(n)}", size=0.74, colour=MUTED)
        axes.text(
            -0.5 / box.width,
            at,
            f"−{removed}",
            ha="right",
            va="center_baseline",
            fontsize=0.82 * em,
            color=INK,
            transform=axes.transData,
        )
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])


def sentence(frame: Frame) -> str:
    """How often a target falls silent when everything is removed, and how often it stays without a predecessor."""
    main = main_strategy(frame)
    frame = frame.where(strategy=main) if main else frame
    silent = {g: row for g in GROUPS if (row := _became(frame, g, "deactivated")) is not None}
    if not silent:
        return ""

    def rate(group: str) -> float:
        return silent[group].number("probability") or 0.0

    def told_of(row: Row) -> str:
        return f"{percent(row.number('probability'))}{control_beside(row, 'control_probability')}"

    low, high = min(silent, key=rate), max(silent, key=rate)
    under = f" under {main}" if main else ""
    told = f"With all predecessors removed{under}, {told_of(silent[high])} of targets from {high} fall silent"
    if low != high:
        told += f" and {told_of(silent[low])} of those from {low}"
    stays = _became(frame, low, "nowhere")
    if stays is None:
        return f"{told}."
    return f"{told}; {told_of(stays)} of the latter stay active with no active predecessor."


def _became(frame: Frame, group: str, outcome: str) -> Row | None:
    row = only(frame, group=group, removed=group, new_group=outcome)
    return None if row is None or row.number("probability") is None else row


DRAWING: Final = Drawing(figure, sentence, ("group", "removed", "new_group", "probability"), each=("strategy",))
