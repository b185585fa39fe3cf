"""Figure 9 (and 16, 17b): steering scores over layers, for one theme and direction.

Scores are Behavioral x Coherence with both in [0, 1]; to suppress a theme, (1 - Behavioral) x Coherence (section 4.2).
Bands and vertical lines are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.experiments.statistics import Tally, known_mean, ratio
from saeflow.paper.evidence import SteeringRun
from saeflow.paper.frame import Frame, FrameRow, Interval, best
from saeflow.paper.kinds import Drawing, line, mark, reach
from saeflow.paper.steering import (
    ACTIVATE,
    BEST,
    BETTER,
    MULTI,
    SUPPRESS,
    by_value,
    dashed,
    default_of,
    direction_of,
    dose,
    find,
    in_any_theme,
    look,
    methods,
    of_blocks,
    of_themes,
    over_themes,
    place,
    plain,
    score_signs,
    score_tip,
    scored,
    themes,
    unsteered,
)
from saeflow.paper.style import ACCENT, INK, MUTED, Medium, Sign, ems, layer_axis, nothing, panels, title, value_axis
from saeflow.paper.verdicts import ClaimNumber, NotMeasured, Rule
from saeflow.paper.words import capital, decimal, decimal_interval, listed
from saeflow.steering.sweep.cells import START_LAYER

_ROW: Final = 1.15  # height of a row in the strip of best layers, in ems
EARLIER: Final = Rule("below", least=0.5)
"""A layer is lower than another; less than half a layer, averaged over themes, does not matter on a grid of layers."""


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw scores over the layer that is steered, a panel for each method (fig. 9 to suppress, 16 and 17b to activate).

    To suppress: one line per r, stronger the farther r is from 1; the strip below names them and shows how the best
    layer moves. To activate: the best of all s at each layer, with the best layer ringed; the other methods are thin
    lines behind.
    """
    shown = [m for m in methods(frame) if any(_layer(r) is not None for r in frame.where(method=m).records)]
    if not shown:
        return nothing(medium, caption, "no method has a layer of its own")
    suppress, default, layers = direction_of(frame) == SUPPRESS, default_of(frame), frame.layers()
    if suppress:
        signs = [Sign("best layer of each r", BEST), Sign("lines: r, stronger farther from 1", shape="")]
    else:
        signs = [Sign("best layer", INK, hollow=True), Sign("at each layer the best of all s", shape="")]
    doses = {r for row in frame.records if (r := row.number("value")) is not None and _layer(row) is not None}
    nearest = sorted(doses, key=lambda r: (abs(r - 1), r))
    # 1. panels: one for each method, and to suppress a strip under it
    across = min(len(shown), 2) if medium.wide else 1
    rows = [range(i, min(i + across, len(shown))) for i in range(0, len(shown), across)]
    kinds = "ab" if suppress else "a"
    mosaic = [[f"{i:02d}{kind}" for i in row] + ["."] * (across - len(row)) for row in rows for kind in kinds]
    tall = ([13.0, _ROW * len(doses)] if suppress else [9.5]) * len(rows)
    drawn, places = panels(medium, caption, mosaic, tall, signs=[*signs, *score_signs(frame)], over=3.0)
    limits = reach([*(row.estimate("score") for row in frame.records), Interval(default or 0.0)])
    for i, method in enumerate(shown):
        axes, lowest = places[i * len(kinds)], places[(i + 1) * len(kinds) - 1]
        own = frame.where(method=method).records
        # 2. lines
        dashed(axes, default)
        if suppress:
            _over_doses(axes, lowest, own, layers, nearest)
        else:
            for other in shown:
                _one_method(axes, frame.where(method=other).records, layers, behind=other != method)
        # 3. axes and titles
        value_axis(axes, "y", *limits)
        layer_axis(axes, layers, "")
        layer_axis(lowest, layers, f"↑ score · {'layer' if method in {'single', 'random'} else 'all layers up to'}")
        if suppress:
            axes.set_xticklabels([])
        top = best(own)
        more = "" if top is None else f"best {decimal(top.number('score'))}: {place(top)}, {dose(top)}"
        title(axes, look(method).name, more)
    return drawn


def _layer(row: FrameRow) -> float | None:
    layer = row.number("layer")
    return layer if layer is not None and layer >= 0 else None


def _by_layer(
    rows: Iterable[FrameRow], layers: Sequence[int]
) -> tuple[list[FrameRow | None], list[Interval | None], list[str]]:
    """The row of each layer with its score and its tooltip."""
    known = {int(layer): row for row in rows if (layer := _layer(row)) is not None}
    found = [known.get(layer) for layer in layers]
    scores = [row.estimate("score") if row else None for row in found]
    return found, scores, [score_tip(row, e) if row and e else "" for row, e in zip(found, scores, strict=True)]


