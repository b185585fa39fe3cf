"""Figure 23: explained variance of permutations and of the best cosine, each in three units."""

from __future__ import annotations

import math
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.evidence import TransitionRun
from saeflow.paper.frame import Frame, best, in_order, only
from saeflow.paper.kinds import DotPanel, DotRow, Drawing, Mark, dots
from saeflow.paper.style import INK, Medium
from saeflow.paper.transition import (
    BASELINES,
    COSINE,
    LOWEST,
    PERMUTATION,
    TONES,
    applied_signs,
    baselines_beside,
    less,
    map_words,
    one_pair,
    shown_as,
    side_by_side,
)
from saeflow.paper.verdicts import ClaimNumber, Rule
from saeflow.paper.words import decimal_interval

METHODS: Final = {
    "cosine top-1": "best cosine",
    "permutation": "permutation",
    "permutation + encoder": "+ encoder",
    "permutation + encoder + b_enc": "+ encoder + b_enc",
}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the explained variance of permutations and of the best cosine, each in three units (fig. 23)."""
    rows: list[DotRow] = []
    column = "method" if "method" in frame.columns else "weights"
    known = {row.words(column): row for row in frame.where(kind="baseline").records}
    for key in in_order(known, tuple(BASELINES)):
        name, found = BASELINES.get(key, key), known[key].estimate("ev")
        if key != "mean":
            marks = [Mark(found, f"{name}: {decimal_interval(found, 3)}", hollow=True)] if found else []
            rows.append(DotRow(name, marks))
    for method in in_order(frame.where(kind="matching").distinct("method"), tuple(METHODS)):
        of_method = frame.where(kind="matching", method=method)
        ways = of_method.distinct("matched")
        for matched in ways:
            marks = [
                Mark(found, map_words(row, found, f"matched {matched}"), TONES.get(row.words("applied"), INK))
                for row in of_method.where(matched=matched).records
                if (found := row.estimate("ev"))
            ]
            name = METHODS.get(method, method) if matched == next(iter(ways), "") else ""
            name = ", ".join(word for word in (name, f"matched {matched}" if len(ways) > 1 else "") if word)
            rows.append(DotRow(name, side_by_side(marks)))
    signs = applied_signs()
    panel = DotPanel("", rows, "explained variance", within=(LOWEST, math.inf))
    return dots([panel], medium, caption, signs=signs)


def sentence(frame: Frame) -> str:
    """The best cosine against the best permutation, each in the units that suit it, and the effect of folding."""
    here = one_pair(frame)
    cosine = best(here.where(method="cosine top-1").records, "ev")
    names = [name for name in here.where(kind="matching").distinct("method") if name.startswith("permutation")]
    tops = [row for name in names if (row := best(here.where(method=name).records, "ev")) is not None]
    top = max(tops, key=lambda row: row.number("ev") or 0.0) if tops else None
    if cosine is None or top is None:
        return ""
    text = (
        f"The best cosine explains {shown_as(cosine)} of the variance (applied {cosine.words('applied')}), the best "
        f"permutation {shown_as(top)} ({top.words('method')}, matched {top.words('matched')}, applied "
        f"{top.words('applied')}){baselines_beside(here, 'method')}."
    )
    raw, folded = (only(here, method="cosine top-1", applied=how) for how in ("raw", "folded"))
    if raw.number("ev") is None or folded.number("ev") is None:
        return text
    return f"{text} Folded when applied, the best cosine explains {shown_as(folded)} in place of {shown_as(raw)}."


# --- claims -----------------------------------------------------------------------------------------------------------


_SLIGHT: Final = 0.05
"""The explained variance that counts as "almost no effect": a twentieth of the whole."""


def claim_cosine(run: TransitionRun) -> list[ClaimNumber]:
    """The best cosine explains more than the permutation."""
    return [less(run, COSINE, PERMUTATION)]


def claim_use(run: TransitionRun) -> list[ClaimNumber]:
    """Folding helps when a map is applied."""
    return [less(run, name.removesuffix("RAW") + "FOLDED", name) for name in (COSINE, PERMUTATION)]


def claim_find(run: TransitionRun) -> list[ClaimNumber]:
    """Folding has almost no effect on finding permutations."""
    rule = Rule("within", _SLIGHT)
    names = ("permutation/1/binary", "permutation-encoder/1/binary")
    return [less(run, f"{name}/FOLDED/RAW", f"{name}/RAW/RAW", rule) for name in names]


def claim_bias(run: TransitionRun) -> list[ClaimNumber]:
    """With b_enc, folding does affect finding permutations."""
    name = "permutation-encoder-bias/1/binary"
    return [less(run, f"{name}/FOLDED/RAW", f"{name}/RAW/RAW", Rule("apart", _SLIGHT))]


DRAWINGS: Final = {
    "transition_permutations": Drawing(
        figure, sentence, ("pair", "kind", "method", "matched", "applied", "ev"), each=("pair",)
    )
}
