"""How the methods of a steering sweep are told apart, and what their numbers mean (section 5.3, appendix B).

A method has one colour and one shape in every figure. Baselines are hollow: they use no flow graph. The
colours are five of the eight of `style`, which stay apart for colour-blind readers, and shapes tell apart what
could still be mistaken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes

from saeflow.report.figures.frame import Estimate, Frame, Row, count, decimal, decimal_interval, in_order
from saeflow.report.figures.parts import tip
from saeflow.report.figures.style import COLOURS, INK, MUTED, PAPER, Canvas, Medium, advance

SUPPRESS: Final = "suppress"
ACTIVATE: Final = "activate"
VERBS: Final = {ACTIVATE: "Activating", SUPPRESS: "Suppressing"}


@dataclass(frozen=True, slots=True)
class Look:
    """A method as figures name and draw it."""

    name: str
    tone: str
    shape: str = "o"
    hollow: bool = False


LOOKS: Final[Mapping[str, Look]] = {
    "none": Look("unsteered", MUTED, "o", True),
    "prompt": Look("prompted", INK, "s", True),
    "random": Look("random", MUTED, "^", True),
    "start": Look("start alone", COLOURS["ATT"], "D", True),
    "single": Look("single", COLOURS["RES"], "o"),
    "single (start layer)": Look("single, start layer", COLOURS["RES"], "v"),
    "constant": Look("constant", COLOURS["MLP"], "s"),
    "linear": Look("linear", COLOURS["MLP & ATT"], "^"),
    "exponential": Look("exponential", COLOURS["RES & MLP"], "D"),
    "cumulative": Look("cumulative", COLOURS["MLP"], "s"),
}
"""Every method in the order of figures: the four baselines, one layer, many layers.

