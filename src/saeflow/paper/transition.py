"""Helpers for figures, sentences and claims of transitions: maps of a layer, and the units they are applied in.

Colours show the units in which a transition matrix is applied, shapes what its entries are. Explained variance has no
lower bound: a value below the axis is a triangle at its edge, with the number in its tooltip.

In claims, a number is a difference in explained variance on the same tokens, the mean over all pairs of sites, without
a fitted factor. Maps are named as in the rows: weights/k/entries/matched/applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from saeflow.experiments.statistics import Estimate, Tally
from saeflow.experiments.transition.variants import MapVariant
from saeflow.paper.evidence import TransitionRun
from saeflow.paper.frame import Frame, FrameRow, Interval, only
from saeflow.paper.kinds import Mark
from saeflow.paper.style import COLOURS, Sign
from saeflow.paper.verdicts import ABOVE_0, MINUS, ClaimNumber, NotMeasured, Rule
from saeflow.paper.words import count, decimal, decimal_interval, listed

ALL: Final = "all pairs"
LOWEST: Final = -0.5
"""Lower limit of the axis of explained variance."""

TONES: Final = {"raw": COLOURS["RES"], "folded": COLOURS["MLP"], "mean activation": COLOURS["ATT"]}

BASELINES: Final = {
    "affine map of h": "affine map of h",
    "reconstruction": "B's own dictionary",
    "least squares": "least-squares T",
    "identity": "identity: h as it is",
    "source reconstruction": "A's own dictionary",
    "mean": "mean of h",
}
"""Maps that are not transition matrices from the weights, in the order of figures."""


def one_pair(frame: Frame) -> Frame:
    """The rows of all pairs together, or else of the first pair."""
    pairs = frame.distinct("pair")
    return frame.where(pair=ALL if ALL in pairs else pairs[0]) if pairs else frame


def shown_as(row: FrameRow | None) -> str:
    """The explained variance of a row with its interval; empty for a gap."""
    found = row.estimate("ev") if row is not None else None
    return decimal_interval(found, 2) if found else ""


def baselines_beside(frame: Frame, column: str) -> str:
    """`; least squares reaches 0.86 and the hidden state itself 0.81`."""
    names = {"least squares": "least squares reaches", "identity": "the hidden state itself"}
    known = [
        f"{word} {decimal(row.number('ev'))}"
        for name, word in names.items()
        if (row := only(frame, kind="baseline", **{column: name})).number("ev") is not None
    ]
    return f"; {listed(known)}" if known else ""


def map_words(row: FrameRow, found: Interval, how: str) -> str:
    """A map with the units it is applied in and its explained variance, for tooltips."""
    fitted = row.number("scaled")
    after = "" if fitted is None else f"; {decimal(fitted, 3)} after a factor of {decimal(row.number('scale'))}"
    name = row.words("method") or " ".join(
        word for word in (row.words("weights"), row.words("k"), row.words("entries")) if word
    )
    n = "" if found.n is None else f", n = {count(found.n)}"
    return f"{name}, {how}, applied {row.words('applied')}: {decimal_interval(found, 3)}{after}{n}"


def side_by_side(marks: Sequence[Mark]) -> list[Mark]:
    """The marks of one row, each a little below the one before."""
    return [replace(mark, down=0.22 * (i - (len(marks) - 1) / 2)) for i, mark in enumerate(marks)]


def applied_signs() -> list[Sign]:
    """Key entries for the units that a matrix is applied in."""
    return [Sign("applied", shape=""), *(Sign(name, tone) for name, tone in TONES.items())]


# --- claims -----------------------------------------------------------------------------------------------------------

COSINE: Final = "decoders/1/binary/RAW/RAW"
PERMUTATION: Final = "permutation/1/binary/RAW/RAW"


def explained(run: TransitionRun, names: list[str]) -> tuple[Tally, int]:
    """Squared errors of some maps and the variance, summed by text: (texts, pairs, maps + 1); and the number of tokens.

    Pairs for which one of the maps was not possible are left out.

    Raises:
        NotMeasured: when a map was not measured (the message names it), or no pair has all of them.
    """
    missing = [name for name in names if name not in run.names]
    if missing:
        raise NotMeasured(f"The map {missing[0]} was not measured.")
    places = [run.names.index(name) for name in names]
    kept = np.isfinite(run.missed[:, :, places]).all((0, 2))
    if not kept.any():
        raise NotMeasured(f"No pair of sites has {', '.join(names)}.")
    sums = np.concatenate([run.missed[:, kept][:, :, places], run.total[:, kept, None]], -1)
    return Tally(sums, run.datasets), int(run.tokens[:, kept].sum(0).max())


def variance(x: np.ndarray) -> np.ndarray:
    """Explained variance of each map, averaged over pairs."""
    return (1 - x[..., :-1] / x[..., -1:]).mean(1)


def less(run: TransitionRun, a: str, b: str, rule: Rule = ABOVE_0) -> ClaimNumber:
    """Explained variance of map a less that of map b."""
    tally, n = explained(run, [a, b])
    if np.array_equal(tally.sums[..., 0], tally.sums[..., 1]):  # one map under two names: the difference is exactly 0
        found = Estimate(0.0, 0.0, 0.0, n)
    else:
        found = tally.estimate(lambda x: variance(x)[:, 0] - variance(x)[:, 1], n=n)
    one, two = tally.now(variance).tolist()
    said = [named.words if (named := MapVariant.of(name)) else name for name in (a, b)]
    words = f"explained variance of {said[0]} less that of {said[1]}"
    return ClaimNumber(words, found, rule, "number", beside=f"{one:.3f} against {two:.3f}".replace("-", MINUS))
