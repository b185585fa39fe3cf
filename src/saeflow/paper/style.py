"""The house style: one colour per group, quiet axes, text kept as text, and panels with a key.

**Colours.** RES is blue, MLP vermilion, ATT green. A combination has the colour that its parts make as light (blue and
red purple, blue and green cyan, red and green yellow); all three together are ink and nowhere is grey. The eight lie at
least 0.1 apart in OKLab, for readers with all cones and for those without red, green or blue ones (Machado et al.
2009), and 0.04 apart in lightness, so that they also differ in grey; the tests check this. Figures are drawn in the
light colours. `saving` gives every element a class for its colour, through which a stylesheet turns it dark.

**Sizes.** A `Medium` is a width and a text size. Lengths are ems of that text, so that one figure suits a page, a
phone, and one or both columns of a paper. `panels` makes a figure with key, panels and caption; matplotlib's
constrained layout places what is in between.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnchoredOffsetbox, DrawingArea, HPacker, OffsetBox, TextArea, VPacker
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from saeflow.paper.frame import GROUPS

INK, MUTED, RULE, FAINT, PAPER = "#22201c", "#645f55", "#ddd7c9", "#f1ede3", "#fffefb"
ACCENT: Final = "#2a66a9"
"""The colour of what is not a group: heat maps, strategies, totals."""

CAPTION: Final = "caption"
"""Prefix of the ids of caption lines."""

GONE: Final = "deactivated"
"""The outcome of a target that an edit silenced, in place of a group (fig. 15b)."""

COLOURS: Final = dict(
    zip(GROUPS, ("#a19e9a", "#1a539f", "#df5712", "#058774", "#760d61", "#61c4eb", "#e7c340", "#322d26"), strict=True)
)
DARK: Final = dict(
    zip(GROUPS, ("#5b5853", "#5382cd", "#e65e45", "#3db594", "#8d4894", "#83cbdf", "#edcc78", "#f2eee6"), strict=True)
)
# Numbers on a group's colour: all shades differ, so that each has a class with its own dark colour.
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
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same metrics on every machine
    "svg.fonttype": "none",
    "svg.hashsalt": "saeflow",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name of a data set may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "xaxis.labellocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "lines.solid_capstyle": "butt",
    "path.simplify": False,
}
DASHES: Final = (0, (4, 3))
"""Line style of references."""
DOTS: Final = (0, (1.2, 1.6))
"""Line style of controls."""


@dataclass(frozen=True, slots=True)
class Medium:
    """Where a figure will be shown. `width` and `text` (its size) are in pixels of a page or points of a paper."""

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
        """How many of `n` panels, each at least `least` ems wide, stand in a row, with rows as even as possible."""
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
"""All media by name."""


@contextmanager
def house(em: float = PAGE.text) -> Generator[None]:
    """Draw and save in the house style with text of size `em`; the caller's own settings are restored afterwards."""
    sizes = {
        "font.size": em,
        "axes.titlesize": 0.9 * em,
        "axes.titlepad": 0.6 * em,
        "axes.labelsize": 0.74 * em,
        "axes.labelpad": 0.2 * em,
        "grid.linewidth": 0.055 * em,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        cast("dict[str, Any]", mpl.rcParams).update({**_RC, **sizes})
        yield


def ems(n: float) -> float:
    """`n` ems of the figure's text, in points."""
    return n * float(mpl.rcParams["font.size"])


def colour(group: str) -> str:
    """The colour of a group, ink for anything else. A silenced target (`GONE`) is an empty box with an outline."""
    return FAINT if group == GONE else COLOURS.get(group, INK)


def on(group: str) -> str:
    """The colour of a number written on this group's colour."""
    return _ON.get(group, INK)


@dataclass(frozen=True, slots=True)
class Sign:
    """An entry of a key: a mark, a square, a line, or only muted words if `shape` is empty."""

    text: str
    tone: str | tuple[str, float] = INK
    shape: str | tuple[float, tuple[float, ...]] = "o"
    hollow: bool = False


SQUARE: Final = "square"
LINE: Final = "-"


def group_signs(groups: Sequence[str]) -> list[Sign]:
    """Key entries for groups."""
    return [Sign(group, colour(group), SQUARE) for group in groups]


def panels(
    medium: Medium,
    caption: str,
    mosaic: int | Sequence[Sequence[str]],
    tall: float | Sequence[float],
    *,
    across: int = 1,
    signs: Sequence[Sign] = (),
    over: float = 4.4,
) -> tuple[Figure, list[Axes]]:
    """A figure with a key, a caption and panels, laid out by matplotlib's constrained layout.

    Args:
        medium: the medium to lay it out for.
        caption: at the foot.
        mosaic: the number of equal panels, in rows of `across`; or names of panels row by row, a name over
            several columns for a wide panel and "." for none.
        tall: the height of a panel in ems, or that of each row.
        across: the number of panels in a row.
        signs: the entries of the key.
        over: additional ems of a row for its titles and ticks.

    Returns:
        The figure, and its panels in the order of their names.
    """
    if isinstance(mosaic, int):
        names = [*(f"{i:03d}" for i in range(mosaic)), *["."] * (-mosaic % across)]
        mosaic = [names[i : i + across] for i in range(0, len(names), across)]
    heights = [tall] * len(mosaic) if isinstance(tall, int | float) else list(tall)
    heights = [height + over for height in heights]
    key, foot = _key_rows(medium, signs), textwrap.wrap(caption, int(medium.ems / (0.74 * 0.56)))
    head, below = 1.45 * len(key) + (0.5 if key else 0.1), 1.2 * len(foot) + 0.8
    height, em = head + sum(heights) + below, medium.text
    # One unit is one point here and one pixel on a page: 72 to the inch.
    figure = Figure(figsize=(medium.width / 72, height * em / 72), dpi=72, layout="constrained")
    rect = (0.0, below / height, 1.0, 1 - (head + below) / height)
    pads = {"w_pad": 0.5 * em / 72, "h_pad": 0.55 * em / 72, "wspace": 0.0, "hspace": 0.0}
    cast("ConstrainedLayoutEngine", figure.get_layout_engine()).set(rect=rect, **pads)
    axes = figure.subplot_mosaic([list(row) for row in mosaic], height_ratios=heights)
    for one in axes.values():
        one.tick_params(length=0, labelsize=0.82 * em, pad=0.28 * em)
    if key:
        rows: list[Artist] = [
            HPacker(pad=0, sep=1.4 * em, align="center", children=[_entry(s, em) for s in row]) for row in key
        ]
        packed = VPacker(pad=0, sep=0.45 * em, children=rows)
        at: dict[str, Any] = {
            "bbox_to_anchor": (0.2 / medium.ems, 1 - 0.3 / height),
            "bbox_transform": figure.transFigure,
        }
        figure.add_artist(AnchoredOffsetbox("upper left", child=packed, pad=0, borderpad=0, frameon=False, **at))
    for i, line in enumerate(foot):
        y = (0.4 + 1.2 * (len(foot) - 1 - i)) / height
        figure.text(0.2 / medium.ems, y, line, fontsize=0.74 * em, color=MUTED, gid=f"{CAPTION}-{i}")
    return figure, [axes[name] for name in sorted(axes)]


def _key_rows(medium: Medium, signs: Sequence[Sign]) -> list[list[Sign]]:
    """The entries of a key, broken into rows that fit."""
    rows: list[list[Sign]] = []
    room = 0.0
    for sign in signs:
        wide = advance(sign.text, 0.82) + (0.0 if not sign.shape else 1.2 if isinstance(sign.shape, str) else 2.2) + 1.4
        if not rows or wide > room:
            rows.append([])
            room = medium.ems + 1.0
        rows[-1].append(sign)
        room -= wide
    return rows


def _entry(sign: Sign, em: float) -> OffsetBox:
    """The sign of a key entry with its words."""
    words = {"size": 0.82 * em, "color": INK if sign.shape else MUTED}
    text = TextArea(sign.text, textprops=words)
    if not sign.shape:
        return text
    line = not isinstance(sign.shape, str) or sign.shape == LINE
    area = DrawingArea((1.6 if line else 0.7) * em, 0.7 * em)
    if sign.shape == SQUARE:
        edge = MUTED if sign.tone == FAINT or not isinstance(sign.tone, str) else "none"
        area.add_artist(Rectangle((0, 0), 0.7 * em, 0.7 * em, fc=sign.tone, ec=edge, lw=0.6))
    elif line:
        wide = (0.28 if sign.shape == LINE else 0.1) * em
        area.add_artist(Line2D((0, 1.6 * em), (0.35 * em,) * 2, color=sign.tone, ls=sign.shape, lw=wide))
    else:
        how: dict[str, Any] = {
            "marker": sign.shape,
            "ms": 0.5 * em,
            "mew": 0.09 * em,
            "mfc": PAPER if sign.hollow else sign.tone,
            "mec": sign.tone,
        }
        area.add_artist(Line2D([0.35 * em], [0.35 * em], ls="none", **how))
    return HPacker(pad=0, sep=0.4 * em, align="center", children=[area, text])


def title(axes: Axes, text: str, more: str = "", *, room: float = 1000.0) -> None:
    """Title a panel, with muted words at the right; the title is cut if both do not fit into `room` ems."""
    room -= advance(more, 0.8) + 0.6 if more else 0.0
    cut = text
    while len(cut) > 4 and advance(cut, 1.0) > room:
        cut = cut.removesuffix("…")[:-1] + "…"
    axes.set_title(cut)
    axes.set_title(more, loc="right", fontsize=ems(0.8), color=MUTED, fontweight="normal")


def advance(text: str, size: float = 1.0) -> float:
    """The approximate width of a line in ems, enough for the widest font it may be shown in."""
    wide = sum(0.86 if c in "MW&%" else 0.4 if c in " .,:;()|ilj1" else 0.72 if c.isupper() else 0.6 for c in text)
    return size * wide


def value_axis(axes: Axes, which: Literal["x", "y"], low: float, high: float, *, unit: str = "", most: int = 6) -> None:
    """Set at most `most` ticks at round steps, with grid lines. A unit, "%" or "pp", shows them as hundredths."""
    scale = 100 if unit else 1
    found = [float(t) for t in MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(scale * low, scale * high)]
    air = 1e-6 * (high - low) * scale
    ticks = [tick for tick in found if scale * low - air <= tick <= scale * high + air]
    step = max(found[1] - found[0], 1e-12)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    names = [f"{tick + 0.0:.{digits}f}".replace("-", "\u2212") for tick in ticks]
    if names and unit:
        names[-1] += f"\u00a0{unit}"
    (axes.set_xticks if which == "x" else axes.set_yticks)([tick / scale for tick in ticks], names)
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axes.grid(axis=which)


def apart(values: Sequence[float], room: float, *, first: Sequence[float] = ()) -> list[float]:
    """The ascending `values` that are at least `room` of their range apart; `first` and the ends take precedence."""
    least = room * max(values[-1] - values[0], 1e-9)
    kept: list[float] = []
    for value in sorted(values, key=lambda v: (v not in first, v not in (values[0], values[-1]), v)):
        if all(abs(value - other) >= least for other in kept):
            kept.append(value)
    return sorted(kept)


def layer_axis(axes: Axes, layers: Sequence[int], label: str = "layer", *, air: float = 0.4) -> None:
    """Number the layers under a panel, as many as fit."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 4, 5, 8, 10], min_n_ticks=1))
    axes.set_xlim(layers[0] - air, layers[-1] + air)
    axes.set_xlabel(label)


def nothing(medium: Medium, caption: str, said: str = "no rows") -> Figure:
    """The figure of a table without rows."""
    figure, (axes,) = panels(medium, caption, 1, 3.0, over=0.0)
    axes.set_axis_off()
    axes.text(0.5, 0.5, said, color=MUTED, ha="center", transform=axes.transAxes)
    return figure
