"""Section 5.3: the best score within a limit on what is changed, as a share of the hidden norm."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Interval, TableRow
from saeflow.paper.kinds import Drawing, line, reach
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
from saeflow.paper.style import DASHES, Medium, Sign, nothing, panels, title, value_axis
from saeflow.paper.words import percent


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The best score within a limit on what is changed, as a share of the hidden norm (section 5.3).

    Methods at one limit may change hidden states as much. Limits stand at equal steps.
    """
    shown = methods(frame)
    limits = sorted({share for row in frame.records if (share := row.number("share_limit")) is not None})
    if not limits:
        return nothing(medium, caption, "no setting keeps within a limit")
    themes = by_theme(frame)
    signs = [*method_signs(shown), Sign("unsteered", shape=DASHES), Sign(samples_told(frame), shape="")]
    across = medium.across(len(themes), 15, beside=3)
    drawn, places = panels(medium, caption, len(themes), 10.0, across=across, signs=signs)
    span = reach([*(row.estimate("score") for row in frame.records), Interval(default_of(frame) or 0.0)])
    for number, ((theme, rows), axes) in enumerate(zip(themes.items(), places, strict=True)):
        dashed(axes, default_of(rows))
        for method in shown:
            known = {share: row for row in rows.where(method=method).records if (share := row.number("share_limit"))}
            kept = [(i, known[share]) for i, share in enumerate(limits) if share in known]
            found = [row.estimate("score") for _, row in kept]
            tips = [
                f"at most {100 * (row.number('share_limit') or 0.0):g}\u00a0% changed: {told(row, e)}" if e else ""
                for (_, row), e in zip(kept, found, strict=True)
            ]
            kind = look(method)
            line(axes, [i for i, _ in kept], found, tips, tone=kind.tone, hollow=kind.hollow, shape=kind.shape)
        value_axis(axes, "y", *span)
        step = -(-len(limits) // max(1, int(medium.ems / across / 2.5)))
        axes.set_xticks(range(0, len(limits), step), [f"{100 * share:g}" for share in limits][::step])
        axes.set_xlim(-0.3, len(limits) - 0.7)
        title(axes, theme, room=medium.ems / across - 3.0)
        if number % across == 0:
            axes.set_xlabel("↑ score · at most this much changed, % of the hidden norm")
    return drawn


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


def _rivals(frame: Frame, share: float) -> tuple[TableRow, TableRow] | None:
    """The best multi-layer method and the single layer within a limit; None where one of them has no setting."""
    rows = [row for row in frame.records if row.number("share_limit") == share]
    many = best(row for row in rows if row.words("method") in MULTI)
    one = best(row for row in rows if row.words("method") == "single")
    return None if many is None or one is None else (many, one)


DRAWING: Final = Drawing(
    figure, sentence, ("theme", "direction", "method", "share_limit", "score"), each=("direction",)
)
