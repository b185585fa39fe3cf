"""The house style: one colour a group, quiet axes, text as text, and a canvas measured in ems.

**Colours.** RES is blue, MLP vermilion, ATT green; a combination has the colour its parts make as
light (blue and red purple, blue and green cyan, red and green yellow), all three together are ink and
nowhere is grey. The eight lie at least 0.1 apart in OKLab for readers with all cones and for those
without red, green or blue ones (Machado et al. 2009), and 0.04 apart in lightness, so that they also
differ in grey; the tests compute it. Figures are drawn in the light colours. `saving` gives every
element a class of its colour, through which a stylesheet turns it dark.

**Sizes.** A `Medium` is a width and a text size. Painters place everything in ems of that text, so the
same painter serves a page, a phone, one column of a paper and both; the origin is the upper left.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from saeflow.paper.frame import GROUPS

INK, MUTED, RULE, FAINT, PAPER = "#22201c", "#645f55", "#ddd7c9", "#f1ede3", "#fffefb"
ACCENT: Final = "#2a66a9"
"""What is of no group: heat maps, strategies, totals."""

CAPTION: Final = "caption"
"""What the ids of the lines of a caption begin with."""

GONE: Final = "deactivated"
"""What a target is after an edit that silenced it, in place of a group (fig. 15b)."""

COLOURS: Final = dict(
    zip(GROUPS, ("#a19e9a", "#1a539f", "#df5712", "#058774", "#760d61", "#61c4eb", "#e7c340", "#322d26"), strict=True)
)
DARK: Final = dict(
    zip(GROUPS, ("#5b5853", "#5382cd", "#e65e45", "#3db594", "#8d4894", "#83cbdf", "#edcc78", "#f2eee6"), strict=True)
)
# Numbers on a group's colour, each in a colour of its own so that its class can choose anew in the dark.
_WHITE_ON: Final = frozenset({"RES", "ATT", "RES & MLP", "RES & MLP & ATT"})
_WHITE_ON_DARK: Final = frozenset({"nowhere", "RES & MLP"})
_ON: Final = {g: f"#fffef{i:x}" if g in _WHITE_ON else f"#22201{i:x}" for i, g in enumerate(GROUPS)}
CLASSES: Final = {
    **{_ON[group]: "n" + str(i) for i, group in enumerate(GROUPS)},
    **{COLOURS[group]: "g" + str(i) for i, group in enumerate(GROUPS)},
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    FAINT: "faint",
    PAPER: "paper",
    ACCENT: "accent",
}
"""Every colour a figure may use, with the class that turns it dark."""
DARK_OF: Final = {
    **{"n" + str(i): "#fffefb" if group in _WHITE_ON_DARK else "#151412" for i, group in enumerate(GROUPS)},
    **{"g" + str(i): DARK[group] for i, group in enumerate(GROUPS)},
    "ink": "#ece8dd",
    "muted": "#a8a294",
    "rule": "#3a372f",
    "faint": "#23211d",
    "paper": "#1b1a17",
    "accent": "#7db1ea",
}

_RC: Final[dict[str, Any]] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same measures on every machine
    "svg.fonttype": "none",
    "svg.hashsalt": "saeflow",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name of a data set may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "lines.solid_capstyle": "butt",
    "path.simplify": False,
}


@dataclass(frozen=True, slots=True)
class Medium:
    """Where a figure will stand. `width` and `text` are pixels of a page or points of a paper."""

    name: str
    width: float
    text: float
    dpi: int

    @property
    def ems(self) -> float:
        """The width in ems of its text."""
        return self.width / self.text

    @property
    def wide(self) -> bool:
        """Whether panels may stand side by side."""
        return self.ems > 50

    def across(self, n: int, least: float, *, beside: float = 0.0) -> int:
        """How many of `n` panels at least `least` ems wide stand in a row, so that rows are alike."""
        most = max(1, min(n, int((self.ems - beside) // least)))
        return -(-n // -(-n // most))


PAGE = Medium("page", 880, 12.5, 144)
"""A page on a wide screen."""
PHONE = Medium("phone", 372, 11.5, 144)
"""A page on a phone."""
COLUMN = Medium("column", 240, 7, 300)
"""One column of a paper."""
SPREAD = Medium("spread", 487, 7.5, 300)
"""Both columns of a paper."""
MEDIA: Final = {medium.name: medium for medium in (PAGE, PHONE, COLUMN, SPREAD)}
"""All of them by name."""


@contextmanager
def house() -> Generator[None]:
    """Draw and save in the house style; the caller's own settings come back after."""
    with mpl.rc_context():
        mpl.rcdefaults()
        cast("dict[str, Any]", mpl.rcParams).update(_RC)
        yield


def colour(group: str) -> str:
    """The colour of a group, ink for anything else. What fell silent is an empty box with a line around it."""
    return FAINT if group == GONE else COLOURS.get(group, INK)


def edge(group: str) -> str:
    """The line around a part of a stack: paper, to part it from its neighbours."""
    return MUTED if group == GONE else PAPER


