"""Helpers for figures, sentences and claims of a steering sweep: methods, settings, and means over themes.

A method has one colour and one shape in every figure (section 5.3, appendix B). Baselines are hollow: they use no flow
graph. The colours are five of the eight of `style`, which colour-blind readers can tell apart, and shapes separate what
could still be confused. Which method wins depends on the theme, so no mean over themes is drawn.

In claims, a number is the mean over themes, which are chosen and not a random sample; samples of one seed are paired.
The best of several settings is cross-fitted on the grid, or measured on fresh samples, so that choosing does not
inflate it. All scores are from one judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.experiments.statistics import LEVEL, Estimate, Tally
from saeflow.paper.frame import Frame, FrameRow, Interval, in_order
from saeflow.paper.kinds import DotPanel, DotRow, dots, tip
from saeflow.paper.style import COLOURS, DASHES, INK, MUTED, Medium, Sign, ems, nothing
from saeflow.paper.verdicts import UNKNOWN, ClaimNumber, NotMeasured, Rule
from saeflow.paper.words import count, decimal, decimal_interval
from saeflow.steering.sweep.cells import Cells
from saeflow.steering.sweep.contrasts import SMALLEST

SUPPRESS: Final = "suppress"
ACTIVATE: Final = "activate"
VERBS: Final = {ACTIVATE: "Activating", SUPPRESS: "Suppressing"}
MethodKey = tuple[str, str]
"""Identifies a row of a theme: the method, and "start layer" if it steers the layer with most starts, else ""."""


@dataclass(frozen=True, slots=True)
class Look:
    """How figures name and draw a method."""

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
    "difference": Look("difference of means", INK, "v", True),
    "probe": Look("probe", INK, "^", True),
}
"""Every method in the order of figures: the four baselines, one layer, many layers, directions without features.

