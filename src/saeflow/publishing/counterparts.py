"""The counterparts of features in dictionaries that their own dictionary was compared with. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saeflow.comparison.results import Comparison
from saeflow.matching.atlas import Atlas

Counterparts = dict[str, list[dict[str, Any]]]
"""For each feature, what its card shows for each dictionary it was compared with."""
_SHOWN = {
    "in": "in",
    "kind": "kind",
    "feature": "best",
    "label": "words of the best",
    "score": "cosine",
    "p": "p",
    "partner": "partner",
    "partner_score": "partner cosine",
}


def counterparts(atlas: Atlas, comparisons: Sequence[Comparison], before: int) -> Counterparts:
    """The matches of an atlas's features in the dictionaries they were compared with.

    A dictionary of a comparison belongs to the atlas if it has the same site and the same decoder, by its sha256.

    Args:
        atlas: an atlas that states the decoders it was made from; without these it has no counterparts.
        comparisons: comparisons that `saeflow compare` wrote.
        before: the number of results that precede them on the site.
    """
    weights = {str(site): digest for site, digest in atlas.weights.items()}
    found: Counterparts = {}
    for number, comparison in enumerate(comparisons, before + 1):
        own = {
            one["name"]
            for one in comparison.dictionaries
            if one.get("site") in weights and weights[one["site"]] == one["decoder sha256"]
        }
        table = comparison.tables.get("features")
        if table is None:
            continue
        for cells in (dict(zip(table.columns, row, strict=True)) for row in table.rows):
            if cells["of"] in own and cells["best"] is not None:
                shown = {name: cells[column] for name, column in _SHOWN.items()}
                found.setdefault(str(cells["feature"]), []).append({"result": str(number), **shown})
    return found