def on(group: str) -> str:
    """The colour in which a number on this group's colour is written."""
    return _ON.get(group, INK)


class Canvas:
    """A figure on which everything is placed in ems from the upper left corner."""

    def __init__(self, medium: Medium, height: float) -> None:
        """`height` in ems."""
        self.medium, self.height = medium, height
        em = medium.text
        # One unit is one point here and one pixel on a page: 72 to the inch.
        self.figure = Figure(figsize=(medium.width / 72, height * em / 72), dpi=72)

    @property
    def width(self) -> float:
        """In ems."""
        return self.medium.ems

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """A panel without spines or ticks."""
        low = 1 - (top + height) / self.height
        axes = self.figure.add_axes((left / self.width, low, width / self.width, height / self.height))
        axes.tick_params(length=0, labelsize=0.82 * self.medium.text, pad=0.28 * self.medium.text)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 0.86,
        colour: str = INK,
        align: str = "left",
        weight: str = "normal",
        name: str = "",
    ) -> None:
        """One line of text with its baseline at `y`."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size * self.medium.text,
            color=colour,
            ha=align,
            va="baseline",
            fontweight=weight,
            gid=name or None,
        )

    def swatch(self, x: float, y: float, face: str | tuple[str, float], *, line: str = PAPER) -> None:
        """A small square that stands on the baseline `y`."""
        w, h = 0.7 / self.width, 0.7 / self.height
        box = Rectangle((x / self.width, 1 - y / self.height), w, h, fc=face, ec=line, lw=0.0 if line == PAPER else 0.6)
        box.set_transform(self.figure.transFigure)
        self.figure.add_artist(box)

    def bar(self, x: float, y: float, width: float, height: float, face: str) -> None:
        """A small bar without a line around it, its middle at the height `y`, for a key."""
        box = Rectangle(
            (x / self.width, 1 - (y + height / 2) / self.height),
            width / self.width,
            height / self.height,
            fc=face,
            lw=0,
        )
        box.set_transform(self.figure.transFigure)
        self.figure.add_artist(box)

    def link(self, x: tuple[float, float], y: tuple[float, float], colour: str) -> None:
        """A thin line between two points, given as shares of the figure from its lower left."""
        line = Line2D(x, y, color=colour, lw=0.12 * self.medium.text, transform=self.figure.transFigure)
        self.figure.add_artist(line)

    def marker(self, x: float, y: float, shape: str, *, hollow: bool = False, colour: str = INK) -> None:
        """A mark as it stands in a panel, for a key."""
        em = self.medium.text
        mark = Line2D(
            [x / self.width],
            [1 - y / self.height],
            marker=shape,
            ms=0.5 * em,
            mew=0.09 * em,
            mfc=PAPER if hollow else colour,
            mec=colour,
            ls="none",
            transform=self.figure.transFigure,
        )
        self.figure.add_artist(mark)

    def key(self, signs: Sequence[Sign]) -> None:
        """The key at the head of a figure, in the lines that `key_height` counts."""
        for sign, x, y in _sign_places(self.width - 0.4, signs):
            if sign.shape == DASHES:
                for step in (0.0, 0.65, 1.3):
                    self.bar(0.2 + x + step, y - 0.3, 0.4, 0.1, INK)
            elif sign.shape == BAR:
                self.bar(0.2 + x, y - 0.2, 1.6, 0.28, MUTED)
            elif sign.shape == SQUARE:
                line = PAPER if isinstance(sign.tone, str) and sign.tone != FAINT else MUTED
                self.swatch(0.2 + x, y, sign.tone, line=line)
            elif sign.shape and isinstance(sign.tone, str):
                self.marker(0.6 + x, y - 0.3, sign.shape, hollow=sign.hollow, colour=sign.tone)
            self.write(0.2 + x + _lead(sign), y, sign.text, size=0.82, colour=INK if sign.shape else MUTED)

    def title(self, left: float, baseline: float, width: float, text: str, more: str = "") -> None:
        """A panel's name at its left and something muted at its right; the name is cut where both do not fit."""
        room = width - (advance(more, 0.8) + 0.6 if more else 0.0)
        cut = text
        while len(cut) > 4 and advance(cut, 1.0) > room:
            cut = cut.removesuffix("…")[:-1] + "…"
        self.write(left, baseline, cut, size=0.9, weight="bold")
        if more:
            self.write(left + width, baseline, more, size=0.8, colour=MUTED, align="right")

    def caption(self, text: str) -> None:
        """The small line, or lines, at the foot."""
        lines = caption_lines(self.medium, text)
        for i, line in enumerate(lines):
            y = self.height - 0.35 - 1.2 * (len(lines) - 1 - i)
            self.write(0.2, y, line, size=0.74, colour=MUTED, name=f"{CAPTION}-{i}")


DASHES: Final = "--"
BAR: Final = "bar"
SQUARE: Final = "square"