The single layer with most starts has an entry of its own, apart from the best single layer.
"""

MULTI: Final = ("constant", "linear", "exponential", "cumulative")
"""The methods that steer many layers at once."""

BEST: Final = COLOURS["MLP"]
"""The colour of the best point on a line without a colour of its own."""


def verb(direction: str) -> str:
    """`Activating` or `Suppressing`."""
    return VERBS.get(direction, direction)


def scored(row: FrameRow) -> str:
    """`exponential [layers to 7, s = 4] 0.41 (0.35–0.47)`."""
    found, how = row.estimate("score"), setting(row)
    name = look(row.words("method")).name + (f" [{how}]" if how else "")
    return f"{name} {decimal_interval(found)}" if found else ""


def unsteered(frame: Frame) -> str:
    """The unsteered score as the end of a sentence; empty if it is unknown."""
    value = default_of(frame)
    return "" if value is None else f"; unsteered it is {decimal(value)}"


def score_of(row: FrameRow) -> float:
    """The score of a row, 0 for a gap."""
    return row.number("score") or 0.0


def look(method: str) -> Look:
    """How a method is drawn; filled ink for an unknown one."""
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


def dose(row: FrameRow) -> str:
    """`s = 8`, or `r = −1` where activations are rescaled; empty for a gap."""
    value = row.number("value")
    return "" if value is None else f"{'r' if row.words('direction') == SUPPRESS else 's'} = {plain(value)}"


def place(row: FrameRow) -> str:
    """`layer 5`, or `layers to 5` where all below are steered too; empty for a method without a layer."""
    layer = row.number("layer")
    if layer is None or layer < 0:
        return ""
    return f"layers to {layer:.0f}" if row.words("method") in MULTI else f"layer {layer:.0f}"


def setting(row: FrameRow) -> str:
    """`layer 5, s = 8`: the setting of a method; empty for a method without one."""
    if row.words("method") in {"none", "prompt"}:
        return ""
    return ", ".join(word for word in (place(row), dose(row)) if word)


def score_tip(row: FrameRow, found: Interval, what: str = "score") -> str:
    """`single, layer 5, s = 8: score 0.41 (0.35–0.47), n = 64`, for tooltips."""
    name = ", ".join(word for word in (look(row.words("method")).name, setting(row)) if word)
    return f"{name}: {what} {decimal_interval(found)}" + ("" if found.n is None else f", n = {count(found.n)}")


def of_methods(rows: Iterable[FrameRow], *names: str) -> list[FrameRow]:
    """The rows of these methods at the setting chosen for them, without those at the layer with most starts."""
    return [row for row in rows if row.words("method") in names and row.words("choice") != "start layer"]


def default_of(frame: Frame) -> float | None:
    """The score without steering, from the column `default` or from the rows of the method "none"."""
    for row in frame.records:
        value = row.number("default")
        if value is not None:
            return value
    return next((row.number("score") for row in frame.where(method="none").records), None)


def samples_words(frame: Frame) -> str:
    """`n = 64`, or `n = 48 to 64` if rows differ; empty if no row has n."""
    known = frame.numbers("n")
    if not known:
        return ""
    return f"n = {count(known[0])}" + ("" if len(known) == 1 else f" to {count(known[-1])}")


def method_signs(names: Sequence[str]) -> list[Sign]:
    """Key entries for methods."""
    return [Sign(shown.name, shown.tone, shown.shape, shown.hollow) for shown in map(look, names)]


def score_signs(frame: Frame) -> list[Sign]:
    """Key entries for the dashed line of the unsteered score, if known, and for n."""
    value, n = default_of(frame), samples_words(frame)
    signs = [] if value is None else [Sign(f"unsteered {decimal(value)}", shape=DASHES)]
    return [*signs, *([Sign(n, shape="")] if n else [])]


def dashed(axes: Axes, value: float | None) -> None:
    """Draw the unsteered score as a dashed line across a panel, unless it is a gap."""
    if value is not None:
        tip(axes.axhline(value, color=INK, lw=ems(0.08), ls=DASHES, zorder=2.5), f"unsteered: score {decimal(value)}")


def row_key(row: FrameRow) -> MethodKey:
    """The key of a row within its theme."""
    choice = row.words("choice")
    return row.words("method"), choice if choice == "start layer" else ""


def theme_panels(
    frame: Frame,
    rows_of: Mapping[str, Mapping[MethodKey, DotRow]],
    keys: Sequence[MethodKey],
    medium: Medium,
    caption: str,
    axis: str,
    signs: Sequence[Sign],
) -> Figure:
    """Draw a panel for each theme with a row for each key; a key that a theme lacks is an empty row."""
    if not keys:
        return nothing(medium, caption)
    named = {key: next(rows[key] for rows in rows_of.values() if key in rows) for key in keys}
    ns = {theme: samples_words(frame.where(theme=theme)) for theme in rows_of}
    alike = len(set(ns.values())) == 1
    shown: list[DotPanel] = []
    for theme, rows in rows_of.items():
        value = default_of(frame.where(theme=theme)) if axis == "score" else None
        default = None if value is None else (value, f"unsteered: score {decimal(value)}")
        filled = [rows.get(key, DotRow(named[key].name, height=named[key].height)) for key in keys]
        shown.append(DotPanel(theme, filled, f"→ {axis}", "" if alike else ns[theme], default=default))
    n = next(iter(ns.values()))
    return dots(shown, medium, caption, signs=[*signs, *([Sign(n, shape="")] if alike and n else [])])


def row_keys(frame: Frame) -> list[MethodKey]:
    """The keys of all rows, in the order of `LOOKS`."""
    order = methods(frame)
    return sorted({row_key(row) for row in frame.records}, key=lambda key: (order.index(key[0]), key[1]))


def key_name(key: MethodKey) -> str:
    """The name of a row by its key."""
    return look(key[0]).name + (f", {key[1]}" if key[1] else "")


# --- claims -----------------------------------------------------------------------------------------------------------

BETTER: Final = Rule("above", least=SMALLEST)
"""A score is higher than another; the claim also fails if the interval rules out an advantage that matters."""


def themes(cells: Cells, direction: str) -> list[str]:
    """The themes steered in a direction.

    Raises:
        NotMeasured: when there is none.
    """
    found = list(cells.settings.loc[cells.settings["direction"] == str(direction), "theme"].unique())
    if not found:
        raise NotMeasured(f"No theme was steered in the direction {direction}.")
    return found


def find(cells: Cells, theme: str, direction: str, *names: str, mirrors: Sequence[str] = ("",)) -> pd.DataFrame:
    """The settings of a theme with these methods; of random rows, only those that replace the features of `mirrors`."""
    found = cells.settings
    kept = (found["theme"] == theme) & (found["direction"] == str(direction))
    return found[kept & found["method"].isin(names) & found["mirrors"].isin(mirrors)]


def by_value(cells: Cells, theme: str, direction: str, method: str) -> dict[float, np.ndarray]:
    """For each s or r, from weak to strong, the score of each sample at its best layer, cross-fitted."""
    found = find(cells, theme, direction, method)
    order = sorted(found["value"].unique().tolist(), reverse=direction == SUPPRESS)
    return {value: cells.crossfit(found.index[found["value"] == value]) for value in order}


def of_blocks(cells: Cells, blocks: Sequence[np.ndarray]) -> Tally:
    """A tally with one block for each theme, (n, m, samples); where m is less than in others, scores are unknown."""
    most = max(block.shape[1] for block in blocks)
    padded = [np.pad(b, ((0, 0), (0, most - b.shape[1]), (0, 0)), constant_values=np.nan) for b in blocks]
    return cells.tally(np.stack(padded))


def over_themes(
    cells: Cells,
    each: Mapping[str, np.ndarray],
    words: str,
    rule: Rule = BETTER,
    *,
    control: Mapping[str, np.ndarray] | None = None,
) -> ClaimNumber:
    """The mean over themes of one number per sample; beside it, in how many themes the interval is above or below 0.

    The default rule is for differences of scores; marks and shares need another.

    Raises:
        NotMeasured: when no theme has the number.
    """
    if not each:
        raise NotMeasured("No theme has the settings that are compared.")

    def mean(values: Sequence[np.ndarray]) -> Estimate:
        """The mean over themes of the mean over samples."""
        return cells.tally(np.stack(values)).of_means(lambda means: means.mean(-1))

    sides = [mean([values]) for values in each.values()]
    above = sum(s.low is not None and s.low > 0 for s in sides)
    below = sum(s.high is not None and s.high < 0 for s in sides)
    beside = f"above 0 in {above} and below in {below} of {len(each)} themes"
    of_control = mean([*control.values()]) if control else UNKNOWN
    return ClaimNumber(words, mean([*each.values()]), rule, "number", of_control, beside)


def in_any_theme(cells: Cells, each: Mapping[str, np.ndarray], words: str) -> list[ClaimNumber]:
    """One finding for each theme, its interval widened for the number of themes (Bonferroni)."""
    level = 1 - (1 - LEVEL) / max(1, len(each))
    found: list[ClaimNumber] = []
    for theme, values in each.items():
        estimate = cells.tally(values).of_means(level=level)
        beside = f"interval at {100 * level:.1f} %, for {len(each)} themes" if len(each) > 1 else ""
        found.append(ClaimNumber(f"{words}, {theme}", estimate, BETTER, "number", beside=beside))
    return found


def of_themes(n: int) -> str:
    """`mean of 3 themes`."""
    return "mean of one theme" if n == 1 else f"mean of {n} themes"