The single layer that most starts lie in is told apart from the best one."""

MULTI: Final = ("constant", "linear", "exponential", "cumulative")
"""The methods that steer many layers at once."""

BEST: Final = COLOURS["MLP"]
"""The best of a line that has no colour of its own."""


def look(method: str) -> Look:
    """How a method is drawn; one that is not known is filled ink."""
    return LOOKS.get(method) or Look(method, INK)


def methods(frame: Frame, column: str = "method") -> tuple[str, ...]:
    """The methods that a table holds, in the order of `LOOKS`."""
    return in_order(frame.distinct(column), tuple(LOOKS))


def direction_of(frame: Frame) -> str:
    """The direction of the first row: "activate" or "suppress"."""
    return next(iter(frame.distinct("direction")), "")


def plain(value: float) -> str:
    """`-1.0` as `−1`, `0.25` as `0.25`."""
    return f"{value:g}".replace("-", "\u2212")


def dose(row: Row) -> str:
    """`s = 8`, or `r = −1` where activations are rescaled; empty for a gap."""
    value = row.number("value")
    if value is None:
        return ""
    return f"{'r' if row.words('direction') == SUPPRESS else 's'} = {plain(value)}"


def place(row: Row) -> str:
    """`layer 5`, or `layers to 5` where all below are steered too; empty for a method without a layer."""
    layer = row.number("layer")
    if layer is None or layer < 0:
        return ""
    return f"layers to {layer:.0f}" if row.words("method") in MULTI else f"layer {layer:.0f}"


def setting(row: Row) -> str:
    """`layer 5, s = 8`: what the method was set to; empty for one without a setting."""
    if row.words("method") in {"none", "prompt"}:
        return ""
    return ", ".join(word for word in (place(row), dose(row)) if word)


def told(row: Row, found: Estimate, what: str = "score", *, digits: int = 2) -> str:
    """`single, layer 5, s = 8: score 0.41 (0.35–0.47), n = 64`, for tips."""
    name = ", ".join(word for word in (look(row.words("method")).name, setting(row)) if word)
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{name}: {what} {decimal_interval(found, digits)}{n}"


def best(rows: Iterable[Row], column: str = "score") -> Row | None:
    """The row with the highest score, the first of equal ones; None where none has one."""
    known = [row for row in rows if row.number(column) is not None]
    return max(known, key=lambda row: row.number(column) or 0.0, default=None)


def of_methods(rows: Iterable[Row], *names: str) -> list[Row]:
    """The rows of these methods at the setting that was chosen for them, not those of the layer of most starts."""
    return [row for row in rows if row.words("method") in names and row.words("choice") != "start layer"]


def default_of(frame: Frame) -> float | None:
    """The score without steering, from the column `default` or the rows of no method."""
    for row in frame.records:
        value = row.number("default")
        if value is not None:
            return value
    return next((row.number("score") for row in frame.where(method="none").records), None)


def samples_told(frame: Frame) -> str:
    """`n = 64`, or `n = 48 to 64` where rows differ; empty where no row has one."""
    known = sorted({n for row in frame.records if (n := row.number("n")) is not None})
    if not known:
        return ""
    return f"n = {count(known[0])}" + ("" if len(known) == 1 else f" to {count(known[-1])}")


def upright(axes: Axes, x: float, found: Estimate, shown: Look, em: float, text: str) -> None:
    """A value at `x` with its interval as an upright line."""
    below, above = found.reach
    if below or above:
        axes.plot(
            (x, x), (found.value - below, found.value + above), color=shown.tone, lw=0.11 * em, zorder=5
        )
    (point,) = axes.plot(
        [x], [found.value], marker=shown.shape, ms=SIZES.get(shown.shape, 0.5) * em, mec=shown.tone,
        color=PAPER if shown.hollow else shown.tone, mew=0.09 * em, ls="none", zorder=6, clip_on=False,
    )  # fmt: skip
    tip(point, text)


SIZES: Final = {"D": 0.4, "s": 0.44, "^": 0.52, "v": 0.52}
"""Sizes in ems at which shapes look alike; 0.5 for any other."""


@dataclass(frozen=True, slots=True)
class Sign:
    """An entry of a key: a mark, a dashed line, or nothing but muted words where `shape` is empty."""

    text: str
    tone: str = INK
    shape: str = "o"
    hollow: bool = False


DASHES: Final = "--"
SQUARE: Final = "swatch"


def method_signs(names: Sequence[str]) -> list[Sign]:
    """The entries of methods."""
    return [Sign(shown.name, shown.tone, shown.shape, shown.hollow) for shown in map(look, names)]


def unsteered_sign(value: float | None) -> list[Sign]:
    """The entry of the dashed line of the unsteered score; none where it is not known."""
    return [] if value is None else [Sign(f"unsteered {decimal(value)}", shape=DASHES)]


def _sign_places(width: float, signs: Sequence[Sign]) -> list[tuple[Sign, float, float]]:
    places: list[tuple[Sign, float, float]] = []
    x, y = 0.0, 1.3
    for sign in signs:
        wide = _lead(sign) + advance(sign.text, 0.82)
        if x and x + wide > width:
            x, y = 0.0, y + 1.45
        places.append((sign, x, y))
        x += wide + 1.5
    return places


def _lead(sign: Sign) -> float:
    return {"": 0.0, DASHES: 2.2}.get(sign.shape, 1.2)


def signs_height(medium: Medium, signs: Sequence[Sign]) -> float:
    """The height of a key over the whole width with room below it, in ems."""
    return _sign_places(medium.ems - 0.4, signs)[-1][2] + 1.5 if signs else 0.0


def draw_signs(canvas: Canvas, signs: Sequence[Sign]) -> None:
    """The key at the head of a figure, in the lines that `signs_height` counts."""
    for sign, x, y in _sign_places(canvas.width - 0.4, signs):
        if sign.shape == DASHES:
            for step in (0.0, 0.65, 1.3):
                canvas.bar(0.2 + x + step, y - 0.3, 0.4, 0.1, sign.tone)
        elif sign.shape == SQUARE:
            canvas.swatch(0.2 + x, y, sign.tone)
        elif sign.shape:
            canvas.marker(0.6 + x, y - 0.3, sign.shape, hollow=sign.hollow, colour=sign.tone)
        tone = INK if sign.shape else MUTED
        canvas.write(0.2 + x + _lead(sign), y, sign.text, size=0.82, colour=tone)


def dashed(axes: Axes, value: float | None, em: float, *, upright: bool = False) -> None:
    """The line of the unsteered score over a panel; none for a gap."""
    if value is None:
        return
    draw = axes.axvline if upright else axes.axhline
    line = draw(value, color=INK, lw=0.08 * em, ls=(0, (4, 3)), zorder=2.5)
    tip(line, f"unsteered: score {decimal(value)}")