@dataclass(frozen=True, slots=True)
class Sign:
    """An entry of a key: a mark, a square, a bar, dashes, or nothing but muted words where `shape` is empty."""

    text: str
    tone: str | tuple[str, float] = INK
    shape: str = "o"
    hollow: bool = False


def group_signs(groups: Sequence[str]) -> list[Sign]:
    """The entries of groups."""
    return [Sign(group, colour(group), SQUARE) for group in groups]


def _sign_places(width: float, signs: Sequence[Sign]) -> list[tuple[Sign, float, float]]:
    """Every entry with where it stands, in lines of this width."""
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
    return {"": 0.0, DASHES: 2.2, BAR: 2.0}.get(sign.shape, 1.2)


def key_height(medium: Medium, signs: Sequence[Sign]) -> float:
    """The height of a key over the whole width with room below it, in ems."""
    return _sign_places(medium.ems - 0.4, signs)[-1][2] + 1.5 if signs else 0.0


def caption_lines(medium: Medium, text: str) -> list[str]:
    """A caption broken to the width of a medium."""
    return textwrap.wrap(text, int(medium.ems / (0.74 * 0.56)))


def foot(medium: Medium, text: str) -> float:
    """The height that a caption takes, in ems."""
    return 0.7 + 1.2 * len(caption_lines(medium, text))


def advance(text: str, size: float = 1.0) -> float:
    """About how wide a line is, in ems: wide enough for the widest of the faces it may be set in."""
    wide = sum(0.86 if c in "MW&%" else 0.4 if c in " .,:;()|ilj1" else 0.72 if c.isupper() else 0.6 for c in text)
    return size * wide


def tidy(axes: Axes, *, values: str, em: float) -> None:
    """Thin lines across the axis of values and nothing else; `values` is "x" or "y"."""
    axes.grid(axis="x" if values == "x" else "y", color=RULE, lw=0.055 * em, zorder=0)
    axes.set_axisbelow(True)


def nice_ticks(low: float, high: float, most: float = 5.5) -> tuple[list[float], int]:
    """At most about so many steps of 1, 2 or 5 times a power of ten from `low` to `high`, and the digits they need."""
    reach = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(reach / most))
    step = next(power * m for m in (1, 2, 5, 10) if reach / (power * m) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)], max(0, -math.floor(math.log10(step) + 1e-9))


def shares_axis(axes: Axes, which: str, low: float, high: float, *, unit: str = "%", most: float = 5.5) -> None:
    """Ticks in percent, or another hundredth such as "pp", at a step that suits the reach."""
    ticks, digits = nice_ticks(low, high, most)
    digits = max(0, digits - 2)
    names = [f"{100 * tick + 0.0:.{digits}f}".replace("-", "\u2212") for tick in ticks]
    if names:
        names[-1] += f"\u00a0{unit}"
    (axes.set_xticks if which == "x" else axes.set_yticks)(ticks, names)
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def numbers_axis(axes: Axes, which: str, low: float, high: float, *, most: float = 5.5) -> None:
    """Ticks in plain numbers."""
    ticks, digits = nice_ticks(low, high, most)
    names = [f"{tick + 0.0:.{digits}f}".replace("-", "\u2212") for tick in ticks]
    (axes.set_xticks if which == "x" else axes.set_yticks)(ticks, names)
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def layer_axis(axes: Axes, layers: Sequence[int], room: float) -> None:
    """As many numbered layers under a panel as fit into `room` ems."""
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 25, 50, 100, 1000) if len(layers) / s * 1.7 <= room or s == 1000)
    shown = [layer for layer in layers if (layer - layers[0]) % step == 0] if len(layers) > 1 else list(layers)
    axes.set_xticks(shown, [str(layer) for layer in shown])


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """`heights` moved apart to at least `gap` within [low, high], each as little as it takes, in their order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    # Neighbours that would overlap form a cluster, which stands around the mean of its members.
    clusters: list[list[float]] = []  # each: the sum of members less their offsets, the number of members
    for i in order:
        clusters.append([heights[i], 1.0])
        while len(clusters) > 1 and _start(clusters[-2], gap, low, high) + clusters[-2][1] * gap > _start(
            clusters[-1], gap, low, high
        ):
            total, n = clusters.pop()
            clusters[-1][0] += total - n * clusters[-1][1] * gap
            clusters[-1][1] += n
    placed = [_start(c, gap, low, high) + k * gap for c in clusters for k in range(round(c[1]))]
    found = [0.0] * len(heights)
    for at, i in enumerate(order):
        found[i] = placed[at]
    return found


def _start(cluster: list[float], gap: float, low: float, high: float) -> float:
    """Where the lowest member of a cluster stands: around the mean, within the limits."""
    total, n = cluster
    return max(low, min(total / n, high - (n - 1) * gap))


def nothing(medium: Medium, caption: str, said: str = "no rows") -> Figure:
    """The figure of a table without rows."""
    canvas = Canvas(medium, 4.0 + foot(medium, caption))
    canvas.write(canvas.width / 2, 2.6, said, colour=MUTED, align="center")
    canvas.caption(caption)
    return canvas.figure
