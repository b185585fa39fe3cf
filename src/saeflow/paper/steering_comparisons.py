"""Steering methods compared: on the same seeds, by sensitivity to the coefficient, and within limits on the change."""

from __future__ import annotations

import statistics
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, FrameRow, Interval, best, in_order
from saeflow.paper.kinds import DotRow, Drawing, Mark, chance, line, reach
from saeflow.paper.steering import (
    LOOKS,
    MULTI,
    SUPPRESS,
    MethodKey,
    dashed,
    default_of,
    key_name,
    look,
    method_signs,
    methods,
    row_key,
    row_keys,
    samples_words,
    score_of,
    score_tip,
    theme_panels,
    verb,
)
from saeflow.paper.style import DASHES, Medium, Sign, nothing, panels, title, value_axis
from saeflow.paper.words import count, decimal, decimal_interval, listed, percent

_CLOSE = 0.6  # spacing of the marks in a block, in rows; colour and shape tell them apart


def paired_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw differences between two methods on the same seeds, with a block for each method compared against."""
    keys = [(other, "") for other in in_order(frame.distinct("method_b"), tuple(LOOKS))]
    shown: dict[str, dict[MethodKey, DotRow]] = {}
    for theme, rows in frame.by("theme").items():
        lines = shown[theme] = {}
        for key in keys:
            # the same order in all themes; colour and shape tell the marks apart
            order = methods(frame.where(method_b=key[0]), "method_a")
            marks: list[Mark] = []
            for row in rows.where(method_b=key[0]).records:
                found, method = row.estimate("difference"), row.words("method_a")
                if found is not None and method in order:
                    kind, down = look(method), _CLOSE * (order.index(method) - (len(order) - 1) / 2)
                    text = f"{theme}, {_difference(row, found)}"
                    marks.append(Mark(found, text, kind.tone, kind.shape, kind.hollow, down))
            lines[key] = DotRow(f"less {look(key[0]).name}", marks, height=_CLOSE * max(len(order), 1) + 0.4)
    words = "right of zero: scores higher on the same seeds"
    signs = [*method_signs(methods(frame, "method_a")), Sign(words, shape="")]
    return theme_panels(frame, shown, keys, medium, caption, "difference in score", signs)


def signed(value: float | None, digits: int = 2) -> str:
    """`+0.05`, `−0.05`, `0.00`; a dash for a gap."""
    text = decimal(value, digits)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def _difference(row: FrameRow, found: Interval) -> str:
    a, b = (look(row.words(name)).name for name in ("method_a", "method_b"))
    ends = "" if found.low is None or found.high is None else f" ({signed(found.low)} to {signed(found.high)})"
    p, q = row.number("p"), row.number("q")
    chances = "".join(f", {name} {chance(v)}" for name, v in (("p", p), ("q", q)) if v is not None)
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{a} less {b}: {signed(found.value)}{ends}{chances}{n}"


def paired_sentence(frame: Frame) -> str:
    """How often the whole interval of a difference of multi-layer methods lies above or below zero."""
    phrases: list[str] = []
    for direction, rows in frame.by("direction").items():
        parts: list[str] = []
        for other in ("start", "single", "prompt", "random", "none"):
            mine = [row for row in rows.where(method_b=other).records if row.words("method_a") in MULTI]
            found = [e for row in mine if (e := row.estimate("difference"))]
            above = sum(e.low is not None and e.low > 0 for e in found)
            below = sum(e.high is not None and e.high < 0 for e in found)
            if found:
                apart = f" (below in {below})" if not parts else f" ({below})"
                parts.append(f"{above} of {len(found)} against {look(other).name}{apart}")
        if parts:
            phrases.append(
                f"{verb(direction)} with several layers, the whole interval of the difference is above zero in "
                f"{listed(parts)}."
            )
    return " ".join(phrases)


def grid_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the mean score of each method over its grid of s or r, and how far its worst and best lie apart.

    The thin line is not an interval: it ends at the scores of the worst and of the best coefficient. The thick line is
    the interval of the mean.
    """
    shown: dict[str, dict[MethodKey, DotRow]] = {}
    for theme, rows in frame.by("theme").items():
        lines = shown[theme] = {}
        for row in rows.records:
            found = row.estimate("mean_score")
            if found is None:
                continue
            worst, top, values = (row.number(name) for name in ("worst_score", "best_score", "values"))
            of = "" if values is None else f" of {count(values)} values"
            apart = row.estimate("spread", "spread_low", "spread_high")
            more = f", apart by {decimal_interval(apart)}" if apart else ""
            kind = look(row.words("method"))
            text = (
                f"{theme}, {kind.name}: mean {decimal_interval(found)}{of}, worst {decimal(worst)}, best {decimal(top)}"
            )
            ends = None if worst is None or top is None else (worst, top)
            mark = Mark(found, text + more, kind.tone, kind.shape, kind.hollow, ends=ends)
            lines[row_key(row)] = DotRow(key_name(row_key(row)), (mark,), (decimal(row.number("spread")),))
    signs = [Sign("mean over the grid, with its interval"), Sign("thin: worst to best value", shape="")]
    if default_of(frame) is not None:
        signs.append(Sign("unsteered", shape=DASHES))
    signs.append(Sign("number: best less worst", shape=""))
    keys = [key for key in row_keys(frame) if any(key in lines for lines in shown.values())]
    return theme_panels(frame, shown, keys, medium, caption, "score", signs)


