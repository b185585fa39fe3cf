"""Beyond figure 23: loss above the clean model's with each prediction in place of the layer."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, only
from saeflow.paper.kinds import DotRow, Drawing, Mark
from saeflow.paper.style import COLOURS, INK, Medium, Sign
from saeflow.paper.transition import BASELINES, named_maps, one_pair
from saeflow.paper.words import decimal, decimal_interval, listed


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Loss above the clean model's with each prediction in place of the layer."""
    known = sorted(
        ((found, row) for row in frame.records if (found := row.estimate("change"))), key=lambda one: one[0].value
    )
    rows: list[DotRow] = []
    for found, row in known:
        baseline = row.words("kind") == "baseline"
        name = BASELINES.get(row.words("map"), row.words("map"))
        name = "identity: layer skipped" if row.words("map") == "identity" else name
        told = f"{name}: {decimal_interval(found, 3)} nats above {decimal(row.number('clean'), 3)}"
        rows.append(DotRow(name, [Mark(found, told, INK if baseline else COLOURS["RES"], hollow=baseline)]))
    others = [found.ends[1] for found, row in known if row.words("map") != "mean"]
    within = (0.0, 1.08 * max(others, default=1.0))
    signs = [Sign("through a match", COLOURS["RES"]), Sign("baseline", hollow=True)]
    return named_maps(rows, medium, caption, "loss above the clean model's, nats", within=within, signs=signs)


def sentence(frame: Frame) -> str:
    """The match that costs least against skipping the layer plainly."""
    here = one_pair(frame)
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


DRAWING: Final = Drawing(figure, sentence, ("pair", "kind", "map", "change"), each=("pair",))
