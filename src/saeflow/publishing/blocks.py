"""What a site holds of each feature, in blocks of rows that are fetched on their own. Imports no torch.

A server of plain files cannot be asked for a part of one, so a table is cut: a block has some rows of one site, packed
with gzip. Arrays lie there as planes of their bytes, lowest first, which packs float32 a quarter smaller.

    matches   for each table of the site: scores, rank by rank; rows of the target; whether each is matched back
    words     for each row: label, tokens, frequency, silent, lines of its box, headline, shares of origin groups
    cards     for each row: `saeflow.web.responses.FeatureFacts`
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool

from saeflow.ids import FeatureId, Site
from saeflow.labels.words import silent
from saeflow.matching.atlas import Atlas
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


def packed(data: bytes) -> bytes:
    """Bytes as a site keeps them; the same bytes always give the same."""
    return gzip.compress(data, 6, mtime=0)


def packed_json(value: object) -> bytes:
    """A JSON value as a site keeps it."""
    return packed(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())


def planes(values: np.ndarray) -> bytes:
    """An array as planes of its bytes, lowest first."""
    flat = np.ascontiguousarray(values).reshape(-1)
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(len(flat), -1).T.tobytes()


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


def word_rows(explorer: Explorer, site: Site) -> tuple[bool | None, list[list[Any] | None]]:
    """Whether rows without words are silent, and what a graph or a list shows of each row."""
    rows: list[list[Any] | None] = []
    unknown: bool | None = None
    asked = False
    for index in range(explorer.sizes[site]):
        feature = FeatureId(site, index)
        known = explorer.words.get(feature)
        if known is None:
            if not asked:
                unknown, asked = silent(explorer.words, feature), True
            rows.append(None)
            continue
        dead = None if known.frequency is None else known.frequency == 0
        said = headline(known)
        row: list[Any] = [known.label, list(known.tokens[:TOKENS]), known.frequency, dead, list(wrap(said))]
        shares = None if explorer.origins is None else explorer.origins.shares(feature)
        if said != known.label or shares is not None:
            row.append(said)
        if shares is not None:
            row.append(shares.model_dump(mode="json"))
        rows.append(row)
    return unknown, rows


def card_blocks(explorer: Explorer, site: Site) -> Iterator[bytes]:
    """The cards of a site in blocks: what the explorer's card says besides matches."""
    n = explorer.sizes[site]
    for start in range(0, n, CARD_ROWS):
        found = (feature_facts(explorer, FeatureId(site, row)) for row in range(start, min(start + CARD_ROWS, n)))
        yield packed_json([facts.model_dump(mode="json") for facts in found])