def grid_sentence(frame: Frame) -> str:
    """How much scores vary over the grid of each method, in the median theme."""
    phrases: list[str] = []
    for direction, rows in frame.by("direction").items():
        spreads = {
            m: statistics.median(known)
            for m in methods(rows)
            if m not in {"none", "prompt"}
            and (known := [s for r in rows.where(method=m).records if (s := r.number("spread")) is not None])
        }
        parts = [f"{decimal(value)} with {look(m).name}" for m, value in sorted(spreads.items(), key=lambda i: i[1])]
        of = " in the median theme" if len(rows.by("theme")) > 1 else ""
        if parts:
            symbol = "r" if direction == SUPPRESS else "s"
            phrases.append(
                f"{verb(direction)}, the worst and the best {symbol} of the grid lie apart by {listed(parts)}{of}."
            )
    return " ".join(phrases)


def share_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the best score within limits on the change, as a share of the hidden norm (section 5.3).

    Within one limit, all methods may change hidden states by the same amount. Limits are spaced evenly.
    """
    shown = methods(frame)
    limits = frame.numbers("share_limit")
    if not limits:
        return nothing(medium, caption, "no setting keeps within a limit")
    themes = frame.by("theme")
    signs = [*method_signs(shown), Sign("unsteered", shape=DASHES), Sign(samples_words(frame), shape="")]
    across = medium.across(len(themes), 15, beside=3)
    drawn, places = panels(medium, caption, len(themes), 10.0, across=across, signs=signs)
    span = reach([*(row.estimate("score") for row in frame.records), Interval(default_of(frame) or 0.0)])
    for number, ((theme, rows), axes) in enumerate(zip(themes.items(), places, strict=True)):
        dashed(axes, default_of(rows))
        for method in shown:
            known = rows.where(method=method).by_number("share_limit")
            kept = [(i, known[share]) for i, share in enumerate(limits) if share in known]
            found = [row.estimate("score") for _, row in kept]
            tips = [
                f"at most {100 * (row.number('share_limit') or 0.0):g}\u00a0% changed: {score_tip(row, e)}" if e else ""
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


def share_sentence(frame: Frame) -> str:
    """In how many themes several layers beat a single one, within the tightest and within the widest limit."""
    phrases: list[str] = []
    for direction, rows in frame.by("direction").items():
        limits = rows.numbers("share_limit")
        parts: list[str] = []
        for share in dict.fromkeys((limits[0], limits[-1])) if limits else ():
            pairs = [pair for theme in rows.by("theme").values() if (pair := _rivals(theme, share)) is not None]
            if pairs:
                wins = sum(score_of(many) > score_of(one) for many, one in pairs)
                norm = "" if parts else " of the hidden norm"
                parts.append(f"{wins} of {len(pairs)} themes with at most {percent(share)}{norm} changed")
        if parts:
            phrases.append(f"{verb(direction)}, several layers score above a single one in {' and in '.join(parts)}.")
    return " ".join(phrases)


def _rivals(frame: Frame, share: float) -> tuple[FrameRow, FrameRow] | None:
    """The best multi-layer and the best single-layer row within a limit; None if either is missing."""
    rows = [row for row in frame.records if row.number("share_limit") == share]
    many = best(row for row in rows if row.words("method") in MULTI)
    one = best(row for row in rows if row.words("method") == "single")
    return None if many is None or one is None else (many, one)


DRAWINGS: Final = {
    "steering_paired": Drawing(
        paired_figure,
        paired_sentence,
        ("theme", "direction", "method_a", "method_b", "difference"),
        each=("direction",),
    ),
    "steering_sensitivity": Drawing(
        grid_figure, grid_sentence, ("theme", "direction", "method", "mean_score"), each=("direction",)
    ),
    "steering_by_share": Drawing(
        share_figure, share_sentence, ("theme", "direction", "method", "share_limit", "score"), each=("direction",)
    ),
}
