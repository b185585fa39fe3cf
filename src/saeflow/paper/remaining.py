"""Beyond the paper: what silences a target, its predecessors, another feature, a small set, or nothing tried."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import GROUPS, Estimate, Frame, Row, in_order
from saeflow.paper.kinds import CONTROL, DEACTIVATED, Drawing, Tone, mark, panels, strip, told
from saeflow.paper.style import ACCENT, FAINT, INK, MUTED, PAPER, SQUARE, Medium, Sign, advance
from saeflow.paper.trials import control_beside
from saeflow.paper.words import count, listed, percent

_OUTCOMES: dict[str, Tone] = {
    "deactivated by its predecessors": ((ACCENT, 0.95), PAPER),
    "by another single feature": ((ACCENT, 0.5), INK),
    "by a set of up to five": ((ACCENT, 0.2), INK),
    "by none tried": (FAINT, INK),
}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """What silences a target: its predecessors, another feature, a small set, or nothing that was tried."""
    groups = in_order(frame.distinct("group"), ("all", *GROUPS))
    outcomes = in_order(frame.distinct("outcome"), tuple(_OUTCOMES))
    names = max(advance(group, 0.82) for group in groups) + 1.0
    controlled = any(_share_of_control(row) for row in frame.records)
    signs = [Sign(outcome, _OUTCOMES.get(outcome, (MUTED, PAPER))[0], SQUARE) for outcome in outcomes]
    if controlled:
        signs.append(Sign(f"deactivated by the {CONTROL}", hollow=True))
    canvas, (box,) = panels(
        medium, caption, 1, across=1, tall=1.8 * len(groups), head=0.4, below=0.6, left=names, right=5.6, signs=signs
    )
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
                axes,
                i,
                control,
                name,
                tone=INK,
                em=0.9 * medium.text,
                hollow=True,
                text=told(name, control, DEACTIVATED),
            )
        n = max((row.number("n") or 0.0 for row in rows.values()), default=0.0)
        canvas.write(box.left + box.width + 0.5, box.top + 1.8 * i + 1.2, f"n = {count(n)}", size=0.74, colour=MUTED)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.tick_params(axis="y", labelcolor=INK)
    return canvas.figure


def _share_of_control(row: Row) -> Estimate | None:
    return row.estimate("control_share", "control_low", "control_high", "control_n")


def sentence(frame: Frame) -> str:
    """What silences targets of all groups together."""
    rows = [row for row in frame.where(group="all").records if row.number("share") is not None]
    told = [
        f"{row.words('outcome')} {percent(row.number('share'))}{control_beside(row, 'control_share')}" for row in rows
    ]
    n = max((row.number("n") or 0.0 for row in rows), default=0.0)
    return f"Of {count(n)} targets: {listed(told)}." if told else ""


DRAWING: Final = Drawing(figure, sentence, ("group", "outcome", "share"))
