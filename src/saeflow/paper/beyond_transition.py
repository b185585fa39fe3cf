"""Beyond figure 23: the loss with a prediction in place of the layer, and differences of maps on the same tokens."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, Interval, only
from saeflow.paper.kinds import DotPanel, DotRow, Drawing, Mark, dots
from saeflow.paper.style import COLOURS, INK, Medium, Sign
from saeflow.paper.transition import BASELINES, one_pair
from saeflow.paper.words import decimal, decimal_interval, listed


def loss_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the loss above the clean model's with each prediction in place of the layer."""
    known = sorted(
        ((found, row) for row in frame.records if (found := row.estimate("change"))), key=lambda one: one[0].value
    )
    rows: list[DotRow] = []
    for found, row in known:
        baseline = row.words("kind") == "baseline"
        name = BASELINES.get(row.words("map"), row.words("map"))
        name = "identity: layer skipped" if row.words("map") == "identity" else name
        tip = f"{name}: {decimal_interval(found, 3)} nats above {decimal(row.number('clean'), 3)}"
        rows.append(DotRow(name, [Mark(found, tip, INK if baseline else COLOURS["RES"], hollow=baseline)]))
    # the mean of h may cost far more than all others and does not set the axis
    others = [found.ends[1] for found, row in known if row.words("map") != "mean"]
    within = (0.0, 1.08 * max(others, default=1.0))
    signs = [Sign("through a match", COLOURS["RES"]), Sign("baseline", hollow=True)]
    panel = DotPanel("", rows, "loss above the clean model's, nats", within=within)
    return dots([panel], medium, caption, signs=signs)


def loss_sentence(frame: Frame) -> str:
    """The match that costs least, against skipping the layer and other baselines."""
    here = one_pair(frame)
    matched = [row for row in here.where(kind="matching").records if row.number("change") is not None]
    if not matched:
        return ""
    best = min(matched, key=lambda row: row.number("change") or 0.0)
    found = best.estimate("change")
    text = f"Through {best.words('map')} the loss rises by {decimal_interval(found) if found else ''} nats"
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
    return f"{text}; {listed(known)}." if known else f"{text}."


def difference_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the explained variance of one map less that of another, on the same tokens."""
    rows: list[DotRow] = []
    for row in frame.records:
        found, a, b = row.estimate("difference"), row.words("a"), row.words("b")
        if found is not None:
            rows.append(
                DotRow(f"{a}\nless {b}", [Mark(found, f"{a} less {b}: {decimal_interval(found, 3)}")], height=1.7)
            )
    panel = DotPanel("", rows, "difference in explained variance", within=(-1.0, 1.0))
    return dots([panel], medium, caption)


def difference_sentence(frame: Frame) -> str:
    """How much more the best cosine explains than the permutation, both without a fitted factor."""
    row = only(one_pair(frame), a="cosine top-1", b="permutation")
    found = row.estimate("difference")
    if found is None:
        return ""
    way = "more" if found.value > 0 else "less"
    if found.value < 0:
        low, high = found.ends
        found = Interval(-found.value, -high, -low, found.n)
    return f"As they are, the best cosine explains {decimal_interval(found, 3)} {way} than the permutation."


DRAWINGS: Final = {
    "transition_loss": Drawing(loss_figure, loss_sentence, ("pair", "kind", "map", "change"), each=("pair",)),
    "transition_paired": Drawing(
        difference_figure, difference_sentence, ("pair", "a", "b", "difference"), each=("pair",)
    ),
}