def _over_doses(
    axes: Axes, strip: Axes, own: Sequence[FrameRow], layers: Sequence[int], doses: Sequence[float]
) -> None:
    """Draw a line for each r over the layers of one method, and a row of the strip with its name and best layer."""
    for i, r in enumerate(doses):
        strength = 1.0 if len(doses) == 1 else 0.25 + 0.75 * i / (len(doses) - 1)
        rows, found, tips = _by_layer([row for row in own if row.number("value") == r], layers)
        line(axes, layers, found, tips, tone=ACCENT, strength=strength)
        strip.plot((layers[0] - 0.4, layers[-1] + 0.4), (i, i), color=ACCENT, lw=ems(0.13), alpha=strength, zorder=2)
        top = best(row for row in rows if row is not None)
        if top is not None and (e := top.estimate("score")) is not None:
            at, text = _layer(top) or 0.0, f"best layer: {score_tip(top, e)}"
            mark(axes, at, e, text, tone=BEST, upright=True, order=5)
            mark(strip, at, Interval(i), text, tone=BEST, upright=True, order=5)
    strip.set_yticks(range(len(doses)), [f"r {plain(r)}" if i == 0 else plain(r) for i, r in enumerate(doses)])
    strip.set_ylim(len(doses) - 0.4, -0.6)


def _one_method(axes: Axes, own: Sequence[FrameRow], layers: Sequence[int], *, behind: bool) -> None:
    """Draw the best of all s at each layer, with the best layer ringed; if `behind`, a thin line to compare with."""
    rows, found, tips = _by_layer(own, layers)
    if behind:
        known = [(n, e.value) for n, e in zip(layers, found, strict=True) if e]
        axes.plot([n for n, _ in known], [v for _, v in known], color=MUTED, lw=ems(0.07), alpha=0.55, zorder=1.5)
        return
    top = best(row for row in rows if row is not None)
    shown = look(top.words("method") if top is not None else "")
    how: dict[str, Any] = {"tone": shown.tone, "hollow": shown.hollow, "shape": shown.shape}
    line(axes, layers, found, tips, **how)
    if top is not None and (e := top.estimate("score")) is not None:
        at = _layer(top) or 0.0
        mark(axes, at, e, f"best layer: {score_tip(top, e)}", upright=True, order=5, **how)
        ring: dict[str, Any] = {"ms": ems(1.0), "mfc": "none", "mec": INK, "mew": ems(0.1), "ls": "none"}
        axes.plot([at], [e.value], marker="o", zorder=7, clip_on=False, **ring)


def sentence(frame: Frame) -> str:
    """The best layer of each method and how it moves with r."""
    phrases: list[str] = []
    for direction, rows in frame.by("direction").items():
        themes = rows.by("theme")
        tell = _layers_by_dose if direction == SUPPRESS else _best_layers
        if len(themes) == 1:
            phrases.append(tell(rows))
        elif direction == SUPPRESS:
            phrases.append(_moves(themes))
        else:
            phrases.append(_where_best(themes))
    return " ".join(word for word in phrases if word)


def _ends(frame: Frame) -> tuple[FrameRow, FrameRow] | None:
    """The best single layers at the r nearest to 1 and at the r farthest from it; None without two such r."""
    rows = [row for row in frame.where(method="single").records if row.number("score") is not None]
    doses = sorted({r for row in rows if (r := row.number("value")) is not None}, key=lambda r: abs(r - 1))
    if len(doses) < 2:
        return None
    weak, strong = (best(row for row in rows if row.number("value") == r) for r in (doses[0], doses[-1]))
    return None if weak is None or strong is None else (weak, strong)


def _layers_by_dose(frame: Frame) -> str:
    ends = _ends(frame)
    if ends is None:
        return ""
    phrases = [
        f"at {dose(row)} the best single layer is {row.number('layer'):.0f}, with "
        f"{decimal_interval(found) if (found := row.estimate('score')) else ''}"
        for row in ends
    ]
    top = best(row for row in frame.records if row.words("method") in MULTI)
    found = top.estimate("score") if top else None
    joint = f"; cumulative reaches {decimal_interval(found)} with {place(top)} at {dose(top)}" if top and found else ""
    return f"{capital(phrases[0])}, {phrases[1]}{joint}{unsteered(frame)}."


def _moves(themes: Mapping[str, Frame]) -> str:
    pairs = [ends for rows in themes.values() if (ends := _ends(rows)) is not None]
    if not pairs:
        return ""
    moves = [(strong.number("layer") or 0) - (weak.number("layer") or 0) for weak, strong in pairs]
    earlier, later = sum(move < 0 for move in moves), sum(move > 0 for move in moves)
    weak, strong = ({dose(pair[i]) for pair in pairs} for i in (0, 1))
    of = f" from {next(iter(weak))} to {next(iter(strong))}" if len(weak) == len(strong) == 1 else ""
    return (
        f"Suppressing harder{of}, the best single layer moves earlier in {earlier} of {len(pairs)} themes and later "
        f"in {later}."
    )


def _best_layers(frame: Frame) -> str:
    tops = [row for m in methods(frame) if (row := best(frame.where(method=m).records)) is not None]
    phrases = [text for row in tops if (text := scored(row))]
    return f"Best of all layers: {listed(phrases)}{unsteered(frame)}." if phrases else ""


