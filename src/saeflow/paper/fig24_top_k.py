"""Figure 24: explained variance of top-k products, as they are and after one fitted factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeflow.experiments.transition.variants import MapVariant
from saeflow.paper.evidence import TransitionRun
from saeflow.paper.frame import Frame, FrameRow, Interval, best, only
from saeflow.paper.kinds import Drawing, point, tip
from saeflow.paper.style import DASHES, DOTS, MUTED, Medium, Sign, ems, nothing, panels, title, value_axis
from saeflow.paper.transition import (
    COSINE,
    LOWEST,
    PERMUTATION,
    TONES,
    applied_signs,
    baselines_beside,
    explained,
    less,
    map_words,
    one_pair,
    shown_as,
    variance,
)
from saeflow.paper.verdicts import ABOVE_0, MINUS, ClaimNumber, NotMeasured
from saeflow.paper.words import decimal, listed

_REFERENCES: Final = {"least squares": "least-squares T", "identity": "identity", "permutation": "permutation"}
_SHAPES: Final = {"values": "o", "binary": "s"}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw explained variance against k for both products, as it is and after one fitted factor (fig. 24)."""
    products = frame.where(kind="matching", matched="raw").distinct("weights")
    products = tuple(name for name in products if name.startswith("W_dec"))
    shown = [(measure, product) for measure in ("ev", "scaled") for product in products]
    if not products:
        return nothing(medium, caption, "no top-k product was measured")
    # horizontal lines for maps that are not top-k products
    known = {row.words("weights"): row for row in frame.where(kind="baseline").records}
    known |= {row.words("weights"): row for row in frame.where(weights="permutation", applied="raw").records}
    values = {name: row.number("ev") for key, name in _REFERENCES.items() if (row := known.get(key))}
    signs = [
        *applied_signs(),
        Sign("values"),
        Sign("binary: I(x > 0)", shape="s", hollow=True),
        Sign("below the axis", MUTED, "v", hollow=True),
    ]
    styles = dict(zip(_REFERENCES.values(), (DASHES, DOTS, (0, (6, 2, 1.2, 2))), strict=True))
    signs += [Sign(name, MUTED, styles[name]) for name, value in values.items() if value is not None]
    across = len(products) if medium.wide else 1
    drawn, places = panels(medium, caption, len(shown), 14.0, across=across, signs=signs)
    for (measure, product), axes in zip(shown, places, strict=True):
        rows = frame.where(kind="matching", weights=product, matched="raw")
        ks = sorted(rows.distinct("k"), key=lambda k: int(k) if k.isdecimal() else 1 << 60)
        columns = ("ev", "low", "high") if measure == "ev" else ("scaled", "scaled_low", "scaled_high")
        low = LOWEST if measure == "ev" else 0.0
        series = [(entries, how) for entries in _SHAPES for how in TONES if how in rows.distinct("applied")]
        for number, (entries, how) in enumerate(series):
            found = rows.where(entries=entries, applied=how).lookup("k")
            shift = 0.1 * (number - (len(series) - 1) / 2)
            points = [
                (i + shift, e, map_words(row, Interval(e.value), measure))
                for i, k in enumerate(ks)
                if (e := (row := found[k]).estimate(*columns))
            ]
            _series(axes, points, entries, TONES[how], low)
        for name, value in values.items():
            if value is not None and low <= value <= 1:
                across_line = axes.axhline(value, color=MUTED, lw=ems(0.1), ls=styles[name], zorder=1)
                tip(across_line, f"{name}: {decimal(value, 3)}")
        value_axis(axes, "y", low, 1.0)
        axes.set_xlim(-0.5, len(ks) - 0.5)
        axes.set_xticks(range(len(ks)), ks)
        axes.set_xlabel("k")
        if low < 0:
            axes.axhline(0, color=MUTED, lw=ems(0.07), zorder=1)
        title(axes, product, "as it is" if measure == "ev" else "after one fitted factor")
    return drawn


def _series(axes: Axes, points: Sequence[tuple[float, Interval, str]], entries: str, tone: str, low: float) -> None:
    """Draw a line with marks; values below the panel become triangles at its edge."""
    hollow = entries == "binary"
    xs, heights = [x for x, _, _ in points], [max(e.value, 4 * low - 3) for _, e, _ in points]
    axes.plot(xs, heights, color=tone, lw=ems(0.1), ls=DOTS if hollow else "solid", zorder=2, alpha=0.75)
    for x, e, words in points:
        if e.value < low:
            point(axes, x, low, words, tone=tone, size=0.4, shape="v", hollow=True)
            continue
        axes.plot((x, x), (max(e.ends[0], low), e.ends[1]), color=tone, lw=ems(0.09), zorder=3)
        point(axes, x, e.value, words, tone=tone, size=0.45, shape=_SHAPES[entries], hollow=hollow)


def sentence(frame: Frame) -> str:
    """The best setting of each product, and folded top-2 of the decoders' product against the permutation."""
    here = one_pair(frame)
    phrases: list[str] = []
    for product in (name for name in here.distinct("weights") if name.startswith("W_dec")):
        row = best(here.where(weights=product).records, "ev")
        if row is not None:
            phrases.append(f"{product} is best with {_setting(row)}: {shown_as(row)}")
    if not phrases:
        return ""
    said = f"{listed(phrases)}{baselines_beside(here, 'weights')}."
    two = only(here, weights="W_dec W_dec", k="2", entries="values", matched="raw", applied="folded")
    other = only(here, weights="permutation", applied="raw")
    if two.number("ev") is None or other.number("ev") is None:
        return said
    return f"{said} Folded top-2 W_dec W_dec explains {shown_as(two)}, the permutation {shown_as(other)}."


def _setting(row: FrameRow) -> str:
    k = "all" if row.words("k") == "all" else f"top-{row.words('k')}"
    return f"{k}, {row.words('entries')}, applied {row.words('applied')}"


# --- claims -----------------------------------------------------------------------------------------------------------


def claim_top_2(run: TransitionRun) -> list[ClaimNumber]:
    """Folded top-2 explains more than the permutation."""
    return [less(run, "decoders/2/values/RAW/FOLDED", PERMUTATION)]


def claim_cosine(run: TransitionRun) -> list[ClaimNumber]:
    """The best cosine explains more than every other map from the weights."""
    others = [
        name
        for name in run.names
        if (named := MapVariant.of(name))
        and not named.is_cosine
        and np.isfinite(run.missed[:, :, run.names.index(name)]).all()
    ]
    if not others:
        raise NotMeasured("No other map from the weights was measured.")
    tally, n = explained(run, [COSINE, *others])
    values = tally.now(variance)
    top = MapVariant.of(others[int(values[1:].argmax())])
    found = tally.estimate(lambda x: variance(x)[:, 0] - variance(x)[:, 1:].max(-1), n=n)
    words = f"explained variance of cosine top-1 less that of the best of {len(others)} others"
    beside = f"{values[0]:.3f} against {values[1:].max():.3f} ({top.words if top else ''})".replace("-0", f"{MINUS}0")
    return [ClaimNumber(words, found, ABOVE_0, "number", beside=beside)]


DRAWINGS: Final = {
    "transition_top_k": Drawing(
        figure, sentence, ("pair", "kind", "weights", "k", "entries", "applied", "ev"), each=("pair",)
    )
}
