"""What a site holds of each feature, in blocks of rows that are fetched on their own. Imports no torch.

A server of plain files cannot be asked for a part of one, so a table is cut: a block has some rows of one site.

    matches   for each table of the site: scores, rank by rank; rows of the target; whether each is matched back
    words     for each row: label, tokens, frequency, silent, lines of its box, headline, shares of origin groups
    cards     for each row: `saeflow.web.responses.FeatureFacts`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool

from saeflow.ids import FeatureId, Site
from saeflow.labels.words import FeatureWords, silent
from saeflow.matching.atlas import Atlas
from saeflow.publishing.finding import WordIndex
from saeflow.publishing.packing import packed, packed_json, planes
from saeflow.report.layout import wrap
from saeflow.report.tokens import headline
from saeflow.web.explorer import Explorer
from saeflow.web.routes_graph import feature_facts

K: Final = 5
"""Matches of a feature that a site keeps, at most."""
ROWS: Final = 256
"""Rows of a block of matches or words."""
CARD_ROWS: Final = 128
"""Rows of a block of cards."""
TOKENS: Final = 6
"""Tokens of a feature that lists and pointers show."""
_SHORT: Final = 1 << 16
"""Features of a target whose rows fit into two bytes."""


def match_blocks(atlas: Atlas, site: Site, targets: Sequence[Site], rows: int, k: int) -> Iterator[bytes]:
    """The matches of a site in blocks; `k` of each feature at each target."""
    tables = [atlas[site, target] for target in targets]
    back = [_matched_back(atlas, site, target, k) for target in targets]
    for start in range(0, rows, ROWS):
        some = slice(start, min(start + ROWS, rows))
        pieces: list[bytes] = []
        for table, bits in zip(tables, back, strict=True):
            kind = np.uint32 if table.n_target > _SHORT else np.uint16
            pieces += [planes(table.score[some, :k].T), planes(table.index[some, :k].T.astype(kind))]
            pieces.append(np.packbits(bits[some], axis=1, bitorder="little").tobytes())
        yield packed(b"".join(pieces))


def _matched_back(atlas: Atlas, site: Site, target: Site, k: int) -> Bool[np.ndarray, "n k"]:
    """Whether a feature is the best match of its match; False where that side was not matched."""
    table = atlas[site, target]
    if not atlas.has(target, site):
        return np.zeros((table.n_source, k), bool)
    other = atlas[target, site]
    best = np.where(np.isneginf(other.score[:, 0]), -1, other.index[:, 0])
    return best[table.index[:, :k]] == np.arange(table.n_source)[:, None]


class SiteBlocks:
    """The words and cards of a site, block by block: its words are read once, a row at a time.

    Attributes:
        silent: whether rows without words are silent; None where nobody looked.
    """

    def __init__(self, explorer: Explorer, site: Site) -> None:
        """Nothing is read before `blocks`."""
        self._explorer, self._site = explorer, site
        self.silent: bool | None = None

    def blocks(self, index: WordIndex, before: int) -> Iterator[tuple[str, bytes]]:
        """The names and bytes of blocks of words and cards.

        Args:
            index: takes the words of every row that has some.
            before: the number of the site's first row there.
        """
        n = self._explorer.sizes[self._site]
        asked = False
        for start in range(0, n, ROWS):
            rows: list[list[Any] | None] = []
            cards: list[dict[str, Any]] = []
            for row in range(start, min(start + ROWS, n)):
                feature = FeatureId(self._site, row)
                known = self._explorer.words.get(feature)
                if known is not None:
                    index.add(before + row, known.label, known.tokens)
                elif not asked:
                    self.silent, asked = silent(self._explorer.words, feature), True
                rows.append(None if known is None else self._row(feature, known))
                cards.append(feature_facts(self._explorer, feature, known).model_dump(mode="json"))
            yield f"words-{start // ROWS}", packed_json(rows)
            for first in range(0, len(cards), CARD_ROWS):
                yield f"cards-{(start + first) // CARD_ROWS}", packed_json(cards[first : first + CARD_ROWS])

    def _row(self, feature: FeatureId, known: FeatureWords) -> list[Any]:
        """What a graph or a list shows of a feature."""
        origins = self._explorer.origins
        shares = None if origins is None else origins.shares(feature)
        said = headline(known)
        dead = None if known.frequency is None else known.frequency == 0
        row: list[Any] = [known.label, list(known.tokens[:TOKENS]), known.frequency, dead, list(wrap(said))]
        if said != known.label or shares is not None:
            row.append(said)
        if shares is not None:
            row.append(shares.model_dump(mode="json"))
        return row
