"""The data of each feature on a site, in blocks that the browser fetches separately. Imports no torch.

A plain file server cannot return part of a file, so the data of features is cut into blocks. Residual features share a
block with those that they flow into (`flows`), and the block holds everything that a graph of them shows; all other
blocks follow the row order of a site.

    flows     matches of residual features, and the words of these features and of the module features they match best
    matches   matches of consecutive rows of a module site
    words     for consecutive rows of any site: label, tokens, frequency, silent, lines of the box in a graph, headline,
              shares of origin groups; used by lists, and in graphs for module features that are not in `flows`
    cards     for consecutive rows of any site: `saeflow.web.responses.FeatureFacts`, and counterparts in other
              dictionaries

Matches hold, for each table of the site: scores, rank by rank; rows of the target; their blocks, if the target is
residual; whether each match is mutual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int64

from saeflow.flow.scores import T_MODULE
from saeflow.ids import FeatureId, Site
from saeflow.labels.words import FeatureWords, silent
from saeflow.matching.atlas import Atlas
from saeflow.publishing.counterparts import Counterparts
from saeflow.publishing.finding import WordIndex
from saeflow.publishing.flows import ROWS, Flows
from saeflow.publishing.packing import json_bytes, packed, packed_arrays, packed_json, planes
from saeflow.report.layout import wrap
from saeflow.report.tokens import headline
from saeflow.web.explorer import Explorer
from saeflow.web.routes_graph import feature_facts

K: Final = 5
"""Matches that a site keeps per feature and target site, at most."""
CARD_ROWS: Final = 128
"""Rows in a block of cards."""
TOKENS: Final = 6
"""Tokens of a feature shown in lists and tooltips."""
_SHORT: Final = 1 << 16
"""Up to this many features at a target, a row number fits into two bytes."""


class MatchBlocks:
    """The match tables of an atlas, cut into blocks.

    Attributes:
        targets: the targets of each site, in the order of their tables in a block.
    """

    def __init__(self, atlas: Atlas, sizes: Mapping[Site, int], k: int) -> None:
        """Read every table, keeping `k` matches per feature and target."""
        self.targets = {site: [target for source, target in atlas if source == site] for site in sizes}
        self._k, self._flows = k, Flows(atlas, sizes)
        self._tables = {
            (site, target): (atlas[site, target], _matched_back(atlas, site, target, k))
            for site, targets in self.targets.items()
            for target in targets
        }

    def of_site(self, site: Site, rows: int) -> Iterator[tuple[str, bytes]]:
        """The names and bytes of a site's files: the matches of a module site, or the block of each residual row."""
        if site in self._flows.block:
            yield "flows", packed(planes(self._flows.block[site]))
        else:
            for start in range(0, rows, ROWS):
                yield f"matches-{start // ROWS}", packed(self._bytes(site, np.arange(start, min(start + ROWS, rows))))

    def of_flows(self, words: Mapping[Site, Sequence[bytes]]) -> Iterator[bytes]:
        """The blocks of residual features; `words` holds the words of all rows of all sites, as JSON."""
        for block in self._flows.rows():
            own = [words[site][row] for site, rows in block.items() for row in rows]
            modules = {
                json_bytes(f"{target}/{row}") + b":" + words[target][row]
                for site, rows in block.items()
                for target in site.modules
                if (site, target) in self._tables and target in words
                for row in self._best(site, target, rows)
            }
            head = json_bytes({str(site): rows.tolist() for site, rows in block.items()})
            head = b'{"rows":%b,"words":[%b],"modules":{%b}}' % (head, b",".join(own), b",".join(sorted(modules)))
            yield packed_arrays(head, b"".join(self._bytes(site, rows) for site, rows in block.items()))

    def _best(self, site: Site, target: Site, rows: Int64[np.ndarray, " n"]) -> list[int]:
        """The best matches of some features, as rows of the target, if they reach the default threshold of modules."""
        table, _ = self._tables[site, target]
        return table.index[rows, 0][table.score[rows, 0] >= T_MODULE].tolist()

    def _bytes(self, site: Site, rows: Int64[np.ndarray, " n"]) -> bytes:
        """The bytes of all tables of a site, for some of its rows."""
        pieces: list[bytes] = []
        for target in self.targets[site]:
            table, back = self._tables[site, target]
            index = table.index[rows, : self._k].T
            pieces.append(planes(table.score[rows, : self._k].T))
            pieces.append(planes(index.astype(np.uint32 if table.n_target > _SHORT else np.uint16)))
            if target in self._flows.block:
                pieces.append(planes(self._flows.block[target][index]))
            pieces.append(np.packbits(back[rows], axis=1, bitorder="little").tobytes())
        return b"".join(pieces)


def _matched_back(atlas: Atlas, site: Site, target: Site, k: int) -> Bool[np.ndarray, "n k"]:
    """Whether each feature is the best match of its match; False if that direction was not matched."""
    table = atlas[site, target]
    if not atlas.has(target, site):
        return np.zeros((table.n_source, k), bool)
    other = atlas[target, site]
    best = np.where(np.isneginf(other.score[:, 0]), -1, other.index[:, 0])
    return best[table.index[:, :k]] == np.arange(table.n_source)[:, None]


class SiteBlocks:
    """The words and cards of a site, block by block; its words are read only once, row by row.

    Attributes:
        silent: whether rows without words are silent; None if nobody looked or every row has words.
        words: the words of each row, as JSON.
    """

    def __init__(self, explorer: Explorer, site: Site, counterparts: Counterparts) -> None:
        """Prepare the blocks; `blocks` reads the words. Cards show the `counterparts` of features."""
        self._explorer, self._site, self._counterparts = explorer, site, counterparts
        self._label = cache(explorer.label)  # many rows are near others
        self.silent: bool | None = None
        self.words: list[bytes] = []

    def blocks(self, index: WordIndex, before: int) -> Iterator[tuple[str, bytes]]:
        """The names and bytes of the blocks of words and cards.

        Args:
            index: receives the words of every row that has some.
            before: the number of the site's first row in the index.
        """
        n = self._explorer.sizes[self._site]
        asked = False
        for start in range(0, n, ROWS):
            cards: list[dict[str, Any]] = []
            for row in range(start, min(start + ROWS, n)):
                feature = FeatureId(self._site, row)
                known = self._explorer.words.get(feature)
                if known is not None:
                    index.add(before + row, known.label, known.tokens)
                elif not asked:
                    self.silent, asked = silent(self._explorer.words, feature), True
                self.words.append(json_bytes(None if known is None else self._row(feature, known)))
                card = feature_facts(self._explorer, feature, known, self._label).model_dump(mode="json")
                found = self._counterparts.get(str(feature))
                cards.append(card if found is None else card | {"counterparts": found})
            yield f"words-{start // ROWS}", packed(b"[%b]" % b",".join(self.words[start:]))
            for first in range(0, len(cards), CARD_ROWS):
                yield f"cards-{(start + first) // CARD_ROWS}", packed_json(cards[first : first + CARD_ROWS])

    def _row(self, feature: FeatureId, known: FeatureWords) -> list[Any]:
        """What a graph or a list shows about a feature."""
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
