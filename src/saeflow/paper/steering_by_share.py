"""Section 5.3: the best score within a limit on what is changed, as a share of the hidden norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.paper.frame import Estimate, Frame, Row
from saeflow.paper.kinds import Drawing, line, panels, reach
from saeflow.paper.steering import (
    MULTI,
    best,
    by_direction,
    by_theme,
    dashed,
    default_of,
    look,
    method_signs,
    methods,
    samples_told,
    score_of,
    told,
    verb,
)
from saeflow.paper.style import DASHES, MUTED, Medium, Sign, nothing, numbers_axis, tidy
from saeflow.paper.words import percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The best score within a limit on what is changed, as a share of the hidden norm (section 5.3).

    Methods at one limit may change hidden states as much. Limits stand at equal steps.
    """
    themes, shown = frame.distinct("theme"), methods(frame)
    limits = sorted({share for row in frame.records if (share := row.number("share_limit")) is not None})
    if not limits:
        return nothing(medium, caption, "no setting keeps within a limit")
    signs = [*method_signs(shown), Sign("unsteered", shape=DASHES), Sign(samples_told(frame), shape="")]
    across = medium.across(len(themes), 15, beside=3)
    canvas, places = panels(
        medium, caption, len(themes), across=across, tall=10.0, drop=4.8, left=3.0, right=0.8, signs=signs
    )
    span = reach([row.estimate("score") for row in frame.records] + [Estimate(default_of(frame) or 0.0)])
    for theme, box in zip(themes, places, strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        _share_lines(axes, frame.where(theme=theme), shown, limits, medium.text)
        numbers_axis(axes, "y", *span)
        step = -(-len(limits) // max(1, int(box.width / 2.1)))
        names = [f"{100 * share:g}" for share in limits]
        axes.set_xticks(range(0, len(limits), step), names[::step])
        axes.set_xlim(-0.3, len(limits) - 0.7)
        tidy(axes, values="y", em=medium.text)
        canvas.title(box.left, box.top - 0.8, box.width, theme)
        if box.left == places[0].left:
            words = "↑ score · at most this much changed, % of the hidden norm"
            canvas.write(box.left, box.top + box.height + 2.3, words, size=0.74, colour=MUTED)
    return canvas.figure


def _share_lines(axes: Axes, frame: Frame, shown: Sequence[str], limits: Sequence[float], em: float) -> None:
    dashed(axes, default_of(frame), em)
    for method in shown:
        rows = {share: row for row in frame.where(method=method).records if (share := row.number("share_limit"))}
        kept = [(i, rows[share]) for i, share in enumerate(limits) if share in rows]
        found = [row.estimate("score") for _, row in kept]
        tips = [
            f"at most {100 * (row.number('share_limit') or 0.0):g}\u00a0% changed: {told(row, e)}" if e else ""
            for (_, row), e in zip(kept, found, strict=True)
        ]
        kind = look(method)
        line(
            axes,
            [i for i, _ in kept],
            found,
            kind.name,
            tone=kind.tone,
            em=em,
            hollow=kind.hollow,
            tips=tips,
            shape=kind.shape,
        )


def sentence(frame: Frame) -> str:
    """In how many themes several layers beat a single one within the same limit, at the tightest and widest."""
    told: list[str] = []
    for direction, rows in by_direction(frame):
        limits = sorted({share for row in rows.records if (share := row.number("share_limit")) is not None})
        parts: list[str] = []
        for share in dict.fromkeys((limits[0], limits[-1])) if limits else ():
            pairs = [pair for theme in by_theme(rows).values() if (pair := _rivals(theme, share)) is not None]
            if pairs:
                wins = sum(score_of(many) > score_of(one) for many, one in pairs)
                norm = "" if parts else " of the hidden norm"
                parts.append(f"{wins} of {len(pairs)} themes with at most {percent(share)}{norm} changed")
        if parts:
            told.append(f"{verb(direction)}, several layers score above a single one in {' and in '.join(parts)}.")
    return " ".join(told)


def _rivals(frame: Frame, share: float) -> tuple[Row, Row] | None:
    """The best multi-layer method and the single layer within a limit; None where one of them has no setting."""
    rows = [row for row in frame.records if row.number("share_limit") == share]
    many = best(row for row in rows if row.words("method") in MULTI)
    one = best(row for row in rows if row.words("method") == "single")
    return None if many is None or one is None else (many, one)


DRAWING: Final = Drawing(
    figure, sentence, ("theme", "direction", "method", "share_limit", "score"), each=("direction",)
)
