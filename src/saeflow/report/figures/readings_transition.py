"""What a table of transitions says, computed from its numbers (appendix F).

Over all pairs where the table has such rows, else of its first pair. No number stands without what the stream gives for
free: the hidden state itself as the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from saeflow.report.figures.frame import Frame, Row, decimal, decimal_interval
from saeflow.report.figures.readings_trials import listed, only

ALL: Final = "all pairs"


def _one_pair(frame: Frame) -> Frame:
    """The rows of all pairs together, or of the first pair there is."""
    pairs = frame.distinct("pair")
    return frame.where(pair=ALL if ALL in pairs else pairs[0]) if pairs else frame


def _best(frame: Frame, column: str = "ev") -> Row | None:
    known = [row for row in frame.records if row.number(column) is not None]
    return max(known, key=lambda row: row.number(column) or 0.0) if known else None


def _shown(row: Row | None) -> str:
    found = row.estimate("ev") if row is not None else None
    return decimal_interval(found, 2) if found else ""


def _beside(frame: Frame, column: str) -> str:
    """`; least squares reaches 0.86, the hidden state itself 0.81`."""
    names = {"least squares": "least squares reaches", "identity": "the hidden state itself"}
    known = [
        f"{word} {decimal(row.number('ev'))}"
        for name, word in names.items()
        if (row := only(frame, kind="baseline", **{column: name})) and row.number("ev") is not None
    ]
    return f"; {listed(known)}" if known else ""


def permutations(frame: Frame) -> str:
    """The best cosine against the best permutation, in the units that suit each, and what folding does."""
    here = _one_pair(frame)
    cosine = _best(here.where(method="cosine top-1"))
    names = [
        name for name in here.where(kind="matching").distinct("method") if name.startswith("permutation")
    ]
    tops = [row for name in names if (row := _best(here.where(method=name))) is not None]
    top = max(tops, key=lambda row: row.number("ev") or 0.0) if tops else None
    if cosine is None or top is None:
        return ""
    told = (
        f"The best cosine explains {_shown(cosine)} of the variance (applied {cosine.words('applied')}), the best "
        f"permutation {_shown(top)} ({top.words('method')}, matched {top.words('matched')}, applied "
        f"{top.words('applied')}){_beside(here, 'method')}."
    )
    raw, folded = (
        only(here, method="cosine top-1", applied=how) for how in ("raw", "folded")
    )  # fmt: skip
    if raw is None or folded is None or raw.number("ev") is None or folded.number("ev") is None:
        return told
    return f"{told} Folded when applied, the best cosine explains {_shown(folded)} in place of {_shown(raw)}."


def top_k(frame: Frame) -> str:
    """The best k of each product, and what more entries do to the decoders' product."""
    here = _one_pair(frame)
    told: list[str] = []
    for product in (name for name in here.distinct("weights") if name.startswith("W_dec")):
        row = _best(here.where(weights=product))
        if row is not None:
            told.append(f"{product} is best with {_setting(row)}: {_shown(row)}")
    if not told:
        return ""
    said = f"{listed(told)}{_beside(here, 'weights')}."
    two = only(
        here, weights="W_dec W_dec", k="2", entries="values", matched="raw", applied="folded"
    )  # fmt: skip
    other = only(here, weights="permutation", applied="raw")
    if two is None or other is None or two.number("ev") is None or other.number("ev") is None:
        return said
    return f"{said} Folded top-2 W_dec W_dec explains {_shown(two)}, the permutation {_shown(other)}."


def _setting(row: Row) -> str:
    k = "all" if row.words("k") == "all" else f"top-{row.words('k')}"
    return f"{k}, {row.words('entries')}, applied {row.words('applied')}"


def losses(frame: Frame) -> str:
    """The match that costs least against skipping the layer plainly."""
    here = _one_pair(frame)
    matched = [row for row in here.where(kind="matching").records if row.number("change") is not None]
    if not matched:
        return ""
    best = min(matched, key=lambda row: row.number("change") or 0.0)
    found = best.estimate("change")
    told = f"Through {best.words('map')} the loss rises by {decimal_interval(found) if found else ''} nats"
    names = {
        "identity": "by skipping the layer plainly",
        "least squares": "through the least-squares T",
        "reconstruction": "with the reconstruction of its own dictionary",
    }
    known = [
        f"{word} by {decimal_interval(e)}"
        for name, word in names.items()
        if (row := only(here, map=name)) and (e := row.estimate("change"))
    ]
    return f"{told}; {listed(known)}." if known else f"{told}."


def differences(frame: Frame) -> str:
    """How far the best cosine is above the permutation, both as they are."""
    row = only(_one_pair(frame), a="cosine top-1", b="permutation")
    found = row.estimate("difference") if row else None
    if found is None:
        return ""
    way = "more" if found.value > 0 else "less"
    return f"As they are, the best cosine explains {decimal_interval(found, 3)} {way} than the permutation."


TRANSITION: Final[Mapping[str, Callable[[Frame], str]]] = {
    "transition_permutations": permutations,
    "transition_top_k": top_k,
    "transition_loss": losses,
    "transition_paired": differences,
}
"""The teller of every table of a transition."""
