"""Claims of appendix F: a match used as a transcoder (figures 23 and 24).

A number is a difference in explained variance on the same tokens, the mean over all pairs of sites, without a fitted
factor. Maps are named as in the rows: weights/k/entries/matched/applied.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from saeflow.experiments.statistics import Estimate, Tally
from saeflow.experiments.transition.variants import MapVariant
from saeflow.reproduce.evidence import TransitionRun
from saeflow.reproduce.verdicts import ABOVE_0, Contrast, Kind, NotMeasured, Rule, Unit

COSINE: Final = "decoders/1/binary/RAW/RAW"
PERMUTATION: Final = "permutation/1/binary/RAW/RAW"
TOP_2: Final = "decoders/2/values/RAW/FOLDED"
PLAIN, BIAS = ("permutation", "permutation-encoder"), "permutation-encoder-bias"
MINUS: Final = "\u2212"
SLIGHT: Final = 0.05
"""Explained variance that is "almost no effect": a twentieth of the whole."""


def explained(run: TransitionRun, names: list[str]) -> tuple[Tally, int]:
    """Squared error of some maps and the variance, by text: pairs by maps and one more; and how many tokens.

    Pairs at which one of the maps was not possible are left out.

    Raises:
        NotMeasured: when a map was not measured, naming it, or no pair has all of them.
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
    """Explained variance of each map: the mean over pairs."""
    return (1 - x[..., :-1] / x[..., -1:]).mean(1)


def difference(run: TransitionRun, a: str, b: str, rule: Rule = ABOVE_0) -> Contrast:
    """Explained variance of map a less that of map b."""
    tally, n = explained(run, [a, b])
    if np.array_equal(tally.sums[..., 0], tally.sums[..., 1]):  # one map by two names: no text could tell them apart
        found = Estimate(0.0, 0.0, 0.0, n)
    else:
        found = tally.told(lambda x: variance(x)[:, 0] - variance(x)[:, 1], n=n)
    one, two = tally.now(variance).tolist()
    told = [named.words if (named := MapVariant.of(name)) else name for name in (a, b)]
    words = f"explained variance of {told[0]} less that of {told[1]}"
    return Contrast(words, found, rule, Unit.NUMBER, beside=f"{one:.3f} against {two:.3f}".replace("-", MINUS))


def fig23_cosine(run: TransitionRun) -> list[Contrast]:
    """The best cosine explains more than the permutation."""
    return [difference(run, COSINE, PERMUTATION)]


def fig23_use(run: TransitionRun) -> list[Contrast]:
    """Folding helps when a map is applied."""
    return [difference(run, name.removesuffix("RAW") + "FOLDED", name) for name in (COSINE, PERMUTATION)]


def fig23_find(run: TransitionRun) -> list[Contrast]:
    """Folding has almost no effect on finding permutations."""
    rule = Rule(Kind.WITHIN, SLIGHT)
    return [difference(run, f"{name}/1/binary/FOLDED/RAW", f"{name}/1/binary/RAW/RAW", rule) for name in PLAIN]


def fig23_bias(run: TransitionRun) -> list[Contrast]:
    """With b_enc it has one."""
    rule = Rule(Kind.APART, SLIGHT)
    return [difference(run, f"{BIAS}/1/binary/FOLDED/RAW", f"{BIAS}/1/binary/RAW/RAW", rule)]


def fig24_top_2(run: TransitionRun) -> list[Contrast]:
    """Folded top-2 explains more than the permutation."""
    return [difference(run, TOP_2, PERMUTATION)]


def fig24_cosine(run: TransitionRun) -> list[Contrast]:
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
    best = MapVariant.of(others[int(values[1:].argmax())])
    told = best.words if best else ""
    found = tally.told(lambda x: variance(x)[:, 0] - variance(x)[:, 1:].max(-1), n=n)
    words = f"explained variance of cosine top-1 less that of the best of {len(others)} others"
    beside = f"{values[0]:.3f} against {values[1:].max():.3f} ({told})".replace("-0", f"{MINUS}0")
    return [Contrast(words, found, ABOVE_0, Unit.NUMBER, beside=beside)]