def _where_best(themes: Mapping[str, Frame]) -> str:
    found = {theme: row for theme, rows in themes.items() if (row := best(rows.where(method="single").records))}
    layers = {theme: int(row.number("layer") or 0) for theme, row in found.items()}
    if not layers:
        return ""
    low, high = min(layers, key=layers.__getitem__), max(layers, key=layers.__getitem__)
    if layers[low] == layers[high]:
        return f"Activating, the best single layer is {layers[low]} in each of {len(layers)} themes."
    return f"Activating, the best single layer runs from {layers[low]} ({low}) to {layers[high]} ({high})."


# --- claims -----------------------------------------------------------------------------------------------------------


def _at_ends(run: SteeringRun) -> tuple[Tally, list[list[float]], float]:
    """Scores of single layers at the weakest and the strongest r, the layers of each theme, and the number of scores.

    Scores have the axes samples, themes, r, layers. A theme with features at a single layer has no best and is left
    out.

    Raises:
        NotMeasured: when no theme has two layers and two values.
    """
    grid = run.grid
    blocks: list[np.ndarray] = []
    layers: list[list[float]] = []
    for theme in themes(grid, SUPPRESS):
        places = find(grid, theme, SUPPRESS, "single")
        known = dict(zip(zip(places["value"], places["layer"], strict=True), places.index, strict=True))
        values = sorted({value for value, _ in known}, reverse=True)
        common = sorted({layer for _, layer in known if all((v, layer) in known for v in values)})
        if len(values) < 2 or len(common) < 2:
            continue
        ends = (values[0], values[-1])
        blocks.append(np.stack([[grid.values["score"][known[v, layer]] for layer in common] for v in ends]))
        layers.append([float(layer) for layer in common])
    if not blocks:
        raise NotMeasured("Single layers were steered at fewer than two layers or two values of r.")
    tally = of_blocks(grid, blocks)
    return tally, layers, float(tally.sums[..., 1].sum())


def claim_earlier(run: SteeringRun) -> list[ClaimNumber]:
    """The best single layer is earlier at the strongest r than at the weakest."""
    tally, layers, n = _at_ends(run)

    def moved(x: np.ndarray) -> np.ndarray:
        means = np.nan_to_num(x[..., 0] / x[..., 1], nan=-np.inf).argmax(-1)  # (cases, themes, r)
        known = np.array([row + [np.nan] * (means.max() + 1 - len(row)) for row in layers])
        at = known[np.arange(len(layers))[None, :, None], means]
        return (at[..., 1] - at[..., 0]).mean(-1)

    words = "best layer at the strongest r less that at the weakest, in layers"
    far = max(row[-1] - row[0] for row in layers)
    found = tally.estimate(moved, n=n, span=(-far, far), chosen=True)
    return [ClaimNumber(words, found, EARLIER, "number", beside=of_themes(len(layers)))]


def claim_even(run: SteeringRun) -> list[ClaimNumber]:
    """A weak r spreads its effect more evenly over layers than a strong one."""
    tally, layers, n = _at_ends(run)

    def uneven(x: np.ndarray) -> np.ndarray:
        means = ratio(x)
        spread = np.sqrt(known_mean((means - known_mean(means, -1)[..., None]) ** 2, -1))
        return (spread[..., 1] - spread[..., 0]).mean(-1)

    words = "standard deviation over layers of the score at the strongest r less that at the weakest"
    return [ClaimNumber(words, tally.estimate(uneven, n=n), BETTER, "number", beside=of_themes(len(layers)))]


def claim_stronger(run: SteeringRun) -> list[ClaimNumber]:
    """Single layers do better at the strongest r than at the weakest."""
    each: dict[str, np.ndarray] = {}
    for theme in themes(run.grid, SUPPRESS):
        scores = list(by_value(run.grid, theme, SUPPRESS, "single").values())
        if len(scores) > 1:
            each[theme] = scores[-1] - scores[0]
    return [over_themes(run.grid, each, "score of the best single layer at the strongest r less that at the weakest")]


def claim_elsewhere(run: SteeringRun) -> list[ClaimNumber]:
    """In some theme, another layer steers better than the start layer, on fresh samples (fig. 16)."""
    fresh = run.fresh
    each: dict[str, np.ndarray] = {}
    for theme in themes(fresh, ACTIVATE):
        places = find(fresh, theme, ACTIVATE, "single")
        at_start, chosen = (places[(places["role"] == START_LAYER) == start] for start in (True, False))
        if len(at_start) and len(chosen) and chosen["layer"].iloc[0] != at_start["layer"].iloc[0]:
            each[theme] = fresh.values["score"][chosen.index[0]] - fresh.values["score"][at_start.index[0]]
    if not each:
        raise NotMeasured(
            "In no theme was another layer measured beside the one most start features lie in: that layer is best "
            "everywhere, or was not steered."
        )
    return in_any_theme(fresh, each, "score of the best single layer less that of the start layer")


DRAWINGS: Final = {
    "steering_by_layer": Drawing(
        figure, sentence, ("theme", "direction", "method", "layer", "value", "score"), each=("theme", "direction")
    )
}
