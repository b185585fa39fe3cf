"""Steering themes over their layers and over what is changed: small multiples (figure 17a, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.report.figures.frame import Estimate, Frame, count, in_order
from saeflow.report.figures.parts import Box, boxes, line, reach, tip
from saeflow.report.figures.steering_marks import (
    DASHES,
    SQUARE,
    Sign,
    dashed,
    default_of,
    draw_signs,
    look,
    method_signs,
    methods,
    samples_told,
    signs_height,
    told,
)  # fmt: skip
from saeflow.report.figures.style import (
    INK,
    MUTED,
    PAPER,
    Canvas,
    Medium,
    colour,
    foot,
    layer_axis,
    nothing,
    numbers_axis,
    tidy,
)

_PARTS = ("res", "mlp", "att")


def theme_features(frame: Frame, medium: Medium, caption: str) -> Figure:
    """How many features are steered at each layer, by part; upright lines where start features are (fig. 17a)."""
    themes, layers = frame.distinct("theme"), frame.layers()
    parts = in_order(frame.distinct("part"), [word for part in _PARTS for word in (part, part.upper())])
    if not layers:
        return nothing(medium, caption, "no features at any layer")
    everywhere = range(layers[0], layers[-1] + 1)
    signs = [Sign(part, colour(part.upper()), SQUARE) for part in parts]
    signs.append(Sign("layers of start features", shape=DASHES))
    across = medium.across(len(themes), 19, beside=3)
    rows, tall, keyed = -(-len(themes) // across), 8.5, signs_height(medium, signs)
    canvas = Canvas(medium, keyed + 1.8 + rows * (tall + 4.6) - 1.8 + foot(medium, caption))
    draw_signs(canvas, signs)
    area = Box(2.6, keyed + 1.8, canvas.width - 3.0, tall)
    top = max(max(_by_layer(frame.where(theme=theme), "features").values()) for theme in themes)
    for theme, box in zip(themes, boxes(len(themes), across, area, gap=3.0, drop=4.6), strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        rows_of = frame.where(theme=theme)
        _feature_bars(axes, rows_of, parts, medium.text)
        numbers_axis(axes, "y", 0, max(1.0, top * 1.06), most=4.0)
        layer_axis(axes, everywhere, box.width)
        axes.set_xlim(everywhere[0] - 0.6, everywhere[-1] + 0.6)
        tidy(axes, values="y", em=medium.text)
        canvas.title(box.left, box.top - 0.8, box.width, theme, _features_told(rows_of))
        if box.left == area.left:
            words = "↑ features · layer"
            canvas.write(box.left, box.top + tall + 2.3, words, size=0.74, colour=MUTED)
    canvas.caption(caption)
    return canvas.figure


def _by_layer(frame: Frame, column: str) -> dict[int, float]:
    """The sum of a column over parts at each layer that has a row."""
    found = dict.fromkeys(frame.layers(), 0.0)
    for row in frame.records:
        layer = row.number("layer")
        if layer is not None and int(layer) in found:
            found[int(layer)] += row.number(column) or 0.0
    return found or {0: 0.0}


def _features_told(frame: Frame) -> str:
    features, starts = (sum(_by_layer(frame, name).values()) for name in ("features", "starts"))
    return f"{count(features)} from {count(starts)} {'start' if starts == 1 else 'starts'}"


def _feature_bars(axes: Axes, frame: Frame, parts: Sequence[str], em: float) -> None:
    bottoms = dict.fromkeys(frame.layers(), 0.0)
    for part in parts:
        for row in frame.where(part=part).records:
            layer, features = row.number("layer"), row.number("features")
            if layer is None or layer < 0 or not features:
                continue
            bar = axes.bar(
                layer, features, width=0.82, bottom=bottoms[int(layer)], color=colour(part.upper()),
                edgecolor=PAPER, lw=0.4, zorder=2,
            )  # fmt: skip
            starts = row.count("starts")
            more = f", {count(starts)} of them {'a start' if starts == 1 else 'starts'}" if starts else ""
            tip(
                bar.patches[0],
                f"{part}, layer {layer:.0f}: {count(features)} {'feature' if features == 1 else 'features'}{more}",
            )
            bottoms[int(layer)] += features
    for layer, starts in _by_layer(frame, "starts").items():
        if starts:
            axes.axvline(layer, color=INK, lw=0.09 * em, ls=(0, (4, 3)), zorder=3)


def themes_by_share(frame: Frame, medium: Medium, caption: str) -> Figure:
    """The best score within a limit on what is changed, as a share of the hidden norm (section 5.3).

    Methods at one limit may change hidden states as much. Limits stand at equal steps.
    """
    themes, shown = frame.distinct("theme"), methods(frame)
    limits = sorted({share for row in frame.records if (share := row.number("share_limit")) is not None})
    if not limits:
        return nothing(medium, caption, "no setting keeps within a limit")
    signs = [*method_signs(shown), Sign("unsteered", shape=DASHES), Sign(samples_told(frame), shape="")]
    across = medium.across(len(themes), 15, beside=3)
    rows, tall, keyed = -(-len(themes) // across), 10.0, signs_height(medium, signs)
    canvas = Canvas(medium, keyed + 1.8 + rows * (tall + 4.8) - 1.8 + foot(medium, caption))
    draw_signs(canvas, signs)
    area = Box(3.0, keyed + 1.8, canvas.width - 3.8, tall)
    span = reach([row.estimate("score") for row in frame.records] + [Estimate(default_of(frame) or 0.0)])
    for theme, box in zip(themes, boxes(len(themes), across, area, gap=2.6, drop=4.8), strict=True):
        axes = canvas.axes(box.left, box.top, box.width, box.height)
        _share_lines(axes, frame.where(theme=theme), shown, limits, medium.text)
        numbers_axis(axes, "y", *span)
        step = -(-len(limits) // max(1, int(box.width / 2.1)))
        names = [f"{100 * share:g}" for share in limits]
        axes.set_xticks(range(0, len(limits), step), names[::step])
        axes.set_xlim(-0.3, len(limits) - 0.7)
        tidy(axes, values="y", em=medium.text)
        canvas.title(box.left, box.top - 0.8, box.width, theme)
        if box.left == area.left:
            words = "↑ score · at most this much changed, % of the hidden norm"
            canvas.write(box.left, box.top + tall + 2.3, words, size=0.74, colour=MUTED)
    canvas.caption(caption)
    return canvas.figure


def _share_lines(axes: Axes, frame: Frame, shown: Sequence[str], limits: Sequence[float], em: float) -> None:
    dashed(axes, default_of(frame), em)
    for method in shown:
        rows = {
            share: row for row in frame.where(method=method).records if (share := row.number("share_limit"))
        }
        kept = [(i, rows[share]) for i, share in enumerate(limits) if share in rows]
        found = [row.estimate("score") for _, row in kept]
        tips = [
            f"at most {100 * (row.number('share_limit') or 0.0):g}\u00a0% changed: {told(row, e)}"
            if e
            else ""
            for (_, row), e in zip(kept, found, strict=True)
        ]
        kind = look(method)
        line(
            axes, [i for i, _ in kept], found, kind.name, tone=kind.tone, em=em, hollow=kind.hollow,
            tips=tips, shape=kind.shape,
        )  # fmt: skip
